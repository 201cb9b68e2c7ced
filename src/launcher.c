/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  One worker for each database that has work.
 *
 * The launcher is connected to no database, so it is in nobody's way.  It
 * sleeps until a commit somewhere sets its latch, a worker ends, or a
 * database becomes due, and starts what is wanted.  A database whose worker
 * fails is tried again with growing pauses, or when DDL may have mended it,
 * and never stops the others.
 *
 * Crash story: when the launcher starts it knows nothing, and looks into
 * every database once by starting a worker there; one that finds no timpush
 * leaves at once.  If the launcher dies, the postmaster starts another.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "fault.h"
#include "launcher.h"
#include "shared.h"
#include "timpush.h"

#define LAUNCHER_RESTART_SECONDS	5
#define FIRST_BACKOFF_MS			1000
#define MAX_BACKOFF_MS				300000

/* While no background worker is free; it is said only if that lasts. */
#define NO_SLOT_PAUSE_MS			500
#define NO_SLOT_REPORT_US			1500000

/* Between two looks at everything for the sake of databases without a slot. */
#define OVERFLOW_PAUSE_US			60000000

/* Workers that have been asked for but have not come up yet. */
#define MAX_STARTING				2

PGDLLEXPORT void timpush_launcher_main(Datum arg);

/* What this process knows of the worker of a slot. */
typedef struct Child
{
	BackgroundWorkerHandle *handle; /* NULL: none */
	Oid			dbid;			/* of the last worker */
	bool		starting;
	bool		closed;			/* the database takes no connections */
	int			failures;
	TimestampTz started;
	TimestampTz not_before;
} Child;

static Child *children;

/* Since when is no background worker free?  0: there are. */
static TimestampTz no_slot_since = 0;
static bool no_slot_reported = false;

/* Databases that have yet to be given a slot, and when they were listed. */
static List *unseen = NIL;
static TimestampTz listed_at;
static bool overflow_reported = false;

void
launcher_register(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_RESTART_SECONDS;
	strlcpy(worker.bgw_library_name, "timpush", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "timpush_launcher_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "timpush launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "timpush launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

/* One whose DROP DATABASE was broken off takes no connections either. */
static bool
takes_connections(Form_pg_database database)
{
	return database->datallowconn && !database_is_dropped_halfway(database);
}

/*
 * False if there is no such database.  One that is closed is said to be so
 * once, for pushes may be waiting there.
 */
static bool
look_up_database(Oid dbid, bool *open, bool say)
{
	HeapTuple	tuple;

	StartTransactionCommand();
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dbid));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		*open = takes_connections(database);
		if (!*open && say)
			ereport(LOG,
					(errmsg("timpush: database \"%s\" does not allow connections, so nothing is sent from there",
							NameStr(database->datname))));
		ReleaseSysCache(tuple);
	}
	CommitTransactionCommand();
	return HeapTupleIsValid(tuple);
}

/* Slots of databases that were dropped are free again. */
static void
forget_dropped_databases(void)
{
	for (int i = 0; i < shared_slots(); i++)
	{
		Oid			dbid = shared_slot_database(i);
		bool		open;

		if (OidIsValid(dbid) && children[i].handle == NULL &&
			!look_up_database(dbid, &open, false))
			shared_forget_database(dbid);
	}
}

/* Every database that takes connections may have pushes waiting. */
static void
list_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	list_free(unseen);
	unseen = NIL;
	listed_at = GetCurrentTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		if (takes_connections(database))
			unseen = lappend_oid(unseen, database->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
}

/* Those without timpush make room again, so that all have their turn. */
static void
give_slots(void)
{
	while (unseen != NIL && shared_look_at(llast_oid(unseen)))
		unseen = list_delete_last(unseen);
}

/*
 * Somebody has found no free slot.  Perhaps databases that are gone have them
 * all; if not, all that can be done is to look at each now and then.  Returns
 * when to do so next.
 */
static TimestampTz
make_room(TimestampTz now)
{
	if (!shared_overflow())
		return DT_NOEND;
	if (now < listed_at + OVERFLOW_PAUSE_US)
		return listed_at + OVERFLOW_PAUSE_US;
	if (unseen != NIL && !overflow_reported)
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("timpush: more than %d databases use timpush, so nothing is sent from some of them",
						shared_slots())));
		overflow_reported = true;
	}
	shared_end_overflow();
	forget_dropped_databases();
	list_databases();
	return DT_NOEND;
}

static void
pause_child(Child *child, TimestampTz now)
{
	int			pause = FIRST_BACKOFF_MS;

	for (int i = 0; i < child->failures && pause < MAX_BACKOFF_MS; i++)
		pause *= 2;
	child->failures++;
	child->not_before = TimestampTzPlusMilliseconds(now, Min(pause, MAX_BACKOFF_MS));
}

static void
forgive_child(Child *child)
{
	child->failures = 0;
	child->not_before = 0;
	child->closed = false;
}

static void
worker_ended(int slot, TimestampTz now)
{
	Child	   *child = &children[slot];

	pfree(child->handle);
	child->handle = NULL;
	child->starting = false;
	/* the database may be gone, and the slot be another one's */
	if (child->dbid != shared_slot_database(slot))
	{
		forgive_child(child);
		return;
	}
	if (shared_slot_end(slot) == ENDED_BADLY)
	{
		/* one that has worked for long is not one that does not come up */
		if (now > TimestampTzPlusMilliseconds(child->started, MAX_BACKOFF_MS))
			child->failures = 0;
		pause_child(child, now);
		return;
	}
	forgive_child(child);
	if (shared_slot_end(slot) == ENDED_UNUSED)
		shared_release_slot(slot);
}

/* Look at what became of the workers; returns how many are coming up. */
static int
check_children(TimestampTz now)
{
	int			starting = 0;

	for (int i = 0; i < shared_slots(); i++)
	{
		pid_t		pid;
		BgwHandleStatus status;

		if (children[i].handle == NULL)
			continue;
		status = GetBackgroundWorkerPid(children[i].handle, &pid);
		if (status == BGWH_STOPPED || status == BGWH_POSTMASTER_DIED)
			worker_ended(i, now);
		else if (status == BGWH_STARTED)
			children[i].starting = false;
		if (children[i].starting)
			starting++;
	}
	return starting;
}

/* Is the database there, and does it take connections? */
static bool
may_connect(int slot, TimestampTz now)
{
	Child	   *child = &children[slot];
	Oid			dbid = shared_slot_database(slot);
	bool		open;

	if (child->dbid != dbid)
		forgive_child(child);
	child->dbid = dbid;
	if (!look_up_database(dbid, &open, !child->closed))
	{
		shared_forget_database(dbid);
		return false;
	}
	child->closed = !open;
	if (!open)
	{
		shared_slot_starting(slot);
		pause_child(child, now);
	}
	return open;
}

/* No background worker is free; returns when to try again. */
static TimestampTz
note_no_slot(TimestampTz now)
{
	if (no_slot_since == 0)
		no_slot_since = now;
	if (!no_slot_reported && now >= no_slot_since + NO_SLOT_REPORT_US)
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("timpush: could not start a worker, because no background worker slot is free"),
				 errhint("Consider increasing max_worker_processes.")));
		no_slot_reported = true;
	}
	shared_set_crowded(true);
	return TimestampTzPlusMilliseconds(now, NO_SLOT_PAUSE_MS *
									   (no_slot_reported ? 10 : 1));
}

/* All that are wanted have a worker. */
static void
note_slots(void)
{
	if (no_slot_since == 0)
		return;
	if (no_slot_reported)
		ereport(LOG, (errmsg("timpush: background worker slots are free again")));
	no_slot_since = 0;
	no_slot_reported = false;
	shared_set_crowded(false);
}

static bool
start_worker(int slot, TimestampTz now)
{
	BackgroundWorker worker = {0};
	Oid			dbid = shared_slot_database(slot);

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = ObjectIdGetDatum(dbid);
	strlcpy(worker.bgw_library_name, "timpush", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "timpush_worker_main", sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "timpush worker for database %u", dbid);
	strlcpy(worker.bgw_type, "timpush worker", sizeof(worker.bgw_type));

	shared_slot_starting(slot);
	FAULT_POINT("launch");
	if (!RegisterDynamicBackgroundWorker(&worker, &children[slot].handle))
	{
		children[slot].handle = NULL;
		return false;
	}
	children[slot].starting = true;
	children[slot].started = now;
	FAULT_POINT("launched");
	return true;
}

/* Start what is wanted; returns when to look again. */
static TimestampTz
start_workers(TimestampTz now)
{
	int			starting = check_children(now);
	TimestampTz next;

	if (!timpush_enabled)
		return DT_NOEND;
	next = make_room(now);
	give_slots();
	for (int i = 0; i < shared_slots(); i++)
	{
		Child	   *child = &children[i];

		if (!OidIsValid(shared_slot_database(i)) || child->handle != NULL ||
			shared_slot_has_worker(i) ||
			!shared_slot_wanted(i, now, child->not_before, &next))
			continue;
		if (starting >= MAX_STARTING)
			return next;		/* their coming up wakes us */
		if (!may_connect(i, now))
		{
			next = Min(next, child->not_before);
			continue;
		}
		if (!start_worker(i, now))
			return Min(next, note_no_slot(now));
		starting++;
	}
	note_slots();
	return next;
}

static void
sleep_until(TimestampTz when, TimestampTz now)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	if (when != DT_NOEND)
	{
		events |= WL_TIMEOUT;
		timeout = Min(TimestampDifferenceMilliseconds(now, when), 3600000) + 1;
	}
	(void) WaitLatch(MyLatch, events, timeout, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	/* as it is usual with launchers: no noise, and the postmaster restarts it */
	if (ProcDiePending)
		proc_exit(1);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		int			retention = timpush_retention;

		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		/* what is due by that is not known without a look */
		if (timpush_retention != retention)
			list_databases();
	}
}

/*
 * timpush_launcher_main(arg)
 *
 * Entry point of the launcher; never returns.
 */
void
timpush_launcher_main(Datum arg pg_attribute_unused())
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	children = MemoryContextAllocZero(TopMemoryContext,
									  sizeof(Child) * shared_slots());
	MemoryContextSwitchTo(TopMemoryContext);
	shared_launcher_attach();
	list_databases();
	ereport(LOG, (errmsg("timpush: launcher started")));

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next;

		pgstat_report_activity(STATE_RUNNING, "starting workers");
		next = start_workers(now);
		pgstat_report_activity(STATE_IDLE, NULL);
		sleep_until(next, now);
	}
}
