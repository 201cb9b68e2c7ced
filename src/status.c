/*-------------------------------------------------------------------------
 *
 * status.c
 *	  What a session asks: waiting for an outcome, a client's UserSig.
 *
 * Crash story: reads only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "common/int.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "server.h"
#include "shared.h"
#include "usersig.h"
#include "version.h"

PG_FUNCTION_INFO_V1(timpush_wait);
PG_FUNCTION_INFO_V1(timpush_usersig);

/* Where nothing tells us of outcomes, and as a net under a lost signal. */
#define WAIT_SLICE_MS		1000

/* The longest life of a UserSig: ten years. */
#define MAX_LIFETIME		315360000

static char *
qualified(Oid funcid, const char *table)
{
	return quote_qualified_identifier(get_namespace_name(get_func_namespace(funcid)), table);
}

/*
 * Run a query about one push under a snapshot of this moment, whatever the
 * transaction's isolation level.  SPI stays connected.
 */
static void
query_push(const char *query, int64 id)
{
	Datum		value = Int64GetDatum(id);
	Oid			type = INT8OID;

	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args(query, 1, &type, &value, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the status of a push");
	PopActiveSnapshot();
}

/* A push of our own transaction cannot be sent while we wait for it. */
static void
refuse_own_push(Oid funcid, int64 id)
{
	bool		isnull;

	SPI_connect();
	query_push(psprintf("SELECT xmin FROM %s WHERE id OPERATOR(pg_catalog.=) $1",
						qualified(funcid, "push_outbox")), id);
	if (SPI_processed > 0 &&
		TransactionIdIsCurrentTransactionId(DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[0],
																				SPI_tuptable->tupdesc,
																				1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for push %lld in the transaction that enqueued it",
						(long long) id),
				 errdetail("The push is sent after the transaction commits."),
				 errhint("Commit first, then call timpush_wait().")));
	SPI_finish();
}

/*
 * The push's row of push_status as a composite in the caller's context, and
 * whether it is final; raises if there is none.
 */
static Datum
read_status(const char *query, int64 id, TupleDesc desc, MemoryContext context, bool *final)
{
	Datum		row;
	MemoryContext old;
	int			column;

	SPI_connect();
	query_push(query, id);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("push %lld does not exist", (long long) id),
				 errhint("It was rolled back, its outcome was deleted, or another role enqueued it.")));
	column = SPI_fnumber(SPI_tuptable->tupdesc, "waiting");
	*final = strcmp(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column), "0") == 0;
	old = MemoryContextSwitchTo(context);
	row = heap_copy_tuple_as_datum(SPI_tuptable->vals[0], desc);
	MemoryContextSwitchTo(old);
	SPI_finish();
	return row;
}

static TimestampTz
deadline_of(Interval *timeout)
{
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   IntervalPGetDatum(timeout)));
}

/*
 * timpush_wait(id bigint, timeout interval) returns push_status
 *
 * Waits until every account of the push has an outcome, or until the timeout,
 * and returns the row as it then is.  Errors: undefined_object for an unknown
 * push, object_not_in_prerequisite_state in the transaction that enqueued it.
 */
Datum
timpush_wait(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	TimestampTz deadline = deadline_of(PG_GETARG_INTERVAL_P(1));
	Oid			funcid = fcinfo->flinfo->fn_oid;
	MemoryContext context = CurrentMemoryContext;
	TupleDesc	desc;
	char	   *query;
	Datum		row;
	bool		final;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	version_check(get_relname_relid("push_outbox", get_func_namespace(funcid)));
	query = psprintf("SELECT * FROM %s WHERE push_id OPERATOR(pg_catalog.=) $1",
					 qualified(funcid, "push_status"));
	refuse_own_push(funcid, id);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

		/* announce ourselves first, so that no outcome slips by */
		shared_wait_outcome_begin();
		row = read_status(query, id, desc, context, &final);
		if (final || now >= deadline)
			break;
		shared_wait_outcome(Min(TimestampDifferenceMilliseconds(now, deadline) + 1,
								WAIT_SLICE_MS));
		pfree(DatumGetPointer(row));
	}
	shared_wait_outcome_end();
	PG_RETURN_DATUM(row);
}

/* An interval as whole seconds within the bounds of a UserSig's life. */
static int64
lifetime_seconds(Interval *interval)
{
	int64		days = interval->day + (int64) interval->month * DAYS_PER_MONTH;
	int64		us;

	if (pg_mul_s64_overflow(days, USECS_PER_DAY, &us) ||
		pg_add_s64_overflow(us, interval->time, &us) ||
		us < USECS_PER_SEC || us > MAX_LIFETIME * USECS_PER_SEC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"lifetime\" must be from 1 second to 10 years, not %s",
						DatumGetCString(DirectFunctionCall1(interval_out,
															IntervalPGetDatum(interval)))),
				 errhint("Tencent advises at least 24 hours.")));
	return us / USECS_PER_SEC;
}

static text *
sign_for(Oid serverid, char *userid, int64 lifetime)
{
	char		sig[USERSIG_MAX_LEN];
	char	   *utf8 = pg_server_to_any(userid, (int) strlen(userid), PG_UTF8);
	ServerOptions *server = server_load(serverid);
	char	   *problem = NULL;
	size_t		len;
	char	   *key = server_read_key(server, &len, &problem);
	bool		made;

	server_wipe(server);
	if (key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_UNABLE_TO_CREATE_REPLY),
				 errmsg("cannot make a UserSig: %s", problem),
				 errhint("Set secret_key_file or secret_key in the user mapping FOR PUBLIC of the server.")));
	made = usersig_make(sig, key, len, utf8, server->sdkappid,
						(int64) time(NULL), lifetime);
	server_free_key(key, len);
	if (!made)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cannot make a UserSig for \"%s\"", userid),
				 errhint("A UserID has at most %d bytes and no control characters.",
						 USERSIG_MAX_IDENTIFIER)));
	return cstring_to_text(sig);
}

/*
 * timpush_usersig(userid text, lifetime interval, server name) returns text
 *
 * The UserSig with which a client of the app logs in as "userid".  Needs
 * USAGE on the server.  Errors: null_value_not_allowed,
 * invalid_parameter_value, those of server_resolve() and
 * server_check_usage(), fdw_unable_to_create_reply if there is no key.
 */
Datum
timpush_usersig(PG_FUNCTION_ARGS)
{
	Oid			serverid;
	int64		lifetime;
	char	   *userid;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("\"%s\" must not be null", PG_ARGISNULL(0) ? "userid" : "lifetime"),
				 errhint("Give the UserID of the client and how long the signature is valid.")));
	userid = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (userid[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"userid\" must not be empty"),
				 errhint("Give the UserID of the client.")));
	lifetime = lifetime_seconds(PG_GETARG_INTERVAL_P(1));
	serverid = server_resolve(PG_ARGISNULL(2) ? NULL : NameStr(*PG_GETARG_NAME(2)));
	server_check_usage(serverid, GetUserId());
	PG_RETURN_TEXT_P(sign_for(serverid, userid, lifetime));
}
