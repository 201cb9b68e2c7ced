/*-------------------------------------------------------------------------
 *
 * sender.c
 *	  One server of the database: its options, signature, connections, limits
 *	  and health.
 *
 * Nothing leaves for a server that is paused, that has no usable credentials,
 * whose last requests failed, or whose limit is reached; and then nothing is
 * claimed for it either, so that an outage burns nobody's attempts.  One
 * server's trouble never touches another's.
 *
 * Crash story: all of this is learned again by a new worker, but for how long
 * a server is left alone and how many accounts a call of it may have, which
 * push_server and push_server_key tell, and for the limits and pauses of its
 * app, which are in shared memory; see apps.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "fault.h"
#include "redact.h"
#include "sender.h"
#include "shared.h"
#include "timpush.h"

#define SECONDS(n)	((int64) (n) * USECS_PER_SEC)

/* A suspended server is tried after this, doubling. */
#define FIRST_PROBE			SECONDS(60)
#define MAX_PROBE			SECONDS(900)

/* A key file that is missing is looked for again after this. */
#define NO_KEY_PAUSE		SECONDS(10)

/* Answers 4xx without an API body until the server counts as wrong. */
#define REFUSALS_TO_STOP	3

/* Most requests claimed in one transaction, to keep it short. */
#define MAX_CLAIM			128

/*
 * A request whose token another server took first is kept so long at most,
 * and else goes back into the journal.
 */
#define MAX_KEEPING			SECONDS(5)
#define KEPT_BACK			"was claimed, but may not leave yet"

/*
 * With requests in flight and little room, a claim waits this long for more
 * room, so that one transaction serves many requests.
 */
#define CLAIM_PAUSE			5000

static void
join_app(Sender *sender)
{
	const ServerOptions *options = sender->options;
	Rates		set = {options->requests_per_second, options->accounts_per_second};

	app_join(&sender->app, options->oid, options->sdkappid, set, options->version);
	sender->stats = stats_server(options->oid, options->name);
}

Sender *
sender_create(MemoryContext parent, Oid serverid, RecentAccounts *recent)
{
	Sender	   *sender = MemoryContextAllocZero(parent, sizeof(Sender));
	MemoryContext old;

	sender->context = AllocSetContextCreate(parent, "timpush server", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(sender->context);
	sender->options = server_load(serverid);
	MemoryContextSwitchTo(old);
	sender->recent = recent;
	sender->recovering = true;
	join_app(sender);
	sender_look_anew(sender);
	return sender;
}

void
sender_look_anew(Sender *sender)
{
	front_forget(&sender->front);
	sender->retry_front = POSITION_FIRST;
	sender->push_due = sender->retry_due = sender->retry_expiry = 0;
}

void
sender_note_pushes(Sender *sender, TimestampTz send_at)
{
	front_lower(&sender->front, send_at);
	/* they may be for another server: without credentials, look first */
	sender->push_due = sender->usersig[0] == '\0' ? 0 :
		Min(sender->push_due, Max(send_at, 0));
}

/* A request is going to be in the journal, to go again at that time. */
static void
note_retry(Sender *sender, const Request *request, TimestampTz when)
{
	for (int i = 0; i < request->nmembers; i++)
		sender->retry_expiry = Min(sender->retry_expiry, request->members[i].expires_at);
	sender->retry_due = Min(sender->retry_due, when);
	if (sender->retry_front.at >= when)
		sender->retry_front = (Position)
	{
		when, INT64_MIN
	};
}

/* The same trouble?  Its words may count milliseconds or name ports. */
static bool
same_words(const char *a, const char *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	for (;; a++, b++)
	{
		a += strspn(a, "0123456789");
		b += strspn(b, "0123456789");
		if (*a != *b || *a == '\0')
			return *a == *b;
	}
}

static bool
same_text(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* Do the options lead to the same connections? */
static bool
same_connections(const ServerOptions *a, const ServerOptions *b)
{
	return same_text(a->host, b->host) && same_text(a->ca_file, b->ca_file) &&
		same_text(a->proxy, b->proxy) &&
		a->connect_timeout == b->connect_timeout &&
		a->request_timeout == b->request_timeout &&
		a->max_in_flight == b->max_in_flight;
}

static bool
same_credentials(const ServerOptions *a, const ServerOptions *b)
{
	return a->sdkappid == b->sdkappid && a->has_mapping == b->has_mapping &&
		same_text(a->identifier, b->identifier) &&
		same_text(a->secret_key, b->secret_key) &&
		same_text(a->secret_key_file, b->secret_key_file) &&
		same_text(a->usersig, b->usersig) &&
		a->owner_reads_files == b->owner_reads_files &&
		a->usersig_lifetime == b->usersig_lifetime;
}

static void
retire_pool(Sender *sender)
{
	if (sender->pool != NULL)
		http_pool_retire(sender->pool);
	sender->pool = NULL;
}

static void
forget_usersig(Sender *sender)
{
	explicit_bzero(sender->usersig, sizeof(sender->usersig));
}

/* All that was learned of the server's health is out of date. */
static void
forget_health(Sender *sender)
{
	memset(&sender->breaker, 0, sizeof(sender->breaker));
	sender->blocked_until = 0;
	sender->stops = sender->refusals = 0;
}

void
sender_refresh(Sender *sender)
{
	MemoryContext context = AllocSetContextCreate(MemoryContextGetParent(sender->context),
												  "timpush server", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ServerOptions *options = server_load(sender->options->oid);
	bool		connections = !same_connections(options, sender->options);
	bool		credentials = !same_credentials(options, sender->options);

	MemoryContextSwitchTo(old);
	if (connections)
		retire_pool(sender);
	if (credentials)
	{
		forget_usersig(sender);
		sender->renewed_serial = 0;
	}
	if (options->version != sender->options->version)
	{
		/* whatever was wrong may be right now */
		sender->changed_at = GetCurrentTimestamp();
		sender->most_accounts = 0;
		forget_health(sender);
		sender->retry_due = 0;
	}
	sender->push_due = 0;
	server_wipe(sender->options);
	MemoryContextDelete(sender->context);
	sender->context = context;
	sender->options = options;
	join_app(sender);
}

void
sender_destroy(Sender *sender)
{
	retire_pool(sender);
	forget_usersig(sender);
	server_wipe(sender->options);
	MemoryContextDelete(sender->context);
	if (sender->problem != NULL)
		pfree(sender->problem);
	pfree(sender);
}

/* ------------------------------------------------------------------------
 * Health
 * ------------------------------------------------------------------------
 */

static void
keep_problem(Sender *sender, const char *problem, int code, bool suspended)
{
	if (sender->problem != NULL)
		pfree(sender->problem);
	sender->problem = problem != NULL ?
		MemoryContextStrdup(MemoryContextGetParent(sender->context), problem) : NULL;
	sender->problem_code = code;
	sender->suspended = suspended;
}

/*
 * Remember what keeps the server from sending, NULL for nothing; log it once
 * for each change.
 */
static void
set_problem(Sender *sender, const char *problem, int code, bool suspended)
{
	bool		known = sender->problem != NULL;

	/* the words of one trouble may vary, its kind does not */
	if (suspended == sender->suspended && code == sender->problem_code &&
		(same_words(problem, sender->problem) ||
		 (known && problem != NULL && code != 0)))
		return;
	if (problem != NULL)
		ereport(suspended ? WARNING : LOG,
				(errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
				 errmsg("timpush: server \"%s\" %s: %s%s", sender->options->name,
						suspended ? "is suspended" : "has trouble",
						code != 0 ? psprintf("error %d ", code) : "", problem)));
	else
		ereport(LOG, (errmsg("timpush: server \"%s\" is sending again",
							 sender->options->name)));
	keep_problem(sender, problem, code, suspended);
	sender->problem_changed = true;
}

/*
 * A new worker goes on with the trouble that an earlier one had: a server that
 * was left alone is so until its time, unless its options have changed since.
 */
static void
adopt_state(Sender *sender)
{
	const ServerState *state = &sender->state;

	if (sender->problem_changed)
		return;
	keep_problem(sender, state->reason, state->error_code, state->suspended);
	if (state->options_version != sender->options->version)
		return;
	sender->most_accounts = state->most_accounts;
	if (state->next_probe_at == 0)
		return;
	sender->blocked_until = Max(sender->blocked_until, state->next_probe_at);
	if (state->suspended)
		sender->stops = state->rests;
	else
		breaker_restore(&sender->breaker, state->rests, state->next_probe_at,
						GetCurrentTimestamp());
}

/* Somebody has paused or resumed the server: it begins anew. */
static void
forget_trouble(Sender *sender, bool was_paused)
{
	bool		was_stopped = was_paused || sender->suspended;

	keep_problem(sender, NULL, 0, false);
	sender->problem_changed = sender->rest_changed = false;
	sender->recovering = true;
	forget_health(sender);
	forget_usersig(sender);
	if (sender->state.paused ? !was_paused : was_stopped)
		ereport(LOG, (errmsg("timpush: server \"%s\" is %s", sender->options->name,
							 sender->state.paused ? "paused" : "resumed")));
}

bool
sender_load_state(Sender *sender)
{
	bool		first = sender->state.random_key == 0;
	bool		was_paused = sender->state.paused;
	TimestampTz known = sender->state.since;

	if (!outbox_server_state(sender->options, &sender->state))
		return false;
	if (sender->state.since != known)
		app_state_of(&sender->app, sender->state.since, false);
	if (first)
		adopt_state(sender);
	else if (sender->state.since != known)
		forget_trouble(sender, was_paused);
	return true;
}

bool
sender_has_news(const Sender *sender)
{
	return sender->problem_changed || sender->rest_changed;
}

bool
sender_note_problem(Sender *sender)
{
	bool		open = breaker_is_open(&sender->breaker);
	ServerState state = {
		.suspended = sender->suspended,
		.reason = sender->problem,
		.error_code = sender->problem_code,
		.next_probe_at = sender->suspended || open ? sender->blocked_until : 0,
		.rests = sender->suspended ? sender->stops : sender->breaker.openings,
		.most_accounts = sender->most_accounts,
		.since = sender->problem_changed ? GetCurrentTimestamp() : sender->state.since,
	};

	/* a paused server has no trouble of its own */
	if (sender->state.paused)
		sender->problem_changed = sender->rest_changed = false;
	if (!sender_has_news(sender))
		return true;
	sender->noted = outbox_note_server(sender->options, &state) ? state.since : 0;
	return sender->noted != 0;
}

/*
 * As much of a text as is kept, without half a character.  It is not converted,
 * which may fail, so that only ASCII is left of it in some databases.
 */
static void
copy_text(char *to, const char *from)
{
	int			len = from != NULL ? pg_mbcliplen(from, (int) strlen(from), STATS_TEXT - 1) : 0;

	memcpy(to, from, len);
	to[len] = '\0';
	for (int i = 0; GetDatabaseEncoding() != PG_UTF8 && i < len; i++)
	{
		if (IS_HIGHBIT_SET(to[i]))
			to[i] = '?';
	}
}

/* Let those who look on know how the server is. */
static void
show_state(Sender *sender)
{
	const ServerState *state = &sender->state;
	const char *reason = state->paused ? state->reason : sender->problem;
	StatsState	shown;

	memset(&shown, 0, sizeof(shown));
	strlcpy(shown.state, state->held ? "held" : state->paused ? "paused" :
			sender->suspended ? "suspended" : "active", sizeof(shown.state));
	copy_text(shown.reason, reason);
	shown.since = state->since;
	shown.breaker_open = breaker_is_open(&sender->breaker);
	shown.open_until = sender->breaker.open_until;
	stats_state(sender->stats, &shown);
}

void
sender_problem_noted(Sender *sender)
{
	if (sender_has_news(sender) && sender->noted != 0)
	{
		sender->state.since = sender->noted;
		app_state_of(&sender->app, sender->noted, true);
		sender->problem_changed = sender->rest_changed = false;
		sender->noted = 0;
	}
	show_state(sender);
}

static int64
doubling(int64 first, int64 most, int n)
{
	while (n-- > 0 && first < most)
		first *= 2;
	return Min(first, most);
}

static void
note_success(Sender *sender, TimestampTz sent_at, TimestampTz now)
{
	bool		kept_back = breaker_is_open(&sender->breaker) || sender->suspended;

	(void) breaker_note(&sender->breaker, false, sent_at, now);
	app_worked(&sender->app, now);
	/* it left before the trouble began; after a clock was set back, who knows */
	if (breaker_is_open(&sender->breaker) ||
		(sender->suspended && sent_at < sender->stopped_at && sender->stopped_at <= now))
		return;
	if (kept_back)
		sender->recovering = true;
	sender->blocked_until = 0;
	sender->stops = 0;
	sender->renewed_serial = 0;
	set_problem(sender, NULL, 0, false);
}

static void
suspend(Sender *sender, const char *why, int code, int64 pause, TimestampTz now)
{
	sender->stopped_at = now;
	sender->blocked_until = now + pause;
	sender->rest_changed = true;
	set_problem(sender, why, code, true);
}

/* Rest until the next probe, longer each time. */
static int64
probe_pause(Sender *sender)
{
	return doubling(FIRST_PROBE, MAX_PROBE, sender->stops++);
}

/* A failure of the peer or of the way to it. */
static void
note_failure(Sender *sender, const Outcome *outcome, TimestampTz sent_at, TimestampTz now)
{
	/* a probe that fails shows no more than one that is refused */
	if (sender->suspended)
	{
		if (sender->blocked_until > now)
			return;
		sender->blocked_until = now + probe_pause(sender);
		sender->rest_changed = true;
		return;
	}
	if (breaker_note(&sender->breaker, true, sent_at, now))
	{
		sender->blocked_until = sender->breaker.open_until;
		sender->rest_changed = true;
	}
	else if (outcome->class == OUTCOME_NOT_SENT && sender->blocked_until <= now)
		sender->blocked_until = now + policy_backoff(sender->breaker.in_row - 1,
													 0.5 + random_fraction() / 2);
	else
		return;
	set_problem(sender, outcome->error_info, outcome->error_code, false);
}

static void
note_stop(Sender *sender, const Outcome *outcome, TimestampTz now)
{
	/* the key may be mended in its file, of which nobody tells us */
	forget_usersig(sender);
	if (sender->suspended && sender->blocked_until > now)
		set_problem(sender, outcome->error_info, outcome->error_code, true);
	else
		suspend(sender, outcome->error_info, outcome->error_code,
				probe_pause(sender), now);
}

/* A refused UserSig is made anew once; those in flight with it do not count. */
static void
renew_usersig(Sender *sender, int refused)
{
	if (refused < sender->usersig_serial)
		return;
	forget_usersig(sender);
	sender->renewed_serial = sender->usersig_serial + 1;
}

static void
note_outcome(Sender *sender, const Request *request)
{
	const Outcome *outcome = &request->outcome;
	TimestampTz now = request->ended_at;
	ServerEffect effect = request->step.server;

	/* what went wrong under other options says nothing of these */
	if (request->sent_at < sender->changed_at &&
		effect != SERVER_HEALTHY && effect != SERVER_SIGNS_ANEW)
		return;
	switch (effect)
	{
		case SERVER_HEALTHY:
			note_success(sender, request->sent_at, now);
			break;
		case SERVER_FAILS:
			note_failure(sender, outcome, request->sent_at, now);
			break;
		case SERVER_THROTTLES:
			app_throttled(&sender->app, request->step.delay, now);
			break;
		case SERVER_SIGNS_ANEW:
			renew_usersig(sender, request->usersig_serial);
			break;
		case SERVER_STOPS:
			note_stop(sender, outcome, now);
			break;
	}
}

/* ------------------------------------------------------------------------
 * Signature
 * ------------------------------------------------------------------------
 */

/* Make sure of a UserSig that is good for a while; false with a problem set. */
static bool
ensure_usersig(Sender *sender, TimestampTz now)
{
	const ServerOptions *options = sender->options;
	char	   *problem = NULL;
	char	   *key;
	size_t		len;
	bool		made;

	if (sender->usersig[0] != '\0' && now < sender->usersig_renew_at)
		return true;
	if (options->usersig != NULL)
	{
		strlcpy(sender->usersig, options->usersig, sizeof(sender->usersig));
		sender->usersig_renew_at = DT_NOEND;
		sender->usersig_serial++;
		return true;
	}
	key = server_read_key(options, &len, &problem);
	if (key == NULL)
	{
		suspend(sender, problem, 0, NO_KEY_PAUSE, now);
		return false;
	}
	FAULT_POINT("key-read");
	made = usersig_make(sender->usersig, key, len, options->identifier,
						options->sdkappid, (int64) timestamptz_to_time_t(now),
						options->usersig_lifetime);
	server_free_key(key, len);
	if (!made)
	{
		suspend(sender, "could not make a UserSig for the identifier", 0,
				NO_KEY_PAUSE, now);
		return false;
	}
	sender->usersig_serial++;
	/* at half life, so that no request meets its end */
	sender->usersig_renew_at = now + SECONDS(options->usersig_lifetime) / 2;
	return true;
}

static bool
ensure_pool(Sender *sender)
{
	HttpOptions options = {
		.connect_timeout = sender->options->connect_timeout,
		.request_timeout = sender->options->request_timeout,
		.max_in_flight = sender->options->max_in_flight,
		.ca_file = sender->options->ca_file,
		.proxy = sender->options->proxy,
	};

	if (sender->pool == NULL)
		sender->pool = http_pool_create(&options);
	return sender->pool != NULL;
}

/* ------------------------------------------------------------------------
 * Leaving
 * ------------------------------------------------------------------------
 */

/* Until then nothing at all leaves, whatever waits. */
static TimestampTz
stopped_until(const Sender *sender)
{
	if (sender->state.paused || sender->state.random_key == 0)
		return DT_NOEND;
	return sender->blocked_until;
}

TimestampTz
sender_due(const Sender *sender)
{
	return Max(Min(sender->push_due, sender->retry_due), stopped_until(sender));
}

TimestampTz
sender_leaves(const Sender *sender, TimestampTz now, bool *busy)
{
	TimestampTz due = sender_due(sender);
	Allowance	allowance;

	if (due == DT_NOEND)
		return due;
	app_ask(&sender->app, now, &allowance);
	if (due <= now && allowance.wait > 0 && !allowance.paused)
		*busy = true;
	return Max(due, now + allowance.wait);
}

bool
sender_must_look(const Sender *sender)
{
	/* without credentials, complain only if something waits */
	if (sender->usersig[0] == '\0' && (sender->push_due == 0 || sender->retry_due == 0))
		return true;
	return sender->recovering && sender->push_due == 0;
}

void
sender_recover(Sender *sender, TimestampTz now)
{
	if (!sender->recovering)
		return;
	sender->recovering = false;
	/* a time before all times says nothing of how long a push has waited */
	if (sender->push_due > 0 && sender->push_due <= now)
		app_recovers(&sender->app, sender->push_due, now);
}

static bool
is_limited(const Allowance *allowance)
{
	return allowance->rates.calls > 0 || allowance->rates.accounts > 0;
}

/* How many calls may be in flight; where there is no rate, this is slowed. */
static int
in_flight_bound(const Sender *sender, const Allowance *allowance)
{
	int			most = sender->options->max_in_flight;

	return is_limited(allowance) ? most : Max((int) (most * allowance->share), 1);
}

int
sender_room(Sender *sender, TimestampTz now, TimestampTz *when)
{
	Allowance	allowance;
	int			bound;
	int			room;

	if (sender_due(sender) > now)
	{
		*when = Min(*when, sender_due(sender));
		return 0;
	}
	if (sender->ready != NIL)
		return 0;				/* sender_next_ready() goes first */
	if (sender_must_look(sender))
		return 1;
	app_ask(&sender->app, now, &allowance);
	bound = in_flight_bound(sender, &allowance);
	room = bound - sender->in_flight;
	if (room <= 0)
		return 0;				/* until an answer comes */
	if (allowance.wait > 0)
	{
		*when = Min(*when, now + allowance.wait);
		return 0;
	}
	if (sender->in_flight > 0 && room < bound / 2 &&
		now < sender->last_claim + CLAIM_PAUSE)
	{
		*when = Min(*when, sender->last_claim + CLAIM_PAUSE);
		return 0;
	}
	if (!ensure_usersig(sender, now))
	{
		*when = Min(*when, sender->blocked_until);
		return 0;
	}
	/* a probe goes alone */
	if (breaker_is_open(&sender->breaker) || sender->suspended)
		return sender->in_flight == 0 ? 1 : 0;
	/* the next token is not there yet */
	if (is_limited(&allowance))
		return 1;
	return Min(room, MAX_CLAIM);
}

int
sender_most_accounts(const Sender *sender)
{
	int			most = sender->options->accounts_per_request;

	return sender->most_accounts > 0 ? Min(most, sender->most_accounts) : most;
}

int
sender_request_size(const Sender *sender, TimestampTz now, bool *scarce)
{
	ServerOptions effective = *sender->options;
	Allowance	allowance;

	app_ask(&sender->app, now, &allowance);
	*scarce = is_limited(&allowance);
	effective.accounts_per_request = sender_most_accounts(sender);
	effective.accounts_per_second = allowance.rates.accounts;
	/* a probe is small */
	return sender->suspended ? 1 : server_request_size(&effective);
}

/* An attempt that ended before it began. */
static void
judge_unsent(Sender *sender, Request *request, const char *why)
{
	Transfer	transfer = {TRANSFER_NOT_SENT, 0, -1, why, NULL, 0};

	sender_judge(sender, request, &transfer);
}

/* Would another UserSig be no news?  One that is given cannot be made anew. */
static bool
signed_anew(const Sender *sender, const Request *request)
{
	return sender->options->usersig != NULL ||
		(sender->renewed_serial > 0 && request->usersig_serial >= sender->renewed_serial);
}

/* Decide on the next step after an outcome. */
static void
plan_step(const Sender *sender, Request *request)
{
	Attempt		attempt = {
		.attempts = request->attempts,
		.resends = request->resends,
		.account_tries = request->account_tries,
		.in_doubt = request->in_doubt,
		.signed_anew = sender != NULL && signed_anew(sender, request),
		.npushes = request->nmembers,
		.naccounts = request->naccounts,
		.on_unknown = request->on_unknown,
		.max_unknown_resends = sender != NULL ? sender->options->max_unknown_resends : 0,
		.random = random_fraction(),
	};

	request->judged = true;
	/* what never left was no repetition */
	if (request->resent && request->outcome.class == OUTCOME_NOT_SENT)
	{
		request->resends--;
		request->maybe_duplicate = request->was_marked;
	}
	policy_next_step(&request->outcome, &attempt, &request->step);
	request->in_doubt = request->step.in_doubt;
	if (request->step.counts)
		request->attempts++;
}

/*
 * Build the body; false with *problem set if its text cannot be converted,
 * which enqueueing prevents but a copied row may bring.
 */
static bool
build_body(StringInfo body, const Request *request, char **problem)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool built = true;

	initStringInfo(body);
	PG_TRY();
	{
		request_body(body, request->content, request->accounts, request->naccounts,
					 request->msg_random);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
			error->sqlerrcode != ERRCODE_UNTRANSLATABLE_CHARACTER)
			PG_RE_THROW();
		FlushErrorState();
		*problem = pstrdup(error->message);
		FreeErrorData(error);
		built = false;
	}
	PG_END_TRY();
	return built;
}

/* The request cannot be made at all: as if the API had refused it. */
static void
judge_unmakable(Sender *sender, Request *request, const char *problem)
{
	request->ended_at = GetCurrentTimestamp();
	request->outcome.class = OUTCOME_BAD_REQUEST;
	request->outcome.retry_after = -1;
	request->outcome.error_info = MemoryContextStrdup(request->context, problem);
	plan_step(sender, request);
	note_retry(sender, request, request->ended_at);
}

/* The same content shall not go to these accounts again within a second. */
static void
note_departure(Sender *sender, const Request *request, TimestampTz now)
{
	if (request->content_key == 0)
		return;
	for (int i = 0; i < request->naccounts; i++)
		recent_note(sender->recent,
					recent_key(request->content_key, request->accounts[i],
							   strlen(request->accounts[i])),
					now);
}

static void
count_departure(Sender *sender, const Request *request, int bytes, bool first)
{
	StatsServer *stats = sender->stats;

	stats_count(stats, STATS_REQUESTS, 1);
	stats_count(stats, STATS_BYTES, bytes);
	stats_in_flight(stats, sender->in_flight);
	if (!first)
		stats_count(stats, STATS_RETRIES, 1);
	for (int i = 0; first && i < request->nmembers; i++)
		stats_latency(stats, STATS_FIRST_BYTE, request->sent_at - request->members[i].enqueued_at);
}

static bool
post_request(Sender *sender, Request *request, TimestampTz now)
{
	StringInfoData body;
	char	   *problem;
	char	   *url;
	bool		posted;
	bool		first = request->first_sent_at == 0;

	if (!ensure_usersig(sender, now))
	{
		judge_unsent(sender, request, sender->problem);
		return true;
	}
	if (!build_body(&body, request, &problem))
	{
		judge_unmakable(sender, request, problem);
		return true;
	}
	url = request_url(sender->options, sender->usersig, request->msg_random);
	FAULT_POINT("send");
	request->usersig_serial = sender->usersig_serial;
	request->usersig = MemoryContextStrdup(request->context, sender->usersig);
	request->sent_at = now;
	if (first)
		request->first_sent_at = now;
	posted = ensure_pool(sender) &&
		http_post(sender->pool, url, body.data, body.len, request);
	explicit_bzero(url, strlen(url));
	pfree(url);
	pfree(body.data);
	if (!posted)
	{
		judge_unsent(sender, request, "out of memory");
		return true;
	}
	sender->in_flight++;
	note_departure(sender, request, now);
	count_departure(sender, request, body.len, first);
	return false;
}

/* Unlike judge_unsent(), the server is not to blame. */
void
sender_put_back(Sender *sender, Request *request, const char *why)
{
	MemoryContext old = MemoryContextSwitchTo(request->context);
	Transfer	transfer = {TRANSFER_NOT_SENT, 0, -1, why, NULL, 0};

	request->ended_at = GetCurrentTimestamp();
	response_outcome(&transfer, &request->outcome);
	plan_step(sender, request);
	MemoryContextSwitchTo(old);
	note_retry(sender, request, request->ended_at);
}

bool
sender_send(Sender *sender, Request *request)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		wait;
	MemoryContext old;

	if (request_any_expired(request, now))
	{
		/* the next claim takes the push that expired out of the request */
		sender_put_back(sender, request, "expired before it could leave");
		return true;
	}
	wait = stopped_until(sender) > now ? DT_NOEND :
		app_take(&sender->app, request->naccounts, now);
	if (wait > MAX_KEEPING)
	{
		sender_put_back(sender, request, KEPT_BACK);
		return true;
	}
	if (wait > 0)
	{
		old = MemoryContextSwitchTo(MemoryContextGetParent(sender->context));
		sender->ready = lappend(sender->ready, request);
		MemoryContextSwitchTo(old);
		return false;
	}
	return post_request(sender, request, now);
}

TimestampTz
sender_ready_due(const Sender *sender, TimestampTz now)
{
	Allowance	allowance;

	if (sender->ready == NIL)
		return DT_NOEND;
	app_ask(&sender->app, now, &allowance);
	/* what would have to be kept for too long goes back at once */
	if (stopped_until(sender) > now || allowance.wait > MAX_KEEPING)
		return now;
	return now + allowance.wait;
}

static Request *
pop_ready(Sender *sender)
{
	Request    *request = linitial(sender->ready);

	sender->ready = list_delete_first(sender->ready);
	return request;
}

Request *
sender_next_ready(Sender *sender, TimestampTz now)
{
	return sender_ready_due(sender, now) <= now ? pop_ready(sender) : NULL;
}

Request *
sender_take_back(Sender *sender, const char *why)
{
	Request    *request;

	if (sender->ready == NIL)
		return NULL;
	request = pop_ready(sender);
	sender_put_back(sender, request, why);
	return request;
}

/* ------------------------------------------------------------------------
 * Judging
 * ------------------------------------------------------------------------
 */

/*
 * A refusal without the API's words may be a passing fault of a gateway, but
 * not if there is no other answer in between.
 */
static void
bound_refusals(Sender *sender, Outcome *outcome)
{
	if (outcome->class != OUTCOME_SERVER_STOP || outcome->has_code)
	{
		if (outcome->http_status != 0)
			sender->refusals = 0;
	}
	else if (++sender->refusals < REFUSALS_TO_STOP)
		outcome->class = OUTCOME_TRANSIENT;
}

/* The API takes fewer accounts than this call had: remember that. */
static void
note_too_many(Sender *sender, Request *request)
{
	Step	   *step = &request->step;

	if (request->sent_at < sender->changed_at)
		return;
	if (sender->most_accounts == 0 || step->size < sender->most_accounts)
	{
		sender->most_accounts = step->size;
		sender->rest_changed = true;
		ereport(LOG,
				(errmsg("timpush: server \"%s\" has refused a call of %d accounts, so calls carry %d at most until its options change",
						sender->options->name, request->naccounts, step->size)));
	}
	step->size = Min(step->size, sender->most_accounts);
}

/* The words may name the accounts, which are not for who looks on. */
static void
count_error(Sender *sender, const Request *request, bool has_code, int code,
			const char *info, OutcomeClass class)
{
	StatsError	error;
	char	   *text = pstrdup(info);

	memset(&error, 0, sizeof(error));
	error.has_code = has_code;
	error.code = code;
	error.at = request->ended_at;
	for (int i = 0; i < request->naccounts; i++)
	{
		const char *account = request->accounts[i];

		for (char *found = text; (found = strstr(found, account)) != NULL;
			 found += strlen(account))
			memset(found, '*', strlen(account));
	}
	copy_text(error.text, text);
	pfree(text);
	stats_error(sender->stats, &error, class);
}

static void
count_errors(Sender *sender, const Request *request)
{
	const Outcome *outcome = &request->outcome;

	if (outcome->class != OUTCOME_SENT && outcome->class != OUTCOME_PARTIAL)
		count_error(sender, request, outcome->has_code, outcome->error_code,
					outcome->error_info, outcome->class);
	for (int i = 0; i < outcome->nerrors; i++)
		count_error(sender, request, true, outcome->errors[i].code, outcome->errors[i].info,
					response_account_class(outcome->errors[i].code));
}

static void
count_outcome(Sender *sender, const Request *request)
{
	const Outcome *outcome = &request->outcome;
	StatsServer *stats = sender->stats;

	stats_in_flight(stats, sender->in_flight);
	if (outcome->class != OUTCOME_NOT_SENT)
		stats_latency(stats, STATS_REQUEST, request->ended_at - request->sent_at);
	if (request->step.server == SERVER_THROTTLES)
		stats_count(stats, STATS_THROTTLES, 1);
	for (int i = 0; outcome->task_id != NULL && i < request->nmembers; i++)
		stats_latency(stats, STATS_ACCEPTANCE, request->ended_at - request->members[i].enqueued_at);
	if (outcome->class != OUTCOME_SENT)
		count_errors(sender, request);
}

void
sender_judge(Sender *sender, Request *request, const Transfer *transfer)
{
	MemoryContext old = MemoryContextSwitchTo(request->context);

	request->ended_at = GetCurrentTimestamp();
	response_outcome(transfer, &request->outcome);
	/* an answer may repeat the URL, which holds the signature */
	if (request->usersig != NULL)
	{
		redact_outcome(&request->outcome, request->usersig);
		explicit_bzero(request->usersig, strlen(request->usersig));
		request->usersig = NULL;
	}
	bound_refusals(sender, &request->outcome);
	plan_step(sender, request);
	MemoryContextSwitchTo(old);
	note_outcome(sender, request);
	count_outcome(sender, request);
	if (request->step.kind == STEP_SHRINK)
		note_too_many(sender, request);
	/* it is the app that pauses: when that ends, the request may go */
	if (request->step.server == SERVER_THROTTLES)
		request->step.delay = 0;
	/* what has waited for its server keeps its place, so the next probe is it */
	if (request->step.server == SERVER_STOPS && request->next_attempt_at != 0)
		request->step.delay = Min(request->next_attempt_at - request->ended_at, 0);
	if (request->step.kind == STEP_RETRY || request->step.kind == STEP_SPLIT ||
		request->step.kind == STEP_SHRINK || request->outcome.nerrors > 0)
		note_retry(sender, request, request->ended_at + request->step.delay);
}

void
sender_judge_orphan(Sender *sender, Request *request)
{
	Outcome    *outcome = &request->outcome;

	outcome->class = OUTCOME_UNKNOWN;
	outcome->retry_after = -1;
	outcome->error_info = MemoryContextStrdup(request->context,
											  "the worker ended before the answer was recorded");
	request->ended_at = GetCurrentTimestamp();
	plan_step(sender, request);
	if (sender != NULL)
		note_retry(sender, request, request->ended_at + request->step.delay);
}
