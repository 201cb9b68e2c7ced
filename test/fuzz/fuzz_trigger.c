/*-------------------------------------------------------------------------
 *
 * fuzz_trigger.c
 *	  Fuzz target: the arguments of the trigger timpush_enqueue().
 *
 * Input, in fields: the row's columns t (any text) and a (an array literal),
 * then the arguments.  A constraint of setup.sql refuses the row of
 * push_outbox after all else is done, so that the table does not grow.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "fuzz.h"

#define MAX_ARGS		16

/* Columns of fuzz_row, in their order. */
enum
{
	COLUMN_TEXT,				/* t: of the input */
	COLUMN_ARRAY,				/* a: of the input */
	COLUMN_CHAR,				/* c: char(8) */
	COLUMN_NAME,				/* n */
	COLUMN_INTEGER,				/* i */
	COLUMN_JSONB,				/* j */
	COLUMN_TIME,				/* z */
	COLUMN_DOMAIN,				/* d: text */
	COLUMN_NULL,				/* e: text */
	NCOLUMNS
};

extern Datum timpush_enqueue(PG_FUNCTION_ARGS);

static Datum
input_value(TupleDesc desc, int column, char *text)
{
	Form_pg_attribute attribute = TupleDescAttr(desc, column);
	Oid			input;
	Oid			ioparam;

	getTypeInputInfo(attribute->atttypid, &input, &ioparam);
	return OidInputFunctionCall(input, text, ioparam, attribute->atttypmod);
}

static HeapTuple
make_row(TupleDesc desc, FuzzInput *input)
{
	Datum		values[NCOLUMNS] = {0};
	bool		nulls[NCOLUMNS] = {false};

	fuzz_check(desc->natts == NCOLUMNS);
	values[COLUMN_TEXT] = input_value(desc, COLUMN_TEXT, fuzz_field(input));
	values[COLUMN_ARRAY] = input_value(desc, COLUMN_ARRAY, fuzz_field(input));
	values[COLUMN_CHAR] = input_value(desc, COLUMN_CHAR, "ann");
	values[COLUMN_NAME] = input_value(desc, COLUMN_NAME, "base");
	values[COLUMN_INTEGER] = input_value(desc, COLUMN_INTEGER, "7");
	values[COLUMN_JSONB] = input_value(desc, COLUMN_JSONB, "{\"Classification\": 1}");
	values[COLUMN_TIME] = input_value(desc, COLUMN_TIME, "2100-01-01");
	values[COLUMN_DOMAIN] = input_value(desc, COLUMN_DOMAIN, "yes");
	nulls[COLUMN_NULL] = true;
	return heap_form_tuple(desc, values, nulls);
}

static void
call_trigger(Relation rel, HeapTuple row, char **args, int nargs)
{
	LOCAL_FCINFO(fcinfo, 0);
	FmgrInfo	function;
	Trigger		trigger = {.tgname = "fuzz"};
	TriggerData data = {.type = T_TriggerData};

	fmgr_info(LookupFuncName(list_make1(makeString("timpush_enqueue")), 0, NULL, false), &function);
	trigger.tgnargs = (int16) nargs;
	trigger.tgargs = args;
	data.tg_event = TRIGGER_EVENT_INSERT | TRIGGER_EVENT_ROW | TRIGGER_EVENT_AFTER;
	data.tg_relation = rel;
	data.tg_trigtuple = row;
	data.tg_trigger = &trigger;
	InitFunctionCallInfoData(*fcinfo, &function, 0, InvalidOid, (Node *) &data, NULL);
	(void) timpush_enqueue(fcinfo);
}

void
fuzz_trigger(FuzzInput *input)
{
	Relation	rel = table_open(RelnameGetRelid("fuzz_row"), AccessShareLock);
	HeapTuple	row = make_row(RelationGetDescr(rel), input);
	char	   *args[MAX_ARGS];
	int			nargs = 0;

	while (input->left > 0 && nargs < MAX_ARGS)
		args[nargs++] = fuzz_field(input);
	call_trigger(rel, row, args, nargs);
	fuzz_finding("a row was inserted that fuzz_stop refuses");
}
