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

/*
 * Enqueue a push for the current user, who needs USAGE on its server: values
 * and nulls of push_outbox's columns, which are completed as timpush_batch()
 * does it.  Returns its id, or that of the known push with the same
 * dedup_key.  Raises the errors of timpush_batch().
 */
extern int64 enqueue_row(Oid outbox, Datum *values, bool *nulls);

#endif							/* TIMPUSH_ENQUEUE_H */
