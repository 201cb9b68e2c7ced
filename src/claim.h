/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  What a server may claim now, and how much.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_CLAIM_H
#define TIMPUSH_CLAIM_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "aside.h"
#include "sender.h"

/* What is due but locked by another session is looked at again after this. */
#define LOCKED_PAUSE_US		100000

/* Expired pushes are looked for at most this often. */
#define EXPIRY_PAUSE_US		1000000

/* The round in which claims are made. */
typedef struct ClaimRound
{
	TimestampTz now;
	const List *senders;		/* all servers of the database */
	bool		alone;			/* one row a transaction */
	MemoryContext parent;		/* of the requests' contexts */
} ClaimRound;

/* Claim for a server what may leave now; returns the requests. */
extern List *claim_for(Sender *sender, const ClaimRound *turn);

/* Likewise for a row that is set aside; *later if that cannot be now. */
extern List *claim_aside(Sender *sender, const Aside *row, const ClaimRound *turn,
						 bool *later);

/*
 * Pushes in requests that go again expire when their request is claimed, or
 * by this, if nothing is claimed now.
 */
extern bool claim_retries_expire(const Sender *sender, TimestampTz now);
extern void claim_expire_retries(Sender *sender, const ClaimRound *turn);

#endif							/* TIMPUSH_CLAIM_H */
