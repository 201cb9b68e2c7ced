/*-------------------------------------------------------------------------
 *
 * activation.c
 *	  Where the database's pushes were enqueued.
 *
 * A copy of a database must not push to the users of the original.  So the
 * first push that is enqueued leaves a note of cluster and database, in a
 * table that goes along with every copy.  The worker does nothing where there
 * is no note, and holds all servers where there is one of elsewhere.
 *
 * A note says where it was written: a row that brings its values along, out
 * of a dump or by replication, is made one of elsewhere, whatever it says.  So
 * a dump is a copy also in the database that it was taken from.  And rows of
 * push_outbox that were not enqueued here leave such a note themselves, since
 * they may come without the other table, or before it.
 *
 * Crash story: a note lives and dies with the transaction that makes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "activation.h"
#include "compat.h"
#include "owner.h"
#include "timpush.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(timpush_activation_check);
PG_FUNCTION_INFO_V1(timpush_keep_local);

/* The table's columns. */
#define ACTIVATION_SYSTEM_IDENTIFIER	1
#define ACTIVATION_DATABASE_OID		2

/* Who adds a note of elsewhere keeps the worker out until it is committed. */
#define NOTE_LOCK	ShareRowExclusiveLock

static const char *
table_name(Oid outbox)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(outbox)),
									  "push_activation");
}

static bool
any_note(const char *table)
{
	if (SPI_execute(psprintf("SELECT FROM %s", table), false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read %s", table);
	return SPI_processed > 0;
}

static void
add_note(const char *table, const char *what)
{
	if (SPI_execute(psprintf("INSERT INTO %s %s", table, what), false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert into %s", table);
}

void
activation_ensure(Oid outbox)
{
	static Oid	known = InvalidOid;
	static LocalTransactionId noted_in = InvalidLocalTransactionId;
	OwnerScope	scope;

	if (known == outbox)
		return;
	owner_enter_safely(&scope, outbox);
	SPI_connect();
	if (!any_note(table_name(outbox)))
	{
		add_note(table_name(outbox), "DEFAULT VALUES");
		noted_in = MyLocalTransactionId;
	}
	else if (noted_in != MyLocalTransactionId)
		known = outbox;			/* it is not ours, which may yet be undone */
	SPI_finish();
	owner_leave(&scope);
}

void
activation_note_copied(Oid outbox, bool subscribed)
{
	static LocalTransactionId noted_in = InvalidLocalTransactionId;
	static SubTransactionId noted_in_sub = InvalidSubTransactionId;
	OwnerScope	scope;

	/* once, of as many rows as come together */
	if (noted_in == MyLocalTransactionId && noted_in_sub == GetCurrentSubTransactionId())
		return;
	owner_enter_safely(&scope, outbox);
	SPI_connect();
	if (!subscribed)
		LockRelationOid(get_relname_relid("push_activation", get_rel_namespace(outbox)),
						NOTE_LOCK);
	if (!subscribed || !any_note(table_name(outbox)))
		add_note(table_name(outbox), "(system_identifier, database_oid) VALUES (0, 0)");
	SPI_finish();
	owner_leave(&scope);
	noted_in = MyLocalTransactionId;
	noted_in_sub = GetCurrentSubTransactionId();
}

/* A new row with two of its columns set; who it is made for. */
static HeapTuple
note_of(const TriggerData *trigdata, bool here)
{
	int			columns[] = {ACTIVATION_SYSTEM_IDENTIFIER, ACTIVATION_DATABASE_OID};
	Datum		values[] = {Int64GetDatum(here ? (int64) GetSystemIdentifier() : 0),
	ObjectIdGetDatum(here ? MyDatabaseId : InvalidOid)};
	bool		nulls[] = {false, false};

	return heap_modify_tuple_by_cols(trigdata->tg_trigtuple,
									 RelationGetDescr(trigdata->tg_relation),
									 lengthof(columns), columns, values, nulls);
}

/*
 * timpush_activation_check() returns trigger
 *
 * Row trigger of push_activation before INSERT: a row that comes without
 * values is made here, any other one elsewhere; the worker shall look at it.
 */
Datum
timpush_activation_check(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"timpush_activation_check")));
	if (!timpush_is_worker)
		wake_request();
	return PointerGetDatum(note_of(trigdata,
								   heap_attisnull(trigdata->tg_trigtuple,
												  ACTIVATION_SYSTEM_IDENTIFIER,
												  RelationGetDescr(trigdata->tg_relation))));
}

/*
 * timpush_keep_local() returns trigger
 *
 * Row trigger of what a database remembers of its own servers: a
 * subscription to another database's does not change it.
 */
Datum
timpush_keep_local(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"timpush_keep_local")));
	if (IsLogicalWorker())
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
						   trigdata->tg_newtuple : trigdata->tg_trigtuple);
}
