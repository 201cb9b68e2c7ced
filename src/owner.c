/*-------------------------------------------------------------------------
 *
 * owner.c
 *	  Acting with the rights of our tables' owner.
 *
 * Crash story: no state beyond a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#include "owner.h"

Oid
owner_of_table(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

void
owner_enter(OwnerScope *scope, Oid relid, int flags)
{
	GetUserIdAndSecContext(&scope->userid, &scope->seccontext);
	SetUserIdAndSecContext(owner_of_table(relid),
						   scope->seccontext | SECURITY_LOCAL_USERID_CHANGE | flags);
	scope->guc_level = 0;
}

void
owner_enter_safely(OwnerScope *scope, Oid relid)
{
	owner_enter(scope, relid, 0);
	scope->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
owner_leave(const OwnerScope *scope)
{
	if (scope->guc_level > 0)
		AtEOXact_GUC(true, scope->guc_level);
	SetUserIdAndSecContext(scope->userid, scope->seccontext);
}
