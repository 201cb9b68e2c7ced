/*-------------------------------------------------------------------------
 *
 * test_recent.c
 *	  Which accounts have just been sent a content: random departures against
 *	  a plain list of them, and the table while it grows and is swept.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include <time.h>
#include <unistd.h>

#include "common/hashfn.h"

#include "palloc.h"
#include "recent.h"
#include "tap.h"

#define SECOND		INT64_C(1000000)

/* So far apart are the times that are given. */
#define TURN		INT64_C(1100000)

/* Some time in the year 2026, in microseconds, as the worker's clock has it. */
#define START		INT64_C(1780000000000000)

static uint64_t seed;

/* A number within [0,n), the same in every run (xorshift64*). */
static int
random_below(int n)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return (int) (((seed * UINT64_C(2685821657736338717)) >> 33) % n);
}

/* ------------------------------------------------------------------------
 * The model: a list of all that ever happened
 * ------------------------------------------------------------------------
 */

typedef struct Event
{
	uint64_t	key;
	int64_t		at;				/* when it left, or the time that was given */
	bool		given;
} Event;

#define MAX_EVENTS	20000

static Event events[MAX_EVENTS];
static int	nevents;

static void
add_event(uint64_t key, int64_t at, bool given)
{
	events[nevents++] = (Event)
	{
		key, at, given
	};
}

/* The latest event of a kind, 0 if there is none. */
static int64_t
latest(uint64_t key, bool given)
{
	int64_t		at = 0;

	for (int i = 0; i < nevents; i++)
	{
		if (events[i].key == key && events[i].given == given && events[i].at > at)
			at = events[i].at;
	}
	return at;
}

static int64_t
model_allows(uint64_t key, int64_t now)
{
	return Max(latest(key, false) + SECOND, now);
}

static int64_t
model_reserve(uint64_t key, int64_t now)
{
	int64_t		at = Max(latest(key, false) + TURN, now);
	int64_t		given = latest(key, true);

	if (given > now && at < given + TURN)
		at = given + TURN;
	add_event(key, at, true);
	return at;
}

/* ------------------------------------------------------------------------
 * Random operations
 * ------------------------------------------------------------------------
 */

/* Where in the table the keys of a run belong. */
typedef enum Spread
{
	SPREAD_HASHED,
	SPREAD_DENSE,				/* next to each other */
	SPREAD_ONE_SLOT,			/* all in the last slot, whatever the size */
	NSPREADS
} Spread;

static uint64_t
numbered_key(Spread spread, int number)
{
	char		name[20];

	switch (spread)
	{
		case SPREAD_DENSE:
			return (uint64_t) number + 1;
		case SPREAD_ONE_SLOT:
			return ((uint64_t) number << 40) | UINT64_C(0xffffffffff);
		default:
			snprintf(name, sizeof(name), "u%d", number);
			return recent_key(number / 10, name, strlen(name));
	}
}

/* Time passes, mostly a bit, at times just a second, or many. */
static int64_t
pass_time(int64_t now, int bit)
{
	switch (random_below(200))
	{
		case 0:
			return now + random_below(30) * SECOND;
		case 1:
			return now + SECOND - 1 + random_below(3);
		case 2:
			return now + random_below(SECOND);
		default:
			return now + random_below(2) * random_below(bit);
	}
}

static int
run_random(Spread spread, int nkeys, int bit)
{
	RecentAccounts *recent = recent_create();
	int64_t		now = START;
	int			bad = 0;

	nevents = 0;
	for (int i = 0; i < 6000; i++)
	{
		uint64_t	key = numbered_key(spread, random_below(nkeys));

		switch (random_below(4))
		{
			case 0:
				bad += recent_reserve(recent, key, now) != model_reserve(key, now);
				break;
			case 1:
				recent_note(recent, key, now);
				add_event(key, now, false);
				break;
			default:
				bad += recent_allows(recent, key, now) != model_allows(key, now);
				now = pass_time(now, bit);
		}
	}
	recent_free(recent);
	return bad;
}

static void
check_random(void)
{
	static const char *const names[NSPREADS] = {"hashed", "dense", "in one slot"};
	static const int nkeys[] = {1, 3, 30, 300, 3000};

	for (int spread = 0; spread < NSPREADS; spread++)
	{
		int			bad = 0;

		for (int i = 0; i < 40; i++)
		{
			seed = (uint64_t) i + 1;
			bad += run_random((Spread) spread, nkeys[i % lengthof(nkeys)],
							  i < 20 ? 20 : 20000);
		}
		ok(bad == 0, "random operations, keys %s: as the model says (%d times not)",
		   names[spread], bad);
	}
	is_int(context_in_use(), 0, "random operations: all memory is given back");
	context_reset();
}

/* ------------------------------------------------------------------------
 * One account
 * ------------------------------------------------------------------------
 */

static void
check_times(void)
{
	RecentAccounts *recent = recent_create();
	uint64_t	key = recent_key(1, "u1", 2);

	is_int(recent_allows(recent, key, START), START, "never sent: may leave");
	recent_note(recent, key, START);
	is_int(recent_allows(recent, key, START), START + SECOND, "just sent: in a second");
	is_int(recent_allows(recent, key, START + SECOND - 1), START + SECOND,
		   "sent almost a second ago: in the rest of it");
	is_int(recent_allows(recent, key, START + SECOND), START + SECOND,
		   "sent a second ago: may leave");
	is_int(recent_allows(recent, recent_key(2, "u1", 2), START), START,
		   "another content: may leave");
	is_int(recent_allows(recent, recent_key(1, "u2", 2), START), START,
		   "another account: may leave");
	is_int(recent_allows(recent, recent_key(1, "u12", 3), START), START,
		   "an account of which it is the beginning: may leave");
	recent_note(recent, key, START + 2 * SECOND);
	is_int(recent_allows(recent, key, START + 2 * SECOND), START + 3 * SECOND,
		   "sent again: in a second again");
	context_reset();
}

static void
check_many_reserved(void)
{
	RecentAccounts *recent = recent_create();
	uint64_t	key = recent_key(1, "u1", 2);
	int			n = 0;

	recent_note(recent, key, START);
	while (n < 10000 &&
		   recent_reserve(recent, key, START + n) == START + (n + 1) * TURN)
		n++;
	is_int(n, 10000, "10,000 wait for one account: a second for each");
	is_int(recent_allows(recent, key, START + SECOND), START + SECOND,
		   "10,000 wait for one account: the first may leave in a second");
	recent_note(recent, key, START + SECOND);
	is_int(recent_reserve(recent, key, START + SECOND), START + 10001 * TURN,
		   "10,000 wait for one account: who comes then is the last");

	/* long after the sweeps have seen the entry many times */
	for (int64_t now = START; now < START + 9000 * SECOND; now += 11 * SECOND)
		recent_note(recent, recent_key(1, "u2", 2), now);
	is_int(recent_reserve(recent, key, START + 9000 * SECOND), START + 10002 * TURN,
		   "10,000 wait for one account: hours later, too");
	is_int(recent_reserve(recent, key, START + 20000 * SECOND), START + 20000 * SECOND,
		   "10,000 wait for one account: at last no more");
	context_reset();
}

/* A key of zero would be a free entry.  These bytes hash to it. */
static void
check_zero(void)
{
	const int64_t content_key = (int64_t) UINT64CONST(0xad84f28bb98ed4ef);
	RecentAccounts *recent = recent_create();
	uint64_t	key = recent_key(content_key, "bob", 3);

#ifndef WORDS_BIGENDIAN
	is_int((int64_t) hash_bytes_extended((const unsigned char *) "bob", 3,
										 (uint64) content_key), 0,
		   "an account whose hash is zero");
#endif
	ok(key != 0, "an account whose hash is zero: its key is not");
	recent_note(recent, key, START);
	is_int(recent_allows(recent, key, START), START + SECOND,
		   "an account whose hash is zero: is remembered");
	is_int(recent_reserve(recent, key, START), START + TURN,
		   "an account whose hash is zero: is given a time");
	is_int(recent_reserve(recent, key, START), START + 2 * TURN,
		   "an account whose hash is zero: and another one");
	ok(recent_key(0, "", 0) != 0, "nothing at all has a key");
	context_reset();
}

/* The same bytes wherever they are, and all of them. */
static void
check_keys(void)
{
	char		odd[16] = "xuser-12345678";
	uint64_t	key = recent_key(-7, "user-12345678", 13);
	int			same = 0;

	ok(recent_key(-7, odd + 1, 13) == key, "a key: the same for the same bytes elsewhere");
	for (int i = 1; i < 14; i++)
	{
		odd[i] ^= 1;
		same += recent_key(-7, odd + 1, 13) == key;
		odd[i] ^= 1;
		same += recent_key(-7, odd + 1, i - 1) == key;
	}
	for (int bit = 0; bit < 64; bit++)
		same += recent_key((int64_t) ((uint64_t) -7 ^ (UINT64_C(1) << bit)),
						   odd + 1, 13) == key;
	is_int(same, 0, "a key: another one for other bytes or another content");
}

/* ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

/* A burst within a second is remembered wholly, and then forgotten. */
static void
check_burst(int n)
{
	RecentAccounts *recent = recent_create();
	size_t		empty = context_in_use();
	size_t		full;
	int			known = 0;
	int			before = 0;

	for (int i = 0; i < n; i++)
	{
		before += recent_allows(recent, numbered_key(SPREAD_HASHED, i), START + i) != START + i;
		recent_note(recent, numbered_key(SPREAD_HASHED, i), START + i);
	}
	for (int i = 0; i < n; i++)
		known += recent_allows(recent, numbered_key(SPREAD_HASHED, i),
							   START + n) == START + i + SECOND;
	is_int(before, 0, "a burst: no account is taken for another one");
	is_int(known, n, "a burst: every account is remembered");
	full = context_in_use();
	recent_note(recent, 1, START + 20 * SECOND);
	is_int(context_in_use(), empty, "a burst: its memory is given back");
	ok(full > empty, "a burst: had needed more");
	is_int(recent_allows(recent, 1, START + 20 * SECOND), START + 21 * SECOND,
		   "a burst: what came then is remembered");
	context_reset();
}

/* What goes on for long takes memory for the last seconds only. */
static void
check_stream(int per_second, int seconds)
{
	RecentAccounts *recent = recent_create();
	clock_t		start = clock();
	int64_t		step = SECOND / per_second;
	int			n = per_second * seconds;
	int			bad = 0;
	size_t		most = 0;

	for (int i = 0; i < n; i++)
	{
		int64_t		now = START + i * step;

		recent_note(recent, numbered_key(SPREAD_HASHED, i), now);
		most = Max(most, context_in_use());
		if (i >= per_second)
		{
			bad += recent_allows(recent, numbered_key(SPREAD_HASHED, i - per_second), now) != now;
			bad += recent_allows(recent, numbered_key(SPREAD_HASHED, i - per_second + 1),
								 now) != now + step;
		}
	}
	is_int(bad, 0, "a long stream: the last second is remembered");
	/* a table at least a quarter full of what still counts, grown once more */
	ok(most < sizeof(RecentEntry) * per_second * 20,
	   "a long stream: takes memory for a few seconds (%zu)", most);
	ok(clock() - start < 20 * CLOCKS_PER_SEC, "a long stream: fast");
	printf("# %.3f s\n", (double) (clock() - start) / CLOCKS_PER_SEC);
	context_reset();
}

/* ------------------------------------------------------------------------
 * The clock
 * ------------------------------------------------------------------------
 */

/*
 * Somebody sets the clock back after a push has left.  One second later by any
 * other clock a second push may leave at the latest, and not earlier if the
 * clock was set back by less than a second.
 */
static void
check_set_back(int64_t by, int64_t uptime, const char *name)
{
	RecentAccounts *recent = recent_create();
	uint64_t	key = recent_key(1, "u1", 2);
	int64_t		left = START + uptime;
	int64_t		allowed;

	recent_note(recent, recent_key(1, "u2", 2), START);
	recent_note(recent, key, left);
	/* another account makes the table notice */
	recent_note(recent, recent_key(1, "u3", 2), left - by);
	allowed = recent_allows(recent, key, left - by) - (left - by);
	ok(allowed >= 0 && allowed <= 2 * SECOND, "set back by %s: waits %lld us",
	   name, (long long) allowed);
	if (by < SECOND)
		ok(allowed >= SECOND, "set back by %s: waits for a second", name);
	recent_note(recent, key, left - by);
	is_int(recent_allows(recent, key, left - by), left - by + SECOND,
		   "set back: who leaves then is remembered");
	is_int(recent_reserve(recent, key, left - by), left - by + TURN,
		   "set back: who waits then does so for a second");
	context_reset();
}

static void
check_clock(void)
{
	RecentAccounts *recent;
	uint64_t	key = recent_key(1, "u1", 2);

	check_set_back(1000, 0, "a millisecond");
	check_set_back(999999, 5 * SECOND, "almost a second");
	check_set_back(3 * SECOND, 0, "three seconds");
	check_set_back(3 * SECOND, 9 * SECOND, "three seconds, after nine");
	check_set_back(3600 * SECOND, 0, "an hour");
	check_set_back(3600 * SECOND, 9 * SECOND, "an hour, after nine seconds");

	/* what was given for a time that is far away now is not waited for */
	recent = recent_create();
	recent_note(recent, key, START);
	for (int i = 0; i < 100; i++)
		recent_reserve(recent, key, START);
	recent_note(recent, key, START - 3600 * SECOND);
	is_int(recent_reserve(recent, key, START - 3600 * SECOND), START - 3600 * SECOND + TURN,
		   "set back by an hour: times that were given are forgotten");

	/* set forward, all that is known is old */
	recent_note(recent, key, START);
	is_int(recent_allows(recent, key, START + 3600 * SECOND), START + 3600 * SECOND,
		   "set forward by an hour: nobody waits");
	context_reset();
}

/* What was noted did not leave after all. */
static void
check_forget(void)
{
	RecentAccounts *recent = recent_create();
	uint64_t	early = recent_key(1, "early", 5);
	uint64_t	late = recent_key(1, "late", 4);

	recent_note(recent, early, START);
	recent_note(recent, late, START + 1);
	recent_forget(recent, START + 1);
	is_int(recent_allows(recent, early, START + 1), START + SECOND,
		   "forget: what left before still counts");
	is_int(recent_allows(recent, late, START + 1), START + 1,
		   "forget: what has not left does not");
	context_reset();
}

int
main(void)
{
	/* a search in a table without a free place would never end */
	alarm(300);
	check_random();
	check_times();
	check_many_reserved();
	check_zero();
	check_keys();
	check_burst(600);
	check_burst(100000);
	check_stream(1000, 60);
	check_stream(20000, 30);
	check_clock();
	check_forget();
	return done_testing();
}
