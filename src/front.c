/*-------------------------------------------------------------------------
 *
 * front.c
 *	  Where the ranges of the queue begin.
 *
 * A claim takes rows from the beginning of an index range, so behind it dead
 * entries pile up, and a claim that began at the very beginning would read
 * them all again.  The worker is the only one that takes rows, so it knows
 * where it has been; whoever commits new rows says, in shared memory, how
 * early the earliest of them is to be sent, and the fronts go back to that.
 *
 * Pure: no PostgreSQL header.
 *
 * Crash story: lives in the worker's memory alone and begins with knowing
 * nothing.  After an error it is forgotten, because the rows of a claim that
 * was rolled back stand before it.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "front.h"

bool
position_before(Position a, Position b)
{
	return a.at != b.at ? a.at < b.at : a.id < b.id;
}

void
front_forget(Front *front)
{
	for (int i = 0; i < FRONT_PRIORITIES; i++)
		front->priority[i] = POSITION_FIRST;
	front->ncontents = 0;
	memset(front->contents, 0, sizeof(front->contents));
}

static void
lower(Position *position, int64_t at)
{
	/* which of the rows of that time is meant is not known */
	if (position->at >= at)
		*position = (Position)
	{
		at, INT64_MIN
	};
}

void
front_lower(Front *front, int64_t at)
{
	for (int i = 0; i < FRONT_PRIORITIES; i++)
		lower(&front->priority[i], at);
	if (front->ncontents == 0)
		return;
	for (int i = 0; i < 2 * FRONT_CONTENTS; i++)
	{
		if (front->contents[i].used)
			lower(&front->contents[i].position, at);
	}
}

Position
front_first(const Front *front)
{
	Position	first = POSITION_NONE;

	for (int i = 0; i < FRONT_PRIORITIES; i++)
	{
		if (position_before(front->priority[i], first))
			first = front->priority[i];
	}
	return first;
}

/* The slot that the content has or may have; keys are hashes already. */
static int
content_slot(const Front *front, int64_t content_key)
{
	int			slot = (int) ((uint64_t) content_key % (2 * FRONT_CONTENTS));

	while (front->contents[slot].used &&
		   front->contents[slot].content_key != content_key)
		slot = (slot + 1) % (2 * FRONT_CONTENTS);
	return slot;
}

Position
front_of_content(const Front *front, int64_t content_key)
{
	const ContentFront *content = &front->contents[content_slot(front, content_key)];
	Position	first = front_first(front);

	return content->used && position_before(first, content->position) ?
		content->position : first;
}

void
front_set_content(Front *front, int64_t content_key, Position position)
{
	ContentFront *content = &front->contents[content_slot(front, content_key)];

	/* rather than find out which is the least used, begin anew */
	if (!content->used && front->ncontents >= FRONT_CONTENTS)
	{
		front->ncontents = 0;
		memset(front->contents, 0, sizeof(front->contents));
		content = &front->contents[content_slot(front, content_key)];
	}
	if (!content->used)
		front->ncontents++;
	content->used = true;
	content->content_key = content_key;
	content->position = position;
}
