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
}

void
owner_leave(const OwnerScope *scope)
{
	SetUserIdAndSecContext(scope->userid, scope->seccontext);
}
