/*-------------------------------------------------------------------------
 *
 * insert.h
 *	  Insertion of a checked row into push_outbox without a query.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_INSERT_H
#define TIMPUSH_INSERT_H

#include "postgres.h"

#include "access/tupdesc.h"

/*
 * Are the columns those of push_outbox, as the install script declares them,
 * with none after them but dropped ones?
 */
extern bool has_outbox_columns(TupleDesc desc);

/*
 * Insert a row that timpush_outbox_check() would leave as it is, and put its
 * id into values and *id.  False, with nothing done, if push_outbox is not as
 * plain as the extension has made it, so that an INSERT would do more than
 * this does.
 */
extern bool insert_plainly(Oid outbox, Datum *values, bool *nulls, int64 *id);

#endif							/* TIMPUSH_INSERT_H */
