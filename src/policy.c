/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  What to do after an outcome.
 *
 * Pure: from the class of an outcome and the history of the request to the
 * next step.  Which code is of which class stands in response.c; what a class
 * means for the request and its server is the table below.  journal.c and
 * sender.c carry it out.
 *
 * Crash story: none of its own; a step exists only once it is recorded.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include "policy.h"

#define SECONDS(n)	((int64_t) (n) * 1000000)

#define THROTTLE_PAUSE			SECONDS(1)
#define TRIAL_EXHAUSTED_PAUSE	SECONDS(3600)
#define FIRST_DOUBT_PAUSE		SECONDS(5)
#define LATER_DOUBT_PAUSE		SECONDS(60)
#define MAX_BACKOFF				SECONDS(300)

/* The day's volume of a trial app is used up (1047/34348). */
#define CODE_TRIAL_EXHAUSTED	60028

int64_t
policy_backoff(int n, double random)
{
	int64_t		ceiling = MAX_BACKOFF;

	if (n < 9)
		ceiling = SECONDS(1) << n;
	return (int64_t) (random * ceiling);
}

/* ------------------------------------------------------------------------
 * What is computed, beside the table
 * ------------------------------------------------------------------------
 */

/* Accounts that are tried again, if any, have a back-off of their own. */
static void
accepted(const Outcome *outcome pg_attribute_unused(), const Attempt *attempt, Step *step)
{
	step->in_doubt = false;
	step->delay = policy_backoff(attempt->account_tries, attempt->random);
}

static void
throttled(const Outcome *outcome, const Attempt *attempt, Step *step)
{
	if (outcome->error_code == CODE_TRIAL_EXHAUSTED)
		step->delay = TRIAL_EXHAUSTED_PAUSE;
	else if (outcome->retry_after >= 0)
		step->delay = SECONDS(outcome->retry_after);
	else
		step->delay = THROTTLE_PAUSE / 2 +
			(int64_t) (attempt->random * THROTTLE_PAUSE);
}

/* A new UserSig is tried once; it may be something else that is wrong. */
static void
signature_refused(const Outcome *outcome pg_attribute_unused(), const Attempt *attempt,
				  Step *step)
{
	if (attempt->signed_anew)
		step->server = SERVER_STOPS;
}

/* Again and again, but for a code of which nobody knows what it means. */
static void
transient(const Outcome *outcome, const Attempt *attempt, Step *step)
{
	step->delay = policy_backoff(attempt->attempts, attempt->random);
	if (outcome->has_code && !response_code_known(outcome->error_code) &&
		attempt->attempts + 1 >= MAX_UNKNOWN_CODE_TRIES)
		step->kind = attempt->in_doubt ? STEP_UNKNOWN : STEP_FAIL;
}

/* It may have arrived: what the push says is done. */
static void
doubtful(const Outcome *outcome pg_attribute_unused(), const Attempt *attempt, Step *step)
{
	step->in_doubt = true;
	if (attempt->on_unknown == ON_UNKNOWN_ACCEPT)
		step->kind = STEP_ACCEPT;
	else if (attempt->on_unknown == ON_UNKNOWN_HOLD ||
			 (attempt->max_unknown_resends >= 0 &&
			  attempt->resends >= attempt->max_unknown_resends))
		step->kind = STEP_UNKNOWN;
	else
		step->delay = attempt->resends == 0 ? FIRST_DOUBT_PAUSE : LATER_DOUBT_PAUSE;
}

/* Too many accounts, or one push among several that spoils it, or its own. */
static void
bad(const Outcome *outcome, const Attempt *attempt, Step *step)
{
	if (response_code_too_many(outcome->error_code) && attempt->naccounts > 1)
	{
		step->kind = STEP_SHRINK;
		step->size = (attempt->naccounts + 1) / 2;
	}
	else if (attempt->npushes > 1)
		step->kind = STEP_SPLIT;
}

/* ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

/*
 * What follows from each class: what the request does, whether the attempt
 * counts, what it says of the server, and the part that is computed.
 */
static const struct
{
	StepKind	kind;
	bool		counts;			/* the attempt counts */
	ServerEffect server;
	void		(*computed) (const Outcome *outcome, const Attempt *attempt, Step *step);
}			rules[] = {
	[OUTCOME_SENT] = {STEP_DONE, true, SERVER_HEALTHY, accepted},
	[OUTCOME_PARTIAL] = {STEP_DONE, true, SERVER_HEALTHY, accepted},
	[OUTCOME_NOT_SENT] = {STEP_RETRY, false, SERVER_FAILS, NULL},
	[OUTCOME_THROTTLED] = {STEP_RETRY, false, SERVER_THROTTLES, throttled},
	[OUTCOME_RESIGN] = {STEP_RETRY, false, SERVER_SIGNS_ANEW, signature_refused},
	[OUTCOME_SERVER_STOP] = {STEP_RETRY, false, SERVER_STOPS, NULL},
	[OUTCOME_TRANSIENT] = {STEP_RETRY, true, SERVER_FAILS, transient},
	[OUTCOME_UNKNOWN] = {STEP_RETRY, true, SERVER_FAILS, doubtful},
	[OUTCOME_BAD_REQUEST] = {STEP_FAIL, true, SERVER_HEALTHY, bad},
};

void
policy_next_step(const Outcome *outcome, const Attempt *attempt, Step *step)
{
	memset(step, 0, sizeof(Step));
	step->kind = rules[outcome->class].kind;
	step->counts = rules[outcome->class].counts;
	step->server = rules[outcome->class].server;
	step->in_doubt = attempt->in_doubt;
	if (rules[outcome->class].computed != NULL)
		rules[outcome->class].computed(outcome, attempt, step);
}

bool
policy_retry_account(int code, int tries)
{
	return response_account_class(code) != OUTCOME_BAD_REQUEST &&
		tries < MAX_ACCOUNT_TRIES;
}
