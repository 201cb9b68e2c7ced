/*-------------------------------------------------------------------------
 *
 * cycle.c
 *	  The worker's transaction: record what came, claim what may leave next.
 *
 * It is short, takes all of its locks or none, and waits for nothing.
 *
 * Crash story: what was claimed is in the journal before it leaves.  If
 * outcomes cannot be recorded, they stay in memory and are recorded later,
 * and nothing is claimed meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "apps.h"
#include "cycle.h"
#include "fault.h"
#include "http.h"
#include "outbox.h"
#include "sender.h"
#include "server.h"
#include "shared.h"

/* While somebody has locked our tables, we say so after this. */
#define LOCKED_OUT_REPORT_US	5000000

/* With requests in flight, outcomes are recorded together after this. */
#define RECORD_PAUSE_US		5000

/* After a database error, everything rests this long. */
#define ERROR_PAUSE_US		1000000

/* Expired pushes are looked for at most this often. */
#define EXPIRY_PAUSE_US		1000000

/* What is due but locked by another session is looked at again after this. */
#define LOCKED_PAUSE_US		100000

/* The mark below which nothing is in flight is moved in steps of this. */
#define IN_FLIGHT_STEP		1000

volatile sig_atomic_t cycle_end_requested = false;

static MemoryContext worker_context;
static MemoryContext cycle_context;
static MemoryContext claim_context; /* requests of an uncommitted claim */
static List *senders = NIL;		/* of Sender */
static List *gone = NIL;		/* dropped servers with requests in flight */
static bool servers_known = false;
static uint64 known_generation;
static TimestampTz states_due = 0;	/* push_server is to be read then */

static List *unrecorded = NIL;	/* judged requests */
static TimestampTz unrecorded_since;
static List *claimed = NIL;		/* in the transaction under way */

/* Requests sent for the first time and not yet recorded, in order of id. */
static dlist_head first_attempts = DLIST_STATIC_INIT(first_attempts);
static int64 last_claimed = 0;
static int64 noted_in_flight = 0;

static TimestampTz expiry_due = 0;	/* look for expired pushes then */
static Position expiry_front = {INT64_MIN, INT64_MIN};
static RecentAccounts *recent;
static TimestampTz rest_until = 0;	/* after an error, or for others' locks */
static bool error_reported = false;
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
	return unrecorded != NIL;
}

void
cycle_init(MemoryContext worker, MemoryContext cycle)
{
	MemoryContext old = MemoryContextSwitchTo(worker);

	worker_context = worker;
	cycle_context = cycle;
	recent = recent_create();
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


/* Requests that an earlier worker left in flight. */
static void
adopt_orphans(void)
{
	List	   *orphans = outbox_orphans(worker_context);
	ListCell   *cell;

	FAULT_POINT("adopt");
	foreach(cell, orphans)
	{
		Request    *request = lfirst(cell);

		sender_judge_orphan(find_sender_by_name(NameStr(request->server)), request);
		cycle_add_outcome(request);
	}
	if (orphans != NIL)
		ereport(LOG,
				(errmsg_plural("timpush: %d request was left in flight and is in doubt",
							   "timpush: %d requests were left in flight and are in doubt",
							   list_length(orphans), list_length(orphans))));
}

/* ------------------------------------------------------------------------
 * The cycle: one transaction
 * ------------------------------------------------------------------------
 */

/*
 * When to look again: at once if this look came to something and more is due;
 * what is due but locked by another session, in a while.
 */
static TimestampTz
look_again(TimestampTz due, List *requests, TimestampTz now)
{
	return due <= now && requests == NIL ? now + LOCKED_PAUSE_US : due;
}

static void
claim_retries(Sender *sender, int room, TimestampTz now)
{
	List	   *requests;

	if (room <= 0 || sender->retry_due > now)
		return;
	requests = outbox_claim_retries(sender->options, sender->state.random_key, room,
									&sender->retry_front, claim_context);
	sender->retry_due = look_again(sender->retry_front.at, requests, now);
	claimed = list_concat(claimed, requests);
}

static void
claim_fresh(Sender *sender, int room, TimestampTz now)
{
	Claim		claim = {
		.server = sender->options,
		.random_key = sender->state.random_key,
		.riders = &sender->riders,
		.front = &sender->front,
		.recent = sender->recent,
	};
	List	   *requests;
	TimestampTz due;

	if (room <= 0 || sender->push_due > now)
		return;
	claim.size = sender_request_size(sender, now, &claim.scarce);
	requests = outbox_claim(&claim, room, &due, claim_context);
	sender->push_due = look_again(due, requests, now);
	claimed = list_concat(claimed, requests);
}

/* Find out what waits before anything is done about it. */
static void
look_for_work(Sender *sender)
{
	if (!sender_must_look(sender))
		return;
	outbox_look(sender->options, &sender->front, &sender->retry_front);
	sender->push_due = front_first(&sender->front).at;
	sender->retry_due = sender->retry_front.at;
}

/*
 * Has another server of the app claimed something in this cycle?  Where calls
 * are scarce that is what the app's next token is for.
 */
static bool
app_has_claimed(const Sender *sender, TimestampTz now)
{
	ListCell   *cell;
	bool		scarce;

	(void) sender_request_size(sender, now, &scarce);
	if (!scarce)
		return false;
	foreach(cell, senders)
	{
		const Sender *other = lfirst(cell);

		if (other != sender && other->last_claim == now &&
			other->options->sdkappid == sender->options->sdkappid)
			return true;
	}
	return false;
}

/* Of every four claims, one lets the retries go first. */
static void
claim_for(Sender *sender, TimestampTz now)
{
	TimestampTz when = DT_NOEND;
	int			room;
	int			before = list_length(claimed);

	look_for_work(sender);
	sender_recover(sender, now);
	room = sender_room(sender, now, &when);
	if (room == 0 || app_has_claimed(sender, now))
		return;
	sender->last_claim = now;
	if (sender->turn++ % 4 == 0)
	{
		claim_retries(sender, Max(room / 4, 1), now);
		claim_fresh(sender, room - (list_length(claimed) - before), now);
	}
	else
	{
		claim_fresh(sender, room, now);
		if (list_length(claimed) - before < room)
			claim_retries(sender, room - (list_length(claimed) - before), now);
	}
}

/*
 * Now and then note below which id nothing is in flight for the first time:
 * what a transaction claims comes later, what it records is over.
 */
static void
note_in_flight(void)
{
	int64		first = last_claimed + 1;
	dlist_iter	iter;

	dlist_foreach(iter, &first_attempts)
	{
		Request    *request = dlist_container(Request, node, iter.cur);

		if (!request->judged)
		{
			first = request->id;
			break;
		}
	}
	if (first < noted_in_flight + IN_FLIGHT_STEP)
		return;
	outbox_note_in_flight(first);
	noted_in_flight = first;
}

static int
compare_last_claims(const ListCell *a, const ListCell *b)
{
	TimestampTz x = ((const Sender *) lfirst(a))->last_claim;
	TimestampTz y = ((const Sender *) lfirst(b))->last_claim;

	return x < y ? -1 : x > y ? 1 : 0;
}

/* Who has claimed least recently goes first: servers of one app take turns. */
static void
claim_for_all(TimestampTz now)
{
	List	   *order = list_copy(senders);
	ListCell   *cell;

	list_sort(order, compare_last_claims);
	foreach(cell, order)
		claim_for(lfirst(cell), now);
}

static void
load_server_states(TimestampTz now)
{
	ListCell   *cell;

	if (states_due > now)
		return;
	states_due = DT_NOEND;
	foreach(cell, senders)
	{
		if (!sender_load_state(lfirst(cell)))
			states_due = now + LOCKED_PAUSE_US;
	}
}

static void
note_problems(TimestampTz now)
{
	ListCell   *cell;

	foreach(cell, senders)
	{
		if (!sender_note_problem(lfirst(cell)))
			states_due = Min(states_due, now + LOCKED_PAUSE_US);
	}
}

/*
 * Pushes in requests that go again expire when their request is claimed, or
 * here, if nothing is claimed now.
 */
static bool
retries_expire(const Sender *sender, TimestampTz now)
{
	bool		ignored = false;

	return sender->retry_expiry <= now && sender_leaves(sender, now, &ignored) > now;
}

static void
expire_retries(Sender *sender, TimestampTz now)
{
	int			nrequests;

	if (!retries_expire(sender, now))
		return;
	nrequests = outbox_expire_retries(sender->options, &sender->retry_expiry);
	if (nrequests == 0)
		sender->retry_expiry = Max(sender->retry_expiry, now + EXPIRY_PAUSE_US);
}

static void
expire_pushes(TimestampTz now)
{
	int			nrequests;

	if (now < expiry_due)
		return;
	nrequests = outbox_expire(&expiry_front, &expiry_due);
	/* if there are more, at once; else not too often, whoever locks what */
	if (nrequests == 0 || expiry_due > now)
		expiry_due = Max(expiry_due, now + EXPIRY_PAUSE_US);
}

/* What a cycle does in its transaction, if there can be one. */
static OutboxAccess
cycle_work(bool may_claim)
{
	TimestampTz now;
	ListCell   *cell;
	OutboxAccess access;

	MemoryContextSwitchTo(cycle_context);
	access = outbox_begin();
	if (access != OUTBOX_READY)
		return access;
	now = GetCurrentTimestamp();
	outdated = outdated || !outbox_same_origin();
	refresh_senders();
	load_server_states(now);
	FAULT_POINT("record");
	outbox_record(unrecorded);
	FAULT_POINT("recorded");
	if (!outdated)
		note_in_flight();
	/* a trigger may have caught the cancel at a request to end ... */
	if (may_claim && !outdated && !cycle_end_requested)
	{
		expire_pushes(now);
		FAULT_POINT("expired");
		claim_for_all(now);
		FAULT_POINT("claimed");
		foreach(cell, senders)
			expire_retries(lfirst(cell), now);
	}
	note_problems(now);
	FAULT_POINT("noted");
	/* the list must outlive the transaction's memory */
	MemoryContextSwitchTo(worker_context);
	claimed = list_copy(claimed);
	MemoryContextSwitchTo(cycle_context);
	/* ... in which case a standby is not waited for either */
	if (cycle_end_requested)
		QueryCancelPending = InterruptPending = true;
	outbox_commit();
	FAULT_POINT_QUIET("committed");
	return OUTBOX_READY;
}

static void
forget_request(Request *request)
{
	if (request->listed)
		dlist_delete(&request->node);
	MemoryContextDelete(request->context);
}

/*
 * The transaction is committed: forget what it recorded, keep what it claimed.
 */
static void
after_commit(void)
{
	bool		recorded = unrecorded != NIL;
	ListCell   *cell;

	/* the commit has left us in a context that nobody resets */
	MemoryContextSwitchTo(cycle_context);
	foreach(cell, unrecorded)
		forget_request(lfirst(cell));
	list_free(unrecorded);
	unrecorded = NIL;
	foreach(cell, senders)
		sender_problem_noted(lfirst(cell));
	if (recorded)
		shared_worker_recorded();
	if (error_reported)
		ereport(LOG, (errmsg("timpush: the database of the worker can be written again")));
	error_reported = false;

	foreach(cell, claimed)
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
	MemoryContextSwitchTo(cycle_context);
	/* that the cycle was broken off is no trouble of the database */
	if (!cycle_end_requested)
	{
		if (!error_reported)
			EmitErrorReport();
		error_reported = true;
	}
	FlushErrorState();
	outbox_abort();
	MemoryContextSwitchTo(worker_context);
	cycle_look_anew();
	claimed = NIL;
	rest_until = GetCurrentTimestamp() + ERROR_PAUSE_US;
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

bool
cycle_run(bool may_claim, List **to_send)
{
	volatile OutboxAccess access = OUTBOX_READY;
	volatile bool failed = false;

	pgstat_report_activity(STATE_RUNNING, may_claim ? "recording and claiming" : "recording");
	claimed = NIL;
	claim_context = AllocSetContextCreate(worker_context, "timpush claim",
										  ALLOCSET_SMALL_SIZES);
	PG_TRY();
	{
		access = cycle_work(may_claim);
	}
	PG_CATCH();
	{
		failed = true;
		after_error();
	}
	PG_END_TRY();
	if (access == OUTBOX_LOCKED)
		note_locked_out();
	else
		note_unlocked();
	if (access == OUTBOX_READY && !failed)
		after_commit();
	*to_send = claimed;
	claimed = NIL;
	MemoryContextSwitchTo(worker_context);
	MemoryContextDelete(claim_context);
	MemoryContextReset(cycle_context);
	return access != OUTBOX_GONE;
}


bool
cycle_wanted(TimestampTz now, TimestampTz *when)
{
	ListCell   *cell;
	bool		wanted = false;

	if (rest_until > now)
	{
		*when = Min(*when, rest_until);
		return false;
	}
	if (states_due <= now || !servers_known || known_generation != server_generation())
		return true;
	*when = Min(*when, states_due);
	if (unrecorded != NIL)
	{
		TimestampTz due = unrecorded_since + RECORD_PAUSE_US;

		if (http_in_flight() == 0 || due <= now)
			return true;
		*when = Min(*when, due);
	}
	if (expiry_due <= now)
		return true;
	*when = Min(*when, expiry_due);
	foreach(cell, senders)
	{
		Sender	   *sender = lfirst(cell);

		/* if it could not be noted, that is tried again at states_due */
		if ((sender->problem_changed && states_due == DT_NOEND) ||
			sender_room(sender, now, when) > 0)
			wanted = true;
		*when = Min(*when, sender_ready_due(sender, now));
		if (retries_expire(sender, now))
			wanted = true;
		if (sender->retry_expiry > now)
			*when = Min(*when, sender->retry_expiry);
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

TimestampTz
cycle_due(TimestampTz now, bool *busy)
{
	TimestampTz due = expiry_due;
	ListCell   *cell;

	foreach(cell, senders)
	{
		Sender	   *sender = lfirst(cell);

		due = Min(due, Min(sender_leaves(sender, now, busy), sender->retry_expiry));
	}
	return due;
}

/* ------------------------------------------------------------------------
 * Start
 * ------------------------------------------------------------------------
 */

static bool
all_held(void)
{
	ListCell   *cell;

	foreach(cell, senders)
	{
		if (!((Sender *) lfirst(cell))->state.held)
			return false;
	}
	return senders != NIL;
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

/* What there is to do, in the first transaction. */
static CycleStart
start_work(void)
{
	OutboxOrigin origin = find_origin();

	/* limits count whether or not anything is sent */
	refresh_senders();
	if (origin == OUTBOX_UNUSED)
		return CYCLE_UNUSED;
	load_server_states(GetCurrentTimestamp());
	if (all_held())
		return CYCLE_HELD;
	adopt_orphans();
	return CYCLE_WORKS;
}

OutboxAccess
cycle_start(CycleStart *start)
{
	OutboxAccess access;

	MemoryContextSwitchTo(cycle_context);
	access = outbox_begin();
	if (access != OUTBOX_READY)
		return access;
	*start = start_work();
	outbox_commit();
	FAULT_POINT("adopted");
	MemoryContextSwitchTo(worker_context);
	return OUTBOX_READY;
}
