/*-------------------------------------------------------------------------
 *
 * journal.h
 *	  Rows of the journal: from composed requests, and from outcomes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_JOURNAL_H
#define TIMPUSH_JOURNAL_H

#include "postgres.h"

#include "compose.h"
#include "outbox_columns.h"
#include "request.h"
#include "rowset.h"

/* A row of push_outbox, taken apart. */
typedef struct WaitingPush
{
	Datum		values[OUTBOX_NATTS];
	bool		nulls[OUTBOX_NATTS];
} WaitingPush;

/* What a transaction is going to write, collected row by row. */
typedef struct Journal
{
	Oid			request_seq;	/* gives ids to new requests */
	Oid			msg_random_seq; /* gives numbers to new calls */

	RowSet		new_requests;	/* push_request rows to insert */
	RowSet		new_results;	/* push_result rows to insert */
	RowSet		changed_requests;	/* push_request rows to update */
	RowSet		changed_results;	/* push_result rows to update */
	RowSet		copied_results; /* parents' push_result rows to copy ... */
	RowSet		moved_results;	/* ... or then to move to a child request */
	RowSet		errors;			/* push_error rows to insert */
	List	   *sent;			/* Requests that were simply sent */
	int			sent_members;	/* and how many pushes they carry */
} Journal;

/* Accounts that share a request that is never sent. */
#define UNSENT_SIZE	500

/* Find the tables in their schema; what is found stays in the current context. */
extern void journal_open(Journal *journal, Oid schema);

/* Have the tables as many columns as we fill? */
extern bool journal_fits(const Journal *journal);

/* Start collecting, in the current context. */
extern void journal_begin(Journal *journal);

/*
 * Enter a composed request in the given state.  Returns it, in a context of
 * its own under "parent".  "random_key" is not used unless it is to be sent.
 */
extern Request *journal_compose(Journal *journal, const ComposedRequest *composed,
								ComposeRow *rows, const WaitingPush *pushes,
								const char *state, Oid serverid,
								uint64 random_key, MemoryContext parent);

/* Enter the outcome and the next step of a request. */
extern void journal_outcome(Journal *journal, Request *request);

/* Enter that a request goes again now; draws a new MsgRandom unless in doubt. */
extern void journal_resend(Journal *journal, Request *request, uint64 random_key);

/*
 * Enter that the members for which "leaving" is true end in the given state,
 * and that the others, if any, go on in a new request when this one would
 * have.  For a request that is not in flight.
 */
extern void journal_drop(Journal *journal, Request *request, const bool *leaving,
						 const char *state, TimestampTz now);

/*
 * Enter that requests of at most "size" accounts go instead of this one, the
 * first of them with "first", when this one would have.  For a request that
 * is not in flight and not in doubt.
 */
extern void journal_cut(Journal *journal, Request *request, int first, int size,
						TimestampTz now);

/* Likewise for the members that have expired. */
extern void journal_drop_expired(Journal *journal, Request *request,
								 TimestampTz now);

#endif							/* TIMPUSH_JOURNAL_H */
