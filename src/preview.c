/*-------------------------------------------------------------------------
 *
 * preview.c
 *	  The request bodies of a push, without sending.
 *
 * Crash story: reads only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "outbox_columns.h"
#include "owner.h"
#include "request.h"
#include "server.h"
#include "version.h"

PG_FUNCTION_INFO_V1(timpush_preview);

static void
run_query(const char *sql, Oid funcid, int64 id)
{
	char	   *schema = get_namespace_name(get_func_namespace(funcid));
	StringInfoData query;
	Datum		value = Int64GetDatum(id);
	Oid			type = INT8OID;

	initStringInfo(&query);
	for (const char *p = sql; *p != '\0'; p++)
	{
		if (*p == '@')
			appendStringInfoString(&query, quote_identifier(schema));
		else
			appendStringInfoChar(&query, *p);
	}
	if (SPI_execute_with_args(query.data, 1, &type, &value, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read a push");
}

static Datum
value_of(HeapTuple tuple, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? (Datum) 0 : value;
}

static char **
account_strings(Datum array, int *n)
{
	Datum	   *elements;
	char	  **accounts;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, NULL, n);
	accounts = palloc(sizeof(char *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		accounts[i] = TextDatumGetCString(elements[i]);
	return accounts;
}

static void
append_body(StringInfo list, Jsonb *content, char **accounts, int n, uint32 msg_random)
{
	appendStringInfoString(list, list->len > 1 ? ", " : "");
	request_body(list, content, accounts, n, msg_random);
}

static text *
nullable_text(HeapTuple tuple, int column)
{
	Datum		value = value_of(tuple, column);

	return value == (Datum) 0 ? NULL : DatumGetTextPP(value);
}

/* What waits: MsgRandom is drawn only when a call is composed, so it is 0. */
static void
append_waiting(StringInfo list, HeapTuple tuple)
{
	Datum		extra = value_of(tuple, OUTBOX_EXTRA);
	Jsonb	   *content = request_content(nullable_text(tuple, OUTBOX_FROM_ACCOUNT),
										  nullable_text(tuple, OUTBOX_TITLE),
										  nullable_text(tuple, OUTBOX_DESCR),
										  nullable_text(tuple, OUTBOX_DATA_ID),
										  extra == (Datum) 0 ? NULL : DatumGetJsonbP(extra));
	Oid			serverid = get_foreign_server_oid(NameStr(*DatumGetName(value_of(tuple, OUTBOX_SERVER))), true);
	int			size = 500;
	int			n;
	char	  **accounts = account_strings(value_of(tuple, OUTBOX_TO_ACCOUNTS), &n);

	if (OidIsValid(serverid))
	{
		ServerOptions *server = server_load(serverid);

		size = server_request_size(server);
		server_wipe(server);
	}

	for (int i = DatumGetInt32(value_of(tuple, OUTBOX_HANDED_OUT)); i < n; i += size)
		append_body(list, content, accounts + i, Min(size, n - i), 0);
}

/* A request may carry other roles' pushes; only this push's part is shown. */
static void
append_journaled(StringInfo list, HeapTuple tuple)
{
	int			n;
	char	  **accounts = account_strings(value_of(tuple, 3), &n);
	int			first = DatumGetInt32(value_of(tuple, 4));
	int			count = DatumGetInt32(value_of(tuple, 5));

	if (first < 1 || count < 0 || first - 1 + count > n)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("push_result names accounts that the request does not have")));
	append_body(list, DatumGetJsonbP(value_of(tuple, 1)), accounts + first - 1, count,
				(uint32) DatumGetInt64(value_of(tuple, 2)));
}

/* Is the push there for the caller, by what row-level security shows? */
static void
check_visible(Oid funcid, int64 id)
{
	SPI_connect();
	run_query("SELECT 1 FROM @.push_status WHERE push_id OPERATOR(pg_catalog.=) $1", funcid, id);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("push %lld does not exist", (long long) id),
				 errhint("It was rolled back, its outcome was deleted, or another role enqueued it.")));
	SPI_finish();
}

/*
 * timpush_preview(id bigint) returns jsonb
 *
 * An array of the bodies of the push's calls: as journaled for the accounts
 * that were handed out, as they would be composed for the others, each with
 * this push alone.  Errors: undefined_object for an unknown push.
 */
Datum
timpush_preview(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Oid			funcid = fcinfo->flinfo->fn_oid;
	Oid			outbox = get_relname_relid("push_outbox", get_func_namespace(funcid));
	OwnerScope	scope;
	StringInfoData list;

	version_check(outbox);
	check_visible(funcid, id);
	initStringInfo(&list);
	appendStringInfoChar(&list, '[');

	/* push_request is not for everybody, but the caller's own push is */
	owner_enter(&scope, outbox, 0);
	SPI_connect();
	run_query("SELECT q.content, q.msg_random, q.accounts, r.first, r.accounts "
			  "FROM @.push_result r JOIN @.push_request q ON q.id OPERATOR(pg_catalog.=) r.request_id "
			  "WHERE r.push_id OPERATOR(pg_catalog.=) $1 ORDER BY q.id", funcid, id);
	for (uint64 i = 0; i < SPI_processed; i++)
		append_journaled(&list, SPI_tuptable->vals[i]);
	run_query("SELECT * FROM @.push_outbox WHERE id OPERATOR(pg_catalog.=) $1", funcid, id);
	for (uint64 i = 0; i < SPI_processed; i++)
		append_waiting(&list, SPI_tuptable->vals[i]);
	SPI_finish();
	owner_leave(&scope);

	appendStringInfoChar(&list, ']');
	/* bodies are UTF-8 */
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in,
										CStringGetDatum(pg_any_to_server(list.data, list.len, PG_UTF8))));
}
