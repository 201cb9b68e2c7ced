/*-------------------------------------------------------------------------
 *
 * front.h
 *	  Where the ranges of the queue begin.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_FRONT_H
#define TIMPUSH_FRONT_H

#include <stdbool.h>
#include <stdint.h>

/* A place in an index whose last two columns are a time and an id. */
typedef struct Position
{
	int64_t		at;				/* microseconds, as TimestampTz */
	int64_t		id;
} Position;

#define POSITION_FIRST	((Position) {INT64_MIN, INT64_MIN})
#define POSITION_NONE	((Position) {INT64_MAX, INT64_MAX})

extern bool position_before(Position a, Position b);

#define FRONT_PRIORITIES	10

/* Contents whose front is kept; more are looked for from the common one. */
#define FRONT_CONTENTS		1024

typedef struct ContentFront
{
	int64_t		content_key;
	Position	position;
	bool		used;
} ContentFront;

/*
 * The fronts of one server.  Each is a lower bound: no waiting row that is to
 * be seen stands before it.  A scan that starts there does not meet the rows
 * that have left, whose index entries stay until a vacuum can remove them,
 * and it cannot as long as any old transaction is open.
 */
typedef struct Front
{
	Position	priority[FRONT_PRIORITIES];
	int			ncontents;
	ContentFront contents[2 * FRONT_CONTENTS];	/* open addressing */
} Front;

/* Nothing is known: everything begins at the beginning. */
extern void front_forget(Front *front);

/* Rows have been committed of which the first may be sent at "at". */
extern void front_lower(Front *front, int64_t at);

/* The lower bound of all rows of a content; set it after a look. */
extern Position front_of_content(const Front *front, int64_t content_key);
extern void front_set_content(Front *front, int64_t content_key,
							  Position position);

/* The earliest of the priorities' fronts. */
extern Position front_first(const Front *front);

#endif							/* TIMPUSH_FRONT_H */
