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
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "activation.h"
#include "aside.h"
#include "compat.h"
#include "fault.h"
#include "insert.h"
#include "journal.h"
#include "journal_sql.h"
#include "load.h"
#include "outbox.h"
#include "outbox_columns.h"
#include "owner.h"
#include "recent.h"
#include "retention.h"
#include "timpush.h"
#include "version.h"

/* A claim begins no further request with so many accounts, to keep it short. */
#define MAX_ACCOUNTS_PER_CLAIM	4000

/* How often a claim tries anew if all that it has found must be put off. */
#define MAX_TRIES			8

/* Pushes, and accounts, that are given the outcome "expired" in one transaction. */
#define MAX_EXPIRE			500
#define MAX_EXPIRE_ACCOUNTS	20000

/* Requests that pushes which expired are taken out of in one transaction. */
#define MAX_EXPIRE_RETRIES	100

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
	FIND_FRONT,
	LOAD_PUSH,
	FIND_ALIKE,
	LOAD_ALIKE,
	FIND_CONTENT_FRONT,
	LOAD_EXPIRED,
	FIND_EXPIRY_FRONT,
	DELETE_PUSHES,
	UPDATE_HANDED_OUT,
	PUT_OFF,
	INSERT_REQUESTS,
	INSERT_RESULTS,
	FIND_RETRIES,
	FIND_RETRY_FRONT,
	FIND_REQUEST,
	FIND_EXPIRED_RETRIES,
	FIND_RETRY_EXPIRY,
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
	END_REQUESTS,
	INSERT_ERRORS,
	LOAD_SERVER,
	INSERT_SERVER,
	LOCK_SERVER,
	NOTE_SERVER,
	LOAD_ACTIVATION,
	FORGET_COPIED,
	HOLD_SERVERS,
	NOTE_ACTIVATION,
	FIND_OLD_PUSHES,
	FIND_OLD_REQUESTS,
	FIND_OLD_ERRORS,
	DELETE_OLD_RESULTS,
	DELETE_OLD_REQUESTS,
	DELETE_OLD_ERRORS,
	NSTATEMENTS
} Statement;

#define MAX_PARAMS 9

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
		"FROM unnest($4, $5, $6) p(priority, at, id) CROSS JOIN LATERAL ("
		" SELECT o.*, o.ctid FROM @.push_outbox o"
		" WHERE o.server = $1 AND o.priority = p.priority"
		" AND (o.send_at, o.id) >= (p.at, p.id) AND o.send_at <= $2"
		" AND (o.expires_at IS NULL OR o.expires_at > $2) AND o.id <> ALL ($7)"
		" ORDER BY o.send_at, o.id LIMIT $3 FOR UPDATE SKIP LOCKED) h "
		"LIMIT $3",
		{NAMEOID, TIMESTAMPTZOID, INT8OID, INT4ARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID,
		INT8ARRAYOID}
	},
	[FIND_FRONT] = {
		"SELECT p.priority, f.send_at, f.id "
		"FROM unnest($2, $3, $4) p(priority, at, id) CROSS JOIN LATERAL ("
		" SELECT o.send_at, o.id FROM @.push_outbox o"
		" WHERE o.server = $1 AND o.priority = p.priority"
		" AND (o.send_at, o.id) >= (p.at, p.id) AND o.id <> ALL ($5)"
		" ORDER BY o.send_at, o.id LIMIT 1) f",
		{NAMEOID, INT4ARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID, INT8ARRAYOID}
	},
	[LOAD_PUSH] = {
		"SELECT o.*, o.ctid FROM @.push_outbox o "
		"WHERE o.id = $1 AND o.send_at <= $2 FOR UPDATE SKIP LOCKED",
		{INT8OID, TIMESTAMPTZOID}
	},
	[FIND_ALIKE] = {
		"SELECT w.ctid, k.n, w.accounts "
		"FROM unnest($1, $2, $3) WITH ORDINALITY k(key, at, id, n) CROSS JOIN LATERAL ("
		" SELECT o.ctid, o.accounts - o.handed_out AS accounts FROM @.push_outbox o"
		" WHERE o.content_key = k.key AND o.server = $4"
		" AND (o.send_at, o.id) >= (k.at, k.id) AND o.send_at <= $5"
		" AND (o.expires_at IS NULL OR o.expires_at > $5) AND o.id <> ALL ($8)"
		" ORDER BY o.send_at, o.id LIMIT $6) w "
		"LIMIT $7",
		{INT8ARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID, NAMEOID, TIMESTAMPTZOID, INT8OID, INT8OID,
		INT8ARRAYOID}
	},
	[LOAD_ALIKE] = {
		"SELECT o.*, o.ctid FROM @.push_outbox o "
		"WHERE o.ctid = ANY ($1) AND o.server = $2 AND o.send_at <= $3"
		" AND (o.expires_at IS NULL OR o.expires_at > $3) "
		"FOR UPDATE SKIP LOCKED",
		{TIDARRAYOID, NAMEOID, TIMESTAMPTZOID}
	},
	[FIND_CONTENT_FRONT] = {
		"SELECT k.key, f.send_at, f.id "
		"FROM unnest($1, $2, $3) k(key, at, id) LEFT JOIN LATERAL ("
		" SELECT o.send_at, o.id FROM @.push_outbox o"
		" WHERE o.content_key = k.key AND (o.send_at, o.id) >= (k.at, k.id)"
		" ORDER BY o.send_at, o.id LIMIT 1) f ON true",
		{INT8ARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID}
	},
	[LOAD_EXPIRED] = {
		"SELECT o.*, o.ctid FROM @.push_outbox o "
		"WHERE (o.expires_at, o.id) >= ($3, $4) AND o.expires_at <= $1"
		" AND o.id <> ALL ($5) "
		"ORDER BY o.expires_at, o.id LIMIT $2 FOR UPDATE SKIP LOCKED",
		{TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8ARRAYOID}
	},
	[FIND_EXPIRY_FRONT] = {
		"SELECT o.expires_at, o.id FROM @.push_outbox o "
		"WHERE (o.expires_at, o.id) >= ($1, $2) AND o.expires_at >= $1"
		" AND o.id <> ALL ($3) "
		"ORDER BY o.expires_at, o.id LIMIT 1",
		{TIMESTAMPTZOID, INT8OID, INT8ARRAYOID}
	},
	[DELETE_PUSHES] = {
		"DELETE FROM @.push_outbox WHERE ctid = ANY ($1)",
		{TIDARRAYOID}
	},
	[UPDATE_HANDED_OUT] = {
		"UPDATE @.push_outbox o SET handed_out = o.handed_out + u.n, handed_bytes = u.bytes "
		"FROM unnest($1, $2, $3) u(place, n, bytes) WHERE o.ctid = u.place",
		{TIDARRAYOID, INT4ARRAYOID, INT4ARRAYOID}
	},
	[PUT_OFF] = {
		"UPDATE @.push_outbox o SET send_at = u.at "
		"FROM unnest($1, $2) u(place, at) WHERE o.ctid = u.place",
		{TIDARRAYOID, TIMESTAMPTZARRAYOID}
	},
	[INSERT_REQUESTS] = {
		SQL_INSERT_REQUESTS,
		{REQUEST_ARRAY}
	},
	[INSERT_RESULTS] = {
		SQL_INSERT_RESULTS,
		{RESULT_ARRAY}
	},
	[FIND_RETRIES] = {
		"SELECT " REQUEST_COLUMNS " FROM @.push_request q "
		"WHERE q.server = $1 AND (q.next_attempt_at, q.id) >= ($4, $5)"
		" AND q.next_attempt_at <= $2 AND q.state = 'retry' AND q.id <> ALL ($6) "
		"ORDER BY q.next_attempt_at, q.id LIMIT $3 FOR UPDATE SKIP LOCKED",
		{NAMEOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8ARRAYOID}
	},
	[FIND_RETRY_FRONT] = {
		"SELECT q.next_attempt_at, q.id FROM @.push_request q "
		"WHERE q.server = $1 AND (q.next_attempt_at, q.id) >= ($2, $3)"
		" AND q.next_attempt_at >= $2 AND q.state = 'retry' AND q.id <> ALL ($4) "
		"ORDER BY q.next_attempt_at, q.id LIMIT 1",
		{NAMEOID, TIMESTAMPTZOID, INT8OID, INT8ARRAYOID}
	},
	[FIND_REQUEST] = {
		"SELECT " REQUEST_COLUMNS " FROM @.push_request q "
		"WHERE q.id = $1 AND q.state = $2 FOR UPDATE SKIP LOCKED",
		{INT8OID, TEXTOID}
	},
	[FIND_EXPIRED_RETRIES] = {
		"SELECT " REQUEST_COLUMNS " FROM @.push_request q "
		"WHERE q.server = $1 AND q.next_attempt_at IS NOT NULL AND q.state = 'retry'"
		" AND q.id <> ALL ($4)"
		" AND EXISTS (SELECT FROM unnest(q.push_ids) p"
		"  JOIN @.push_result r ON r.push_id = p AND r.request_id = q.id"
		"  WHERE r.expires_at <= $2) "
		"ORDER BY q.next_attempt_at, q.id LIMIT $3 FOR UPDATE SKIP LOCKED",
		{NAMEOID, TIMESTAMPTZOID, INT8OID, INT8ARRAYOID}
	},
	[FIND_RETRY_EXPIRY] = {
		"SELECT min(r.expires_at) FROM @.push_request q CROSS JOIN unnest(q.push_ids) p"
		" JOIN @.push_result r ON r.push_id = p AND r.request_id = q.id "
		"WHERE q.server = $1 AND q.next_attempt_at IS NOT NULL AND q.state = 'retry'"
		" AND q.id <> ALL ($2)",
		{NAMEOID, INT8ARRAYOID}
	},
	[FIND_ORPHANS] = {
		"SELECT * FROM ("
		" SELECT " REQUEST_COLUMNS " FROM @.push_request q"
		" WHERE q.id >= (SELECT first_in_flight FROM @.push_worker) AND q.state = 'sending'"
		" UNION ALL"
		" SELECT " REQUEST_COLUMNS " FROM @.push_request q"
		" WHERE q.id < (SELECT first_in_flight FROM @.push_worker) AND q.state = 'sending'"
		" AND q.next_attempt_at IS NOT NULL) o "
		"WHERE id <> ALL ($1) LIMIT $2",
		{INT8ARRAYOID, INT8OID}
	},
	[NOTE_IN_FLIGHT] = {
		"UPDATE @.push_worker SET first_in_flight = $1",
		{INT8OID}
	},
	[LOAD_MEMBERS] = {
		SQL_LOAD_MEMBERS,
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
		SQL_CHANGE_REQUESTS,
		{REQUEST_ARRAY}
	},
	[SENT_RESULTS] = {
		"UPDATE @.push_result r SET state = 'sent', finished_at = $3 "
		"FROM unnest($1, $2) u(push_id, request_id) "
		"WHERE r.push_id = u.push_id AND r.request_id = u.request_id",
		{INT8ARRAYOID, INT8ARRAYOID, TIMESTAMPTZOID}
	},
	[CHANGE_RESULTS] = {
		SQL_CHANGE_RESULTS,
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
		SQL_MOVE_RESULTS,
		{RESULT_ARRAY}
	},
	[END_REQUESTS] = {
		SQL_END_REQUESTS,
		{NAMEOID}
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
		" s.error_code, k.options_version, s.since, k.rests, k.most_accounts "
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
	[LOCK_SERVER] = {
		"SELECT 1 FROM @.push_server WHERE server = $1 AND state IN ('active', 'suspended') "
		"FOR UPDATE SKIP LOCKED",
		{NAMEOID}
	},
	[NOTE_SERVER] = {
		"WITH key AS ("
		" UPDATE @.push_server_key SET options_version = $7, rests = $8, most_accounts = $9"
		" WHERE server = $1) "
		"UPDATE @.push_server SET state = $2, reason = $3, error_code = $4,"
		" next_probe_at = $5, since = $6 WHERE server = $1",
		{NAMEOID, TEXTOID, TEXTOID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID,
		INT4OID, INT4OID}
	},
	[LOAD_ACTIVATION] = {
		"SELECT count(*), max(a.activated_at),"
		" bool_and(a.system_identifier = $1 AND a.database_oid = $2) "
		"FROM @.push_activation a",
		{INT8OID, OIDOID}
	},
	[FORGET_COPIED] = {
		SQL_FORGET_COPIED,
		{INT8OID, OIDOID}
	},
	[HOLD_SERVERS] = {
		SQL_HOLD_SERVERS,
		{0}
	},
	[NOTE_ACTIVATION] = {
		SQL_NOTE_ACTIVATION,
		{0}
	},
	[FIND_OLD_PUSHES] = {
		"SELECT p.push_id, p.enqueued_at, f.finished_at,"
		" NOT EXISTS (SELECT FROM @.push_outbox o WHERE o.id = p.push_id), NULL::tid "
		"FROM (SELECT w.push_id, min(w.enqueued_at) AS enqueued_at FROM ("
		"  SELECT r.push_id, r.enqueued_at FROM @.push_result r WHERE r.push_id >= $1"
		"  ORDER BY r.push_id, r.request_id LIMIT $2) w GROUP BY w.push_id) p"
		" CROSS JOIN LATERAL (SELECT CASE WHEN count(*) = count(r.finished_at)"
		"   THEN max(r.finished_at) END AS finished_at"
		"  FROM @.push_result r WHERE r.push_id = p.push_id) f "
		"ORDER BY p.push_id",
		{INT8OID, INT8OID}
	},
	[FIND_OLD_REQUESTS] = {
		"SELECT q.id, q.created_at, q.finished_at,"
		" NOT EXISTS (SELECT FROM unnest(q.push_ids) p"
		"  JOIN @.push_result r ON r.push_id = p), NULL::tid "
		"FROM (SELECT w.*, sum(cardinality(w.push_ids)) OVER (ORDER BY w.id)"
		"   - cardinality(w.push_ids) AS pushes_before FROM ("
		"  SELECT q.id, q.created_at, q.finished_at, q.push_ids"
		"  FROM @.push_request q WHERE q.id >= $1 ORDER BY q.id LIMIT $2) w) q "
		"WHERE q.pushes_before < $2 ORDER BY q.id",
		{INT8OID, INT8OID}
	},
	[FIND_OLD_ERRORS] = {
		"SELECT e.push_id, '-infinity'::timestamptz,"
		" CASE WHEN e.free THEN '-infinity'::timestamptz END, e.free, e.ctid "
		"FROM (SELECT w.push_id, w.ctid, NOT EXISTS ("
		"   SELECT FROM @.push_result r WHERE r.push_id = w.push_id) AS free FROM ("
		"  SELECT e.push_id, e.ctid FROM @.push_error e"
		"  WHERE e.push_id >= $1 AND e.push_id < $3 ORDER BY e.push_id LIMIT $2) w) e "
		"ORDER BY e.push_id",
		{INT8OID, INT8OID, INT8OID}
	},
	[DELETE_OLD_RESULTS] = {
		"DELETE FROM @.push_result WHERE push_id = ANY ($1)",
		{INT8ARRAYOID}
	},
	[DELETE_OLD_REQUESTS] = {
		"DELETE FROM @.push_request WHERE id = ANY ($1)",
		{INT8ARRAYOID}
	},
	[DELETE_OLD_ERRORS] = {
		"DELETE FROM @.push_error WHERE ctid = ANY ($1)",
		{TIDARRAYOID}
	},
};

static SPIPlanPtr plans[NSTATEMENTS];

/* What outbox_open() found; stays for the life of the process. */
static Oid	schema_oid = InvalidOid;
static char *schema_name;
static Oid	outbox_oid = InvalidOid;
static TupleDesc outbox_desc;
static Journal journal;

/* Has something been altered since? */
static bool tables_changed = false;

/* Our tables with their indexes and sequences: what a transaction locks. */
static const char *const table_names[] = {
	"push_outbox", "push_request", "push_result", "push_error", "push_server",
	"push_server_key", "push_worker", "push_activation"
};
static List *lock_oids = NIL;

/* When the database came to be what outbox_find_origin() has found. */
static TimestampTz activated;

static OwnerScope scope;

/* Rows that are left out of everything. */
static const AsideList *aside;

/* The row that the transaction has begun with, if it was one alone. */
static struct
{
	bool		known;
	AsideKind	kind;
	int64		id;
} suspect;

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

/* The ids of those that are set aside, of one of our tables, as a parameter. */
static Datum
left_out(bool pushes)
{
	Datum	   *ids = palloc(sizeof(Datum) * (aside->n + 1));
	int			n = 0;

	for (int i = 0; i < aside->n; i++)
	{
		if ((aside->rows[i].kind == ASIDE_PUSH) == pushes)
			ids[n++] = Int64GetDatum(aside->rows[i].id);
	}
	return array_of(ids, n, INT8OID);
}

/* To be called with what a statement has found, before it is taken apart. */
static void
note_suspect(AsideKind kind)
{
	suspect.	known = SPI_processed == 1;
	suspect.	kind = kind;

	if (suspect.known)
		suspect.	id = DatumGetInt64(load_column(SPI_tuptable->vals[0],
												   SPI_tuptable->tupdesc, 1));
}

bool
outbox_suspect(AsideKind *kind, int64 *id)
{
	*kind = suspect.kind;
	*id = suspect.id;
	return suspect.known;
}

void
outbox_leave_out(const AsideList *list)
{
	aside = list;
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

static TupleDesc
copy_description(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TupleDesc	desc = CreateTupleDescCopy(RelationGetDescr(rel));

	table_close(rel, AccessShareLock);
	return desc;
}

static bool
same_columns(const char *table, TupleDesc before)
{
	TupleDesc	desc = copy_description(get_relname_relid(table, schema_oid));

	if (desc->natts != before->natts)
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		if (TupleDescAttr(desc, i)->atttypid != TupleDescAttr(before, i)->atttypid)
			return false;
	}
	return true;
}

static void
relation_changed(Datum arg pg_attribute_unused(), Oid relid)
{
	if (!OidIsValid(relid) || list_member_oid(lock_oids, relid))
		tables_changed = true;
}

/*
 * Are the tables still those that we have opened?  Their columns are known to
 * us by number, so what ALTER leaves in their place would be taken for them.
 */
static bool
same_tables(void)
{
	if (get_relname_relid("push_outbox", schema_oid) != outbox_oid ||
		strcmp(quote_identifier(get_namespace_name(schema_oid)), schema_name) != 0)
		return false;
	if (!tables_changed)
		return true;
	if (!version_matches(outbox_oid) ||
		!same_columns("push_outbox", outbox_desc) ||
		!same_columns("push_request", journal.new_requests.desc) ||
		!same_columns("push_result", journal.new_results.desc) ||
		!same_columns("push_error", journal.errors.desc))
		return false;
	tables_changed = false;
	return true;
}

OutboxFound
outbox_open(void)
{
	char	   *version;
	MemoryContext old;

	if (!find_extension(&schema_oid, &version))
		return OUTBOX_ABSENT;
	if (strcmp(version, TIMPUSH_VERSION) != 0)
	{
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("timpush: library is version %s, but the extension in database \"%s\" is version %s",
						TIMPUSH_VERSION, get_database_name(MyDatabaseId), version),
				 errhint(VERSION_HINT)));
		return OUTBOX_UNFIT;
	}
	schema_name = MemoryContextStrdup(TopMemoryContext,
									  quote_identifier(get_namespace_name(schema_oid)));
	outbox_oid = get_relname_relid("push_outbox", schema_oid);
	for (size_t i = 0; i < lengthof(table_names); i++)
	{
		if (OidIsValid(get_relname_relid(table_names[i], schema_oid)))
			continue;
		/* dropped just now, with the extension? */
		if (!find_extension(&schema_oid, &version))
			return OUTBOX_ABSENT;
		ereport(WARNING,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("timpush: table \"%s\" of the extension in database \"%s\" is missing, so nothing is sent",
						table_names[i], get_database_name(MyDatabaseId)),
				 errhint("Drop the extension and create it anew.")));
		return OUTBOX_UNFIT;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	journal_open(&journal, schema_oid);
	outbox_desc = copy_description(outbox_oid);
	MemoryContextSwitchTo(old);
	collect_lock_oids();
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	if (!journal_fits(&journal) || !has_outbox_columns(outbox_desc))
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("timpush: tables of the extension in database \"%s\" have been altered, so nothing is sent",
						get_database_name(MyDatabaseId)),
				 errhint("Drop the columns that were added to push_outbox, and call timpush_resume() for a server. If others were altered, create the extension anew.")));
		return OUTBOX_UNFIT;
	}
	return OUTBOX_FOUND;
}

OutboxAccess
outbox_begin(void)
{
	suspect.	known = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!lock_all())
	{
		CommitTransactionCommand();
		return OUTBOX_LOCKED;
	}
	/* now that nobody can drop them: are they still there? */
	if (!same_tables())
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

/*
 * Make the server's row, unless a session may be about to: timpush_pause()
 * holds the same lock while it makes one, and we would wait for its end.
 */
static bool
add_server(const ServerOptions *server)
{
	uint64		key;
	Datum		values[3];
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ForeignServerRelationId, server->oid, 0);
	if (LockAcquire(&tag, SERVER_ROW_LOCK, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	if (!pg_strong_random(&key, sizeof(key)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	values[0] = server_name(server);
	values[1] = ObjectIdGetDatum(server->oid);
	values[2] = Int64GetDatum((int64) key);
	run(INSERT_SERVER, values, NULL);
	return true;
}

bool
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
		if (!add_server(server))
			return false;
		run(LOAD_SERVER, &name, NULL);
	}
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	label = SPI_getvalue(tuple, desc, 1);
	state->held = strcmp(label, "held") == 0;
	state->paused = state->held || strcmp(label, "paused") == 0;
	state->suspended = strcmp(label, "suspended") == 0;
	state->random_key = (uint64) DatumGetInt64(load_column(tuple, desc, 2));
	state->next_probe_at = DatumGetTimestampTz(load_column(tuple, desc, 4));
	state->reason = SPI_getvalue(tuple, desc, 5);
	state->error_code = DatumGetInt32(load_column(tuple, desc, 6));
	state->options_version = (uint64) DatumGetInt64(load_column(tuple, desc, 7));
	state->since = DatumGetTimestampTz(load_column(tuple, desc, 8));
	state->rests = DatumGetInt32(load_column(tuple, desc, 9));
	state->most_accounts = DatumGetInt32(load_column(tuple, desc, 10));
	return true;
}

bool
outbox_note_server(const ServerOptions *server, const ServerState *state)
{
	Datum		values[9];
	char		nulls[9];

	values[0] = server_name(server);
	run(LOCK_SERVER, values, NULL);
	if (SPI_processed == 0)
		return false;
	FAULT_POINT("note-server");
	memset(nulls, ' ', sizeof(nulls));
	values[1] = CStringGetTextDatum(state->suspended ? "suspended" : "active");
	values[2] = CStringGetTextDatum(state->reason != NULL ? state->reason : "");
	nulls[2] = state->reason != NULL ? ' ' : 'n';
	values[3] = Int32GetDatum(state->error_code);
	nulls[3] = state->error_code != 0 ? ' ' : 'n';
	values[4] = TimestampTzGetDatum(state->next_probe_at);
	nulls[4] = state->next_probe_at != 0 ? ' ' : 'n';
	values[5] = TimestampTzGetDatum(state->since);
	values[6] = Int64GetDatum((int64) server->version);
	values[7] = Int32GetDatum(state->rests);
	values[8] = Int32GetDatum(state->most_accounts);
	run(NOTE_SERVER, values, nulls);
	return true;
}

/* ------------------------------------------------------------------------
 * Copies
 * ------------------------------------------------------------------------
 */

/* What push_activation says; *since tells one state of it from another. */
static OutboxOrigin
load_origin(TimestampTz *since)
{
	Datum		values[2] = {Int64GetDatum((int64) GetSystemIdentifier()),
	ObjectIdGetDatum(MyDatabaseId)};
	HeapTuple	tuple;
	TupleDesc	desc;

	run(LOAD_ACTIVATION, values, NULL);
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	*since = DatumGetTimestampTz(load_column(tuple, desc, 2));
	if (DatumGetInt64(load_column(tuple, desc, 1)) == 0)
		return OUTBOX_UNUSED;
	return DatumGetBool(load_column(tuple, desc, 3)) ? OUTBOX_ORIGINAL : OUTBOX_COPY;
}

OutboxOrigin
outbox_find_origin(bool *held)
{
	OutboxOrigin origin = load_origin(&activated);
	Datum		values[2] = {Int64GetDatum((int64) GetSystemIdentifier()),
	ObjectIdGetDatum(MyDatabaseId)};

	*held = false;
	if (origin != OUTBOX_COPY)
		return origin;
	run(FORGET_COPIED, values, NULL);
	if (SPI_processed > 0)		/* else timpush_resume() has come first */
	{
		run(HOLD_SERVERS, NULL, NULL);
		*held = SPI_processed > 0;
		run(NOTE_ACTIVATION, NULL, NULL);
	}
	return load_origin(&activated);
}

bool
outbox_same_origin(void)
{
	TimestampTz since;

	return load_origin(&since) == OUTBOX_ORIGINAL && since == activated;
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
	Datum	   *bytes = palloc(sizeof(Datum) * loaded->n);
	int			ngone = 0;
	int			npartly = 0;
	Datum		values[3];

	for (int i = 0; i < loaded->n; i++)
	{
		const ComposeRow *row = &loaded->rows[i];

		if (row->taken >= row->naccounts)
			gone[ngone++] = PointerGetDatum(&loaded->tids[i]);
		else if (row->taken > 0)
		{
			partly[npartly] = PointerGetDatum(&loaded->tids[i]);
			counts[npartly] = Int32GetDatum(row->taken);
			bytes[npartly++] = Int32GetDatum(load_handed_bytes(loaded, i));
		}
	}
	/* the rows are locked, so they are where we found them */
	if (ngone > 0)
	{
		values[0] = array_of(gone, ngone, TIDOID);
		run(DELETE_PUSHES, values, NULL);
	}
	if (npartly > 0)
	{
		values[0] = array_of(partly, npartly, TIDOID);
		values[1] = array_of(counts, npartly, INT4OID);
		values[2] = array_of(bytes, npartly, INT4OID);
		run(UPDATE_HANDED_OUT, values, NULL);
	}
}

/*
 * Rows with an account that has just been sent the same content wait; returns
 * how many there are.  One that has been handed out in part has moved, and
 * waits when its turn comes again.
 */
static int
put_off(const Loaded *loaded)
{
	Datum	   *places = palloc(sizeof(Datum) * loaded->n);
	Datum	   *times = palloc(sizeof(Datum) * loaded->n);
	int			n = 0;
	Datum		values[2];

	for (int i = 0; i < loaded->n; i++)
	{
		const ComposeRow *row = &loaded->rows[i];

		if (row->put_off == 0 || row->taken > 0)
			continue;
		places[n] = PointerGetDatum(&loaded->tids[i]);
		times[n++] = TimestampTzGetDatum(row->put_off);
	}
	if (n == 0)
		return 0;
	values[0] = array_of(places, n, TIDOID);
	values[1] = array_of(times, n, TIMESTAMPTZOID);
	run(PUT_OFF, values, NULL);
	return n;
}

/* Compose requests out of the loaded rows and enter them into the journal. */
static List *
journal_rows(Loaded *loaded, const ComposeBounds *bounds, RecentAccounts *recent,
			 const char *state, Oid serverid, uint64 random_key, TimestampTz now,
			 MemoryContext parent)
{
	ComposedRequest *composed = palloc(sizeof(ComposedRequest) * bounds->requests);
	int			n = compose(loaded->rows, loaded->n, bounds, recent, now, composed);
	List	   *requests = NIL;

	journal_begin(&journal);
	for (int i = 0; i < n; i++)
		requests = lappend(requests,
						   journal_compose(&journal, &composed[i], loaded->rows,
										   loaded->pushes, state, serverid,
										   random_key, parent));
	run_rows(INSERT_REQUESTS, &journal.new_requests);
	FAULT_POINT("journalled");
	run_rows(INSERT_RESULTS, &journal.new_results);
	return requests;
}

/* ------------------------------------------------------------------------
 * Riders: rows that share a call with the heads
 * ------------------------------------------------------------------------
 */

/* Positions as two array parameters. */
static void
put_positions(Datum *values, const Position *positions, int n)
{
	Datum	   *times = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *ids = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
	{
		times[i] = TimestampTzGetDatum(positions[i].at);
		ids[i] = Int64GetDatum(positions[i].id);
	}
	values[0] = array_of(times, n, TIMESTAMPTZOID);
	values[1] = array_of(ids, n, INT8OID);
}

static Position
position_in(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		at = SPI_getbinval(tuple, desc, column, &isnull);

	if (isnull)
		return POSITION_NONE;
	return (Position)
	{
		DatumGetTimestampTz(at),
			DatumGetInt64(load_column(tuple, desc, column + 1))
	};
}

/* The contents of the loaded rows, each once, in the order of the rows. */
static int
distinct_contents(const Loaded *loaded, int64 *keys)
{
	int			nkeys = 0;

	for (int i = 0; i < loaded->n; i++)
	{
		int			j = 0;

		while (j < nkeys && keys[j] != loaded->rows[i].content_key)
			j++;
		if (j == nkeys)
			keys[nkeys++] = loaded->rows[i].content_key;
	}
	return nkeys;
}

/* Contents and their fronts as three array parameters. */
static void
put_contents(Datum *values, const Front *front, const int64 *keys, int n)
{
	Datum	   *datums = palloc(sizeof(Datum) * n);
	Position   *positions = palloc(sizeof(Position) * n);

	for (int i = 0; i < n; i++)
	{
		datums[i] = Int64GetDatum(keys[i]);
		positions[i] = front_of_content(front, keys[i]);
	}
	values[0] = array_of(datums, n, INT8OID);
	put_positions(&values[1], positions, n);
}

static bool
is_loaded(const Loaded *loaded, ItemPointer tid)
{
	for (int i = 0; i < loaded->n; i++)
	{
		if (ItemPointerEquals(&loaded->tids[i], tid))
			return true;
	}
	return false;
}

/*
 * Of the rows that FIND_ALIKE has found, those that are needed to fill the
 * requests of their content and are not loaded yet, as an array of their
 * places; *nkeys and "keys" become the contents that have any.
 */
static Datum
choose_riders(const Loaded *heads, int per_content, int max_size, int64 *keys, int *nkeys)
{
	SPITupleTable *table = SPI_tuptable;
	int			nfound = (int) SPI_processed;
	Datum	   *places = palloc(sizeof(Datum) * Max(nfound, 1));
	int64	   *with_riders = palloc(sizeof(int64) * Max(*nkeys, 1));
	int			nplaces = 0;
	int			nwith = 0;
	int64		accounts = 0;
	int64		current = 0;

	for (int i = 0; i < nfound; i++)
	{
		ItemPointer tid = (ItemPointer) DatumGetPointer(load_column(table->vals[i], table->tupdesc, 1));
		int64		n = DatumGetInt64(load_column(table->vals[i], table->tupdesc, 2));
		int			size;

		if (n != current)
			accounts = 0;
		current = n;
		size = DatumGetInt32(load_column(table->vals[i], table->tupdesc, 3));
		/* what goes whole and finds no room leaves it to those behind it */
		if (accounts >= per_content ||
			(size <= max_size && accounts + size > per_content))
			continue;
		accounts += size;
		if (is_loaded(heads, tid))
			continue;
		places[nplaces++] = PointerGetDatum(tid);
		if (nwith == 0 || with_riders[nwith - 1] != keys[n - 1])
			with_riders[nwith++] = keys[n - 1];
	}
	memcpy(keys, with_riders, sizeof(int64) * nwith);
	*nkeys = nwith;
	return nplaces > 0 ? array_of(places, nplaces, TIDOID) : (Datum) 0;
}

/*
 * May there be rows of the same content behind the loaded ones?  Not if all
 * that is due is loaded.
 */
static bool
should_look_further(const Loaded *heads, const Claim *claim, int max)
{
	if (heads->n < max || claim->alone || claim->probe)
		return false;
	if (claim->scarce || claim->riders->misses < MISSES_TO_RELAX)
		return true;
	return ++claim->riders->skipped % RELAXED_INTERVAL == 0;
}

/*
 * Load the rows that can share a call with the heads.  Returns the number of
 * contents that have such rows, and them in "keys".
 */
static int
load_riders(Loaded *heads, Claim *claim, const ComposeBounds *bounds, TimestampTz now,
			int64 *keys)
{
	int			nkeys = distinct_contents(heads, keys);
	int			per_content = Min(bounds->accounts * bounds->requests, MAX_ACCOUNTS_PER_CLAIM);
	Datum		values[8];
	Datum		places;
	Loaded		alike;

	put_contents(values, claim->front, keys, nkeys);
	values[3] = server_name(claim->server);
	values[4] = TimestampTzGetDatum(now);
	values[5] = Int64GetDatum(per_content);
	values[6] = Int64GetDatum(heads->n + MAX_ACCOUNTS_PER_CLAIM);
	values[7] = left_out(true);
	run(FIND_ALIKE, values, NULL);
	places = choose_riders(heads, per_content, bounds->accounts, keys, &nkeys);
	claim->riders->misses = nkeys == 0 ? claim->riders->misses + 1 : 0;
	if (nkeys == 0)
		return 0;
	values[0] = places;
	values[1] = server_name(claim->server);
	values[2] = TimestampTzGetDatum(now);
	run(LOAD_ALIKE, values, NULL);
	load_rows(&alike, MAX_ACCOUNTS_PER_CLAIM);
	load_merge(heads, &alike);
	return nkeys;
}

/* ------------------------------------------------------------------------
 * The claim
 * ------------------------------------------------------------------------
 */

/*
 * The priorities that may have rows due, and their fronts, as parameters: the
 * highest first, or the one whose front is the earliest.
 */
static void
put_priorities(Datum *values, const Front *front, TimestampTz due, bool oldest_first)
{
	Datum		priorities[FRONT_PRIORITIES];
	Position	positions[FRONT_PRIORITIES];
	int			n = 0;

	for (int i = FRONT_PRIORITIES - 1; i >= 0; i--)
	{
		int			place = n;

		if (front->priority[i].at > due)
			continue;
		while (oldest_first && place > 0 &&
			   position_before(front->priority[i], positions[place - 1]))
		{
			priorities[place] = priorities[place - 1];
			positions[place] = positions[place - 1];
			place--;
		}
		priorities[place] = Int32GetDatum(i);
		positions[place] = front->priority[i];
		n++;
	}
	values[0] = array_of(priorities, n, INT4OID);
	put_positions(&values[1], positions, n);
}

/* Where do the server's queues begin now?  Those that begin later still do. */
static void
move_front(const ServerOptions *server, Front *front, TimestampTz now)
{
	Datum		values[5];

	values[0] = server_name(server);
	put_priorities(&values[1], front, now, false);
	values[4] = left_out(true);
	run(FIND_FRONT, values, NULL);
	for (int i = 0; i < FRONT_PRIORITIES; i++)
	{
		if (front->priority[i].at <= now)
			front->priority[i] = POSITION_NONE;
	}
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		front->priority[DatumGetInt32(load_column(tuple, desc, 1))] =
			position_in(tuple, desc, 2);
	}
}

/* And the contents that were looked at? */
static void
move_content_fronts(Front *front, const int64 *keys, int nkeys)
{
	Datum		values[3];

	if (nkeys == 0)
		return;
	put_contents(values, front, keys, nkeys);
	run(FIND_CONTENT_FRONT, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		front_set_content(front, DatumGetInt64(load_column(tuple, desc, 1)),
						  position_in(tuple, desc, 2));
	}
}

/* One try; *again if it came to nothing but another one may not. */
static List *
try_claim(Claim *claim, int max, bool *again, MemoryContext parent)
{
	TimestampTz now = GetCurrentTimestamp();
	ComposeBounds bounds = {max, claim->size, MAX_ACCOUNTS_PER_CLAIM};
	Datum		values[7];
	Loaded		loaded;
	int64	   *keys;
	int			nkeys = 0;
	List	   *requests;

	*again = false;
	values[0] = server_name(claim->server);
	values[1] = TimestampTzGetDatum(now);
	values[2] = Int64GetDatum(max);
	put_priorities(&values[3], claim->front, now, claim->probe);
	values[6] = left_out(true);
	run(LOAD_HEADS, values, NULL);
	note_suspect(ASIDE_PUSH);
	load_rows(&loaded, Min(bounds.accounts * max, MAX_ACCOUNTS_PER_CLAIM));
	keys = palloc(sizeof(int64) * Max(loaded.n, 1));
	if (loaded.n > 0 && should_look_further(&loaded, claim, max))
		nkeys = load_riders(&loaded, claim, &bounds, now, keys);
	requests = journal_rows(&loaded, &bounds, claim->recent, STATE_SENDING,
							claim->server->oid, claim->random_key, now, parent);
	if (loaded.n > 0)
	{
		remove_taken(&loaded);
		*again = put_off(&loaded) > 0 && requests == NIL;
	}
	move_front(claim->server, claim->front, now);
	move_content_fronts(claim->front, keys, nkeys);
	return requests;
}

List *
outbox_claim(Claim *claim, int max, TimestampTz *due, MemoryContext parent)
{
	bool		again = true;
	List	   *requests = NIL;

	/* which push is the oldest must be known, not only guessed at */
	if (claim->probe)
		move_front(claim->server, claim->front, GetCurrentTimestamp());
	for (int i = 0; again && i < MAX_TRIES; i++)
		requests = try_claim(claim, max, &again, parent);
	*due = front_first(claim->front).at;
	return requests;
}

/* Loaded rows get the outcome "expired"; returns how many requests that makes. */
static int
expire_loaded(Loaded *loaded, TimestampTz now)
{
	ComposeBounds bounds = {0, UNSENT_SIZE, INT_MAX};
	List	   *requests;

	/* a large push takes a request for each so many accounts */
	for (int i = 0; i < loaded->n; i++)
		bounds.requests += loaded->rows[i].nloaded / UNSENT_SIZE + 1;
	requests = journal_rows(loaded, &bounds, NULL, STATE_EXPIRED, InvalidOid, 0, now,
							CurrentMemoryContext);
	remove_taken(loaded);
	return list_length(requests);
}

int
outbox_expire(Position *front, bool alone, TimestampTz *due)
{
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[5] = {TimestampTzGetDatum(now), Int64GetDatum(alone ? 1 : MAX_EXPIRE),
	TimestampTzGetDatum(front->at), Int64GetDatum(front->id), left_out(true)};
	int			nrequests;
	Loaded		loaded;

	run(LOAD_EXPIRED, values, NULL);
	note_suspect(ASIDE_PUSH);
	load_rows(&loaded, MAX_EXPIRE_ACCOUNTS);
	nrequests = expire_loaded(&loaded, now);
	run(FIND_EXPIRY_FRONT, &values[2], NULL);
	*front = SPI_processed > 0 ?
		position_in(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1) : POSITION_NONE;
	*due = front->at;
	return nrequests;
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
	FAULT_POINT("recording");
	run_rows(INSERT_REQUESTS, &journal.new_requests);
	run_rows(COPY_RESULTS, &journal.copied_results);
	run_rows(MOVE_RESULTS, &journal.moved_results);
	run_rows(INSERT_ERRORS, &journal.errors);
}

/* The first request that goes again, from *front on; moves it there. */
static void
move_retry_front(const ServerOptions *server, Position *front)
{
	Datum		values[4] = {server_name(server), TimestampTzGetDatum(front->at),
	Int64GetDatum(front->id), left_out(false)};

	run(FIND_RETRY_FRONT, values, NULL);
	*front = SPI_processed > 0 ?
		position_in(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1) : POSITION_NONE;
}

/* Pushes that expired in requests that are to go again leave them. */
static void
drop_expired(List *requests, TimestampTz now)
{
	ListCell   *cell;

	FAULT_POINT("drop-expired");
	journal_begin(&journal);
	foreach(cell, requests)
		journal_drop_expired(&journal, lfirst(cell), now);
	write_outcomes(now);
	foreach(cell, requests)
		MemoryContextDelete(((Request *) lfirst(cell))->context);
}

/* Requests that have become too large go in parts, a probe in a small one. */
static void
cut_requests(const Claim *claim, List *requests, TimestampTz now)
{
	ListCell   *cell;

	journal_begin(&journal);
	foreach(cell, requests)
		journal_cut(&journal, lfirst(cell), claim->probe ? 1 : claim->size_again,
					claim->size_again, now);
	write_outcomes(now);
	foreach(cell, requests)
		MemoryContextDelete(((Request *) lfirst(cell))->context);
}

static void
resend_requests(List *requests, uint64 random_key)
{
	ListCell   *cell;

	journal_begin(&journal);
	foreach(cell, requests)
		journal_resend(&journal, lfirst(cell), random_key);
	run_rows(RESEND_REQUESTS, &journal.changed_requests);
	FAULT_POINT("resend");
	run_rows(CHANGE_RESULTS, &journal.changed_results);
}

/*
 * Those of which pushes have expired leave the journal's queue, such as are
 * too large are cut, and the others go again.
 */
static List *
resend_or_change(const Claim *claim, List *found, TimestampTz now)
{
	int			most = claim->probe ? 1 : claim->size_again;
	List	   *expired = NIL;
	List	   *large = NIL;
	List	   *claimed = NIL;
	ListCell   *cell;

	foreach(cell, found)
	{
		Request    *request = lfirst(cell);

		if (request_any_expired(request, now))
			expired = lappend(expired, request);
		else if (request->naccounts > most && !request->in_doubt)
			large = lappend(large, request);
		else
			claimed = lappend(claimed, request);
	}
	if (claimed != NIL)
		resend_requests(claimed, claim->random_key);
	if (expired != NIL)
		drop_expired(expired, now);
	if (large != NIL)
		cut_requests(claim, large, now);
	return claimed;
}

/* One try; *again if it came to nothing but another one may not. */
static List *
try_claim_retries(Claim *claim, int max, bool *again, MemoryContext parent)
{
	TimestampTz now = GetCurrentTimestamp();
	const Position *front = claim->retry_front;
	Datum		values[6] = {server_name(claim->server), TimestampTzGetDatum(now), Int64GetDatum(max),
	TimestampTzGetDatum(front->at), Int64GetDatum(front->id), left_out(false)};
	List	   *found;
	List	   *claimed = NIL;

	run(FIND_RETRIES, values, NULL);
	note_suspect(ASIDE_REQUEST);
	found = load_requests(claim->server->oid, parent);
	if (found != NIL)
		claimed = resend_or_change(claim, found, now);
	*again = claimed == NIL && found != NIL && !claim->alone;
	return claimed;
}

List *
outbox_claim_retries(Claim *claim, int max, MemoryContext parent)
{
	bool		again = true;
	List	   *requests = NIL;

	for (int i = 0; again && i < MAX_TRIES; i++)
		requests = try_claim_retries(claim, max, &again, parent);
	move_retry_front(claim->server, claim->retry_front);
	return requests;
}

int
outbox_expire_retries(const ServerOptions *server, bool alone, TimestampTz *due)
{
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[4] = {server_name(server), TimestampTzGetDatum(now),
	Int64GetDatum(alone ? 1 : MAX_EXPIRE_RETRIES), left_out(false)};
	List	   *expired;
	bool		isnull;
	Datum		first;

	run(FIND_EXPIRED_RETRIES, values, NULL);
	note_suspect(ASIDE_REQUEST);
	expired = load_requests(server->oid, CurrentMemoryContext);
	drop_expired(expired, now);
	values[1] = values[3];
	run(FIND_RETRY_EXPIRY, values, NULL);
	first = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	*due = isnull ? DT_NOEND : DatumGetTimestampTz(first);
	return list_length(expired);
}

List *
outbox_claim_push(Claim *claim, int64 id, MemoryContext parent)
{
	TimestampTz now = GetCurrentTimestamp();
	ComposeBounds bounds = {1, claim != NULL ? claim->size : 0, MAX_ACCOUNTS_PER_CLAIM};
	Datum		values[2] = {Int64GetDatum(id), TimestampTzGetDatum(now)};
	TimestampTz expires_at;
	Loaded		loaded;
	List	   *requests = NIL;

	run(LOAD_PUSH, values, NULL);
	if (SPI_processed == 0)
		return NIL;
	load_rows(&loaded, MAX_EXPIRE_ACCOUNTS);
	expires_at = DatumGetTimestampTz(loaded.pushes[0].values[OUTBOX_EXPIRES_AT - 1]);
	if (!loaded.pushes[0].nulls[OUTBOX_EXPIRES_AT - 1] && expires_at <= now)
		(void) expire_loaded(&loaded, now);
	else if (claim != NULL)
	{
		requests = journal_rows(&loaded, &bounds, claim->recent, STATE_SENDING,
								claim->server->oid, claim->random_key, now, parent);
		remove_taken(&loaded);
		(void) put_off(&loaded);
	}
	return requests;
}

/* The request, if it is in that state and nobody has locked it. */
static List *
load_request_in(const char *state, int64 id, Oid serverid, MemoryContext parent)
{
	Datum		values[2] = {Int64GetDatum(id), CStringGetTextDatum(state)};

	run(FIND_REQUEST, values, NULL);
	return load_requests(serverid, parent);
}

List *
outbox_claim_request(const Claim *claim, int64 id, MemoryContext parent)
{
	List	   *found = load_request_in(STATE_RETRY, id, claim->server->oid, parent);

	return found == NIL ? NIL : resend_or_change(claim, found, GetCurrentTimestamp());
}

List *
outbox_orphan(int64 id, MemoryContext parent)
{
	return load_request_in(STATE_SENDING, id, InvalidOid, parent);
}

List *
outbox_orphans(const List *known, bool alone, MemoryContext parent)
{
	Datum	   *ids = palloc(sizeof(Datum) * (list_length(known) + aside->n + 1));
	int			n = 0;
	ListCell   *cell;
	Datum		values[2];

	foreach(cell, known)
		ids[n++] = Int64GetDatum(((const Request *) lfirst(cell))->id);
	for (int i = 0; i < aside->n; i++)
		ids[n++] = Int64GetDatum(aside->rows[i].id);
	values[0] = array_of(ids, n, INT8OID);
	values[1] = Int64GetDatum(alone ? 1 : PG_INT32_MAX);
	run(FIND_ORPHANS, values, NULL);
	note_suspect(ASIDE_ORPHAN);
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

void
outbox_end_server(Name server)
{
	Datum		value = NameGetDatum(server);

	run(END_REQUESTS, &value, NULL);
}

void
outbox_look(const ServerOptions *server, Front *front, Position *retry_front)
{
	move_front(server, front, GetCurrentTimestamp());
	move_retry_front(server, retry_front);
}

/* ------------------------------------------------------------------------
 * What is older than timpush.retention
 * ------------------------------------------------------------------------
 */

/* The rows in the result of the last statement. */
static RetainedRow *
load_retained(int *n)
{
	RetainedRow *rows = palloc0(sizeof(RetainedRow) * Max(SPI_processed, 1));
	TupleDesc	desc = SPI_tuptable->tupdesc;

	*n = (int) SPI_processed;
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		bool		isnull;
		Datum		finished = SPI_getbinval(tuple, desc, 3, &isnull);

		rows[i].id = DatumGetInt64(load_column(tuple, desc, 1));
		rows[i].begun = DatumGetTimestampTz(load_column(tuple, desc, 2));
		rows[i].finished = isnull ? RETENTION_NEVER : DatumGetTimestampTz(finished);
		rows[i].free = DatumGetBool(load_column(tuple, desc, 4));
		rows[i].place = DatumGetPointer(SPI_getbinval(tuple, desc, 5, &isnull));
	}
	return rows;
}

void
outbox_remove_old(Retention *retention)
{
	static const Statement finds[] = {FIND_OLD_PUSHES, FIND_OLD_REQUESTS, FIND_OLD_ERRORS};
	static const Statement deletes[] = {DELETE_OLD_RESULTS, DELETE_OLD_REQUESTS, DELETE_OLD_ERRORS};
	RetentionTable table = retention->table;
	Oid			type = table == RETAIN_ERRORS ? TIDOID : INT8OID;
	Datum		values[3] = {Int64GetDatum(retention->front[table]),
	Int64GetDatum(RETENTION_BATCH), Int64GetDatum(retention->end)};
	Datum	   *keys;
	int			n;
	int			chosen;
	RetainedRow *rows;

	run(finds[table], values, NULL);
	rows = load_retained(&n);
	chosen = retention_choose(retention, rows, n, GetCurrentTimestamp());
	if (chosen == 0)
		return;
	keys = palloc(sizeof(Datum) * chosen);
	for (int i = 0; i < chosen; i++)
		keys[i] = table == RETAIN_ERRORS ?
			PointerGetDatum(rows[i].place) : Int64GetDatum(rows[i].id);
	values[0] = array_of(keys, chosen, type);
	FAULT_POINT("remove");
	run(deletes[table], values, NULL);
	/* of a push may be more than fit into a step, unless a trigger keeps them */
	if (table == RETAIN_ERRORS && SPI_processed > 0)
		retention->front[table]--;
}
