/*-------------------------------------------------------------------------
 *
 * shared.c
 *	  Shared memory: who works for which database.
 *
 * A slot per database that uses timpush, or has yet to be looked at: the
 * worker's latch, flags that say "look at the outbox", and the time when there
 * is work next.  The first commit that raises the flag sets the latch of the
 * worker or, where there is none, of the launcher; all others find it raised.
 *
 * Crash story: shared memory holds no truth.  After a crash of the cluster it
 * is made anew, and the launcher looks into every database once.  Nothing in
 * it points into the memory of one process; latches are those of PGPROCs,
 * which outlive their processes, so that a late SetLatch wakes a stranger at
 * worst.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "apps.h"
#include "compat.h"
#include "shared.h"
#include "stats.h"

#define MAX_DATABASES	1024

/* Why a worker is wanted. */
#define WANTED_FOR_PUSHES	1
#define WANTED_FOR_SERVERS	2	/* something may have been mended */
#define WANTED_FOR_LOOK		4	/* it is not known whether there is work */

typedef struct DatabaseSlot
{
	Oid			dbid;			/* InvalidOid: free */
	Latch	   *latch;			/* of the worker; NULL: none */
	pg_atomic_uint32 wanted;	/* for what: WANTED_... */
	pg_atomic_uint64 first_send_at; /* of new pushes, as sortable() */
	pg_atomic_uint64 first_expiry;
	WorkerEnd	end;			/* of the last worker */
	TimestampTz due;			/* when there is work next; DT_NOEND: never */
	TimestampTz evicted_until;	/* there shall be no worker before; 0: none */
	ConditionVariable recorded; /* the worker has recorded outcomes */
} DatabaseSlot;

typedef struct SharedState
{
	LWLock	   *lock;			/* over dbid, latch and due */
	Latch	   *launcher;
	bool		overflow;		/* somebody found no free slot */
	bool		crowded;		/* no background worker is free */
	DatabaseSlot slots[MAX_DATABASES];
} SharedState;

static SharedState *shared = NULL;

/* Slot of the current database in this process, once it is known. */
static DatabaseSlot *my_slot = NULL;
static bool exit_registered = false;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/* Times as unsigned numbers that sort alike. */
static uint64
sortable(TimestampTz time)
{
	return (uint64) time ^ (UINT64CONST(1) << 63);
}

static TimestampTz
from_sortable(uint64 value)
{
	return (TimestampTz) (value ^ (UINT64CONST(1) << 63));
}

static void
request_shared(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(SharedState)) + apps_shmem_size() +
						   stats_shmem_size());
	RequestNamedLWLockTranche("timpush", 3);
}

static void
startup_shared(void)
{
	bool		found;
	void	   *apps;
	void	   *stats;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("timpush", sizeof(SharedState), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(SharedState));
		shared->lock = &(GetNamedLWLockTranche("timpush"))->lock;
		for (int i = 0; i < MAX_DATABASES; i++)
		{
			pg_atomic_init_u32(&shared->slots[i].wanted, 0);
			pg_atomic_init_u64(&shared->slots[i].first_send_at, sortable(DT_NOEND));
			pg_atomic_init_u64(&shared->slots[i].first_expiry, sortable(DT_NOEND));
			ConditionVariableInit(&shared->slots[i].recorded);
		}
	}
	apps = ShmemInitStruct("timpush apps", apps_shmem_size(), &found);
	apps_shmem_init(apps, &(GetNamedLWLockTranche("timpush"))[1].lock, found);
	stats = ShmemInitStruct("timpush stats", stats_shmem_size(), &found);
	stats_shmem_init(stats, &(GetNamedLWLockTranche("timpush"))[2].lock, found);
	LWLockRelease(AddinShmemInitLock);
}

void
shared_init(void)
{
	hook_shmem_request(prev_shmem_request_hook, request_shared);
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shared;
}

bool
shared_attached(void)
{
	return shared != NULL;
}

/* The database's slot, made if need be; NULL if all are taken. */
static DatabaseSlot *
find_slot(Oid dbid, bool make)
{
	DatabaseSlot *free_slot = NULL;

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		DatabaseSlot *slot = &shared->slots[i];

		if (slot->dbid == dbid)
			return slot;
		if (free_slot == NULL && slot->dbid == InvalidOid)
			free_slot = slot;
	}
	if (!make || free_slot == NULL)
		return NULL;
	free_slot->dbid = dbid;
	free_slot->latch = NULL;
	free_slot->evicted_until = 0;
	free_slot->due = DT_NOEND;
	pg_atomic_write_u32(&free_slot->wanted, 0);
	pg_atomic_write_u64(&free_slot->first_send_at, sortable(DT_NOEND));
	pg_atomic_write_u64(&free_slot->first_expiry, sortable(DT_NOEND));
	return free_slot;
}

static DatabaseSlot *
lock_and_find_slot(Oid dbid, bool make)
{
	DatabaseSlot *slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = find_slot(dbid, make);
	LWLockRelease(shared->lock);
	return slot;
}

void
shared_prepare_wake(void)
{
	if (my_slot != NULL && my_slot->dbid == MyDatabaseId)
		return;
	my_slot = lock_and_find_slot(MyDatabaseId, true);
	/* all slots taken, perhaps by databases that are gone: the launcher sees */
	if (my_slot == NULL)
		shared->overflow = true;
}

/* Raise a flag; who raised it first sets one latch. */
static void
want(DatabaseSlot *slot, uint32 why)
{
	Latch	   *latch;

	if ((pg_atomic_fetch_or_u32(&slot->wanted, why) & why) != 0)
		return;
	/* read once: the worker may be leaving; it looks at the flag after that */
	latch = *(Latch *volatile *) &slot->latch;
	if (latch == NULL)
		latch = *(Latch *volatile *) &shared->launcher;
	if (latch != NULL)
		SetLatch(latch);
}

static void
wake(uint32 why)
{
	Latch	   *launcher;

	if (my_slot != NULL)
	{
		want(my_slot, why);
		if (my_slot->dbid == MyDatabaseId)
			return;
		/* freed before timpush was committed here, see shared_release_slot() */
		my_slot = lock_and_find_slot(MyDatabaseId, true);
	}
	if (my_slot != NULL)
		want(my_slot, why);
	else if ((launcher = *(Latch *volatile *) &shared->launcher) != NULL)
		SetLatch(launcher);
}

static void
lower(pg_atomic_uint64 *time, TimestampTz to)
{
	uint64		value = sortable(to);
	uint64		old = pg_atomic_read_u64(time);

	while (old > value && !pg_atomic_compare_exchange_u64(time, &old, value))
		;
}

void
shared_wake_for_pushes(TimestampTz send_at, TimestampTz expires_at)
{
	if (my_slot != NULL)
	{
		lower(&my_slot->first_send_at, send_at);
		lower(&my_slot->first_expiry, expires_at);
	}
	wake(WANTED_FOR_PUSHES);
}

void
shared_wake_for_servers(void)
{
	wake(WANTED_FOR_SERVERS);
}

bool
shared_overflow(void)
{
	return *(volatile bool *) &shared->overflow;
}

void
shared_end_overflow(void)
{
	shared->overflow = false;
}

void
shared_wait_outcome_begin(void)
{
	if (shared == NULL)
		return;
	shared_prepare_wake();
	if (my_slot != NULL)
		ConditionVariablePrepareToSleep(&my_slot->recorded);
}

void
shared_wait_outcome(long timeout_ms)
{
	if (shared != NULL && my_slot != NULL)
		(void) ConditionVariableTimedSleep(&my_slot->recorded, timeout_ms,
										   PG_WAIT_EXTENSION);
	else
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout_ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

void
shared_wait_outcome_end(void)
{
	if (shared != NULL)
		ConditionVariableCancelSleep();
}

static void
launcher_detach(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = NULL;
	LWLockRelease(shared->lock);
}

void
shared_launcher_attach(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = &MyProc->procLatch;
	LWLockRelease(shared->lock);
	before_shmem_exit(launcher_detach, (Datum) 0);
}

int
shared_slots(void)
{
	return MAX_DATABASES;
}

Oid
shared_slot_database(int slot)
{
	return shared->slots[slot].dbid;
}

bool
shared_slot_has_worker(int slot)
{
	return *(Latch *volatile *) &shared->slots[slot].latch != NULL;
}

bool
shared_slot_wanted(int slot, TimestampTz now, TimestampTz not_before,
				   TimestampTz *due)
{
	DatabaseSlot *s = &shared->slots[slot];
	uint32		why;
	TimestampTz when;

	LWLockAcquire(shared->lock, LW_SHARED);
	why = pg_atomic_read_u32(&s->wanted);
	when = why != 0 ? s->evicted_until : Max(s->due, s->evicted_until);
	LWLockRelease(shared->lock);
	if ((why & WANTED_FOR_SERVERS) == 0)
		when = Max(when, not_before);
	if (when <= now)
		return true;
	*due = Min(*due, when);
	return false;
}

/*
 * A worker is being started for the slot.  If it fails, that something was
 * mended counts no more.
 */
void
shared_slot_starting(int slot)
{
	DatabaseSlot *s = &shared->slots[slot];

	s->end = ENDED_BADLY;
	if (pg_atomic_read_u32(&s->wanted) & WANTED_FOR_SERVERS)
	{
		pg_atomic_fetch_or_u32(&s->wanted, WANTED_FOR_PUSHES);
		pg_atomic_fetch_and_u32(&s->wanted, ~WANTED_FOR_SERVERS);
	}
}

WorkerEnd
shared_slot_end(int slot)
{
	return shared->slots[slot].end;
}

/*
 * A commit raises its flag first and looks then whose slot it is; here it is
 * the other way round, so one of the two notices.
 */
void
shared_release_slot(int slot)
{
	DatabaseSlot *s = &shared->slots[slot];
	Oid			dbid;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	dbid = s->dbid;
	s->dbid = InvalidOid;
	pg_memory_barrier();
	if (s->latch != NULL || pg_atomic_read_u32(&s->wanted) != 0)
		s->dbid = dbid;
	LWLockRelease(shared->lock);
}

/* False if there is no free slot. */
bool
shared_look_at(Oid dbid)
{
	DatabaseSlot *slot = lock_and_find_slot(dbid, true);

	if (slot == NULL)
		return false;
	want(slot, WANTED_FOR_LOOK);
	return true;
}

void
shared_reconsider(Oid dbid)
{
	DatabaseSlot *slot = lock_and_find_slot(dbid, true);

	if (slot != NULL)
		want(slot, WANTED_FOR_SERVERS);
}

void
shared_set_crowded(bool crowded)
{
	shared->crowded = crowded;
	if (!crowded)
		return;
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (shared->slots[i].latch != NULL)
			SetLatch(shared->slots[i].latch);
	}
	LWLockRelease(shared->lock);
}

void
shared_forget_database(Oid dbid)
{
	DatabaseSlot *slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = find_slot(dbid, false);
	if (slot != NULL && slot->latch == NULL)
		slot->dbid = InvalidOid;
	LWLockRelease(shared->lock);
	apps_forget_database(dbid);
	stats_forget_database(dbid);
}

void
shared_wake_sharer(Oid dbid)
{
	DatabaseSlot *slot;

	LWLockAcquire(shared->lock, LW_SHARED);
	slot = find_slot(dbid, false);
	/* a worker that is leaving finds the flag at its end */
	if (slot != NULL && (slot->latch != NULL || slot->due != DT_NOEND))
		want(slot, WANTED_FOR_PUSHES);
	LWLockRelease(shared->lock);
}

static void
worker_detach(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	Latch	   *launcher;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->latch = NULL;
	launcher = shared->launcher;
	LWLockRelease(shared->lock);

	/*
	 * A commit that came while we were leaving found our latch, and a
	 * launcher that has not started us is not told of our end.
	 */
	if (launcher != NULL)
		SetLatch(launcher);
}

/* False if another worker is at it already. */
bool
shared_worker_attach(Oid dbid)
{
	bool		mine = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot = find_slot(dbid, true);
	if (my_slot != NULL && my_slot->latch == NULL)
	{
		my_slot->latch = &MyProc->procLatch;
		/* if we do not get to say otherwise, the next one is due at once */
		my_slot->due = 0;
		my_slot->end = ENDED_BADLY;
		mine = true;
	}
	LWLockRelease(shared->lock);
	if (mine && !exit_registered)
	{
		before_shmem_exit(worker_detach, (Datum) 0);
		exit_registered = true;
	}
	return mine;
}

bool
shared_evict(Oid dbid)
{
	DatabaseSlot *slot;
	Latch	   *latch = NULL;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = find_slot(dbid, false);
	if (slot != NULL)
	{
		slot->evicted_until = GetCurrentTimestamp() + SHARED_EVICTION_US;
		latch = slot->latch;
	}
	LWLockRelease(shared->lock);
	if (latch != NULL)
		SetLatch(latch);
	return latch != NULL;
}

void
shared_end_eviction(Oid dbid)
{
	DatabaseSlot *slot;
	Latch	   *launcher;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = find_slot(dbid, false);
	if (slot != NULL)
		slot->evicted_until = 0;
	launcher = shared->launcher;
	LWLockRelease(shared->lock);
	if (slot != NULL && launcher != NULL)
		SetLatch(launcher);
}

bool
shared_worker_evicted(void)
{
	TimestampTz until = *(volatile TimestampTz *) &my_slot->evicted_until;

	return until != 0 && until > GetCurrentTimestamp();
}

bool
shared_worker_woken(bool *servers)
{
	uint32		why = pg_atomic_exchange_u32(&my_slot->wanted, 0);

	*servers = (why & WANTED_FOR_SERVERS) != 0;
	return why != 0;
}

void
shared_worker_new_pushes(TimestampTz *send_at, TimestampTz *expires_at)
{
	*send_at = from_sortable(pg_atomic_exchange_u64(&my_slot->first_send_at,
													sortable(DT_NOEND)));
	*expires_at = from_sortable(pg_atomic_exchange_u64(&my_slot->first_expiry,
													   sortable(DT_NOEND)));
}

void
shared_worker_recorded(void)
{
	ConditionVariableBroadcast(&my_slot->recorded);
}

/*
 * At the start: has nothing called for the worker but a look?  That it was
 * called is noted therewith.
 */
bool
shared_worker_only_looks(void)
{
	return pg_atomic_exchange_u32(&my_slot->wanted, 0) == WANTED_FOR_LOOK;
}

bool
shared_worker_crowded(void)
{
	return *(volatile bool *) &shared->crowded;
}

static void
leave_slot(TimestampTz due, WorkerEnd end)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->due = due;
	my_slot->end = end;
	LWLockRelease(shared->lock);
}

/* The worker leaves in good order; the next one is due then. */
void
shared_worker_leaves(TimestampTz due)
{
	leave_slot(due, ENDED_WELL);
}

/* It leaves because there is no timpush in the database. */
void
shared_worker_unused(void)
{
	leave_slot(DT_NOEND, ENDED_UNUSED);
}
