/*-------------------------------------------------------------------------
 *
 * cycle.h
 *	  The worker's transaction: record what came, claim what may leave next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_CYCLE_H
#define TIMPUSH_CYCLE_H

#include "postgres.h"

#include <signal.h>

#include "nodes/pg_list.h"

#include "outbox.h"
#include "request.h"
#include "sender.h"

/* While somebody has locked our tables, we look again after this. */
#define LOCKED_OUT_PAUSE_US	50000

/*
 * Once, before everything else.  "worker" lives as long as the process;
 * "cycle" is reset by the caller now and then, and after each cycle.
 */
extern void cycle_init(MemoryContext worker, MemoryContext cycle);

typedef enum CycleStart
{
	CYCLE_UNUSED,				/* nothing is to be done or touched ... */
	CYCLE_HELD,					/* ... nor here, until timpush_resume() */
	CYCLE_WORKS
} CycleStart;

/*
 * A signal's handler sets this and cancels the statement under way: the worker
 * is to end, so that a cycle shall end soon, with or without success.
 */
extern volatile sig_atomic_t cycle_end_requested;

/*
 * The first transaction: find the servers and what an earlier worker has left
 * in flight.
 */
extern OutboxAccess cycle_start(CycleStart *start);

/*
 * Have pushes come from elsewhere since?  Then nothing more is claimed, and
 * the caller has to begin anew.
 */
extern bool cycle_outdated(void);

/*
 * A judged request, to be recorded by the next cycle.  Are there any?  And any
 * of which it is not known that they cannot be recorded?
 */
extern void cycle_add_outcome(Request *request);
extern bool cycle_has_outcomes(void);
extern bool cycle_can_record(void);

/*
 * Record and, if it may, claim.  *claimed becomes the list of Request that
 * the caller is to send, NIL if there is none.  False if timpush is gone from
 * the database.
 */
extern bool cycle_run(bool may_claim, List **claimed);

/*
 * Is there anything for a cycle to do now, or to record, if it may not claim?
 * If not, *when is lowered to the time when there may be.
 */
extern bool cycle_wanted(bool may_claim, TimestampTz now, TimestampTz *when);

/*
 * Is it time to remove what is older than timpush.retention, and is nothing
 * else to be done in a moment, which is at *when?  If not, *when is lowered.
 * Then a step of it; false if timpush is gone from the database.
 */
extern bool cycle_removal_wanted(TimestampTz now, TimestampTz *when);
extern bool cycle_remove_old(void);

/* Does everything rest, after an error or for the sake of others' locks? */
extern bool cycle_rests(TimestampTz now);

/*
 * When something may leave or expires, as far as that is known; *busy becomes
 * true if pushes wait for nothing but their turn by the rate.
 */
extern TimestampTz cycle_due(TimestampTz now, bool *busy);

/* Pushes that others have committed, before the snapshot that shows them. */
extern void cycle_note_new_pushes(void);

/* What is known of the queue may be wrong: look at all of it. */
extern void cycle_look_anew(void);

/* The servers of the database, a list of Sender. */
extern List *cycle_senders(void);

/* One of them, or one that was dropped while it had requests in flight. */
extern Sender *cycle_find_sender(Oid serverid);

/* Those that were dropped stay until their last request has ended. */
extern void cycle_sweep_gone(void);

/* What was claimed and is still here shall not leave. */
extern void cycle_take_back_all(const char *why);

#endif							/* TIMPUSH_CYCLE_H */
