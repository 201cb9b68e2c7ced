/*-------------------------------------------------------------------------
 *
 * journal.c
 *	  Rows of the journal: from composed requests, and from outcomes.
 *
 * Forms rows and runs no SQL; outbox.c writes what is collected here.  Where
 * a request cannot go on as it is, it becomes "split", and children take over
 * its pushes, each account in exactly one place.
 *
 * Crash story: everything collected is written in one transaction, or none
 * of it is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "journal.h"
#include "msgrandom.h"
#include "stats.h"

/* Columns of one row under construction. */
typedef struct Columns
{
	Datum		values[REQUEST_NATTS];
	bool		nulls[REQUEST_NATTS];
} Columns;

StaticAssertDecl((int) REQUEST_NATTS >= (int) RESULT_NATTS &&
				 (int) REQUEST_NATTS >= (int) ERROR_NATTS,
				 "Columns must have room for any of our tables");

static void
columns_begin(Columns *columns)
{
	memset(columns->values, 0, sizeof(columns->values));
	memset(columns->nulls, true, sizeof(columns->nulls));
}

static void
put(Columns *columns, int column, Datum value)
{
	columns->values[column - 1] = value;
	columns->nulls[column - 1] = false;
}

static void
put_string(Columns *columns, int column, const char *value)
{
	put(columns, column, CStringGetTextDatum(value));
}

/* A time that may be missing: 0 and DT_NOEND mean none. */
static void
put_time(Columns *columns, int column, TimestampTz value)
{
	if (value != 0 && value != DT_NOEND)
		put(columns, column, TimestampTzGetDatum(value));
}

/*
 * Text from the network in the database's encoding.  What cannot be
 * converted becomes a question mark: the text is for people to read.
 */
static char *
from_utf8(const char *string)
{
	int			len = (int) strlen(string);
	int			encoding = GetDatabaseEncoding();
	char	   *result;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return pstrdup(string);
	result = palloc(len * MAX_CONVERSION_GROWTH + 1);
	if (pg_do_encoding_conversion_buf(FindDefaultConversionProc(PG_UTF8, encoding),
									  PG_UTF8, encoding,
									  (unsigned char *) unconstify(char *, string), len,
									  (unsigned char *) result,
									  len * MAX_CONVERSION_GROWTH + 1, true) == len)
		return result;
	strcpy(result, string);
	for (char *p = result; *p != '\0'; p++)
	{
		if (IS_HIGHBIT_SET(*p))
			*p = '?';
	}
	return result;
}

void
journal_open(Journal *journal, Oid schema)
{
	rowset_describe(&journal->new_requests, get_relname_relid("push_request", schema));
	journal->changed_requests = journal->new_requests;
	rowset_describe(&journal->new_results, get_relname_relid("push_result", schema));
	journal->changed_results = journal->copied_results = journal->moved_results =
		journal->new_results;
	rowset_describe(&journal->errors, get_relname_relid("push_error", schema));
	journal->request_seq = get_relname_relid("push_request_id_seq", schema);
	journal->msg_random_seq = get_relname_relid("push_msg_random_seq", schema);
}

bool
journal_fits(const Journal *journal)
{
	return journal->new_requests.desc->natts == REQUEST_NATTS &&
		journal->new_results.desc->natts == RESULT_NATTS &&
		journal->errors.desc->natts == ERROR_NATTS;
}

void
journal_begin(Journal *journal)
{
	rowset_begin(&journal->new_requests);
	rowset_begin(&journal->new_results);
	rowset_begin(&journal->changed_requests);
	rowset_begin(&journal->changed_results);
	rowset_begin(&journal->copied_results);
	rowset_begin(&journal->moved_results);
	rowset_begin(&journal->errors);
	journal->sent = NIL;
	journal->sent_members = 0;
}

/* ------------------------------------------------------------------------
 * New requests out of the outbox
 * ------------------------------------------------------------------------
 */

static Datum
accounts_datum(char **accounts, int n)
{
	Datum	   *elements = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		elements[i] = CStringGetTextDatum(accounts[i]);
	return PointerGetDatum(construct_array(elements, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

static Datum
push_ids_datum(const Request *request)
{
	Datum	   *ids = palloc(sizeof(Datum) * request->nmembers);

	for (int i = 0; i < request->nmembers; i++)
		ids[i] = Int64GetDatum(request->members[i].push_id);
	return PointerGetDatum(construct_array(ids, request->nmembers, INT8OID,
										   sizeof(int64), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

static void
add_request(Journal *journal, const Request *request, const char *state,
			int64 parent, TimestampTz now, TimestampTz due)
{
	Columns		c;
	bool		final = strcmp(state, STATE_SENDING) != 0 && strcmp(state, STATE_RETRY) != 0;

	columns_begin(&c);
	put(&c, REQUEST_ID, Int64GetDatum(request->id));
	put(&c, REQUEST_SERVER, NameGetDatum(&request->server));
	put(&c, REQUEST_MSG_RANDOM, Int64GetDatum((int64) request->msg_random));
	put(&c, REQUEST_CONTENT, JsonbPGetDatum(request->content));
	put(&c, REQUEST_ACCOUNTS, accounts_datum(request->accounts, request->naccounts));
	put(&c, REQUEST_PUSH_IDS, push_ids_datum(request));
	put_string(&c, REQUEST_STATE, state);
	put_string(&c, REQUEST_ON_UNKNOWN, on_unknown_name(request->on_unknown));
	put(&c, REQUEST_ATTEMPTS, Int32GetDatum(request->attempts));
	put(&c, REQUEST_RESENDS, Int32GetDatum(request->resends));
	put(&c, REQUEST_ACCOUNT_TRIES, Int32GetDatum(request->account_tries));
	put(&c, REQUEST_IN_DOUBT, BoolGetDatum(request->in_doubt));
	put(&c, REQUEST_MAYBE_DUPLICATE, BoolGetDatum(request->maybe_duplicate));
	if (parent != 0)
		put(&c, REQUEST_PARENT, Int64GetDatum(parent));
	put(&c, REQUEST_CREATED_AT, TimestampTzGetDatum(now));
	/* it leaves in a moment; should we die before the end, this is known */
	if (strcmp(state, STATE_SENDING) == 0)
		put_time(&c, REQUEST_FIRST_SENT_AT, now);
	put_time(&c, REQUEST_NEXT_ATTEMPT_AT, due);
	put_time(&c, REQUEST_FINISHED_AT, final ? now : 0);
	rowset_add(&journal->new_requests, c.values, c.nulls);
}

/* Count what has become of the accounts of a member. */
static void
count_member(const Request *request, const Member *member)
{
	const char *state = member->state;
	const NameData *server = &request->server;

	if (request->maybe_duplicate)
		stats_add(server, STATS_MAYBE_DUPLICATE, member->accounts - member->retried);
	if (strcmp(state, STATE_SENT) == 0 || strcmp(state, STATE_PARTIAL) == 0)
	{
		stats_add(server, STATS_ACCEPTED, member->accounts - member->failed - member->retried);
		stats_add(server, STATS_FAILED, member->failed);
		return;
	}
	stats_add(server, strcmp(state, STATE_FAILED) == 0 ? STATS_FAILED :
			  strcmp(state, STATE_EXPIRED) == 0 ? STATS_EXPIRED :
			  strcmp(state, STATE_CANCELLED) == 0 ? STATS_CANCELLED : STATS_UNKNOWN,
			  member->accounts);
}

/* A push's own columns go with each of its parts. */
static void
add_result(Journal *journal, const Request *request, const Member *member,
		   const WaitingPush *push, const char *state, TimestampTz now)
{
	Columns		c;

	columns_begin(&c);
	put(&c, RESULT_PUSH_ID, Int64GetDatum(member->push_id));
	put(&c, RESULT_REQUEST_ID, Int64GetDatum(request->id));
	put(&c, RESULT_FIRST, Int32GetDatum(member->first));
	put(&c, RESULT_ACCOUNTS, Int32GetDatum(member->accounts));
	put_string(&c, RESULT_STATE, state);
	put(&c, RESULT_FAILED, Int32GetDatum(0));
	put(&c, RESULT_RETRIED, Int32GetDatum(0));
	put(&c, RESULT_MAYBE_DUPLICATE, BoolGetDatum(false));
	put(&c, RESULT_SERVER, push->values[OUTBOX_SERVER - 1]);
	put(&c, RESULT_ENQUEUED_BY, push->values[OUTBOX_ENQUEUED_BY - 1]);
	if (!push->nulls[OUTBOX_DATA_ID - 1])
		put(&c, RESULT_DATA_ID, push->values[OUTBOX_DATA_ID - 1]);
	if (!push->nulls[OUTBOX_DEDUP_KEY - 1])
		put(&c, RESULT_DEDUP_KEY, push->values[OUTBOX_DEDUP_KEY - 1]);
	put(&c, RESULT_PUSH_ACCOUNTS, push->values[OUTBOX_ACCOUNTS - 1]);
	put(&c, RESULT_PRIORITY, push->values[OUTBOX_PRIORITY - 1]);
	put_time(&c, RESULT_EXPIRES_AT, member->expires_at);
	put(&c, RESULT_ENQUEUED_AT, push->values[OUTBOX_CREATED_AT - 1]);
	put_time(&c, RESULT_FINISHED_AT, strcmp(state, STATE_SENDING) == 0 ? 0 : now);
	rowset_add(&journal->new_results, c.values, c.nulls);
}

static text *
text_value(const WaitingPush *push, int column)
{
	return push->nulls[column - 1] ? NULL : DatumGetTextPP(push->values[column - 1]);
}

static void
fill_request(Request *request, const ComposedRequest *composed,
			 const ComposeRow *rows, const WaitingPush *pushes)
{
	const WaitingPush *head = &pushes[composed->parts[0].row];

	request->content = request_content(text_value(head, OUTBOX_FROM_ACCOUNT),
									   text_value(head, OUTBOX_TITLE),
									   text_value(head, OUTBOX_DESCR),
									   text_value(head, OUTBOX_DATA_ID),
									   head->nulls[OUTBOX_EXTRA - 1] ? NULL :
									   DatumGetJsonbP(head->values[OUTBOX_EXTRA - 1]));
	request->content_key = rows[composed->parts[0].row].content_key;
	request->on_unknown = rows[composed->parts[0].row].content.on_unknown;
	request->accounts = palloc(sizeof(char *) * composed->naccounts);
	request->members = palloc0(sizeof(Member) * composed->nparts);
	request->nmembers = composed->nparts;

	for (int i = 0; i < composed->nparts; i++)
	{
		const ComposePart *part = &composed->parts[i];
		const WaitingPush *push = &pushes[part->row];
		Member	   *member = &request->members[i];

		member->push_id = rows[part->row].id;
		member->first = request->naccounts + 1;
		member->accounts = part->count;
		member->expires_at = push->nulls[OUTBOX_EXPIRES_AT - 1] ? DT_NOEND :
			DatumGetTimestampTz(push->values[OUTBOX_EXPIRES_AT - 1]);
		member->enqueued_at = Max(DatumGetTimestampTz(push->values[OUTBOX_CREATED_AT - 1]),
								  DatumGetTimestampTz(push->values[OUTBOX_SEND_AT - 1]));
		for (int j = 0; j < part->count; j++)
		{
			Span		account = rows[part->row].accounts[part->first + j];

			request->accounts[request->naccounts++] =
				pnstrdup(account.data, account.len);
		}
	}
}

static Request *
new_request(MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "timpush request",
												  ALLOCSET_SMALL_SIZES);
	Request    *request = MemoryContextAllocZero(context, sizeof(Request));

	request->context = context;
	return request;
}

static uint32
draw_msg_random(const Journal *journal, uint64 random_key)
{
	return msgrandom(random_key,
					 (uint64) nextval_internal(journal->msg_random_seq, false));
}

Request *
journal_compose(Journal *journal, const ComposedRequest *composed,
				ComposeRow *rows, const WaitingPush *pushes, const char *state,
				Oid serverid, uint64 random_key, MemoryContext parent)
{
	Request    *request = new_request(parent);
	MemoryContext old = MemoryContextSwitchTo(request->context);
	TimestampTz now = GetCurrentTimestamp();
	const WaitingPush *head = &pushes[composed->parts[0].row];

	fill_request(request, composed, rows, pushes);
	MemoryContextSwitchTo(old);
	request->fresh = strcmp(state, STATE_SENDING) == 0;
	request->serverid = serverid;
	request->server = *DatumGetName(head->values[OUTBOX_SERVER - 1]);
	request->id = nextval_internal(journal->request_seq, false);
	if (request->fresh)
		request->msg_random = draw_msg_random(journal, random_key);

	if (request->fresh)
		stats_add(&request->server, STATS_CLAIMED, request->naccounts);

	add_request(journal, request, state, 0, now, 0);
	for (int i = 0; i < request->nmembers; i++)
	{
		add_result(journal, request, &request->members[i],
				   &pushes[composed->parts[i].row], state, now);
		request->members[i].state = state;
		if (!request->fresh)
			count_member(request, &request->members[i]);
	}
	return request;
}

/* ------------------------------------------------------------------------
 * Outcomes
 * ------------------------------------------------------------------------
 */

static Interval *
latency_of(const Request *request)
{
	Interval   *latency = palloc0(sizeof(Interval));

	latency->time = Max(request->ended_at - request->sent_at, 0);
	return latency;
}

static void
put_outcome(Columns *c, const Outcome *outcome)
{
	if (outcome->http_status != 0)
		put(c, REQUEST_HTTP_STATUS, Int32GetDatum(outcome->http_status));
	if (outcome->task_id != NULL)
		put_string(c, REQUEST_TASK_ID, from_utf8(outcome->task_id));
	if (outcome->has_code)
		put(c, REQUEST_ERROR_CODE, Int32GetDatum(outcome->error_code));
	put_string(c, REQUEST_ERROR_INFO, from_utf8(outcome->error_info));
	put_string(c, REQUEST_CLASS, outcome_class_name(outcome->class));
}

/* Without an attempt's outcome, the row keeps that of the last one. */
static void
change_request(Journal *journal, const Request *request, const char *state,
			   TimestampTz next_attempt_at)
{
	Columns		c;

	columns_begin(&c);
	put(&c, REQUEST_ID, Int64GetDatum(request->id));
	put(&c, REQUEST_MSG_RANDOM, Int64GetDatum((int64) request->msg_random));
	put_string(&c, REQUEST_STATE, state);
	put(&c, REQUEST_ATTEMPTS, Int32GetDatum(request->attempts));
	put(&c, REQUEST_RESENDS, Int32GetDatum(request->resends));
	put(&c, REQUEST_IN_DOUBT, BoolGetDatum(request->in_doubt));
	if (request->judged)
		put_outcome(&c, &request->outcome);
	put(&c, REQUEST_MAYBE_DUPLICATE, BoolGetDatum(request->maybe_duplicate));
	put_time(&c, REQUEST_FIRST_SENT_AT, request->first_sent_at);
	put_time(&c, REQUEST_NEXT_ATTEMPT_AT, next_attempt_at);
	if (strcmp(state, STATE_SENDING) != 0 && strcmp(state, STATE_RETRY) != 0)
		put(&c, REQUEST_FINISHED_AT, TimestampTzGetDatum(request->ended_at));
	if (request->sent_at != 0)
		put(&c, REQUEST_LATENCY, IntervalPGetDatum(latency_of(request)));
	rowset_add(&journal->changed_requests, c.values, c.nulls);
}

static void
add_member_row(RowSet *set, int64 request_id, const Member *member,
			   bool maybe_duplicate, TimestampTz finished_at)
{
	Columns		c;

	columns_begin(&c);
	put(&c, RESULT_PUSH_ID, Int64GetDatum(member->push_id));
	put(&c, RESULT_REQUEST_ID, Int64GetDatum(request_id));
	put(&c, RESULT_FIRST, Int32GetDatum(member->first));
	put(&c, RESULT_ACCOUNTS, Int32GetDatum(member->accounts));
	put_string(&c, RESULT_STATE, member->state);
	put(&c, RESULT_FAILED, Int32GetDatum(member->failed));
	put(&c, RESULT_RETRIED, Int32GetDatum(member->retried));
	put(&c, RESULT_MAYBE_DUPLICATE, BoolGetDatum(maybe_duplicate));
	put_time(&c, RESULT_FINISHED_AT, finished_at);
	rowset_add(set, c.values, c.nulls);
}

/* All members end, or go on, in the same state. */
static void
change_members(Journal *journal, Request *request, const char *state,
			   TimestampTz finished_at)
{
	for (int i = 0; i < request->nmembers; i++)
	{
		Member	   *member = &request->members[i];

		member->state = state;
		member->failed = strcmp(state, STATE_FAILED) == 0 ? member->accounts : 0;
		if (finished_at != 0)
			count_member(request, member);
		add_member_row(&journal->changed_results, request->id, member,
					   request->maybe_duplicate, finished_at);
	}
}

static void
finish_request(Journal *journal, Request *request, const char *request_state,
			   const char *member_state)
{
	change_request(journal, request, request_state, 0);
	change_members(journal, request, member_state, request->ended_at);
}

static void
add_error(Journal *journal, const Request *request, const Member *member,
		  const char *account, bool has_code, int code, const char *info,
		  OutcomeClass class)
{
	Columns		c;

	columns_begin(&c);
	put(&c, ERROR_PUSH_ID, Int64GetDatum(member->push_id));
	put(&c, ERROR_REQUEST_ID, Int64GetDatum(request->id));
	put_string(&c, ERROR_ACCOUNT, account);
	if (has_code)
		put(&c, ERROR_ERROR_CODE, Int32GetDatum(code));
	put_string(&c, ERROR_ERROR_INFO, from_utf8(info));
	put_string(&c, ERROR_CLASS, outcome_class_name(class));
	rowset_add(&journal->errors, c.values, c.nulls);
}

static void
fail_request(Journal *journal, Request *request)
{
	const Outcome *outcome = &request->outcome;

	finish_request(journal, request, STATE_FAILED, STATE_FAILED);
	for (int i = 0; i < request->nmembers; i++)
	{
		const Member *member = &request->members[i];

		for (int j = 0; j < member->accounts; j++)
			add_error(journal, request, member,
					  request->accounts[member->first - 1 + j],
					  outcome->has_code, outcome->error_code,
					  outcome->error_info, outcome->class);
	}
}

/* ------------------------------------------------------------------------
 * Children: some accounts of a request go on in another one
 * ------------------------------------------------------------------------
 */

/*
 * The outcome of pushes that expire in a request that is not in flight.  May
 * the API have got it, or the one that it was split from, that is not known.
 */
static const char *
expired_state(const Request *request)
{
	return request->in_doubt || request->maybe_duplicate ? STATE_UNKNOWN : STATE_EXPIRED;
}

/*
 * A child that carries the accounts for which "chosen" is true.  Its members
 * are those of the parent, as far as they have a chosen account.
 */
static Request *
make_child(Journal *journal, Request *parent, const bool *chosen)
{
	Request    *child = palloc0(sizeof(Request));

	child->id = nextval_internal(journal->request_seq, false);
	child->server = parent->server;
	child->content = parent->content;
	child->on_unknown = parent->on_unknown;
	child->attempts = parent->attempts;
	child->resends = parent->resends;
	child->account_tries = parent->account_tries;
	/* a new call, with a MsgRandom of its own; the mark stays */
	child->maybe_duplicate = parent->maybe_duplicate;
	child->ended_at = parent->ended_at;
	child->accounts = palloc(sizeof(char *) * parent->naccounts);
	child->members = palloc0(sizeof(Member) * parent->nmembers);

	for (int i = 0; i < parent->nmembers; i++)
	{
		const Member *from = &parent->members[i];
		Member	   *to = &child->members[child->nmembers];

		*to = *from;
		to->first = child->naccounts + 1;
		to->continued = !chosen[from->first - 1];
		to->failed = to->retried = 0;
		for (int j = 0; j < from->accounts; j++)
		{
			if (chosen[from->first - 1 + j])
				child->accounts[child->naccounts++] = parent->accounts[from->first - 1 + j];
		}
		to->accounts = child->naccounts - to->first + 1;
		if (to->accounts > 0)
			child->nmembers++;
	}
	return child;
}

/*
 * Enter a child, and its members: if nothing stays in the parent as those
 * rows moved, and else as copies of them.  Of a push that several children
 * share, the one with its first accounts gets the row.
 */
static void
add_child(Journal *journal, const Request *parent, Request *child, bool moves,
		  const char *state, TimestampTz due)
{
	bool		final = strcmp(state, STATE_RETRY) != 0;

	/* what is not sent again does not come twice */
	child->maybe_duplicate |= parent->in_doubt && !final;
	add_request(journal, child, state, parent->id, parent->ended_at, final ? 0 : due);
	for (int i = 0; i < child->nmembers; i++)
	{
		Member	   *member = &child->members[i];

		member->state = state;
		if (final)
			count_member(child, member);
		add_member_row(moves && !member->continued ?
					   &journal->moved_results : &journal->copied_results,
					   child->id, member, child->maybe_duplicate,
					   final ? parent->ended_at : 0);
	}
}

/* Move the members into two children, by "first" and not. */
static void
split_by_member(Journal *journal, Request *request, const bool *first,
				const char *first_state, const char *second_state,
				TimestampTz due)
{
	bool	   *chosen = palloc0(sizeof(bool) * request->naccounts);

	for (int i = 0; i < request->nmembers; i++)
		memset(chosen + request->members[i].first - 1, first[i], request->members[i].accounts);
	add_child(journal, request, make_child(journal, request, chosen), true,
			  first_state, due);
	for (int i = 0; i < request->naccounts; i++)
		chosen[i] = !chosen[i];
	add_child(journal, request, make_child(journal, request, chosen), true,
			  second_state, due);
}

/* Children of at most so many accounts, also of one push. */
static void
split_by_account(Journal *journal, Request *request, int first, int size,
				 TimestampTz due)
{
	int			done = 0;

	while (done < request->naccounts)
	{
		bool	   *chosen = palloc0(sizeof(bool) * request->naccounts);
		int			n = Min(done == 0 ? first : size, request->naccounts - done);

		memset(chosen + done, true, n);
		add_child(journal, request, make_child(journal, request, chosen), true,
				  STATE_RETRY, due);
		done += n;
	}
}

/*
 * Smaller requests go instead: two with half of the pushes each, as one bad
 * push must not fail the others, or some with fewer accounts.
 */
static void
split_request(Journal *journal, Request *request)
{
	bool	   *first = palloc0(sizeof(bool) * request->nmembers);
	int			attempts = request->attempts;

	for (int i = 0; i < request->nmembers / 2; i++)
		first[i] = true;
	change_request(journal, request, STATE_SPLIT, 0);
	/* they have been tried by themselves not once */
	request->attempts = 0;
	if (request->step.kind == STEP_SHRINK)
		split_by_account(journal, request, request->step.size, request->step.size,
						 request->ended_at);
	else
		split_by_member(journal, request, first, STATE_RETRY, STATE_RETRY,
						request->ended_at);
	/* this may be entered again after an error */
	request->attempts = attempts;
}

/* ------------------------------------------------------------------------
 * Per-account errors
 * ------------------------------------------------------------------------
 */

static int
compare_accounts(const void *a, const void *b, void *arg)
{
	char	  **accounts = arg;

	return strcmp(accounts[*(const int *) a], accounts[*(const int *) b]);
}

/* Positions of the request's accounts in the order of their names. */
static int *
sort_accounts(const Request *request)
{
	int		   *order = palloc(sizeof(int) * request->naccounts);

	for (int i = 0; i < request->naccounts; i++)
		order[i] = i;
	qsort_arg(order, request->naccounts, sizeof(int), compare_accounts,
			  request->accounts);
	return order;
}

/* Position of an account, or -1 if it is not in the request. */
static int
find_account(const Request *request, const int *order, const char *account)
{
	int			low = 0;
	int			high = request->naccounts - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		int			cmp = strcmp(request->accounts[order[middle]], account);

		if (cmp == 0)
			return order[middle];
		if (cmp < 0)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return -1;
}

/* The push that an account belongs to: members stand in order. */
static Member *
member_of(Request *request, int position)
{
	int			low = 0;
	int			high = request->nmembers - 1;

	while (low < high)
	{
		int			middle = (low + high + 1) / 2;

		if (request->members[middle].first <= position + 1)
			low = middle;
		else
			high = middle - 1;
	}
	return &request->members[low];
}

/*
 * Match the listed accounts back to their pushes.  Returns which accounts
 * are to be tried again; an account that is not ours, or listed again, is
 * counted in *ignored.
 */
static bool *
judge_accounts(Journal *journal, Request *request, int *ignored)
{
	bool	   *again = palloc0(sizeof(bool) * request->naccounts);
	bool	   *seen = palloc0(sizeof(bool) * request->naccounts);
	int		   *order = sort_accounts(request);

	*ignored = 0;
	for (int i = 0; i < request->outcome.nerrors; i++)
	{
		const AccountError *error = &request->outcome.errors[i];
		int			position = find_account(request, order, from_utf8(error->account));
		Member	   *member;

		if (position < 0 || seen[position])
		{
			(*ignored)++;
			continue;
		}
		seen[position] = true;
		member = member_of(request, position);
		if (policy_retry_account(error->code, request->account_tries + 1))
		{
			again[position] = true;
			member->retried++;
			continue;
		}
		member->failed++;
		add_error(journal, request, member, request->accounts[position], true,
				  error->code, error->info, response_account_class(error->code));
	}
	return again;
}

/*
 * The accounts that are to be tried again go on in a request of their own,
 * unless all of them expire before.
 */
static void
try_again(Journal *journal, Request *request, const bool *again)
{
	Request    *child = make_child(journal, request, again);
	TimestampTz due = request->ended_at + request->step.delay;

	child->account_tries++;
	add_child(journal, request, child, false,
			  request_all_expired(child, due) ? expired_state(child) : STATE_RETRY, due);
}

/* Accepted, but some accounts were listed. */
static void
finish_partial(Journal *journal, Request *request)
{
	int			ignored;
	bool	   *again = judge_accounts(journal, request, &ignored);
	int			nagain = 0;

	change_request(journal, request, STATE_DONE, 0);
	for (int i = 0; i < request->nmembers; i++)
	{
		Member	   *member = &request->members[i];

		nagain += member->retried;
		member->state = member->failed == member->accounts ? STATE_FAILED :
			member->failed > 0 ? STATE_PARTIAL : STATE_SENT;
		count_member(request, member);
		add_member_row(&journal->changed_results, request->id, member,
					   request->maybe_duplicate, request->ended_at);
	}
	if (nagain > 0)
		try_again(journal, request, again);
	if (ignored > 0)
		ereport(LOG,
				(errmsg("timpush: answer to request %lld listed %d accounts that are not in it or are listed twice",
						(long long) request->id, ignored)));
}

/* ------------------------------------------------------------------------
 * Entering outcomes
 * ------------------------------------------------------------------------
 */

/*
 * What happens nearly always: accepted whole.  Such requests are written by
 * a statement of their own, which changes no more than it must.
 */
static void
finish_sent(Journal *journal, Request *request)
{
	journal->sent = lappend(journal->sent, request);
	journal->sent_members += request->nmembers;
	stats_add(&request->server, STATS_ACCEPTED, request->naccounts);
	if (request->maybe_duplicate)
		stats_add(&request->server, STATS_MAYBE_DUPLICATE, request->naccounts);
}

/* No attempt is planned that would come after the last expiry. */
static void
plan_retry(Journal *journal, Request *request)
{
	TimestampTz next = request->ended_at + request->step.delay;

	if (request_all_expired(request, next))
	{
		const char *state = expired_state(request);

		finish_request(journal, request, state, state);
		return;
	}
	change_request(journal, request, STATE_RETRY, next);
	change_members(journal, request, STATE_RETRY, 0);
}

void
journal_outcome(Journal *journal, Request *request)
{
	const Step *step = &request->step;

	/* recording may be tried again after an error */
	for (int i = 0; i < request->nmembers; i++)
		request->members[i].failed = request->members[i].retried = 0;
	switch (step->kind)
	{
		case STEP_DONE:
			if (request->outcome.nerrors > 0)
				finish_partial(journal, request);
			else
				finish_sent(journal, request);
			break;
		case STEP_ACCEPT:
			finish_request(journal, request, STATE_DONE, STATE_SENT);
			break;
		case STEP_RETRY:
			plan_retry(journal, request);
			break;
		case STEP_SPLIT:
		case STEP_SHRINK:
			split_request(journal, request);
			break;
		case STEP_FAIL:
			fail_request(journal, request);
			break;
		case STEP_UNKNOWN:
			finish_request(journal, request, STATE_UNKNOWN, STATE_UNKNOWN);
			break;
	}
}

void
journal_resend(Journal *journal, Request *request, uint64 random_key)
{
	Columns		c;

	if (request->in_doubt)
	{
		request->resends++;
		request->resent = true;
		request->was_marked = request->maybe_duplicate;
		request->maybe_duplicate = true;
	}
	else
		request->msg_random = draw_msg_random(journal, random_key);

	columns_begin(&c);
	put(&c, REQUEST_ID, Int64GetDatum(request->id));
	put(&c, REQUEST_MSG_RANDOM, Int64GetDatum((int64) request->msg_random));
	put(&c, REQUEST_RESENDS, Int32GetDatum(request->resends));
	put(&c, REQUEST_MAYBE_DUPLICATE, BoolGetDatum(request->maybe_duplicate));
	rowset_add(&journal->changed_requests, c.values, c.nulls);
	change_members(journal, request, STATE_SENDING, 0);
}

void
journal_drop(Journal *journal, Request *request, const bool *leaving,
			 const char *state, TimestampTz now)
{
	int			nleaving = 0;

	request->ended_at = now;
	for (int i = 0; i < request->nmembers; i++)
		nleaving += leaving[i];
	if (nleaving == request->nmembers)
	{
		finish_request(journal, request, state, state);
		return;
	}
	change_request(journal, request, STATE_SPLIT, 0);
	split_by_member(journal, request, leaving, state, STATE_RETRY,
					request->next_attempt_at);
}

void
journal_cut(Journal *journal, Request *request, int first, int size,
			TimestampTz now)
{
	request->ended_at = now;
	change_request(journal, request, STATE_SPLIT, 0);
	split_by_account(journal, request, first, size, request->next_attempt_at);
}

void
journal_drop_expired(Journal *journal, Request *request, TimestampTz now)
{
	bool	   *expired = palloc(sizeof(bool) * request->nmembers);

	for (int i = 0; i < request->nmembers; i++)
		expired[i] = request->members[i].expires_at <= now;
	journal_drop(journal, request, expired, expired_state(request), now);
}
