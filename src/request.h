/*-------------------------------------------------------------------------
 *
 * request.h
 *	  A call of the API: what it carries, its URL and its body.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_REQUEST_H
#define TIMPUSH_REQUEST_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#include "compose.h"
#include "policy.h"
#include "response.h"
#include "server.h"

/* States of push_request and push_result, as stored. */
#define STATE_SENDING	"sending"
#define STATE_RETRY		"retry"
#define STATE_DONE		"done"
#define STATE_SENT		"sent"
#define STATE_PARTIAL	"partial"
#define STATE_FAILED	"failed"
#define STATE_EXPIRED	"expired"
#define STATE_CANCELLED	"cancelled"
#define STATE_UNKNOWN	"unknown"
#define STATE_SPLIT		"split"

/* The part of a push that a request carries: a row of push_result. */
typedef struct Member
{
	int64		push_id;
	int			first;			/* from 1, into the request's accounts */
	int			accounts;
	TimestampTz expires_at;		/* DT_NOEND: never */
	TimestampTz enqueued_at;	/* or to be sent at, if that was later */
	bool		continued;		/* what comes before, another request carries */
	const char *state;			/* to be recorded */
	int			failed;
	int			retried;
} Member;

/* A row of push_request with its members, and what became of it. */
typedef struct Request
{
	MemoryContext context;		/* holds all of it */
	dlist_node	node;			/* in the worker's list of first attempts */
	bool		listed;
	bool		fresh;			/* just composed, to be sent */
	Oid			serverid;
	NameData	server;
	int64		id;
	uint32		msg_random;
	Jsonb	   *content;		/* the body without To_Account and MsgRandom */
	int64		content_key;	/* of a request that was just composed, else 0 */
	int			naccounts;
	char	  **accounts;		/* in the server's encoding */
	OnUnknown	on_unknown;
	int			attempts;
	int			resends;
	int			account_tries;	/* of its accounts one by one, before this */
	bool		in_doubt;
	bool		maybe_duplicate;
	TimestampTz first_sent_at;	/* 0: never */
	TimestampTz next_attempt_at;	/* as loaded: when it is to go again */
	int			nmembers;
	Member	   *members;

	/* the attempt under way */
	TimestampTz sent_at;		/* 0: has not left yet */
	bool		resent;			/* it repeats one in doubt ... */
	bool		was_marked;		/* ... that was maybe_duplicate before */
	int			usersig_serial; /* of the UserSig that it carries */
	char	   *usersig;		/* ... and itself, as long as it is on its way */

	/* its end, to be recorded */
	bool		judged;			/* there is an outcome */
	Outcome		outcome;
	Step		step;
	TimestampTz ended_at;
	int64		record_pause;	/* 0, or it could not be recorded by itself
								 * ... */
	TimestampTz record_at;		/* ... and is tried again then */
} Request;

/*
 * Content of a request: everything but To_Account and MsgRandom.  "extra" is
 * merged in by the API's names, its object Ext becoming JSON text.  Arguments
 * may be NULL except "from".
 */
extern Jsonb *request_content(text *from, text *title, text *descr,
							  text *data_id, Jsonb *extra);

/*
 * Append the body, UTF-8: the same bytes for the same content, accounts and
 * MsgRandom.
 */
extern void request_body(StringInfo body, Jsonb *content, char **accounts,
						 int naccounts, uint32 msg_random);

/* The URL of a call; palloc'd, holds the UserSig. */
extern char *request_url(const ServerOptions *server, const char *usersig,
						 uint32 random);

/* Has any push in the request, or have all of them, expired by then? */
extern bool request_any_expired(const Request *request, TimestampTz when);
extern bool request_all_expired(const Request *request, TimestampTz when);

#endif							/* TIMPUSH_REQUEST_H */
