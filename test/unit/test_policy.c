/*-------------------------------------------------------------------------
 *
 * test_policy.c
 *	  What is done after an outcome: the table of the policy, row by row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include <limits.h>

#include "policy.h"
#include "tap.h"

#define SECOND		INT64_C(1000000)
#define HOUR		(3600 * SECOND)

/* As random as the jitter gets: both ends and what lies between. */
static const double shares[] = {0, 0.001, 0.25, 0.5, 0.75, 0.999999999999};

/* Codes of each class, as the policy lists them. */
static const int throttled[] = {60007, 60011, 60018, 60019, 90024, 0};
static const int resign[] = {70001, 70003, 60004, 60005, 60025, 0};
static const int server_stop[] = {
	60006, 60009, 60010, 60012, 60016, 60017, 60020, 60021, 60026, 60027,
	70009, 70013, 70014, 70016, 70020, 70050, 70051, 70398, 72000, 72002,
	80005, 90009, 90045, 0
};
static const int transient[] = {
	60014, 70169, 70500, 90992, 90994, 90995, 91000, 80003, 0
};
static const int unknown[] = {60008, 60013, 0};
static const int bad_request[] = {
	60002, 60003, 60015, 70107, 90048, 70402, 80001, 80002, 80004, 90001,
	90003, 90005, 90008, 90012, 90026, 90028, 90029, 90043, 90044, 90055,
	90057, 93000, 0
};

/* Those of bad-request that say that there are too many accounts. */
static const int too_many[] = {90011, 90018, 0};

/* Codes that nobody has documented, and what may stand for none. */
static const int undocumented[] = {1, -1, 12345, 99999, INT_MAX, INT_MIN};

/* What a step may say besides its kind. */
#define COUNTS			0x01
#define IN_DOUBT		0x02
#define NEW_USERSIG		0x04
#define STOPS			0x08
#define THROTTLED		0x10
#define FAILS			0x20

/* What must come of an attempt; the delay is within [least, most). */
typedef struct Expected
{
	StepKind	kind;
	int			flags;
	int64_t		least;
	int64_t		most;
} Expected;

static Expected
expect(StepKind kind, int flags, int64_t least, int64_t most)
{
	Expected	expected = {kind, flags, least, most};

	return expected;
}

/* A first attempt of a push with the default settings. */
static Attempt
fresh(void)
{
	Attempt		attempt = {
		.npushes = 1,
		.naccounts = 1,
		.on_unknown = ON_UNKNOWN_RETRY,
		.max_unknown_resends = 2,
		.random = 0.5
	};

	return attempt;
}

static Outcome
outcome_of(OutcomeClass class, int code)
{
	Outcome		outcome = {
		.class = class,
		.http_status = 200,
		.retry_after = -1,
		.has_code = code != 0,
		.error_code = code
	};

	return outcome;
}

static Step
step_after(Outcome outcome, Attempt attempt)
{
	Step		step;

	/* nothing of what was there before may remain */
	memset(&step, 0x55, sizeof(step));
	policy_next_step(&outcome, &attempt, &step);
	return step;
}

static int
step_flags(const Step *step)
{
	static const int effects[] = {
		[SERVER_HEALTHY] = 0,
		[SERVER_FAILS] = FAILS,
		[SERVER_THROTTLES] = THROTTLED,
		[SERVER_SIGNS_ANEW] = NEW_USERSIG,
		[SERVER_STOPS] = STOPS
	};

	return (step->counts ? COUNTS : 0) |
		(step->in_doubt ? IN_DOUBT : 0) | effects[step->server];
}

/* Does a step do all that is expected?  Says what it does not. */
static bool
matches(const Step *step, const Expected *expected)
{
	if (step->kind == expected->kind && step_flags(step) == expected->flags &&
		step->delay >= expected->least && step->delay < expected->most)
		return true;
	printf("#      got: kind %d, flags 0x%02x, delay %lld\n"
		   "# expected: kind %d, flags 0x%02x, delay within [%lld, %lld)\n",
		   step->kind, step_flags(step), (long long) step->delay,
		   expected->kind, expected->flags, (long long) expected->least,
		   (long long) expected->most);
	return false;
}

/* An outcome has the expected step, whatever the jitter. */
static bool
leads_to(Outcome outcome, Attempt attempt, Expected expected)
{
	for (int i = 0; i < (int) lengthof(shares); i++)
	{
		Step		step;

		attempt.random = shares[i];
		step = step_after(outcome, attempt);
		if (!matches(&step, &expected))
			return false;
	}
	return true;
}

/*
 * All codes of a class have the expected step, after a fresh attempt and for
 * a request that is in doubt.  The doubt stays as it was, unless the class
 * decides about it.
 */
static void
check_codes(const char *name, const int *codes, OutcomeClass class,
			Attempt attempt, Expected expected)
{
	bool		decides = class == OUTCOME_UNKNOWN;
	int			bad = 0;

	for (; *codes != 0; codes++)
	{
		Outcome		outcome = outcome_of(response_code_class(*codes), *codes);

		for (int doubt = 0; doubt <= 1; doubt++)
		{
			attempt.in_doubt = doubt;
			if (!decides)
				expected.flags = (expected.flags & ~IN_DOUBT) |
					(doubt ? IN_DOUBT : 0);
			if (!leads_to(outcome, attempt, expected))
			{
				printf("# code %d, in doubt %d\n", *codes, doubt);
				bad++;
			}
		}
	}
	ok(bad == 0, "%s", name);
}

static void
check_accepted(void)
{
	static const OutcomeClass classes[] = {OUTCOME_SENT, OUTCOME_PARTIAL};

	for (int i = 0; i < (int) lengthof(classes); i++)
	{
		const char *name = outcome_class_name(classes[i]);
		Outcome		outcome = outcome_of(classes[i], 0);
		Attempt		attempt = fresh();
		Expected	expected = expect(STEP_DONE, COUNTS, 0, SECOND);

		ok(leads_to(outcome, attempt, expected), "%s: done", name);
		attempt.in_doubt = true;
		attempt.resends = 2;
		ok(leads_to(outcome, attempt, expected), "%s ends a doubt", name);
		attempt = fresh();
		attempt.attempts = 9;
		attempt.account_tries = 3;
		expected.most = 8 * SECOND;
		ok(leads_to(outcome, attempt, expected),
		   "%s: listed accounts wait longer from try to try", name);
		for (int how = ON_UNKNOWN_RETRY; how <= ON_UNKNOWN_ACCEPT; how++)
		{
			attempt.on_unknown = how;
			ok(leads_to(outcome, attempt, expected),
			   "%s: on_unknown %d has no say", name, how);
		}
	}
}

static void
check_not_sent(void)
{
	Outcome		outcome = outcome_of(OUTCOME_NOT_SENT, 0);
	Attempt		attempt = fresh();
	Expected	expected = expect(STEP_RETRY, FAILS, 0, 1);

	ok(leads_to(outcome, attempt, expected), "not-sent: again, for free");
	attempt.attempts = attempt.resends = 1000;
	ok(leads_to(outcome, attempt, expected), "not-sent: however often");
	attempt.in_doubt = true;
	expected.flags |= IN_DOUBT;
	ok(leads_to(outcome, attempt, expected),
	   "not-sent does not end an earlier attempt's doubt");
	attempt.max_unknown_resends = 0;
	attempt.on_unknown = ON_UNKNOWN_HOLD;
	ok(leads_to(outcome, attempt, expected), "not-sent is no doubt to hold");
}

static void
check_throttled(void)
{
	static const int hours[] = {60028, 0};
	Attempt		attempt = fresh();
	Expected	expected = expect(STEP_RETRY, THROTTLED, SECOND / 2, SECOND * 3 / 2);
	Outcome		outcome;
	Step		early;
	Step		late;

	check_codes("throttled: a second with jitter, for free", throttled,
				OUTCOME_THROTTLED, attempt, expected);
	attempt.attempts = 1000;
	check_codes("throttled: however often", throttled, OUTCOME_THROTTLED,
				attempt, expected);
	ok(leads_to(outcome_of(OUTCOME_THROTTLED, 0), attempt, expected),
	   "throttled by the status alone: the same");
	attempt.random = 0;
	early = step_after(outcome_of(OUTCOME_THROTTLED, 60007), attempt);
	attempt.random = 0.9;
	late = step_after(outcome_of(OUTCOME_THROTTLED, 60007), attempt);
	ok(early.delay != late.delay, "throttled: the jitter is one");

	expected.least = HOUR;
	expected.most = HOUR + 1;
	check_codes("60028: an hour", hours, OUTCOME_THROTTLED, attempt, expected);

	for (int seconds = 0; seconds <= RETRY_AFTER_MAX; seconds += 30)
	{
		outcome = outcome_of(OUTCOME_THROTTLED, 0);
		outcome.retry_after = seconds;
		expected.least = seconds * SECOND;
		/* an addition that spreads the servers would be fine */
		expected.most = (seconds + 1) * SECOND;
		ok(leads_to(outcome, attempt, expected), "Retry-After: %d is honoured",
		   seconds);
	}
}

static void
check_resign(void)
{
	Attempt		attempt = fresh();

	check_codes("re-sign: a new UserSig, at once, for free", resign,
				OUTCOME_RESIGN, attempt,
				expect(STEP_RETRY, NEW_USERSIG, 0, 1));
	attempt.signed_anew = true;
	check_codes("re-sign, signed anew: the server stops", resign,
				OUTCOME_RESIGN, attempt,
				expect(STEP_RETRY, STOPS, 0, 1));
}

static void
check_server_stop(void)
{
	Attempt		attempt = fresh();
	Expected	expected = expect(STEP_RETRY, STOPS, 0, 1);

	check_codes("server-stop: waits, for free", server_stop,
				OUTCOME_SERVER_STOP, attempt, expected);
	attempt.attempts = attempt.resends = 1000;
	attempt.npushes = 500;
	check_codes("server-stop: however often, and together", server_stop,
				OUTCOME_SERVER_STOP, attempt, expected);
}

/* The most that "n" tries back off: 1 s * 2^n, at most 5 min. */
static int64_t
ceiling(int n)
{
	int64_t		result = SECOND;

	for (; n > 0 && result < 300 * SECOND; n--)
		result *= 2;
	return Min(result, 300 * SECOND);
}

static void
check_backoff(void)
{
	for (int n = 0; n <= 12; n++)
	{
		int64_t		most = ceiling(n);
		int			bad = 0;

		for (int i = 0; i <= 1000; i++)
		{
			double		random = Min(i / 1000.0, 0.999999999999);
			int64_t		delay = policy_backoff(n, random);

			/* full jitter: in proportion */
			bad += delay < 0 || delay >= most ||
				delay < (int64_t) (random * most) - 1 ||
				delay > (int64_t) (random * most) + 1;
		}
		ok(bad == 0, "back-off %d: anything below %lld s", n,
		   (long long) (most / SECOND));
	}
	ok(policy_backoff(63, 0.5) == 150 * SECOND &&
	   policy_backoff(64, 0.5) == 150 * SECOND &&
	   policy_backoff(1000000, 0.5) == 150 * SECOND &&
	   policy_backoff(INT_MAX, 0.5) == 150 * SECOND,
	   "back-off: five minutes are the end");
}

static void
check_transient(void)
{
	Attempt		attempt = fresh();

	for (int n = 0; n <= 20; n++)
	{
		char		name[100];

		attempt.attempts = n;
		snprintf(name, sizeof(name), "transient after %d: again, counted, "
				 "within %lld s", n, (long long) (ceiling(n) / SECOND));
		check_codes(name, transient, OUTCOME_TRANSIENT, attempt,
					expect(STEP_RETRY, COUNTS | FAILS, 0, ceiling(n)));
	}
	attempt.attempts = 100000;
	check_codes("transient: no count bounds a code that is known", transient,
				OUTCOME_TRANSIENT, attempt,
				expect(STEP_RETRY, COUNTS | FAILS, 0, 300 * SECOND));
}

/* A code that nobody knows is tried three times. */
static void
check_undocumented(void)
{
	int			bad = 0;

	for (int i = 0; i < (int) lengthof(undocumented); i++)
	{
		int			code = undocumented[i];
		Outcome		outcome = outcome_of(response_code_class(code), code);
		Attempt		attempt = fresh();
		Step		step;
		int			tries = 0;

		/* as a request lives through it */
		do
		{
			step = step_after(outcome, attempt);
			tries++;
			attempt.attempts += step.counts;
		} while (step.kind == STEP_RETRY && tries < 100);
		bad += tries != 3 || step.kind != STEP_FAIL || !step.counts;
		if (bad > 0)
			printf("# code %d: %d tries\n", code, tries);

		attempt = fresh();
		for (int n = 0; n < 2; n++)
		{
			attempt.attempts = n;
			bad += !leads_to(outcome, attempt,
							 expect(STEP_RETRY, COUNTS | FAILS, 0, ceiling(n)));
		}
		/* more pushes are no reason to take them apart */
		attempt.npushes = 500;
		attempt.attempts = 2;
		bad += step_after(outcome, attempt).kind != STEP_FAIL;
		attempt.in_doubt = true;
		bad += !step_after(outcome, attempt).in_doubt;
	}
	is_int(bad, 0, "a code that is not known: three tries, then failed");
	ok(step_after(outcome_of(OUTCOME_TRANSIENT, 0), fresh()).kind == STEP_RETRY,
	   "transient without a code: again");
}

/* The doubts that one request goes through before it ends. */
static int
count_doubts(OnUnknown on_unknown, int max_resends, int most, Step *last)
{
	Attempt		attempt = fresh();
	int			doubts = 0;

	attempt.on_unknown = on_unknown;
	attempt.max_unknown_resends = max_resends;
	do
	{
		*last = step_after(outcome_of(OUTCOME_UNKNOWN, 0), attempt);
		doubts++;
		attempt.attempts++;
		attempt.resends++;
		attempt.in_doubt = true;
	} while (last->kind == STEP_RETRY && doubts < most);
	return doubts;
}

static void
check_unknown(void)
{
	Expected	first = expect(STEP_RETRY, COUNTS | IN_DOUBT | FAILS, 5 * SECOND, 5 * SECOND + 1);
	Expected	later = expect(STEP_RETRY, COUNTS | IN_DOUBT | FAILS, 60 * SECOND, 60 * SECOND + 1);
	Expected	end = expect(STEP_UNKNOWN, COUNTS | IN_DOUBT | FAILS, 0, INT64_MAX);
	Expected	accept = expect(STEP_ACCEPT, COUNTS | IN_DOUBT | FAILS, 0, INT64_MAX);
	static const int limits[] = {0, 1, 2, 3, 10, 1000};
	Attempt		attempt = fresh();
	Step		last;

	check_codes("unknown, retry: 5 s at first", unknown, OUTCOME_UNKNOWN,
				attempt, first);
	ok(leads_to(outcome_of(OUTCOME_UNKNOWN, 0), attempt, first),
	   "unknown without a code, retry: 5 s at first");
	attempt.npushes = 500;
	attempt.attempts = 7;
	check_codes("unknown, retry: never split, attempts have no say", unknown,
				OUTCOME_UNKNOWN, attempt, first);
	attempt.resends = 1;
	check_codes("unknown, retry: then 60 s", unknown, OUTCOME_UNKNOWN,
				attempt, later);
	attempt.resends = 2;
	check_codes("unknown, retry: ends when both are used up", unknown,
				OUTCOME_UNKNOWN, attempt, end);
	attempt.resends = 3;
	check_codes("unknown, retry: and when the limit was lowered", unknown,
				OUTCOME_UNKNOWN, attempt, end);

	for (int i = 0; i < (int) lengthof(limits); i++)
	{
		int			doubts = count_doubts(ON_UNKNOWN_RETRY, limits[i], 2000,
										  &last);

		ok(doubts == limits[i] + 1 && matches(&last, &end),
		   "max_unknown_resends %d: as many resends, then unknown", limits[i]);
	}
	ok(count_doubts(ON_UNKNOWN_RETRY, -1, 2000, &last) == 2000 &&
	   matches(&last, &later), "max_unknown_resends -1: on and on");

	for (int limit = -1; limit <= 2; limit++)
	{
		attempt = fresh();
		attempt.max_unknown_resends = limit;
		for (attempt.resends = 0; attempt.resends <= 3; attempt.resends++)
		{
			char		name[100];

			snprintf(name, sizeof(name), "unknown, hold: at once "
					 "(limit %d, resends %d)", limit, attempt.resends);
			attempt.on_unknown = ON_UNKNOWN_HOLD;
			check_codes(name, unknown, OUTCOME_UNKNOWN, attempt, end);
			snprintf(name, sizeof(name), "unknown, accept: counts as sent "
					 "(limit %d, resends %d)", limit, attempt.resends);
			attempt.on_unknown = ON_UNKNOWN_ACCEPT;
			check_codes(name, unknown, OUTCOME_UNKNOWN, attempt, accept);
		}
	}
}

static void
check_bad_request(void)
{
	Attempt		attempt = fresh();
	Expected	expected = expect(STEP_FAIL, COUNTS, 0, INT64_MAX);

	check_codes("bad-request, alone: failed", bad_request,
				OUTCOME_BAD_REQUEST, attempt, expected);
	attempt.attempts = attempt.resends = 9;
	check_codes("bad-request, alone at last: failed", bad_request,
				OUTCOME_BAD_REQUEST, attempt, expected);
	expected.kind = STEP_SPLIT;
	for (int npushes = 2; npushes <= 500; npushes += 83)
	{
		char		name[100];

		attempt = fresh();
		attempt.npushes = attempt.naccounts = npushes;
		snprintf(name, sizeof(name), "bad-request, %d pushes: split", npushes);
		check_codes(name, bad_request, OUTCOME_BAD_REQUEST, attempt, expected);
	}
}

/* Too many accounts: fewer go, down to one. */
static void
check_too_many(void)
{
	Attempt		attempt = fresh();
	int			levels = 0;

	check_codes("too many accounts, but there is one: failed", too_many,
				OUTCOME_BAD_REQUEST, attempt, expect(STEP_FAIL, COUNTS, 0, INT64_MAX));
	attempt.naccounts = 500;
	check_codes("too many accounts of one push: fewer", too_many,
				OUTCOME_BAD_REQUEST, attempt, expect(STEP_SHRINK, COUNTS, 0, 1));
	attempt.npushes = 500;
	check_codes("too many accounts of many pushes: fewer", too_many,
				OUTCOME_BAD_REQUEST, attempt, expect(STEP_SHRINK, COUNTS, 0, 1));
	for (int code = 0; code < 100000; code++)
	{
		bool		many = code == 90011 || code == 90018;

		if (response_code_too_many(code) != many)
			ok(false, "%d and too many accounts", code);
	}

	for (attempt.npushes = 1; attempt.naccounts > 1; levels++)
		attempt.naccounts = step_after(outcome_of(OUTCOME_BAD_REQUEST, 90011), attempt).size;
	is_int(levels, 9, "too many accounts: from 500 to one at nine levels");
}

/* Whatever happens, a step asks for nothing that does not fit together. */
static void
check_consistency(void)
{
	static const int codes[] = {0, 60007, 60028, 70001, 90994, 12345, 90001};
	int			bad = 0;
	int			n = 0;

	for (int i = 0; i < 9 * 7 * 4 * 4 * 2 * 2 * 2 * 3 * 3; i++)
	{
		int			x = i;
		Outcome		outcome = outcome_of((OutcomeClass) (x % 9),
										 codes[x / 9 % 7]);
		Attempt		attempt = fresh();
		Step		step;
		bool		definite;

		x /= 9 * 7;
		attempt.attempts = x % 4;
		attempt.resends = x / 4 % 4;
		x /= 4 * 4;
		attempt.in_doubt = x % 2;
		attempt.signed_anew = x / 2 % 2;
		attempt.npushes = 1 + x / 4 % 2;
		x /= 2 * 2 * 2;
		attempt.on_unknown = (OnUnknown) (x % 3);
		attempt.max_unknown_resends = x / 3 % 3 - 1;
		step = step_after(outcome, attempt);
		definite = outcome.class == OUTCOME_SENT ||
			outcome.class == OUTCOME_PARTIAL;

		n++;
		bad += step.delay < 0;
		/* only an answer that says so, or an accepted one, ends a doubt */
		bad += step.in_doubt != (outcome.class == OUTCOME_UNKNOWN ||
								 (attempt.in_doubt && !definite));
		/* who accepts or refuses for the content is well, and nobody else */
		bad += (step.server == SERVER_HEALTHY) !=
			(definite || outcome.class == OUTCOME_BAD_REQUEST);
		/* what is nobody's fault burns no attempt and ends nothing */
		bad += !step.counts && step.kind != STEP_RETRY;
		bad += (step.server == SERVER_STOPS || step.server == SERVER_THROTTLES ||
				step.server == SERVER_SIGNS_ANEW) && step.counts;
		bad += (step.kind == STEP_DONE) != definite;
		bad += (step.kind == STEP_ACCEPT || step.kind == STEP_UNKNOWN) &&
			!step.in_doubt;
		bad += step.kind == STEP_SPLIT && attempt.npushes < 2;
		/* what goes in smaller requests does get smaller */
		bad += (step.kind == STEP_SHRINK) != (step.size > 0);
		bad += step.size >= attempt.naccounts && step.kind == STEP_SHRINK;
	}
	ok(bad == 0, "%d combinations: no step contradicts itself (%d)", n, bad);
}

static bool
retried_up_to(int code, int tries)
{
	for (int n = 0; n < 10; n++)
	{
		if (policy_retry_account(code, n) != (n < tries))
		{
			printf("# code %d after %d tries\n", code, n);
			return false;
		}
	}
	return !policy_retry_account(code, INT_MAX);
}

static void
check_accounts(void)
{
	static const int final[] = {70107, 90048, 90003, 60015, 70051};
	static const int again[] = {
		90994, 91000, 60007, 90024, 60008, 60013, 70001, 60020, 90011, 90018,
		12345, 0, -1, INT_MAX, INT_MIN
	};
	int			bad = 0;

	for (int i = 0; i < (int) lengthof(final); i++)
		bad += !retried_up_to(final[i], 0);
	is_int(bad, 0, "an account's final codes: not tried again");
	bad = 0;
	for (int i = 0; i < (int) lengthof(again); i++)
		bad += !retried_up_to(again[i], 4);
	is_int(bad, 0, "an account's other codes: four tries");
}

int
main(void)
{
	check_accepted();
	check_not_sent();
	check_throttled();
	check_resign();
	check_server_stop();
	check_backoff();
	check_transient();
	check_undocumented();
	check_unknown();
	check_bad_request();
	check_too_many();
	check_consistency();
	check_accounts();
	return done_testing();
}
