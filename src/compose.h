/*-------------------------------------------------------------------------
 *
 * compose.h
 *	  Waiting pushes into calls: which rows, and which of their accounts,
 *	  share a request.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_COMPOSE_H
#define TIMPUSH_COMPOSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "recent.h"

/* What a push wants done when it cannot be known whether the API got it. */
typedef enum OnUnknown
{
	ON_UNKNOWN_RETRY,
	ON_UNKNOWN_HOLD,
	ON_UNKNOWN_ACCEPT
} OnUnknown;

/* Its name in SQL, and back; false if there is no such name. */
extern const char *on_unknown_name(OnUnknown on_unknown);
extern bool on_unknown_parse(const char *name, OnUnknown *on_unknown);

/* Bytes that somebody else owns; data is NULL for SQL's null. */
typedef struct Span
{
	const char *data;
	size_t		len;
} Span;

/* All that must be equal in pushes that share a call. */
typedef struct Content
{
	Span		server;
	Span		from;
	Span		title;
	Span		descr;
	Span		data_id;
	Span		extra;
	OnUnknown	on_unknown;
} Content;

/* A waiting push, as the outbox has it. */
typedef struct ComposeRow
{
	int64_t		id;
	int64_t		content_key;	/* equal contents have equal keys */
	Content		content;
	int			priority;
	int64_t		send_at;
	int			naccounts;		/* accounts not yet handed out, all different */
	int			nloaded;		/* how many of them are in "accounts" */
	const Span *accounts;
	int			taken;			/* out: how many of them are now */
	int64_t		put_off;		/* out: the row must wait until then; 0: no */
} ComposeRow;

/* Accounts first .. first + count - 1 of a row, in a request. */
typedef struct ComposePart
{
	int			row;
	int			first;			/* from 0, into the row's accounts */
	int			count;
} ComposePart;

typedef struct ComposedRequest
{
	int			nparts;
	ComposePart *parts;
	int			naccounts;
} ComposedRequest;

/* How much to compose. */
typedef struct ComposeBounds
{
	int			requests;		/* at most so many */
	int			accounts;		/* in each */
	int			total;			/* none is begun with so many in all */
} ComposeBounds;

/* Hash of a content, for content_key. */
extern int64_t content_hash(const Content *content);

/* Byte equality of everything in it. */
extern bool content_equal(const Content *a, const Content *b);

/*
 * Compose requests.
 *
 * "rows" may come in any order, each once.  The first by (priority from 9
 * down, send_at, id) that still has accounts picks the content of the next
 * request; rows of byte-equal content ride along, oldest first.  A row that
 * fits into a request goes whole or waits for the next one, a larger one is
 * sliced.  An account that has been sent the same content within the last
 * second, as "recent" knows, or in the same run, may not stand in a request:
 * a row with such an account is put off, a slice ends before it.  Without
 * "recent", for requests that are not to be sent, accounts may repeat.
 *
 * Writes the requests into "out", which has room for bounds->requests, sets
 * "taken" and "put_off" in the rows, notes in "recent" what it has taken and
 * returns the number of requests.  Allocates with palloc.
 */
extern int	compose(ComposeRow *rows, int nrows, const ComposeBounds *bounds,
					RecentAccounts *recent, int64_t now,
					ComposedRequest *out);

#endif							/* TIMPUSH_COMPOSE_H */
