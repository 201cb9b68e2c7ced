/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  One worker for each database that has work.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_LAUNCHER_H
#define TIMPUSH_LAUNCHER_H

/* Register the launcher; called once from _PG_init while preloading. */
extern void launcher_register(void);

#endif							/* TIMPUSH_LAUNCHER_H */
