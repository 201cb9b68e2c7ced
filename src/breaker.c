/*-------------------------------------------------------------------------
 *
 * breaker.c
 *	  A circuit breaker: when a server fails too often, leave it alone.
 *
 * Pure.  Open, it lets nothing through for a while; then, half-open, one
 * request at a time, whose success closes it and whose failure opens it for
 * twice as long.  So in an outage only that one is ever in doubt.
 *
 * Crash story: sender.c keeps in push_server that and until when it is open,
 * and a new worker restores it.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "breaker.h"

bool
breaker_is_open(const Breaker *breaker)
{
	return breaker->openings > 0;
}

static void
remember(Breaker *breaker, bool failed, int64_t now)
{
	breaker->last[breaker->next].at = now;
	breaker->last[breaker->next].failed = failed;
	breaker->next = (breaker->next + 1) % BREAKER_LAST;
	if (breaker->nlast < BREAKER_LAST)
		breaker->nlast++;
	breaker->in_row = failed ? breaker->in_row + 1 : 0;
}

/* Did half of what ended lately fail? */
static bool
half_failed(const Breaker *breaker, int64_t now)
{
	int			n = 0;
	int			failed = 0;

	for (int i = 0; i < breaker->nlast; i++)
	{
		if (breaker->last[i].at <= now - BREAKER_SPAN_US)
			continue;
		n++;
		failed += breaker->last[i].failed;
	}
	return n >= BREAKER_FEWEST && 2 * failed >= n;
}

static void
open_breaker(Breaker *breaker, int64_t now)
{
	int64_t		span = BREAKER_OPEN_US;

	for (int i = 0; i < breaker->openings && span < BREAKER_MAX_OPEN_US; i++)
		span *= 2;
	breaker->openings++;
	breaker->opened_at = now;
	breaker->open_until = now + (span < BREAKER_MAX_OPEN_US ? span : BREAKER_MAX_OPEN_US);
}

void
breaker_restore(Breaker *breaker, int openings, int64_t open_until, int64_t now)
{
	memset(breaker, 0, sizeof(*breaker));
	breaker->openings = openings;
	breaker->opened_at = now;
	breaker->open_until = open_until;
}

bool
breaker_note(Breaker *breaker, bool failed, int64_t sent_at, int64_t now)
{
	if (breaker_is_open(breaker))
	{
		/* after a clock was set back, times tell nothing */
		if (sent_at < breaker->opened_at && breaker->opened_at <= now)
			return false;
		if (failed)
			open_breaker(breaker, now);
		else
			memset(breaker, 0, sizeof(*breaker));
		return failed;
	}
	remember(breaker, failed, now);
	if (!failed ||
		(breaker->in_row < BREAKER_IN_ROW && !half_failed(breaker, now)))
		return false;
	open_breaker(breaker, now);
	return true;
}
