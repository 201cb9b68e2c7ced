/*-------------------------------------------------------------------------
 *
 * test_compose.c
 *	  Which pushes share a call: thousands of random queues against a plain
 *	  model of the rules, and the cases at the edges.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include <limits.h>
#include <math.h>
#include <time.h>

#include "compose.h"
#include "palloc.h"
#include "tap.h"

#define MAX_ROWS	50

/* Accounts are known by number here; more than any push of a queue has. */
#define MAX_NUMBER	1700

static uint64_t seed;

/* A number within [0,n), the same in every run (xorshift64*). */
static int
random_below(int n)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return (int) (((seed * UINT64_C(2685821657736338717)) >> 33) % n);
}

static Span
bytes(const char *data, size_t len)
{
	Span		span = {NULL, len};

	/* a block of just this length, so that a read beyond it is seen */
	if (data != NULL)
		span.data = memcpy(palloc(len), data, len);
	return span;
}

static Span
text_of(const char *text)
{
	return bytes(text, text == NULL ? 0 : strlen(text));
}

static Span
account(int number)
{
	char		name[20];

	/* names that begin with each other, without a NUL between them */
	snprintf(name, sizeof(name), "u%d", number);
	return text_of(name);
}

static ComposeRow
row_of(int64_t id, const Content *content, int priority, int64_t send_at,
	   int naccounts, const Span *accounts)
{
	ComposeRow	row = {
		.id = id,
		.content_key = content_hash(content),
		.content = *content,
		.priority = priority,
		.send_at = send_at,
		.naccounts = naccounts,
		.accounts = accounts,
		.taken = -1
	};

	return row;
}

static Content
content_of(const char *title)
{
	Content		content = {
		.server = text_of("s"),
		.from = text_of("admin"),
		.title = text_of(title),
		.descr = text_of("d")
	};

	return content;
}

/* ------------------------------------------------------------------------
 * Queues
 * ------------------------------------------------------------------------
 */

/* A waiting push, as the model sees it. */
typedef struct ModelRow
{
	int			content;		/* equal numbers, equal contents */
	int			numbers[MAX_NUMBER];	/* of its accounts */
	bool		seen;			/* by the open request */
} ModelRow;

/* A part of a composed request, whoever composed it. */
typedef struct Piece
{
	int			request;
	int64_t		id;
	int			first;			/* into the accounts that the push began with */
	int			count;
} Piece;

typedef struct Plan
{
	int			nrequests;
	int			npieces;
	Piece		pieces[MAX_ROWS * MAX_NUMBER];
} Plan;

static ComposeRow rows[MAX_ROWS];
static ModelRow model[MAX_ROWS];
static int	nrows;
static int	max_accounts;
static Plan expected;
static Plan got;

/* How the keys of the contents fall out. */
typedef enum Keys
{
	KEYS_HASHED,
	KEYS_PAIRED,				/* every two contents collide */
	KEYS_COLLIDE				/* all contents do */
} Keys;

/*
 * The contents of a queue, each other than all before: next to each other,
 * with null and empty texts, and bytes that move from one field to the next.
 */
static Content
numbered_content(int number)
{
	static const struct
	{
		const char *from;
		const char *title;
		const char *descr;
		const char *data_id;
		const char *extra;
		OnUnknown	on_unknown;
	}			contents[] = {
		{"a", "t", "d", NULL, NULL, ON_UNKNOWN_RETRY},
		{"a", "t", "d", "", NULL, ON_UNKNOWN_RETRY},
		{"a", "t", "d", NULL, "", ON_UNKNOWN_RETRY},
		{"a", "t", "d", NULL, NULL, ON_UNKNOWN_HOLD},
		{"a", "td", "", NULL, NULL, ON_UNKNOWN_RETRY},
		{"a", "", "td", NULL, NULL, ON_UNKNOWN_RETRY},
	};
	Content		content = {
		.server = text_of("s"),
		.from = text_of(contents[number].from),
		.title = text_of(contents[number].title),
		.descr = text_of(contents[number].descr),
		.data_id = text_of(contents[number].data_id),
		.extra = text_of(contents[number].extra),
		.on_unknown = contents[number].on_unknown
	};

	return content;
}

static int
random_size(void)
{
	switch (random_below(8))
	{
		case 0:
			return random_below(3 * max_accounts + 1);
		case 1:
			return max_accounts * (1 + random_below(3));
		case 2:
			return max_accounts + 1;
		case 3:
		case 4:
			return 1;
		default:
			return random_below(max_accounts + 1);
	}
}

/* Accounts of a push, each once, of the first "pool" numbers. */
static const Span *
random_accounts(ModelRow *row, int n, int pool)
{
	Span	   *accounts = palloc(sizeof(Span) * n);
	int		   *deck = palloc(sizeof(int) * pool);

	for (int i = 0; i < pool; i++)
		deck[i] = i;
	for (int i = 0; i < n; i++)
	{
		int			drawn = i + random_below(pool - i);

		row->numbers[i] = deck[drawn];
		deck[drawn] = deck[i];
		accounts[i] = account(row->numbers[i]);
	}
	pfree(deck);
	return accounts;
}

/* A queue like no other, but the same for the same number. */
static void
make_queue(int number)
{
	static const int sizes[] = {1, 2, 3, 4, 7, 10, 25};
	int			ncontents;
	int			npriorities;
	int			ntimes;
	int			pool;
	Keys		keys;

	seed = (uint64_t) number + 1;
	for (int i = 0; i < 10; i++)
		random_below(1);
	max_accounts = number % 200 == 199 ? 500 :
		sizes[random_below(lengthof(sizes))];
	nrows = random_below(max_accounts == 500 ? 15 : MAX_ROWS + 1);
	ncontents = 1 + random_below(6);
	npriorities = 1 + random_below(10);
	ntimes = 1 + random_below(10);
	keys = (Keys) random_below(3);
	/* few accounts, so that pushes share many, or many, so that few do */
	pool = 3 * max_accounts + 1 + random_below(4) * (random_below(50) + 1);

	for (int i = 0; i < nrows; i++)
	{
		int			which = random_below(ncontents);
		Content		content = numbered_content(which);
		int			n = random_size();

		/* numbers out of order, each once */
		int64_t		id = (i * 37 + number) % 53 + (i == 0 ? 1000 : 0);

		rows[i] = row_of(id, &content, random_below(npriorities),
						 INT64_C(1780000000000000) + random_below(ntimes), n,
						 random_accounts(&model[i], n, pool));
		if (keys != KEYS_HASHED)
			rows[i].content_key = keys == KEYS_COLLIDE ? -1 : which / 2;
		model[i].content = which;
	}
}

static void
shuffle_rows(void)
{
	for (int i = nrows - 1; i > 0; i--)
	{
		int			j = random_below(i + 1);
		ComposeRow	row = rows[i];
		ModelRow	other = model[i];

		rows[i] = rows[j];
		rows[j] = row;
		model[i] = model[j];
		model[j] = other;
	}
}

/* ------------------------------------------------------------------------
 * The model: the rules, one after the other, without any haste
 * ------------------------------------------------------------------------
 */

static bool
is_older(const ComposeRow *a, const ComposeRow *b)
{
	return a->send_at < b->send_at || (a->send_at == b->send_at && a->id < b->id);
}

/* The first by priority and age that has accounts left, or -1. */
static int
find_head(void)
{
	int			head = -1;

	for (int i = 0; i < nrows; i++)
	{
		if (rows[i].taken < rows[i].naccounts &&
			(head < 0 || rows[i].priority > rows[head].priority ||
			 (rows[i].priority == rows[head].priority &&
			  is_older(&rows[i], &rows[head]))))
			head = i;
	}
	return head;
}

/* The oldest of the head's content that the request has not yet seen, or -1. */
static int
find_rider(int head)
{
	int			rider = -1;

	for (int i = 0; i < nrows; i++)
	{
		if (!model[i].seen && model[i].content == model[head].content &&
			(rider < 0 || is_older(&rows[i], &rows[rider])))
			rider = i;
	}
	return rider;
}

/* How many accounts of the push go into a request with so much room. */
static int
count_fitting(int index, int room, const bool *used)
{
	const ComposeRow *row = &rows[index];
	int			left = row->naccounts - row->taken;
	int			n = 0;

	while (n < left && n < room && !used[model[index].numbers[row->taken + n]])
		n++;
	/* all of it or nothing, unless it would not even fit alone */
	return n < left && left <= max_accounts ? 0 : n;
}

static void
add_piece(Plan *plan, int64_t id, int first, int count)
{
	Piece	   *piece = &plan->pieces[plan->npieces++];

	piece->request = plan->nrequests;
	piece->id = id;
	piece->first = first;
	piece->count = count;
}

static void
compose_by_model(Plan *plan, int max_requests)
{
	int			head;

	plan->nrequests = plan->npieces = 0;
	for (int i = 0; i < nrows; i++)
		rows[i].taken = 0;
	while (plan->nrequests < max_requests && (head = find_head()) >= 0)
	{
		bool		used[MAX_NUMBER] = {false};
		int			room = max_accounts;

		for (int i = 0; i < nrows; i++)
			model[i].seen = false;
		for (int next = head; next >= 0; next = find_rider(head))
		{
			int			n = count_fitting(next, room, used);

			model[next].seen = true;
			if (n == 0)
				continue;
			for (int i = 0; i < n; i++)
				used[model[next].numbers[rows[next].taken + i]] = true;
			add_piece(plan, rows[next].id, rows[next].taken, n);
			rows[next].taken += n;
			room -= n;
		}
		plan->nrequests++;
	}
}

/* ------------------------------------------------------------------------
 * Comparing
 * ------------------------------------------------------------------------
 */

/* Compose; the place for the requests is just as large as it must be. */
static int
run_compose(ComposeRow *some, int n, int max_requests, int max,
			ComposedRequest **requests)
{
	*requests = palloc(sizeof(ComposedRequest) * max_requests);
	return compose(some, n, max_requests, max, *requests);
}

/* Append what was composed of the rows; they began "handed" accounts ago. */
static void
add_requests(Plan *plan, const ComposedRequest *requests, int n,
			 const int *handed)
{
	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < requests[i].nparts; j++)
		{
			const ComposePart *part = &requests[i].parts[j];

			add_piece(plan, rows[part->row].id,
					  part->first + (handed != NULL ? handed[part->row] : 0),
					  part->count);
		}
		plan->nrequests++;
	}
}

static bool
plans_equal(const Plan *a, const Plan *b)
{
	if (a->nrequests != b->nrequests || a->npieces != b->npieces)
		return false;
	for (int i = 0; i < a->npieces; i++)
	{
		const Piece *x = &a->pieces[i];
		const Piece *y = &b->pieces[i];

		if (x->request != y->request || x->id != y->id ||
			x->first != y->first || x->count != y->count)
			return false;
	}
	return true;
}

/* What is broken of the promises of compose.h, without asking the model. */
typedef enum Promise
{
	WITHIN_SIZE,
	SAME_CONTENT,
	ACCOUNT_ONCE,
	RIDERS_BY_AGE,
	NOT_TORN,
	IN_ORDER,
	SUMS_MATCH,
	WITHIN_REQUESTS,
	NPROMISES
} Promise;

static const char *const promises[NPROMISES] = {
	"a request has from one account to the most that it may have",
	"contents in a request are equal, byte for byte",
	"no account stands twice in a request",
	"riders are in order of age",
	"what fits into a request is not torn",
	"slices follow each other without a gap",
	"the sums match",
	"no more requests than asked for, and than the large pushes need",
};

static void
check_promises(const ComposedRequest *requests, int n, int max_requests,
			   int *broken)
{
	int			handed[MAX_ROWS] = {0};
	int			needed = 0;

	for (int i = 0; i < n; i++)
	{
		const ComposedRequest *request = &requests[i];
		bool		used[MAX_NUMBER] = {false};
		int			sum = 0;

		for (int j = 0; j < request->nparts; j++)
		{
			const ComposePart *part = &request->parts[j];
			const ComposeRow *row = &rows[part->row];
			int			left = row->naccounts - handed[part->row];

			if (!content_equal(&row->content,
							   &rows[request->parts[0].row].content))
				broken[SAME_CONTENT]++;
			if (j > 1 && !is_older(&rows[request->parts[j - 1].row], row))
				broken[RIDERS_BY_AGE]++;
			if (part->count < left && left <= max_accounts)
				broken[NOT_TORN]++;
			if (part->first != handed[part->row] || part->count < 1 ||
				part->count > left)
				broken[IN_ORDER]++;
			for (int k = part->first; k < part->first + part->count; k++)
			{
				if (used[model[part->row].numbers[k]])
					broken[ACCOUNT_ONCE]++;
				used[model[part->row].numbers[k]] = true;
			}
			handed[part->row] += part->count;
			sum += part->count;
		}
		if (sum != request->naccounts)
			broken[SUMS_MATCH]++;
		if (sum < 1 || sum > max_accounts)
			broken[WITHIN_SIZE]++;
	}
	for (int i = 0; i < nrows; i++)
	{
		needed += (rows[i].naccounts + max_accounts - 1) / max_accounts;
		if (rows[i].taken != handed[i])
			broken[SUMS_MATCH]++;
	}
	if (n > max_requests || n > needed)
		broken[WITHIN_REQUESTS]++;
}

/* ------------------------------------------------------------------------
 * Random queues
 * ------------------------------------------------------------------------
 */

static void
check_model(int nqueues)
{
	int			broken[NPROMISES] = {0};
	int			bad = 0;
	int			largest = 0;

	for (int number = 0; number < nqueues; number++)
	{
		ComposedRequest *requests;
		int			max_requests;
		int			taken[MAX_ROWS];
		int			n;

		make_queue(number);
		max_requests = number % 2 == 0 ? 4 * MAX_ROWS : random_below(12);
		compose_by_model(&expected, max_requests);
		for (int i = 0; i < nrows; i++)
			taken[i] = rows[i].taken;
		n = run_compose(rows, nrows, max_requests, max_accounts, &requests);
		got.nrequests = got.npieces = 0;
		add_requests(&got, requests, n, NULL);
		largest = Max(largest, n);
		for (int i = 0; i < nrows; i++)
		{
			if (rows[i].taken != taken[i])
				broken[SUMS_MATCH]++;
		}
		check_promises(requests, n, max_requests, broken);
		if (!plans_equal(&got, &expected) && bad++ == 0)
			printf("# first in queue %d\n", number);
		context_reset();
	}
	ok(bad == 0, "%d queues: composed as the model composes (%d are not)",
	   nqueues, bad);
	ok(largest > 50, "among them some of many requests (%d)", largest);
	for (int i = 0; i < NPROMISES; i++)
		ok(broken[i] == 0, "%d queues: %s (%d times not)", nqueues,
		   promises[i], broken[i]);
}

/*
 * Hand a queue out bit by bit, as a worker does: what was taken leaves, what
 * has nothing left too.  It must come to the same as all at once.
 */
static void
check_rounds(int nqueues)
{
	int			bad = 0;
	int			lost = 0;
	int			stuck = 0;

	for (int number = 0; number < nqueues; number++)
	{
		int			handed[MAX_ROWS] = {0};
		int			sum = 0;

		make_queue(number);
		compose_by_model(&expected, INT_MAX);
		for (int i = 0; i < nrows; i++)
			sum += rows[i].naccounts;
		got.nrequests = got.npieces = 0;
		while (nrows > 0)
		{
			ComposedRequest *requests;
			int			n = run_compose(rows, nrows, 1 + random_below(5),
										max_accounts, &requests);
			int			kept = 0;

			add_requests(&got, requests, n, handed);
			for (int i = 0; i < nrows; i++)
			{
				sum -= rows[i].taken;
				if (rows[i].taken == rows[i].naccounts)
					continue;
				rows[kept] = rows[i];
				rows[kept].naccounts -= rows[i].taken;
				rows[kept].accounts += rows[i].taken;
				handed[kept++] = handed[i] + rows[i].taken;
			}
			if (n == 0 && kept > 0)
			{
				stuck++;
				break;
			}
			nrows = kept;
		}
		lost += sum != 0;
		bad += !plans_equal(&got, &expected);
		context_reset();
	}
	is_int(stuck, 0, "handed out in rounds: it ends");
	is_int(lost, 0, "handed out in rounds: no account lost, none twice");
	is_int(bad, 0, "handed out in rounds: as if at once");
}

static void
check_order(int nqueues)
{
	int			bad = 0;

	for (int number = 0; number < nqueues; number++)
	{
		ComposedRequest *requests;
		int			n;

		make_queue(number);
		n = run_compose(rows, nrows, 4 * MAX_ROWS, max_accounts, &requests);
		expected.nrequests = expected.npieces = 0;
		add_requests(&expected, requests, n, NULL);
		shuffle_rows();
		n = run_compose(rows, nrows, 4 * MAX_ROWS, max_accounts, &requests);
		got.nrequests = got.npieces = 0;
		add_requests(&got, requests, n, NULL);
		bad += !plans_equal(&got, &expected);
		context_reset();
	}
	is_int(bad, 0, "the order in which rows come does not matter");
}

/* ------------------------------------------------------------------------
 * Contents
 * ------------------------------------------------------------------------
 */

/* Two contents merge, or do not, also if their keys are the same. */
static void
check_pair(const Content *a, const Content *b, bool equal, const char *name)
{
	Span		accounts[2] = {account(1), account(2)};
	ComposedRequest *requests;
	ComposeRow	pair[2] = {
		row_of(1, a, 4, 1, 1, &accounts[0]),
		row_of(2, b, 4, 2, 1, &accounts[1])
	};
	int			n;

	ok(content_equal(a, b) == equal && content_equal(b, a) == equal,
	   "%s: %s", name, equal ? "equal" : "not equal");
	/* no collision is known among those here */
	ok((content_hash(a) == content_hash(b)) == equal, "%s: so are the keys",
	   name);
	n = run_compose(pair, 2, 2, 500, &requests);
	ok(n == (equal ? 1 : 2), "%s: %s", name,
	   equal ? "one request" : "two requests");
	pair[1].content_key = pair[0].content_key;
	n = run_compose(pair, 2, 2, 500, &requests);
	ok(n == (equal ? 1 : 2), "%s, with one key: the same", name);
}

static void
check_contents(void)
{
	static const struct
	{
		const char *name;
		size_t		offset;
	}			fields[] = {
		{"server", offsetof(Content, server)},
		{"from", offsetof(Content, from)},
		{"title", offsetof(Content, title)},
		{"descr", offsetof(Content, descr)},
		{"data_id", offsetof(Content, data_id)},
		{"extra", offsetof(Content, extra)},
	};
	Span		null = {NULL, 0};
	Content		a = content_of("t");
	Content		b = content_of("t");
	char		name[100];

	check_pair(&a, &b, true, "same bytes elsewhere");
	for (int i = 0; i < (int) lengthof(fields); i++)
	{
		struct
		{
			const char *name;
			Span		a;
			Span		b;
		}			pairs[] = {
			{"another byte", text_of("abc"), text_of("abd")},
			{"another case", text_of("abc"), text_of("Abc")},
			{"longer", text_of("abc"), text_of("abcd")},
			{"a space more", text_of("abc"), text_of("abc ")},
			{"null and empty", null, text_of("")},
			{"null and text", null, text_of("null")},
			{"other after a NUL", bytes("a\0b", 3), bytes("a\0c", 3)},
		};

		for (int j = 0; j < (int) lengthof(pairs); j++)
		{
			a = b = content_of("t");
			*(Span *) ((char *) &a + fields[i].offset) = pairs[j].a;
			*(Span *) ((char *) &b + fields[i].offset) = pairs[j].b;
			snprintf(name, sizeof(name), "%s: %s", fields[i].name,
					 pairs[j].name);
			check_pair(&a, &b, false, name);
		}
		/* the same, one field on */
		if (i > 0)
		{
			a = b = content_of("t");
			*(Span *) ((char *) &a + fields[i - 1].offset) = text_of("xy");
			*(Span *) ((char *) &a + fields[i].offset) = text_of("z");
			*(Span *) ((char *) &b + fields[i - 1].offset) = text_of("x");
			*(Span *) ((char *) &b + fields[i].offset) = text_of("yz");
			snprintf(name, sizeof(name), "a byte moved into %s", fields[i].name);
			check_pair(&a, &b, false, name);
			*(Span *) ((char *) &a + fields[i - 1].offset) = text_of("xyz");
			*(Span *) ((char *) &a + fields[i].offset) = null;
			*(Span *) ((char *) &b + fields[i - 1].offset) = null;
			*(Span *) ((char *) &b + fields[i].offset) = text_of("xyz");
			snprintf(name, sizeof(name), "all moved into %s", fields[i].name);
			check_pair(&a, &b, false, name);
		}
	}
	for (int i = ON_UNKNOWN_RETRY; i <= ON_UNKNOWN_ACCEPT; i++)
	{
		for (int j = ON_UNKNOWN_RETRY; j <= ON_UNKNOWN_ACCEPT; j++)
		{
			a = b = content_of("t");
			a.on_unknown = i;
			b.on_unknown = j;
			snprintf(name, sizeof(name), "on_unknown %d and %d", i, j);
			check_pair(&a, &b, i == j, name);
		}
	}
	context_reset();
}

/* ------------------------------------------------------------------------
 * Edges
 * ------------------------------------------------------------------------
 */

/* Rows of one content, or each of its own, whose accounts are given by number. */
static ComposeRow *
many_rows(int n, bool one_content, bool one_account)
{
	ComposeRow *result = palloc(sizeof(ComposeRow) * n);

	for (int i = 0; i < n; i++)
	{
		char		title[20];
		Content		content;
		Span	   *accounts = palloc(sizeof(Span));

		snprintf(title, sizeof(title), "%d", one_content ? 0 : i);
		content = content_of(title);
		accounts[0] = account(one_account ? 0 : i);
		result[i] = row_of(n - i, &content, 4, 1, 1, accounts);
	}
	return result;
}

static void
check_nothing(void)
{
	ComposedRequest *requests;
	ComposeRow *some = many_rows(3, true, false);

	is_int(run_compose(NULL, 0, 10, 500, &requests), 0, "no rows: no request");
	is_int(run_compose(some, 3, 0, 500, &requests), 0,
		   "no request asked for: none");
	ok(some[0].taken == 0 && some[1].taken == 0 && some[2].taken == 0,
	   "no request asked for: nothing taken");
	some[0].naccounts = some[1].naccounts = some[2].naccounts = 0;
	is_int(run_compose(some, 3, 10, 500, &requests), 0,
		   "no accounts: no request");
	ok(some[0].taken == 0 && some[1].taken == 0 && some[2].taken == 0,
	   "no accounts: nothing taken");
	context_reset();
}

static void
check_sizes(void)
{
	ComposedRequest *requests;
	int			in_order = 0;

	is_int(run_compose(many_rows(501, true, false), 501, 600, 1, &requests),
		   501, "size 1: a request for each account");
	for (int i = 0; i < 501; i++)
		in_order += requests[i].nparts == 1 &&
			requests[i].parts[0].row == 500 - i;
	is_int(in_order, 501, "size 1: the oldest first");

	is_int(run_compose(many_rows(500, true, false), 500, 600, 500, &requests),
		   1, "size 500: 500 fit");
	ok(requests[0].nparts == 500 && requests[0].naccounts == 500,
	   "size 500: with 500 parts");
	is_int(run_compose(many_rows(501, true, false), 501, 600, 500, &requests),
		   2, "size 500: 501 do not");
	ok(requests[0].naccounts == 500 && requests[1].naccounts == 1 &&
	   requests[1].parts[0].row == 0, "size 500: the last one goes alone");
	is_int(run_compose(many_rows(5, true, true), 5, 600, 500, &requests), 5,
		   "one account, five pushes: five requests");
	context_reset();
}

static void
check_large(int naccounts)
{
	Span	   *accounts = palloc(sizeof(Span) * naccounts);
	Content		content = content_of("t");
	ComposedRequest *requests;
	ComposeRow	row;
	int			needed = (naccounts + 499) / 500;
	int			next = 0;
	int			n;

	for (int i = 0; i < naccounts; i++)
		accounts[i] = account(i);
	row = row_of(1, &content, 4, 1, naccounts, accounts);

	is_int(run_compose(&row, 1, 7, 500, &requests), 7,
		   "a large push: as many requests as asked for");
	is_int(row.taken, 3500, "a large push: their accounts are taken");
	n = run_compose(&row, 1, 1000, 500, &requests);
	is_int(n, needed, "a large push: as many requests as it needs");
	is_int(row.taken, naccounts, "a large push: all of it is taken");
	for (int i = 0; i < n; i++)
	{
		const ComposedRequest *request = &requests[i];

		if (request->nparts != 1 || request->parts[0].row != 0 ||
			request->parts[0].first != next ||
			request->parts[0].count != Min(500, naccounts - next))
			break;
		next += request->parts[0].count;
	}
	is_int(next, naccounts, "a large push: slice after slice");
	context_reset();
}

/* A newer push of a higher priority picks the content; the old ride along. */
static void
check_priorities(void)
{
	Content		one = content_of("one");
	Content		two = content_of("two");
	Span		accounts[] = {
		account(0), account(1), account(2), account(3), account(4), account(5)
	};
	ComposeRow	queue[] = {
		row_of(1, &one, 4, 10, 1, &accounts[0]),
		row_of(2, &two, 0, 20, 1, &accounts[1]),
		row_of(3, &two, 5, 50, 1, &accounts[2]),
		row_of(4, &two, 9, 60, 1, &accounts[3]),
		row_of(5, &one, 9, 61, 1, &accounts[4]),
		row_of(6, &two, 5, 20, 1, &accounts[5]),
	};
	ComposedRequest *requests;

	is_int(run_compose(queue, lengthof(queue), 10, 3, &requests), 3,
		   "priorities: three requests");
	ok(requests[0].nparts == 3 && requests[0].parts[0].row == 3 &&
	   requests[0].parts[1].row == 1 && requests[0].parts[2].row == 5,
	   "priorities: the head has the highest, riders go by age alone");
	ok(requests[1].nparts == 2 && requests[1].parts[0].row == 4 &&
	   requests[1].parts[1].row == 0, "priorities: then the next head");
	ok(requests[2].nparts == 1 && requests[2].parts[0].row == 2,
	   "priorities: then what found no room");
	context_reset();
}

/* Where a large push meets one of its accounts. */
static void
check_conflicts(void)
{
	Content		content = content_of("t");
	Span	   *accounts = palloc(sizeof(Span) * 12);
	ComposedRequest *requests;
	ComposeRow	queue[2];

	for (int i = 0; i < 12; i++)
		accounts[i] = account(i);

	/* accounts 3, and 0 .. 11, five at a time */
	queue[0] = row_of(1, &content, 4, 1, 1, &accounts[3]);
	queue[1] = row_of(2, &content, 4, 2, 12, accounts);
	is_int(run_compose(queue, 2, 10, 5, &requests), 3,
		   "a slice meets an account: three requests");
	ok(requests[0].nparts == 2 && requests[0].parts[1].first == 0 &&
	   requests[0].parts[1].count == 3,
	   "a slice meets an account: it ends before");
	ok(requests[1].parts[0].first == 3 && requests[1].parts[0].count == 5 &&
	   requests[2].parts[0].first == 8 && requests[2].parts[0].count == 4,
	   "a slice meets an account: it goes on there");

	/* the first account already */
	queue[0] = row_of(1, &content, 4, 1, 1, &accounts[0]);
	is_int(run_compose(queue, 2, 1, 5, &requests), 1,
		   "a slice begins with the account: a request");
	ok(requests[0].nparts == 1 && queue[1].taken == 0,
	   "a slice begins with the account: it waits");

	/* accounts 4, and 0 .. 4: what fits is not torn for that */
	queue[0] = row_of(1, &content, 4, 1, 1, &accounts[4]);
	queue[1] = row_of(2, &content, 4, 2, 4, &accounts[1]);
	is_int(run_compose(queue, 2, 10, 5, &requests), 2,
		   "a push meets an account: two requests");
	ok(requests[0].nparts == 1 && requests[1].naccounts == 4,
	   "a push meets an account: all of it waits");
	context_reset();
}

/* Seconds of processor time for a queue; what it should take is far less. */
static double
time_of(ComposeRow *some, int n, int nrequests)
{
	ComposedRequest *requests;
	clock_t		start = clock();

	if (run_compose(some, n, n, 500, &requests) != nrequests)
		return HUGE_VAL;
	return (double) (clock() - start) / CLOCKS_PER_SEC;
}

static void
check_speed(void)
{
	double		seconds;

	seconds = time_of(many_rows(5000, true, false), 5000, 10);
	ok(seconds < 0.5, "5,000 rows of one content: fast");
	printf("# %.3f s\n", seconds);
	seconds = time_of(many_rows(5000, false, false), 5000, 5000);
	ok(seconds < 0.5, "5,000 rows of as many contents: fast");
	printf("# %.3f s\n", seconds);
	seconds = time_of(many_rows(100000, true, false), 100000, 200);
	ok(seconds < 5, "100,000 rows of one content: fast");
	printf("# %.3f s\n", seconds);
	/* each request walks all rows, but only as many rows as are loaded */
	seconds = time_of(many_rows(5000, true, true), 5000, 5000);
	ok(seconds < 20, "5,000 pushes to one account: fast enough");
	printf("# %.3f s\n", seconds);
	context_reset();
}

int
main(void)
{
	check_model(6000);
	check_rounds(2000);
	check_order(2000);
	check_contents();
	check_nothing();
	check_sizes();
	check_large(100000);
	check_large(100001);
	check_priorities();
	check_conflicts();
	check_speed();
	return done_testing();
}
