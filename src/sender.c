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
 * Crash story: all of this is learned again by a new worker, but for the
 * suspension of a server, which is in push_server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "sender.h"
#include "shared.h"
#include "timpush.h"

#define SECONDS(n)	((int64) (n) * USECS_PER_SEC)

/* The breaker: after so many failures in a row, a pause that doubles. */
#define FAILURES_TO_OPEN	5
#define FIRST_OPEN			SECONDS(5)
#define MAX_OPEN			SECONDS(120)

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
 * With requests in flight and little room, a claim waits this long for more
 * room, so that one transaction serves many requests.
 */
#define CLAIM_PAUSE			5000

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
	sender_look_anew(sender);
	return sender;
}

void
sender_look_anew(Sender *sender)
{
	front_forget(&sender->front);
	sender->retry_front = POSITION_FIRST;
	sender->push_due = sender->retry_due = 0;
}

void
sender_note_pushes(Sender *sender, TimestampTz send_at)
{
	front_lower(&sender->front, send_at);
	sender->push_due = Min(sender->push_due, Max(send_at, 0));
}

/* A request is going to be in the journal, to go again at that time. */
static void
note_retry(Sender *sender, TimestampTz when)
{
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

/* Secrets do not stay behind in freed memory. */
static void
wipe_options(ServerOptions *options)
{
	if (options->secret_key != NULL)
		explicit_bzero(options->secret_key, strlen(options->secret_key));
	if (options->usersig != NULL)
		explicit_bzero(options->usersig, strlen(options->usersig));
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
		sender->blocked_until = 0;
		sender->failures = sender->openings = sender->stops = sender->refusals = 0;
		sender->retry_due = 0;
	}
	sender->push_due = 0;
	wipe_options(sender->options);
	MemoryContextDelete(sender->context);
	sender->context = context;
	sender->options = options;
}

void
sender_destroy(Sender *sender)
{
	retire_pool(sender);
	forget_usersig(sender);
	wipe_options(sender->options);
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

	if (same_words(problem, sender->problem) && suspended == sender->suspended)
		return;
	/* the words of one trouble may vary, its kind does not */
	if (known && problem != NULL && suspended == sender->suspended &&
		code == sender->problem_code && code != 0)
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
 * A new worker goes on with the trouble that an earlier one had: a suspended
 * server rests until its time, unless its options have changed since.
 */
void
sender_load_state(Sender *sender)
{
	bool		first = sender->state.random_key == 0;

	outbox_server_state(sender->options, &sender->state);
	if (!first || sender->problem_changed)
		return;
	keep_problem(sender, sender->state.reason, sender->state.error_code,
				 sender->state.suspended);
	if (sender->state.suspended &&
		sender->state.options_version == sender->options->version)
		sender->blocked_until = Max(sender->blocked_until, sender->state.next_probe_at);
}

void
sender_note_problem(Sender *sender)
{
	if (!sender->problem_changed)
		return;
	outbox_note_server(sender->options, sender->suspended ? "suspended" : "active",
					   sender->problem, sender->problem_code,
					   sender->suspended ? sender->blocked_until : 0);
}

static int64
doubling(int64 first, int64 most, int n)
{
	while (n-- > 0 && first < most)
		first *= 2;
	return Min(first, most);
}

static void
note_success(Sender *sender)
{
	if (sender->failures > 0 || sender->suspended)
		sender->blocked_until = 0;
	sender->failures = sender->openings = sender->stops = sender->refusals = 0;
	sender->renewed_serial = 0;
	set_problem(sender, NULL, 0, false);
}

/* A failure of the peer or of the way to it. */
static void
note_failure(Sender *sender, const Outcome *outcome, TimestampTz now)
{
	int64		pause;

	sender->failures++;
	/* requests that were in flight together tell the same once */
	if (sender->blocked_until > now)
		return;
	if (sender->failures >= FAILURES_TO_OPEN)
		pause = doubling(FIRST_OPEN, MAX_OPEN, sender->openings++);
	else if (outcome->class == OUTCOME_NOT_SENT)
		pause = policy_backoff(sender->failures - 1, 0.5 + random_fraction() / 2);
	else
		return;
	sender->blocked_until = now + pause;
	set_problem(sender, outcome->error_info, outcome->error_code, false);
}

static void
note_stop(Sender *sender, const Outcome *outcome, TimestampTz now)
{
	if (sender->blocked_until <= now)
		sender->blocked_until = now + doubling(FIRST_PROBE, MAX_PROBE, sender->stops++);
	/* the key may be mended in its file, of which nobody tells us */
	forget_usersig(sender);
	set_problem(sender, outcome->error_info, outcome->error_code, true);
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
note_outcome(Sender *sender, const Outcome *outcome, const Step *step, int serial,
			 TimestampTz now)
{
	if (step->throttled)
	{
		app_throttled(sender->options->sdkappid, now);
		sender->blocked_until = Max(sender->blocked_until, now + step->delay);
	}
	else if (step->new_usersig)
		renew_usersig(sender, serial);
	else if (step->server_stops)
		note_stop(sender, outcome, now);
	else if (outcome->class == OUTCOME_NOT_SENT || outcome->class == OUTCOME_TRANSIENT ||
			 outcome->class == OUTCOME_UNKNOWN)
		note_failure(sender, outcome, now);
	else
		note_success(sender);
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
		set_problem(sender, problem, 0, true);
		sender->blocked_until = now + NO_KEY_PAUSE;
		return false;
	}
	made = usersig_make(sender->usersig, key, len, options->identifier,
						options->sdkappid, (int64) timestamptz_to_time_t(now),
						options->usersig_lifetime);
	server_free_key(key, len);
	if (!made)
	{
		set_problem(sender, "could not make a UserSig for the identifier", 0, true);
		sender->blocked_until = now + NO_KEY_PAUSE;
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

static int64
limit_wait(const Sender *sender, TimestampTz now)
{
	return app_wait(sender->options->sdkappid, sender->options->requests_per_second,
					sender->options->accounts_per_second, now);
}

static bool
limited(const Sender *sender)
{
	return sender->options->requests_per_second > 0 ||
		sender->options->accounts_per_second > 0;
}

TimestampTz
sender_due(const Sender *sender)
{
	if (sender->state.paused)
		return DT_NOEND;
	return Max(Min(sender->push_due, sender->retry_due), sender->blocked_until);
}

int
sender_room(Sender *sender, TimestampTz now, TimestampTz *when)
{
	int			room = sender->options->max_in_flight - sender->in_flight;
	int64		wait;

	if (sender_due(sender) > now)
	{
		*when = Min(*when, sender_due(sender));
		return 0;
	}
	if (room <= 0 || sender->ready != NIL)
		return 0;				/* an answer or sender_next_ready() goes first */
	wait = limit_wait(sender, now);
	if (wait > 0)
	{
		*when = Min(*when, now + wait);
		return 0;
	}
	if (sender->in_flight > 0 && room < sender->options->max_in_flight / 2 &&
		now < sender->last_claim + CLAIM_PAUSE)
	{
		*when = Min(*when, sender->last_claim + CLAIM_PAUSE);
		return 0;
	}
	/* without credentials, complain only if something waits: go and see */
	if (sender->usersig[0] == '\0' && (sender->push_due == 0 || sender->retry_due == 0))
		return 1;
	if (!ensure_usersig(sender, now))
	{
		*when = Min(*when, sender->blocked_until);
		return 0;
	}
	/* a probe goes alone */
	if (sender->failures >= FAILURES_TO_OPEN || sender->suspended)
		return sender->in_flight == 0 ? 1 : 0;
	/* the next token is not there yet */
	if (limited(sender))
		return 1;
	return Min(room, MAX_CLAIM);
}

/* An attempt that ended before it began. */
static void
judge_unsent(Sender *sender, Request *request, const char *why)
{
	Transfer	transfer = {TRANSFER_NOT_SENT, 0, -1, why, NULL, 0};

	sender_judge(sender, request, &transfer);
}

/* Decide on the next step after an outcome. */
static void
plan_step(const Sender *sender, Request *request)
{
	Attempt		attempt = {
		.attempts = request->attempts,
		.resends = request->resends,
		.in_doubt = request->in_doubt,
		.signed_anew = sender != NULL && sender->renewed_serial > 0 &&
		request->usersig_serial >= sender->renewed_serial,
		.npushes = request->nmembers,
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
	note_retry(sender, request->ended_at);
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

static bool
post_request(Sender *sender, Request *request, TimestampTz now)
{
	StringInfoData body;
	char	   *problem;
	char	   *url;
	bool		posted;

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
	request->usersig_serial = sender->usersig_serial;
	request->sent_at = now;
	if (request->first_sent_at == 0)
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
	app_take(sender->options->sdkappid, sender->options->requests_per_second,
			 sender->options->accounts_per_second, request->naccounts, now);
	sender->in_flight++;
	note_departure(sender, request, now);
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
	note_retry(sender, request->ended_at);
}

bool
sender_send(Sender *sender, Request *request)
{
	TimestampTz now = GetCurrentTimestamp();

	if (request_any_expired(request, now))
	{
		/* the next claim takes the push that expired out of the request */
		sender_put_back(sender, request, "expired before it could leave");
		return true;
	}
	if (limit_wait(sender, now) > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(MemoryContextGetParent(sender->context));

		sender->ready = lappend(sender->ready, request);
		MemoryContextSwitchTo(old);
		return false;
	}
	return post_request(sender, request, now);
}

TimestampTz
sender_ready_due(const Sender *sender, TimestampTz now)
{
	return sender->ready == NIL ? DT_NOEND : now + limit_wait(sender, now);
}

Request *
sender_next_ready(Sender *sender, TimestampTz now)
{
	Request    *request;

	if (sender->ready == NIL || limit_wait(sender, now) > 0)
		return NULL;
	request = linitial(sender->ready);
	sender->ready = list_delete_first(sender->ready);
	return request;
}

/* ------------------------------------------------------------------------
 * Judging
 * ------------------------------------------------------------------------
 */

/* An answer may repeat the URL, which holds the signature. */
static void
redact_outcome(const Sender *sender, Outcome *outcome)
{
	request_redact(outcome->error_info, sender->usersig);
	for (int i = 0; i < outcome->nerrors; i++)
		request_redact(outcome->errors[i].info, sender->usersig);
}

/* A refusal without the API's words may be a passing fault of a gateway. */
static void
bound_refusals(Sender *sender, Outcome *outcome)
{
	if (outcome->class == OUTCOME_SERVER_STOP && !outcome->has_code &&
		++sender->refusals < REFUSALS_TO_STOP)
		outcome->class = OUTCOME_TRANSIENT;
}

void
sender_judge(Sender *sender, Request *request, const Transfer *transfer)
{
	MemoryContext old = MemoryContextSwitchTo(request->context);

	request->ended_at = GetCurrentTimestamp();
	response_outcome(transfer, &request->outcome);
	redact_outcome(sender, &request->outcome);
	bound_refusals(sender, &request->outcome);
	plan_step(sender, request);
	MemoryContextSwitchTo(old);
	note_outcome(sender, &request->outcome, &request->step, request->usersig_serial,
				 request->ended_at);
	if (request->step.kind == STEP_RETRY || request->step.kind == STEP_SPLIT ||
		request->outcome.nerrors > 0)
		note_retry(sender, request->ended_at + request->step.delay);
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
		note_retry(sender, request->ended_at + request->step.delay);
}
