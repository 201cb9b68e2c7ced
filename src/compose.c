/*-------------------------------------------------------------------------
 *
 * compose.c
 *	  Waiting pushes into calls: which rows, and which of their accounts,
 *	  share a request.
 *
 * Pure: it sees arrays and writes arrays.
 *
 * Crash story: none of its own.  What it composes exists only once outbox.c
 * has written it to the journal.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include "common/hashfn.h"

#include "compose.h"

typedef struct Composer
{
	ComposeRow *rows;
	int			nrows;
	int		   *by_rank;		/* rows as heads: priority, send_at, id */
	int		   *next_alike;		/* next row of equal content, or -1 */
	int		   *first_alike;	/* first row of the row's content */
	int			max_accounts;
	RecentAccounts *recent;
	int64		now;
	uint64	   *keys;			/* of the accounts under consideration */
} Composer;

static const char *const on_unknown_names[] = {
	[ON_UNKNOWN_RETRY] = "retry",
	[ON_UNKNOWN_HOLD] = "hold",
	[ON_UNKNOWN_ACCEPT] = "accept",
};

const char *
on_unknown_name(OnUnknown on_unknown)
{
	return on_unknown_names[on_unknown];
}

bool
on_unknown_parse(const char *name, OnUnknown *on_unknown)
{
	for (size_t i = 0; i < lengthof(on_unknown_names); i++)
	{
		if (strcmp(name, on_unknown_names[i]) == 0)
		{
			*on_unknown = (OnUnknown) i;
			return true;
		}
	}
	return false;
}

static bool
span_equal(Span a, Span b)
{
	if ((a.data == NULL) != (b.data == NULL) || a.len != b.len)
		return false;
	return a.data == NULL || memcmp(a.data, b.data, a.len) == 0;
}

static uint64
span_hash(uint64 seed, Span span)
{
	/* null and empty differ */
	uint64		hash = span.data == NULL ? 1 :
	hash_bytes_extended((const unsigned char *) span.data, span.len, 0);

	return hash_combine64(seed, hash);
}

int64_t
content_hash(const Content *content)
{
	uint64		hash = content->on_unknown;

	hash = span_hash(hash, content->server);
	hash = span_hash(hash, content->from);
	hash = span_hash(hash, content->title);
	hash = span_hash(hash, content->descr);
	hash = span_hash(hash, content->data_id);
	hash = span_hash(hash, content->extra);
	return (int64_t) hash;
}

bool
content_equal(const Content *a, const Content *b)
{
	return a->on_unknown == b->on_unknown &&
		span_equal(a->server, b->server) &&
		span_equal(a->from, b->from) &&
		span_equal(a->title, b->title) &&
		span_equal(a->descr, b->descr) &&
		span_equal(a->data_id, b->data_id) &&
		span_equal(a->extra, b->extra);
}

/* An age order that every part of the queue agrees on. */
static int
compare_age(const ComposeRow *a, const ComposeRow *b)
{
	if (a->send_at != b->send_at)
		return a->send_at < b->send_at ? -1 : 1;
	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	return 0;
}

static int
compare_rank(const void *x, const void *y, void *arg)
{
	const ComposeRow *rows = arg;
	const ComposeRow *a = &rows[*(const int *) x];
	const ComposeRow *b = &rows[*(const int *) y];

	if (a->priority != b->priority)
		return a->priority > b->priority ? -1 : 1;
	return compare_age(a, b);
}

/* Rows of one content stand together, the oldest first. */
static int
compare_content(const void *x, const void *y, void *arg)
{
	const ComposeRow *rows = arg;
	const ComposeRow *a = &rows[*(const int *) x];
	const ComposeRow *b = &rows[*(const int *) y];

	if (a->content_key != b->content_key)
		return a->content_key < b->content_key ? -1 : 1;
	return compare_age(a, b);
}

/*
 * Chain the rows of equal content.  Rows with one key but different content
 * (a collision of the hash) get chains of their own: each row is compared
 * with the first of every chain of its key.
 */
static void
chain_alike(Composer *c, const int *by_content)
{
	int		   *last = palloc(sizeof(int) * c->nrows);

	for (int i = 0, start = 0; i < c->nrows; i++)
	{
		int			row = by_content[i];
		int			first = row;

		if (c->rows[by_content[start]].content_key != c->rows[row].content_key)
			start = i;
		for (int j = start; j < i; j++)
		{
			int			other = by_content[j];

			if (c->first_alike[other] == other &&
				content_equal(&c->rows[other].content, &c->rows[row].content))
			{
				first = other;
				break;
			}
		}
		c->next_alike[row] = -1;
		c->first_alike[row] = first;
		if (first != row)
			c->next_alike[last[first]] = row;
		last[first] = row;
	}
	pfree(last);
}

static void
composer_init(Composer *c, ComposeRow *rows, int nrows, int max_accounts)
{
	int		   *by_content = palloc(sizeof(int) * nrows);

	c->rows = rows;
	c->nrows = nrows;
	c->max_accounts = max_accounts;
	c->by_rank = palloc(sizeof(int) * nrows);
	c->next_alike = palloc(sizeof(int) * nrows);
	c->first_alike = palloc(sizeof(int) * nrows);
	for (int i = 0; i < nrows; i++)
	{
		rows[i].taken = 0;
		rows[i].put_off = 0;
		c->by_rank[i] = by_content[i] = i;
	}
	qsort_arg(c->by_rank, nrows, sizeof(int), compare_rank, rows);
	qsort_arg(by_content, nrows, sizeof(int), compare_content, rows);
	chain_alike(c, by_content);
	pfree(by_content);

	c->keys = palloc(sizeof(uint64) * max_accounts);
}

/*
 * How many of the row's next accounts may leave now, up to "count": those
 * before the first that may not.  Leaves their keys in c->keys.
 */
static int
count_allowed(Composer *c, const ComposeRow *row, int count)
{
	int			n;

	for (n = 0; n < count; n++)
	{
		Span		account = row->accounts[row->taken + n];

		if (c->recent == NULL)
			continue;
		c->keys[n] = recent_key(row->content_key, account.data, account.len);
		if (recent_allows(c->recent, c->keys[n], c->now) > c->now)
			break;
	}
	return n;
}

/* The row waits until all of its accounts that may not leave now may. */
static void
put_off_row(Composer *c, ComposeRow *row, int count)
{
	for (int i = 0; i < count; i++)
	{
		Span		account = row->accounts[row->taken + i];
		uint64		key = recent_key(row->content_key, account.data, account.len);

		if (recent_allows(c->recent, key, c->now) > c->now)
		{
			int64		turn = recent_reserve(c->recent, key, c->now);

			row->put_off = Max(row->put_off, turn);
		}
	}
}

/* Take what fits of a row; true if anything does. */
static bool
take_row(Composer *c, int index, ComposedRequest *request)
{
	ComposeRow *row = &c->rows[index];
	int			left = row->naccounts - row->taken;
	int			room = c->max_accounts - request->naccounts;
	bool		whole = left <= c->max_accounts;
	int			wanted = Min(Min(left, room), row->nloaded - row->taken);
	int			count;
	ComposePart *part;

	/* what fits into a request of its own is not torn apart */
	if (row->put_off != 0 || wanted <= 0 || (whole && wanted < left))
		return false;
	count = count_allowed(c, row, wanted);
	if (count == 0 || (whole && count < left))
	{
		put_off_row(c, row, whole ? wanted : 1);
		return false;
	}

	for (int i = 0; i < count && c->recent != NULL; i++)
		recent_note(c->recent, c->keys[i], c->now);
	part = &request->parts[request->nparts++];
	part->row = index;
	part->first = row->taken;
	part->count = count;
	row->taken += count;
	request->naccounts += count;
	return true;
}

/* Compose one around the head; false if the head may not leave. */
static bool
fill_request(Composer *c, int head, ComposedRequest *request)
{
	request->nparts = 0;
	request->naccounts = 0;
	request->parts = palloc(sizeof(ComposePart) * Min(c->max_accounts, c->nrows));

	if (!take_row(c, head, request))
	{
		pfree(request->parts);
		return false;
	}
	for (int i = c->first_alike[head]; i >= 0; i = c->next_alike[i])
	{
		if (request->naccounts >= c->max_accounts)
			break;
		if (i != head)
			take_row(c, i, request);
	}
	return true;
}

int
compose(ComposeRow *rows, int nrows, const ComposeBounds *bounds,
		RecentAccounts *recent, int64_t now, ComposedRequest *out)
{
	Composer	c = {.recent = recent,.now = now};
	int			n = 0;
	int			total = 0;

	if (nrows == 0)
		return 0;
	composer_init(&c, rows, nrows, bounds->accounts);
	for (int i = 0; i < nrows; i++)
	{
		int			head = c.by_rank[i];

		/* a large head keeps its place until it is handed out */
		while (n < bounds->requests && total < bounds->total &&
			   fill_request(&c, head, &out[n]))
			total += out[n++].naccounts;
	}
	return n;
}
