/*-------------------------------------------------------------------------
 *
 * test_front.c
 *	  Where the ranges of a queue begin: random calls against a plain model,
 *	  and whole queues, in which no row may ever stand before its front.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>
#include <unistd.h>

#include "front.h"
#include "tap.h"

#define lengthof(array)	(sizeof(array) / sizeof((array)[0]))

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

static bool
equal(Position a, Position b)
{
	return a.at == b.at && a.id == b.id;
}

static bool
is_before(Position a, Position b)
{
	if (a.at < b.at)
		return true;
	return a.at == b.at && a.id < b.id;
}

static Position
later(Position a, Position b)
{
	return is_before(a, b) ? b : a;
}

/* The keys of contents, each another one: all belong into few slots. */
static int64_t
numbered_key(int number)
{
	static const int slots[] = {0, 2 * FRONT_CONTENTS - 1, 2 * FRONT_CONTENTS - 2, 2, 700};

	return slots[number % lengthof(slots)] +
		(number / (int) lengthof(slots) - 2) * (int64_t) (2 * FRONT_CONTENTS);
}

/* One of few places, so that the same come up often. */
static Position
random_position(void)
{
	switch (random_below(12))
	{
		case 0:
			return POSITION_FIRST;
		case 1:
			return POSITION_NONE;
		default:
			return (Position)
			{
				START + random_below(20), random_below(20)
			};
	}
}

static int64_t
random_time(void)
{
	switch (random_below(20))
	{
		case 0:
			return INT64_MIN;
		case 1:
			return INT64_MAX;
		default:
			return START + random_below(20);
	}
}

static Front front;

/* ------------------------------------------------------------------------
 * The model: what was said, one by one
 * ------------------------------------------------------------------------
 */

static Position model_priority[FRONT_PRIORITIES];

/* By the number of the key. */
static Position model_content[FRONT_CONTENTS];
static bool model_used[FRONT_CONTENTS];

static void
model_forget(void)
{
	for (int i = 0; i < FRONT_PRIORITIES; i++)
		model_priority[i] = POSITION_FIRST;
	memset(model_used, 0, sizeof(model_used));
}

/* A row at that time, whose id may be any, is not to stand before. */
static Position
lowered(Position position, int64_t at)
{
	Position	lowest = {at, INT64_MIN};

	return is_before(lowest, position) ? lowest : position;
}

static void
model_lower(int64_t at)
{
	for (int i = 0; i < FRONT_PRIORITIES; i++)
		model_priority[i] = lowered(model_priority[i], at);
	for (int i = 0; i < FRONT_CONTENTS; i++)
		model_content[i] = lowered(model_content[i], at);
}

static Position
model_first(void)
{
	Position	first = model_priority[0];

	for (int i = 1; i < FRONT_PRIORITIES; i++)
	{
		if (is_before(model_priority[i], first))
			first = model_priority[i];
	}
	return first;
}

static Position
model_of_content(int number)
{
	if (!model_used[number])
		return model_first();
	return later(model_first(), model_content[number]);
}

/* ------------------------------------------------------------------------
 * Random calls
 * ------------------------------------------------------------------------
 */

static void
random_call(int ncontents)
{
	Position	position = random_position();
	int64_t		at = random_time();
	int			number = random_below(ncontents);

	switch (random_below(10) == 0 ? 0 : 1 + random_below(4))
	{
		case 0:
			/* not too often, or nothing would ever pile up */
			if (random_below(100) != 0)
				return;
			front_forget(&front);
			model_forget();
			return;
		case 1:
			front_lower(&front, at);
			model_lower(at);
			return;
		case 2:
			/* as a look at the queue does */
			front.priority[number % FRONT_PRIORITIES] = position;
			model_priority[number % FRONT_PRIORITIES] = position;
			return;
		default:
			front_set_content(&front, numbered_key(number), position);
			model_content[number] = position;
			model_used[number] = true;
	}
}

/* Are the fronts those of the model?  Of many contents, look at some. */
static bool
all_as_model(int ncontents)
{
	int			step = 1 + ncontents / 20;

	for (int i = 0; i < FRONT_PRIORITIES; i++)
	{
		if (!equal(front.priority[i], model_priority[i]))
			return false;
	}
	for (int i = random_below(step); i < ncontents; i += step)
	{
		if (!equal(front_of_content(&front, numbered_key(i)), model_of_content(i)))
			return false;
	}
	return equal(front_first(&front), model_first());
}

static void
check_calls(void)
{
	static const int ncontents[] = {1, 2, 20, 200, FRONT_CONTENTS};

	for (int i = 0; i < (int) lengthof(ncontents); i++)
	{
		int			bad = 0;

		seed = (uint64_t) i + 1;
		front_forget(&front);
		model_forget();
		for (int j = 0; j < 10000; j++)
		{
			random_call(ncontents[i]);
			bad += !all_as_model(ncontents[i]);
		}
		ok(bad == 0, "10,000 calls, %d contents: as the model says (%d times not)",
		   ncontents[i], bad);
	}
}

/* ------------------------------------------------------------------------
 * Queues
 * ------------------------------------------------------------------------
 */

/* A waiting row. */
typedef struct Row
{
	Position	position;
	int			priority;
	int			content;
} Row;

#define MAX_ROWS	3000

static Row	rows[MAX_ROWS];
static int	nrows;

/* Some rows are committed, whose times lie anywhere. */
static void
add_rows(int ncontents, int64_t now)
{
	int64_t		first = INT64_MAX;

	for (int i = random_below(20); i >= 0 && nrows < MAX_ROWS; i--)
	{
		Row		   *row = &rows[nrows++];

		row->position.at = now - 20 + random_below(100);
		row->position.id = random_below(1000);
		row->priority = random_below(FRONT_PRIORITIES);
		row->content = random_below(ncontents);
		if (row->position.at < first)
			first = row->position.at;
	}
	if (first < INT64_MAX)
		front_lower(&front, first);
}

/* The first of the rows of a priority or content, or of all (-1). */
static Position
first_of(int priority, int content)
{
	Position	first = POSITION_NONE;

	for (int i = 0; i < nrows; i++)
	{
		if ((priority < 0 || rows[i].priority == priority) &&
			(content < 0 || rows[i].content == content) &&
			is_before(rows[i].position, first))
			first = rows[i].position;
	}
	return first;
}

/* Some rows leave, and a claim looks where the queues begin now. */
static int
claim_rows(int ncontents)
{
	int			unknown = 0;

	for (int i = random_below(11); i > 0 && nrows > 0; i--)
	{
		Row		   *row = &rows[random_below(nrows)];

		*row = rows[--nrows];
	}
	for (int i = 0; i < FRONT_PRIORITIES; i++)
		front.priority[i] = first_of(i, -1);
	for (int i = random_below(30); i > 0; i--)
	{
		int			content = random_below(ncontents);

		front_set_content(&front, numbered_key(content), first_of(-1, content));
		unknown += !equal(front_of_content(&front, numbered_key(content)),
						  first_of(-1, content));
	}
	return unknown;
}

/* Rows that stand before where they are looked for. */
static int
count_missed(void)
{
	int			missed = 0;

	for (int i = 0; i < nrows; i++)
		missed += is_before(rows[i].position, front.priority[rows[i].priority]) ||
			is_before(rows[i].position, front_first(&front)) ||
			is_before(rows[i].position,
					  front_of_content(&front, numbered_key(rows[i].content)));
	return missed;
}

static void
check_queue(int ncontents)
{
	int64_t		now = START;
	int			missed = 0;
	int			unknown = 0;

	seed = (uint64_t) ncontents;
	nrows = 0;
	front_forget(&front);
	for (int i = 0; i < 4000; i++)
	{
		if (random_below(3) == 0)
			add_rows(ncontents, now);
		else
			unknown += claim_rows(ncontents);
		if (random_below(500) == 0)
			front_forget(&front);
		missed += count_missed();
		now += random_below(10);
	}
	ok(nrows > 100, "a queue of %d contents: rows are left (%d)", ncontents, nrows);
	ok(missed == 0, "a queue of %d contents: no row before its front (%d times one)",
	   ncontents, missed);
	ok(unknown == 0, "a queue of %d contents: a front that is set is known (%d times not)",
	   ncontents, unknown);
}

/* ------------------------------------------------------------------------
 * Edges
 * ------------------------------------------------------------------------
 */

static void
is_position(Position got, Position expected, const char *name)
{
	if (!ok(equal(got, expected), "%s", name))
		printf("# got (%lld,%lld), expected (%lld,%lld)\n",
			   (long long) got.at, (long long) got.id,
			   (long long) expected.at, (long long) expected.id);
}

static void
check_edges(void)
{
	Position	some = {START, 5};
	Position	before = {START, INT64_MIN};
	Position	last = {INT64_MAX, INT64_MIN};

	memset(&front, 0x5a, sizeof(front));
	front_forget(&front);
	is_position(front_first(&front), POSITION_FIRST, "forgotten: from the beginning");
	is_position(front_of_content(&front, 0), POSITION_FIRST,
				"forgotten: so is every content");

	for (int i = 0; i < FRONT_PRIORITIES; i++)
		front.priority[i] = POSITION_NONE;
	is_position(front_first(&front), POSITION_NONE, "nothing waits");
	is_position(front_of_content(&front, 1), POSITION_NONE, "nothing waits of a content");
	front_lower(&front, INT64_MAX);
	is_position(front_first(&front), last, "a row at the end of time");
	front_lower(&front, START);
	is_position(front_first(&front), before, "a row is committed: before its time");
	is_position(front_of_content(&front, 1), before, "a row is committed: its content too");

	for (int i = 0; i < FRONT_PRIORITIES; i++)
		front.priority[i] = some;
	front_set_content(&front, 1, some);
	front_lower(&front, START + 1);
	is_position(front_first(&front), some, "a later row is committed: the front stays");
	is_position(front_of_content(&front, 1), some, "a later row is committed: so does a content");
	front_lower(&front, START);
	is_position(front_first(&front), before, "a row of that time is committed: any id");
	is_position(front_of_content(&front, 1), before,
				"a row of that time is committed: so for a content");
}

/* Many more contents than are kept; those that are, are so until that. */
static void
check_many_contents(void)
{
	int			kept = 0;
	int			low = 0;

	front_forget(&front);
	for (int i = 0; i < FRONT_PRIORITIES; i++)
		front.priority[i] = (Position)
	{
		START, 0
	};
	for (int i = 0; i < 20 * FRONT_CONTENTS; i++)
	{
		Position	position = {START + 1 + i, 0};

		front_set_content(&front, numbered_key(i), position);
		if (i == FRONT_CONTENTS - 1)
		{
			for (int j = 0; j <= i; j++)
				kept += front_of_content(&front, numbered_key(j)).at == START + 1 + j;
		}
		low += equal(front_of_content(&front, numbered_key(i)), position);
	}
	is_int(kept, FRONT_CONTENTS, "many contents: as many as promised are kept");
	is_int(low, 20 * FRONT_CONTENTS, "many contents: the last one always is");
}

int
main(void)
{
	/* a search in a table without a free place would never end */
	alarm(300);
	check_edges();
	check_calls();
	check_many_contents();
	check_queue(1);
	check_queue(30);
	check_queue(FRONT_CONTENTS);
	check_queue(3 * FRONT_CONTENTS);
	return done_testing();
}
