/*-------------------------------------------------------------------------
 *
 * aside.h
 *	  Rows that are set aside because they make a transaction fail.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_ASIDE_H
#define TIMPUSH_ASIDE_H

#include <stdbool.h>
#include <stdint.h>

/* They are tried again after this, doubling. */
#define ASIDE_FIRST_PAUSE_US	INT64_C(1000000)
#define ASIDE_MAX_PAUSE_US		INT64_C(60000000)

/* With so many, no more are set aside. */
#define ASIDE_MAX				256

typedef enum AsideKind
{
	ASIDE_PUSH,					/* of push_outbox */
	ASIDE_REQUEST,				/* of push_request, to go again */
	ASIDE_ORPHAN				/* of push_request, left in flight */
} AsideKind;

typedef struct Aside
{
	AsideKind	kind;
	int64_t		id;
	uint32_t	server;			/* 0: not known */
	int64_t		until;			/* to be tried again then */
	int64_t		pause;
} Aside;

typedef struct AsideList
{
	int			n;
	Aside		rows[ASIDE_MAX];
} AsideList;

/* False if there are too many. */
extern bool aside_add(AsideList *list, AsideKind kind, int64_t id,
					  uint32_t server, int64_t now);

/* One whose time has come, or NULL. */
extern Aside *aside_due(AsideList *list, int64_t now);

/* When the next one's time comes, INT64_MAX if there is none. */
extern int64_t aside_next(const AsideList *list);

/* It has failed again. */
extern void aside_again(Aside *row, int64_t now);

/* It is like any other row again. */
extern void aside_remove(AsideList *list, Aside *row);

/* The pause after one: the first, or twice the last. */
extern int64_t aside_pause(int64_t last);

#endif							/* TIMPUSH_ASIDE_H */
