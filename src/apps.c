/*-------------------------------------------------------------------------
 *
 * apps.c
 *	  The limits of apps, common to all servers of the cluster that name one.
 *
 * The API counts by SDKAppID, so the limiter of an app is in shared memory,
 * and with it a table of the servers that name the app, in whichever database,
 * and of the rates that they are set to: the lowest holds.  A server is
 * entered by the worker of its database and stays when that worker leaves; it
 * goes when the worker no longer finds it, or when the database goes.
 *
 * Crash story: after a crash all of it is made anew.  The launcher then starts
 * a worker in every database, and each enters its servers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "apps.h"
#include "shared.h"

/* Another server of an app that had a good answer so recently is at work. */
#define AT_WORK_US		INT64CONST(10000000)

/* A server that works says so no more often than this. */
#define SAY_WORKED_US	INT64CONST(1000000)

typedef struct AppServer
{
	Oid			dbid;			/* InvalidOid: free */
	Oid			serverid;
	uint32		sdkappid;
	uint64		version;		/* of its options */
	Rates		set;
	TimestampTz worked;			/* it last had a good answer about then */
	TimestampTz state_since;	/* of its row in push_server; 0: not known */
} AppServer;

typedef struct App
{
	uint32		sdkappid;		/* 0: free */
	int			servers;		/* that name it; 0: the entry may be reused */
	Rates		lowest;			/* of what they are set to */
	Limiter		limiter;
} App;

/* As many apps as servers, so that one who has the one has the other. */
typedef struct AppsState
{
	AppServer	servers[MAX_APP_SERVERS];
	App			apps[MAX_APP_SERVERS];
} AppsState;

static AppsState *state = NULL;
static LWLock *lock = NULL;		/* over all of it */
static bool full_reported = false;

Size
apps_shmem_size(void)
{
	return MAXALIGN(sizeof(AppsState));
}

void
apps_shmem_init(void *memory, LWLock *apps_lock, bool found)
{
	state = memory;
	lock = apps_lock;
	if (!found)
		memset(state, 0, sizeof(AppsState));
}

/* ------------------------------------------------------------------------
 * The table of servers; the caller holds the lock
 * ------------------------------------------------------------------------
 */

/* The server's entry, or one that is free for it; -1 if there is none. */
static int
find_server(Oid dbid, Oid serverid)
{
	int			free_slot = -1;

	for (int i = 0; i < MAX_APP_SERVERS; i++)
	{
		const AppServer *server = &state->servers[i];

		if (server->dbid == dbid && server->serverid == serverid)
			return i;
		if (free_slot < 0 && server->dbid == InvalidOid)
			free_slot = i;
	}
	return free_slot;
}

/*
 * The app's entry, or one that is free for it.  An app that nobody names stays
 * as long as there is room, so that a server made anew gains nothing.
 */
static int
find_app(uint32 sdkappid)
{
	int			unused = -1;

	for (int i = 0; i < MAX_APP_SERVERS; i++)
	{
		const App  *app = &state->apps[i];

		if (app->sdkappid == sdkappid)
			return i;
		if (app->servers == 0 &&
			(unused < 0 || (app->sdkappid == 0 && state->apps[unused].sdkappid != 0)))
			unused = i;
	}
	/* there are as many as servers, and this server uses none yet */
	Assert(unused >= 0);
	memset(&state->apps[unused], 0, sizeof(App));
	state->apps[unused].sdkappid = sdkappid;
	return unused;
}

/* The app may go on earlier than its users were told: they shall ask again. */
static void
wake_users(uint32 sdkappid)
{
	Oid			last = MyDatabaseId;

	for (int i = 0; i < MAX_APP_SERVERS; i++)
	{
		const AppServer *server = &state->servers[i];

		if (server->sdkappid != sdkappid || server->dbid == last ||
			server->dbid == MyDatabaseId)
			continue;
		last = server->dbid;
		shared_wake_sharer(last);
	}
}

/* Find out what holds for the app, after a change. */
static void
find_lowest(uint32 sdkappid)
{
	App		   *app = &state->apps[find_app(sdkappid)];
	Rates		before = app->lowest;

	app->servers = 0;
	app->lowest.calls = app->lowest.accounts = 0;
	for (int i = 0; i < MAX_APP_SERVERS; i++)
	{
		const AppServer *server = &state->servers[i];

		if (server->dbid == InvalidOid || server->sdkappid != sdkappid)
			continue;
		app->servers++;
		app->lowest = rates_lowest(app->lowest, server->set);
	}
	if (rates_rise(before, app->lowest))
		wake_users(sdkappid);
}

/* A server is free of its app. */
static void
leave(AppServer *server)
{
	uint32		sdkappid = server->sdkappid;

	memset(server, 0, sizeof(AppServer));
	find_lowest(sdkappid);
}

/* The options of a server have changed: what the app paused for may be over. */
static void
end_pause(App *app)
{
	if (app->limiter.throttle.pause == 0)
		return;
	throttle_resume(&app->limiter.throttle);
	wake_users(app->sdkappid);
}

/* Put a server into the table, or change it there; false if there is no room. */
static bool
enter(AppUser *user, uint64 version)
{
	AppServer  *server;

	user->slot = find_server(MyDatabaseId, user->serverid);
	if (user->slot < 0)
		return false;
	server = &state->servers[user->slot];
	if (server->dbid != InvalidOid && server->sdkappid != user->sdkappid)
		leave(server);
	user->app = find_app(user->sdkappid);
	if (server->dbid != InvalidOid && server->version != version)
		end_pause(&state->apps[user->app]);
	server->dbid = MyDatabaseId;
	server->serverid = user->serverid;
	server->sdkappid = user->sdkappid;
	server->version = version;
	server->set = user->set;
	find_lowest(user->sdkappid);
	return true;
}

/* ------------------------------------------------------------------------
 * Coming and going
 * ------------------------------------------------------------------------
 */

void
app_join(AppUser *user, Oid serverid, uint32 sdkappid, Rates set, uint64 version)
{
	user->serverid = serverid;
	user->sdkappid = sdkappid;
	user->set = set;
	throttle_resume(&user->own.throttle);

	LWLockAcquire(lock, LW_EXCLUSIVE);
	/* without a validator a server may name none */
	user->shared = sdkappid != 0 && enter(user, version);
	LWLockRelease(lock);
	if (user->shared || full_reported || sdkappid == 0)
		return;
	full_reported = true;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("timpush: more than %d servers in the cluster, so some share no limits with others of their app",
					MAX_APP_SERVERS),
			 errhint("Drop servers that are no longer used.")));
}

/* Take away the servers of a database but for those listed. */
static void
forget_servers(Oid dbid, List *keep)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_APP_SERVERS; i++)
	{
		AppServer  *server = &state->servers[i];

		if (server->dbid == dbid && !list_member_oid(keep, server->serverid))
			leave(server);
	}
	LWLockRelease(lock);
}

void
apps_keep_servers(List *serverids)
{
	forget_servers(MyDatabaseId, serverids);
}

void
apps_forget_database(Oid dbid)
{
	forget_servers(dbid, NIL);
}

/* ------------------------------------------------------------------------
 * Use
 * ------------------------------------------------------------------------
 */

/*
 * The app's entry, with the lock held; NULL for a server that has none, be it
 * because there was no room or because it was forgotten meanwhile.
 */
static App *
app_of(const AppUser *user)
{
	const AppServer *server = &state->servers[user->slot];

	if (!user->shared || server->dbid != MyDatabaseId ||
		server->serverid != user->serverid || server->sdkappid != user->sdkappid)
		return NULL;
	return &state->apps[user->app];
}

void
app_ask(const AppUser *user, TimestampTz now, Allowance *allowance)
{
	const App  *app;

	LWLockAcquire(lock, LW_SHARED);
	app = app_of(user);
	limiter_ask(app != NULL ? &app->limiter : &user->own,
				app != NULL ? app->lowest : user->set, now, allowance);
	LWLockRelease(lock);
}

bool
app_look(Oid dbid, Oid serverid, TimestampTz now, Allowance *allowance)
{
	int			n;
	bool		joined;

	if (state == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	n = find_server(dbid, serverid);
	joined = n >= 0 && state->servers[n].dbid == dbid;
	for (int i = 0; joined && i < MAX_APP_SERVERS; i++)
	{
		const App  *app = &state->apps[i];

		if (app->sdkappid != state->servers[n].sdkappid)
			continue;
		limiter_ask(&app->limiter, app->lowest, now, allowance);
		break;
	}
	LWLockRelease(lock);
	return joined;
}

int64
app_take(AppUser *user, int accounts, TimestampTz now)
{
	App		   *app;
	Limiter    *limiter;
	Rates		set;
	Allowance	allowance;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	app = app_of(user);
	limiter = app != NULL ? &app->limiter : &user->own;
	set = app != NULL ? app->lowest : user->set;
	limiter_ask(limiter, set, now, &allowance);
	if (allowance.wait == 0)
		limiter_take(limiter, set, accounts, now);
	LWLockRelease(lock);
	return allowance.wait;
}

void
app_throttled(AppUser *user, int64 pause, TimestampTz now)
{
	App		   *app;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	app = app_of(user);
	throttle_hit(app != NULL ? &app->limiter.throttle : &user->own.throttle, pause, now);
	LWLockRelease(lock);
}

void
app_state_of(AppUser *user, TimestampTz since, bool changed_by_us)
{
	App		   *app;
	AppServer  *server;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	app = app_of(user);
	if (app != NULL)
	{
		server = &state->servers[user->slot];
		if (!changed_by_us && server->state_since != since && server->state_since != 0)
			end_pause(app);
		server->state_since = since;
	}
	else if (!changed_by_us)
		throttle_resume(&user->own.throttle);
	LWLockRelease(lock);
}

void
app_worked(AppUser *user, TimestampTz now)
{
	if (now >= user->worked && now < user->worked + SAY_WORKED_US)
		return;
	user->worked = now;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (app_of(user) != NULL)
		state->servers[user->slot].worked = now;
	LWLockRelease(lock);
}

/* Does another server of the app send meanwhile?  With the lock held. */
static bool
others_at_work(const AppUser *user, TimestampTz now)
{
	for (int i = 0; i < MAX_APP_SERVERS; i++)
	{
		const AppServer *server = &state->servers[i];

		if (i != user->slot && server->dbid != InvalidOid &&
			server->sdkappid == user->sdkappid &&
			server->worked > now - AT_WORK_US && server->worked <= now)
			return true;
	}
	return false;
}

void
app_recovers(AppUser *user, TimestampTz oldest, TimestampTz now)
{
	App		   *app;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	app = app_of(user);
	if (app == NULL)
		(void) ramp_begin(&user->own.ramp, oldest, now);
	else if (!others_at_work(user, now))
		(void) ramp_begin(&app->limiter.ramp, oldest, now);
	LWLockRelease(lock);
}
