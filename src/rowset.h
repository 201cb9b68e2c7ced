/*-------------------------------------------------------------------------
 *
 * rowset.h
 *	  Rows formed in C, as one array parameter of a statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_ROWSET_H
#define TIMPUSH_ROWSET_H

#include "postgres.h"

#include "access/tupdesc.h"

/*
 * Rows of a table's row type, to be handed to "FROM unnest($1::table[])": one
 * statement then inserts or updates any number of complete rows.
 */
typedef struct RowSet
{
	TupleDesc	desc;
	Oid			array_type;
	Datum	   *rows;
	int			nrows;
	int			size;
} RowSet;

/* The row type of the table, copied into the current context. */
extern void rowset_describe(RowSet *set, Oid relid);

/* Start collecting, in the current context. */
extern void rowset_begin(RowSet *set);
extern void rowset_add(RowSet *set, Datum *values, bool *nulls);
extern Datum rowset_array(const RowSet *set);

#endif							/* TIMPUSH_ROWSET_H */
