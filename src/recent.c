/*-------------------------------------------------------------------------
 *
 * recent.c
 *	  Which accounts have been sent which content within the last second.
 *
 * The service drops what it takes for a repetition within a second.  So a
 * second push of the same content to the same account waits at least that
 * long, a third one a second more, and so on.
 *
 * A hash table of 64-bit keys.  Two keys that are equal by chance delay a
 * push by a second, no more.
 *
 * Crash story: lives in the worker's memory alone.  A worker that starts
 * begins empty; what was put off keeps its time, which is in the outbox.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include "common/hashfn.h"

#include "recent.h"

#define INITIAL_SIZE	1024

RecentAccounts *
recent_create(void)
{
	RecentAccounts *recent = palloc0(sizeof(RecentAccounts));

	recent->size = INITIAL_SIZE;
	recent->entries = palloc0(sizeof(RecentEntry) * recent->size);
	return recent;
}

void
recent_free(RecentAccounts *recent)
{
	pfree(recent->entries);
	pfree(recent);
}

uint64_t
recent_key(int64_t content_key, const char *account, size_t len)
{
	uint64_t	key = hash_bytes_extended((const unsigned char *) account,
										  (int) len, (uint64) content_key);

	return key != 0 ? key : 1;
}

static size_t
slot_of(const RecentAccounts *recent, uint64_t key)
{
	size_t		slot = key & (recent->size - 1);

	while (recent->entries[slot].key != 0 && recent->entries[slot].key != key)
		slot = (slot + 1) & (recent->size - 1);
	return slot;
}

static int64_t
last_time(const RecentEntry *entry)
{
	return Max(entry->left, entry->reserved);
}

/*
 * Enter those entries anew that still matter, into a table with room for as
 * many again.  It stays in the memory context in which it was made.
 */
static void
rebuild(RecentAccounts *recent, int64_t now)
{
	bool		clock_set_back = now < recent->swept - RECENT_APART_US;
	size_t		nkept = 0;
	size_t		size = INITIAL_SIZE;
	RecentEntry *kept = palloc(sizeof(RecentEntry) * Max(recent->used, 1));

	for (size_t i = 0; i < recent->size; i++)
	{
		const RecentEntry *entry = &recent->entries[i];

		if (entry->key != 0 && !clock_set_back &&
			last_time(entry) > now - RECENT_TURN_US)
			kept[nkept++] = *entry;
	}
	while (size < nkept * 4)
		size *= 2;
	if (size != recent->size)
		recent->entries = repalloc(recent->entries, sizeof(RecentEntry) * size);
	recent->size = size;
	memset(recent->entries, 0, sizeof(RecentEntry) * size);
	for (size_t i = 0; i < nkept; i++)
		recent->entries[slot_of(recent, kept[i].key)] = kept[i];
	recent->used = nkept;
	recent->swept = now;
	pfree(kept);
}

static RecentEntry *
find_or_add(RecentAccounts *recent, uint64_t key, int64_t now)
{
	RecentEntry *entry;

	/* at half full; or now and then, so that a burst gives its memory back */
	if (recent->used * 2 >= recent->size ||
		now - recent->swept > 10 * RECENT_APART_US ||
		now < recent->swept - RECENT_APART_US)
		rebuild(recent, now);
	entry = &recent->entries[slot_of(recent, key)];
	if (entry->key == 0)
	{
		entry->key = key;
		entry->left = entry->reserved = INT64_MIN;
		recent->used++;
	}
	return entry;
}

int64_t
recent_allows(const RecentAccounts *recent, uint64_t key, int64_t now)
{
	const RecentEntry *entry = &recent->entries[slot_of(recent, key)];

	/* a clock that was set back does not make anybody wait for longer */
	if (entry->key == 0 || entry->left > now + RECENT_APART_US ||
		entry->left <= now - RECENT_APART_US)
		return now;
	return entry->left + RECENT_APART_US;
}

int64_t
recent_reserve(RecentAccounts *recent, uint64_t key, int64_t now)
{
	RecentEntry *entry = find_or_add(recent, key, now);
	int64_t		free = Max(entry->left + RECENT_TURN_US, now);

	/* whose time has come without that it left stands for no other one */
	if (entry->reserved > now)
		free = Max(free, entry->reserved + RECENT_TURN_US);
	entry->reserved = free;
	return entry->reserved;
}

void
recent_note(RecentAccounts *recent, uint64_t key, int64_t now)
{
	find_or_add(recent, key, now)->left = now;
}

/* Who was allowed to leave then had not left for long, so nothing is lost. */
void
recent_forget(RecentAccounts *recent, int64_t since)
{
	for (size_t i = 0; i < recent->size; i++)
	{
		if (recent->entries[i].key != 0 && recent->entries[i].left >= since)
			recent->entries[i].left = INT64_MIN;
	}
}
