/*-------------------------------------------------------------------------
 *
 * breaker.h
 *	  A circuit breaker: when a server fails too often, leave it alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_BREAKER_H
#define TIMPUSH_BREAKER_H

#include <stdbool.h>
#include <stdint.h>

/* It opens after so many failures in a row ... */
#define BREAKER_IN_ROW		5

/*
 * ... or when half of the last BREAKER_LAST requests failed, as far as they
 * ended within BREAKER_SPAN_US, and there were BREAKER_FEWEST at least.
 */
#define BREAKER_LAST		20
#define BREAKER_FEWEST		10
#define BREAKER_SPAN_US		INT64_C(30000000)

/* How long it stays open at first; doubled each time up to the most. */
#define BREAKER_OPEN_US		INT64_C(5000000)
#define BREAKER_MAX_OPEN_US INT64_C(120000000)

/* All zeroes is a breaker that is closed and knows nothing. */
typedef struct Breaker
{
	struct
	{
		int64_t		at;
		bool		failed;
	}			last[BREAKER_LAST];
	int			nlast;
	int			next;
	int			in_row;			/* failures since the last success */
	int			openings;		/* since it was closed */
	int64_t		opened_at;
	int64_t		open_until;
} Breaker;

/*
 * A request that left at sent_at has ended.  Returns true if the breaker
 * opens, anew or for the first time: then nothing may leave before
 * breaker->open_until.  Requests that left before it opened tell nothing new
 * and are ignored.  Times are microseconds of one clock, which may be set back.
 */
extern bool breaker_note(Breaker *breaker, bool failed, int64_t sent_at,
						 int64_t now);

/*
 * It was open before this process began to know of it, for the so-manieth
 * time and until then.
 */
extern void breaker_restore(Breaker *breaker, int openings, int64_t open_until,
							int64_t now);

/* It has opened and not been closed by a success: one request at a time. */
extern bool breaker_is_open(const Breaker *breaker);

#endif							/* TIMPUSH_BREAKER_H */
