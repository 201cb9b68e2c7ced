/*-------------------------------------------------------------------------
 *
 * enqueue.h
 *	  The way in: timpush_batch, a plain INSERT, a trigger.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_ENQUEUE_H
#define TIMPUSH_ENQUEUE_H

#include "postgres.h"

#include "fmgr.h"

/* The row trigger of push_outbox, so that others can tell it. */
extern PGDLLEXPORT Datum timpush_outbox_check(PG_FUNCTION_ARGS);

#endif							/* TIMPUSH_ENQUEUE_H */
