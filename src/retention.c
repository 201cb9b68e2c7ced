/*-------------------------------------------------------------------------
 *
 * retention.c
 *	  Which old rows leave next, and when.
 *
 * Three walks by increasing ids, each in steps of a bounded number of rows:
 * pushes, then requests that no push refers to any more, then errors of
 * pushes that are gone.  Ids grow with time, so a walk ends where everything
 * is young, and the next one goes on from there: it does not meet again what
 * has left, whose index entries stay until a vacuum.  What must stay although
 * it began long ago is passed over.  To find that later, and what has come
 * behind the front, walks begin at the beginning once in a while.
 *
 * Pure: no PostgreSQL header.
 *
 * Crash story: lives in the worker's memory alone; a new worker begins at the
 * beginning.  A push leaves in one transaction.  What it leaves behind is
 * known by its not being there.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

#include "aside.h"
#include "retention.h"

#define SECOND	INT64_C(1000000)

/*
 * An eighth of the retention: what is held up for longer is passed over, and
 * looked for again after this; an idle database is looked at as often.
 */
static int64_t
slack(const Retention *retention)
{
	int64_t		eighth = retention->seconds * SECOND / 8;

	return eighth < SECOND ? SECOND : eighth;
}

/* Walks from the beginning are apart by this. */
static int64_t
round_pause(const Retention *retention)
{
	return slack(retention) < 10 * SECOND ? 10 * SECOND : slack(retention);
}

static void
begin_anew(Retention *retention, int64_t now)
{
	for (int i = 0; i < RETAIN_TABLES; i++)
		retention->front[i] = INT64_MIN;
	retention->table = RETAIN_PUSHES;
	retention->anew_at = now + round_pause(retention);
	retention->ripe = RETENTION_NEVER;
	retention->passed = retention->failed = false;
}

void
retention_follow(Retention *retention, int seconds, int64_t now)
{
	if (retention->seconds == seconds)
		return;
	*retention = (Retention)
	{
		.seconds = seconds,
			.batch = RETENTION_BATCH,
			.due = seconds > 0 ? now : RETENTION_NEVER,
	};
	begin_anew(retention, now);
}

int64_t
retention_due(const Retention *retention)
{
	return retention->seconds > 0 ? retention->due : RETENTION_NEVER;
}

void
retention_note_finished(Retention *retention, int64_t now)
{
	int64_t		ripe = now + retention->seconds * SECOND;

	if (ripe < retention->due)
		retention->due = ripe;
}

int64_t
retention_worker_due(const Retention *retention)
{
	int64_t		grid = slack(retention) < 60 * SECOND ? 60 * SECOND : slack(retention);

	if (retention_due(retention) == RETENTION_NEVER)
		return RETENTION_NEVER;
	return (retention->due / grid + 1) * grid;
}

void
retention_begin(Retention *retention, int64_t now)
{
	retention->ended = false;
	if (retention->table == RETAIN_PUSHES && now >= retention->anew_at)
		begin_anew(retention, now);
}

/* There is nothing more in the table for now. */
static void
end_table(Retention *retention, int64_t next_id, int64_t now)
{
	if (retention->table == RETAIN_PUSHES)
		retention->end = next_id;
	if (++retention->table < RETAIN_TABLES)
		return;
	retention->table = RETAIN_PUSHES;
	retention->ended = true;
	retention->due = retention->ripe;
	retention->ripe = RETENTION_NEVER;
	if (retention->passed && retention->anew_at < retention->due)
		retention->due = retention->anew_at;
	if (retention->due < now + RETENTION_WALK_US)
		retention->due = now + RETENTION_WALK_US;
}

/* Has it ended long enough ago, and does nothing need it? */
static bool
may_leave(const Retention *retention, const RetainedRow *row, int64_t now)
{
	return row->free && row->finished < now - retention->seconds * SECOND;
}

/* How many rows does the step have to do with, if it removes no more than it may? */
static int
count_in_step(const Retention *retention, const RetainedRow *rows, int n, int64_t now)
{
	int			leave = 0;

	for (int i = 0; i < n; i++)
	{
		if (may_leave(retention, &rows[i], now) && ++leave == retention->batch)
			return i + 1;
	}
	return n;
}

/* How many of the rows are to be behind the front?  Later ones are young. */
static int
count_passed(const Retention *retention, const RetainedRow *rows, int n, int64_t now)
{
	int64_t		late = now - retention->seconds * SECOND - slack(retention);

	while (n > 0 && rows[n - 1].begun >= late && !may_leave(retention, &rows[n - 1], now))
		n--;
	return n;
}

/* When is a row that stays to be looked at again? */
static void
keep(Retention *retention, const RetainedRow *row, bool passed, int64_t now)
{
	int64_t		ripe;

	if (row->finished == RETENTION_NEVER)
		return;
	ripe = row->finished + retention->seconds * SECOND;
	if (passed || ripe < now)
		retention->passed = true;
	else if (ripe < retention->ripe)
		retention->ripe = ripe;
}

int
retention_choose(Retention *retention, RetainedRow *rows, int n, int64_t now)
{
	int			chosen = 0;
	int			passed;

	n = count_in_step(retention, rows, n, now);
	passed = count_passed(retention, rows, n, now);
	if (passed > 0)
		retention->front[retention->table] = rows[passed - 1].id + 1;
	retention->batch = retention->batch < RETENTION_BATCH / 2 ?
		retention->batch * 2 : RETENTION_BATCH;
	retention->pause = 0;
	retention->due = now + RETENTION_STEP_US;
	if (passed == 0)
		end_table(retention, n > 0 ? rows[0].id : INT64_MAX, now);
	for (int i = 0; i < n; i++)
	{
		if (may_leave(retention, &rows[i], now))
			rows[chosen++] = rows[i];
		else
			keep(retention, &rows[i], i < passed, now);
	}
	return chosen;
}

void
retention_failed(Retention *retention, const Retention *tried, bool row,
				 int64_t now)
{
	retention->failed = true;
	if (row && retention->batch > 1)
	{
		retention->batch = 1;
		retention->due = now + RETENTION_STEP_US;
		return;
	}
	if (row)
	{
		int64_t    *front = &retention->front[retention->table];
		int64_t		next = tried->front[retention->table];

		*front = next > *front ? next : *front + 1;
		retention->passed = true;
	}
	retention->pause = aside_pause(retention->pause);
	retention->due = now + retention->pause;
}

bool
retention_mended(const Retention *retention)
{
	return retention->ended && !retention->failed;
}
