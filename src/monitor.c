/*-------------------------------------------------------------------------
 *
 * monitor.c
 *	  What the views pg_stat_timpush... show.
 *
 * Crash story: reads only, but for the reset of counters, which hold no truth.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/namespace.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/timestamp.h"

#include "apps.h"
#include "server.h"
#include "stats.h"

PG_FUNCTION_INFO_V1(timpush_stat_servers);
PG_FUNCTION_INFO_V1(timpush_stat_latencies);
PG_FUNCTION_INFO_V1(timpush_stat_errors);
PG_FUNCTION_INFO_V1(timpush_stat_queue);
PG_FUNCTION_INFO_V1(timpush_stat_reset);

/* Pushes are counted up to this; the planner estimates the others. */
#define MOST_COUNTED	10000

/* A row under construction. */
typedef struct Row
{
	Datum		values[32];
	bool		nulls[32];
	int			n;
} Row;

static void
add(Row *row, Datum value)
{
	row->nulls[row->n] = false;
	row->values[row->n++] = value;
}

static void
add_null(Row *row)
{
	row->values[row->n] = (Datum) 0;
	row->nulls[row->n++] = true;
}

static void
add_time(Row *row, TimestampTz time)
{
	if (time == 0)
		add_null(row);
	else
		add(row, TimestampTzGetDatum(time));
}

/* Of a database with another encoding, or what a peer has sent: ASCII is safe. */
static void
make_readable(char *text)
{
	if (pg_verify_mbstr(GetDatabaseEncoding(), text, (int) strlen(text), true))
		return;
	for (; *text != '\0'; text++)
	{
		if (IS_HIGHBIT_SET(*text))
			*text = '?';
	}
}

static void
add_text(Row *row, char *text)
{
	make_readable(text);
	if (text[0] == '\0')
		add_null(row);
	else
		add(row, CStringGetTextDatum(text));
}

static void
add_name(Row *row, NameData *name)
{
	make_readable(NameStr(*name));
	add(row, NameGetDatum(name));
}

static void
put_row(FunctionCallInfo fcinfo, Row *row)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	Assert(row->n == result->setDesc->natts);
	tuplestore_putvalues(result->setResult, result->setDesc, row->values, row->nulls);
	row->n = 0;
}

static void
add_limits(Row *row, const StatsServer *server, TimestampTz now)
{
	Allowance	allowance;
	bool		limited = app_look(server->dbid, server->serverid, now, &allowance) &&
	allowance.rates.calls > 0;
	double		rate = limited ? allowance.rates.calls : 0;
	double		missing = limited ? allowance.wait * rate / USECS_PER_SEC : 0;

	if (!limited)
	{
		add_null(row);
		add_null(row);
		return;
	}
	add(row, Float8GetDatum(rate));
	/* a bucket holds one; a pause, or accounts, may keep it empty for longer */
	add(row, Float8GetDatum(Max(1.0 - missing, 0)));
}

static void
add_health(Row *row, StatsServer *server, TimestampTz now)
{
	StatsState *state = &server->state;

	if (state->state[0] == '\0')
		add_null(row);
	else
		add(row, CStringGetTextDatum(!state->breaker_open ? "closed" :
									 state->open_until > now ? "open" : "half-open"));
	add_text(row, state->state);
	add_text(row, state->reason);
	add_time(row, state->since);
	add_text(row, server->error.text);
	if (server->error.has_code)
		add(row, Int32GetDatum(server->error.code));
	else
		add_null(row);
	add_time(row, server->error.at);
}

/*
 * timpush_stat_servers() returns setof record
 *
 * A row for each server of the cluster that has been counted.
 */
Datum
timpush_stat_servers(PG_FUNCTION_ARGS)
{
	TimestampTz now = GetCurrentTimestamp();
	StatsServer *server = palloc(sizeof(StatsServer));
	Row			row = {.n = 0};

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < MAX_STATS_SERVERS; i++)
	{
		if (!stats_read_server(i, server))
			continue;
		add(&row, ObjectIdGetDatum(server->dbid));
		add_name(&row, &server->name);
		for (int j = 0; j < STATS_NCOUNTERS; j++)
			add(&row, Int64GetDatum((int64) server->counters[j].value));
		add_limits(&row, server, now);
		add(&row, Int32GetDatum((int32) server->in_flight.value));
		add_health(&row, server, now);
		add_time(&row, server->reset_at);
		put_row(fcinfo, &row);
	}
	return (Datum) 0;
}

static Interval *
interval_of(int64 us)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = us;
	return interval;
}

/*
 * timpush_stat_latencies() returns setof record
 *
 * A row for each bucket of each distribution of each server of the cluster.
 */
Datum
timpush_stat_latencies(PG_FUNCTION_ARGS)
{
	static const char *const names[STATS_NLATENCIES] =
	{"commit to first byte", "request", "commit to accepted"};
	StatsServer *server = palloc(sizeof(StatsServer));
	Row			row = {.n = 0};

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < MAX_STATS_SERVERS * STATS_NLATENCIES * STATS_NBUCKETS; i++)
	{
		int			bucket = i % STATS_NBUCKETS;
		int			latency = i / STATS_NBUCKETS % STATS_NLATENCIES;

		if (bucket == 0 && latency == 0 &&
			!stats_read_server(i / STATS_NBUCKETS / STATS_NLATENCIES, server))
			server->dbid = InvalidOid;
		if (!OidIsValid(server->dbid))
			continue;
		add(&row, ObjectIdGetDatum(server->dbid));
		add_name(&row, &server->name);
		add(&row, CStringGetTextDatum(names[latency]));
		if (bucket < STATS_NBUCKETS - 1)
			add(&row, IntervalPGetDatum(interval_of(stats_bounds[bucket])));
		else
			add_null(&row);
		add(&row, Int64GetDatum((int64) server->latencies[latency][bucket].value));
		put_row(fcinfo, &row);
	}
	return (Datum) 0;
}

static int64
sum(const uint32 *counts, int n)
{
	int64		total = 0;

	for (int i = 0; i < n; i++)
		total += counts[i];
	return total;
}

/*
 * timpush_stat_errors() returns setof record
 *
 * A row for each error of each server that has come in the last day.
 */
Datum
timpush_stat_errors(PG_FUNCTION_ARGS)
{
	TimestampTz now = GetCurrentTimestamp();
	StatsErrorTimes *times = palloc(sizeof(StatsErrorTimes));
	Row			row = {.n = 0};

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < MAX_STATS_ERRORS; i++)
	{
		if (!stats_read_error(i, times, now) || sum(times->hours, STATS_HOURS) == 0)
			continue;
		add(&row, ObjectIdGetDatum(times->dbid));
		add_name(&row, &times->server);
		if (times->last.has_code)
			add(&row, Int32GetDatum(times->last.code));
		else
			add_null(&row);
		add(&row, CStringGetTextDatum(outcome_class_name(times->class)));
		add(&row, Int64GetDatum(sum(times->minutes, STATS_MINUTES)));
		add(&row, Int64GetDatum(sum(times->hours, STATS_HOURS)));
		add_text(&row, times->last.text);
		add_time(&row, times->last.at);
		put_row(fcinfo, &row);
	}
	return (Datum) 0;
}

/* ------------------------------------------------------------------------
 * The queue
 * ------------------------------------------------------------------------
 */

/* Pushes of a server, of which each range of the index gives so many at most. */
#define COUNT_PUSHES(compare) \
	"SELECT pg_catalog.count(*), pg_catalog.sum(r.accounts), pg_catalog.min(r.send_at) " \
	"FROM pg_catalog.generate_series(0, 9) p, LATERAL (" \
	"SELECT o.accounts OPERATOR(pg_catalog.-) o.handed_out AS accounts, o.send_at FROM %1$s.push_outbox o " \
	"WHERE o.server OPERATOR(pg_catalog.=) %2$s::pg_catalog.name AND o.priority OPERATOR(pg_catalog.=) p " \
	"AND o.send_at OPERATOR(pg_catalog." compare ") pg_catalog.statement_timestamp() " \
	"ORDER BY o.send_at, o.id LIMIT %3$d) r"

/* The same for who estimates. */
#define ALL_PUSHES(compare) \
	"SELECT FROM %1$s.push_outbox o WHERE o.server OPERATOR(pg_catalog.=) %2$s::pg_catalog.name " \
	"AND o.send_at OPERATOR(pg_catalog." compare ") pg_catalog.statement_timestamp()"

#define COUNT_RETRIES \
	"SELECT pg_catalog.count(*) FROM (SELECT FROM %1$s.push_request q " \
	"WHERE q.server OPERATOR(pg_catalog.=) %2$s::pg_catalog.name " \
	"AND q.next_attempt_at OPERATOR(pg_catalog.>) '-infinity' AND q.state OPERATOR(pg_catalog.=) 'retry' LIMIT %3$d) r"

#define SERVER_RESTS \
	"SELECT s.state OPERATOR(pg_catalog.<>) 'active' FROM %1$s.push_server s " \
	"WHERE s.server OPERATOR(pg_catalog.=) %2$s::pg_catalog.name"

/* A number of pushes, and what is known of them. */
typedef struct Count
{
	double		pushes;
	double		accounts;
	TimestampTz first;			/* 0: there is none */
} Count;

/* A column of the first row of the result, 0 if it is null. */
static Datum
result(int column)
{
	bool		isnull;
	Datum		value = (Datum) 0;

	if (SPI_processed > 0)
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull);
	return value;
}

static void
query(const char *text, const char *schema, const char *server)
{
	if (SPI_execute(psprintf(text, schema, server, MOST_COUNTED + 1), true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look at the queue");
}

/* How many rows the planner expects. */
static double
estimate(const char *text, const char *schema, const char *server)
{
	SPIPlanPtr	plan = SPI_prepare(psprintf(text, schema, server, 0), 0, NULL);
	CachedPlan *cached = plan != NULL ? SPI_plan_get_cached_plan(plan) : NULL;
	double		rows = 0;

	if (cached != NULL)
	{
		rows = linitial_node(PlannedStmt, cached->stmt_list)->planTree->plan_rows;
		ReleaseCachedPlan(cached, NULL);
	}
	if (plan != NULL)
		SPI_freeplan(plan);
	return rows;
}

static Count
count_pushes(const char *counting, const char *estimating, const char *schema, const char *server)
{
	Count		count = {0};
	double		per_push;

	query(counting, schema, server);
	count.pushes = DatumGetInt64(result(1));
	count.accounts = DatumGetInt64(result(2));
	count.first = DatumGetTimestampTz(result(3));
	if (count.pushes <= MOST_COUNTED)
		return count;
	per_push = count.accounts / count.pushes;
	count.pushes = Max(rint(estimate(estimating, schema, server)), count.pushes);
	count.accounts = per_push * count.pushes;
	return count;
}

/* Accounts that the worker takes in a second, 0 if it has taken none lately. */
static double
pace_of(Oid serverid, TimestampTz now)
{
	StatsServer *server = palloc(sizeof(StatsServer));
	double		pace = 0;

	for (int i = 0; i < MAX_STATS_SERVERS; i++)
	{
		if (stats_read_server(i, server) && server->dbid == MyDatabaseId &&
			server->serverid == serverid)
			pace = stats_pace(server, now);
	}
	pfree(server);
	return pace;
}

static void
add_queue(Row *row, Oid serverid, NameData *name, const char *schema)
{
	TimestampTz now = GetCurrentTimestamp();
	const char *server = quote_literal_cstr(NameStr(*name));
	double		pace = pace_of(serverid, now);
	Count		due = count_pushes(COUNT_PUSHES("<="), ALL_PUSHES("<="), schema, server);
	Count		scheduled = count_pushes(COUNT_PUSHES(">"), ALL_PUSHES(">"), schema, server);
	int64		retrying;
	bool		rests;

	query(COUNT_RETRIES, schema, server);
	retrying = DatumGetInt64(result(1));
	query(SERVER_RESTS, schema, server);
	rests = DatumGetBool(result(1));
	add_name(row, name);
	add(row, Int64GetDatum(rests ? 0 : (int64) due.pushes));
	add(row, Int64GetDatum((int64) scheduled.pushes));
	add(row, Int64GetDatum(retrying));
	add(row, Int64GetDatum(rests ? (int64) due.pushes : 0));
	if (due.first != 0)
		add(row, IntervalPGetDatum(interval_of(Max(now - due.first, 0))));
	else
		add_null(row);
	if (due.pushes == 0)
		add(row, IntervalPGetDatum(interval_of(0)));
	else if (pace > 0 && !rests)
		add(row, IntervalPGetDatum(interval_of((int64) (due.accounts / pace * USECS_PER_SEC))));
	else
		add_null(row);
}

/*
 * timpush_stat_queue() returns setof record
 *
 * A row for each server of the database: what waits for it, at a cost that
 * does not depend on how much that is.  It is SECURITY DEFINER and sets how
 * the planner may go about it.
 */
Datum
timpush_stat_queue(PG_FUNCTION_ARGS)
{
	const char *schema = quote_identifier(get_namespace_name(get_func_namespace(fcinfo->flinfo->fn_oid)));
	List	   *servers = server_list_all();
	ListCell   *cell;
	Row			row = {.n = 0};

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, servers)
	{
		NameData	name;

		server_get_name(lfirst_oid(cell), &name);
		SPI_connect();
		add_queue(&row, lfirst_oid(cell), &name, schema);
		put_row(fcinfo, &row);
		SPI_finish();
	}
	return (Datum) 0;
}

/*
 * timpush_stat_reset(server name) returns void
 *
 * Set to zero what was counted of a server of the database, or of all of them
 * if it is null.  Errors: undefined_object.
 */
Datum
timpush_stat_reset(PG_FUNCTION_ARGS)
{
	Oid			serverid = InvalidOid;

	if (!PG_ARGISNULL(0))
		serverid = get_foreign_server_oid(NameStr(*PG_GETARG_NAME(0)), false);
	stats_reset(MyDatabaseId, serverid);
	PG_RETURN_VOID();
}
