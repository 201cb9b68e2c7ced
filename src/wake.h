/*-------------------------------------------------------------------------
 *
 * wake.h
 *	  What wakes the worker of a database, and what sends it away.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_WAKE_H
#define TIMPUSH_WAKE_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* Hooks of the session; called once from _PG_init. */
extern void wake_init(void);

/*
 * Wake the worker of the current database when this transaction commits: it
 * shall look at the servers again.
 */
extern void wake_request(void);

/*
 * Likewise, for a push that may be sent and that expires at these times.
 * Warns once in a session that nothing will be sent if timpush is not
 * preloaded.
 */
extern void wake_for_push(TimestampTz send_at, TimestampTz expires_at);

#endif							/* TIMPUSH_WAKE_H */
