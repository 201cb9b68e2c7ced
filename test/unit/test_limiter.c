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

			simulate(times, n, rate, kind, 0.45);
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

/* On the way to the peer the time varies by a little less than half a unit. */
static void
check_arrivals(void)
{
	static const double rates[] = {1, 10, 30, 40, 100, 333};
	int			n = 20000;
	int64_t    *times = malloc(n * sizeof(*times));

	for (size_t r = 0; r < sizeof(rates) / sizeof(rates[0]); r++)
	{
		double		rate = rates[r];
		int			most;

		simulate(times, n, rate, JITTERED, 1);
		/* the order stays, for the next one left half a unit later at least */
		for (int i = 0; i < n; i++)
			times[i] += (int64_t) (random_share() * 0.49 * 1e6 / rate);
		most = fullest_second(times, n);
		ok(most <= (int) ceil(rate) + 1,
		   "%g/s: at most rate + 1 arrive in a second (%d)", rate, most);
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

	ok(throttle_share(&throttle, now) == 1, "never hit: all of the rate");
	throttle_hit(&throttle, SECOND, now);
	ok(fabs(throttle_share(&throttle, now) - 0.7) < 1e-9, "a hit: 0.7");
	for (int i = 0; i < 30; i++)
		throttle_hit(&throttle, SECOND, now + i * SECOND / 32);
	ok(fabs(throttle_share(&throttle, now) - 0.7) < 1e-9,
	   "answers within a second tell the same");
	ok(fabs(throttle_share(&throttle, now + 10 * SECOND - 1) - 0.7) < 1e-9,
	   "nothing recovers before a step is over");
	ok(fabs(throttle_share(&throttle, now + 10 * SECOND) - 0.75) < 1e-9,
	   "a twentieth of the set rate after ten seconds");
	ok(throttle_share(&throttle, now + 60 * SECOND) == 1,
	   "all of it after a minute");
	ok(throttle_share(&throttle, now + 86400 * SECOND) == 1,
	   "and no more than all");

	throttle_hit(&throttle, SECOND, now + 10 * SECOND);
	ok(fabs(throttle_share(&throttle, now + 10 * SECOND) - 0.525) < 1e-9,
	   "a second hit takes from what has recovered");
	now += 10 * SECOND;
	for (int i = 0; i < 20; i++)
		throttle_hit(&throttle, SECOND, now += SECOND);
	ok(fabs(throttle_share(&throttle, now) - THROTTLE_FLOOR) < 1e-9,
	   "there is a floor");
	ok(throttle_share(&throttle, now + 200 * SECOND) == 1, "that recovers too");
	ok(throttle_share(&throttle, now - 86400 * SECOND) == 1,
	   "a clock that was set back does not throttle for a day");
	ok(throttle_share(&throttle, now - SECOND) < 0.03,
	   "a small step back frees nothing");
	throttle_hit(&throttle, SECOND, now - 86400 * SECOND);
	ok(fabs(throttle_share(&throttle, now - 86400 * SECOND) - 0.7) < 1e-9,
	   "nor does it keep a hit from counting");
}

static void
check_pause(void)
{
	Throttle	throttle = {0};
	int64_t		now = START;

	is_int(throttle_wait(&throttle, now), 0, "never hit: no pause");
	throttle_hit(&throttle, 2 * SECOND, now);
	is_int(throttle_wait(&throttle, now), 2 * SECOND, "a hit: a pause");
	is_int(throttle_wait(&throttle, now + SECOND), SECOND, "that passes");
	is_int(throttle_wait(&throttle, now + 2 * SECOND), 0, "and ends");
	throttle_hit(&throttle, SECOND / 2, now + SECOND / 10);
	is_int(throttle_wait(&throttle, now + SECOND), SECOND,
		   "a hit that asks for less does not shorten it");
	throttle_hit(&throttle, 300 * SECOND, now + SECOND / 5);
	is_int(throttle_wait(&throttle, now + SECOND / 5), 300 * SECOND,
		   "one that asks for more extends it, counted or not");
	is_int(throttle_wait(&throttle, now - 3600 * SECOND), 0,
		   "a clock that was set back ends it");
	ok(throttle_wait(&throttle, now - SECOND / 2) <= 300 * SECOND,
	   "a small step back does not make it longer");
	throttle_resume(&throttle);
	is_int(throttle_wait(&throttle, now + SECOND), 0, "it can be ended");
	ok(throttle_share(&throttle, now + SECOND) < 0.71, "which leaves the share");
	throttle_hit(&throttle, 0, now + 10 * SECOND);
	is_int(throttle_wait(&throttle, now + 10 * SECOND), 0,
		   "Retry-After: 0 is no pause");
}

static void
check_ramp(void)
{
	static const double shares[] = {0.1, 0.2, 0.4, 0.8, 1, 1, 1};
	Ramp		ramp = {0};
	int64_t		now = START;

	ok(ramp_share(&ramp, now) == 1, "no ramp: all of the rate");
	ok(!ramp_begin(&ramp, now - 299 * SECOND, now) && ramp_share(&ramp, now) == 1,
	   "less than five minutes is no long stop");
	ok(!ramp_begin(&ramp, now + 3600 * SECOND, now), "nor is the future");
	ok(ramp_begin(&ramp, now - 300 * SECOND, now), "five minutes are one");
	for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++)
		ok(fabs(ramp_share(&ramp, now + i * 5 * SECOND) - shares[i]) < 1e-9 &&
		   fabs(ramp_share(&ramp, now + (i + 1) * 5 * SECOND - 1) - shares[i]) < 1e-9,
		   "%g from second %d on", shares[i], (int) i * 5);
	ok(ramp_share(&ramp, now + INT64_C(1000) * 86400 * SECOND) == 1,
	   "however long ago");
	ok(ramp_share(&ramp, now - 3600 * SECOND) == 1,
	   "a clock that was set back ends it");
	ok(ramp_share(&ramp, now - SECOND / 2) == RAMP_START,
	   "a small step back gains nothing");
	ok(ramp_begin(&ramp, now, now + 400 * SECOND) &&
	   ramp_share(&ramp, now + 400 * SECOND) == RAMP_START, "another stop, another ramp");
}

static Rates
rates_of(double calls, double accounts)
{
	Rates		rates = {calls, accounts};

	return rates;
}

static void
check_lowest(void)
{
	static const struct
	{
		Rates		a;
		Rates		b;
		Rates		lowest;
		bool		rise;
	}			cases[] = {
		{{0, 0}, {0, 0}, {0, 0}, false},
		{{10, 0}, {0, 0}, {10, 0}, true},
		{{0, 0}, {10, 0}, {10, 0}, false},
		{{10, 0}, {30, 0}, {10, 0}, true},
		{{30, 0}, {10, 0}, {10, 0}, false},
		{{10, 0}, {10, 0}, {10, 0}, false},
		{{10, 500}, {30, 0}, {10, 500}, true},
		{{30, 100}, {10, 500}, {10, 100}, true},
		{{0, 100}, {10, 0}, {10, 100}, true},
		{{-1, NAN}, {INFINITY, 5}, {0, 5}, false},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		Rates		one = rates_lowest(cases[i].a, cases[i].b);
		Rates		other = rates_lowest(cases[i].b, cases[i].a);

		ok(one.calls == cases[i].lowest.calls &&
		   one.accounts == cases[i].lowest.accounts &&
		   other.calls == one.calls && other.accounts == one.accounts,
		   "lowest of %g/%g and %g/%g", cases[i].a.calls, cases[i].a.accounts,
		   cases[i].b.calls, cases[i].b.accounts);
		ok(rates_rise(cases[i].a, cases[i].b) == cases[i].rise,
		   "from the one to the other more may leave: %d", cases[i].rise);
	}
}

static Allowance
asked(const Limiter *limiter, Rates set, int64_t now)
{
	Allowance	allowance;

	/* nothing of what was there before may remain */
	memset(&allowance, 0x55, sizeof(allowance));
	limiter_ask(limiter, set, now, &allowance);
	return allowance;
}

static void
check_limiter(void)
{
	Limiter		limiter = {0};
	Rates		set = {10, 1000};
	int64_t		now = START;
	Allowance	allowance = asked(&limiter, set, now);

	ok(allowance.wait == 0 && allowance.share == 1 && !allowance.paused &&
	   allowance.rates.calls == 10 && allowance.rates.accounts == 1000,
	   "a fresh limiter allows all that is set");
	limiter_take(&limiter, set, 1, now);
	limiter_take(&limiter, set, 1, now);
	ok(asked(&limiter, set, now).wait > SECOND / 10, "calls make wait");
	now += SECOND;
	limiter_take(&limiter, set, 500, now);
	ok(llabs(asked(&limiter, set, now).wait - SECOND / 2) < SECOND / 20,
	   "so do accounts, whichever is longer");
	is_int(asked(&limiter, rates_of(0, 0), now).wait, 0, "no limit: no wait");

	/* throttled, everything is less, and nothing leaves during the pause */
	throttle_hit(&limiter.throttle, 30 * SECOND, now);
	allowance = asked(&limiter, set, now);
	ok(allowance.wait == 30 * SECOND && allowance.paused &&
	   fabs(allowance.share - 0.7) < 1e-9 &&
	   fabs(allowance.rates.calls - 7) < 1e-9 &&
	   fabs(allowance.rates.accounts - 700) < 1e-9, "a throttle answer");
	allowance = asked(&limiter, rates_of(0, 0), now);
	ok(allowance.wait == 30 * SECOND && allowance.rates.calls == 0 &&
	   allowance.rates.accounts == 0 && fabs(allowance.share - 0.7) < 1e-9,
	   "without a limit: a pause, and no limit after it");
	now += 30 * SECOND;
	ok(!asked(&limiter, set, now).paused, "the pause ends");

	/* after a long stop it begins slowly, from what throttling has left */
	ramp_begin(&limiter.ramp, now - 400 * SECOND, now);
	allowance = asked(&limiter, set, now);
	ok(fabs(allowance.share - 0.085) < 1e-9 &&
	   fabs(allowance.rates.calls - 0.85) < 1e-9, "a ramp of the lowered rate");
	now += 60 * SECOND;
	ok(asked(&limiter, set, now).share == 1, "all of it is over in the end");

	/* what is waited for under a low share may come earlier */
	memset(&limiter, 0, sizeof(limiter));
	set = rates_of(0.5, 0);
	ramp_begin(&limiter.ramp, now - 400 * SECOND, now);
	limiter_take(&limiter, set, 1, now);
	allowance = asked(&limiter, set, now);
	ok(allowance.wait > 0 && allowance.wait <= RAMP_STEP_US && !allowance.paused,
	   "nobody is told to wait past the next step of the share");
	set = rates_of(0.05, 0);
	limiter_take(&limiter, set, 1, now += 60 * SECOND);
	limiter_take(&limiter, set, 1, now);
	ok(asked(&limiter, set, now).wait > 20 * SECOND,
	   "nor asked to come early when there is none");
}

/*
 * Servers of one app, with rates of their own, that ask in turn: together
 * they keep to the lowest.
 */
static void
check_sharing(void)
{
	Limiter		limiter = {0};
	Rates		set = rates_lowest(rates_of(40, 0), rates_of(15, 3000));
	int64_t		now = START;
	int			n = 3000;
	int64_t    *times = malloc(n * sizeof(*times));
	int64_t		accounts = 0;

	for (int i = 0; i < n; i++)
	{
		int			size = 1 + (int) (random_share() * 300);
		int64_t		wait;

		while ((wait = asked(&limiter, set, now).wait) > 0)
			now += wait + (int64_t) (random_share() * 3000);
		limiter_take(&limiter, set, size, now);
		accounts += size;
		times[i] = now;
	}
	ok(fullest_second(times, n) <= 16, "two servers of an app: the lowest rate + 1 (%d)",
	   fullest_second(times, n));
	ok((double) accounts * SECOND / (double) (now - START) < 3030,
	   "and the accounts of the one that limits them");
	free(times);
}

/* Through a ramp no second sees more than its share, plus one. */
static void
check_ramp_run(void)
{
	Limiter		limiter = {0};
	Rates		set = {40, 0};
	int64_t		now = START;
	int			counts[25] = {0};

	ramp_begin(&limiter.ramp, now - 301 * SECOND, now);
	while (now < START + 25 * SECOND)
	{
		now += asked(&limiter, set, now).wait + (int64_t) (random_share() * 2000);
		if (asked(&limiter, set, now).wait > 0 || now >= START + 25 * SECOND)
			continue;
		limiter_take(&limiter, set, 1, now);
		counts[(now - START) / SECOND]++;
	}
	ok(counts[0] <= 5 && counts[0] >= 3 && counts[4] <= 5, "4 a second at first (%d)",
	   counts[0]);
	ok(counts[6] <= 9 && counts[6] >= 7, "then 8 (%d)", counts[6]);
	ok(counts[12] <= 17 && counts[12] >= 15, "then 16 (%d)", counts[12]);
	ok(counts[17] <= 33 && counts[17] >= 31, "then 32 (%d)", counts[17]);
	ok(counts[22] <= 41 && counts[22] >= 39, "then 40 (%d)", counts[22]);
}

int
main(void)
{
	check_windows_and_means();
	check_arrivals();
	check_random_runs();
	check_rate_changes();
	check_odd_rates();
	check_clock();
	check_many_units();
	check_throttle();
	check_pause();
	check_ramp();
	check_lowest();
	check_limiter();
	check_sharing();
	check_ramp_run();
	return done_testing();
}
