/*-------------------------------------------------------------------------
 *
 * rowset.c
 *	  Rows formed in C, as one array parameter of a statement.
 *
 * Crash story: no state beyond a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "rowset.h"

void
rowset_describe(RowSet *set, Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);

	set->desc = BlessTupleDesc(CreateTupleDescCopy(RelationGetDescr(rel)));
	set->array_type = get_array_type(rel->rd_rel->reltype);
	table_close(rel, AccessShareLock);
}

void
rowset_begin(RowSet *set)
{
	set->nrows = 0;
	set->size = 16;
	set->rows = palloc(sizeof(Datum) * set->size);
}

void
rowset_add(RowSet *set, Datum *values, bool *nulls)
{
	if (set->nrows == set->size)
	{
		set->size *= 2;
		set->rows = repalloc(set->rows, sizeof(Datum) * set->size);
	}
	set->rows[set->nrows++] =
		HeapTupleGetDatum(heap_form_tuple(set->desc, values, nulls));
}

Datum
rowset_array(const RowSet *set)
{
	return PointerGetDatum(construct_array(set->rows, set->nrows,
										   set->desc->tdtypeid, -1, false,
										   TYPALIGN_DOUBLE));
}
