/*-------------------------------------------------------------------------
 *
 * test_breaker.c
 *	  When the circuit breaker opens and closes: the rules one by one, and
 *	  random histories against a plain model.
 *
 *-------------------------------------------------------------------------
 */
#include <stdint.h>

#include "breaker.h"
#include "tap.h"

#define SECOND	INT64_C(1000000)
#define START	(INT64_C(1780000000) * SECOND)

#define MAX_EVENTS	4000

static uint64_t seed = 1;

/* A number within [0,n), the same in every run (xorshift64*). */
static int
random_below(int n)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return (int) (((seed * UINT64_C(2685821657736338717)) >> 33) % n);
}

/* Requests that end one after the other, "step" apart; returns the openings. */
static int
run(Breaker *breaker, const char *results, int64_t *now, int64_t step)
{
	int			openings = 0;

	for (const char *p = results; *p != '\0'; p++)
	{
		*now += step;
		openings += breaker_note(breaker, *p == 'f', *now - 1000, *now);
	}
	return openings;
}

static int
opens_with(const char *results, int64_t step)
{
	Breaker		breaker = {.openings = 0};
	int64_t		now = START;

	return run(&breaker, results, &now, step);
}

static void
check_opening(void)
{
	is_int(opens_with("ffff", SECOND), 0, "four failures in a row do not open it");
	is_int(opens_with("fffff", SECOND), 1, "five do");
	is_int(opens_with("fffff", 3600 * SECOND), 1, "however long they take");
	is_int(opens_with("ffffsffff", 3600 * SECOND), 0, "a success in between counts");
	is_int(opens_with("sfsfsfsfsf", SECOND), 1, "half of ten opens it");
	is_int(opens_with("sfsfsfsfs", SECOND), 0, "half of nine does not");
	is_int(opens_with("sfsfsfsfsf", 4 * SECOND), 0, "nor half of ten in 40 seconds");
	is_int(opens_with("sfsfsfsfsfsfsf", 29 * SECOND / 10), 1, "but of those in 30");
	is_int(opens_with("ssssssssssffsffsffsff", SECOND), 0, "less than half of twenty");
	is_int(opens_with("ssssssssssffsffsffsffsff", SECOND), 1,
		   "only the last twenty count");
	is_int(opens_with("ssssssssssssssssssssffff", SECOND), 0, "a few of many do not");
}

static void
check_open(void)
{
	Breaker		breaker = {.openings = 0};
	int64_t		now = START;
	int64_t		spans[] = {5, 10, 20, 40, 80, 120, 120, 120};
	int			wrong = 0;

	for (int i = 0; i < 4; i++)
		(void) breaker_note(&breaker, true, now, now);
	for (size_t i = 0; i < sizeof(spans) / sizeof(spans[0]); i++)
	{
		wrong += !breaker_note(&breaker, true, now, now);
		wrong += breaker.open_until != now + spans[i] * SECOND;
		wrong += !breaker_is_open(&breaker);
		now = breaker.open_until;
	}
	is_int(wrong, 0, "each failed probe doubles the time, up to two minutes");

	ok(!breaker_note(&breaker, false, breaker.opened_at - 1, now) &&
	   breaker_is_open(&breaker), "a success that left before does not close it");
	ok(!breaker_note(&breaker, true, breaker.opened_at - 1, now) &&
	   breaker.open_until <= now, "nor does such a failure open it anew");
	ok(!breaker_note(&breaker, false, now, now + SECOND) && !breaker_is_open(&breaker),
	   "the probe's success closes it");
	is_int(run(&breaker, "ffff", &now, SECOND), 0, "and all is forgotten");
	is_int(run(&breaker, "f", &now, SECOND), 1, "until five have failed again");
	is_int(breaker.open_until - now, 5 * SECOND, "which opens it for five seconds");

	breaker_restore(&breaker, 3, now + 7 * SECOND, now);
	ok(breaker_is_open(&breaker) && breaker.open_until == now + 7 * SECOND,
	   "one that was open before is open until then");
	now += 7 * SECOND;
	ok(breaker_note(&breaker, true, now, now) && breaker.open_until == now + 40 * SECOND,
	   "and goes on doubling");
	ok(!breaker_note(&breaker, false, now, now) && !breaker_is_open(&breaker),
	   "until a probe succeeds");
	is_int(run(&breaker, "fffff", &now, SECOND), 1, "and begins anew");

	now -= 3600 * SECOND;
	ok(!breaker_note(&breaker, false, now, now) && !breaker_is_open(&breaker),
	   "a clock that is set back does not keep it open");
}

/* ------------------------------------------------------------------------
 * Random histories
 * ------------------------------------------------------------------------
 */

typedef struct Event
{
	int64_t		at;
	bool		failed;
} Event;

/* All that ended since the breaker was closed, the last one included. */
static bool
model_opens(const Event *events, int n)
{
	int			failed = 0;
	int			counted = 0;
	int			in_row = 0;

	if (!events[n - 1].failed)
		return false;
	while (in_row < n && events[n - 1 - in_row].failed)
		in_row++;
	for (int i = n - 1; i >= 0 && n - i <= 20; i--)
	{
		if (events[n - 1].at - events[i].at >= 30 * SECOND)
			continue;
		counted++;
		failed += events[i].failed;
	}
	return in_row >= 5 || (counted >= 10 && failed >= counted - failed);
}

static void
check_histories(int nhistories)
{
	static Event events[MAX_EVENTS];
	int			wrong = 0;
	int			openings = 0;

	for (int history = 0; history < nhistories; history++)
	{
		Breaker		breaker = {.openings = 0};
		int64_t		now = START;
		int64_t		opened_at = 0;
		int			nopen = 0;
		int			n = 0;
		int			badness = 1 + random_below(9);
		int64_t		step = SECOND * (1 + random_below(50)) / 10;

		for (int i = 0; i < 300; i++)
		{
			bool		failed = random_below(10) < badness;
			bool		stale = random_below(4) == 0;
			bool		opens;
			int64_t		sent_at;

			now += random_below((int) step);
			sent_at = stale ? opened_at - 1 : now;
			if (nopen > 0)
			{
				opens = !stale && failed;
				if (!stale && !failed)
					nopen = n = 0;
			}
			else
			{
				events[n++] = (Event)
				{
					now, failed
				};
				opens = model_opens(events, n);
			}
			if (opens)
			{
				nopen++;
				opened_at = now;
				openings++;
			}
			if (breaker_note(&breaker, failed, sent_at, now) != opens ||
				breaker_is_open(&breaker) != (nopen > 0))
			{
				if (wrong++ == 0)
					printf("# first in history %d, event %d\n", history, i);
				break;
			}
		}
	}
	is_int(wrong, 0, "random histories: as the model has it");
	ok(openings > 1000, "with many openings (%d)", openings);
}

int
main(void)
{
	check_opening();
	check_open();
	check_histories(2000);
	return done_testing();
}
