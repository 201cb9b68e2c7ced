/*-------------------------------------------------------------------------
 *
 * load.c
 *	  Rows of our tables taken apart: waiting pushes, requests of the journal.
 *
 * Reads what a statement has left in SPI_tuptable and runs no SQL itself.
 *
 * Crash story: reads only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "load.h"
#include "push.h"

/* A row that can be a request by itself is loaded as a whole (1047/67553). */
#define WHOLE_ROW	500

Datum
load_column(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, desc, column, &isnull);

	return isnull ? (Datum) 0 : value;
}

static OnUnknown
on_unknown_of(Datum value)
{
	OnUnknown	on_unknown = ON_UNKNOWN_RETRY;

	/* the table's own check knows no other names */
	(void) on_unknown_parse(TextDatumGetCString(value), &on_unknown);
	return on_unknown;
}

static Span
span_of(WaitingPush *push, int column)
{
	if (push->nulls[column - 1])
		return text_span(NULL);
	push->values[column - 1] =
		PointerGetDatum(PG_DETOAST_DATUM_PACKED(push->values[column - 1]));
	return text_span((text *) DatumGetPointer(push->values[column - 1]));
}

/* Does the array consist of a header and non-null texts, as ours do? */
static void
check_array(const ArrayType *header, int64 id)
{
	if (header->ndim == 1 && header->dataoffset == 0 && header->elemtype == TEXTOID)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("accounts of push %lld are no plain array of text without nulls",
					(long long) id)));
}

/* Enter up to "most" elements between start and end; returns how many. */
static int
walk_accounts(AccountBytes *bytes, const char *end, Span *accounts, int most)
{
	const char *p = bytes->start;
	int			n = 0;

	while (n < most && end - p >= VARHDRSZ && VARATT_IS_4B_U(p) &&
		   end - p >= (int64) VARSIZE(p))
	{
		accounts[n++] = text_span((text *) unconstify(char *, p));
		p = (const char *) INTALIGN(p + VARSIZE(p));
	}
	/* the alignment behind the last one may be missing */
	bytes->end = p;
	return n;
}

/*
 * A large array lies out of line and uncompressed, so that a slice of it can
 * be had without reading the rest.
 */
static int
load_slice(AccountBytes *bytes, Datum value, int64 id, Span *accounts, int wanted)
{
	const int	header_size = ARR_OVERHEAD_NONULLS(1) - VARHDRSZ;
	int			total = (int) toast_raw_datum_size(value) - VARHDRSZ - header_size;
	struct varlena *header = PG_DETOAST_DATUM_SLICE(value, 0, header_size);
	int64		size;

	check_array((ArrayType *) header, id);
	/* what it takes at the mean length, and if that is not enough, more */
	for (size = (int64) (total / Max(ARR_DIMS((ArrayType *) header)[0], 1) + 64) * wanted;;
		 size *= 2)
	{
		struct varlena *slice;
		int			n;

		size = Min(size, total - bytes->offset);
		slice = PG_DETOAST_DATUM_SLICE(value, header_size + bytes->offset,
									   (int) size);
		bytes->start = VARDATA(slice);
		n = walk_accounts(bytes, bytes->start + VARSIZE(slice) - VARHDRSZ, accounts, wanted);
		if (n == wanted || size >= total - bytes->offset)
			return n;
	}
}

static int
load_whole(AccountBytes *bytes, Datum value, int64 id, Span *accounts, int wanted)
{
	ArrayType  *array = DatumGetArrayTypeP(value);

	check_array(array, id);
	bytes->start = ARR_DATA_PTR(array) + bytes->offset;
	return walk_accounts(bytes, (char *) array + VARSIZE(array), accounts, wanted);
}

static void
load_accounts(ComposeRow *row, const WaitingPush *push, AccountBytes *bytes, int most)
{
	Datum		value = push->values[OUTBOX_TO_ACCOUNTS - 1];
	Span	   *accounts;
	int			wanted;

	row->naccounts = DatumGetInt32(push->values[OUTBOX_ACCOUNTS - 1]) -
		DatumGetInt32(push->values[OUTBOX_HANDED_OUT - 1]);
	bytes->offset = DatumGetInt32(push->values[OUTBOX_HANDED_BYTES - 1]);
	wanted = most > 0 ? Min(row->naccounts, Max(most, WHOLE_ROW)) : 0;
	accounts = palloc(sizeof(Span) * Max(wanted, 1));
	row->accounts = accounts;
	row->nloaded = wanted == 0 ? 0 : VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)) ?
		load_slice(bytes, value, row->id, accounts, wanted) :
		load_whole(bytes, value, row->id, accounts, wanted);
	if (row->nloaded < wanted)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("push %lld has fewer accounts than it says", (long long) row->id)));
}

int
load_handed_bytes(const Loaded *loaded, int i)
{
	const ComposeRow *row = &loaded->rows[i];
	const AccountBytes *bytes = &loaded->bytes[i];
	const char *next = row->taken < row->nloaded ?
	row->accounts[row->taken].data - VARHDRSZ : bytes->end;

	return bytes->offset + (int) (next - bytes->start);
}

static void
load_row(ComposeRow *row, WaitingPush *push, AccountBytes *bytes, int most)
{
	Content    *content = &row->content;

	row->id = DatumGetInt64(push->values[OUTBOX_ID - 1]);
	row->content_key = DatumGetInt64(push->values[OUTBOX_CONTENT_KEY - 1]);
	row->priority = DatumGetInt32(push->values[OUTBOX_PRIORITY - 1]);
	row->send_at = DatumGetTimestampTz(push->values[OUTBOX_SEND_AT - 1]);
	content->server.data = NameStr(*DatumGetName(push->values[OUTBOX_SERVER - 1]));
	content->server.len = strlen(content->server.data);
	content->from = span_of(push, OUTBOX_FROM_ACCOUNT);
	content->title = span_of(push, OUTBOX_TITLE);
	content->descr = span_of(push, OUTBOX_DESCR);
	content->data_id = span_of(push, OUTBOX_DATA_ID);
	content->extra = span_of(push, OUTBOX_EXTRA);
	content->on_unknown = on_unknown_of(push->values[OUTBOX_ON_UNKNOWN - 1]);
	load_accounts(row, push, bytes, most);
}

void
load_rows(Loaded *loaded, int most)
{
	SPITupleTable *table = SPI_tuptable;
	Datum		values[OUTBOX_NATTS + 1];
	bool		nulls[OUTBOX_NATTS + 1];

	if (table->tupdesc->natts != OUTBOX_NATTS + 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("relation \"%s\" does not have the columns that it was made with",
						"push_outbox"),
				 errhint("The table belongs to the extension; keep columns of your own in another one.")));
	loaded->n = (int) SPI_processed;
	loaded->rows = palloc0(sizeof(ComposeRow) * Max(loaded->n, 1));
	loaded->pushes = palloc0(sizeof(WaitingPush) * Max(loaded->n, 1));
	loaded->tids = palloc(sizeof(ItemPointerData) * Max(loaded->n, 1));
	loaded->bytes = palloc(sizeof(AccountBytes) * Max(loaded->n, 1));
	for (int i = 0; i < loaded->n; i++)
	{
		/* the row, and behind its columns where it lies */
		heap_deform_tuple(table->vals[i], table->tupdesc, values, nulls);
		memcpy(loaded->pushes[i].values, values, sizeof(loaded->pushes[i].values));
		memcpy(loaded->pushes[i].nulls, nulls, sizeof(loaded->pushes[i].nulls));
		loaded->tids[i] = *(ItemPointer) DatumGetPointer(values[OUTBOX_NATTS]);
		load_row(&loaded->rows[i], &loaded->pushes[i], &loaded->bytes[i], most);
		most -= loaded->rows[i].nloaded;
	}
}

void
load_merge(Loaded *heads, const Loaded *more)
{
	int			nheads = heads->n;
	int			size = nheads + more->n;

	heads->rows = repalloc(heads->rows, sizeof(ComposeRow) * size);
	heads->pushes = repalloc(heads->pushes, sizeof(WaitingPush) * size);
	heads->tids = repalloc(heads->tids, sizeof(ItemPointerData) * size);
	heads->bytes = repalloc(heads->bytes, sizeof(AccountBytes) * size);
	for (int i = 0; i < more->n; i++)
	{
		int			j = 0;

		while (j < nheads && heads->rows[j].id != more->rows[i].id)
			j++;
		if (j < nheads)
			continue;
		heads->rows[heads->n] = more->rows[i];
		heads->pushes[heads->n] = more->pushes[i];
		heads->bytes[heads->n] = more->bytes[i];
		heads->tids[heads->n++] = more->tids[i];
	}
}

Request *
load_request(HeapTuple tuple, TupleDesc desc, Oid serverid, MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "timpush request",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Request    *request = palloc0(sizeof(Request));
	Datum	   *accounts;

	request->context = context;
	request->serverid = serverid;
	request->id = DatumGetInt64(load_column(tuple, desc, 1));
	request->server = *DatumGetName(load_column(tuple, desc, 2));
	request->msg_random = (uint32) DatumGetInt64(load_column(tuple, desc, 3));
	request->content = DatumGetJsonbPCopy(load_column(tuple, desc, 4));
	deconstruct_array(DatumGetArrayTypeP(load_column(tuple, desc, 5)), TEXTOID,
					  -1, false, TYPALIGN_INT, &accounts, NULL, &request->naccounts);
	request->accounts = palloc(sizeof(char *) * Max(request->naccounts, 1));
	for (int i = 0; i < request->naccounts; i++)
		request->accounts[i] = TextDatumGetCString(accounts[i]);
	request->on_unknown = on_unknown_of(load_column(tuple, desc, 6));
	request->attempts = DatumGetInt32(load_column(tuple, desc, 7));
	request->resends = DatumGetInt32(load_column(tuple, desc, 8));
	request->in_doubt = DatumGetBool(load_column(tuple, desc, 9));
	request->maybe_duplicate = DatumGetBool(load_column(tuple, desc, 10));
	request->first_sent_at = DatumGetTimestampTz(load_column(tuple, desc, 11));
	request->next_attempt_at = DatumGetTimestampTz(load_column(tuple, desc, 12));
	request->account_tries = DatumGetInt32(load_column(tuple, desc, 13));
	MemoryContextSwitchTo(old);
	return request;
}

void
load_member(Request *request, HeapTuple tuple, TupleDesc desc)
{
	Member	   *member;

	if (request->members == NULL)
		request->members = MemoryContextAllocZero(request->context,
												  sizeof(Member) * Max(request->naccounts, 1));
	member = &request->members[request->nmembers++];
	member->push_id = DatumGetInt64(load_column(tuple, desc, 2));
	member->first = DatumGetInt32(load_column(tuple, desc, 3));
	member->accounts = DatumGetInt32(load_column(tuple, desc, 4));
	member->expires_at = DatumGetTimestampTz(load_column(tuple, desc, 5));
	member->enqueued_at = DatumGetTimestampTz(load_column(tuple, desc, 6));
	if (member->expires_at == 0)
		member->expires_at = DT_NOEND;
}
