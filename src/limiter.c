/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  Evenly paced token buckets of depth one.
 *
 * The generic cell rate algorithm: a bucket is the time at which its next
 * unit is due, kept as the time of the last take and what that left owing, so
 * there is nothing to refill and no timer to run.  Every question is answered
 * from the caller's clock and rate alone; asking changes nothing.  That is why
 * a rate that changed and a clock that was set back are judged against the
 * last take, which only another take moves.
 *
 * Pure functions: no PostgreSQL header.  Buckets live in shared memory, so
 * they start empty after a crash: at worst one take leaves early.
 *
 *-------------------------------------------------------------------------
 */
#include <math.h>

#include "limiter.h"

#define USECS_PER_SECOND	1e6

/* A longer wait means nothing to anybody, and int64 cannot overflow by it. */
#define WAIT_MAX_US			1e15

/*
 * The share of a unit by which a late caller may catch up.  Below one, so
 * that two units which follow each other closely are the most that ever
 * happens: k units span more than (k - 1 - LATE_SHARE) intervals, hence a
 * second holds at most rate + 1 of them.
 */
#define LATE_SHARE			0.9

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
static double
throttle_factor(const Throttle *throttle, int64_t now)
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
double
throttle_rate(const Throttle *throttle, double set_rate, int64_t now)
{
	if (!is_limited(set_rate))
		return 0;
	return set_rate * throttle_factor(throttle, now);
}

/* See limiter.h. */
void
throttle_hit(Throttle *throttle, int64_t now)
{
	throttle->factor = fmax(THROTTLE_FLOOR,
							throttle_factor(throttle, now) * THROTTLE_FACTOR);
	throttle->since = now;
}
