/*-------------------------------------------------------------------------
 *
 * outbox.c
 *	  The worker's SQL: claiming what may leave, recording what came of it.
 *
 * All statements are listed here, prepared once, and work on many rows at a
 * time.  They run with the rights of the tables' owner, in transactions
 * during which nothing is waited for.
 *
 * Crash story: a claim is committed before a byte leaves, so after a crash
 * the journal has every request that the API may have seen, as "sending".
 * An outcome is there wholly or not at all; one that was lost leaves its
 * request "sending" too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "journal.h"
#include "load.h"
#include "outbox.h"
#include "outbox_columns.h"
#include "owner.h"
#include "timpush.h"

/*
 * Rows of one content that a claim reads at most for each request that it
 * may make, and for all of them together.
 */
#define MAX_ROWS_PER_CLAIM	2000

/*
 * On a server without a limit calls are not scarce.  When so many looks for
 * riders behind the first rows have found none, only each eighth claim looks.
 */
#define MISSES_TO_RELAX		8
#define RELAXED_INTERVAL	8

/* Statements; "@" stands for the schema. */
typedef enum Statement
{
	LOAD_HEADS,
	FIND_MORE,
	LOAD_ALIKE,
	LOAD_EXPIRED,
	DELETE_PUSHES,
	UPDATE_HANDED_OUT,
	INSERT_REQUESTS,
	INSERT_RESULTS,
	FIND_RETRIES,
	FIND_ORPHANS,
	NOTE_IN_FLIGHT,
	LOAD_MEMBERS,
	RESEND_REQUESTS,
	SENT_REQUESTS,
	CHANGE_REQUESTS,
	SENT_RESULTS,
	CHANGE_RESULTS,
	COPY_RESULTS,
	MOVE_RESULTS,
	INSERT_ERRORS,
	LOAD_SERVER,
	INSERT_SERVER,
	NOTE_SERVER,
	RETRY_DUE,
	PUSH_DUE,
	EXPIRY_DUE,
	NSTATEMENTS
} Statement;

#define MAX_PARAMS 7

/* Parameter types that are known only when the tables are. */
#define REQUEST_ARRAY	((Oid) 1)
#define RESULT_ARRAY	((Oid) 2)
#define ERROR_ARRAY		((Oid) 3)

static const struct
{
	const char *sql;
	Oid			params[MAX_PARAMS];
}			statements[NSTATEMENTS] = {

	[LOAD_HEADS] = {
		"SELECT h.* "
		"FROM unnest('{9,8,7,6,5,4,3,2,1,0}'::integer[]) p CROSS JOIN LATERAL ("
		" SELECT o.*, o.ctid FROM @.push_outbox o"
		" WHERE o.server = $1 AND o.priority = p AND o.send_at <= $2"
		" AND (o.expires_at IS NULL OR o.expires_at > $2)"
		" ORDER BY o.send_at, o.id LIMIT $3 FOR UPDATE SKIP LOCKED) h "
		"LIMIT $3",
		{NAMEOID, TIMESTAMPTZOID, INT8OID}
	},
	[FIND_MORE] = {
		"SELECT u.key FROM unnest($1, $2) u(key, n) WHERE u.n < ("
		" SELECT count(*) FROM (SELECT FROM @.push_outbox w"
		" WHERE w.content_key = u.key AND w.server = $3 AND w.send_at <= $4"
		" LIMIT u.n + 1) more)",
		{INT8ARRAYOID, INT4ARRAYOID, NAMEOID, TIMESTAMPTZOID}
	},
	[LOAD_ALIKE] = {
		"SELECT o.* "
		"FROM unnest($1) k CROSS JOIN LATERAL ("
		" SELECT w.*, w.ctid FROM @.push_outbox w"
		" WHERE w.content_key = k AND w.server = $2 AND w.send_at <= $3"
		" AND (w.expires_at IS NULL OR w.expires_at > $3)"
		" ORDER BY w.send_at, w.id LIMIT $4 FOR UPDATE SKIP LOCKED) o",
		{INT8ARRAYOID, NAMEOID, TIMESTAMPTZOID, INT8OID}
	},
	[LOAD_EXPIRED] = {
		"SELECT o.*, o.ctid FROM @.push_outbox o WHERE o.expires_at <= $1 "
		"ORDER BY o.expires_at LIMIT $2 FOR UPDATE SKIP LOCKED",
		{TIMESTAMPTZOID, INT8OID}
	},
	[DELETE_PUSHES] = {
		"DELETE FROM @.push_outbox WHERE ctid = ANY ($1)",
		{TIDARRAYOID}
	},
	[UPDATE_HANDED_OUT] = {
		"UPDATE @.push_outbox o SET handed_out = o.handed_out + u.n "
		"FROM unnest($1, $2) u(id, n) WHERE o.id = u.id",
		{INT8ARRAYOID, INT4ARRAYOID}
	},
	[INSERT_REQUESTS] = {
		"INSERT INTO @.push_request SELECT * FROM unnest($1)",
		{REQUEST_ARRAY}
	},
	[INSERT_RESULTS] = {
		"INSERT INTO @.push_result SELECT * FROM unnest($1)",
		{RESULT_ARRAY}
	},
	[FIND_RETRIES] = {
		"SELECT " REQUEST_COLUMNS " FROM @.push_request q "
		"WHERE q.server = $1 AND q.next_attempt_at <= $2 AND q.state = 'retry' "
		"ORDER BY q.next_attempt_at, q.id LIMIT $3 FOR UPDATE SKIP LOCKED",
		{NAMEOID, TIMESTAMPTZOID, INT8OID}
	},
	[FIND_ORPHANS] = {
		"SELECT " REQUEST_COLUMNS " FROM @.push_request q "
		"WHERE q.id >= (SELECT first_in_flight FROM @.push_worker) AND q.state = 'sending' "
		"UNION ALL "
		"SELECT " REQUEST_COLUMNS " FROM @.push_request q "
		"WHERE q.id < (SELECT first_in_flight FROM @.push_worker) AND q.state = 'sending'"
		" AND q.next_attempt_at IS NOT NULL",
		{0}
	},
	[NOTE_IN_FLIGHT] = {
		"UPDATE @.push_worker SET first_in_flight = $1",
		{INT8OID}
	},
	[LOAD_MEMBERS] = {
		"SELECT r.request_id, r.push_id, r.first, r.accounts, r.expires_at "
		"FROM @.push_request q CROSS JOIN unnest(q.push_ids) p"
		" JOIN @.push_result r ON r.push_id = p AND r.request_id = q.id "
		"WHERE q.id = ANY ($1) ORDER BY r.request_id, r.first",
		{INT8ARRAYOID}
	},
	[RESEND_REQUESTS] = {
		"UPDATE @.push_request q SET state = 'sending', msg_random = u.msg_random,"
		" resends = u.resends, maybe_duplicate = u.maybe_duplicate "
		"FROM unnest($1) u WHERE q.id = u.id",
		{REQUEST_ARRAY}
	},
	[SENT_REQUESTS] = {
		"UPDATE @.push_request q SET state = 'done', attempts = u.attempts,"
		" in_doubt = false, http_status = u.http_status,"
		" task_id = nullif(u.task_id, ''), error_code = 0, error_info = '',"
		" class = 'sent', first_sent_at = u.first_sent_at, next_attempt_at = NULL,"
		" finished_at = u.ended_at, latency = u.ended_at - u.sent_at "
		"FROM unnest($1, $2, $3, $4, $5, $6, $7)"
		" u(id, attempts, http_status, task_id, first_sent_at, sent_at, ended_at) "
		"WHERE q.id = u.id",
		{INT8ARRAYOID, INT4ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
		TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID}
	},
	[CHANGE_REQUESTS] = {
		"UPDATE @.push_request q SET state = u.state, msg_random = u.msg_random,"
		" attempts = u.attempts, resends = u.resends, in_doubt = u.in_doubt,"
		" http_status = CASE WHEN u.class IS NULL THEN q.http_status ELSE u.http_status END,"
		" task_id = u.task_id,"
		" error_code = CASE WHEN u.class IS NULL THEN q.error_code ELSE u.error_code END,"
		" error_info = CASE WHEN u.class IS NULL THEN q.error_info ELSE u.error_info END,"
		" class = coalesce(u.class, q.class), maybe_duplicate = u.maybe_duplicate,"
		" first_sent_at = u.first_sent_at, next_attempt_at = u.next_attempt_at,"
		" finished_at = u.finished_at, latency = coalesce(u.latency, q.latency) "
		"FROM unnest($1) u WHERE q.id = u.id",
		{REQUEST_ARRAY}
	},
	[SENT_RESULTS] = {
		"UPDATE @.push_result r SET state = 'sent', finished_at = $3 "
		"FROM unnest($1, $2) u(push_id, request_id) "
		"WHERE r.push_id = u.push_id AND r.request_id = u.request_id",
		{INT8ARRAYOID, INT8ARRAYOID, TIMESTAMPTZOID}
	},
	[CHANGE_RESULTS] = {
		"UPDATE @.push_result r SET state = u.state, failed = u.failed,"
		" retried = u.retried, maybe_duplicate = u.maybe_duplicate,"
		" finished_at = u.finished_at "
		"FROM unnest($1) u WHERE r.request_id = u.request_id AND r.push_id = u.push_id",
		{RESULT_ARRAY}
	},
	[COPY_RESULTS] = {
		"INSERT INTO @.push_result "
		"SELECT u.push_id, u.request_id, u.first, u.accounts, u.state, u.failed,"
		" u.retried, u.maybe_duplicate, r.server, r.enqueued_by, r.data_id,"
		" r.dedup_key, r.push_accounts, r.priority, r.expires_at, r.enqueued_at,"
		" u.finished_at "
		"FROM unnest($1) u JOIN @.push_request c ON c.id = u.request_id "
		"JOIN @.push_result r ON r.request_id = c.parent AND r.push_id = u.push_id",
		{RESULT_ARRAY}
	},
	[MOVE_RESULTS] = {
		"UPDATE @.push_result r SET request_id = u.request_id, first = u.first,"
		" state = u.state, maybe_duplicate = u.maybe_duplicate,"
		" finished_at = u.finished_at "
		"FROM unnest($1) u JOIN @.push_request c ON c.id = u.request_id "
		"WHERE r.request_id = c.parent AND r.push_id = u.push_id",
		{RESULT_ARRAY}
	},
	[INSERT_ERRORS] = {
		"INSERT INTO @.push_error "
		"SELECT u.push_id, u.request_id, u.account, u.error_code, u.error_info,"
		" u.class, r.enqueued_by "
		"FROM unnest($1) u JOIN @.push_result r"
		" ON r.request_id = u.request_id AND r.push_id = u.push_id",
		{ERROR_ARRAY}
	},
	[LOAD_SERVER] = {
		"SELECT s.state, k.random_key, k.server_oid, s.next_probe_at, s.reason,"
		" s.error_code, k.options_version "
		"FROM @.push_server s JOIN @.push_server_key k ON k.server = s.server "
		"WHERE s.server = $1",
		{NAMEOID}
	},
	[INSERT_SERVER] = {
		"WITH key AS ("
		" INSERT INTO @.push_server_key (server, server_oid, random_key) VALUES ($1, $2, $3)"
		" ON CONFLICT (server) DO UPDATE SET server_oid = excluded.server_oid,"
		" random_key = excluded.random_key) "
		"INSERT INTO @.push_server (server) VALUES ($1) ON CONFLICT (server) DO NOTHING",
		{NAMEOID, OIDOID, INT8OID}
	},
	[NOTE_SERVER] = {
		"WITH key AS ("
		" UPDATE @.push_server_key SET options_version = $6 WHERE server = $1) "
		"UPDATE @.push_server SET state = $2, reason = $3, error_code = $4,"
		" since = clock_timestamp(), next_probe_at = $5 "
		"WHERE server = $1 AND state IN ('active', 'suspended')",
		{NAMEOID, TEXTOID, TEXTOID, INT4OID, TIMESTAMPTZOID, INT8OID}
	},
	[RETRY_DUE] = {
		"SELECT min(next_attempt_at) FROM @.push_request "
		"WHERE server = $1 AND next_attempt_at IS NOT NULL AND state = 'retry'",
		{NAMEOID}
	},
	[PUSH_DUE] = {
		"SELECT min(d.send_at) "
		"FROM unnest('{9,8,7,6,5,4,3,2,1,0}'::integer[]) p CROSS JOIN LATERAL ("
		" SELECT o.send_at FROM @.push_outbox o"
		" WHERE o.server = $1 AND o.priority = p"
		" ORDER BY o.send_at, o.id LIMIT 1) d",
		{NAMEOID}
	},
	[EXPIRY_DUE] = {
		"SELECT min(expires_at) FROM @.push_outbox WHERE expires_at IS NOT NULL",
		{0}
	},
};

static SPIPlanPtr plans[NSTATEMENTS];

/* What outbox_open() found; stays for the life of the process. */
static Oid	schema_oid = InvalidOid;
static char *schema_name;
static Oid	outbox_oid = InvalidOid;
static Journal journal;

/* Our tables with their indexes and sequences: what a transaction locks. */
static const char *const table_names[] = {
	"push_outbox", "push_request", "push_result", "push_error", "push_server",
	"push_server_key", "push_worker"
};
static List *lock_oids = NIL;

static OwnerScope scope;

/* ------------------------------------------------------------------------
 * Statements and transactions
 * ------------------------------------------------------------------------
 */

static Oid
param_type(Oid type)
{
	if (type == REQUEST_ARRAY)
		return journal.new_requests.array_type;
	if (type == RESULT_ARRAY)
		return journal.new_results.array_type;
	if (type == ERROR_ARRAY)
		return journal.errors.array_type;
	return type;
}

static SPIPlanPtr
plan_of(Statement statement)
{
	StringInfoData sql;
	Oid			types[MAX_PARAMS];
	int			nparams = 0;

	if (plans[statement] != NULL)
		return plans[statement];
	initStringInfo(&sql);
	for (const char *p = statements[statement].sql; *p != '\0'; p++)
	{
		if (*p == '@')
			appendStringInfoString(&sql, schema_name);
		else
			appendStringInfoChar(&sql, *p);
	}
	while (nparams < MAX_PARAMS && OidIsValid(statements[statement].params[nparams]))
	{
		types[nparams] = param_type(statements[statement].params[nparams]);
		nparams++;
	}
	plans[statement] = SPI_prepare(sql.data, nparams, types);
	if (plans[statement] == NULL || SPI_keepplan(plans[statement]) != 0)
		elog(ERROR, "could not prepare statement %d", statement);
	return plans[statement];
}

/* Run a statement; its rows, if any, are in SPI_tuptable. */
static void
run(Statement statement, Datum *values, const char *nulls)
{
	int			result = SPI_execute_plan(plan_of(statement), values, nulls, false, 0);

	if (result < 0)
		elog(ERROR, "statement %d failed: %s", statement,
			 SPI_result_code_string(result));
}

/* Hand over collected rows, if there are any. */
static void
run_rows(Statement statement, const RowSet *rows)
{
	Datum		value;

	if (rows->nrows == 0)
		return;
	value = rowset_array(rows);
	run(statement, &value, NULL);
}

/* An array of a type that has no nulls here. */
static Datum
array_of(Datum *values, int n, Oid type)
{
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(type, &len, &byval, &align);
	return PointerGetDatum(construct_array(values, n, type, len, byval, align));
}

static Datum
server_name(const ServerOptions *server)
{
	Name		name = palloc0(NAMEDATALEN);

	namestrcpy(name, server->name);
	return NameGetDatum(name);
}

/* Schema and version of the extension in this database. */
static bool
find_extension(Oid *schema, char **version)
{
	bool		found;
	bool		isnull;
	MemoryContext caller = CurrentMemoryContext;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute("SELECT extnamespace, extversion FROM pg_catalog.pg_extension WHERE extname = 'timpush'",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look up the extension");
	found = SPI_processed == 1;
	if (found)
	{
		*schema = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
												 SPI_tuptable->tupdesc, 1, &isnull));
		*version = MemoryContextStrdup(caller,
									   SPI_getvalue(SPI_tuptable->vals[0],
													SPI_tuptable->tupdesc, 2));
	}
	SPI_finish();
	PopActiveSnapshot();
	return found;
}

static void
describe_tables(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	rowset_describe(&journal.new_requests, get_relname_relid("push_request", schema_oid));
	journal.changed_requests = journal.new_requests;
	rowset_describe(&journal.new_results, get_relname_relid("push_result", schema_oid));
	journal.changed_results = journal.copied_results = journal.moved_results = journal.new_results;
	rowset_describe(&journal.errors, get_relname_relid("push_error", schema_oid));
	journal.request_seq = get_relname_relid("push_request_id_seq", schema_oid);
	journal.msg_random_seq = get_relname_relid("push_msg_random_seq", schema_oid);
	MemoryContextSwitchTo(old);
}

/* Add a table, its indexes and its TOAST table to what is to be locked. */
static void
add_lock_oids(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	Oid			toast = rel->rd_rel->reltoastrelid;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	lock_oids = lappend_oid(lock_oids, relid);
	lock_oids = list_concat(lock_oids, RelationGetIndexList(rel));
	MemoryContextSwitchTo(old);
	table_close(rel, AccessShareLock);
	if (OidIsValid(toast))
		add_lock_oids(toast);
}

static void
collect_lock_oids(void)
{
	MemoryContext old;

	for (size_t i = 0; i < lengthof(table_names); i++)
		add_lock_oids(get_relname_relid(table_names[i], schema_oid));
	old = MemoryContextSwitchTo(TopMemoryContext);
	lock_oids = lappend_oid(lock_oids, journal.request_seq);
	lock_oids = lappend_oid(lock_oids, journal.msg_random_seq);
	MemoryContextSwitchTo(old);
}

/* Take all locks without waiting for any; false if one is not to be had. */
static bool
lock_all(void)
{
	ListCell   *cell;

	foreach(cell, lock_oids)
	{
		if (!ConditionalLockRelationOid(lfirst_oid(cell), RowExclusiveLock))
			return false;
	}
	return true;
}

static int
column_count(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	int			count = RelationGetDescr(rel)->natts;

	table_close(rel, AccessShareLock);
	return count;
}

bool
outbox_open(void)
{
	char	   *version;

	if (!find_extension(&schema_oid, &version))
		return false;
	if (strcmp(version, TIMPUSH_VERSION) != 0)
	{
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("timpush: library is version %s, but the extension in database \"%s\" is version %s",
						TIMPUSH_VERSION, get_database_name(MyDatabaseId), version),
				 errhint("Run ALTER EXTENSION timpush UPDATE.")));
		return false;
	}
	schema_name = MemoryContextStrdup(TopMemoryContext,
									  quote_identifier(get_namespace_name(schema_oid)));
	outbox_oid = get_relname_relid("push_outbox", schema_oid);
	for (size_t i = 0; i < lengthof(table_names); i++)
	{
		if (!OidIsValid(get_relname_relid(table_names[i], schema_oid)))
			return false;
	}
	describe_tables();
	collect_lock_oids();
	if (journal.new_requests.desc->natts != REQUEST_NATTS ||
		journal.new_results.desc->natts != RESULT_NATTS ||
		journal.errors.desc->natts != ERROR_NATTS ||
		column_count(outbox_oid) != OUTBOX_NATTS)
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("timpush: tables of the extension in database \"%s\" have been altered, so nothing is sent",
						get_database_name(MyDatabaseId)),
				 errhint("Drop the columns that were added to push_outbox, push_request, push_result or push_error, or create the extension anew.")));
		return false;
	}
	return true;
}

OutboxAccess
outbox_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!lock_all())
	{
		CommitTransactionCommand();
		return OUTBOX_LOCKED;
	}
	/* now that nobody can drop them: are they still there? */
	if (get_relname_relid("push_outbox", schema_oid) != outbox_oid ||
		strcmp(quote_identifier(get_namespace_name(schema_oid)), schema_name) != 0)
	{
		CommitTransactionCommand();
		return OUTBOX_GONE;
	}
	owner_enter(&scope, outbox_oid, SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	return OUTBOX_READY;
}

void
outbox_commit(void)
{
	PopActiveSnapshot();
	SPI_finish();
	owner_leave(&scope);
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

void
outbox_abort(void)
{
	AbortCurrentTransaction();
}

/* ------------------------------------------------------------------------
 * Servers
 * ------------------------------------------------------------------------
 */

static void
add_server(const ServerOptions *server)
{
	uint64		key;
	Datum		values[3];

	if (!pg_strong_random(&key, sizeof(key)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	values[0] = server_name(server);
	values[1] = ObjectIdGetDatum(server->oid);
	values[2] = Int64GetDatum((int64) key);
	run(INSERT_SERVER, values, NULL);
}

void
outbox_server_state(const ServerOptions *server, ServerState *state)
{
	Datum		name = server_name(server);
	bool		isnull;
	char	   *label;
	HeapTuple	tuple;
	TupleDesc	desc;

	run(LOAD_SERVER, &name, NULL);
	/* a server made anew under an old name draws a key of its own */
	if (SPI_processed == 0 ||
		DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									   3, &isnull)) != server->oid)
	{
		add_server(server);
		run(LOAD_SERVER, &name, NULL);
	}
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	label = SPI_getvalue(tuple, desc, 1);
	state->paused = strcmp(label, "paused") == 0 || strcmp(label, "held") == 0;
	state->suspended = strcmp(label, "suspended") == 0;
	state->random_key = (uint64) DatumGetInt64(load_column(tuple, desc, 2));
	state->next_probe_at = DatumGetTimestampTz(load_column(tuple, desc, 4));
	state->reason = SPI_getvalue(tuple, desc, 5);
	state->error_code = DatumGetInt32(load_column(tuple, desc, 6));
	state->options_version = (uint64) DatumGetInt64(load_column(tuple, desc, 7));
}

void
outbox_note_server(const ServerOptions *server, const char *state,
				   const char *reason, int error_code, TimestampTz next_probe_at)
{
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};

	values[0] = server_name(server);
	values[1] = CStringGetTextDatum(state);
	values[2] = CStringGetTextDatum(reason != NULL ? reason : "");
	nulls[2] = reason != NULL ? ' ' : 'n';
	values[3] = Int32GetDatum(error_code);
	nulls[3] = error_code != 0 ? ' ' : 'n';
	values[4] = TimestampTzGetDatum(next_probe_at);
	nulls[4] = next_probe_at != 0 ? ' ' : 'n';
	values[5] = Int64GetDatum((int64) server->version);
	run(NOTE_SERVER, values, nulls);
}

/* ------------------------------------------------------------------------
 * Claiming from the outbox
 * ------------------------------------------------------------------------
 */

/* Rows that are handed out entirely leave; of others the rest stays. */
static void
remove_taken(const Loaded *loaded)
{
	Datum	   *gone = palloc(sizeof(Datum) * loaded->n);
	Datum	   *partly = palloc(sizeof(Datum) * loaded->n);
	Datum	   *counts = palloc(sizeof(Datum) * loaded->n);
	int			ngone = 0;
	int			npartly = 0;
	Datum		values[2];

	for (int i = 0; i < loaded->n; i++)
	{
		const ComposeRow *row = &loaded->rows[i];

		if (row->taken >= row->naccounts)
			gone[ngone++] = PointerGetDatum(&loaded->tids[i]);
		else if (row->taken > 0)
		{
			partly[npartly] = Int64GetDatum(row->id);
			counts[npartly++] = Int32GetDatum(row->taken);
		}
	}
	if (ngone > 0)
	{
		/* the rows are locked, so they are where we found them */
		values[0] = array_of(gone, ngone, TIDOID);
		run(DELETE_PUSHES, values, NULL);
	}
	if (npartly > 0)
	{
		values[0] = array_of(partly, npartly, INT8OID);
		values[1] = array_of(counts, npartly, INT4OID);
		run(UPDATE_HANDED_OUT, values, NULL);
	}
}

/* Turn loaded rows into at most "max" requests of the journal. */
static List *
journal_rows(Loaded *loaded, const char *state, const ServerOptions *server,
			 uint64 random_key, int max, int max_accounts, MemoryContext parent)
{
	ComposedRequest *composed = palloc(sizeof(ComposedRequest) * max);
	int			n = compose(loaded->rows, loaded->n, max, max_accounts, composed);
	List	   *requests = NIL;

	journal_begin(&journal);
	for (int i = 0; i < n; i++)
		requests = lappend(requests,
						   journal_compose(&journal, &composed[i], loaded->rows,
										   loaded->pushes, state,
										   server != NULL ? server->oid : InvalidOid,
										   random_key, parent));
	run_rows(INSERT_REQUESTS, &journal.new_requests);
	run_rows(INSERT_RESULTS, &journal.new_results);
	if (n > 0)
		remove_taken(loaded);
	return requests;
}

/* The contents of the loaded rows, each once, and how many rows have it. */
static int
distinct_contents(const Loaded *loaded, Datum *keys, Datum *counts)
{
	int			nkeys = 0;

	for (int i = 0; i < loaded->n; i++)
	{
		Datum		key = Int64GetDatum(loaded->rows[i].content_key);
		int			j = 0;

		while (j < nkeys && keys[j] != key)
			j++;
		if (j == nkeys)
		{
			keys[nkeys] = key;
			counts[nkeys++] = Int32GetDatum(0);
		}
		counts[j] = Int32GetDatum(DatumGetInt32(counts[j]) + 1);
	}
	return nkeys;
}

/*
 * Which of the heads' contents have more rows than are loaded?  With
 * distinct contents none, and one look into the index for each says so.
 */
static Datum *
find_more(const Loaded *heads, const ServerOptions *server, TimestampTz now, int *nkeys)
{
	Datum	   *keys = palloc(sizeof(Datum) * heads->n);
	Datum	   *counts = palloc(sizeof(Datum) * heads->n);
	int			n = distinct_contents(heads, keys, counts);
	Datum		values[4];

	values[0] = array_of(keys, n, INT8OID);
	values[1] = array_of(counts, n, INT4OID);
	values[2] = server_name(server);
	values[3] = TimestampTzGetDatum(now);
	run(FIND_MORE, values, NULL);
	*nkeys = (int) SPI_processed;
	for (int i = 0; i < *nkeys; i++)
		keys[i] = load_column(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
	return keys;
}

/* Accounts that a request of the server may carry. */
static int
request_size(const ServerOptions *server)
{
	int			size = server->accounts_per_request;

	/* more than a second's worth could never leave */
	if (server->accounts_per_second > 0 && server->accounts_per_second < size)
		size = Max((int) server->accounts_per_second, 1);
	return size;
}

/*
 * May there be rows of the same content behind the loaded ones?  Not if all
 * that is due is loaded.
 */
static bool
should_look_further(const Loaded *heads, const ServerOptions *server, int max,
					RiderHistory *history)
{
	if (heads->n < max)
		return false;
	if (server->requests_per_second > 0 || server->accounts_per_second > 0 ||
		history->misses < MISSES_TO_RELAX)
		return true;
	return ++history->skipped % RELAXED_INTERVAL == 0;
}

/* Load the rows that can share a call with the heads. */
static void
load_riders(Loaded *heads, const ServerOptions *server, TimestampTz now, int max,
			RiderHistory *history)
{
	int			size = request_size(server);
	int			nkeys;
	Datum	   *keys = find_more(heads, server, now, &nkeys);
	Datum		values[4];
	Loaded		alike;

	history->misses = nkeys == 0 ? history->misses + 1 : 0;
	if (nkeys == 0)
		return;
	values[0] = array_of(keys, nkeys, INT8OID);
	values[1] = server_name(server);
	values[2] = TimestampTzGetDatum(now);
	values[3] = Int64GetDatum(nkeys == max ? size :
							  Min((int64) size * max, Max(size, MAX_ROWS_PER_CLAIM / nkeys)));
	run(LOAD_ALIKE, values, NULL);
	load_rows(&alike);
	load_merge(heads, &alike);
}

List *
outbox_claim(const ServerOptions *server, uint64 random_key, int max,
			 RiderHistory *history, MemoryContext parent)
{
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[3] = {server_name(server), TimestampTzGetDatum(now), Int64GetDatum(max)};
	Loaded		loaded;

	run(LOAD_HEADS, values, NULL);
	load_rows(&loaded);
	if (loaded.n == 0)
		return NIL;
	if (should_look_further(&loaded, server, max, history))
		load_riders(&loaded, server, now, max, history);
	return journal_rows(&loaded, STATE_SENDING, server, random_key, max,
						request_size(server), parent);
}

int
outbox_expire(int max)
{
	Datum		values[2] = {TimestampTzGetDatum(GetCurrentTimestamp()), Int64GetDatum(max)};
	Loaded		loaded;
	int			nrequests = 0;

	run(LOAD_EXPIRED, values, NULL);
	load_rows(&loaded);
	/* a large push takes a request for each 500 accounts */
	for (int i = 0; i < loaded.n; i++)
		nrequests += loaded.rows[i].naccounts / 500 + 1;
	if (loaded.n > 0)
		(void) journal_rows(&loaded, STATE_EXPIRED, NULL, 0, nrequests, 500,
							CurrentMemoryContext);
	return loaded.n;
}

/* ------------------------------------------------------------------------
 * Requests that are in the journal already
 * ------------------------------------------------------------------------
 */

static int
compare_request_ids(const ListCell *a, const ListCell *b)
{
	int64		x = ((Request *) lfirst(a))->id;
	int64		y = ((Request *) lfirst(b))->id;

	return x < y ? -1 : x > y ? 1 : 0;
}

/* Requests in the result of the last statement, with their members. */
static List *
load_requests(Oid serverid, MemoryContext parent)
{
	List	   *requests = NIL;
	Datum	   *ids = palloc(sizeof(Datum) * Max(SPI_processed, 1));
	int			n = (int) SPI_processed;
	Datum		value;
	int			current = 0;

	if (n == 0)
		return NIL;
	for (int i = 0; i < n; i++)
		requests = lappend(requests, load_request(SPI_tuptable->vals[i],
												  SPI_tuptable->tupdesc, serverid, parent));
	list_sort(requests, compare_request_ids);
	for (int i = 0; i < n; i++)
		ids[i] = Int64GetDatum(((Request *) list_nth(requests, i))->id);
	value = array_of(ids, n, INT8OID);
	run(LOAD_MEMBERS, &value, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int64		id = DatumGetInt64(load_column(SPI_tuptable->vals[i],
												   SPI_tuptable->tupdesc, 1));

		while (DatumGetInt64(ids[current]) != id)
			current++;
		load_member(list_nth(requests, current), SPI_tuptable->vals[i],
					SPI_tuptable->tupdesc);
	}
	return requests;
}

static void
write_sent_requests(void)
{
	static const Oid types[] = {INT8OID, INT4OID, INT4OID, TEXTOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID};
	int			n = list_length(journal.sent);
	Datum	   *columns[lengthof(types)];
	Datum		values[lengthof(types)];

	for (size_t i = 0; i < lengthof(types); i++)
		columns[i] = palloc(sizeof(Datum) * n);
	for (int i = 0; i < n; i++)
	{
		const Request *request = list_nth(journal.sent, i);
		const char *task_id = request->outcome.task_id;

		columns[0][i] = Int64GetDatum(request->id);
		columns[1][i] = Int32GetDatum(request->attempts);
		columns[2][i] = Int32GetDatum(request->outcome.http_status);
		columns[3][i] = CStringGetTextDatum(task_id != NULL ? task_id : "");
		columns[4][i] = TimestampTzGetDatum(request->first_sent_at);
		columns[5][i] = TimestampTzGetDatum(request->sent_at);
		columns[6][i] = TimestampTzGetDatum(request->ended_at);
	}
	for (size_t i = 0; i < lengthof(types); i++)
		values[i] = array_of(columns[i], n, types[i]);
	run(SENT_REQUESTS, values, NULL);
}

static void
write_sent_results(TimestampTz now)
{
	Datum	   *pushes = palloc(sizeof(Datum) * journal.sent_members);
	Datum	   *requests = palloc(sizeof(Datum) * journal.sent_members);
	int			n = 0;
	ListCell   *cell;
	Datum		values[3];

	foreach(cell, journal.sent)
	{
		const Request *request = lfirst(cell);

		for (int i = 0; i < request->nmembers; i++)
		{
			pushes[n] = Int64GetDatum(request->members[i].push_id);
			requests[n++] = Int64GetDatum(request->id);
		}
	}
	values[0] = array_of(pushes, n, INT8OID);
	values[1] = array_of(requests, n, INT8OID);
	values[2] = TimestampTzGetDatum(now);
	run(SENT_RESULTS, values, NULL);
}

/* Write what is collected about outcomes; the order matters for children. */
static void
write_outcomes(TimestampTz now)
{
	run_rows(CHANGE_REQUESTS, &journal.changed_requests);
	if (journal.sent != NIL)
	{
		write_sent_requests();
		write_sent_results(now);
	}
	run_rows(CHANGE_RESULTS, &journal.changed_results);
	run_rows(INSERT_REQUESTS, &journal.new_requests);
	run_rows(COPY_RESULTS, &journal.copied_results);
	run_rows(MOVE_RESULTS, &journal.moved_results);
	run_rows(INSERT_ERRORS, &journal.errors);
}

List *
outbox_claim_retries(const ServerOptions *server, uint64 random_key, int max,
					 MemoryContext parent)
{
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[3] = {server_name(server), TimestampTzGetDatum(now), Int64GetDatum(max)};
	List	   *found;
	List	   *expired = NIL;
	List	   *claimed = NIL;
	ListCell   *cell;

	run(FIND_RETRIES, values, NULL);
	found = load_requests(server->oid, parent);
	if (found == NIL)
		return NIL;
	journal_begin(&journal);
	foreach(cell, found)
	{
		Request    *request = lfirst(cell);

		if (request_any_expired(request, now))
		{
			expired = lappend(expired, request);
			continue;
		}
		journal_resend(&journal, request, random_key);
		claimed = lappend(claimed, request);
	}
	run_rows(RESEND_REQUESTS, &journal.changed_requests);
	run_rows(CHANGE_RESULTS, &journal.changed_results);

	journal_begin(&journal);
	foreach(cell, expired)
		journal_drop_expired(&journal, lfirst(cell), now);
	write_outcomes(now);
	foreach(cell, expired)
		MemoryContextDelete(((Request *) lfirst(cell))->context);
	return claimed;
}

List *
outbox_orphans(MemoryContext parent)
{
	run(FIND_ORPHANS, NULL, NULL);
	return load_requests(InvalidOid, parent);
}

void
outbox_note_in_flight(int64 first)
{
	Datum		value = Int64GetDatum(first);

	run(NOTE_IN_FLIGHT, &value, NULL);
}

void
outbox_record(List *requests)
{
	ListCell   *cell;

	if (requests == NIL)
		return;
	journal_begin(&journal);
	foreach(cell, requests)
		journal_outcome(&journal, lfirst(cell));
	write_outcomes(GetCurrentTimestamp());
}

/* The time that a statement returns in its only row. */
static TimestampTz
time_from(Statement statement, const ServerOptions *server)
{
	Datum		name = server != NULL ? server_name(server) : (Datum) 0;
	Datum		due;
	bool		isnull;

	run(statement, &name, NULL);
	due = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? DT_NOEND : DatumGetTimestampTz(due);
}

TimestampTz
outbox_push_due(const ServerOptions *server)
{
	return time_from(PUSH_DUE, server);
}

TimestampTz
outbox_retry_due(const ServerOptions *server)
{
	return time_from(RETRY_DUE, server);
}

TimestampTz
outbox_expiry_due(void)
{
	return time_from(EXPIRY_DUE, NULL);
}
