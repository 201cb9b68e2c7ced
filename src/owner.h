/*-------------------------------------------------------------------------
 *
 * owner.h
 *	  Acting with the rights of our tables' owner.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_OWNER_H
#define TIMPUSH_OWNER_H

#include "postgres.h"

/* Who we were before. */
typedef struct OwnerScope
{
	Oid			userid;
	int			seccontext;
} OwnerScope;

extern Oid	owner_of_table(Oid relid);

/*
 * Become the table's owner, under SECURITY_LOCAL_USERID_CHANGE and the given
 * further flags.  owner_leave() is not needed after an error: aborting the
 * transaction or subtransaction restores the user.
 */
extern void owner_enter(OwnerScope *scope, Oid relid, int flags);
extern void owner_leave(const OwnerScope *scope);

#endif							/* TIMPUSH_OWNER_H */
