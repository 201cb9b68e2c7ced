/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  What to do after an outcome.
 *
 * Pure: from the class of an outcome and the history of the request to the
 * next step.  The classes are response.c's, the steps are carried out by
 * outbox.c.
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

static void
throttled_step(const Outcome *outcome, const Attempt *attempt, Step *step)
{
	step->kind = STEP_RETRY;
	step->throttled = true;
	if (outcome->error_code == CODE_TRIAL_EXHAUSTED)
		step->delay = TRIAL_EXHAUSTED_PAUSE;
	else if (outcome->retry_after >= 0)
		step->delay = SECONDS(outcome->retry_after);
	else
		step->delay = THROTTLE_PAUSE / 2 +
			(int64_t) (attempt->random * THROTTLE_PAUSE);
}

static void
transient_step(const Outcome *outcome, const Attempt *attempt, Step *step)
{
	step->counts = true;
	if (outcome->has_code && !response_code_known(outcome->error_code) &&
		attempt->attempts + 1 >= MAX_UNKNOWN_CODE_TRIES)
	{
		step->kind = attempt->in_doubt ? STEP_UNKNOWN : STEP_FAIL;
		return;
	}
	step->kind = STEP_RETRY;
	step->delay = policy_backoff(attempt->attempts, attempt->random);
}

/* It may have arrived: what the push says is done. */
static void
unknown_step(const Attempt *attempt, Step *step)
{
	step->counts = true;
	step->in_doubt = true;
	if (attempt->on_unknown == ON_UNKNOWN_ACCEPT)
		step->kind = STEP_ACCEPT;
	else if (attempt->on_unknown == ON_UNKNOWN_HOLD ||
			 (attempt->max_unknown_resends >= 0 &&
			  attempt->resends >= attempt->max_unknown_resends))
		step->kind = STEP_UNKNOWN;
	else
	{
		step->kind = STEP_RETRY;
		step->delay = attempt->resends == 0 ? FIRST_DOUBT_PAUSE : LATER_DOUBT_PAUSE;
	}
}

static void
stopped_step(Step *step)
{
	step->kind = STEP_RETRY;
	/* due at once: it is the server that rests, until it is mended */
	step->server_stops = true;
}

void
policy_next_step(const Outcome *outcome, const Attempt *attempt, Step *step)
{
	memset(step, 0, sizeof(Step));
	step->in_doubt = attempt->in_doubt;

	switch (outcome->class)
	{
		case OUTCOME_SENT:
		case OUTCOME_PARTIAL:
			step->kind = STEP_DONE;
			step->counts = true;
			step->in_doubt = false;
			/* for the accounts that are tried again, if any */
			step->delay = policy_backoff(attempt->attempts, attempt->random);
			break;
		case OUTCOME_NOT_SENT:
			/* free; the server's own pause keeps it from a tight loop */
			step->kind = STEP_RETRY;
			break;
		case OUTCOME_THROTTLED:
			throttled_step(outcome, attempt, step);
			break;
		case OUTCOME_RESIGN:
			stopped_step(step);
			if (!attempt->signed_anew)
			{
				step->server_stops = false;
				step->new_usersig = true;
			}
			break;
		case OUTCOME_SERVER_STOP:
			stopped_step(step);
			break;
		case OUTCOME_TRANSIENT:
			transient_step(outcome, attempt, step);
			break;
		case OUTCOME_UNKNOWN:
			unknown_step(attempt, step);
			break;
		case OUTCOME_BAD_REQUEST:
			step->counts = true;
			step->kind = attempt->npushes > 1 ? STEP_SPLIT : STEP_FAIL;
			break;
	}
}

bool
policy_retry_account(int code, int tries)
{
	return response_account_class(code) != OUTCOME_BAD_REQUEST &&
		tries < MAX_ACCOUNT_TRIES;
}
