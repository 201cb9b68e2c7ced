/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  What is counted of each server, in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_STATS_H
#define TIMPUSH_STATS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/lwlock.h"

#include "response.h"

/* Servers of the cluster that are counted; further ones are not. */
#define MAX_STATS_SERVERS	1024

/* Errors of which the times are kept; the oldest gives way to a new one. */
#define MAX_STATS_ERRORS	1024

#define STATS_TEXT			256 /* bytes kept of a text, with its end */

/* Counted accounts, but where it says otherwise. */
typedef enum StatsCounter
{
	STATS_ENQUEUED,
	STATS_CLAIMED,
	STATS_REQUESTS,				/* attempts at a call */
	STATS_ACCEPTED,
	STATS_FAILED,
	STATS_EXPIRED,
	STATS_CANCELLED,
	STATS_UNKNOWN,
	STATS_MAYBE_DUPLICATE,
	STATS_RETRIES,				/* attempts but the first of each call */
	STATS_THROTTLES,			/* answers */
	STATS_SUSPENSIONS,
	STATS_BYTES,				/* of bodies */
	STATS_CONNECTIONS			/* that were opened */
} StatsCounter;

#define STATS_NCOUNTERS		(STATS_CONNECTIONS + 1)

/* Times whose distribution is kept. */
typedef enum StatsLatency
{
	STATS_FIRST_BYTE,			/* from the enqueueing to the first attempt */
	STATS_REQUEST,				/* from the begin of an attempt to its answer */
	STATS_ACCEPTANCE			/* from the enqueueing to the good answer */
} StatsLatency;

#define STATS_NLATENCIES	(STATS_ACCEPTANCE + 1)
#define STATS_NBUCKETS		20

/* Upper bounds of the buckets, in microseconds; the last one has none. */
extern const int64 stats_bounds[STATS_NBUCKETS - 1];

/* The state of a server, as its worker last had it. */
typedef struct StatsState
{
	char		state[16];		/* as push_server has it; empty: not known */
	char		reason[STATS_TEXT];
	TimestampTz since;
	bool		breaker_open;
	TimestampTz open_until;
} StatsState;

/* The last error. */
typedef struct StatsError
{
	bool		has_code;
	int			code;
	char		text[STATS_TEXT];
	TimestampTz at;				/* 0: there was none */
} StatsError;

/* Accounts that were claimed in the last two minutes, in steps of 10 s. */
#define STATS_PACE_STEPS	12
#define STATS_PACE_STEP_US	INT64CONST(10000000)

typedef struct StatsServer
{
	/* under the lock; read without it by who has found the entry before */
	Oid			dbid;			/* InvalidOid: free */
	Oid			serverid;
	NameData	name;
	TimestampTz reset_at;
	StatsState	state;
	StatsError	error;
	/* without a lock */
	pg_atomic_uint64 counters[STATS_NCOUNTERS];
	pg_atomic_uint64 latencies[STATS_NLATENCIES][STATS_NBUCKETS];
	pg_atomic_uint32 in_flight;
	pg_atomic_uint64 pace_step; /* the latest */
	pg_atomic_uint32 pace[STATS_PACE_STEPS];
} StatsServer;

#define STATS_MINUTES		60
#define STATS_HOURS			24

/* How often an error came, by minute and hour. */
typedef struct StatsErrorTimes
{
	Oid			dbid;			/* InvalidOid: free */
	Oid			serverid;
	NameData	server;
	OutcomeClass class;
	StatsError	last;
	int64		minute;			/* since the epoch: the latest */
	int64		hour;
	uint32		minutes[STATS_MINUTES];
	uint32		hours[STATS_HOURS];
} StatsErrorTimes;

/* For shared.c, which owns the shared memory. */
extern Size stats_shmem_size(void);
extern void stats_shmem_init(void *memory, LWLock *lock, bool found);

/*
 * What a transaction has to count of a server of the current database, by
 * name: it counts if that commits, of subtransactions those that do.
 */
extern void stats_add(const NameData *server, StatsCounter counter, uint64 n);

/*
 * The entry of a server of the current database, made if need be, and with
 * that name from now on.  NULL if there is no room or no shared memory: the
 * functions below take that and do nothing.
 */
extern StatsServer *stats_server(Oid serverid, const char *name);

/* The worker's side; these take effect at once. */
extern void stats_count(StatsServer *server, StatsCounter counter, uint64 n);
extern void stats_latency(StatsServer *server, StatsLatency latency, int64 us);
extern void stats_error(StatsServer *server, const StatsError *error, OutcomeClass class);
extern void stats_in_flight(StatsServer *server, int n);
extern void stats_state(StatsServer *server, const StatsState *state);

/* Nothing of the current database is in flight when the process ends. */
extern void stats_worker_begin(void);

/* Forget servers of the current database other than these; of a database, all. */
extern void stats_keep_servers(List *serverids);
extern void stats_forget_database(Oid dbid);

/* Set to zero what was counted of a server, or of all of the database. */
extern void stats_reset(Oid dbid, Oid serverid);

/*
 * Copies for those who look; false where the entry is free.  Counts of errors
 * are as of now.
 */
extern bool stats_read_server(int n, StatsServer *copy);
extern bool stats_read_error(int n, StatsErrorTimes *copy, TimestampTz now);

/* Accounts a second that have been claimed lately. */
extern double stats_pace(const StatsServer *copy, TimestampTz now);

#endif							/* TIMPUSH_STATS_H */
