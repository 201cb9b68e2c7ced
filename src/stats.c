/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  What is counted of each server, in shared memory.
 *
 * An entry for each server of each database, with atomic counters that are
 * added to without a lock: the address of the entry is found once in each
 * transaction or process.  It may have been given to another server by then, if
 * ours was dropped meanwhile; the count is lost then, or in the rarest case
 * the other's.  Errors, and changes of a server's state, are few and take
 * the lock.
 *
 * What a transaction does is counted when it has been committed.  A prepared
 * one is not: its counts are this process's, and nobody else has them.
 *
 * Crash story: the counters are lost with shared memory, at a restart and after
 * a crash.  They are for who looks on, and nothing is decided by them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "stats.h"

#define MS(n)	(INT64CONST(1000) * (n))

const int64 stats_bounds[STATS_NBUCKETS - 1] = {
	MS(1), MS(2), MS(5), MS(10), MS(20), MS(50), MS(100), MS(200), MS(500),
	MS(1000), MS(2000), MS(5000), MS(10000), MS(30000), MS(60000), MS(300000),
	MS(1800000), MS(7200000), MS(86400000)
};

typedef struct StatsShared
{
	StatsServer servers[MAX_STATS_SERVERS];
	StatsErrorTimes errors[MAX_STATS_ERRORS];
} StatsShared;

/* What a transaction, or a subtransaction, has to count of a server. */
typedef struct StatsPending
{
	StatsServer *server;
	Oid			serverid;
	int			level;
	uint64		counters[STATS_NCOUNTERS];
	struct StatsPending *next;	/* of no higher level */
} StatsPending;

static StatsShared *shared = NULL;
static LWLock *lock = NULL;		/* over what stats.h says, and the errors */
static StatsPending *pending = NULL;
static bool full_reported = false;

Size
stats_shmem_size(void)
{
	return MAXALIGN(sizeof(StatsShared));
}

void
stats_shmem_init(void *memory, LWLock *stats_lock, bool found)
{
	shared = memory;
	lock = stats_lock;
	if (found)
		return;
	memset(shared, 0, sizeof(StatsShared));
	for (int i = 0; i < MAX_STATS_SERVERS; i++)
	{
		StatsServer *server = &shared->servers[i];

		for (int j = 0; j < STATS_NCOUNTERS; j++)
			pg_atomic_init_u64(&server->counters[j], 0);
		for (int j = 0; j < STATS_NLATENCIES * STATS_NBUCKETS; j++)
			pg_atomic_init_u64(&server->latencies[j / STATS_NBUCKETS][j % STATS_NBUCKETS], 0);
		pg_atomic_init_u32(&server->in_flight, 0);
		pg_atomic_init_u64(&server->pace_step, 0);
		for (int j = 0; j < STATS_PACE_STEPS; j++)
			pg_atomic_init_u32(&server->pace[j], 0);
	}
}

/* ------------------------------------------------------------------------
 * Entries; the caller holds the lock
 * ------------------------------------------------------------------------
 */

static void
clear_counts(StatsServer *server)
{
	for (int i = 0; i < STATS_NCOUNTERS; i++)
		pg_atomic_write_u64(&server->counters[i], 0);
	for (int i = 0; i < STATS_NLATENCIES; i++)
	{
		for (int j = 0; j < STATS_NBUCKETS; j++)
			pg_atomic_write_u64(&server->latencies[i][j], 0);
	}
	for (int i = 0; i < STATS_PACE_STEPS; i++)
		pg_atomic_write_u32(&server->pace[i], 0);
	memset(&server->error, 0, sizeof(StatsError));
	server->reset_at = GetCurrentTimestamp();
}

/* The server's entry, or one that is free for it, or NULL. */
static StatsServer *
find_entry(Oid dbid, Oid serverid)
{
	StatsServer *unused = NULL;

	for (int i = 0; i < MAX_STATS_SERVERS; i++)
	{
		StatsServer *server = &shared->servers[i];

		if (server->dbid == dbid && server->serverid == serverid)
			return server;
		if (unused == NULL && server->dbid == InvalidOid)
			unused = server;
	}
	return unused;
}

static void
forget_errors(Oid dbid, Oid serverid)
{
	for (int i = 0; i < MAX_STATS_ERRORS; i++)
	{
		StatsErrorTimes *times = &shared->errors[i];

		if (times->dbid == dbid && times->serverid == serverid)
			memset(times, 0, sizeof(StatsErrorTimes));
	}
}

/* Is it still the server's? */
static bool
is_ours(const StatsServer *server, Oid serverid)
{
	return server->dbid == MyDatabaseId && server->serverid == serverid;
}

StatsServer *
stats_server(Oid serverid, const char *name)
{
	StatsServer *server;

	if (shared == NULL)
		return NULL;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	server = find_entry(MyDatabaseId, serverid);
	if (server != NULL)
	{
		if (server->dbid == InvalidOid)
		{
			clear_counts(server);
			memset(&server->state, 0, sizeof(StatsState));
			pg_atomic_write_u32(&server->in_flight, 0);
			server->serverid = serverid;
			server->dbid = MyDatabaseId;
		}
		namestrcpy(&server->name, name);
	}
	LWLockRelease(lock);
	if (server == NULL && !full_reported)
	{
		full_reported = true;
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("timpush: more than %d servers in the cluster, so nothing is counted of some",
						MAX_STATS_SERVERS)));
	}
	return server;
}

static void
forget_servers(Oid dbid, List *keep)
{
	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_STATS_SERVERS; i++)
	{
		StatsServer *server = &shared->servers[i];

		if (server->dbid != dbid || list_member_oid(keep, server->serverid))
			continue;
		forget_errors(dbid, server->serverid);
		server->dbid = InvalidOid;
	}
	LWLockRelease(lock);
}

void
stats_keep_servers(List *serverids)
{
	forget_servers(MyDatabaseId, serverids);
}

void
stats_forget_database(Oid dbid)
{
	forget_servers(dbid, NIL);
}

void
stats_reset(Oid dbid, Oid serverid)
{
	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_STATS_SERVERS; i++)
	{
		StatsServer *server = &shared->servers[i];

		if (server->dbid != dbid ||
			(OidIsValid(serverid) && server->serverid != serverid))
			continue;
		clear_counts(server);
		forget_errors(dbid, server->serverid);
	}
	LWLockRelease(lock);
}

/* ------------------------------------------------------------------------
 * What transactions count
 * ------------------------------------------------------------------------
 */

/* Nothing here may raise: it is called when a commit cannot be undone. */
static void
note_pace(StatsServer *server, uint64 n)
{
	uint64		step = (uint64) Max(GetCurrentTimestamp(), 0) / STATS_PACE_STEP_US;
	uint64		last = pg_atomic_read_u64(&server->pace_step);

	/* one process claims, so nobody else moves it */
	for (uint64 i = 0; last + i < step && i < STATS_PACE_STEPS; i++)
		pg_atomic_write_u32(&server->pace[(step - i) % STATS_PACE_STEPS], 0);
	pg_atomic_write_u64(&server->pace_step, step);
	(void) pg_atomic_fetch_add_u32(&server->pace[step % STATS_PACE_STEPS], (uint32) n);
}

static void
count_committed(void)
{
	for (StatsPending *p = pending; p != NULL; p = p->next)
	{
		if (!is_ours(p->server, p->serverid))
			continue;
		for (int i = 0; i < STATS_NCOUNTERS; i++)
		{
			if (p->counters[i] != 0)
				stats_count(p->server, i, p->counters[i]);
		}
		if (p->counters[STATS_CLAIMED] != 0)
			note_pace(p->server, p->counters[STATS_CLAIMED]);
	}
}

static void
at_transaction_end(XactEvent event, void *arg pg_attribute_unused())
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			count_committed();
			pending = NULL;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			pending = NULL;
			break;
		default:
			break;
	}
}

/* What a subtransaction has to count is its parent's. */
static void
hand_up(int level)
{
	StatsPending **link = &pending;

	while (*link != NULL && (*link)->level == level)
	{
		StatsPending *child = *link;
		StatsPending *parent = child->next;

		while (parent != NULL && !(parent->level == level - 1 && parent->server == child->server))
			parent = parent->next;
		if (parent == NULL)
		{
			child->level--;
			link = &child->next;
			continue;
		}
		for (int i = 0; i < STATS_NCOUNTERS; i++)
			parent->counters[i] += child->counters[i];
		*link = child->next;
		pfree(child);
	}
}

static void
at_subtransaction_end(SubXactEvent event, SubTransactionId id pg_attribute_unused(),
					  SubTransactionId parent pg_attribute_unused(),
					  void *arg pg_attribute_unused())
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_COMMIT_SUB)
		hand_up(level);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (pending != NULL && pending->level >= level)
			pending = pending->next;
	}
}

/* As stats_server(), and without the lock if that was asked for before. */
static StatsServer *
known_server(Oid serverid, const char *name)
{
	static StatsServer *known[8];
	static size_t next = 0;

	for (size_t i = 0; i < lengthof(known); i++)
	{
		if (known[i] != NULL && is_ours(known[i], serverid))
			return known[i];
	}
	next = (next + 1) % lengthof(known);
	known[next] = stats_server(serverid, name);
	return known[next];
}

static StatsPending *
pending_of(Oid serverid, const char *name)
{
	static bool registered = false;
	int			level = GetCurrentTransactionNestLevel();
	StatsPending *p;
	StatsServer *server;

	for (p = pending; p != NULL && p->level == level; p = p->next)
	{
		if (p->serverid == serverid)
			return p;
	}
	/* one of a parent's knows the entry already */
	while (p != NULL && p->serverid != serverid)
		p = p->next;
	server = p != NULL ? p->server : known_server(serverid, name);
	if (server == NULL)
		return NULL;
	if (!registered)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		RegisterSubXactCallback(at_subtransaction_end, NULL);
		registered = true;
	}
	p = MemoryContextAllocZero(TopTransactionContext, sizeof(StatsPending));
	p->server = server;
	p->serverid = serverid;
	p->level = level;
	p->next = pending;
	pending = p;
	return p;
}

void
stats_add(const NameData *server, StatsCounter counter, uint64 n)
{
	Oid			serverid;
	StatsPending *p;

	if (shared == NULL || n == 0)
		return;
	serverid = get_foreign_server_oid(NameStr(*server), true);
	if (!OidIsValid(serverid))
		return;
	p = pending_of(serverid, NameStr(*server));
	if (p != NULL)
		p->counters[counter] += n;
}

/* ------------------------------------------------------------------------
 * What the worker counts
 * ------------------------------------------------------------------------
 */

void
stats_count(StatsServer *server, StatsCounter counter, uint64 n)
{
	if (server != NULL && n != 0)
		(void) pg_atomic_fetch_add_u64(&server->counters[counter], (int64) n);
}

void
stats_latency(StatsServer *server, StatsLatency latency, int64 us)
{
	int			bucket = 0;

	if (server == NULL)
		return;
	while (bucket < STATS_NBUCKETS - 1 && us > stats_bounds[bucket])
		bucket++;
	(void) pg_atomic_fetch_add_u64(&server->latencies[latency][bucket], 1);
}

void
stats_in_flight(StatsServer *server, int n)
{
	if (server != NULL)
		pg_atomic_write_u32(&server->in_flight, (uint32) n);
}

void
stats_state(StatsServer *server, const StatsState *state)
{
	/* nobody else writes it */
	if (server == NULL || memcmp(&server->state, state, sizeof(StatsState)) == 0)
		return;
	if (strcmp(state->state, "suspended") == 0 &&
		strcmp(server->state.state, "suspended") != 0)
		stats_count(server, STATS_SUSPENSIONS, 1);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	server->state = *state;
	LWLockRelease(lock);
}

/* Buckets that are older than all others become those of the time since. */
static void
turn_ring(uint32 *ring, int n, int64 *latest, int64 now)
{
	for (int i = 0; *latest + i < now && i < n; i++)
		ring[(now - i) % n] = 0;
	/* a clock that was set back goes on counting in the latest one */
	*latest = Max(*latest, now);
}

static void
turn_rings(StatsErrorTimes *times, TimestampTz now)
{
	turn_ring(times->minutes, STATS_MINUTES, &times->minute,
			  Max(now, 0) / (60 * USECS_PER_SEC));
	turn_ring(times->hours, STATS_HOURS, &times->hour,
			  Max(now, 0) / (3600 * USECS_PER_SEC));
}

/* The error's entry, or one that is free, or the one that is longest ago. */
static StatsErrorTimes *
find_error(const StatsServer *server, const StatsError *error, OutcomeClass class)
{
	StatsErrorTimes *oldest = &shared->errors[0];

	for (int i = 0; i < MAX_STATS_ERRORS; i++)
	{
		StatsErrorTimes *times = &shared->errors[i];

		if (times->dbid == server->dbid && times->serverid == server->serverid &&
			times->class == class && times->last.has_code == error->has_code &&
			times->last.code == error->code)
			return times;
		/* one that is free was never */
		if (times->last.at < oldest->last.at)
			oldest = times;
	}
	memset(oldest, 0, sizeof(StatsErrorTimes));
	oldest->dbid = server->dbid;
	oldest->serverid = server->serverid;
	oldest->class = class;
	return oldest;
}

void
stats_error(StatsServer *server, const StatsError *error, OutcomeClass class)
{
	StatsErrorTimes *times;

	if (server == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	server->error = *error;
	times = find_error(server, error, class);
	times->server = server->name;
	times->last = *error;
	turn_rings(times, error->at);
	times->minutes[times->minute % STATS_MINUTES]++;
	times->hours[times->hour % STATS_HOURS]++;
	LWLockRelease(lock);
}

static void
at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	for (int i = 0; i < MAX_STATS_SERVERS; i++)
	{
		if (shared->servers[i].dbid == MyDatabaseId)
			pg_atomic_write_u32(&shared->servers[i].in_flight, 0);
	}
}

void
stats_worker_begin(void)
{
	before_shmem_exit(at_exit, (Datum) 0);
}

/* ------------------------------------------------------------------------
 * Looking
 * ------------------------------------------------------------------------
 */

bool
stats_read_server(int n, StatsServer *copy)
{
	if (shared == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	*copy = shared->servers[n];
	LWLockRelease(lock);
	return OidIsValid(copy->dbid);
}

bool
stats_read_error(int n, StatsErrorTimes *copy, TimestampTz now)
{
	if (shared == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	*copy = shared->errors[n];
	LWLockRelease(lock);
	turn_rings(copy, now);
	return OidIsValid(copy->dbid);
}

double
stats_pace(const StatsServer *copy, TimestampTz now)
{
	uint64		step = (uint64) Max(now, 0) / STATS_PACE_STEP_US;
	uint64		last = copy->pace_step.value;
	TimestampTz began = Max((TimestampTz) (step - STATS_PACE_STEPS + 1) * STATS_PACE_STEP_US,
							copy->reset_at);
	double		sum = 0;

	for (uint64 i = 0; i < STATS_PACE_STEPS; i++)
	{
		/* steps that are too long ago are still there */
		if (last - i + STATS_PACE_STEPS > step)
			sum += copy->pace[(last - i) % STATS_PACE_STEPS].value;
	}
	return sum / Max((double) (now - began) / USECS_PER_SEC, 1.0);
}
