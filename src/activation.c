/*-------------------------------------------------------------------------
 *
 * activation.c
 *	  Where the database's pushes were enqueued.
 *
 * A copy of a database, out of a dump or of a template, must not push to the
 * users of the original.  So the first push that is enqueued notes cluster
 * and database, in a table that goes along with every copy.  The worker does
 * nothing where there is no note, and holds all servers where one is another
 * cluster's or database's.  A restored row is no push that is enqueued: it
 * waits for the note that comes with it.
 *
 * Crash story: the note lives and dies with the transaction that makes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "activation.h"
#include "compat.h"
#include "owner.h"
#include "timpush.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(timpush_activation_wake);

static void
add_note(const char *table)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum((int64) GetSystemIdentifier()),
	ObjectIdGetDatum(MyDatabaseId)};

	if (SPI_execute_with_args(psprintf("INSERT INTO %s (system_identifier, database_oid) VALUES ($1, $2)",
									   table),
							  2, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert into %s", table);
}

void
activation_ensure(Oid outbox)
{
	static Oid	known = InvalidOid;
	static LocalTransactionId noted_in = InvalidLocalTransactionId;
	OwnerScope	scope;
	const char *table;

	if (known == outbox)
		return;
	table = quote_qualified_identifier(get_namespace_name(get_rel_namespace(outbox)),
									   "push_activation");
	owner_enter(&scope, outbox, 0);
	SPI_connect();
	if (SPI_execute(psprintf("SELECT FROM %s", table), false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read %s", table);
	if (SPI_processed == 0)
	{
		add_note(table);
		noted_in = MyLocalTransactionId;
	}
	else if (noted_in != MyLocalTransactionId)
		known = outbox;			/* it is not ours, which may yet be undone */
	SPI_finish();
	owner_leave(&scope);
}

/*
 * timpush_activation_wake() returns trigger
 *
 * Statement trigger of push_activation: the worker shall look at it.
 */
Datum
timpush_activation_wake(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"timpush_activation_wake")));
	if (!timpush_is_worker)
		wake_request();
	return PointerGetDatum(NULL);
}
