/*-------------------------------------------------------------------------
 *
 * test_retention.c
 *	  Which rows leave, what is passed over, where a walk ends and when the
 *	  next one is due.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

#include "retention.h"
#include "tap.h"

#define SECOND	INT64_C(1000000)
#define DAY		(86400 * SECOND)

/* Some time in the year 2026, in microseconds, as the worker's clock has it. */
#define NOW		INT64_C(1780000000000000)

static Retention r;

/* A row that began and ended so many days ago; 0: it has not ended. */
static RetainedRow
row(int64_t id, int begun, int finished, bool free)
{
	return (RetainedRow)
	{
		.id = id,
			.begun = NOW - begun * DAY,
			.finished = finished > 0 ? NOW - finished * DAY : RETENTION_NEVER,
			.free = free,
	};
}

static void
begin(int days)
{
	r = (Retention)
	{
		0
	};
	retention_follow(&r, days * 86400, NOW);
	retention_begin(&r, NOW);
}

static void
test_setting(void)
{
	begin(0);
	ok(retention_due(&r) == RETENTION_NEVER &&
	   retention_worker_due(&r) == RETENTION_NEVER, "0 is never");
	retention_follow(&r, 7 * 86400, NOW);
	ok(retention_due(&r) == NOW, "a change acts at once");
	r.due = NOW + DAY;
	r.front[RETAIN_PUSHES] = 5;
	retention_follow(&r, 7 * 86400, NOW);
	ok(retention_due(&r) == NOW + DAY, "the same setting is no change");
	retention_follow(&r, 6 * 86400, NOW);
	ok(r.front[RETAIN_PUSHES] == INT64_MIN, "after a change, all is looked at");
}

static void
test_choice(void)
{
	RetainedRow rows[] = {row(1, 20, 0, false), row(2, 9, 9, true), row(3, 9, 1, true),
	row(4, 9, 9, false), row(5, 8, 8, true), row(6, 2, 2, true), row(7, 1, 0, false)};
	int			n = retention_choose((begin(7), &r), rows, 7, NOW);

	ok(n == 2 && rows[0].id == 2 && rows[1].id == 5, "what is old and free leaves");
	ok(r.front[RETAIN_PUSHES] == 6, "the front passes over what stays");
	ok(r.passed, "which is to be looked for again");
	ok(r.table == RETAIN_PUSHES && retention_due(&r) == NOW + RETENTION_STEP_US,
	   "the walk goes on after a pause");
}

/* An empty step in each table ends a walk. */
static void
end_walk(void)
{
	do
	{
		retention_begin(&r, NOW);
		(void) retention_choose(&r, NULL, 0, NOW);
	} while (r.table != RETAIN_PUSHES);
}

static void
test_end(void)
{
	RetainedRow young[] = {row(6, 2, 2, true), row(7, 1, 0, false)};

	begin(7);
	ok(retention_choose(&r, young, 2, NOW) == 0 && r.table == RETAIN_REQUESTS && r.end == 6,
	   "where all is young, the next table follows");
	end_walk();
	ok(retention_due(&r) == NOW + 5 * DAY, "the next walk is due when the first is old enough");
	ok(retention_worker_due(&r) >= NOW + 5 * DAY &&
	   retention_worker_due(&r) <= NOW + 5 * DAY + 7 * DAY / 8,
	   "a worker a bit later");
	ok(retention_mended(&r), "nothing has failed");
	begin(7);
	end_walk();
	ok(retention_due(&r) == RETENTION_NEVER, "where nothing is, nothing is due");
	retention_note_finished(&r, NOW);
	ok(retention_due(&r) == NOW + 7 * DAY, "until something has ended and is old enough");
	r.passed = true;
	end_walk();
	ok(retention_due(&r) == NOW + 7 * DAY / 8, "what was passed over is found by a walk from the beginning");
	retention_begin(&r, NOW + 7 * DAY / 8);
	ok(!r.passed && r.front[RETAIN_PUSHES] == INT64_MIN, "which begins then");
}

static void
test_failure(void)
{
	RetainedRow both[] = {row(2, 9, 9, true), row(3, 9, 9, true)};
	RetainedRow rows[] = {row(1, 2, 2, true), row(2, 9, 9, true), row(3, 9, 9, true)};
	RetainedRow other = row(3, 9, 9, true);
	Retention	tried;

	begin(7);
	tried = r;
	(void) retention_choose(&tried, both, 2, NOW);
	retention_failed(&r, &tried, true, NOW);
	ok(r.batch == 1 && r.front[RETAIN_PUSHES] == INT64_MIN, "a row at fault is looked for");
	tried = r;
	ok(retention_choose(&tried, rows, 3, NOW) == 1 && rows[0].id == 2,
	   "by removing one at a time, whatever is young before it");
	retention_failed(&r, &tried, true, NOW);
	ok(r.front[RETAIN_PUSHES] == 3 && retention_due(&r) == NOW + SECOND,
	   "and passed over, after a second");
	tried = r;
	(void) retention_choose(&tried, &other, 1, NOW);
	retention_failed(&r, &tried, false, NOW);
	ok(r.front[RETAIN_PUSHES] == 3 && retention_due(&r) == NOW + 2 * SECOND,
	   "if no row is to blame, it is only waited for longer");
	end_walk();
	ok(!retention_mended(&r), "a walk that failed has not mended it");
}

int
main(void)
{
	test_setting();
	test_choice();
	test_end();
	test_failure();
	return done_testing();
}
