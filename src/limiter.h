/*-------------------------------------------------------------------------
 *
 * limiter.h
 *	  Evenly paced token buckets of depth one, and what slows them down.
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
 * catch up by half a unit, so that no window of one second ever sees
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
 * Answers that say "too many".  Each makes the app pause; the share of the
 * set rate that it may use falls by THROTTLE_FACTOR, at most once in
 * THROTTLE_APART_US because calls that were in flight together tell the same,
 * and recovers by THROTTLE_RECOVERY every THROTTLE_STEP_US.  All zeroes is a
 * throttle that was never hit.
 */
typedef struct Throttle
{
	double		factor;			/* of the set rate, (0,1]; 0 means 1 */
	int64_t		since;			/* when factor was last lowered */
	int64_t		paused_at;
	int64_t		pause;			/* how long from then; 0: not at all */
} Throttle;

#define THROTTLE_FACTOR		0.7
#define THROTTLE_FLOOR		0.02
#define THROTTLE_RECOVERY	0.05
#define THROTTLE_STEP_US	INT64_C(10000000)
#define THROTTLE_APART_US	INT64_C(1000000)

/* The share of the set rate that may be used now, (0,1]. */
extern double throttle_share(const Throttle *throttle, int64_t now);

/* Microseconds until the pause is over; 0 if there is none. */
extern int64_t throttle_wait(const Throttle *throttle, int64_t now);

/* A throttle answer came that asks for a pause of so many microseconds. */
extern void throttle_hit(Throttle *throttle, int64_t pause, int64_t now);

/* End the pause; the share stays. */
extern void throttle_resume(Throttle *throttle);

/*
 * The share of the rate after a long stop: RAMP_START at first, then twice as
 * much every RAMP_STEP_US, until it is all.  All zeroes is no ramp.
 */
typedef struct Ramp
{
	int64_t		since;			/* when it began; 0: there is none */
} Ramp;

#define RAMP_START			0.1
#define RAMP_STEP_US		INT64_C(5000000)

/* What has waited for longer than this has waited for a long stop to end. */
#define RAMP_LONG_STOP_US	INT64_C(300000000)

extern double ramp_share(const Ramp *ramp, int64_t now);

/*
 * What kept calls from leaving is over, and the oldest of what waits could
 * have left at "oldest": begin if that is long ago.  True if so.
 */
extern bool ramp_begin(Ramp *ramp, int64_t oldest, int64_t now);

/* Units a second that a server is set to, or an app; 0: no limit. */
typedef struct Rates
{
	double		calls;
	double		accounts;
} Rates;

/* The lower of each; no limit is higher than any. */
extern Rates rates_lowest(Rates a, Rates b);

/* May more leave under b than under a, in either of the two? */
extern bool rates_rise(Rates a, Rates b);

/* All that holds back the calls of an app; all zeroes is a fresh one. */
typedef struct Limiter
{
	Bucket		calls;
	Bucket		accounts;
	Throttle	throttle;
	Ramp		ramp;
} Limiter;

/* What a limiter allows now. */
typedef struct Allowance
{
	Rates		rates;			/* as they hold now; 0: no limit */
	double		share;			/* of what is set, (0,1] */
	int64_t		wait;			/* microseconds until a call may leave, or it
								 * is worth asking again; 0: it may now */
	bool		paused;			/* that is because of a throttle answer */
} Allowance;

/*
 * Ask what may leave under the set rates; changes nothing.  A limiter without
 * a set rate never waits but for a pause; its share then is one of the calls
 * that may be in flight.
 */
extern void limiter_ask(const Limiter *limiter, Rates set, int64_t now,
						Allowance *allowance);

/* A call with so many accounts leaves now; only after a wait of 0. */
extern void limiter_take(Limiter *limiter, Rates set, int accounts,
						 int64_t now);

#endif							/* TIMPUSH_LIMITER_H */
