/*-------------------------------------------------------------------------
 *
 * test_aside.c
 *	  Rows that are set aside: in which order their times come, how their
 *	  pauses grow, and that no more are taken than there is room for.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

#include "aside.h"
#include "tap.h"

#define SECOND		INT64_C(1000000)

/* Some time in the year 2026, in microseconds, as the worker's clock has it. */
#define START		INT64_C(1780000000000000)

static AsideList list;

static void
test_times(void)
{
	Aside	   *row;

	ok(aside_due(&list, START) == NULL && aside_next(&list) == INT64_MAX,
	   "an empty list waits for nothing");
	ok(aside_add(&list, ASIDE_PUSH, 7, 1, START + 5) &&
	   aside_add(&list, ASIDE_REQUEST, 8, 1, START), "rows are added");
	ok(aside_due(&list, START + SECOND - 1) == NULL, "none is due at once");
	ok(aside_next(&list) == START + SECOND, "the earliest is known");
	row = aside_due(&list, START + 2 * SECOND);
	ok(row != NULL && row->id == 8 && row->kind == ASIDE_REQUEST,
	   "the earliest is due first");
	aside_again(row, START + 2 * SECOND);
	ok(row->until == START + 4 * SECOND, "the pause doubles");
	row = aside_due(&list, START + 2 * SECOND);
	ok(row != NULL && row->id == 7, "then it is the turn of the other one");
	aside_remove(&list, row);
	ok(list.n == 1 && list.rows[0].id == 8, "one that is removed is gone");
	for (int i = 0; i < 100; i++)
		aside_again(&list.rows[0], START);
	ok(list.rows[0].until == START + 60 * SECOND, "a pause grows to a minute");
	aside_remove(&list, &list.rows[0]);
	ok(list.n == 0, "the last one can be removed");
}

static void
test_room(void)
{
	int			n = 0;

	while (aside_add(&list, ASIDE_PUSH, n, 1, START + n))
		n++;
	ok(n == ASIDE_MAX && list.n == ASIDE_MAX, "there is room for so many");
	for (int i = 0; i < ASIDE_MAX; i++)
	{
		Aside	   *row = aside_due(&list, START + SECOND + i);

		if (row == NULL || row->id != i)
			break;
		aside_remove(&list, row);
	}
	ok(list.n == 0, "and all come in their order");
}

int
main(void)
{
	test_times();
	test_room();
	return done_testing();
}
