/*-------------------------------------------------------------------------
 *
 * enqueue.c
 *	  The way in: timpush_batch, a plain INSERT, a trigger.
 *
 * All ways end in an INSERT into push_outbox, whose row trigger checks and
 * completes the row.  timpush_batch does the INSERT with the rights of the
 * table's owner, after noting whom it acts for.
 *
 * Crash story: the row lives and dies with the caller's transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "replication/logicalworker.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "activation.h"
#include "compat.h"
#include "enqueue.h"
#include "fault.h"
#include "insert.h"
#include "outbox_columns.h"
#include "owner.h"
#include "push.h"
#include "server.h"
#include "stats.h"
#include "timpush.h"
#include "version.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(timpush_batch);
PG_FUNCTION_INFO_V1(timpush_enqueue);
PG_FUNCTION_INFO_V1(timpush_outbox_check);

/* Arguments of timpush_batch, in their order. */
enum
{
	ARG_FROM,
	ARG_TO,
	ARG_TITLE,
	ARG_DESCR,
	ARG_DATA_ID,
	ARG_SERVER,
	ARG_EXTRA,
	ARG_PRIORITY,
	ARG_SEND_AT,
	ARG_EXPIRES_AT,
	ARG_DEDUP_KEY,
	NARGS
};

typedef struct ArgSpec
{
	const char *name;
	Oid			type;
	int			column;
} ArgSpec;

static const ArgSpec arg_specs[NARGS] = {
	{"from", TEXTOID, OUTBOX_FROM_ACCOUNT},
	{"to", TEXTARRAYOID, OUTBOX_TO_ACCOUNTS},
	{"title", TEXTOID, OUTBOX_TITLE},
	{"descr", TEXTOID, OUTBOX_DESCR},
	{"data_id", TEXTOID, OUTBOX_DATA_ID},
	{"server", NAMEOID, OUTBOX_SERVER},
	{"extra", JSONBOID, OUTBOX_EXTRA},
	{"priority", INT4OID, OUTBOX_PRIORITY},
	{"send_at", TIMESTAMPTZOID, OUTBOX_SEND_AT},
	{"expires_at", TIMESTAMPTZOID, OUTBOX_EXPIRES_AT},
	{"dedup_key", TEXTOID, OUTBOX_DEDUP_KEY},
};

/* A row that we insert by a query, and the role that we do it for. */
typedef struct Errand
{
	Oid			caller;
	int64		content_key;
} Errand;

static const Errand *errand = NULL;

/* push_outbox of the schema that one of our functions is in. */
static Oid
outbox_of_function(Oid funcid)
{
	Oid			schema = get_func_namespace(funcid);
	Oid			relid = get_relname_relid("push_outbox", schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.push_outbox\" does not exist",
						get_namespace_name(schema)),
				 errhint("Drop and create the extension timpush.")));
	version_check(relid);
	return relid;
}

static char *
qualified_name(Oid relid, const char *table)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  table);
}

/*
 * ------------------------------------------------------------------------
 * The row trigger of push_outbox
 * ------------------------------------------------------------------------
 */

static text *
text_column(Datum *values, bool *nulls, int column)
{
	return nulls[column - 1] ? NULL : DatumGetTextPP(values[column - 1]);
}

/*
 * A row that brings its content_key was made by this trigger before, and
 * comes from a dump or by replication; only who may do anything may say so.
 */
static bool
is_copied_row(Relation outbox, bool is_insert, bool *nulls)
{
	return is_insert && !nulls[OUTBOX_CONTENT_KEY - 1] &&
		(SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA ||
		 has_privs_of_role(GetUserId(), outbox->rd_rel->relowner));
}

static void
set_column(Datum *values, bool *nulls, int column, Datum value)
{
	values[column - 1] = value;
	nulls[column - 1] = false;
}

static void
complete_count(Datum *values, bool *nulls)
{
	ArrayType  *to;

	if (nulls[OUTBOX_TO_ACCOUNTS - 1])
		return;
	to = DatumGetArrayTypeP(values[OUTBOX_TO_ACCOUNTS - 1]);
	set_column(values, nulls, OUTBOX_ACCOUNTS,
			   Int32GetDatum(ArrayGetNItems(ARR_NDIM(to), ARR_DIMS(to))));
}

/* How much of the accounts was handed out says nothing of other accounts. */
static void
check_handed_out(TriggerData *trigdata)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	bool		isnull[2];
	Datum		old = heap_getattr(trigdata->tg_trigtuple, OUTBOX_TO_ACCOUNTS, desc, &isnull[0]);
	Datum		new = heap_getattr(trigdata->tg_newtuple, OUTBOX_TO_ACCOUNTS, desc, &isnull[1]);
	bool		ignored;

	if (DatumGetInt32(heap_getattr(trigdata->tg_trigtuple, OUTBOX_HANDED_OUT, desc, &ignored)) == 0)
		return;
	if (isnull[0] || isnull[1] || !datumIsEqual(old, new, false, -1))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change the accounts of push %lld, some of which have been handed out",
						(long long) DatumGetInt64(heap_getattr(trigdata->tg_trigtuple, OUTBOX_ID, desc, &ignored))),
				 errhint("Cancel the rest with timpush_cancel() and enqueue another push.")));
}

static void
complete_server(Datum *values, bool *nulls, Oid caller)
{
	Oid			serverid;
	Name		name = palloc0(NAMEDATALEN);

	serverid = server_resolve(nulls[OUTBOX_SERVER - 1] ? NULL :
							  NameStr(*DatumGetName(values[OUTBOX_SERVER - 1])));
	server_check_usage(serverid, caller);
	server_keep(serverid);
	server_get_name(serverid, name);
	set_column(values, nulls, OUTBOX_SERVER, NameGetDatum(name));
}

static void
complete_times(Datum *values, bool *nulls, bool is_insert)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	TimestampTz send_at;

	if (nulls[OUTBOX_SEND_AT - 1])
		set_column(values, nulls, OUTBOX_SEND_AT, TimestampTzGetDatum(now));
	send_at = DatumGetTimestampTz(values[OUTBOX_SEND_AT - 1]);
	if (TIMESTAMP_IS_NOEND(send_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"send_at\" must not be infinity"),
				 errhint("Leave it out to send the push at once.")));
	if (is_insert)
		set_column(values, nulls, OUTBOX_CREATED_AT, TimestampTzGetDatum(now));
	if (is_insert && nulls[OUTBOX_EXPIRES_AT - 1] && timpush_default_ttl > 0)
	{
		TimestampTz start = Max(now, send_at);

		/* past the end of time is never */
		if (start < END_TIMESTAMP - timpush_default_ttl * USECS_PER_SEC)
			set_column(values, nulls, OUTBOX_EXPIRES_AT,
					   TimestampTzGetDatum(start + timpush_default_ttl * USECS_PER_SEC));
	}
	if (!nulls[OUTBOX_EXPIRES_AT - 1] &&
		DatumGetTimestampTz(values[OUTBOX_EXPIRES_AT - 1]) <= Max(send_at, now))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"expires_at\" must be later than now and \"send_at\", but is %s",
						timestamptz_to_str(DatumGetTimestampTz(values[OUTBOX_EXPIRES_AT - 1]))),
				 errhint("Leave it out to let the push live for timpush.default_ttl.")));
}

static void
complete_content_key(Datum *values, bool *nulls)
{
	Content		content = {0};
	char	   *on_unknown;

	if (nulls[OUTBOX_ON_UNKNOWN - 1])
		set_column(values, nulls, OUTBOX_ON_UNKNOWN,
				   CStringGetTextDatum(on_unknown_name(timpush_on_unknown)));
	on_unknown = TextDatumGetCString(values[OUTBOX_ON_UNKNOWN - 1]);
	if (!on_unknown_parse(on_unknown, &content.on_unknown))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"on_unknown\": \"%s\"", on_unknown),
				 errhint("Valid values are retry, hold and accept.")));
	content.server.data = NameStr(*DatumGetName(values[OUTBOX_SERVER - 1]));
	content.server.len = strlen(content.server.data);
	content.from = text_span(text_column(values, nulls, OUTBOX_FROM_ACCOUNT));
	content.title = text_span(text_column(values, nulls, OUTBOX_TITLE));
	content.descr = text_span(text_column(values, nulls, OUTBOX_DESCR));
	content.data_id = text_span(text_column(values, nulls, OUTBOX_DATA_ID));
	content.extra = text_span(text_column(values, nulls, OUTBOX_EXTRA));
	set_column(values, nulls, OUTBOX_CONTENT_KEY,
			   Int64GetDatum(content_hash(&content)));
}

/* "by_argument": fields are named as the arguments of timpush_batch() are. */
static void
check_row(Datum *values, bool *nulls, bool by_argument)
{
	PushFields	push = {0};

	push.from_name = by_argument ? "from" : "from_account";
	push.to_name = by_argument ? "to" : "to_accounts";
	push.from = text_column(values, nulls, OUTBOX_FROM_ACCOUNT);
	push.to = nulls[OUTBOX_TO_ACCOUNTS - 1] ? NULL :
		DatumGetArrayTypeP(values[OUTBOX_TO_ACCOUNTS - 1]);
	push.title = text_column(values, nulls, OUTBOX_TITLE);
	push.descr = text_column(values, nulls, OUTBOX_DESCR);
	push.data_id = text_column(values, nulls, OUTBOX_DATA_ID);
	push.dedup_key = text_column(values, nulls, OUTBOX_DEDUP_KEY);
	push.extra = nulls[OUTBOX_EXTRA - 1] ? NULL :
		DatumGetJsonbP(values[OUTBOX_EXTRA - 1]);
	if (nulls[OUTBOX_PRIORITY - 1])
		set_column(values, nulls, OUTBOX_PRIORITY, Int32GetDatum(4));
	push.priority = DatumGetInt32(values[OUTBOX_PRIORITY - 1]);
	push_check(&push);
	complete_count(values, nulls);
}

static void
lock_dedup_key(Datum server, Datum key)
{
	Span		span = text_span(DatumGetTextPP(key));
	const char *name = NameStr(*DatumGetName(server));
	uint64		hash = hash_bytes_extended((const unsigned char *) span.data,
										   (int) span.len,
										   hash_bytes((const unsigned char *) name,
													  (int) strlen(name)));

	DirectFunctionCall1(pg_advisory_xact_lock_int8, Int64GetDatum((int64) hash));
}

/*
 * The push with the same key for the same server, or 0.  The lock lets one
 * transaction at a time look and insert; the fresh snapshot sees what those
 * before us committed, in whatever table it is by now.
 */
static int64
find_known_push(Oid outbox, Datum server, Datum key)
{
	Datum		args[2] = {server, key};
	Oid			types[2] = {NAMEOID, TEXTOID};
	int64		id = 0;
	bool		isnull;
	OwnerScope	scope;
	char	   *query;

	lock_dedup_key(server, key);
	query = psprintf("SELECT id FROM %s WHERE server OPERATOR(pg_catalog.=) $1 AND dedup_key OPERATOR(pg_catalog.=) $2 "
					 "UNION ALL "
					 "SELECT push_id FROM %s WHERE server OPERATOR(pg_catalog.=) $1 AND dedup_key OPERATOR(pg_catalog.=) $2 "
					 "LIMIT 1",
					 qualified_name(outbox, "push_outbox"),
					 qualified_name(outbox, "push_result"));
	owner_enter(&scope, outbox, 0);
	SPI_connect();
	/* see the rows that this very statement has inserted before */
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args(query, 2, types, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for a push with the same key");
	if (SPI_processed > 0)
		id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
	PopActiveSnapshot();
	SPI_finish();
	owner_leave(&scope);
	return id;
}

/*
 * Check and complete a new or changed row.  Returns the id of the push that
 * is known under its dedup_key, or 0.
 */
static int64
prepare_row(Oid outbox, Oid caller, Datum *values, bool *nulls, bool is_insert,
			bool by_argument)
{
	complete_server(values, nulls, caller);
	check_row(values, nulls, by_argument);
	complete_times(values, nulls, is_insert);
	complete_content_key(values, nulls);
	if (!is_insert)
		return 0;

	version_check(outbox);
	activation_ensure(outbox);
	set_column(values, nulls, OUTBOX_ENQUEUED_BY,
			   DirectFunctionCall1(namein,
								   CStringGetDatum(GetUserNameFromId(caller, false))));
	set_column(values, nulls, OUTBOX_HANDED_OUT, Int32GetDatum(0));
	set_column(values, nulls, OUTBOX_HANDED_BYTES, Int32GetDatum(0));
	/* an id of one's own choice could be that of another role's old push */
	if (!by_argument && !has_privs_of_role(caller, owner_of_table(outbox)))
		set_column(values, nulls, OUTBOX_ID,
				   Int64GetDatum(nextval_internal(get_relname_relid("push_outbox_id_seq",
																	get_rel_namespace(outbox)),
												  false)));
	if (nulls[OUTBOX_DEDUP_KEY - 1])
		return 0;
	return find_known_push(outbox, values[OUTBOX_SERVER - 1],
						   values[OUTBOX_DEDUP_KEY - 1]);
}

/*
 * The trigger's part of a row: check and complete it.  A row that comes from
 * timpush_batch() is checked once more, for its caller, since a trigger of
 * the owner's may have changed it.  False if it is to be skipped.
 */
static bool
prepare_for_trigger(Relation outbox, Datum *values, bool *nulls, bool is_insert)
{
	bool		ours = errand != NULL && !nulls[OUTBOX_CONTENT_KEY - 1] &&
	DatumGetInt64(values[OUTBOX_CONTENT_KEY - 1]) == errand->content_key;

	if (!ours && is_copied_row(outbox, is_insert, nulls))
	{
		complete_count(values, nulls);
		activation_note_copied(RelationGetRelid(outbox), IsLogicalWorker());
		return true;
	}
	return prepare_row(RelationGetRelid(outbox), ours ? errand->caller : GetUserId(),
					   values, nulls, is_insert, ours) == 0;
}

/* Wake the worker at commit, and count then what is new. */
static void
wake_for_row(const Datum *values, const bool *nulls, bool is_insert)
{
	if (is_insert)
		stats_add(DatumGetName(values[OUTBOX_SERVER - 1]), STATS_ENQUEUED,
				  DatumGetInt32(values[OUTBOX_ACCOUNTS - 1]));
	wake_for_push(DatumGetTimestampTz(values[OUTBOX_SEND_AT - 1]),
				  nulls[OUTBOX_EXPIRES_AT - 1] ? DT_NOEND :
				  DatumGetTimestampTz(values[OUTBOX_EXPIRES_AT - 1]));
}

/*
 * timpush_outbox_check() returns trigger
 *
 * Row trigger of push_outbox before INSERT and UPDATE: checks what a push
 * must be, fills in what it leaves out, and wakes the worker at commit.
 * Skips a row whose dedup_key is known.  Errors: those of push_check(),
 * server_resolve() and server_check_usage(), and invalid_parameter_value for
 * an expiry that is not after the time to send.
 */
Datum
timpush_outbox_check(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	Datum	   *values;
	bool	   *nulls;
	HeapTuple	tuple;
	bool		is_insert;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"timpush_outbox_check")));
	is_insert = TRIGGER_FIRED_BY_INSERT(trigdata->tg_event);
	desc = RelationGetDescr(trigdata->tg_relation);
	if (!has_outbox_columns(desc))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("relation \"%s\" does not have the columns of push_outbox",
						RelationGetRelationName(trigdata->tg_relation)),
				 errhint("The table belongs to the extension; keep columns of your own in another one.")));
	tuple = is_insert ? trigdata->tg_trigtuple : trigdata->tg_newtuple;
	if (timpush_is_worker)
		return PointerGetDatum(tuple);
	values = palloc(sizeof(Datum) * desc->natts);
	nulls = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(tuple, desc, values, nulls);

	if (!is_insert)
		check_handed_out(trigdata);
	if (!prepare_for_trigger(trigdata->tg_relation, values, nulls, is_insert))
		return PointerGetDatum(NULL);
	tuple = heap_form_tuple(desc, values, nulls);
	wake_for_row(values, nulls, is_insert);
	return PointerGetDatum(tuple);
}

/*
 * ------------------------------------------------------------------------
 * timpush_batch
 * ------------------------------------------------------------------------
 */

/* INSERT of all columns but the id, prepared once in a session. */
static SPIPlanPtr
insert_plan(Oid outbox)
{
	static SPIPlanPtr plan = NULL;
	static Oid	plan_outbox = InvalidOid;
	static NameData plan_schema;
	char	   *schema = get_namespace_name(get_rel_namespace(outbox));
	StringInfoData names;
	StringInfoData params;
	Oid			types[OUTBOX_NATTS];

	/* a schema can be renamed, and the text of the plan names it */
	if (plan != NULL && plan_outbox == outbox &&
		strcmp(NameStr(plan_schema), schema) == 0)
		return plan;
	if (plan != NULL)
		SPI_freeplan(plan);
	plan = NULL;
	initStringInfo(&names);
	initStringInfo(&params);
	for (int column = OUTBOX_ID + 1; column <= OUTBOX_NATTS; column++)
	{
		types[column - OUTBOX_ID - 1] = get_atttype(outbox, column);
		appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "",
						 quote_identifier(get_attname(outbox, column, false)));
		appendStringInfo(&params, "%s$%d", params.len > 0 ? ", " : "", column - OUTBOX_ID);
	}
	plan = SPI_prepare(psprintf("INSERT INTO %s (%s) VALUES (%s) RETURNING id",
								qualified_name(outbox, "push_outbox"),
								names.data, params.data),
					   OUTBOX_NATTS - OUTBOX_ID, types);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare the insertion into push_outbox");
	plan_outbox = outbox;
	namestrcpy(&plan_schema, schema);
	return plan;
}

static int64
insert_as_owner(Oid outbox, Datum *values, bool *nulls)
{
	char		spi_nulls[OUTBOX_NATTS];
	OwnerScope	scope;
	bool		isnull;
	int64		id = 0;

	for (int i = 0; i < OUTBOX_NATTS; i++)
		spi_nulls[i] = nulls[i] ? 'n' : ' ';
	owner_enter_safely(&scope, outbox);
	SPI_connect();
	if (SPI_execute_plan(insert_plan(outbox), values + OUTBOX_ID, spi_nulls + OUTBOX_ID,
						 false, 0) != SPI_OK_INSERT_RETURNING)
		elog(ERROR, "could not insert into push_outbox");
	/* a trigger of the user's may have skipped the row */
	if (SPI_processed > 0)
		id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	owner_leave(&scope);
	return id;
}

/* So that triggers and rules that the owner has added act. */
static int64
insert_by_query(Oid outbox, Datum *values, bool *nulls)
{
	const Errand *outer = errand;
	Errand		mine;
	int64		id;

	mine.caller = GetUserId();
	mine.content_key = DatumGetInt64(values[OUTBOX_CONTENT_KEY - 1]);
	errand = &mine;
	PG_TRY();
	{
		id = insert_as_owner(outbox, values, nulls);
	}
	PG_FINALLY();
	{
		errand = outer;
	}
	PG_END_TRY();
	return id;
}

int64
enqueue_row(Oid outbox, Datum *values, bool *nulls)
{
	int64		id = prepare_row(outbox, GetUserId(), values, nulls, true, true);

	if (id != 0)
		return id;
	if (!insert_plainly(outbox, values, nulls, &id))
		return insert_by_query(outbox, values, nulls);
	FAULT_POINT("enqueued");
	wake_for_row(values, nulls, true);
	return id;
}

static int64
enqueue_push(Oid outbox, Datum *args, bool *argnulls)
{
	Datum		values[OUTBOX_NATTS] = {0};
	bool		nulls[OUTBOX_NATTS];

	memset(nulls, true, sizeof(nulls));
	for (int i = 0; i < NARGS; i++)
	{
		values[arg_specs[i].column - 1] = args[i];
		nulls[arg_specs[i].column - 1] = argnulls[i];
	}
	return enqueue_row(outbox, values, nulls);
}

/*
 * timpush_batch("from" text, "to" text[], title text, descr text,
 *				 data_id text, server name, extra jsonb, priority integer,
 *				 send_at timestamptz, expires_at timestamptz, dedup_key text)
 *		returns bigint
 *
 * Enqueues a push with the rights of push_outbox's owner; the caller needs
 * USAGE on the server.  Errors: those of timpush_outbox_check(), and
 * read_only_sql_transaction.
 */
Datum
timpush_batch(PG_FUNCTION_ARGS)
{
	Datum		values[NARGS];
	bool		nulls[NARGS];
	Oid			outbox = outbox_of_function(fcinfo->flinfo->fn_oid);

	PreventCommandIfReadOnly("timpush_batch()");
	for (int i = 0; i < NARGS; i++)
	{
		values[i] = fcinfo->args[i].value;
		nulls[i] = fcinfo->args[i].isnull;
	}
	PG_RETURN_INT64(enqueue_push(outbox, values, nulls));
}

/*
 * ------------------------------------------------------------------------
 * timpush_enqueue
 * ------------------------------------------------------------------------
 */

static int
find_arg(const char *spec, size_t len)
{
	for (int i = 0; i < NARGS; i++)
	{
		if (strlen(arg_specs[i].name) == len &&
			strncmp(arg_specs[i].name, spec, len) == 0)
			return i;
	}
	return -1;
}

static Datum
value_from_text(const char *text, Oid type)
{
	Oid			input;
	Oid			ioparam;

	getTypeInputInfo(type, &input, &ioparam);
	return OidInputFunctionCall(input, (char *) text, ioparam, -1);
}

/* One account out of a text or any other scalar. */
static Datum
array_of_one(const char *account)
{
	Datum		element = CStringGetTextDatum(account);

	return PointerGetDatum(construct_array(&element, 1, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * A column's value as an argument: by way of text, which suits all types, as
 * an assignment in a language without types would do it.
 */
static Datum
value_from_column(Datum value, Oid column_type, int arg)
{
	Oid			output;
	bool		varlena;
	char	   *text;

	if (column_type == arg_specs[arg].type)
		return value;
	getTypeOutputInfo(column_type, &output, &varlena);
	text = OidOutputFunctionCall(output, value);

	/* as the cast to text does, leave char(n)'s padding behind */
	if (getBaseType(column_type) == BPCHAROID)
		text[		bpchartruelen(text, (int) strlen(text))] = '\0';

	if (arg == ARG_TO && !OidIsValid(get_element_type(getBaseType(column_type))))
		return array_of_one(text);
	return value_from_text(text, arg_specs[arg].type);
}

/* Evaluate one trigger argument, name=column or name=#text. */
static void
evaluate_trigger_arg(const char *spec, HeapTuple row, TupleDesc desc,
					 Datum *values, bool *nulls, bool *given)
{
	const char *equals = strchr(spec, '=');
	int			arg = equals == NULL ? -1 : find_arg(spec, equals - spec);
	int			column;

	if (arg < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid argument of trigger function %s: \"%s\"",
						"timpush_enqueue", spec),
				 errhint("Arguments are name=column or name=#text, the names being from, to, title, descr, data_id, server, extra, priority, send_at, expires_at and dedup_key.")));
	if (given[arg])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" of trigger function %s is given more than once",
						arg_specs[arg].name, "timpush_enqueue"),
				 errhint("Name each argument once in CREATE TRIGGER.")));
	given[arg] = true;
	if (equals[1] == '#')
	{
		values[arg] = arg == ARG_TO ? array_of_one(equals + 2) :
			value_from_text(equals + 2, arg_specs[arg].type);
		nulls[arg] = false;
		return;
	}
	column = SPI_fnumber(desc, equals + 1);
	if (column <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" named by trigger argument \"%s\" does not exist",
						equals + 1, spec),
				 errhint("For a constant write %.*s=#text.", (int) (equals - spec), spec)));
	values[arg] = SPI_getbinval(row, desc, column, &nulls[arg]);
	if (!nulls[arg])
		values[arg] = value_from_column(values[arg], SPI_gettypeid(desc, column), arg);
}

/* The priority that the function would default to. */
static void
default_trigger_args(Datum *values, bool *nulls)
{
	for (int i = 0; i < NARGS; i++)
	{
		values[i] = (Datum) 0;
		nulls[i] = true;
	}
	values[ARG_PRIORITY] = Int32GetDatum(4);
	nulls[ARG_PRIORITY] = false;
}

/*
 * timpush_enqueue() returns trigger
 *
 * Enqueues a push for each row, as timpush_batch() would.  Trigger arguments
 * are name=column or name=#text; "to" takes an array or one account.  Errors:
 * those of timpush_batch(), undefined_column, invalid_parameter_value for an
 * unknown argument, e_r_i_e_trigger_protocol_violated if it is not a row
 * trigger.
 */
Datum
timpush_enqueue(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	Datum		values[NARGS];
	bool		nulls[NARGS];
	bool		given[NARGS] = {false};
	HeapTuple	row;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a row trigger",
						"timpush_enqueue"),
				 errhint("Use CREATE TRIGGER ... FOR EACH ROW.")));
	PreventCommandIfReadOnly("timpush_enqueue()");
	row = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
		trigdata->tg_newtuple : trigdata->tg_trigtuple;
	default_trigger_args(values, nulls);
	for (int i = 0; i < trigdata->tg_trigger->tgnargs; i++)
		evaluate_trigger_arg(trigdata->tg_trigger->tgargs[i], row,
							 RelationGetDescr(trigdata->tg_relation),
							 values, nulls, given);
	(void) enqueue_push(outbox_of_function(fcinfo->flinfo->fn_oid), values, nulls);
	return PointerGetDatum(row);
}
