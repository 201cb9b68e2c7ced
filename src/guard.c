/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Servers are not dropped or renamed while pushes need them.
 *
 * Pushes name their server, and its catalog row does not know of them.  So we
 * look when a server is dropped, in whatever way: by itself, with its owner's
 * objects, with a schema.  Without CASCADE that is refused while pushes have
 * no outcome; with it they get one.  Who enqueues holds a lock on the server
 * until the transaction ends, so that none slips in.
 *
 * Crash story: all of it lives and dies with the transaction of the DDL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_foreign_server.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "nodes/parsenodes.h"
#include "utils/lsyscache.h"

#include "guard.h"
#include "manage.h"

/* Does the statement end the pushes of a server that it drops? */
static bool cascades = false;
static object_access_hook_type prev_object_access = NULL;

/* The schema of timpush if the server is one of its own, or InvalidOid. */
static Oid
schema_of_server(const ForeignServer *server)
{
	ForeignDataWrapper *wrapper = GetForeignDataWrapper(server->fdwid);

	if (strcmp(wrapper->fdwname, "timpush") != 0 || !OidIsValid(wrapper->fdwvalidator))
		return InvalidOid;
	return get_func_namespace(wrapper->fdwvalidator);
}

static void
refuse_drop(const char *server, int64 push)
{
	ereport(ERROR,
			(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
			 errmsg("cannot drop server %s because pushes wait for it", server),
			 errdetail("Push %lld is one that has no outcome yet.", (long long) push),
			 errhint("Wait until they are sent, or use DROP ... CASCADE to end them too.")));
}

static void
server_dropped(Oid serverid)
{
	ForeignServer *server = GetForeignServer(serverid);
	Oid			schema = schema_of_server(server);
	int64		push;

	/* DROP EXTENSION has dropped the tables before it comes to the wrapper */
	if (!OidIsValid(schema) || !manage_has_tables(schema))
		return;
	if (cascades)
		manage_end_pushes(schema, server->servername);
	else if (manage_find_open(schema, server->servername, &push))
		refuse_drop(server->servername, push);
	manage_forget_server(schema, server->servername);
}

static void
guard_object_access(ObjectAccessType access, Oid classid, Oid objectid, int subid,
					void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classid, objectid, subid, arg);
	if (access == OAT_DROP && classid == ForeignServerRelationId)
		server_dropped(objectid);
}

static bool
is_cascading(Node *parsetree)
{
	if (IsA(parsetree, DropStmt))
		return ((DropStmt *) parsetree)->behavior == DROP_CASCADE;
	if (IsA(parsetree, DropOwnedStmt))
		return ((DropOwnedStmt *) parsetree)->behavior == DROP_CASCADE;
	return false;
}

bool
guard_begin(Node *parsetree)
{
	bool		outer = cascades;

	cascades = is_cascading(parsetree);
	return outer;
}

void
guard_end(bool outer)
{
	cascades = outer;
}

/* The lock of the statement keeps everybody from enqueueing meanwhile. */
static void
server_renamed(const char *old, const char *new)
{
	Oid			schema = schema_of_server(GetForeignServerByName(new, false));
	int64		push;

	if (!OidIsValid(schema) || !manage_has_tables(schema))
		return;
	if (manage_find_open(schema, old, &push))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot rename server %s because pushes wait for it", old),
				 errdetail("Push %lld is one that has no outcome yet.", (long long) push),
				 errhint("Wait until they are sent, or take them back with timpush_cancel().")));
	manage_rename_server(schema, old, new);
}

bool
guard_is_rename(Node *parsetree)
{
	return IsA(parsetree, RenameStmt) &&
		((RenameStmt *) parsetree)->renameType == OBJECT_FOREIGN_SERVER;
}

void
guard_renamed(Node *parsetree)
{
	RenameStmt *stmt = (RenameStmt *) parsetree;

	server_renamed(strVal(stmt->object), stmt->newname);
}

void
guard_init(void)
{
	prev_object_access = object_access_hook;
	object_access_hook = guard_object_access;
}
