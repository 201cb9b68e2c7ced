/*-------------------------------------------------------------------------
 *
 * enqueue.h
 *	  The way in: from a call, a row or a trigger into the outbox.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_ENQUEUE_H
#define TIMPUSH_ENQUEUE_H

/* Hooks of the session; called once from _PG_init. */
extern void enqueue_init(void);

#endif							/* TIMPUSH_ENQUEUE_H */
