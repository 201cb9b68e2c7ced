/*-------------------------------------------------------------------------
 *
 * manage.c
 *	  What a session does to pushes and servers: cancel, retry, pause, resume,
 *	  and what DDL on a server does to its pushes.
 *
 * These act on our tables in the caller's transaction, with the rights of the
 * tables' owner after the caller's have been checked.  The worker takes only
 * rows that nobody has locked and looks again at those that somebody had, so
 * a push is cancelled or claimed, never both, and a transaction that is left
 * open holds nothing up but what it has touched.
 *
 * Crash story: all of it lives and dies with the caller's transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "access/xlog.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "activation.h"
#include "compat.h"
#include "enqueue.h"
#include "fault.h"
#include "journal.h"
#include "journal_sql.h"
#include "load.h"
#include "manage.h"
#include "outbox.h"
#include "owner.h"
#include "server.h"
#include "version.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(timpush_cancel);
PG_FUNCTION_INFO_V1(timpush_retry);
PG_FUNCTION_INFO_V1(timpush_pause);
PG_FUNCTION_INFO_V1(timpush_resume);
PG_FUNCTION_INFO_V1(timpush_server_notify);

/* Accounts of a large push that are moved at a time, for memory's sake. */
#define CANCEL_STEP	50000

/*
 * Statements that this session has run, by their text, which names the schema,
 * and the types of their parameters, which a table made anew changes.
 */
#define SAVED_PLANS		20
#define MAX_PARAMS		3

typedef struct SavedPlan
{
	char	   *sql;
	Oid			types[MAX_PARAMS];
	SPIPlanPtr	plan;			/* NULL: free */
} SavedPlan;

static SavedPlan saved_plans[SAVED_PLANS];
static int	next_plan = 0;

/* Our tables, and who we are while we work on them. */
typedef struct Session
{
	Oid			caller;
	Oid			outbox;
	Oid			schema;
	const char *schema_name;	/* quoted */
	OwnerScope	scope;
} Session;

/* Become the tables' owner, and connect to SPI. */
static void
session_begin(Session *session, Oid schema)
{
	session->caller = GetUserId();
	session->schema = schema;
	session->schema_name = quote_identifier(get_namespace_name(session->schema));
	session->outbox = get_relname_relid("push_outbox", session->schema);
	if (!OidIsValid(session->outbox))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.push_outbox\" does not exist", session->schema_name),
				 errhint("Drop and create the extension timpush.")));
	version_check(session->outbox);
	owner_enter_safely(&session->scope, session->outbox);
	SPI_connect();
}

static void
session_end(Session *session)
{
	SPI_finish();
	owner_leave(&session->scope);
}

/* The plan of a statement, prepared once in a session. */
static SPIPlanPtr
plan_of(const char *sql, int nparams, Oid *types)
{
	SavedPlan  *saved;
	SPIPlanPtr	plan;

	for (int i = 0; i < SAVED_PLANS; i++)
	{
		saved = &saved_plans[i];
		if (saved->plan != NULL && strcmp(saved->sql, sql) == 0 &&
			memcmp(saved->types, types, sizeof(Oid) * nparams) == 0)
			return saved->plan;
	}
	plan = SPI_prepare(sql, nparams, types);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare \"%s\"", sql);
	saved = &saved_plans[next_plan];
	next_plan = (next_plan + 1) % SAVED_PLANS;
	if (saved->plan != NULL)
	{
		SPI_freeplan(saved->plan);
		saved->plan = NULL;
		pfree(saved->sql);
	}
	saved->sql = MemoryContextStrdup(TopMemoryContext, sql);
	memcpy(saved->types, types, sizeof(Oid) * nparams);
	saved->plan = plan;
	return plan;
}

/*
 * Run a statement, "@" standing for the schema; rows are in SPI_tuptable.
 * What only reads sees the rows as of the active snapshot.
 */
static void
run_plan(const Session *session, const char *sql, int nparams, Oid *types, Datum *values,
		 bool read_only)
{
	StringInfoData query;

	initStringInfo(&query);
	for (const char *p = sql; *p != '\0'; p++)
	{
		if (*p == '@')
			appendStringInfoString(&query, session->schema_name);
		else
			appendStringInfoChar(&query, *p);
	}
	if (SPI_execute_plan(plan_of(query.data, nparams, types), values, NULL, read_only, 0) < 0)
		elog(ERROR, "could not run \"%s\"", query.data);
	pfree(query.data);
}

static void
run(const Session *session, const char *sql, int nparams, Oid *types, Datum *values)
{
	run_plan(session, sql, nparams, types, values, false);
}

static void
run_for_id(const Session *session, const char *sql, int64 id)
{
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(id);

	run(session, sql, 1, &type, &value);
}

static void
run_rows(const Session *session, const char *sql, const RowSet *rows)
{
	Oid			type = rows->array_type;
	Datum		value;

	if (rows->nrows == 0)
		return;
	value = rowset_array(rows);
	run(session, sql, 1, &type, &value);
}

static Datum
column(int row, int number)
{
	return load_column(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number);
}

static void
open_journal(const Session *session, Journal *journal)
{
	journal_open(journal, session->schema);
	if (!journal_fits(journal))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("tables of the extension do not have the columns that they were made with"),
				 errhint("Create the extension anew.")));
}

/* ------------------------------------------------------------------------
 * Whose push it is
 * ------------------------------------------------------------------------
 */

/*
 * Is there such a push, and may the caller act on it?  By the same rule by
 * which row-level security shows it.  *open tells if any account of it has no
 * outcome yet.
 */
static bool
find_push(const Session *session, int64 id, bool *open)
{
	Oid			enqueued_by;

	run_for_id(session,
			   "SELECT enqueued_by, true FROM @.push_outbox WHERE id = $1 "
			   "UNION ALL "
			   "SELECT enqueued_by, state IN ('sending', 'retry') FROM @.push_result"
			   " WHERE push_id = $1", id);
	if (SPI_processed == 0)
		return false;
	*open = false;
	for (uint64 i = 0; i < SPI_processed; i++)
		*open = *open || DatumGetBool(column((int) i, 2));
	/* the role may be gone; then it is the owner's business */
	enqueued_by = get_role_oid(NameStr(*DatumGetName(column(0, 1))), true);
	return (OidIsValid(enqueued_by) && is_member_of_role(session->caller, enqueued_by)) ||
		is_member_of_role(session->caller, owner_of_table(session->outbox));
}

/* ------------------------------------------------------------------------
 * timpush_cancel
 * ------------------------------------------------------------------------
 */

/*
 * Move the first accounts of a waiting row, which is in SPI_tuptable, into
 * the journal; true if that was all of them.
 */
static bool
cancel_some(const Session *session, Journal *journal)
{
	Loaded		loaded;
	ComposeBounds bounds = {0, UNSENT_SIZE, INT_MAX};
	ComposedRequest *composed;
	TimestampTz now = GetCurrentTimestamp();
	Oid			types[] = {INT8OID, INT4OID, INT4OID};
	Datum		values[3];
	int			n;

	load_rows(&loaded, CANCEL_STEP);
	bounds.requests = loaded.rows[0].nloaded / UNSENT_SIZE + 1;
	composed = palloc(sizeof(ComposedRequest) * bounds.requests);
	n = compose(loaded.rows, 1, &bounds, NULL, now, composed);
	journal_begin(journal);
	for (int i = 0; i < n; i++)
		(void) journal_compose(journal, &composed[i], loaded.rows, loaded.pushes,
							   STATE_CANCELLED, InvalidOid, 0, CurrentMemoryContext);
	run_rows(session, SQL_INSERT_REQUESTS, &journal->new_requests);
	run_rows(session, SQL_INSERT_RESULTS, &journal->new_results);

	values[0] = Int64GetDatum(loaded.rows[0].id);
	values[1] = Int32GetDatum(loaded.rows[0].taken);
	values[2] = Int32GetDatum(load_handed_bytes(&loaded, 0));
	if (loaded.rows[0].taken >= loaded.rows[0].naccounts)
	{
		run(session, "DELETE FROM @.push_outbox WHERE id = $1", 1, types, values);
		return true;
	}
	run(session,
		"UPDATE @.push_outbox SET handed_out = handed_out + $2, handed_bytes = $3 "
		"WHERE id = $1", 3, types, values);
	return false;
}

/*
 * Cancel what waits.  If the worker is just about to take it, wait for that
 * and see what is left.
 */
static bool
cancel_waiting(const Session *session, Journal *journal, int64 id)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "timpush cancel",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		all = false;
	bool		any = false;

	while (!all)
	{
		run_for_id(session, "SELECT o.*, o.ctid FROM @.push_outbox o WHERE o.id = $1 FOR UPDATE", id);
		if (SPI_processed == 0)
			break;
		all = cancel_some(session, journal);
		any = true;
		SPI_freetuptable(SPI_tuptable);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return any;
}

/* The members of one request, in their order. */
static void
load_members(const Session *session, Request *request)
{
	Oid			type = INT8ARRAYOID;
	Datum		id = Int64GetDatum(request->id);
	Datum		value = PointerGetDatum(construct_array(&id, 1, INT8OID, sizeof(int64),
														FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));

	run(session, SQL_LOAD_MEMBERS, 1, &type, &value);
	for (uint64 i = 0; i < SPI_processed; i++)
		load_member(request, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
}

/*
 * Take the push out of a request that goes again, if that may still be done:
 * the others in it go on in a new one, at the time at which it would have.
 */
static bool
leave_request(const Session *session, Journal *journal, int64 request_id, int64 push_id)
{
	Request    *request;
	bool	   *leaving;

	/* waits for whoever is at it, the worker or another session */
	run_for_id(session,
			   "SELECT " REQUEST_COLUMNS " FROM @.push_request q "
			   "WHERE q.id = $1 AND q.state = 'retry' AND NOT q.in_doubt"
			   " AND NOT q.maybe_duplicate FOR UPDATE", request_id);
	if (SPI_processed == 0)
		return false;
	request = load_request(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, InvalidOid,
						   CurrentMemoryContext);
	load_members(session, request);
	leaving = palloc(sizeof(bool) * Max(request->nmembers, 1));
	for (int i = 0; i < request->nmembers; i++)
		leaving[i] = request->members[i].push_id == push_id;

	journal_begin(journal);
	journal_drop(journal, request, leaving, STATE_CANCELLED, GetCurrentTimestamp());
	run_rows(session, SQL_CHANGE_REQUESTS, &journal->changed_requests);
	run_rows(session, SQL_CHANGE_RESULTS, &journal->changed_results);
	run_rows(session, SQL_INSERT_REQUESTS, &journal->new_requests);
	run_rows(session, SQL_MOVE_RESULTS, &journal->moved_results);
	return true;
}

/*
 * Cancel what goes again after a definite refusal, or after an attempt of
 * which no byte left.  What may have reached the API is not ours to cancel.
 */
static bool
cancel_retrying(const Session *session, Journal *journal, int64 id)
{
	bool		any = false;

	for (;;)
	{
		int			n;
		int64	   *requests;

		run_for_id(session,
				   "SELECT q.id FROM @.push_result r JOIN @.push_request q ON q.id = r.request_id "
				   "WHERE r.push_id = $1 AND r.state = 'retry' AND q.state = 'retry'"
				   " AND NOT q.in_doubt AND NOT q.maybe_duplicate ORDER BY q.id", id);
		n = (int) SPI_processed;
		if (n == 0)
			return any;
		requests = palloc(sizeof(int64) * n);
		for (int i = 0; i < n; i++)
			requests[i] = DatumGetInt64(column(i, 1));
		for (int i = 0; i < n; i++)
			any |= leave_request(session, journal, requests[i], id);
		/* a request that was split while we waited has left it to another one */
	}
}

/*
 * timpush_cancel(id bigint) returns boolean
 *
 * Takes back what of the push has not left: what waits, and what goes again
 * although the API has not got it.  True if there was any.  False if there
 * is no such push, or not for the caller, or if all of it is in flight, in
 * doubt or done.  Error: read_only_sql_transaction.
 */
Datum
timpush_cancel(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Session		session;
	Journal		journal;
	bool		open;
	bool		cancelled = false;

	PreventCommandIfReadOnly("timpush_cancel()");
	session_begin(&session, get_func_namespace(fcinfo->flinfo->fn_oid));
	if (find_push(&session, id, &open) && open)
	{
		open_journal(&session, &journal);
		cancelled = cancel_waiting(&session, &journal, id);
		FAULT_POINT("cancel");
		cancelled |= cancel_retrying(&session, &journal, id);
	}
	session_end(&session);
	PG_RETURN_BOOL(cancelled);
}

/* ------------------------------------------------------------------------
 * timpush_retry
 * ------------------------------------------------------------------------
 */

/*
 * The push anew as a row of push_outbox: all that makes its content, out of
 * the journal, and who has not got it.  "extra" is what request_content() was
 * given, but that Ext is JSON text by now.
 */
static const char *const retry_query =
"SELECT r.server, q.content->>'From_Account', q.content#>>'{OfflinePushInfo,Title}',"
" q.content#>>'{OfflinePushInfo,Desc}', q.content->>'DataId',"
" CASE WHEN x.rest->'OfflinePushInfo' = '{}'"
"  THEN nullif(x.rest - 'OfflinePushInfo', '{}') ELSE x.rest END,"
" r.priority, q.on_unknown,"
" (SELECT array_agg(a.account ORDER BY p.request_id, a.n)"
"  FROM @.push_result p JOIN @.push_request c ON c.id = p.request_id"
"  CROSS JOIN LATERAL unnest(c.accounts[p.first : p.first + p.accounts - 1])"
"   WITH ORDINALITY a(account, n)"
"  WHERE p.push_id = $1 AND (p.state IN ('failed', 'expired', 'cancelled', 'unknown')"
"   OR p.state = 'partial' AND (p.request_id, a.account) IN"
"    (SELECT e.request_id, e.account FROM @.push_error e WHERE e.push_id = $1))) "
"FROM @.push_result r JOIN @.push_request q ON q.id = r.request_id"
" CROSS JOIN LATERAL (SELECT q.content - '{From_Account,DataId}'::text[]"
"  #- '{OfflinePushInfo,Title}' #- '{OfflinePushInfo,Desc}' AS rest) x "
"WHERE r.push_id = $1 ORDER BY r.request_id LIMIT 1";

/* What the columns of that query are. */
static const int retry_columns[] = {
	OUTBOX_SERVER, OUTBOX_FROM_ACCOUNT, OUTBOX_TITLE, OUTBOX_DESCR, OUTBOX_DATA_ID,
	OUTBOX_EXTRA, OUTBOX_PRIORITY, OUTBOX_ON_UNKNOWN, OUTBOX_TO_ACCOUNTS
};

/* Read the push anew into values that outlive SPI. */
static void
read_for_retry(const Session *session, int64 id, Datum *values, bool *nulls)
{
	run_for_id(session, retry_query, id);
	for (size_t i = 0; i < lengthof(retry_columns) && SPI_processed > 0; i++)
	{
		int			target = retry_columns[i] - 1;
		Form_pg_attribute attr = TupleDescAttr(SPI_tuptable->tupdesc, i);
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
										  (int) i + 1, &nulls[target]);

		if (!nulls[target])
			values[target] = SPI_datumTransfer(value, attr->attbyval, attr->attlen);
	}
}

/*
 * timpush_retry(id bigint) returns bigint
 *
 * Enqueues a push of the same content to the accounts of a finished one that
 * failed, expired, were cancelled or are in doubt; returns its id.  Errors:
 * undefined_object for an unknown push, object_not_in_prerequisite_state if
 * it has open accounts or none to send again, and those of timpush_batch().
 */
Datum
timpush_retry(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Session		session;
	Datum		values[OUTBOX_NATTS] = {0};
	bool		nulls[OUTBOX_NATTS];
	bool		open;

	PreventCommandIfReadOnly("timpush_retry()");
	memset(nulls, true, sizeof(nulls));
	session_begin(&session, get_func_namespace(fcinfo->flinfo->fn_oid));
	if (!find_push(&session, id, &open))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("push %lld does not exist", (long long) id),
				 errhint("It was rolled back, its outcome was deleted, or another role enqueued it.")));
	if (open)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("push %lld has accounts without an outcome", (long long) id),
				 errhint("Wait for it with timpush_wait(), or take the rest back with timpush_cancel().")));
	read_for_retry(&session, id, values, nulls);
	session_end(&session);
	if (nulls[OUTBOX_TO_ACCOUNTS - 1])
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("push %lld has no accounts to send again", (long long) id),
				 errdetail("All of its accounts were accepted.")));
	PG_RETURN_INT64(enqueue_row(session.outbox, values, nulls));
}

/* ------------------------------------------------------------------------
 * timpush_pause, timpush_resume
 * ------------------------------------------------------------------------
 */

/*
 * The server that is meant, of which the caller is an owner.  The lock keeps
 * others from making its row at the same time, and DROP SERVER away.
 */
static void
lock_server(FunctionCallInfo fcinfo)
{
	char	   *name;
	Oid			serverid;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("\"%s\" must not be null", "server"),
				 errhint("Give the name of a server.")));
	name = NameStr(*PG_GETARG_NAME(0));
	serverid = server_resolve(name);
	if (!server_ownercheck(serverid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_SERVER, name);
	LockDatabaseObject(ForeignServerRelationId, serverid, 0, SERVER_ROW_LOCK);
	/* it may have been dropped, and even made anew, while we waited */
	if (server_resolve(name) != serverid)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("server \"%s\" was replaced concurrently", name)));
}

/* What the worker does when it starts, if it has not come to that yet. */
static void
hold_copied(const Session *session)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum((int64) GetSystemIdentifier()),
	ObjectIdGetDatum(MyDatabaseId)};

	run(session, SQL_FORGET_COPIED, lengthof(types), types, values);
	if (SPI_processed == 0)
		return;
	run(session, SQL_HOLD_SERVERS, 0, NULL, NULL);
	run(session, SQL_NOTE_ACTIVATION, 0, NULL, NULL);
}

/* $1 is the server, $2 who has called us.  Returns push_outbox. */
static Oid
change_server(FunctionCallInfo fcinfo, const char *sql, int nparams)
{
	Session		session;
	Oid			types[] = {NAMEOID, TEXTOID};
	Datum		values[2];

	lock_server(fcinfo);
	values[0] = PG_GETARG_DATUM(0);
	values[1] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	session_begin(&session, get_func_namespace(fcinfo->flinfo->fn_oid));
	hold_copied(&session);
	run(&session, sql, nparams, types, values);
	session_end(&session);
	wake_request();
	return session.outbox;
}

/*
 * timpush_pause(server name) returns void
 *
 * From the commit on nothing more leaves for the server, until it is resumed.
 * Needs ownership of the server.  Errors: null_value_not_allowed, those of
 * server_resolve(), insufficient_privilege, read_only_sql_transaction.
 */
Datum
timpush_pause(PG_FUNCTION_ARGS)
{
	PreventCommandIfReadOnly("timpush_pause()");
	(void) change_server(fcinfo,
						 "INSERT INTO @.push_server AS s (server, state, reason, since) "
						 "VALUES ($1, 'paused', 'paused by ' || $2, clock_timestamp()) "
						 "ON CONFLICT (server) DO UPDATE SET state = 'paused', reason = excluded.reason,"
						 " error_code = NULL, next_probe_at = NULL, since = excluded.since "
						 "WHERE s.state NOT IN ('paused', 'held')", 2);
	PG_RETURN_VOID();
}

/*
 * timpush_resume(server name) returns void
 *
 * Makes a server that is paused, suspended, held or resting after failures
 * be tried at once.  Errors: those of timpush_pause().
 */
Datum
timpush_resume(PG_FUNCTION_ARGS)
{
	PreventCommandIfReadOnly("timpush_resume()");

	/*
	 * a database that nothing was enqueued in yet sends what comes from now
	 * on
	 */
	activation_ensure(change_server(fcinfo,
									"UPDATE @.push_server SET state = 'active', reason = NULL, error_code = NULL,"
									" next_probe_at = NULL, since = clock_timestamp() "
									"WHERE server = $1", 1));
	PG_RETURN_VOID();
}

/* ------------------------------------------------------------------------
 * Servers that are dropped or renamed
 * ------------------------------------------------------------------------
 */

bool
manage_has_tables(Oid schema)
{
	static const char *const names[] = {
		"push_outbox", "push_request", "push_result", "push_server", "push_server_key",
		"push_worker"
	};

	for (size_t i = 0; i < lengthof(names); i++)
	{
		if (!OidIsValid(get_relname_relid(names[i], schema)))
			return false;
	}
	return version_matches(get_relname_relid("push_outbox", schema));
}

static void
run_for_server(const Session *session, const char *sql, const char *server, bool read_only)
{
	Oid			type = NAMEOID;
	NameData	name;
	Datum		value;

	namestrcpy(&name, server);
	value = NameGetDatum(&name);
	run_plan(session, sql, 1, &type, &value, read_only);
}

/* As of now, whatever the transaction's isolation level. */
static bool
run_for_latest(const Session *session, const char *sql, const char *server)
{
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	run_for_server(session, sql, server, true);
	PopActiveSnapshot();
	return SPI_processed > 0;
}

bool
manage_find_open(Oid schema, const char *server, int64 *push)
{
	Session		session;
	bool		found;

	session_begin(&session, schema);
	found = run_for_latest(&session,
						   "SELECT id FROM @.push_outbox WHERE server = $1 "
						   "UNION ALL "
						   "SELECT push_ids[1] FROM @.push_request"
						   " WHERE server = $1 AND next_attempt_at IS NOT NULL "
						   "UNION ALL "
						   "SELECT push_ids[1] FROM @.push_request"
						   " WHERE id >= (SELECT first_in_flight FROM @.push_worker)"
						   " AND state = 'sending' AND server = $1 "
						   "LIMIT 1", server);
	if (found)
		*push = DatumGetInt64(column(0, 1));
	session_end(&session);
	return found;
}

/* Pushes that wait or go again, of which something can still be ended. */
#define SQL_FIND_ENDABLE \
	"SELECT id FROM @.push_outbox WHERE server = $1 " \
	"UNION " \
	"SELECT unnest(push_ids) FROM @.push_request " \
	"WHERE server = $1 AND next_attempt_at IS NOT NULL AND state = 'retry'"

static int
end_pushes(const Session *session, const char *server)
{
	Journal		journal;
	int64	   *pushes;
	int			n;

	run_for_server(session, SQL_FIND_ENDABLE, server, false);
	n = (int) SPI_processed;
	pushes = palloc_extended(sizeof(int64) * Max(n, 1), MCXT_ALLOC_HUGE);
	for (int i = 0; i < n; i++)
		pushes[i] = DatumGetInt64(column(i, 1));
	SPI_freetuptable(SPI_tuptable);
	open_journal(session, &journal);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		(void) cancel_waiting(session, &journal, pushes[i]);
	}
	run_for_server(session, SQL_END_REQUESTS, server, false);
	return n;
}

void
manage_end_pushes(Oid schema, const char *server)
{
	Session		session;
	int			n;

	session_begin(&session, schema);
	n = end_pushes(&session, server);
	/* at a higher isolation level we do not get to see all of them */
	if (run_for_latest(&session, SQL_FIND_ENDABLE, server))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not end the pushes of server %s due to concurrent changes", server),
				 errhint("The transaction might succeed if retried.")));
	session_end(&session);
	if (n > 0)
		ereport(NOTICE,
				(errmsg_plural("drop cascades to %d push of server %s",
							   "drop cascades to %d pushes of server %s",
							   n, n, server),
				 errdetail("Accounts without an outcome are cancelled, or unknown if the API may have got them.")));
}

void
manage_forget_server(Oid schema, const char *server)
{
	Session		session;

	session_begin(&session, schema);
	run_for_server(&session, "DELETE FROM @.push_server WHERE server = $1", server, false);
	run_for_server(&session, "DELETE FROM @.push_server_key WHERE server = $1", server, false);
	session_end(&session);
}

void
manage_rename_server(Oid schema, const char *old, const char *new)
{
	Session		session;
	Oid			types[] = {NAMEOID, NAMEOID};
	NameData	names[2];
	Datum		values[] = {NameGetDatum(&names[0]), NameGetDatum(&names[1])};

	namestrcpy(&names[0], old);
	namestrcpy(&names[1], new);
	manage_forget_server(schema, new);
	session_begin(&session, schema);
	run(&session, "UPDATE @.push_server SET server = $2 WHERE server = $1", 2, types, values);
	run(&session, "UPDATE @.push_server_key SET server = $2 WHERE server = $1", 2, types, values);
	session_end(&session);
}

/* ------------------------------------------------------------------------
 * Telling of changes
 * ------------------------------------------------------------------------
 */

/* A column of push_server as text, NULL for null. */
static char *
server_column(const TriggerData *trigdata, HeapTuple row, const char *name)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	int			number = SPI_fnumber(desc, name);

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("relation \"%s\" has no column \"%s\"",
						RelationGetRelationName(trigdata->tg_relation), name)));
	return SPI_getvalue(row, desc, number);
}

/* Is the state another one, or is a server suspended for another reason? */
static bool
state_changed(const TriggerData *trigdata, const char *state, const char *error_code)
{
	char	   *old_state;
	char	   *old_code;

	if (!TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		return strcmp(state, "active") != 0;
	old_state = server_column(trigdata, trigdata->tg_trigtuple, "state");
	old_code = server_column(trigdata, trigdata->tg_trigtuple, "error_code");
	if (strcmp(state, old_state) != 0)
		return true;
	return strcmp(state, "suspended") == 0 &&
		strcmp(error_code != NULL ? error_code : "", old_code != NULL ? old_code : "") != 0;
}

/*
 * timpush_server_notify() returns trigger
 *
 * Row trigger of push_server: a change of a server's state is told on the
 * channel "timpush" as {"database", "server", "state", "error_code"}.
 */
Datum
timpush_server_notify(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	HeapTuple	row;
	char	   *state;
	char	   *error_code;
	StringInfoData payload;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"timpush_server_notify")));
	row = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
		trigdata->tg_newtuple : trigdata->tg_trigtuple;
	state = server_column(trigdata, row, "state");
	error_code = server_column(trigdata, row, "error_code");
	if (state == NULL || !state_changed(trigdata, state, error_code))
		return PointerGetDatum(NULL);

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"database\": ");
	escape_json(&payload, get_database_name(MyDatabaseId));
	appendStringInfoString(&payload, ", \"server\": ");
	escape_json(&payload, server_column(trigdata, row, "server"));
	appendStringInfoString(&payload, ", \"state\": ");
	escape_json(&payload, state);
	appendStringInfo(&payload, ", \"error_code\": %s}",
					 error_code != NULL ? error_code : "null");
	Async_Notify("timpush", payload.data);
	return PointerGetDatum(NULL);
}
