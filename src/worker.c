/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The loop of a database's worker.
 *
 * One process, one loop: wait for the latch, a connection or a timer; take
 * the answers that came; then, in one short transaction, record them and
 * claim what may leave next; then send it.  Nothing is held while bytes are
 * on the wire: no transaction, no snapshot, no lock.
 *
 * Crash story: what was claimed is in the journal before it leaves.  A worker
 * that starts takes every request that it finds "sending" for one in doubt.
 * If outcomes cannot be recorded, they stay in memory and are recorded later,
 * and nothing is claimed meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "apps.h"
#include "compat.h"
#include "cycle.h"
#include "fault.h"
#include "http.h"
#include "outbox.h"
#include "sender.h"
#include "shared.h"
#include "stats.h"
#include "timpush.h"

/* Before the worker ends, answers are waited for this long ... */
#define GRACE_US			700000

/* ... and after this it ends, whatever hangs. */
#define LEAVE_LIMIT_MS		2000

/* After an end on request, the next worker is due after this. */
#define RESTART_PAUSE_US	1000000

PGDLLEXPORT void timpush_worker_main(Datum arg);

/* A cancel may have ended a commit's wait for a synchronous standby. */
static volatile sig_atomic_t cancel_seen = false;

static MemoryContext worker_context;
static MemoryContext cycle_context;

/* 0: not idle */
static TimestampTz idle_since = 0;

/* Who has only come to look does not stay if there is nothing to do. */
#define IDLE_FOR_EVER		1

/* Judge whatever has come back. */
static void
take_answers(void)
{
	HttpCall   *call;
	void	   *tag;
	Transfer	transfer;

	while ((call = http_finished(&tag, &transfer)) != NULL)
	{
		Request    *request = tag;
		Sender	   *sender = cycle_find_sender(request->serverid);

		sender->in_flight--;
		idle_since = 0;
		FAULT_POINT("answered");
		stats_count(sender->stats, STATS_CONNECTIONS, http_connections(call));
		sender_judge(sender, request, &transfer);
		FAULT_POINT("judged");
		http_release(call);
		cycle_add_outcome(request);
	}
	cycle_sweep_gone();
}

/*
 * Is the claim that has just been committed as safe as it was to be?  A
 * request to end, a cancel and the death of the postmaster also end the wait
 * for a synchronous standby.  If the standby takes over, it still has the
 * pushes, and would send them again and not know that.
 */
static bool
claim_is_safe(void)
{
	return !ProcDiePending && !cycle_end_requested && !cancel_seen;
}

/* Send what the cycle has claimed. */
static void
send_claimed(List *requests)
{
	bool		safe = claim_is_safe();
	ListCell   *cell;

	if (requests != NIL)
		idle_since = 0;
	/* held up here, none of those before is late by that */
	if (requests != NIL && http_in_flight() == 0)
		FAULT_POINT_QUIET("leave");
	foreach(cell, requests)
	{
		Request    *request = lfirst(cell);
		Sender	   *sender = cycle_find_sender(request->serverid);

		if (!safe)
			sender_put_back(sender, request, "not sent, because its claim was interrupted");
		if (!safe || sender_send(sender, request))
			cycle_add_outcome(request);
		FAULT_POINT("sent");
	}
	list_free(requests);
}

/* Record and claim, and send what was claimed; false if timpush is gone. */
static bool
run_cycle(bool may_claim)
{
	List	   *claimed;

	if (!cycle_run(may_claim, &claimed))
		return false;
	send_claimed(claimed);
	return true;
}

/* ------------------------------------------------------------------------
 * The loop
 * ------------------------------------------------------------------------
 */

static void
send_ready(void)
{
	ListCell   *cell;
	TimestampTz now = GetCurrentTimestamp();

	foreach(cell, cycle_senders())
	{
		Sender	   *sender = lfirst(cell);
		Request    *request;

		while ((request = sender_next_ready(sender, now)) != NULL)
		{
			if (sender_send(sender, request))
				cycle_add_outcome(request);
		}
	}
}

/* Is anything claimed that waits for the limit? */
static bool
any_ready(void)
{
	ListCell   *cell;

	foreach(cell, cycle_senders())
	{
		if (((Sender *) lfirst(cell))->ready != NIL)
			return true;
	}
	return false;
}

static void
note_wake(bool servers)
{
	if (servers)
		cycle_look_anew();
	idle_since = 0;
}

/*
 * Nothing is in flight and nothing may leave.  Leave the database when that
 * has lasted, or at once if other databases wait for a process, but for pushes
 * that only wait for their turn by the rate; the launcher starts a worker
 * again.
 */
static TimestampTz
rest(TimestampTz now)
{
	bool		busy = false;
	TimestampTz due = cycle_due(now, &busy);
	TimestampTz end;

	if (idle_since == 0 || (busy && idle_since != IDLE_FOR_EVER))
		idle_since = now;
	end = (busy ? now : idle_since) + timpush_idle_exit * USECS_PER_SEC;
	if (now >= end || (shared_worker_crowded() && !busy))
	{
		shared_worker_leaves(due);
		proc_exit(0);
	}
	return Min(due, end);
}

/* Wait a moment for answers on the way and record what there is. */
static void
finish_in_flight(void)
{
	TimestampTz deadline = GetCurrentTimestamp() + GRACE_US;

	FAULT_POINT("leaving");
	cycle_take_back_all("the worker ended before it could leave");
	for (;;)
	{
		TimestampTz now;
		long		timeout;

		CHECK_FOR_INTERRUPTS();
		take_answers();
		if (cycle_can_record() && !run_cycle(false))
			break;
		pgstat_report_activity(STATE_RUNNING, "ending");
		now = GetCurrentTimestamp();
		if (now >= deadline || (http_in_flight() == 0 && !cycle_can_record()))
			break;
		timeout = TimestampDifferenceMilliseconds(now, deadline);
		/* others may hold locks, and will end soon if all are to end */
		if (cycle_can_record())
			timeout = Min(timeout, LOCKED_OUT_PAUSE_US / 1000);
		http_wait(timeout, PG_WAIT_EXTENSION);
	}
}

static void
end_at_once(void)
{
	die(SIGTERM);
}

/*
 * Wait a moment for answers on the way and record what there is, so that
 * little is in doubt, and end; the launcher is to start the next worker after
 * the pause.  Commits wait for no standby meanwhile.  If something hangs, the
 * core's handler has its way.  Further requests to end change nothing; the
 * postmaster sends each of its own twice, to the process and to its group.
 *
 * The launcher starts workers, not the postmaster, so the exit code 0, which
 * makes no noise in the log, does not keep the next one from being started.
 */
static void
leave(int64 pause)
{
	pqsignal(SIGTERM, SIG_IGN);
	cycle_end_requested = ProcDiePending = QueryCancelPending = false;
	enable_timeout_after(RegisterTimeout(USER_TIMEOUT, end_at_once), LEAVE_LIMIT_MS);
	SetConfigOption("synchronous_commit", "local", PGC_USERSET, PGC_S_OVERRIDE);
	finish_in_flight();
	shared_worker_leaves(GetCurrentTimestamp() + pause);
	proc_exit(0);
}

static void
override(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

/* A claim that is lost in a crash would be sent twice without a mark. */
static void
insist_on_durability(void)
{
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		override("synchronous_commit", "local");
}

/*
 * A request to end.  The core's handler alone would end the process in the
 * middle of a cycle, and all that is in flight would be in doubt.  A cancel
 * breaks off the cycle only, and also a commit's wait for a standby; outside
 * of a cycle, the latch wakes the loop.
 */
static void
handle_end(SIGNAL_ARGS)
{
	cycle_end_requested = true;
	StatementCancelHandler(postgres_signal_arg);
}

/* As in any session, but we remember it. */
static void
handle_cancel(SIGNAL_ARGS)
{
	cancel_seen = true;
	StatementCancelHandler(postgres_signal_arg);
}

/* Returns whether the servers may have changed. */
static bool
handle_signals(void)
{
	bool		servers = false;
	bool		reloaded = ConfigReloadPending;

	/*
	 * There is no statement to cancel outside of a cycle.  A request to end
	 * that comes after this cancels the next cycle.
	 */
	cancel_seen = false;
	QueryCancelPending = false;
	/* a commit's wait sets the one when the postmaster dies */
	if (ProcDiePending || cycle_end_requested)
		leave(RESTART_PAUSE_US);
	/* DDL wants the database to itself, or all has changed: come again */
	if (shared_worker_evicted() || cycle_outdated())
		leave(0);
	CHECK_FOR_INTERRUPTS();
	if (reloaded)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		insist_on_durability();
		note_wake(true);
	}
	if (shared_worker_woken(&servers))
		note_wake(servers);
	cycle_note_new_pushes();
	return servers || reloaded;
}

static void
wait_for_something(TimestampTz when)
{
	TimestampTz now = GetCurrentTimestamp();
	long		timeout = -1;

	if (when <= now)
		timeout = 0;
	else if (when != DT_NOEND)
		timeout = Min(TimestampDifferenceMilliseconds(now, when), 3600000);
	if (http_in_flight() > 0)
		pgstat_report_activity(STATE_RUNNING, "sending");
	else
		pgstat_report_activity(STATE_IDLE, NULL);
	http_wait(timeout, PG_WAIT_EXTENSION);
	if (http_in_flight() > 0)
		FAULT_POINT("on-the-wire");
}

static void
work(void)
{
	for (;;)
	{
		TimestampTz now;
		TimestampTz when = DT_NOEND;
		bool		may_claim;

		MemoryContextReset(cycle_context);
		MemoryContextSwitchTo(cycle_context);
		(void) handle_signals();
		take_answers();
		if (timpush_enabled)
			send_ready();
		else
			cycle_take_back_all("sending was switched off before it could leave");
		now = GetCurrentTimestamp();
		may_claim = timpush_enabled;
		if ((may_claim || cycle_has_outcomes()) && cycle_wanted(may_claim, now, &when))
		{
			if (!run_cycle(may_claim))
				return;
			when = now;
		}
		else if (may_claim && cycle_removal_wanted(now, &when))
		{
			if (!cycle_remove_old())
				return;
			when = now;
		}
		else if (http_in_flight() == 0 && !cycle_has_outcomes() && !any_ready() &&
				 !cycle_rests(now))
		{
			if (!may_claim)
				return;
			when = Min(when, rest(now));
		}
		wait_for_something(when);
	}
}

/* ------------------------------------------------------------------------
 * Start
 * ------------------------------------------------------------------------
 */

/*
 * What a role or database sets for its sessions is not for us: a claim must
 * be durable, may write, and always goes by the index.  What is set here
 * outlives a reload of the configuration.
 */
static void
override_settings(void)
{
	override("search_path", "pg_catalog, pg_temp");
	override("role", "none");
	override("exit_on_error", "off");
	override("default_transaction_read_only", "off");
	override("default_transaction_isolation", "read committed");
	override("default_transaction_deferrable", "off");
	override("statement_timeout", "0");
	if (HAVE_TRANSACTION_TIMEOUT)
		override("transaction_timeout", "0");
	override("idle_in_transaction_session_timeout", "0");
	override("lock_timeout", "1000");
	override("row_security", "on");
	override("session_replication_role", "origin");
	override("enable_indexscan", "on");
	override("enable_indexonlyscan", "on");
	override("enable_tidscan", "on");
	override("enable_nestloop", "on");
	override("enable_sort", "on");
	override("enable_seqscan", "off");
	override("enable_bitmapscan", "off");
	override("enable_hashjoin", "off");
	override("enable_mergejoin", "off");
	override("jit", "off");
	override("max_parallel_workers_per_gather", "0");
	override("plan_cache_mode", "force_generic_plan");
	override("application_name", "timpush worker");
	insist_on_durability();
}

static OutboxFound
open_database(void)
{
	OutboxFound found;

	StartTransactionCommand();
	/* makes conversions to and from UTF-8 work outside of transactions */
	override("client_encoding", "UTF8");
	found = outbox_open();
	CommitTransactionCommand();
	return found;
}

/*
 * Where nothing is to be sent, nothing is touched: rows may still be coming
 * from a dump.  Whatever changes that wakes a new worker.
 */
static void
leave_unused(void)
{
	shared_worker_leaves(DT_NOEND);
	proc_exit(0);
}

/* Likewise, but pushes that come one by one shall not start a worker each. */
static void
leave_held(void)
{
	TimestampTz end = idle_since == IDLE_FOR_EVER ? 0 :
	GetCurrentTimestamp() + timpush_idle_exit * USECS_PER_SEC;
	bool		changed = false;

	while (!changed && GetCurrentTimestamp() < end)
	{
		wait_for_something(end);
		changed = handle_signals();
	}
	shared_worker_leaves(changed ? 0 : DT_NOEND);
	proc_exit(0);
}

/* False if timpush is gone. */
static bool
start_up(void)
{
	OutboxAccess access;
	CycleStart	start = CYCLE_WORKS;

	while ((access = cycle_start(&start)) == OUTBOX_LOCKED)
	{
		http_wait(LOCKED_OUT_PAUSE_US / 1000, PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
	if (access == OUTBOX_READY && start == CYCLE_UNUSED)
		leave_unused();
	if (access == OUTBOX_READY && start == CYCLE_HELD)
		leave_held();
	return access == OUTBOX_READY;
}

/*
 * timpush_worker_main(dbid)
 *
 * Entry point of a database's worker.
 */
void
timpush_worker_main(Datum arg)
{
	Oid			dbid = DatumGetObjectId(arg);
	OutboxFound found;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, handle_cancel);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(dbid, InvalidOid, 0);

	if (!shared_worker_attach(dbid))
		proc_exit(0);
	worker_context = AllocSetContextCreate(TopMemoryContext, "timpush worker",
										   ALLOCSET_DEFAULT_SIZES);
	cycle_context = AllocSetContextCreate(TopMemoryContext, "timpush cycle",
										  ALLOCSET_DEFAULT_SIZES);
	cycle_init(worker_context, cycle_context);
	timpush_is_worker = true;
	override_settings();
	stats_worker_begin();
	FAULT_POINT("start");
	if (shared_worker_only_looks())
		idle_since = IDLE_FOR_EVER;
	found = open_database();
	if (found == OUTBOX_ABSENT)
	{
		stats_forget_database(MyDatabaseId);
		shared_worker_unused();
	}
	if (found != OUTBOX_FOUND)
	{
		/*
		 * if unfit we say nothing, so that the launcher pauses before it
		 * tries again
		 */
		apps_forget_database(MyDatabaseId);
		proc_exit(0);
	}
	http_init();
	if (start_up())
	{
		pqsignal(SIGTERM, handle_end);
		work();
	}
	/* sending was switched off or the extension made anew: look again */
	shared_worker_leaves(0);
	proc_exit(0);
}
