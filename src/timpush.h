/*-------------------------------------------------------------------------
 *
 * timpush.h
 *	  Settings that every part reads.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_H
#define TIMPUSH_H

#include "postgres.h"

#define TIMPUSH_VERSION "1.0"

/* Settings; see the reference in doc/ for units and ranges. */
extern bool timpush_enabled;
extern char *timpush_default_server;
extern int	timpush_default_ttl;	/* seconds, 0 = pushes never expire */
extern int	timpush_on_unknown; /* an OnUnknown of compose.h */
extern int	timpush_retention;	/* seconds, 0: for ever */
extern int	timpush_idle_exit;	/* seconds */

/* Is this process a worker?  Its own changes to the outbox need no check. */
extern bool timpush_is_worker;

#endif							/* TIMPUSH_H */
