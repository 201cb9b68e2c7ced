/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  What a server may claim now, and how much.
 *
 * All of it happens in a transaction of the cycle's.
 *
 * Crash story: nothing that is claimed has left before the commit, and
 * without it nothing is claimed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "claim.h"
#include "outbox.h"

/*
 * When to look again: at once if this look came to something and more is due;
 * what is due but locked by another session, in a while.
 */
static TimestampTz
look_again(TimestampTz due, List *requests, TimestampTz now)
{
	return due <= now && requests == NIL ? now + LOCKED_PAUSE_US : due;
}

static Claim
claim_of(Sender *sender, const ClaimRound *turn)
{
	Claim		claim = {
		.server = sender->options,
		.random_key = sender->state.random_key,
		.probe = sender->suspended,
		.size_again = sender_most_accounts(sender),
		.alone = turn->alone,
		.riders = &sender->riders,
		.front = &sender->front,
		.retry_front = &sender->retry_front,
		.recent = sender->recent,
	};

	claim.size = sender_request_size(sender, turn->now, &claim.scarce);
	return claim;
}

static List *
claim_retries(Sender *sender, int room, const ClaimRound *turn)
{
	Claim		claim;
	List	   *requests;

	if (room <= 0 || sender->retry_due > turn->now)
		return NIL;
	claim = claim_of(sender, turn);
	requests = outbox_claim_retries(&claim, room, turn->parent);
	sender->retry_due = look_again(sender->retry_front.at, requests, turn->now);
	return requests;
}

static List *
claim_fresh(Sender *sender, int room, const ClaimRound *turn)
{
	Claim		claim;
	List	   *requests;
	TimestampTz due;

	if (room <= 0 || sender->push_due > turn->now)
		return NIL;
	claim = claim_of(sender, turn);
	requests = outbox_claim(&claim, room, &due, turn->parent);
	sender->push_due = look_again(due, requests, turn->now);
	return requests;
}

/* Find out what waits before anything is done about it. */
static void
look_for_work(Sender *sender)
{
	if (!sender_must_look(sender))
		return;
	outbox_look(sender->options, &sender->front, &sender->retry_front);
	sender->push_due = front_first(&sender->front).at;
	sender->retry_due = sender->retry_front.at;
}

/*
 * Has another server of the app claimed something in this round?  Where calls
 * are scarce that is what the app's next token is for.
 */
static bool
app_has_claimed(const Sender *sender, const ClaimRound *turn)
{
	ListCell   *cell;
	bool		scarce;

	(void) sender_request_size(sender, turn->now, &scarce);
	if (!scarce)
		return false;
	foreach(cell, turn->senders)
	{
		const Sender *other = lfirst(cell);

		if (other != sender && other->last_claim == turn->now &&
			other->options->sdkappid == sender->options->sdkappid)
			return true;
	}
	return false;
}

/* How many requests may be claimed now? */
static int
room_of(Sender *sender, const ClaimRound *turn)
{
	TimestampTz when = DT_NOEND;
	int			room = sender_room(sender, turn->now, &when);

	if (room == 0 || app_has_claimed(sender, turn))
		return 0;
	sender->last_claim = turn->now;
	return turn->alone ? 1 : room;
}

/*
 * Of every four claims, one lets the retries go first; and so does a probe,
 * as what has been tried before has waited longest.
 */
List *
claim_for(Sender *sender, const ClaimRound *turn)
{
	int			room;
	List	   *requests;

	look_for_work(sender);
	sender_recover(sender, turn->now);
	room = room_of(sender, turn);
	if (room == 0)
		return NIL;
	if (sender->suspended || sender->turn++ % 4 == 0)
	{
		requests = claim_retries(sender, Max(room / 4, 1), turn);
		return list_concat(requests,
						   claim_fresh(sender, room - list_length(requests), turn));
	}
	requests = claim_fresh(sender, room, turn);
	return list_concat(requests,
					   claim_retries(sender, room - list_length(requests), turn));
}

List *
claim_aside(Sender *sender, const Aside *row, const ClaimRound *turn, bool *later)
{
	Claim		claim;

	if (row->server == InvalidOid)
		return outbox_claim_push(NULL, row->id, turn->parent);
	if (sender == NULL)
		return NIL;
	/* it waits, although no look at the queue shows it */
	if (row->kind == ASIDE_PUSH)
		sender->push_due = Min(sender->push_due, turn->now);
	else
		sender->retry_due = Min(sender->retry_due, turn->now);
	*later = room_of(sender, turn) == 0;
	if (*later)
		return NIL;
	claim = claim_of(sender, turn);
	if (row->kind == ASIDE_REQUEST)
		return outbox_claim_request(&claim, row->id, turn->parent);
	return outbox_claim_push(&claim, row->id, turn->parent);
}

bool
claim_retries_expire(const Sender *sender, TimestampTz now)
{
	bool		ignored = false;

	return sender->retry_expiry <= now && sender_leaves(sender, now, &ignored) > now;
}

void
claim_expire_retries(Sender *sender, const ClaimRound *turn)
{
	int			nrequests;

	if (!claim_retries_expire(sender, turn->now))
		return;
	nrequests = outbox_expire_retries(sender->options, turn->alone, &sender->retry_expiry);
	if (nrequests == 0)
		sender->retry_expiry = Max(sender->retry_expiry, turn->now + EXPIRY_PAUSE_US);
}
