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
	int			guc_level;		/* 0: settings are the caller's */
} OwnerScope;

extern Oid	owner_of_table(Oid relid);

/*
 * Become the table's owner, under SECURITY_LOCAL_USERID_CHANGE and the given
 * further flags.  owner_leave() is not needed after an error: aborting the
 * transaction or subtransaction restores the user.
 */
extern void owner_enter(OwnerScope *scope, Oid relid, int flags);

/*
 * The same for statements that may run code of the owner's, such as triggers:
 * leave the caller's search path too, which may hold anything of anybody's.
 */
extern void owner_enter_safely(OwnerScope *scope, Oid relid);
extern void owner_leave(const OwnerScope *scope);

#endif							/* TIMPUSH_OWNER_H */
