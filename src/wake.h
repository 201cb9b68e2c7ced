/*-------------------------------------------------------------------------
 *
 * wake.h
 *	  What wakes the worker of a database, and what sends it away.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_WAKE_H
#define TIMPUSH_WAKE_H

/* Hooks of the session; called once from _PG_init. */
extern void wake_init(void);

/*
 * Wake the worker of the current database when this transaction commits.
 * Warns once in a session that nothing will be sent if timpush is not
 * preloaded.
 */
extern void wake_request(void);

#endif							/* TIMPUSH_WAKE_H */
