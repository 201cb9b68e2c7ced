/*-------------------------------------------------------------------------
 *
 * apps.h
 *	  The limits of apps, common to all servers of the cluster that name one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_APPS_H
#define TIMPUSH_APPS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/lwlock.h"

#include "limiter.h"

/* Servers whose limits are shared; further ones keep to their own alone. */
#define MAX_APP_SERVERS		4096

/* For shared.c, which owns the shared memory. */
extern Size apps_shmem_size(void);
extern void apps_shmem_init(void *memory, LWLock *lock, bool found);

/*
 * A server as a user of its app's limits; kept by the server's sender in the
 * worker of the database.  All zeroes is one that has not joined.
 */
typedef struct AppUser
{
	Oid			serverid;
	uint32		sdkappid;
	Rates		set;			/* by its own options */
	int			slot;			/* in shared memory */
	int			app;
	bool		shared;			/* has those; else it uses its own: */
	Limiter		own;
	TimestampTz worked;			/* when it last said so */
} AppUser;

/*
 * Enter a server of the current database with what its options say, or enter
 * what they say now.  The lowest set rate of all servers that name the app
 * holds.  "version" tells whether the options have changed since anybody last
 * entered the server; that ends a pause of the app.  Workers of other
 * databases which share the app are woken if they may go on earlier.
 *
 * If shared memory is full the server keeps to its own rates, unshared, and a
 * WARNING says so once in the life of the process.
 */
extern void app_join(AppUser *user, Oid serverid, uint32 sdkappid, Rates set,
					 uint64 version);

/* Forget servers of the current database other than these (a list of OIDs). */
extern void apps_keep_servers(List *serverids);

/* Forget all servers of a database. */
extern void apps_forget_database(Oid dbid);

/* What may leave for the app now. */
extern void app_ask(const AppUser *user, TimestampTz now, Allowance *allowance);

/* Likewise for a server of any database; false if it has not joined. */
extern bool app_look(Oid dbid, Oid serverid, TimestampTz now, Allowance *allowance);

/*
 * A call with so many accounts wants to leave now.  Returns 0 if it may, and
 * counts it; else as app_ask() the time to wait: somebody was faster.
 */
extern int64 app_take(AppUser *user, int accounts, TimestampTz now);

/* A throttle answer asks for a pause of so many microseconds. */
extern void app_throttled(AppUser *user, int64 pause, TimestampTz now);

/*
 * The server's row in push_server is of that time.  If somebody else has
 * changed it since anybody last said so, the server was resumed: what the app
 * pauses for shall be tried again now.
 */
extern void app_state_of(AppUser *user, TimestampTz since, bool changed_by_us);

/* A call of the server has got a good answer. */
extern void app_worked(AppUser *user, TimestampTz now);

/*
 * The server goes on after something had kept it back, and the oldest push
 * that waits for it could have left at "oldest".  After a long stop the app
 * begins slowly, unless another server of it is at work anyway.
 */
extern void app_recovers(AppUser *user, TimestampTz oldest, TimestampTz now);

#endif							/* TIMPUSH_APPS_H */
