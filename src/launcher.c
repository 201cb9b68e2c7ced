/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  One worker for each database that has work.
 *
 * The launcher is connected to no database, so it is in nobody's way.  It
 * sleeps until a commit somewhere sets its latch, a worker ends, or a
 * database becomes due, and starts what is wanted.  A database whose worker
 * fails is tried again with growing pauses and never stops the others.
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
#define NO_SLOT_PAUSE_MS			5000

/* Workers that have been asked for but have not come up yet. */
#define MAX_STARTING				2

PGDLLEXPORT void timpush_launcher_main(Datum arg);

/* What this process knows of the worker of a slot. */
typedef struct Child
{
	BackgroundWorkerHandle *handle; /* NULL: none */
	bool		starting;
	int			failures;
	TimestampTz not_before;
} Child;

static Child *children;
static bool no_slot_reported = false;

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

static bool
database_exists(Oid dbid)
{
	bool		exists;

	StartTransactionCommand();
	exists = SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(dbid));
	CommitTransactionCommand();
	return exists;
}

/* Slots of databases that were dropped are free again. */
static void
forget_dropped_databases(void)
{
	for (int i = 0; i < shared_slots(); i++)
	{
		Oid			dbid = shared_slot_database(i);

		if (OidIsValid(dbid) && children[i].handle == NULL && !database_exists(dbid))
			shared_forget_database(dbid);
	}
}

/* Every database that takes connections may have pushes waiting. */
static void
want_all_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (database->datallowconn && !database->datistemplate)
			(void) shared_want_database(database->oid);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
}

static void
worker_ended(int slot, TimestampTz now)
{
	Child	   *child = &children[slot];
	Oid			dbid = shared_slot_database(slot);
	int			pause = FIRST_BACKOFF_MS;

	pfree(child->handle);
	child->handle = NULL;
	child->starting = false;
	if (shared_slot_left_well(slot))
	{
		child->failures = 0;
		child->not_before = 0;
		return;
	}
	if (!database_exists(dbid))
	{
		shared_forget_database(dbid);
		return;
	}
	for (int i = 0; i < child->failures && pause < MAX_BACKOFF_MS; i++)
		pause *= 2;
	child->failures++;
	child->not_before = TimestampTzPlusMilliseconds(now, Min(pause, MAX_BACKOFF_MS));
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

static bool
start_worker(int slot)
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
		if (!no_slot_reported)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("timpush: could not start a worker, because no background worker slot is free"),
					 errhint("Consider increasing max_worker_processes.")));
		no_slot_reported = true;
		return false;
	}
	if (no_slot_reported)
		ereport(LOG, (errmsg("timpush: background worker slots are free again")));
	no_slot_reported = false;
	children[slot].starting = true;
	FAULT_POINT("launched");
	return true;
}

/* Start what is wanted; returns when to look again. */
static TimestampTz
start_workers(TimestampTz now)
{
	int			starting = check_children(now);
	TimestampTz next = DT_NOEND;

	if (!timpush_enabled)
		return next;
	for (int i = 0; i < shared_slots(); i++)
	{
		Child	   *child = &children[i];

		if (!OidIsValid(shared_slot_database(i)) || child->handle != NULL ||
			shared_slot_has_worker(i) ||
			!shared_slot_wanted(i, now, &next))
			continue;
		if (child->not_before > now)
		{
			next = Min(next, child->not_before);
			continue;
		}
		if (starting >= MAX_STARTING)
			break;				/* their coming up wakes us */
		if (!start_worker(i))
			return Min(next, TimestampTzPlusMilliseconds(now, NO_SLOT_PAUSE_MS));
		starting++;
	}
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
			want_all_databases();
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
	want_all_databases();
	ereport(LOG, (errmsg("timpush: launcher started")));

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next;

		pgstat_report_activity(STATE_RUNNING, "starting workers");
		if (shared_overflow())
		{
			forget_dropped_databases();
			want_all_databases();
		}
		next = start_workers(now);
		pgstat_report_activity(STATE_IDLE, NULL);
		sleep_until(next, now);
	}
}
