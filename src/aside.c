/*-------------------------------------------------------------------------
 *
 * aside.c
 *	  Rows that are set aside because they make a transaction fail.
 *
 * A user's constraint or trigger may refuse a single row, and a row may be
 * damaged.  It is left out of all claims, so that the others go on, and tried
 * by itself after growing pauses.
 *
 * Crash story: lives in the worker's memory alone.  A worker that starts
 * meets the row again and sets it aside again.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

#include "aside.h"

int64_t
aside_pause(int64_t last)
{
	if (last == 0)
		return ASIDE_FIRST_PAUSE_US;
	return last < ASIDE_MAX_PAUSE_US / 2 ? last * 2 : ASIDE_MAX_PAUSE_US;
}

bool
aside_add(AsideList *list, AsideKind kind, int64_t id, uint32_t server, int64_t now)
{
	if (list->n == ASIDE_MAX)
		return false;
	list->rows[list->n++] = (Aside)
	{
		.kind = kind,
			.id = id,
			.server = server,
			.until = now + ASIDE_FIRST_PAUSE_US,
			.pause = ASIDE_FIRST_PAUSE_US,
	};
	return true;
}

static Aside *
earliest(AsideList *list)
{
	Aside	   *first = NULL;

	for (int i = 0; i < list->n; i++)
	{
		if (first == NULL || list->rows[i].until < first->until)
			first = &list->rows[i];
	}
	return first;
}

Aside *
aside_due(AsideList *list, int64_t now)
{
	Aside	   *first = earliest(list);

	return first != NULL && first->until <= now ? first : NULL;
}

int64_t
aside_next(const AsideList *list)
{
	const Aside *first = earliest((AsideList *) list);

	return first != NULL ? first->until : INT64_MAX;
}

void
aside_again(Aside *row, int64_t now)
{
	row->pause = aside_pause(row->pause);
	row->until = now + row->pause;
}

void
aside_remove(AsideList *list, Aside *row)
{
	*row = list->rows[--list->n];
}
