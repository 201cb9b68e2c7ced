/*-------------------------------------------------------------------------
 *
 * wake.c
 *	  What wakes the worker of a database, and what sends it away.
 *
 * A commit with new pushes, COMMIT PREPARED, and DDL that may have mended a
 * server wake it.  DDL that wants a database to itself asks it to leave.
 *
 * Crash story: a wake-up is a mere hint that happens after the commit; if it
 * is lost, so is the shared memory it went to, and every database is looked
 * at anew.  An eviction ends by itself after a while.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "fault.h"
#include "guard.h"
#include "shared.h"
#include "wake.h"

/* A worker that is asked to leave a database is waited for so long. */
#define EVICTION_PAUSE_MS	20
#define EVICTION_TRIES		150

/* What this transaction has to tell the worker. */
static bool servers_changed = false;
static bool pushes_added = false;
static TimestampTz first_send_at = DT_NOEND;
static TimestampTz first_expiry = DT_NOEND;

/* And what it has to tell once it is over. */
static bool servers_committed = false;

/* Likewise of a database that may take connections again. */
static Oid	database_reopened = InvalidOid;
static Oid	database_committed = InvalidOid;

static bool warned = false;
static ProcessUtility_hook_type prev_process_utility = NULL;

static void
forget_transaction(void)
{
	servers_changed = pushes_added = false;
	database_reopened = InvalidOid;
	first_send_at = first_expiry = DT_NOEND;
}

/*
 * At commit, a few atomic operations and perhaps a SetLatch; an error here
 * would be a PANIC.  A prepared transaction wakes when it is committed, see
 * below.
 */
static void
wake_at_commit(XactEvent event, void *arg pg_attribute_unused())
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (pushes_added)
				FAULT_POINT("enqueue-commit");
			return;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
			if (pushes_added)
				FAULT_POINT_QUIET("enqueue-committed");
			if (pushes_added)
				shared_wake_for_pushes(first_send_at, first_expiry);
			servers_committed = servers_changed;
			database_committed = database_reopened;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}
	forget_transaction();
}

/*
 * The last that happens in a commit.  Only now have the invalidation messages
 * been sent, without which a worker that looks at the servers sees old ones.
 */
static void
wake_after_commit(ResourceReleasePhase phase, bool is_commit pg_attribute_unused(),
				  bool is_top_level, void *arg pg_attribute_unused())
{
	if (!is_top_level || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	if (servers_committed)
		shared_wake_for_servers();
	if (OidIsValid(database_committed))
		shared_reconsider(database_committed);
	servers_committed = false;
	database_committed = InvalidOid;
}

static void
register_callbacks(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterXactCallback(wake_at_commit, NULL);
	RegisterResourceReleaseCallback(wake_after_commit, NULL);
	registered = true;
}

/* Make ready for the commit; false if there is nobody to be woken. */
static bool
prepare_wake(void)
{
	if (!shared_attached())
		return false;
	shared_prepare_wake();
	register_callbacks();
	return true;
}

void
wake_request(void)
{
	if (prepare_wake())
		servers_changed = true;
}

void
wake_for_push(TimestampTz send_at, TimestampTz expires_at)
{
	if (prepare_wake())
	{
		pushes_added = true;
		first_send_at = Min(first_send_at, send_at);
		first_expiry = Min(first_expiry, expires_at);
		return;
	}
	if (!warned)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("push is enqueued, but nothing sends it, because timpush is not preloaded"),
				 errhint("Add timpush to shared_preload_libraries and restart the server.")));
	warned = true;
}

/* Statements that may mend what keeps the worker from sending. */
static bool
may_mend(Node *parsetree)
{
	switch (nodeTag(parsetree))
	{
		case T_CreateForeignServerStmt:
		case T_AlterForeignServerStmt:
		case T_CreateUserMappingStmt:
		case T_AlterUserMappingStmt:
		case T_DropUserMappingStmt:
			return true;
		case T_AlterExtensionStmt:
			return strcmp(((AlterExtensionStmt *) parsetree)->extname, "timpush") == 0;
		case T_DropStmt:
			return ((DropStmt *) parsetree)->removeType == OBJECT_FOREIGN_SERVER;
		case T_RenameStmt:
			return ((RenameStmt *) parsetree)->renameType == OBJECT_FOREIGN_SERVER;
		default:
			return false;
	}
}

/* An option of CREATE or ALTER DATABASE, or what it is if it is not there. */
static const char *
database_option(List *options, const char *name, const char *otherwise)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst(cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return otherwise;
}

/* The database that a statement wants to itself, or NULL. */
static const char *
exclusive_database(Node *parsetree)
{
	if (IsA(parsetree, DropdbStmt))
		return ((DropdbStmt *) parsetree)->dbname;
	if (IsA(parsetree, RenameStmt) &&
		((RenameStmt *) parsetree)->renameType == OBJECT_DATABASE)
		return ((RenameStmt *) parsetree)->subname;
	if (IsA(parsetree, CreatedbStmt))
		return database_option(((CreatedbStmt *) parsetree)->options,
							   "template", "template1");
	if (IsA(parsetree, AlterDatabaseStmt) &&
		database_option(((AlterDatabaseStmt *) parsetree)->options,
						"tablespace", NULL) != NULL)
		return ((AlterDatabaseStmt *) parsetree)->dbname;
	return NULL;
}

/* The database that may take connections again, or NULL. */
static const char *
reopened_database(Node *parsetree)
{
	if (!shared_attached() || !IsA(parsetree, AlterDatabaseStmt) ||
		database_option(((AlterDatabaseStmt *) parsetree)->options,
						"allow_connections", NULL) == NULL)
		return NULL;
	return ((AlterDatabaseStmt *) parsetree)->dbname;
}

/* Have the launcher look at it when that is committed. */
static void
note_reopened_database(const char *name)
{
	register_callbacks();
	database_reopened = get_database_oid(name, true);
}

/*
 * A worker in a database would make DROP DATABASE and its like fail, so it is
 * asked to leave first; whatever the statement says then, it may come back.
 */
static Oid
evict_worker(Node *parsetree)
{
	const char *name = shared_attached() ? exclusive_database(parsetree) : NULL;
	Oid			dbid = name != NULL ? get_database_oid(name, true) : InvalidOid;

	/* who may not do it cannot keep the worker away by trying */
	if (!OidIsValid(dbid) || !database_ownercheck(dbid, GetUserId()))
		return InvalidOid;
	for (int i = 0; i < EVICTION_TRIES && shared_evict(dbid); i++)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 EVICTION_PAUSE_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return dbid;
}

/*
 * Two kinds of statement wake the worker although they enqueue nothing.
 * COMMIT PREPARED, which knows nothing of what its transaction did; and DDL
 * that may have mended what kept the worker from sending.
 */
static void
timpush_process_utility(PlannedStmt *pstmt, const char *queryString,
						bool readOnlyTree, ProcessUtilityContext context,
						ParamListInfo params, QueryEnvironment *queryEnv,
						DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *parsetree = pstmt->utilityStmt;
	volatile bool commit_prepared = IsA(parsetree, TransactionStmt) &&
	((TransactionStmt *) parsetree)->kind == TRANS_STMT_COMMIT_PREPARED;
	volatile bool mends = may_mend(parsetree);
	const char *volatile reopened = reopened_database(parsetree);
	volatile bool renames = guard_is_rename(parsetree);
	volatile Oid evicted;
	volatile bool outer;

	/* nothing is to be woken where timpush is not used */
	commit_prepared = commit_prepared && shared_attached() &&
		IsTransactionState() && OidIsValid(get_extension_oid("timpush", true));
	if (commit_prepared)
		shared_prepare_wake();
	evicted = evict_worker(parsetree);
	outer = guard_begin(parsetree);
	PG_TRY();
	{
		if (prev_process_utility)
			prev_process_utility(pstmt, queryString, readOnlyTree, context, params,
								 queryEnv, dest, qc);
		else
			standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
									params, queryEnv, dest, qc);
		/* after a statement that ends a transaction it may have been freed */
		if (renames)
			guard_renamed(parsetree);
		/* nothing is to be started for a database that is no more */
		if (OidIsValid(evicted) && IsA(parsetree, DropdbStmt))
			shared_forget_database(evicted);
	}
	PG_FINALLY();
	{
		guard_end(outer);
		if (OidIsValid(evicted))
			shared_end_eviction(evicted);
	}
	PG_END_TRY();
	/* what it has added is not known, so it may be anything */
	if (commit_prepared)
	{
		shared_wake_for_pushes(DT_NOBEGIN, DT_NOBEGIN);
		shared_wake_for_servers();
	}
	if (mends && OidIsValid(get_extension_oid("timpush", true)))
		wake_request();
	if (reopened != NULL)
		note_reopened_database(reopened);
}

void
wake_init(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = timpush_process_utility;
}
