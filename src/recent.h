/*-------------------------------------------------------------------------
 *
 * recent.h
 *	  Which accounts have been sent which content within the last second.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_RECENT_H
#define TIMPUSH_RECENT_H

#include <stddef.h>
#include <stdint.h>

/* Two pushes of one content to one account are so far apart, at least. */
#define RECENT_APART_US		INT64_C(1000000)

/*
 * So far apart are the times that those who wait are given.  A push leaves a
 * little after its time, and would else be in the way of the next one, which
 * would have to wait again, behind all others.
 */
#define RECENT_TURN_US		INT64_C(1100000)

typedef struct RecentEntry
{
	uint64_t	key;			/* of content and account; 0: free */
	int64_t		left;			/* when it was last sent */
	int64_t		reserved;		/* the last time given to one that waits */
} RecentEntry;

typedef struct RecentAccounts
{
	RecentEntry *entries;
	size_t		size;			/* a power of two */
	size_t		used;
	int64_t		swept;			/* when old entries were last removed */
} RecentAccounts;

/* An empty set in the current memory context, where it stays. */
extern RecentAccounts *recent_create(void);
extern void recent_free(RecentAccounts *recent);

/* A content and an account as one number; the same for the same bytes. */
extern uint64_t recent_key(int64_t content_key, const char *account, size_t len);

/*
 * When a push with this key may leave: "now", or later if one has just left.
 * Asking changes nothing.
 */
extern int64_t recent_allows(const RecentAccounts *recent, uint64_t key,
							 int64_t now);

/*
 * A time for a push that may not leave now: a turn after the last one that
 * left, or after the last time that was given and has not come yet.
 */
extern int64_t recent_reserve(RecentAccounts *recent, uint64_t key, int64_t now);

/* One leaves now. */
extern void recent_note(RecentAccounts *recent, uint64_t key, int64_t now);

/* What has been noted from then on did not leave after all. */
extern void recent_forget(RecentAccounts *recent, int64_t since);

#endif							/* TIMPUSH_RECENT_H */
