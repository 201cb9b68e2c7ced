/*-------------------------------------------------------------------------
 *
 * limiter.h
 *	  Evenly paced token buckets of depth one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_LIMITER_H
#define TIMPUSH_LIMITER_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A bucket counts units (calls, or accounts) in the manner of the generic
 * cell rate algorithm: it keeps when the next unit is due, and what it takes
 * to judge that under another rate or a clock that was set back.  All zeroes
 * is a fresh bucket.  The caller holds whatever lock protects it and does not
 * write into it.  Times are microseconds of one monotonic or wall clock;
 * rates are units per second, 0 meaning no limit.
 */
typedef struct Bucket
{
	int64_t		taken;			/* time of the last take */
	double		owed;			/* from then until the next unit is due */
	double		rate;			/* under which that was computed */
} Bucket;

/*
 * Microseconds until the next units may leave under "rate"; 0 if they may
 * now.  A bucket that was idle owes nothing; one whose caller comes late may
 * catch up by less than one unit, so that no window of one second ever sees
 * more than rate + 1 units leave (units being taken one at a time, the rate
 * rounded up if it is no whole number), and the mean rate is kept although
 * wake-ups are late.  A take of several units waits until the first is due
 * and pushes the next take back by all of them.
 *
 * Another rate than at the last take counts as if it had held since then.  A
 * clock set back by more than a second lets one take through at once, which
 * puts the bucket on the new time and keeps what was owed.
 */
extern int64_t bucket_wait(const Bucket *bucket, double rate, int64_t now);

/* Take "units" now; call it only when bucket_wait() has said 0. */
extern void bucket_take(Bucket *bucket, double rate, double units,
						int64_t now);

/*
 * A rate that falls by THROTTLE_FACTOR at every throttle answer and recovers
 * by THROTTLE_RECOVERY of the set rate every THROTTLE_STEP_US.
 */
typedef struct Throttle
{
	double		factor;			/* of the set rate, (0,1]; 0 means 1 */
	int64_t		since;			/* when factor was last computed */
} Throttle;

#define THROTTLE_FACTOR		0.7
#define THROTTLE_FLOOR		0.02
#define THROTTLE_RECOVERY	0.05
#define THROTTLE_STEP_US	INT64_C(10000000)

/*
 * The rate that holds now, given the set one.  0 (no limit) stays 0.  All
 * zeroes is a throttle that was never hit.
 */
extern double throttle_rate(const Throttle *throttle, double set_rate,
							int64_t now);

/* A throttle answer came. */
extern void throttle_hit(Throttle *throttle, int64_t now);

#endif							/* TIMPUSH_LIMITER_H */
