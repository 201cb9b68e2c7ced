/*-------------------------------------------------------------------------
 *
 * policy.h
 *	  What to do after an outcome.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_POLICY_H
#define TIMPUSH_POLICY_H

#include "compose.h"
#include "response.h"

/* What is known of a request when an attempt has ended. */
typedef struct Attempt
{
	int			attempts;		/* that counted, this one not included */
	int			resends;		/* in doubt, so far */
	int			account_tries;	/* of its accounts one by one, before this */
	bool		in_doubt;		/* an earlier attempt's outcome is not known */
	bool		signed_anew;	/* no other UserSig would do better */
	int			npushes;
	int			naccounts;
	OnUnknown	on_unknown;
	int			max_unknown_resends;
	double		random;			/* [0,1), for the jitter */
} Attempt;

typedef enum StepKind
{
	STEP_DONE,					/* accepted; per-account errors may remain */
	STEP_ACCEPT,				/* in doubt, and counted as accepted */
	STEP_RETRY,					/* the same request goes again */
	STEP_SPLIT,					/* two go instead, each with half the pushes */
	STEP_SHRINK,				/* several go instead, with fewer accounts */
	STEP_FAIL,					/* refused for good */
	STEP_UNKNOWN				/* ends in doubt */
} StepKind;

/* What the outcome says of the server. */
typedef enum ServerEffect
{
	SERVER_HEALTHY,
	SERVER_FAILS,				/* a failure for its breaker */
	SERVER_THROTTLES,			/* its app is over a limit, and pauses */
	SERVER_SIGNS_ANEW,			/* the UserSig must be made anew */
	SERVER_STOPS				/* nothing may leave until it is mended */
} ServerEffect;

typedef struct Step
{
	StepKind	kind;
	ServerEffect server;
	int64_t		delay;			/* microseconds until what goes again, or an
								 * app that pauses, does; less than 0: has
								 * been due since */
	bool		counts;			/* the attempt counts */
	bool		in_doubt;		/* it is not known whether the API has it */
	int			size;			/* STEP_SHRINK: accounts in each, at most */
} Step;

extern void policy_next_step(const Outcome *outcome, const Attempt *attempt,
							 Step *step);

/* Is the per-account error tried again, after so many tries? */
extern bool policy_retry_account(int code, int tries);

/* Full jitter: uniform in [0, base * 2^n), base 1 s, at most 5 min. */
extern int64_t policy_backoff(int n, double random);

#define MAX_ACCOUNT_TRIES		4
#define MAX_UNKNOWN_CODE_TRIES	3

#endif							/* TIMPUSH_POLICY_H */
