/*-------------------------------------------------------------------------
 *
 * insert.c
 *	  Insertion of a checked row into push_outbox without a query.
 *
 * To start the executor for one row costs twice what the row itself does:
 * it parses the constraints and the predicates of the indexes and makes them
 * ready, each time.  We do what it does, with its own functions, and keep
 * what it makes ready until the catalog changes.
 *
 * An owner may add to push_outbox what makes an INSERT do more: triggers,
 * rules, constraints or indexes with functions of his own.  Then a query it
 * is.  So no code of users' runs in here, and no rights are asked for.
 *
 * Crash story: the row lives and dies with the caller's transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "enqueue.h"
#include "insert.h"
#include "outbox_columns.h"
#include "owner.h"

/*
 * What is kept from one row to the next, in the memory of "estate".  No
 * relation stays open in between, so the pointers to them are set for every
 * row anew.
 */
typedef struct Inserter
{
	Oid			outbox;			/* invalid: there is nothing yet */
	uint64		version;		/* of the table that it was made for */
	bool		plain;			/* an INSERT would do no more than we do */
	Oid			id_sequence;
	int			nindexes;
	Oid		   *indexes;
	EState	   *estate;
	ResultRelInfo *target;
	TupleTableSlot *slot;
} Inserter;

static Inserter inserter;

/* Differs after every change of the table. */
static uint64 table_version = 1;

static const Oid column_types[OUTBOX_NATTS] = {
	INT8OID, NAMEOID, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID,
	INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, NAMEOID,
	TIMESTAMPTZOID, INT8OID, INT4OID, INT4OID, INT4OID
};

bool
has_outbox_columns(TupleDesc desc)
{
	if (desc->natts < OUTBOX_NATTS)
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (i >= OUTBOX_NATTS ? !column->attisdropped :
			column->atttypid != column_types[i] || column->atttypmod != -1)
			return false;
	}
	return true;
}

/* Whatever changes an index so that it matters changes its table too. */
static void
relation_changed(Datum arg pg_attribute_unused(), Oid relid)
{
	if (!OidIsValid(relid) || relid == inserter.outbox)
		table_version++;
}

static bool
is_user_function(Oid function, void *context pg_attribute_unused())
{
	return function >= FirstGenbkiObjectId;
}

static bool
runs_user_code(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, CoerceToDomain) ||
		check_functions_in_node(node, is_user_function, context))
		return true;
	return expression_tree_walker(node, runs_user_code, context);
}

static bool
is_plain_expression(Node *node)
{
	return !contain_mutable_functions(node) && !runs_user_code(node, NULL);
}

static bool
has_plain_checks(TupleDesc desc)
{
	for (int i = 0; i < desc->constr->num_check; i++)
	{
		if (!is_plain_expression(stringToNode(desc->constr->check[i].ccbin)))
			return false;
	}
	return true;
}

/* No trigger acts on INSERT but timpush_outbox_check(). */
static bool
has_plain_triggers(const TriggerDesc *triggers)
{
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		FmgrInfo	function;

		if (!TRIGGER_FOR_INSERT(triggers->triggers[i].tgtype))
			continue;
		fmgr_info(triggers->triggers[i].tgfoid, &function);
		if (function.fn_addr != timpush_outbox_check)
			return false;
	}
	return true;
}

static bool
has_plain_indexes(const ResultRelInfo *target)
{
	for (int i = 0; i < target->ri_NumIndices; i++)
	{
		IndexInfo  *info = target->ri_IndexRelationInfo[i];

		/* other kinds may keep pointers to a relation from row to row */
		if (target->ri_IndexRelationDescs[i]->rd_rel->relam != BTREE_AM_OID ||
			!is_plain_expression((Node *) info->ii_Expressions) ||
			!is_plain_expression((Node *) info->ii_Predicate))
			return false;
	}
	return true;
}

/*
 * Is there nothing that an INSERT of the owner's would heed and we do not?
 */
static bool
is_plain_table(Relation rel)
{
	Form_pg_class form = rel->rd_rel;
	TupleDesc	desc = RelationGetDescr(rel);
	AclMode		needed = ACL_INSERT | ACL_SELECT;

	return form->relkind == RELKIND_RELATION && !form->relispartition &&
		!form->relforcerowsecurity && rel->rd_rules == NULL &&
		desc->natts == OUTBOX_NATTS && has_outbox_columns(desc) &&
		desc->constr != NULL &&
		TupleDescAttr(desc, OUTBOX_ID - 1)->attidentity != '\0' &&
		has_plain_triggers(rel->trigdesc) && has_plain_checks(desc) &&
		pg_class_aclmask(RelationGetRelid(rel), form->relowner, needed,
						 ACLMASK_ALL) == needed;
}

/* Open the indexes at first, to get to know them; they are closed again. */
static void
learn_indexes(void)
{
	ResultRelInfo *target = inserter.target;
	Oid		   *indexes;

	ExecOpenIndices(target, false);
	indexes = palloc(sizeof(Oid) * Max(target->ri_NumIndices, 1));
	for (int i = 0; i < target->ri_NumIndices; i++)
		indexes[i] = RelationGetRelid(target->ri_IndexRelationDescs[i]);
	inserter.indexes = indexes;
	inserter.nindexes = target->ri_NumIndices;
	inserter.plain = has_plain_indexes(target);
	ExecCloseIndices(target);
}

static void
forget_inserter(void)
{
	EState	   *estate = inserter.estate;

	memset(&inserter, 0, sizeof(inserter));
	if (estate != NULL)
		FreeExecutorState(estate);
}

static void
make_ready(Relation rel)
{
	MemoryContext caller = MemoryContextSwitchTo(CacheMemoryContext);

	inserter.estate = CreateExecutorState();
	MemoryContextSwitchTo(inserter.estate->es_query_cxt);
	inserter.id_sequence = identity_sequence(rel, OUTBOX_ID);
	inserter.target = makeNode(ResultRelInfo);
	InitResultRelInfo(inserter.target, rel, 0, NULL, 0);
	/* a copy of its own, since nothing of the relation may stay in use */
	inserter.slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(rel)),
											 table_slot_callbacks(rel));
	learn_indexes();
	MemoryContextSwitchTo(caller);
}

/*
 * Learn the table as it now is.  If it changes meanwhile, or an error comes
 * in between, it is learned again for the next row.
 */
static void
make_inserter(Relation rel)
{
	uint64		version;

	forget_inserter();
	inserter.outbox = RelationGetRelid(rel);
	version = table_version;
	if (is_plain_table(rel))
		make_ready(rel);
	inserter.version = version;
}

static void
open_indexes(void)
{
	ResultRelInfo *target = inserter.target;

	for (int i = 0; i < inserter.nindexes; i++)
		target->ri_IndexRelationDescs[i] = index_open(inserter.indexes[i],
													  RowExclusiveLock);
}

/* The same steps as those of the executor, in its order. */
static void
insert_row(Relation rel, const Datum *values, const bool *nulls)
{
	EState	   *estate = inserter.estate;
	TupleTableSlot *slot = inserter.slot;

	/* an error may have left the last row there */
	ExecClearTuple(slot);
	ResetPerTupleExprContext(estate);
	memcpy(slot->tts_values, values, sizeof(Datum) * OUTBOX_NATTS);
	memcpy(slot->tts_isnull, nulls, sizeof(bool) * OUTBOX_NATTS);
	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = RelationGetRelid(rel);

	inserter.target->ri_RelationDesc = rel;
	open_indexes();
	ExecConstraints(inserter.target, slot, estate);
	table_tuple_insert(rel, slot, GetCurrentCommandId(true), 0, NULL);
	insert_index_tuples(inserter.target, slot, estate);
	ExecCloseIndices(inserter.target);
	ExecClearTuple(slot);
	/* the next command sees the row, as it would after a query */
	CommandCounterIncrement();
}

bool
insert_plainly(Oid outbox, Datum *values, bool *nulls, int64 *id)
{
	static bool registered = false;
	Relation	rel;
	OwnerScope	scope;
	bool		plain;

	/* somebody watches what queries do to tables */
	if (ExecutorCheckPerms_hook != NULL)
		return false;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		registered = true;
	}
	owner_enter(&scope, outbox, 0);
	rel = table_open(outbox, RowExclusiveLock);
	if (inserter.version != table_version || inserter.outbox != outbox)
		make_inserter(rel);
	plain = inserter.plain;
	if (plain)
	{
		*id = nextval_internal(inserter.id_sequence, false);
		values[OUTBOX_ID - 1] = Int64GetDatum(*id);
		nulls[OUTBOX_ID - 1] = false;
		insert_row(rel, values, nulls);
	}
	/* the lock stays, as that of an INSERT does */
	table_close(rel, NoLock);
	owner_leave(&scope);
	return plain;
}
