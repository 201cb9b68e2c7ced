/*-------------------------------------------------------------------------
 *
 * retention.h
 *	  Which old rows leave next, and when.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_RETENTION_H
#define TIMPUSH_RETENTION_H

#include <stdbool.h>
#include <stdint.h>

/* Rows that a step looks at, at most. */
#define RETENTION_BATCH		500

/* Between two steps of a walk, and between two walks. */
#define RETENTION_STEP_US	INT64_C(10000)
#define RETENTION_WALK_US	INT64_C(1000000)

#define RETENTION_NEVER		INT64_MAX

/* Tables in the order in which they are walked through. */
typedef enum RetentionTable
{
	RETAIN_PUSHES,				/* push_result, whole pushes */
	RETAIN_REQUESTS,			/* push_request without those */
	RETAIN_ERRORS,				/* push_error, likewise */
	RETAIN_TABLES
} RetentionTable;

/* What a step has found in the order of ids, which is roughly that of time. */
typedef struct RetainedRow
{
	int64_t		id;
	int64_t		begun;			/* INT64_MIN: not known, but long ago */
	int64_t		finished;		/* RETENTION_NEVER: not yet */
	bool		free;			/* nothing that stays needs it */
	const void *place;			/* for the caller */
} RetainedRow;

typedef struct Retention
{
	int			seconds;		/* timpush.retention, as the walk has it */
	RetentionTable table;
	int64_t		front[RETAIN_TABLES];	/* walks go on from here ... */
	int64_t		anew_at;		/* ... and from the beginning then */
	int64_t		end;			/* where the walk through the pushes has ended */
	bool		passed;			/* something finished was passed over */
	int			batch;			/* so many leave in the next step, at most */
	int64_t		ripe;			/* when the first one that it met is old
								 * enough */
	int64_t		due;			/* the next step */
	int64_t		pause;			/* after the last failure, 0: there was none */
	bool		failed;			/* since the last beginning */
	bool		ended;			/* that was the last step of a walk */
} Retention;

/* Follow the setting; after a change, all is looked at anew and at once. */
extern void retention_follow(Retention *retention, int seconds, int64_t now);

/* Something has ended, and will be old enough one day. */
extern void retention_note_finished(Retention *retention, int64_t now);

/*
 * When the next step is due, and when a worker has to be there for it, which
 * is later and so that all databases have the same few times.
 */
extern int64_t retention_due(const Retention *retention);
extern int64_t retention_worker_due(const Retention *retention);

/* To be called before a step. */
extern void retention_begin(Retention *retention, int64_t now);

/*
 * The step's table has these rows from its front on.  Moves those that are to
 * leave to the head of the array, and returns their number.
 */
extern int	retention_choose(Retention *retention, RetainedRow *rows, int n,
							 int64_t now);

/*
 * A step has failed: "tried" is what would have become of it.  If a row may
 * be at fault, it is looked for, and passed over.
 */
extern void retention_failed(Retention *retention, const Retention *tried,
							 bool row, int64_t now);

/* Has a walk just ended, and has none failed since one began anew? */
extern bool retention_mended(const Retention *retention);

#endif							/* TIMPUSH_RETENTION_H */
