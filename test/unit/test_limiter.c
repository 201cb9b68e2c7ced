/*-------------------------------------------------------------------------
 *
 * test_limiter.c
 *	  Properties of the token buckets, over long simulated runs.
 *
 *-------------------------------------------------------------------------
 */
#include <math.h>
#include <stdlib.h>

#include "limiter.h"
#include "tap.h"

#define SECOND		INT64_C(1000000)

/* Some time in the year 2026, in microseconds, as the worker's clock has it. */
#define START		INT64_C(1780000000000000)

static uint64_t seed = 1;

/* A number within [0,1), the same in every run (xorshift64*). */
static double
random_share(void)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return (double) ((seed * UINT64_C(2685821657736338717)) >> 11) /
		9007199254740992.0;
}

/* How late a caller wakes up, in microseconds. */
typedef enum Lateness
{
	PUNCTUAL,
	JITTERED,					/* anything up to the share of an interval */
	ALWAYS_LATE,				/* by the whole share */
	SOMETIMES_IDLE				/* punctual, but now and then long idle */
} Lateness;

static int64_t
lateness(Lateness kind, double interval, double share)
{
	switch (kind)
	{
		case JITTERED:
			return (int64_t) (random_share() * share * interval);
		case ALWAYS_LATE:
			return (int64_t) (share * interval);
		case SOMETIMES_IDLE:
			if (random_share() < 0.05)
				return (int64_t) (random_share() * 40 * interval);
			return random_share() < 0.5 ? (int64_t) (random_share() * interval) : 0;
		default:
			return 0;
	}
}

/*
 * Take n single units as a worker would: ask, sleep as told, wake up late,
 * ask again.  Fills times.
 */
static void
simulate(int64_t *times, int n, double rate, Lateness kind, double share)
{
	Bucket		bucket = {0};
	int64_t		now = START;
	double		interval = 1e6 / rate;

	for (int i = 0; i < n; i++)
	{
		int64_t		wait = bucket_wait(&bucket, rate, now);

		if (wait > 0 || kind == SOMETIMES_IDLE)
			now += wait + lateness(kind, interval, share);
		while ((wait = bucket_wait(&bucket, rate, now)) > 0)
			now += wait;
		bucket_take(&bucket, rate, 1, now);
		times[i] = now;
	}
}

/* The most units within any half-open window of one second. */
static int
fullest_second(const int64_t *times, int n)
{
	int			most = 0;
	int			first = 0;

	for (int i = 0; i < n; i++)
	{
		while (times[i] - times[first] >= SECOND)
			first++;
		if (i - first + 1 > most)
			most = i - first + 1;
	}
	return most;
}

static void
check_windows_and_means(void)
{
	static const double rates[] = {
		0.1, 0.5, 1, 2, 3, 7, 10, 12.5, 29.97, 30, 40, 100, 333, 500, 3000
	};
	static const char *const names[] = {"punctual", "jittered", "late", "idle"};
	int			n = 20000;
	int64_t    *times = malloc(n * sizeof(*times));

	for (size_t r = 0; r < sizeof(rates) / sizeof(rates[0]); r++)
	{
		for (int kind = PUNCTUAL; kind <= SOMETIMES_IDLE; kind++)
		{
			double		rate = rates[r];
			int			most;
			double		mean;

			simulate(times, n, rate, kind, 0.8);
			most = fullest_second(times, n);
			mean = (n - 1) * 1e6 / (double) (times[n - 1] - times[0]);
			ok(most <= (int) ceil(rate) + 1,
			   "%g/s %s: at most rate + 1 a second (%d)", rate, names[kind],
			   most);
			if (kind != SOMETIMES_IDLE)
				ok(fabs(mean / rate - 1) < 0.01,
				   "%g/s %s: the mean is kept (%g)", rate, names[kind], mean);
		}
	}
	free(times);
}

/* The bound holds however callers come, also with rates that change. */
static void
check_random_runs(void)
{
	int			n = 5000;
	int64_t    *times = malloc(n * sizeof(*times));
	int			bad = 0;

	for (int run = 0; run < 300; run++)
	{
		double		rate = 1 + floor(random_share() * 100);

		simulate(times, n, rate, JITTERED, random_share() * 3);
		if (fullest_second(times, n) > (int) rate + 1)
			bad++;
	}
	is_int(bad, 0, "300 random runs: at most rate + 1 a second");

	/* the highest rate of the run is the bound while rates wander */
	bad = 0;
	for (int run = 0; run < 300; run++)
	{
		Bucket		bucket = {0};
		int64_t		now = START;
		double		highest = 20 + floor(random_share() * 100);
		double		rate = highest;

		for (int i = 0; i < n; i++)
		{
			int64_t		wait;

			if (random_share() < 0.1)
				rate = highest * (0.02 + 0.98 * random_share());
			while ((wait = bucket_wait(&bucket, rate, now)) > 0)
				now += wait + (int64_t) (random_share() * 1e6 / rate);
			bucket_take(&bucket, rate, 1, now);
			times[i] = now;
		}
		if (fullest_second(times, n) > (int) highest + 1)
			bad++;
	}
	is_int(bad, 0, "300 runs with wandering rates: never over the highest");
	free(times);
}

static void
check_rate_changes(void)
{
	Bucket		bucket = {0};
	int64_t		now = START;

	is_int(bucket_wait(&bucket, 10, now), 0, "a fresh bucket owes nothing");
	bucket_take(&bucket, 0.1, 1, now);
	ok(bucket_wait(&bucket, 0.1, now) > 0, "a slow one makes wait");
	ok(bucket_wait(&bucket, 10, now) <= SECOND / 10,
	   "a higher rate acts at once");
	is_int(bucket_wait(&bucket, 10, now + SECOND / 10), 0,
		   "and does not move away while it is waited for");
	ok(bucket_wait(&bucket, 0.01, now) > bucket_wait(&bucket, 0.1, now),
	   "so does a lower one");
	is_int(bucket_wait(&bucket, 0, now), 0, "no limit: no wait");

	bucket_take(&bucket, 0, 1000, now);
	is_int(bucket_wait(&bucket, 0, now), 0, "no limit: nothing owed");
	is_int(bucket_wait(&bucket, 5, now), 0, "nor after a limit came back");
	bucket_take(&bucket, 5, 1, now);
	ok(bucket_wait(&bucket, 5, now) > 0, "then the limit holds");
}

static void
check_odd_rates(void)
{
	static const double rates[] = {1e9, 1e300, 1e-9, 1e-300, -1};
	Bucket		bucket = {0};
	int64_t		now = START;

	for (int i = 0; i < 100000; i++)
	{
		now += bucket_wait(&bucket, 1e9, now);
		bucket_take(&bucket, 1e9, 500, now);
	}
	ok(now - START < SECOND, "50 million units at a billion a second (%lld us)",
	   (long long) (now - START));

	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++)
	{
		bucket_take(&bucket, rates[i], 1e6, now);
		for (size_t j = 0; j < sizeof(rates) / sizeof(rates[0]); j++)
			if (bucket_wait(&bucket, rates[j], now) < 0)
				ok(false, "negative wait for %g", rates[j]);
	}
	now += bucket_wait(&bucket, 10, now);
	ok(bucket_wait(&bucket, 10, now) == 0, "an end comes to any debt");
	is_int(bucket_wait(&bucket, NAN, now), 0, "NaN is no limit");
	bucket_take(&bucket, INFINITY, 1, now);
	is_int(bucket_wait(&bucket, 10, now), 0, "infinity is no limit");
}

static void
check_clock(void)
{
	Bucket		bucket = {0};
	int64_t		now = START;
	int64_t		back = START - 3600 * SECOND;
	int64_t		waited = 0;

	bucket_take(&bucket, 10, 1, now);
	is_int(bucket_wait(&bucket, 10, back), 0, "an hour back: one may leave");
	bucket_take(&bucket, 10, 1, back);
	ok(bucket_wait(&bucket, 10, back) > 0, "but not two");
	ok(bucket_wait(&bucket, 10, back) <= SECOND / 5,
	   "and the pace is the old one on the new clock");

	/* a small step is waited for, and cannot be used to gain a unit */
	now = back + SECOND;
	bucket_take(&bucket, 10, 1, now);
	ok(bucket_wait(&bucket, 10, now - 1) > 0, "a microsecond back gains nothing");
	while (bucket_wait(&bucket, 10, now - SECOND / 2 + waited) > 0)
		waited += bucket_wait(&bucket, 10, now - SECOND / 2 + waited);
	ok(waited <= SECOND, "half a second back costs no more than that");

	now += 1000 * 86400 * SECOND;
	bucket_take(&bucket, 10, 1, now);
	ok(bucket_wait(&bucket, 10, now) <= SECOND / 10, "a jump ahead: no stall");
	bucket_take(&bucket, 10, 1, now);
	ok(bucket_wait(&bucket, 10, now) >= SECOND / 10, "and no burst");
}

/* Takes of many units, as for the accounts of a call. */
static void
check_many_units(void)
{
	Bucket		bucket = {0};
	int64_t		now = START;
	double		rate = 5000;
	int			calls = 2000;
	double		mean;

	bucket_take(&bucket, 30, 500, now);
	ok(llabs(bucket_wait(&bucket, 30, now) - 500 * SECOND / 30) <= SECOND / 30,
	   "500 units at 30/s are paid for in 17 seconds");

	/* timers that are up to five milliseconds late do not cost any rate */
	memset(&bucket, 0, sizeof(bucket));
	for (int i = 0; i < calls; i++)
	{
		now += bucket_wait(&bucket, rate, now) +
			(int64_t) (random_share() * 5000);
		bucket_take(&bucket, rate, 500, now);
	}
	mean = 500.0 * calls * SECOND / (double) (now - START);
	ok(fabs(mean / rate - 1) < 0.01, "the mean of 500 at a time is kept (%g)",
	   mean);
}

static void
check_throttle(void)
{
	Throttle	throttle = {0};
	int64_t		now = START;

	ok(throttle_rate(&throttle, 40, now) == 40, "never hit: the set rate");
	ok(throttle_rate(&throttle, 0, now) == 0, "no limit stays none");
	throttle_hit(&throttle, now);
	ok(fabs(throttle_rate(&throttle, 40, now) - 28) < 1e-9, "a hit: 0.7");
	ok(throttle_rate(&throttle, 0, now) == 0, "no limit stays none when hit");
	ok(fabs(throttle_rate(&throttle, 40, now + 10 * SECOND - 1) - 28) < 1e-9,
	   "nothing recovers before a step is over");
	ok(fabs(throttle_rate(&throttle, 40, now + 10 * SECOND) - 30) < 1e-9,
	   "a twentieth of the set rate after ten seconds");
	ok(throttle_rate(&throttle, 40, now + 60 * SECOND) == 40,
	   "all of it after a minute");
	ok(throttle_rate(&throttle, 40, now + 86400 * SECOND) == 40,
	   "and no more than all");

	throttle_hit(&throttle, now + 10 * SECOND);
	ok(fabs(throttle_rate(&throttle, 100, now + 10 * SECOND) - 52.5) < 1e-9,
	   "a second hit takes from what has recovered");
	for (int i = 0; i < 1000; i++)
		throttle_hit(&throttle, now);
	ok(fabs(throttle_rate(&throttle, 100, now) - 2) < 1e-9, "there is a floor");
	ok(throttle_rate(&throttle, 100, now + 200 * SECOND) == 100,
	   "that recovers too");
	ok(throttle_rate(&throttle, 100, now - 86400 * SECOND) == 100,
	   "a clock that was set back does not throttle for a day");
	ok(throttle_rate(&throttle, 100, now - SECOND) < 3,
	   "a small step back frees nothing");
}

int
main(void)
{
	check_windows_and_means();
	check_random_runs();
	check_rate_changes();
	check_odd_rates();
	check_clock();
	check_many_units();
	check_throttle();
	return done_testing();
}
