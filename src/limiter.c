/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  Evenly paced token buckets of depth one, and what slows them down.
 *
 * The generic cell rate algorithm: a bucket is the time at which its next
 * unit is due, kept as the time of the last take and what that left owing, so
 * there is nothing to refill and no timer to run.  Every question is answered
 * from the caller's clock and rate alone; asking changes nothing.  That is why
 * a rate that changed and a clock that was set back are judged against the
 * last take, which only another take moves.
 *
 * Pure functions: no PostgreSQL header.
 *
 * Crash story: limiters live in shared memory, so they are fresh after a
 * crash.  At worst one call leaves early, a pause ends early and a lowered
 * rate is the set one again, until the next throttle answer.
 *
 *-------------------------------------------------------------------------
 */
#include <math.h>

#include "limiter.h"

#define USECS_PER_SECOND	1e6

/* A longer wait means nothing to anybody, and int64 cannot overflow by it. */
#define WAIT_MAX_US			1e15

/*
 * The share of a unit by which a late caller may catch up.  k units then span
 * more than (k - 1 - LATE_SHARE) intervals, hence a second holds at most
 * rate + 1 of them; and it does so too where they arrive, if the time on the
 * way varies by less than the rest of an interval.
 */
#define LATE_SHARE			0.5

/*
 * A take of many units may catch up by more than one of them, but by no more
 * time than timers and schedulers are late on a busy machine.
 */
#define LATE_MAX_US			20000.0

/* A clock that steps back by less is waited for, one that steps more is not. */
#define CLOCK_SLACK_US		1e6

/* Rates come from options and arithmetic: neither NaN nor a negative limits. */
static bool
is_limited(double rate)
{
	return rate > 0 && isfinite(rate);
}

/*
 * Time since the last take.  Differences only, never times, are turned into
 * double: at today's date a double of microseconds is off by a quarter of
 * one, which at thousands of units a second adds up.
 */
static double
since_taken(const Bucket *bucket, int64_t now)
{
	return (double) (now - bucket->taken);
}

/*
 * What was owed after the last take, had the rate been this one since.  Judging
 * from the take and not from now makes the answer the same however often and
 * whenever it is asked.
 */
static double
owed_under(const Bucket *bucket, double rate)
{
	if (!is_limited(bucket->rate) || bucket->rate == rate)
		return bucket->owed;
	return fmin(bucket->owed * (bucket->rate / rate), WAIT_MAX_US);
}

/* See limiter.h. */
int64_t
bucket_wait(const Bucket *bucket, double rate, int64_t now)
{
	double		elapsed = since_taken(bucket, now);
	double		wait;

	if (!is_limited(rate) || elapsed < -CLOCK_SLACK_US)
		return 0;
	wait = ceil(owed_under(bucket, rate) - elapsed);
	return wait > 0 ? (int64_t) fmin(wait, WAIT_MAX_US) : 0;
}

/* See limiter.h. */
void
bucket_take(Bucket *bucket, double rate, double units, int64_t now)
{
	double		elapsed = since_taken(bucket, now);
	double		owed = 0;

	if (is_limited(rate))
	{
		double		interval = USECS_PER_SECOND / rate;
		double		late = fmin(LATE_SHARE * interval * units,
								fmax(LATE_SHARE * interval, LATE_MAX_US));

		owed = owed_under(bucket, rate);
		if (elapsed >= -CLOCK_SLACK_US) /* else all of it stays owed */
			owed = fmax(owed - elapsed, -late);
		owed = fmin(owed + units * interval, WAIT_MAX_US);
	}

	bucket->owed = owed;
	bucket->rate = is_limited(rate) ? rate : 0;
	bucket->taken = now;
}

/*
 * The factor that holds now.  A clock that was set back by more than a step
 * says nothing about the time since, so the set rate is tried again: another
 * throttle answer costs less than a rate that stays low until the clock has
 * caught up.
 */
double
throttle_share(const Throttle *throttle, int64_t now)
{
	double		elapsed = (double) (now - throttle->since);

	if (throttle->factor <= 0 || elapsed < -(double) THROTTLE_STEP_US)
		return 1.0;
	if (elapsed < 0)
		return throttle->factor;
	return fmin(1.0, throttle->factor +
				THROTTLE_RECOVERY * floor(elapsed / THROTTLE_STEP_US));
}

/* See limiter.h. */
int64_t
throttle_wait(const Throttle *throttle, int64_t now)
{
	int64_t		elapsed = now - throttle->paused_at;

	/* a clock that was set back does not make a pause any longer */
	if (elapsed < -(int64_t) CLOCK_SLACK_US || elapsed >= throttle->pause)
		return 0;
	return elapsed < 0 ? throttle->pause : throttle->pause - elapsed;
}

/* See limiter.h. */
void
throttle_hit(Throttle *throttle, int64_t pause, int64_t now)
{
	int64_t		elapsed = now - throttle->since;

	if (throttle->factor <= 0 || elapsed >= THROTTLE_APART_US ||
		elapsed <= -THROTTLE_APART_US)
	{
		throttle->factor = fmax(THROTTLE_FLOOR,
								throttle_share(throttle, now) * THROTTLE_FACTOR);
		throttle->since = now;
	}
	if (pause > throttle_wait(throttle, now))
	{
		throttle->paused_at = now;
		throttle->pause = pause;
	}
}

/* See limiter.h. */
void
throttle_resume(Throttle *throttle)
{
	throttle->pause = 0;
}

/* See limiter.h. */
double
ramp_share(const Ramp *ramp, int64_t now)
{
	int64_t		elapsed = now - ramp->since;

	/* a clock that was set back ends it, one that jumped ahead as well */
	if (ramp->since == 0 || elapsed < -(int64_t) CLOCK_SLACK_US)
		return 1.0;
	if (elapsed < 0)
		return RAMP_START;
	/* an exponent need not be large, ten steps are more than it takes */
	return fmin(1.0, ldexp(RAMP_START,
						   (int) fmin((double) (elapsed / RAMP_STEP_US), 10)));
}

/* See limiter.h. */
bool
ramp_begin(Ramp *ramp, int64_t oldest, int64_t now)
{
	if (oldest > now - RAMP_LONG_STOP_US)
		return false;
	ramp->since = now;
	return true;
}

static double
lower_rate(double a, double b)
{
	if (!is_limited(a) || !is_limited(b))
		return is_limited(a) ? a : is_limited(b) ? b : 0;
	return fmin(a, b);
}

/* See limiter.h. */
Rates
rates_lowest(Rates a, Rates b)
{
	Rates		lowest = {lower_rate(a.calls, b.calls),
	lower_rate(a.accounts, b.accounts)};

	return lowest;
}

static bool
rate_rises(double a, double b)
{
	return is_limited(a) && (!is_limited(b) || b > a);
}

/* See limiter.h. */
bool
rates_rise(Rates a, Rates b)
{
	return rate_rises(a.calls, b.calls) || rate_rises(a.accounts, b.accounts);
}

/* The set rates as they hold now; returns their share. */
static double
held_rates(const Limiter *limiter, Rates set, int64_t now, Rates *rates)
{
	double		share = throttle_share(&limiter->throttle, now) *
	ramp_share(&limiter->ramp, now);

	rates->calls = is_limited(set.calls) ? set.calls * share : 0;
	rates->accounts = is_limited(set.accounts) ? set.accounts * share : 0;
	return share;
}

/* See limiter.h. */
void
limiter_ask(const Limiter *limiter, Rates set, int64_t now,
			Allowance *allowance)
{
	int64_t		pause = throttle_wait(&limiter->throttle, now);
	int64_t		calls;
	int64_t		accounts;

	allowance->share = held_rates(limiter, set, now, &allowance->rates);
	calls = bucket_wait(&limiter->calls, allowance->rates.calls, now);
	accounts = bucket_wait(&limiter->accounts, allowance->rates.accounts, now);
	allowance->wait = calls > accounts ? calls : accounts;
	/* the share grows in steps, so that the wait may be shorter soon */
	if (allowance->share < 1 && allowance->wait > RAMP_STEP_US)
		allowance->wait = RAMP_STEP_US;
	allowance->paused = pause > allowance->wait;
	if (allowance->paused)
		allowance->wait = pause;
}

/* See limiter.h. */
void
limiter_take(Limiter *limiter, Rates set, int accounts, int64_t now)
{
	Rates		rates;

	(void) held_rates(limiter, set, now, &rates);
	bucket_take(&limiter->calls, rates.calls, 1, now);
	bucket_take(&limiter->accounts, rates.accounts, accounts, now);
}
