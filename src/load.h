/*-------------------------------------------------------------------------
 *
 * load.h
 *	  Rows of our tables taken apart: waiting pushes, requests of the journal.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_LOAD_H
#define TIMPUSH_LOAD_H

#include "postgres.h"

#include "access/htup.h"
#include "storage/itemptr.h"

#include "journal.h"

/* A column of a result row, 0 for null. */
extern Datum load_column(HeapTuple tuple, TupleDesc desc, int column);

/* The accounts of a row that are loaded: elements of its array. */
typedef struct AccountBytes
{
	const char *start;			/* of the first one, its length word */
	const char *end;			/* behind the last one */
	int			offset;			/* of "start" within the array's elements */
} AccountBytes;

/* Waiting rows, in the order in which a statement has returned them. */
typedef struct Loaded
{
	int			n;
	ComposeRow *rows;
	WaitingPush *pushes;
	ItemPointerData *tids;
	AccountBytes *bytes;
} Loaded;

/*
 * Take apart the rows in SPI_tuptable: all columns of push_outbox, then ctid.
 * In the current context; what is not detoasted points into the rows.
 * Accounts are loaded until there are "most" of them: all of a row, or the
 * first ones of a row with more than 500, or none at all.
 */
extern void load_rows(Loaded *loaded, int most);

/* The value of handed_bytes after what has been taken of row i. */
extern int	load_handed_bytes(const Loaded *loaded, int i);

/* Add the rows of "more" that are not among the first ones already. */
extern void load_merge(Loaded *heads, const Loaded *more);

/* What load_request() wants of push_request, by the name q. */
#define REQUEST_COLUMNS \
	"q.id, q.server, q.msg_random, q.content, q.accounts, q.on_unknown, " \
	"q.attempts, q.resends, q.in_doubt, q.maybe_duplicate, q.first_sent_at, " \
	"q.next_attempt_at, q.account_tries"

/* A request without its members, in a context of its own under "parent". */
extern Request *load_request(HeapTuple tuple, TupleDesc desc, Oid serverid,
							 MemoryContext parent);

/*
 * Add the member that a row tells: request_id, push_id, first, accounts,
 * expires_at of push_result, to be had in the order of "first".
 */
extern void load_member(Request *request, HeapTuple tuple, TupleDesc desc);

#endif							/* TIMPUSH_LOAD_H */
