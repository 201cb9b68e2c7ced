/*-------------------------------------------------------------------------
 *
 * cycle.c
 *	  The worker's transaction: record what came, claim what may leave next.
 *
 * It is short, takes all of its locks or none, and waits for nothing.  All is
 * done in one transaction.  If that fails, it is done again step by step, each
 * step in a transaction of its own; what fails then is taken row by row, so
 * that a single row that is at fault is found and kept from the others:
 *
 *	an outcome that cannot be recorded stays in memory and is tried again by
 *	itself, and nothing is claimed for its server meanwhile;
 *	a row that cannot be claimed is set aside, and tried again by itself;
 *	if it is no row's fault (no space, say), everything rests for a second, and
 *	nothing is claimed before all outcomes are recorded.
 *
 * Crash story: what was claimed is in the journal before it leaves.  Outcomes
 * in memory are lost in a crash, and their requests are in doubt then, as the
 * journal has them as "sending".  How many that can be is bounded by what may
 * be in flight, because nothing new is claimed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "apps.h"
#include "aside.h"
#include "claim.h"
#include "cycle.h"
#include "fault.h"
#include "http.h"
#include "outbox.h"
#include "retention.h"
#include "sender.h"
#include "server.h"
#include "shared.h"
#include "stats.h"
#include "timpush.h"

/* While somebody has locked our tables, we say so after this. */
#define LOCKED_OUT_REPORT_US	5000000

/* With requests in flight, outcomes are recorded together after this. */
#define RECORD_PAUSE_US		5000

/* After a database error, everything rests this long. */
#define ERROR_PAUSE_US		1000000

/* The mark below which nothing is in flight is moved in steps of this. */
#define IN_FLIGHT_STEP		1000

/* Outcomes that fail in a row until it is taken for nobody's fault. */
#define OUTCOMES_TO_STOP	8

/* Rows that are set aside in one go, at most. */
#define ASIDE_AT_ONCE		10

/* A failure that no step repeats is reported at most this often, if it is the same. */
#define REPORT_PAUSE_US		60000000

/*
 * Old rows are removed when nothing else comes for so long, and nevertheless
 * when that has not been for so long.
 */
#define QUIET_US			10000
#define PATIENCE_US			100000

volatile sig_atomic_t cycle_end_requested = false;

static MemoryContext worker_context;
static MemoryContext cycle_context;
static List *senders = NIL;		/* of Sender */
static List *gone = NIL;		/* dropped servers with requests in flight */
static bool servers_known = false;
static uint64 known_generation;
static TimestampTz states_due = 0;	/* push_server is to be read then */

static List *unrecorded = NIL;	/* judged requests */
static TimestampTz unrecorded_since;
static List *stuck = NIL;		/* those that cannot be recorded by themselves */
static List *claimed = NIL;		/* by the cycle under way */
static AsideList aside;

/* The transaction under way, or the last one. */
static ClaimRound turn;
static const List *recording;	/* these outcomes */
static List *claiming;
static List *kept;				/* what "claimed" will be */
static TimestampTz began;
static OutboxAccess admission;
static ErrorData *failure;		/* NULL: it has been committed */

/* Requests sent for the first time and not yet recorded, in order of id. */
static dlist_head first_attempts = DLIST_STATIC_INIT(first_attempts);
static int64 last_claimed = 0;
static int64 noted_in_flight = 0;

static TimestampTz expiry_due = 0;	/* look for expired pushes then */
static TimestampTz expiry_rests_until = 0;
static Position expiry_front = {INT64_MIN, INT64_MIN};
static RecentAccounts *recent;
static TimestampTz rest_until = 0;	/* after an error, or for others' locks */
static bool recording_fails = false;	/* as the log has it */
static bool claiming_fails = false;
static int	explained;			/* SQLSTATE of what a cycle has failed for */
static int	failure_code;		/* SQLSTATE of what was told of last */
static TimestampTz failure_reported = 0;
static Retention retention;
static bool removal_fails = false;
static TimestampTz locked_since = 0;
static bool lock_reported = false;

/* Pushes have come from elsewhere since we started. */
static bool outdated = false;

List *
cycle_senders(void)
{
	return senders;
}

bool
cycle_outdated(void)
{
	return outdated;
}

bool
cycle_has_outcomes(void)
{
	return unrecorded != NIL || stuck != NIL;
}

bool
cycle_can_record(void)
{
	return unrecorded != NIL;
}

void
cycle_init(MemoryContext worker, MemoryContext cycle)
{
	MemoryContext old = MemoryContextSwitchTo(worker);

	worker_context = worker;
	cycle_context = cycle;
	recent = recent_create();
	outbox_leave_out(&aside);
	MemoryContextSwitchTo(old);
}

/* ------------------------------------------------------------------------
 * Servers
 * ------------------------------------------------------------------------
 */

Sender *
cycle_find_sender(Oid serverid)
{
	ListCell   *cell;

	foreach(cell, senders)
	{
		Sender	   *sender = lfirst(cell);

		if (sender->options->oid == serverid)
			return sender;
	}
	foreach(cell, gone)
	{
		Sender	   *sender = lfirst(cell);

		if (sender->options->oid == serverid)
			return sender;
	}
	return NULL;
}

static Sender *
find_sender_by_name(const char *name)
{
	ListCell   *cell;

	foreach(cell, senders)
	{
		Sender	   *sender = lfirst(cell);

		if (strcmp(sender->options->name, name) == 0)
			return sender;
	}
	return NULL;
}

void
cycle_add_outcome(Request *request)
{
	MemoryContext old = MemoryContextSwitchTo(worker_context);

	if (unrecorded == NIL)
		unrecorded_since = GetCurrentTimestamp();
	unrecorded = lappend(unrecorded, request);
	MemoryContextSwitchTo(old);
}

/* What was claimed and is still here shall not leave. */
static void
take_back(Sender *sender, const char *why)
{
	Request    *request;

	while ((request = sender_take_back(sender, why)) != NULL)
		cycle_add_outcome(request);
}

void
cycle_take_back_all(const char *why)
{
	ListCell   *cell;

	foreach(cell, senders)
		take_back(lfirst(cell), why);
}

/* Take away those whose server is no more. */
static void
drop_senders(List *oids)
{
	ListCell   *cell;

	foreach(cell, senders)
	{
		Sender	   *sender = lfirst(cell);

		if (list_member_oid(oids, sender->options->oid))
			continue;
		senders = foreach_delete_current(senders, cell);
		take_back(sender, "the server was dropped before it could leave");
		if (sender->in_flight > 0)
			gone = lappend(gone, sender);
		else
			sender_destroy(sender);
	}
}

/* Follow CREATE, ALTER and DROP SERVER; in a transaction. */
static void
refresh_senders(void)
{
	List	   *oids;
	ListCell   *cell;

	uint64		generation = server_generation();

	if (servers_known && known_generation == generation)
		return;
	oids = server_list_all();
	MemoryContextSwitchTo(worker_context);
	drop_senders(oids);
	foreach(cell, oids)
	{
		Sender	   *sender = cycle_find_sender(lfirst_oid(cell));

		if (sender != NULL)
			sender_refresh(sender);
		else
			senders = lappend(senders, sender_create(worker_context, lfirst_oid(cell), recent));
	}
	/* those that are new have joined already, so that their apps are kept */
	apps_keep_servers(oids);
	stats_keep_servers(oids);
	MemoryContextSwitchTo(cycle_context);
	servers_known = true;
	states_due = 0;
	known_generation = generation;
}

void
cycle_sweep_gone(void)
{
	ListCell   *cell;

	foreach(cell, gone)
	{
		Sender	   *sender = lfirst(cell);

		if (sender->in_flight > 0)
			continue;
		gone = foreach_delete_current(gone, cell);
		sender_destroy(sender);
	}
}


/* ------------------------------------------------------------------------
 * Steps of the cycle, each in a transaction
 * ------------------------------------------------------------------------
 */

/*
 * Now and then note below which id nothing is in flight for the first time:
 * what a transaction claims comes later, what it records is over, but for what
 * could not be recorded or adopted.
 */
static void
note_in_flight(void)
{
	int64		first = last_claimed + 1;
	dlist_iter	iter;
	ListCell   *cell;

	dlist_foreach(iter, &first_attempts)
	{
		Request    *request = dlist_container(Request, node, iter.cur);

		if (!request->judged)
		{
			first = request->id;
			break;
		}
	}
	foreach(cell, stuck)
		first = Min(first, ((Request *) lfirst(cell))->id);
	for (int i = 0; i < aside.n; i++)
	{
		if (aside.rows[i].kind == ASIDE_ORPHAN)
			first = Min(first, aside.rows[i].id);
	}
	if (first < noted_in_flight + IN_FLIGHT_STEP)
		return;
	outbox_note_in_flight(first);
	noted_in_flight = first;
}

/* Does the server wait, because its rows make transactions fail? */
static bool
sender_rests(const Sender *sender)
{
	return sender->rests_until > turn.now;
}

static void
load_state(void *arg)
{
	Sender	   *sender = arg;

	if (sender_rests(sender))
		states_due = Min(states_due, sender->rests_until);
	else if (!sender_load_state(sender))
		states_due = Min(states_due, turn.now + LOCKED_PAUSE_US);
}

static void
load_server_states(void)
{
	ListCell   *cell;

	if (states_due > turn.now)
		return;
	states_due = DT_NOEND;
	foreach(cell, senders)
		load_state(lfirst(cell));
}

/* Which servers are there, and is this still where the pushes come from? */
static void
follow_servers(void *arg pg_attribute_unused())
{
	outdated = outdated || !outbox_same_origin();
	refresh_senders();
}

/* What was on its way when its server was dropped does not go again. */
static void
end_without_server(const List *requests)
{
	ListCell   *cell;

	foreach(cell, requests)
	{
		Request    *request = lfirst(cell);

		if (find_sender_by_name(NameStr(request->server)) == NULL)
			outbox_end_server(&request->server);
	}
}

/* "arg" is a list of outcomes. */
static void
record(void *arg)
{
	recording = arg;
	FAULT_POINT("record");
	outbox_record((List *) recording);
	end_without_server((List *) recording);
	FAULT_POINT("recorded");
}

static void
expire_pushes(void *arg pg_attribute_unused())
{
	int			nrequests;

	if (turn.now < Max(expiry_due, expiry_rests_until))
		return;
	nrequests = outbox_expire(&expiry_front, turn.alone, &expiry_due);
	/* if there are more, at once; else not too often, whoever locks what */
	if (nrequests == 0 || expiry_due > turn.now)
		expiry_due = Max(expiry_due, turn.now + EXPIRY_PAUSE_US);
}

/* Is there an outcome of the server that cannot be recorded? */
static bool
has_stuck_outcome(const Sender *sender)
{
	ListCell   *cell;

	foreach(cell, stuck)
	{
		const Request *request = lfirst(cell);

		if (strcmp(NameStr(request->server), sender->options->name) == 0)
			return true;
	}
	return false;
}

static void
claim(void *arg)
{
	Sender	   *sender = arg;

	if (!cycle_end_requested && !sender_rests(sender) && !has_stuck_outcome(sender))
		claiming = list_concat(claiming, claim_for(sender, &turn));
}

static int
compare_last_claims(const ListCell *a, const ListCell *b)
{
	TimestampTz x = ((const Sender *) lfirst(a))->last_claim;
	TimestampTz y = ((const Sender *) lfirst(b))->last_claim;

	return x < y ? -1 : x > y ? 1 : 0;
}

/* Who has claimed least recently goes first: servers of one app take turns. */
static List *
senders_in_turn(void)
{
	List	   *order = list_copy(senders);

	list_sort(order, compare_last_claims);
	return order;
}

static void
expire_retries(void *arg)
{
	Sender	   *sender = arg;

	if (!sender_rests(sender))
		claim_expire_retries(sender, &turn);
}

static void
note_problem(void *arg)
{
	Sender	   *sender = arg;

	if (!sender_rests(sender) && !sender_note_problem(sender))
		states_due = Min(states_due, turn.now + LOCKED_PAUSE_US);
}

static void
do_for_all(void (*step) (void *), List *list)
{
	ListCell   *cell;

	foreach(cell, list)
		step(lfirst(cell));
}

/* A whole cycle; "arg" says whether it may claim. */
static void
do_all(void *arg)
{
	follow_servers(NULL);
	load_server_states();
	record(unrecorded);
	if (!outdated)
		note_in_flight();
	/* a trigger may have caught the cancel at a request to end ... */
	if (*(bool *) arg && !outdated && !cycle_end_requested)
	{
		expire_pushes(NULL);
		FAULT_POINT("expired");
		do_for_all(claim, senders_in_turn());
		FAULT_POINT("claimed");
		do_for_all(expire_retries, senders);
	}
	do_for_all(note_problem, senders);
	FAULT_POINT("noted");
}

/* ------------------------------------------------------------------------
 * The transaction
 * ------------------------------------------------------------------------
 */

static void
forget_recorded(void)
{
	bool		all = recording == unrecorded;
	ListCell   *cell;

	foreach(cell, recording)
	{
		Request    *request = lfirst(cell);

		if (request->listed)
			dlist_delete(&request->node);
		if (!all)
		{
			unrecorded = list_delete_ptr(unrecorded, request);
			stuck = list_delete_ptr(stuck, request);
		}
		MemoryContextDelete(request->context);
	}
	if (all)
	{
		list_free(unrecorded);
		unrecorded = NIL;
	}
}

static void
keep_claimed(void)
{
	ListCell   *cell;

	list_free(claimed);
	claimed = kept;
	kept = NIL;
	foreach(cell, claiming)
	{
		Request    *request = lfirst(cell);

		MemoryContextSetParent(request->context, worker_context);
		/* those that go again are found by their time, whatever their ids */
		if (request->fresh)
		{
			dlist_push_tail(&first_attempts, &request->node);
			request->listed = true;
			last_claimed = request->id;
		}
	}
}

/*
 * The transaction is committed: forget what it recorded, keep what it claimed.
 */
static void
after_commit(void)
{
	bool		recorded = recording != NIL;
	ListCell   *cell;

	forget_recorded();
	foreach(cell, senders)
		sender_problem_noted(lfirst(cell));
	retention_note_finished(&retention, turn.now);
	if (recorded)
		shared_worker_recorded();
	if (recorded && recording_fails)
	{
		ereport(LOG, (errmsg("timpush: outcomes can be recorded again")));
		recording_fails = false;
	}
	if (claiming != NIL && claiming_fails)
	{
		ereport(LOG, (errmsg("timpush: pushes can be claimed again")));
		claiming_fails = false;
	}
	keep_claimed();
}

void
cycle_look_anew(void)
{
	ListCell   *cell;

	foreach(cell, senders)
		sender_look_anew(lfirst(cell));
	expiry_front = POSITION_FIRST;
	expiry_due = 0;
	states_due = 0;
}

/* The transaction failed: keep the outcomes, forget the claims. */
static void
after_error(void)
{
	ListCell   *cell;

	MemoryContextSwitchTo(cycle_context);
	failure = CopyErrorData();
	FlushErrorState();
	outbox_abort();
	cycle_look_anew();
	recent_forget(recent, began);
	foreach(cell, senders)
		((Sender *) lfirst(cell))->noted = 0;
	list_free(kept);
	claiming = kept = NIL;
}

/*
 * Do a step in a transaction.  If that is false, "failure" is the error, or
 * there is none and "access" tells why it was not to be.
 */
static bool
transact(void (*step) (void *), void *arg)
{
	failure = NULL;
	admission = OUTBOX_READY;
	recording = claiming = NIL;
	began = GetCurrentTimestamp();
	turn.parent = AllocSetContextCreate(worker_context, "timpush claim",
										ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(cycle_context);
	PG_TRY();
	{
		admission = outbox_begin();
		if (admission == OUTBOX_READY)
		{
			step(arg);
			/* the list outlives the transaction's memory, and the cycle's */
			MemoryContextSwitchTo(worker_context);
			kept = list_concat_copy(claimed, claiming);
			MemoryContextSwitchTo(cycle_context);
			claiming = list_copy(claiming);
			/* ... in which case a standby is not waited for either */
			if (cycle_end_requested)
				QueryCancelPending = InterruptPending = true;
			outbox_commit();
			FAULT_POINT_QUIET("committed");
		}
	}
	PG_CATCH();
	{
		after_error();
	}
	PG_END_TRY();
	/* the commit has left us in a context that nobody resets */
	MemoryContextSwitchTo(cycle_context);
	if (failure == NULL && admission == OUTBOX_READY)
		after_commit();
	MemoryContextDelete(turn.parent);
	return failure == NULL && admission == OUTBOX_READY;
}

/* Somebody has locked our tables: DDL, most likely.  Keep out of the way. */
static void
note_locked_out(void)
{
	TimestampTz now = GetCurrentTimestamp();

	rest_until = now + LOCKED_OUT_PAUSE_US;
	if (locked_since == 0)
		locked_since = now;
	if (lock_reported || now < locked_since + LOCKED_OUT_REPORT_US)
		return;
	ereport(LOG, (errmsg("timpush: waiting for another session's lock on the tables of the extension")));
	lock_reported = true;
}

static void
note_unlocked(void)
{
	if (lock_reported)
		ereport(LOG, (errmsg("timpush: the tables of the extension are no longer locked")));
	locked_since = 0;
	lock_reported = false;
}

/* ------------------------------------------------------------------------
 * After a failure: step by step
 * ------------------------------------------------------------------------
 */

/*
 * Tell of a failure, as the server would, but for its detail: that may show
 * the row, with what is pushed to whom.
 */
static void
warn_of(const ErrorData *error, const char *what)
{
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("timpush: %s: %s", what, error->message),
			 error->hint != NULL ? errhint("%s", error->hint) : 0,
			 error->context != NULL ? errcontext("%s", error->context) : 0));
}

/* Is the failure nothing that could be a single row's fault? */
static bool
is_no_rows_fault(const ErrorData *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INVALID_TRANSACTION_STATE:
		case ERRCODE_TRANSACTION_ROLLBACK:
			return true;
		default:
			return false;
	}
}

/* Everything rests, and the log says so once. */
static void
rest_all(bool *reported, const ErrorData *error, const char *what)
{
	/* that the cycle was broken off is no trouble of the database */
	if (cycle_end_requested)
		return;
	if (!*reported)
		warn_of(error, what);
	*reported = true;
	explained = error->sqlerrcode;
	rest_until = GetCurrentTimestamp() + ERROR_PAUSE_US;
}

static void
recording_has_failed(const ErrorData *error)
{
	rest_all(&recording_fails, error,
			 "outcomes cannot be recorded, so nothing is claimed");
}

static void
claiming_has_failed(const ErrorData *error)
{
	rest_all(&claiming_fails, error, "pushes cannot be claimed");
}

/* Keep an outcome that cannot be recorded from the others. */
static void
set_stuck(Request *request, const ErrorData *error)
{
	MemoryContext old = MemoryContextSwitchTo(worker_context);

	warn_of(error, psprintf("outcome of request %lld cannot be recorded, so nothing is claimed for server \"%s\"",
							(long long) request->id, NameStr(request->server)));
	explained = error->sqlerrcode;
	request->record_pause = aside_pause(0);
	request->record_at = turn.now + request->record_pause;
	unrecorded = list_delete_ptr(unrecorded, request);
	stuck = lappend(stuck, request);
	MemoryContextSwitchTo(old);
}

/* Let others be the first to be tried next time. */
static void
move_to_end(List *requests)
{
	MemoryContext old = MemoryContextSwitchTo(worker_context);
	ListCell   *cell;

	foreach(cell, requests)
	{
		unrecorded = list_delete_ptr(unrecorded, lfirst(cell));
		unrecorded = lappend(unrecorded, lfirst(cell));
	}
	MemoryContextSwitchTo(old);
}

/*
 * Record outcomes one by one.  If several are tried and none can be recorded,
 * it is taken for nobody's fault.  False if not to be gone on with.
 */
static bool
record_one_by_one(void)
{
	List	   *requests = list_copy(unrecorded);
	List	   *failed = NIL;
	List	   *errors = NIL;
	bool		any = false;
	ListCell   *cell;
	ListCell   *error;

	foreach(cell, requests)
	{
		if (transact(record, list_make1(lfirst(cell))))
		{
			any = true;
			continue;
		}
		if (failure == NULL)
			return false;
		failed = lappend(failed, lfirst(cell));
		errors = lappend(errors, failure);
		if (is_no_rows_fault(failure) || (!any && list_length(failed) == OUTCOMES_TO_STOP))
			break;
	}
	if ((failure != NULL && is_no_rows_fault(failure)) || (!any && list_length(failed) > 1))
	{
		recording_has_failed(llast(errors));
		move_to_end(failed);
		return false;
	}
	forboth(cell, failed, error, errors)
		set_stuck(lfirst(cell), lfirst(error));
	return true;
}

/* Those that could not be recorded by themselves, when their time has come. */
static void
record_stuck(void)
{
	ListCell   *cell;

	foreach(cell, list_copy(stuck))
	{
		Request    *request = lfirst(cell);
		int64		id = request->id;

		if (request->record_at > turn.now)
			continue;
		if (transact(record, list_make1(request)))
			ereport(LOG, (errmsg("timpush: outcome of request %lld has been recorded after all",
								 (long long) id)));
		else if (failure == NULL)
			return;
		else
		{
			request->record_pause = aside_pause(request->record_pause);
			request->record_at = turn.now + request->record_pause;
		}
	}
}

static const char *
describe_row(AsideKind kind, int64 id)
{
	return psprintf(kind == ASIDE_PUSH ? "push %lld" : "request %lld", (long long) id);
}

/* Leave out the row that has made the transaction fail; false if none has. */
static bool
set_aside(const Sender *sender)
{
	AsideKind	kind;
	int64		id;

	if (!outbox_suspect(&kind, &id) ||
		!aside_add(&aside, kind, id, sender != NULL ? sender->options->oid : InvalidOid,
				   turn.now))
		return false;
	explained = failure->sqlerrcode;
	warn_of(failure, psprintf("%s is set aside, because it makes the transaction fail",
							  describe_row(kind, id)));
	return true;
}

/* No row is found that is at fault, or too many: let the server wait. */
static void
rest_sender(Sender *sender)
{
	if (sender->rest_pause == 0)
		warn_of(failure, psprintf("server \"%s\" waits, because its transactions fail",
								  sender->options->name));
	explained = failure->sqlerrcode;
	sender->rest_pause = aside_pause(sender->rest_pause);
	sender->rests_until = turn.now + sender->rest_pause;
	states_due = Min(states_due, sender->rests_until);
}

/* Those whose transactions succeed again. */
static void
end_rests(void)
{
	ListCell   *cell;

	foreach(cell, senders)
	{
		Sender	   *sender = lfirst(cell);

		if (sender->rest_pause == 0 || sender_rests(sender))
			continue;
		ereport(LOG, (errmsg("timpush: server \"%s\" goes on", sender->options->name)));
		sender->rest_pause = 0;
	}
}

/*
 * Do a step by itself, and if that fails, row by row.  False if not to be
 * gone on with.
 */
static bool
do_step(void (*step) (void *), Sender *sender)
{
	bool		done = transact(step, sender);

	turn.alone = true;
	for (int i = 0; !done && failure != NULL && !is_no_rows_fault(failure); i++)
	{
		done = transact(step, sender);
		if (done || failure == NULL || is_no_rows_fault(failure))
			break;
		if (i == ASIDE_AT_ONCE || !set_aside(sender))
			break;
	}
	turn.alone = false;
	if (done)
		return true;
	if (failure == NULL)
		return false;
	if (is_no_rows_fault(failure) || step == follow_servers)
	{
		claiming_has_failed(failure);
		return false;
	}
	if (sender != NULL)
		rest_sender(sender);
	else
		expiry_rests_until = turn.now + ASIDE_MAX_PAUSE_US;
	return true;
}

/* False if not to be gone on with. */
static bool
claim_step_by_step(void)
{
	ListCell   *cell;

	if (!do_step(follow_servers, NULL) || outdated || !do_step(expire_pushes, NULL))
		return false;
	states_due = DT_NOEND;
	foreach(cell, senders_in_turn())
	{
		Sender	   *sender = lfirst(cell);

		if (!do_step(load_state, sender) || !do_step(claim, sender) ||
			!do_step(expire_retries, sender) || !do_step(note_problem, sender))
			return false;
	}
	return true;
}

/* Locks of others are waited for less long than in a whole cycle. */
static void
set_lock_timeout(const char *value)
{
	SetConfigOption("lock_timeout", value, PGC_SUSET, PGC_S_OVERRIDE);
}

/* The cycle has failed: what of it can be done? */
static void
go_step_by_step(bool may_claim)
{
	ErrorData  *first = failure;
	bool		done;

	explained = 0;
	set_lock_timeout("100");
	done = unrecorded == NIL || transact(record, unrecorded) ||
		(failure != NULL && record_one_by_one());
	if (done && may_claim)
		done = claim_step_by_step();
	set_lock_timeout("1000");
	/* whatever it was, it is told of */
	if (cycle_end_requested || explained == first->sqlerrcode ||
		(failure_code == first->sqlerrcode &&
		 turn.now < failure_reported + REPORT_PAUSE_US))
		return;
	warn_of(first, "a transaction has failed and was made again step by step");
	failure_code = first->sqlerrcode;
	failure_reported = turn.now;
}

/* Requests that were left in flight are in doubt. */
static void
adopt(List *orphans)
{
	ListCell   *cell;

	FAULT_POINT("adopt");
	foreach(cell, orphans)
	{
		Request    *request = lfirst(cell);

		MemoryContextSetParent(request->context, worker_context);
		sender_judge_orphan(find_sender_by_name(NameStr(request->server)), request);
		cycle_add_outcome(request);
	}
}

/* A row that is set aside by itself; "arg" is an Aside. */
static void
try_aside(void *arg)
{
	Aside	   *row = arg;
	Sender	   *sender = row->server != InvalidOid ? cycle_find_sender(row->server) : NULL;
	bool		later = false;

	if (row->kind == ASIDE_ORPHAN)
		adopt(outbox_orphan(row->id, turn.parent));
	else
		claiming = claim_aside(sender, row, &turn, &later);
	if (later)
		row->until = turn.now + row->pause;
}

/* The first one whose time has come. */
static void
claim_set_aside(void)
{
	Aside	   *row = aside_due(&aside, turn.now);

	if (row == NULL)
		return;
	if (!transact(try_aside, row))
	{
		if (failure != NULL)
			aside_again(row, turn.now);
		return;
	}
	if (row->until > turn.now)
		return;
	ereport(LOG, (errmsg("timpush: %s is no longer set aside",
						 describe_row(row->kind, row->id))));
	aside_remove(&aside, row);
	cycle_look_anew();
}

/* ------------------------------------------------------------------------
 * The cycle
 * ------------------------------------------------------------------------
 */

bool
cycle_run(bool may_claim, List **to_send)
{
	pgstat_report_activity(STATE_RUNNING, may_claim ? "recording and claiming" : "recording");
	turn.now = GetCurrentTimestamp();
	turn.senders = senders;
	claimed = NIL;
	if (transact(do_all, &may_claim))
		end_rests();
	else if (failure != NULL && !cycle_end_requested)
		go_step_by_step(may_claim);
	if (admission == OUTBOX_READY && !cycle_end_requested && rest_until <= turn.now)
	{
		record_stuck();
		if (may_claim && !outdated)
			claim_set_aside();
	}
	if (admission == OUTBOX_LOCKED)
		note_locked_out();
	else
		note_unlocked();
	*to_send = claimed;
	claimed = NIL;
	/* nothing that the caller makes to send those is to outlive the next turn */
	MemoryContextSwitchTo(cycle_context);
	MemoryContextReset(cycle_context);
	return admission != OUTBOX_GONE;
}

/* Is there anything to record now? */
static bool
recording_wanted(TimestampTz now, TimestampTz *when)
{
	ListCell   *cell;

	if (unrecorded != NIL)
	{
		TimestampTz due = unrecorded_since + RECORD_PAUSE_US;

		if (http_in_flight() == 0)
			return true;
		*when = Min(*when, due);
	}
	foreach(cell, stuck)
		* when = Min(*when, ((Request *) lfirst(cell))->record_at);
	return *when <= now;
}

/* Is there anything to do for the server now? */
static bool
sender_wants(Sender *sender, TimestampTz now, TimestampTz *when)
{
	bool		wanted = false;

	*when = Min(*when, sender_ready_due(sender, now));
	if (sender->rests_until > now)
	{
		*when = Min(*when, sender->rests_until);
		return false;
	}
	/* if it could not be noted, that is tried again at states_due */
	if (sender_has_news(sender) && states_due == DT_NOEND)
		wanted = true;
	if (!has_stuck_outcome(sender) && sender_room(sender, now, when) > 0)
		wanted = true;
	if (claim_retries_expire(sender, now))
		wanted = true;
	if (sender->retry_expiry > now)
		*when = Min(*when, sender->retry_expiry);
	return wanted;
}

bool
cycle_wanted(bool may_claim, TimestampTz now, TimestampTz *when)
{
	ListCell   *cell;
	bool		wanted = false;
	TimestampTz due = Min(Max(expiry_due, expiry_rests_until), aside_next(&aside));

	if (rest_until > now)
	{
		*when = Min(*when, rest_until);
		return false;
	}
	if (states_due <= now || !servers_known || known_generation != server_generation())
		return true;
	*when = Min(*when, states_due);
	if (recording_wanted(now, when))
		return true;
	if (!may_claim)
		return false;
	if (due <= now)
		return true;
	*when = Min(*when, due);
	foreach(cell, senders)
	{
		if (sender_wants(lfirst(cell), now, when))
			wanted = true;
	}
	return wanted;
}

void
cycle_note_new_pushes(void)
{
	ListCell   *cell;
	TimestampTz send_at;
	TimestampTz expires_at;

	shared_worker_new_pushes(&send_at, &expires_at);
	if (send_at == DT_NOEND)
		return;
	foreach(cell, senders)
		sender_note_pushes(lfirst(cell), send_at);
	if (expiry_front.at >= expires_at)
		expiry_front = (Position)
	{
		expires_at, INT64_MIN
	};
	expiry_due = Min(expiry_due, Max(expires_at, 0));
}


bool
cycle_rests(TimestampTz now)
{
	return rest_until > now;
}

/* ------------------------------------------------------------------------
 * What is older than timpush.retention
 * ------------------------------------------------------------------------
 */

bool
cycle_removal_wanted(TimestampTz now, TimestampTz *when)
{
	TimestampTz due;

	retention_follow(&retention, timpush_retention, now);
	due = Max(retention_due(&retention), rest_until);
	if (due <= now && (*when >= now + QUIET_US || due + PATIENCE_US <= now))
		return true;
	*when = Min(*when, due > now ? due : due + PATIENCE_US);
	return false;
}

/* "arg" is a Retention. */
static void
remove_old(void *arg)
{
	outbox_remove_old(arg);
}

/* A step has failed.  Nobody waits for it, so it can be made again later. */
static void
removal_has_failed(const Retention *tried)
{
	if (!removal_fails)
		warn_of(failure, "rows older than timpush.retention cannot be removed");
	removal_fails = true;
	retention_failed(&retention, tried, !is_no_rows_fault(failure), turn.now);
}

static void
removal_has_succeeded(const Retention *tried)
{
	retention = *tried;
	if (removal_fails && retention_mended(&retention))
	{
		ereport(LOG, (errmsg("timpush: rows older than timpush.retention can be removed again")));
		removal_fails = false;
	}
}

bool
cycle_remove_old(void)
{
	Retention	next;

	pgstat_report_activity(STATE_RUNNING, "removing old pushes");
	turn.now = GetCurrentTimestamp();
	retention_begin(&retention, turn.now);
	next = retention;
	set_lock_timeout("10");
	if (transact(remove_old, &next))
		removal_has_succeeded(&next);
	else if (failure != NULL && !cycle_end_requested)
		removal_has_failed(&next);
	set_lock_timeout("1000");
	if (admission == OUTBOX_LOCKED)
		note_locked_out();
	MemoryContextSwitchTo(worker_context);
	MemoryContextReset(cycle_context);
	return admission != OUTBOX_GONE;
}

TimestampTz
cycle_due(TimestampTz now, bool *busy)
{
	TimestampTz due = Max(expiry_due, expiry_rests_until);
	ListCell   *cell;

	foreach(cell, senders)
	{
		Sender	   *sender = lfirst(cell);
		TimestampTz first = Min(sender_leaves(sender, now, busy), sender->retry_expiry);

		due = Min(due, Max(first, sender->rests_until));
		if (sender->rests_until > now)
			*busy = true;
	}
	/* nobody else remembers these */
	if (aside.n > 0)
		*busy = true;
	/* and where a walk has come to; if it is not under way, it can wait */
	if (retention_due(&retention) <= now + RETENTION_STEP_US)
		*busy = true;
	due = Min(due, retention_worker_due(&retention));
	return Min(due, aside_next(&aside));
}

/* ------------------------------------------------------------------------
 * Start
 * ------------------------------------------------------------------------
 */

/* Of those whose state could be read. */
static bool
all_held(void)
{
	bool		any = false;
	ListCell   *cell;

	foreach(cell, senders)
	{
		const Sender *sender = lfirst(cell);

		if (sender->state.random_key != 0 && !sender->state.held)
			return false;
		any = any || sender->state.random_key != 0;
	}
	return any;
}

/* Holds the servers of a copy, and says so; once, as it is none afterwards. */
static OutboxOrigin
find_origin(void)
{
	bool		held;
	OutboxOrigin origin = outbox_find_origin(&held);

	if (held)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("timpush: database \"%s\" is a copy of another one, or has pushes from elsewhere, so its servers are held",
						get_database_name(MyDatabaseId)),
				 errhint("If its pushes are to be sent from here, call timpush_resume() for each server.")));
	return origin;
}

/* "arg" is where to put what there is to do. */
static void
find_servers(void *arg)
{
	*(CycleStart *) arg = find_origin() == OUTBOX_UNUSED ? CYCLE_UNUSED : CYCLE_WORKS;
	/* limits count whether or not anything is sent */
	refresh_senders();
}

static void
load_states(void *arg pg_attribute_unused())
{
	load_server_states();
}

/* Those of some servers, if not of all; false if of none. */
static bool
load_states_one_by_one(void)
{
	bool		any = false;
	ListCell   *cell;

	foreach(cell, senders)
	{
		if (transact(load_state, lfirst(cell)))
			any = true;
		else if (failure == NULL || is_no_rows_fault(failure))
			return false;
	}
	return any;
}

/* Requests that an earlier worker left in flight. */
static void
adopt_orphans(void *arg pg_attribute_unused())
{
	outdated = outdated || !outbox_same_origin();
	if (!outdated)
		adopt(outbox_orphans(unrecorded, turn.alone, turn.parent));
}

/* One that cannot be read is set aside; false if not to be gone on with. */
static bool
adopt_one_by_one(void)
{
	int			before;

	turn.alone = true;
	do
	{
		before = list_length(unrecorded) + aside.n;
		if (!transact(adopt_orphans, NULL) &&
			(failure == NULL || is_no_rows_fault(failure) || !set_aside(NULL)))
			break;
	} while (list_length(unrecorded) + aside.n > before);
	turn.alone = false;
	return failure == NULL && admission == OUTBOX_READY;
}

/* The transactions of the start; false if one of them was not to be. */
static bool
start_work(CycleStart *start)
{
	if (!transact(find_servers, start))
		return false;
	if (*start == CYCLE_UNUSED)
		return true;
	if (!transact(load_states, NULL) && (failure == NULL || !load_states_one_by_one()))
		return false;
	if (all_held())
	{
		*start = CYCLE_HELD;
		return true;
	}
	return transact(adopt_orphans, NULL) || (failure != NULL && adopt_one_by_one());
}

OutboxAccess
cycle_start(CycleStart *start)
{
	turn.now = GetCurrentTimestamp();
	if (!start_work(start) && failure != NULL)
		ReThrowError(failure);
	if (admission == OUTBOX_READY && unrecorded != NIL)
		ereport(LOG,
				(errmsg_plural("timpush: %d request was left in flight and is in doubt",
							   "timpush: %d requests were left in flight and are in doubt",
							   list_length(unrecorded), list_length(unrecorded))));
	FAULT_POINT("adopted");
	MemoryContextSwitchTo(worker_context);
	return admission;
}
