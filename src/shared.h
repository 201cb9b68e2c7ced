/*-------------------------------------------------------------------------
 *
 * shared.h
 *	  Shared memory: who works for which database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_SHARED_H
#define TIMPUSH_SHARED_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "storage/latch.h"

/* Hooks and sizes; called once from _PG_init while preloading. */
extern void shared_init(void);

/* False where the library was not preloaded: nothing will be sent. */
extern bool shared_attached(void);

/*
 * Waking.  shared_prepare_wake() finds or makes the entry of the current
 * database; the others then take no lock, cannot fail and do a few atomic
 * operations and at most one SetLatch, so that they may run at commit.
 *
 * The times are those of the earliest push that was committed: when it may be
 * sent and when it expires; DT_NOBEGIN if that is not known.
 */
extern void shared_prepare_wake(void);
extern void shared_wake_for_pushes(TimestampTz send_at, TimestampTz expires_at);
extern void shared_wake_for_servers(void);

/* Waiting for the worker of the current database to record outcomes. */
extern void shared_wait_outcome_begin(void);
extern void shared_wait_outcome(long timeout_ms);
extern void shared_wait_outcome_end(void);

/*
 * Ask the worker of a database to leave, for DDL that wants the database to
 * itself; no other is started for SHARED_EVICTION_US or until
 * shared_end_eviction().  False if there is no worker (any more).
 */
#define SHARED_EVICTION_US	10000000
extern bool shared_evict(Oid dbid);
extern void shared_end_eviction(Oid dbid);

/*
 * The limits that a database shares with others have changed, so that what it
 * waits for may come earlier: wake its worker, or have one started if pushes
 * wait there.
 */
extern void shared_wake_sharer(Oid dbid);

/*
 * A database may take connections again: look at it now, whatever came of the
 * last try.
 */
extern void shared_reconsider(Oid dbid);

/* The launcher's side; "slot" is an index from 0 to shared_slots() - 1. */
extern int	shared_slots(void);
extern void shared_launcher_attach(void);
extern Oid	shared_slot_database(int slot);
extern bool shared_slot_has_worker(int slot);
extern void shared_slot_starting(int slot);
extern bool shared_look_at(Oid dbid);
extern void shared_forget_database(Oid dbid);

/*
 * Does the database want a worker now?  If not, *due is lowered to the time
 * when it will.  After failures that is not before not_before, unless
 * something may have been mended meanwhile.
 */
extern bool shared_slot_wanted(int slot, TimestampTz now,
							   TimestampTz not_before, TimestampTz *due);

/* How the last worker of a slot has left. */
typedef enum WorkerEnd
{
	ENDED_BADLY,				/* did not get to say otherwise */
	ENDED_WELL,
	ENDED_UNUSED				/* there is no timpush in the database */
} WorkerEnd;

extern WorkerEnd shared_slot_end(int slot);

/* Free the slot of a database without timpush, unless it is wanted again. */
extern void shared_release_slot(int slot);

/* Has anybody found no free slot, since shared_end_overflow()? */
extern bool shared_overflow(void);
extern void shared_end_overflow(void);

/*
 * Databases wait for a worker although no background worker is free, so those
 * that have nothing to do shall leave at once.
 */
extern void shared_set_crowded(bool crowded);

/*
 * The worker's side.  shared_worker_woken() says whether anything has called
 * for it since the last call, and whether a server was among that.
 * shared_worker_new_pushes() gives the earliest times of what was committed
 * since the last call, DT_NOEND if nothing was: every push that a snapshot
 * taken before that call did not show, but one taken after it does, is no
 * earlier than what this or a later call says.
 */
extern bool shared_worker_attach(Oid dbid);
extern bool shared_worker_only_looks(void);
extern bool shared_worker_woken(bool *servers);
extern void shared_worker_new_pushes(TimestampTz *send_at, TimestampTz *expires_at);
extern void shared_worker_recorded(void);
extern bool shared_worker_evicted(void);
extern bool shared_worker_crowded(void);
extern void shared_worker_leaves(TimestampTz due);
extern void shared_worker_unused(void);

#endif							/* TIMPUSH_SHARED_H */
