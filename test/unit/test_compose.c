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

#define SECOND		INT64_C(1000000)

/* So far apart are the times that those who wait are given. */
#define TURN		INT64_C(1100000)

/* Some time in the year 2026, in microseconds, as the worker's clock has it. */
#define START		INT64_C(1780000000000000)

#define MAX_ROWS	50

/* Accounts are known by number here; more than any push of a queue has. */
#define MAX_NUMBER	1700

/* And contents, of which there are so many, as are their keys. */
#define NCONTENTS	6

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

/* The accounts with the numbers from "first" on. */
static const Span *
accounts_from(int first, int n)
{
	Span	   *accounts = palloc(sizeof(Span) * n);

	for (int i = 0; i < n; i++)
		accounts[i] = account(first + i);
	return accounts;
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
		.nloaded = naccounts,
		.accounts = accounts,
		.taken = -1,
		.put_off = -1
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

/* A waiting push, until all of it has been handed out. */
typedef struct Push
{
	ComposeRow	row;			/* with all the accounts that it began with */
	int			content;		/* equal numbers, equal contents */
	int			key;			/* equal numbers, equal content keys */
	int			numbers[MAX_NUMBER];	/* of its accounts */
	int			handed;			/* how many of them are out */
} Push;

static Push pushes[MAX_ROWS];
static int	npushes;
static int	max_accounts;

/* What compose() is given of them. */
static ComposeRow rows[MAX_ROWS];
static Push *row_push[MAX_ROWS];
static int	nrows;

/* A part of a composed request, whoever composed it. */
typedef struct Piece
{
	int			request;
	int			push;
	int			first;			/* into the accounts that the push began with */
	int			count;
} Piece;

typedef struct Plan
{
	int			nrequests;
	int			npieces;
	Piece		pieces[MAX_ROWS * MAX_NUMBER];
	int			taken[MAX_ROWS];	/* by push */
	int64_t		put_off[MAX_ROWS];
} Plan;

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
	}			contents[NCONTENTS] = {
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
random_accounts(Push *push, int n, int pool)
{
	Span	   *accounts = palloc(sizeof(Span) * n);
	int		   *deck = palloc(sizeof(int) * pool);

	for (int i = 0; i < pool; i++)
		deck[i] = i;
	for (int i = 0; i < n; i++)
	{
		int			drawn = i + random_below(pool - i);

		push->numbers[i] = deck[drawn];
		deck[drawn] = deck[i];
		accounts[i] = account(push->numbers[i]);
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
	npushes = random_below(max_accounts == 500 ? 15 : MAX_ROWS + 1);
	ncontents = 1 + random_below(NCONTENTS);
	npriorities = 1 + random_below(10);
	ntimes = 1 + random_below(10);
	keys = (Keys) random_below(3);
	/* few accounts, so that pushes share many, or many, so that few do */
	pool = 3 * max_accounts + 1;
	if (random_below(4) != 0)
		pool += random_below(150);

	for (int i = 0; i < npushes; i++)
	{
		Push	   *push = &pushes[i];
		int			which = random_below(ncontents);
		Content		content = numbered_content(which);
		int			n = random_size();
		int			priority = random_below(npriorities);
		int			age = random_below(ntimes);

		/* numbers out of order, each once */
		int64_t		id = (i * 37 + number) % 53 + (i == 0 ? 1000 : 0);

		push->row = row_of(id, &content, priority, START - age, n,
						   random_accounts(push, n, pool));
		push->content = which;
		push->key = keys == KEYS_HASHED ? which : keys == KEYS_PAIRED ? which / 2 : 0;
		if (keys != KEYS_HASHED)
			push->row.content_key = keys == KEYS_COLLIDE ? -1 : push->key;
		push->handed = 0;
	}
}

/* Load what is due of the pushes; of some, not all accounts or even none. */
static void
load_queue(int64_t now, bool partly)
{
	nrows = 0;
	for (int i = 0; i < npushes; i++)
	{
		Push	   *push = &pushes[i];
		ComposeRow *row = &rows[nrows];

		if (push->row.send_at > now ||
			(push->handed > 0 && push->handed >= push->row.naccounts))
			continue;
		*row = push->row;
		row->naccounts -= push->handed;
		row->accounts += push->handed;
		row->nloaded = row->naccounts;
		if (partly && random_below(5) == 0)
			row->nloaded = random_below(row->naccounts + 1);
		row_push[nrows++] = push;
	}
}

static void
shuffle_rows(void)
{
	for (int i = nrows - 1; i > 0; i--)
	{
		int			j = random_below(i + 1);
		ComposeRow	row = rows[i];
		Push	   *push = row_push[i];

		rows[i] = rows[j];
		rows[j] = row;
		row_push[i] = row_push[j];
		row_push[j] = push;
	}
}

/* ------------------------------------------------------------------------
 * What left when, as the model remembers it and as recent.c does
 * ------------------------------------------------------------------------
 */

typedef struct Known
{
	int64_t		left;			/* last time; 0: never */
	int64_t		given;			/* last time that was given to one that waits */
} Known;

/* By content key and account. */
static Known known[NCONTENTS][MAX_NUMBER];
static RecentAccounts *recent;

static void
forget_all(void)
{
	memset(known, 0, sizeof(known));
	recent = recent_create();
}

static bool
may_leave(const Known *account, int64_t now)
{
	return account->left == 0 || now - account->left >= SECOND;
}

/* A turn after the last one, who waits already included. */
static int64_t
book(Known *account, int64_t now)
{
	int64_t		at = account->left + TURN;

	if (account->given > now && account->given + TURN > at)
		at = account->given + TURN;
	account->given = at;
	return at;
}

static uint64_t
key_of(const Push *push, int i)
{
	return recent_key(push->row.content_key, push->row.accounts[i].data,
					  push->row.accounts[i].len);
}

static Known *
known_of(const Push *push, int i)
{
	return &known[push->key][push->numbers[i]];
}

/* One of the push's accounts leaves, for the model and for recent.c. */
static void
note_departure(const Push *push, int i, int64_t now)
{
	known_of(push, i)->left = now;
	recent_note(recent, key_of(push, i), now);
}

/* Some accounts have left shortly before, and others wait for it. */
static void
make_history(int64_t now)
{
	static const int ago[] = {1300000, 1000001, 1000000, 999999, 500000, 1, 0};

	for (int i = 0; i < (int) lengthof(ago); i++)
	{
		for (int j = 0; j < npushes; j++)
		{
			int			n = pushes[j].row.naccounts;
			int			which = random_below(n + 1);

			if (n == which || random_below(10) != 0)
				continue;
			note_departure(&pushes[j], which, now - ago[i]);
			for (int k = random_below(4); k > 0; k--)
			{
				book(known_of(&pushes[j], which), now - ago[i]);
				recent_reserve(recent, key_of(&pushes[j], which), now - ago[i]);
			}
		}
	}
}

/* ------------------------------------------------------------------------
 * The model: the rules, one after the other, without any haste
 * ------------------------------------------------------------------------
 */

/* What the model knows of a row while it composes. */
typedef struct ModelRow
{
	int			taken;
	int64_t		put_off;
	bool		seen;			/* by the open request */
	bool		stuck;			/* can give nothing more in this run */
} ModelRow;

static ModelRow model[MAX_ROWS];

/* How often what is rare has come up. */
typedef enum Rarity
{
	PUT_OFF_BY_THIS_RUN,
	PUT_OFF_BY_MANY,			/* accounts, that is */
	SLICE_CUT,
	SLICE_PUT_OFF,
	PARTLY_LOADED,
	STOPPED_BY_TOTAL,
	NRARITIES
} Rarity;

static int	seen[NRARITIES];

static bool
is_older(const ComposeRow *a, const ComposeRow *b)
{
	return a->send_at < b->send_at || (a->send_at == b->send_at && a->id < b->id);
}

/* The first by priority and age that has accounts left to give, or -1. */
static int
find_head(void)
{
	int			head = -1;

	for (int i = 0; i < nrows; i++)
	{
		if (model[i].stuck || model[i].taken == rows[i].naccounts)
			continue;
		if (head < 0 || rows[i].priority > rows[head].priority ||
			(rows[i].priority == rows[head].priority &&
			 is_older(&rows[i], &rows[head])))
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
		if (!model[i].seen && row_push[i]->content == row_push[head]->content &&
			(rider < 0 || is_older(&rows[i], &rows[rider])))
			rider = i;
	}
	return rider;
}

/* What the model knows of an account that the row has not given yet. */
static Known *
account_ahead(int index, int i)
{
	return known_of(row_push[index], row_push[index]->handed + model[index].taken + i);
}

/* How many of the row's accounts may leave before the first that may not. */
static int
count_leaving(int index, int n, int64_t now, bool repeat)
{
	int			leaving = 0;

	while (leaving < n && (repeat || may_leave(account_ahead(index, leaving), now)))
		leaving++;
	return leaving;
}

static void
put_off(int index, int n, int64_t now)
{
	ModelRow   *row = &model[index];
	int			blocked = 0;

	for (int i = 0; i < n; i++)
	{
		Known	   *account = account_ahead(index, i);
		int64_t		at;

		if (may_leave(account, now))
			continue;
		seen[PUT_OFF_BY_THIS_RUN] += account->left == now;
		seen[PUT_OFF_BY_MANY] += ++blocked == 2;
		at = book(account, now);
		row->put_off = Max(row->put_off, at);
	}
	row->stuck = true;
}

/* What a push gives that would fit into a request alone: all or nothing. */
static int
give_whole(int index, int room, int64_t now, bool repeat)
{
	int			left = rows[index].naccounts - model[index].taken;

	if (rows[index].nloaded - model[index].taken < left)
	{
		seen[PARTLY_LOADED]++;
		model[index].stuck = true;
		return 0;
	}
	if (left > room)
		return 0;
	if (count_leaving(index, left, now, repeat) == left)
		return left;
	put_off(index, left, now);
	return 0;
}

/* What a larger push gives: the accounts that come first. */
static int
give_slice(int index, int room, int64_t now, bool repeat)
{
	int			loaded = rows[index].nloaded - model[index].taken;
	int			n = Min(room, loaded);
	int			leaving = count_leaving(index, n, now, repeat);

	if (loaded == 0)
		model[index].stuck = true;
	else if (leaving == 0 && room > 0)
	{
		put_off(index, 1, now);
		seen[SLICE_PUT_OFF]++;
	}
	seen[SLICE_CUT] += leaving > 0 && leaving < n;
	seen[PARTLY_LOADED] += leaving > 0 && loaded == leaving;
	return leaving;
}

static int
give(int index, int room, int64_t now, bool repeat)
{
	int			left = rows[index].naccounts - model[index].taken;

	if (left == 0 || model[index].stuck)
		return 0;
	return left <= max_accounts ? give_whole(index, room, now, repeat) :
		give_slice(index, room, now, repeat);
}

static void
add_piece(Plan *plan, const Push *push, int first, int count)
{
	Piece	   *piece = &plan->pieces[plan->npieces++];

	piece->request = plan->nrequests;
	piece->push = (int) (push - pushes);
	piece->first = push->handed + first;
	piece->count = count;
}

/* A request around the head; how many accounts it has, 0: there is none. */
static int
compose_one(Plan *plan, int head, int64_t now, bool repeat)
{
	int			sum = 0;

	for (int i = 0; i < nrows; i++)
		model[i].seen = false;
	for (int next = head; next >= 0; next = find_rider(head))
	{
		int			n = give(next, max_accounts - sum, now, repeat);

		model[next].seen = true;
		if (n == 0 && next == head)
			return 0;
		if (n == 0)
			continue;
		add_piece(plan, row_push[next], model[next].taken, n);
		for (int i = 0; i < n && !repeat; i++)
			account_ahead(next, i)->left = now;
		model[next].taken += n;
		sum += n;
	}
	plan->nrequests++;
	return sum;
}

static void
compose_by_model(Plan *plan, const ComposeBounds *bounds, int64_t now, bool repeat)
{
	int			total = 0;
	int			head;

	memset(model, 0, sizeof(model));
	plan->nrequests = plan->npieces = 0;
	while (plan->nrequests < bounds->requests && (head = find_head()) >= 0)
	{
		if (total >= bounds->total)
		{
			seen[STOPPED_BY_TOTAL]++;
			break;
		}
		total += compose_one(plan, head, now, repeat);
	}
	memset(plan->taken, 0, sizeof(plan->taken));
	memset(plan->put_off, 0, sizeof(plan->put_off));
	for (int i = 0; i < nrows; i++)
	{
		plan->taken[row_push[i] - pushes] = model[i].taken;
		plan->put_off[row_push[i] - pushes] = model[i].put_off;
	}
}

/* ------------------------------------------------------------------------
 * Comparing
 * ------------------------------------------------------------------------
 */

/* Compose; the place for the requests is just as large as it must be. */
static ComposedRequest *
run_compose(const ComposeBounds *bounds, RecentAccounts *known_accounts, int64_t now)
{
	ComposedRequest *requests = palloc(sizeof(ComposedRequest) * bounds->requests);
	int			n = compose(rows, nrows, bounds, known_accounts, now, requests);

	got.nrequests = got.npieces = 0;
	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < requests[i].nparts; j++)
		{
			const ComposePart *part = &requests[i].parts[j];

			add_piece(&got, row_push[part->row], part->first, part->count);
		}
		got.nrequests++;
	}
	memset(got.taken, 0, sizeof(got.taken));
	memset(got.put_off, 0, sizeof(got.put_off));
	for (int i = 0; i < nrows; i++)
	{
		got.taken[row_push[i] - pushes] = rows[i].taken;
		got.put_off[row_push[i] - pushes] = rows[i].put_off;
	}
	return requests;
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

		if (x->request != y->request || x->push != y->push ||
			x->first != y->first || x->count != y->count)
			return false;
	}
	for (int i = 0; i < MAX_ROWS; i++)
	{
		if (a->taken[i] != b->taken[i] || a->put_off[i] != b->put_off[i])
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
	ONLY_LOADED,
	SUMS_MATCH,
	WITHIN_REQUESTS,
	WITHIN_TOTAL,
	PUT_OFF_LATER,
	NPROMISES
} Promise;

static const char *const promises[NPROMISES] = {
	"a request has from one account to the most that it may have",
	"contents in a request are equal, byte for byte",
	"no account stands twice in a run with one content key",
	"riders are in order of age",
	"what fits into a request is not torn",
	"slices follow each other without a gap",
	"only what is loaded is taken",
	"the sums match",
	"no more requests than asked for, and than the large pushes need",
	"no request is begun with the total reached",
	"who is put off waits",
};

static void
check_parts(const ComposedRequest *request, bool repeat, int *handed, int *broken)
{
	static bool used[NCONTENTS][MAX_NUMBER];
	int			sum = 0;

	if (handed == NULL)
	{
		memset(used, 0, sizeof(used));
		return;
	}
	for (int j = 0; j < request->nparts; j++)
	{
		const ComposePart *part = &request->parts[j];
		const ComposeRow *row = &rows[part->row];
		const Push *push = row_push[part->row];
		int			left = row->naccounts - handed[part->row];

		if (!content_equal(&row->content, &rows[request->parts[0].row].content))
			broken[SAME_CONTENT]++;
		if (j > 1 && !is_older(&rows[request->parts[j - 1].row], row))
			broken[RIDERS_BY_AGE]++;
		if (part->count < left && left <= max_accounts)
			broken[NOT_TORN]++;
		if (part->first != handed[part->row] || part->count < 1 || part->count > left)
			broken[IN_ORDER]++;
		if (part->first + part->count > row->nloaded)
			broken[ONLY_LOADED]++;
		for (int k = part->first; k < part->first + part->count && !repeat; k++)
		{
			bool	   *account = &used[push->key][push->numbers[push->handed + k]];

			broken[ACCOUNT_ONCE] += *account;
			*account = true;
		}
		handed[part->row] += part->count;
		sum += part->count;
	}
	broken[SUMS_MATCH] += sum != request->naccounts;
	broken[WITHIN_SIZE] += sum < 1 || sum > max_accounts;
}

static void
check_promises(const ComposedRequest *requests, const ComposeBounds *bounds,
			   int64_t now, bool repeat, int *broken)
{
	int			handed[MAX_ROWS] = {0};
	int			needed = 0;
	int			total = 0;

	check_parts(NULL, repeat, NULL, NULL);
	for (int i = 0; i < got.nrequests; i++)
	{
		broken[WITHIN_TOTAL] += total >= bounds->total;
		check_parts(&requests[i], repeat, handed, broken);
		total += requests[i].naccounts;
	}
	for (int i = 0; i < nrows; i++)
	{
		needed += (rows[i].naccounts + max_accounts - 1) / max_accounts;
		broken[SUMS_MATCH] += rows[i].taken != handed[i];
		broken[PUT_OFF_LATER] += rows[i].put_off != 0 &&
			(rows[i].put_off <= now || repeat || rows[i].taken == rows[i].naccounts);
	}
	broken[WITHIN_REQUESTS] += got.nrequests > bounds->requests ||
		got.nrequests > needed;
}

/* ------------------------------------------------------------------------
 * Random queues
 * ------------------------------------------------------------------------
 */

static ComposeBounds
random_bounds(int number)
{
	ComposeBounds bounds = {4 * MAX_ROWS, max_accounts, INT_MAX};

	if (number % 2 != 0)
		bounds.requests = random_below(12);
	if (number % 3 == 0)
		bounds.total = random_below(10 * max_accounts + 1);
	return bounds;
}

static void
check_rarities(const char *what)
{
	static const char *const rarities[NRARITIES] = {
		"were put off by what left in the same run",
		"were put off by several accounts",
		"gave a slice that ended before an account",
		"gave no slice because of its first account",
		"gave all that was loaded, or nothing because that was not all",
		"had to wait because of the total",
	};

	for (int i = 0; i < NRARITIES; i++)
		ok(seen[i] >= 100, "%s: among them pushes that %s (%d)", what,
		   rarities[i], seen[i]);
	memset(seen, 0, sizeof(seen));
}

static void
check_model(int nqueues)
{
	int			broken[NPROMISES] = {0};
	int			bad = 0;
	int			largest = 0;

	for (int number = 0; number < nqueues; number++)
	{
		ComposedRequest *requests;
		ComposeBounds bounds;
		bool		repeat;

		make_queue(number);
		forget_all();
		repeat = number % 5 == 0;
		if (random_below(2) == 0)
			make_history(START);
		bounds = random_bounds(number);
		load_queue(START, random_below(2) == 0);
		compose_by_model(&expected, &bounds, START, repeat);
		requests = run_compose(&bounds, repeat ? NULL : recent, START);
		largest = Max(largest, got.nrequests);
		check_promises(requests, &bounds, START, repeat, broken);
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
	check_rarities("queues");
}

static void
check_order(int nqueues)
{
	int			bad = 0;

	for (int number = 0; number < nqueues; number++)
	{
		ComposeBounds bounds;

		make_queue(number);
		bounds = random_bounds(number);
		load_queue(START, true);
		run_compose(&bounds, recent_create(), START);
		expected = got;
		shuffle_rows();
		run_compose(&bounds, recent_create(), START);
		bad += !plans_equal(&got, &expected);
		context_reset();
	}
	is_int(bad, 0, "the order in which rows come does not matter");
}

/* ------------------------------------------------------------------------
 * Handing out in rounds, as a worker does
 * ------------------------------------------------------------------------
 */

/* One account of one push leaves. */
typedef struct Departure
{
	int64_t		content_key;
	int			number;
	int			push;
	int			account;		/* from 0, among the push's */
	int64_t		at;
} Departure;

static Departure departures[MAX_ROWS * MAX_NUMBER];
static int	ndepartures;

/* By content key and account, then time. */
static int
compare_departures(const void *x, const void *y)
{
	const Departure *a = x;
	const Departure *b = y;

	if (a->content_key != b->content_key)
		return a->content_key < b->content_key ? -1 : 1;
	if (a->number != b->number)
		return a->number - b->number;
	return a->at < b->at ? -1 : a->at > b->at;
}

static int
count_too_close(void)
{
	int			close = 0;

	qsort(departures, ndepartures, sizeof(Departure), compare_departures);
	for (int i = 1; i < ndepartures; i++)
		close += departures[i].content_key == departures[i - 1].content_key &&
			departures[i].number == departures[i - 1].number &&
			departures[i].at - departures[i - 1].at < SECOND;
	return close;
}

/* Accounts that did not leave just once. */
static int
count_lost_or_repeated(void)
{
	static int	times[MAX_ROWS][MAX_NUMBER];
	int			bad = 0;

	memset(times, 0, sizeof(times));
	for (int i = 0; i < ndepartures; i++)
		times[departures[i].push][departures[i].account]++;
	for (int i = 0; i < npushes; i++)
	{
		for (int j = 0; j < MAX_NUMBER; j++)
			bad += times[i][j] != (j < pushes[i].row.naccounts);
	}
	return bad;
}

/* Is what was composed there at all?  If not, there is no going on. */
static bool
all_there(void)
{
	int			sum = 0;

	for (int i = 0; i < got.npieces; i++)
	{
		const Piece *piece = &got.pieces[i];

		if (piece->first < 0 || piece->count < 0 ||
			piece->first + piece->count > pushes[piece->push].row.naccounts)
			return false;
		sum += piece->count;
	}
	return ndepartures + sum <= (int) lengthof(departures);
}

/* What was composed leaves. */
static void
depart(int64_t now)
{
	for (int i = 0; i < got.npieces; i++)
	{
		const Piece *piece = &got.pieces[i];
		const Push *push = &pushes[piece->push];

		for (int j = piece->first; j < piece->first + piece->count; j++)
		{
			Departure  *departure = &departures[ndepartures++];

			departure->content_key = push->row.content_key;
			departure->number = push->numbers[j];
			departure->push = piece->push;
			departure->account = j;
			departure->at = now;
			note_departure(push, j, now);
		}
	}
}

/* The rows are written back.  Who gave something is not put off yet. */
static void
write_back(void)
{
	for (int i = 0; i < npushes; i++)
	{
		pushes[i].handed += got.taken[i];
		if (got.put_off[i] != 0 && got.taken[i] == 0)
			pushes[i].row.send_at = got.put_off[i];
	}
}

/* The next round: at once, or when the next one is due, or at any time. */
static int64_t
next_time(int64_t now)
{
	int64_t		due = INT64_MAX;

	switch (random_below(4))
	{
		case 0:
			return now + random_below(3);
		case 1:
			return now + random_below(1500000);
		case 2:
			return now + SECOND - 1 + random_below(3);
		default:
			for (int i = 0; i < npushes; i++)
			{
				if (pushes[i].row.send_at > now)
					due = Min(due, pushes[i].row.send_at);
			}
			return due < INT64_MAX ? due : now;
	}
}

static bool
all_out(void)
{
	for (int i = 0; i < npushes; i++)
	{
		if (pushes[i].handed < pushes[i].row.naccounts)
			return false;
	}
	return true;
}

/* Rounds until all is out; returns how many were not as the model's. */
static int
hand_out(bool delayed, int *nrounds)
{
	int64_t		now = START;
	int			bad = 0;

	ndepartures = 0;
	*nrounds = 0;
	for (; !all_out() && *nrounds < 10000; ++*nrounds)
	{
		ComposeBounds bounds = random_bounds(*nrounds);

		load_queue(now, true);
		compose_by_model(&expected, &bounds, now, false);
		pfree(run_compose(&bounds, recent, now));
		bad += !plans_equal(&got, &expected);
		/* it lies in the journal for a while */
		if (delayed)
			now += random_below(20000);
		if (!all_there())
			break;
		depart(now);
		write_back();
		now = next_time(now);
	}
	return bad;
}

static void
check_rounds(int nqueues)
{
	int			bad = 0;
	int			close = 0;
	int			lost = 0;
	int			stuck = 0;
	int			most = 0;

	/* one that never ends takes long enough */
	for (int number = 0; number < nqueues && stuck == 0; number++)
	{
		int			nrounds;

		make_queue(number);
		forget_all();
		bad += hand_out(number % 2 == 0, &nrounds);
		stuck += !all_out();
		close += count_too_close();
		lost += count_lost_or_repeated();
		most = Max(most, nrounds);
		context_reset();
	}
	is_int(bad, 0, "handed out in rounds: each as the model composes");
	is_int(stuck, 0, "handed out in rounds: it ends");
	is_int(lost, 0, "handed out in rounds: each account of each push once");
	is_int(close, 0, "handed out in rounds: one content and account a second apart");
	ok(most > 50, "handed out in rounds: among them many rounds (%d)", most);
	check_rarities("rounds");
}

/* ------------------------------------------------------------------------
 * Contents
 * ------------------------------------------------------------------------
 */

/* Compose rows of which nothing is known yet. */
static int
compose_new(ComposeRow *some, int n, int max_requests, int max,
			ComposedRequest **requests)
{
	ComposeBounds bounds = {max_requests, max, INT_MAX};

	*requests = palloc(sizeof(ComposedRequest) * max_requests);
	return compose(some, n, &bounds, recent_create(), START, *requests);
}

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
	n = compose_new(pair, 2, 2, 500, &requests);
	ok(n == (equal ? 1 : 2), "%s: %s", name,
	   equal ? "one request" : "two requests");
	pair[1].content_key = pair[0].content_key;
	n = compose_new(pair, 2, 2, 500, &requests);
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

	is_int(compose_new(NULL, 0, 10, 500, &requests), 0, "no rows: no request");
	is_int(compose_new(some, 3, 0, 500, &requests), 0,
		   "no request asked for: none");
	ok(some[0].taken == 0 && some[1].taken == 0 && some[2].taken == 0,
	   "no request asked for: nothing taken");
	some[0].naccounts = some[1].naccounts = some[2].naccounts = 0;
	some[0].nloaded = some[1].nloaded = some[2].nloaded = 0;
	is_int(compose_new(some, 3, 10, 500, &requests), 0,
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

	is_int(compose_new(many_rows(501, true, false), 501, 600, 1, &requests),
		   501, "size 1: a request for each account");
	for (int i = 0; i < 501; i++)
		in_order += requests[i].nparts == 1 &&
			requests[i].parts[0].row == 500 - i;
	is_int(in_order, 501, "size 1: the oldest first");

	is_int(compose_new(many_rows(500, true, false), 500, 600, 500, &requests),
		   1, "size 500: 500 fit");
	ok(requests[0].nparts == 500 && requests[0].naccounts == 500,
	   "size 500: with 500 parts");
	is_int(compose_new(many_rows(501, true, false), 501, 600, 500, &requests),
		   2, "size 500: 501 do not");
	ok(requests[0].naccounts == 500 && requests[1].naccounts == 1 &&
	   requests[1].parts[0].row == 0, "size 500: the last one goes alone");
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

	is_int(compose_new(&row, 1, 7, 500, &requests), 7,
		   "a large push: as many requests as asked for");
	is_int(row.taken, 3500, "a large push: their accounts are taken");
	n = compose_new(&row, 1, 1000, 500, &requests);
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

	is_int(compose_new(queue, lengthof(queue), 10, 3, &requests), 3,
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

/* ------------------------------------------------------------------------
 * Accounts that have just been sent the same content
 * ------------------------------------------------------------------------
 */

/* A single row, against accounts that left so many microseconds ago. */
static void
check_ago(int ago0, int ago1, bool leaves, int64_t put_off_by, const char *name)
{
	Content		content = content_of("t");
	const Span *accounts = accounts_from(0, 2);
	RecentAccounts *others = recent_create();
	ComposeBounds bounds = {1, 500, INT_MAX};
	ComposedRequest request;
	ComposeRow	row = row_of(1, &content, 4, 1, 2, accounts);
	int			agos[] = {ago0, ago1};

	for (int i = 0; i < 2; i++)
	{
		if (agos[i] >= 0)
			recent_note(others, recent_key(row.content_key, accounts[i].data,
										   accounts[i].len), START - agos[i]);
	}
	is_int(compose(&row, 1, &bounds, others, START, &request), leaves ? 1 : 0, name);
	is_int(row.put_off == 0 ? 0 : row.put_off - START, put_off_by, name);
	is_int(row.taken, leaves ? 2 : 0, name);
	context_reset();
}

static void
check_agos(void)
{
	check_ago(-1, -1, true, 0, "never sent: leaves");
	check_ago(1000000, 2000000, true, 0, "sent a second ago: leaves");
	check_ago(999999, -1, false, TURN - 999999, "sent less than a second ago: waits for the rest");
	check_ago(0, -1, false, TURN, "just sent: waits for its turn");
	check_ago(-1, 300000, false, TURN - 300000, "the last account counts too");
	check_ago(300000, 800000, false, TURN - 300000, "of two, the later one counts");
	check_ago(800000, 300000, false, TURN - 300000, "of two, the later one counts again");
}

/* Five pushes to one account, and one more that comes while they wait. */
static void
check_same_account(void)
{
	RecentAccounts *others = recent_create();
	ComposeBounds bounds = {10, 500, INT_MAX};
	ComposedRequest requests[10];
	ComposeRow *five = many_rows(5, true, true);
	ComposeRow *sixth = many_rows(1, true, true);
	int			in_order = 0;

	/* the last one is the oldest */
	is_int(compose(five, 5, &bounds, others, START, requests), 1,
		   "five pushes to one account: one request");
	ok(requests[0].naccounts == 1 && requests[0].parts[0].row == 4 && five[4].put_off == 0,
	   "five pushes to one account: the oldest leaves");
	for (int i = 3; i >= 0; i--)
		is_int(five[i].put_off - START, (4 - i) * TURN,
			   "five pushes to one account: a turn for each that is older");
	is_int(compose(sixth, 1, &bounds, others, START + SECOND / 2, requests), 0,
		   "a sixth one half a second later: no request");
	is_int(sixth[0].put_off - START, 5 * TURN, "a sixth one half a second later: the last");

	for (int i = 3; i >= 0; i--)
		in_order += compose(&five[i], 1, &bounds, others, five[i].put_off, requests);
	is_int(in_order, 4, "five pushes to one account: the others leave when they are due");
	is_int(compose(sixth, 1, &bounds, others, sixth[0].put_off, requests), 1,
		   "a sixth one: leaves when it is due");
	context_reset();
}

/* It is the content's key that counts with the account, as recent.h says. */
static void
check_account_and_key(void)
{
	Content		one = content_of("one");
	Content		two = content_of("two");
	const Span *accounts = accounts_from(0, 1);
	ComposeRow	pair[] = {
		row_of(1, &one, 4, 1, 1, accounts),
		row_of(2, &two, 4, 2, 1, accounts)
	};
	ComposedRequest *requests;

	is_int(compose_new(pair, 2, 2, 500, &requests), 2,
		   "two contents to one account: both leave");
	pair[1].content_key = pair[0].content_key;
	is_int(compose_new(pair, 2, 2, 500, &requests), 1,
		   "two contents with one key to one account: one leaves");
	is_int(pair[1].put_off, START + TURN,
		   "two contents with one key to one account: the other one waits");
	context_reset();
}

/* Requests that are not to be sent: nothing is too early. */
static void
check_repeated(void)
{
	ComposeBounds bounds = {600, 500, INT_MAX};
	ComposedRequest *requests = palloc(sizeof(ComposedRequest) * 600);
	ComposeRow *some = many_rows(501, true, true);
	int			waiting = 0;

	is_int(compose(some, 501, &bounds, NULL, START, requests), 2,
		   "without a memory: an account stands as often as pushes want");
	is_int(requests[0].naccounts, 500, "without a memory: up to the size");
	for (int i = 0; i < 501; i++)
		waiting += some[i].put_off != 0;
	is_int(waiting, 0, "without a memory: nobody is put off");
	context_reset();
}

/* Where a large push meets one of its accounts. */
static void
check_conflicts(void)
{
	Content		content = content_of("t");
	const Span *accounts = accounts_from(0, 12);
	RecentAccounts *others = recent_create();
	ComposeBounds bounds = {10, 5, INT_MAX};
	ComposedRequest *requests = palloc(sizeof(ComposedRequest) * 10);
	ComposeRow	queue[2];

	/* accounts 3, and 0 .. 11, five at a time */
	queue[0] = row_of(1, &content, 4, 1, 1, &accounts[3]);
	queue[1] = row_of(2, &content, 4, 2, 12, accounts);
	is_int(compose(queue, 2, &bounds, others, START, requests), 1,
		   "a slice meets an account: one request");
	ok(requests[0].nparts == 2 && requests[0].parts[1].first == 0 &&
	   requests[0].parts[1].count == 3,
	   "a slice meets an account: it ends before");
	is_int(queue[1].put_off, START + TURN, "a slice meets an account: the rest is put off");
	queue[1] = row_of(2, &content, 4, 2, 9, &accounts[3]);
	is_int(compose(&queue[1], 1, &bounds, others, START + SECOND, requests), 2,
		   "a slice meets an account: a second later two requests");
	ok(requests[0].naccounts == 5 && requests[1].naccounts == 4,
	   "a slice meets an account: have the rest");

	/* the first account already */
	queue[0] = row_of(1, &content, 4, 1, 1, &accounts[0]);
	queue[1] = row_of(2, &content, 4, 2, 12, accounts);
	is_int(compose_new(queue, 2, 10, 5, &requests), 1,
		   "a slice begins with the account: a request");
	ok(requests[0].nparts == 1 && queue[1].taken == 0 &&
	   queue[1].put_off == START + TURN,
	   "a slice begins with the account: it waits");

	/* accounts 4, and 1 .. 4: what fits is not torn for that */
	queue[0] = row_of(1, &content, 4, 1, 1, &accounts[4]);
	queue[1] = row_of(2, &content, 4, 2, 4, &accounts[1]);
	is_int(compose_new(queue, 2, 10, 5, &requests), 1,
		   "a push meets an account: one request");
	ok(requests[0].nparts == 1 && queue[1].taken == 0 &&
	   queue[1].put_off == START + TURN,
	   "a push meets an account: all of it waits");
	context_reset();
}

/* A large push of which every thousandth account has just been sent the same. */
static void
check_large_conflicts(void)
{
	Content		content = content_of("t");
	const Span *accounts = accounts_from(0, 100000);
	RecentAccounts *others = recent_create();
	ComposeBounds bounds = {1000, 500, INT_MAX};
	ComposedRequest *requests = palloc(sizeof(ComposedRequest) * 1000);
	ComposeRow	row = row_of(1, &content, 4, 1, 100000, accounts);

	for (int i = 700; i < 100000; i += 1000)
		recent_note(others, recent_key(row.content_key, accounts[i].data,
									   accounts[i].len), START - 1);
	is_int(compose(&row, 1, &bounds, others, START, requests), 2,
		   "a large push meets many accounts: two requests");
	ok(requests[0].naccounts == 500 && requests[1].naccounts == 200 && row.taken == 700,
	   "a large push meets many accounts: before the first of them");
	is_int(row.put_off, START - 1 + TURN,
		   "a large push meets many accounts: the rest waits for a second");
	row = row_of(1, &content, 4, 1, 99300, &accounts[700]);
	is_int(compose(&row, 1, &bounds, others, START - 1 + SECOND, requests), 199,
		   "a large push meets many accounts: and then leaves");
	is_int(row.taken, 99300, "a large push meets many accounts: all of it");
	context_reset();
}

/* ------------------------------------------------------------------------
 * Bounds
 * ------------------------------------------------------------------------
 */

static int
compose_total(ComposeRow *some, int n, int total)
{
	ComposeBounds bounds = {100, 500, total};
	ComposedRequest *requests = palloc(sizeof(ComposedRequest) * 100);

	return compose(some, n, &bounds, recent_create(), START, requests);
}

static void
check_total(void)
{
	Content		content = content_of("t");
	ComposeRow	large = row_of(1, &content, 4, 1, 1200, accounts_from(0, 1200));

	is_int(compose_total(&large, 1, 0), 0, "a total of nothing: no request");
	is_int(large.taken, 0, "a total of nothing: nothing is taken");
	is_int(compose_total(&large, 1, 1), 1, "a total of one: one request");
	is_int(large.taken, 500, "a total of one: a full one");
	is_int(compose_total(&large, 1, 500), 1, "a total of 500: one request");
	is_int(compose_total(&large, 1, 501), 2, "a total of 501: another one");
	is_int(large.taken, 1000, "a total of 501: a full one, too");
	is_int(compose_total(&large, 1, 1001), 3, "a total of 1001: all three");
	is_int(compose_total(many_rows(10, false, false), 10, 3), 3,
		   "a total of three: three requests of one account");
	context_reset();
}

/* Of a row that is not loaded as a whole, and of one behind it. */
static void
check_loaded(int naccounts, int nloaded, int nrequests, int taken)
{
	Content		one = content_of("one");
	Content		two = content_of("two");
	ComposedRequest *requests;
	ComposeRow	queue[] = {
		row_of(1, &one, 4, 1, naccounts, accounts_from(0, nloaded)),
		row_of(2, &two, 4, 2, 1, accounts_from(0, 1))
	};
	char		name[100];

	snprintf(name, sizeof(name), "%d accounts, %d loaded", naccounts, nloaded);
	queue[0].nloaded = nloaded;
	is_int(compose_new(queue, 2, 10, 500, &requests), nrequests + 1, name);
	is_int(queue[0].taken, taken, name);
	ok(queue[0].put_off == 0 && queue[1].taken == 1,
	   "%s: not put off, and in nobody's way", name);
	context_reset();
}

static void
check_partly_loaded(void)
{
	check_loaded(3, 0, 0, 0);
	check_loaded(3, 2, 0, 0);
	check_loaded(500, 499, 0, 0);
	check_loaded(501, 0, 0, 0);
	check_loaded(501, 1, 1, 1);
	check_loaded(501, 500, 1, 500);
	check_loaded(1200, 500, 1, 500);
	/* 200 of the 700 that are left; the 500 after that go whole or not */
	check_loaded(1200, 700, 2, 700);
	check_loaded(1200, 1100, 2, 1000);
	check_loaded(1200, 1200, 3, 1200);
}

/* ------------------------------------------------------------------------
 * Speed
 * ------------------------------------------------------------------------
 */

/* Seconds of processor time for a queue; what it should take is far less. */
static double
time_of(ComposeRow *some, int n, int nrequests)
{
	ComposedRequest *requests;
	clock_t		start = clock();

	if (compose_new(some, n, n, 500, &requests) != nrequests)
		return HUGE_VAL;
	return (double) (clock() - start) / CLOCKS_PER_SEC;
}

static void
check_speed(void)
{
	ComposeRow *some;
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
	seconds = time_of(many_rows(100000, true, true), 100000, 1);
	ok(seconds < 5, "100,000 pushes to one account: fast");
	printf("# %.3f s\n", seconds);
	context_reset();

	/* each request walks all rows, but only as many rows as are loaded */
	some = many_rows(5000, true, false);
	for (int i = 0; i < 5000; i++)
	{
		some[i].naccounts = some[i].nloaded = 300;
		some[i].accounts = accounts_from(300 * i, 300);
	}
	seconds = time_of(some, 5000, 5000);
	ok(seconds < 20, "5,000 rows that do not fit together: fast enough");
	printf("# %.3f s\n", seconds);
	context_reset();
}

int
main(void)
{
	check_model(6000);
	check_rounds(1000);
	check_order(2000);
	check_contents();
	check_nothing();
	check_sizes();
	check_large(100000);
	check_large(100001);
	check_priorities();
	check_agos();
	check_same_account();
	check_account_and_key();
	check_repeated();
	check_conflicts();
	check_large_conflicts();
	check_total();
	check_partly_loaded();
	check_speed();
	return done_testing();
}
