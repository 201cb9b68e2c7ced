/*-------------------------------------------------------------------------
 *
 * guard.h
 *	  Servers are not dropped or renamed while pushes need them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_GUARD_H
#define TIMPUSH_GUARD_H

#include "postgres.h"

#include "nodes/nodes.h"

extern void guard_init(void);

/*
 * A statement begins, and ends, also by an error; guard_end() is given what
 * guard_begin() has returned.
 */
extern bool guard_begin(Node *parsetree);
extern void guard_end(bool outer);

/* Does the statement rename a server?  It is given again when that is done. */
extern bool guard_is_rename(Node *parsetree);
extern void guard_renamed(Node *parsetree);

#endif							/* TIMPUSH_GUARD_H */
