/*-------------------------------------------------------------------------
 *
 * manage.h
 *	  What DDL on a server does to its pushes.
 *
 * All act with the rights of the tables' owner, in the caller's transaction.
 * "schema" is that of the extension.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_MANAGE_H
#define TIMPUSH_MANAGE_H

#include "postgres.h"

/* Are our tables there, and such as we know, or have they just been dropped? */
extern bool manage_has_tables(Oid schema);

/* Is there a push of the server that has no outcome yet? */
extern bool manage_find_open(Oid schema, const char *server, int64 *push);

/*
 * Give those pushes one: "cancelled", or "unknown" if the API may have got
 * them.  What is on its way gets its own from the worker.
 */
extern void manage_end_pushes(Oid schema, const char *server);

/* Forget, or move, what is known of the server itself. */
extern void manage_forget_server(Oid schema, const char *server);
extern void manage_rename_server(Oid schema, const char *old, const char *new);

#endif							/* TIMPUSH_MANAGE_H */
