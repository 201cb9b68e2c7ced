/*-------------------------------------------------------------------------
 *
 * sender.h
 *	  One server of the database: its options, signature, connections, limits
 *	  and health.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_SENDER_H
#define TIMPUSH_SENDER_H

#include "postgres.h"

#include "apps.h"
#include "breaker.h"
#include "http.h"
#include "outbox.h"
#include "request.h"
#include "server.h"
#include "stats.h"
#include "usersig.h"

typedef struct Sender
{
	MemoryContext context;		/* holds the options */
	ServerOptions *options;
	AppUser		app;			/* whose limits it shares */
	HttpPool   *pool;
	StatsServer *stats;			/* NULL: there was no room */
	ServerState state;			/* as push_server has it */

	char		usersig[USERSIG_MAX_LEN];	/* empty: to be made */
	TimestampTz usersig_renew_at;
	int			usersig_serial; /* counts those that were made */
	int			renewed_serial; /* first one made because the API refused its
								 * predecessor; 0: none */

	int			in_flight;
	List	   *ready;			/* claimed, but may not leave yet */
	TimestampTz push_due;		/* look into the outbox then; 0: now */
	TimestampTz retry_due;		/* look for requests to go again then */
	TimestampTz retry_expiry;	/* no push in one of them expires before */
	Front		front;			/* no waiting push stands before it ... */
	Position	retry_front;	/* ... and no request that goes again */
	RecentAccounts *recent;		/* of all servers of the database */
	TimestampTz last_claim;
	RiderHistory riders;
	int			turn;			/* counts claims, to share them with retries */

	TimestampTz blocked_until;	/* nothing leaves before */
	TimestampTz rests_until;	/* its rows make transactions fail ... */
	int64		rest_pause;		/* ... 0: they do not */
	TimestampTz stopped_at;		/* when it was suspended */
	TimestampTz changed_at;		/* when its options last changed */
	Breaker		breaker;
	int			refusals;		/* answers without a body, 4xx, in a row */
	int			stops;			/* server-stop outcomes in a row */
	int			most_accounts;	/* that a call may have, by what the API has
								 * refused; 0: not known */
	bool		recovering;		/* what kept it back is over; see
								 * sender_recover() */

	/* what push_server should say; written by the next transaction */
	char	   *problem;		/* NULL: none */
	int			problem_code;
	bool		suspended;
	bool		problem_changed;
	bool		rest_changed;	/* what a new worker shall know has, besides */
	TimestampTz noted;			/* "since" as the transaction has written it;
								 * 0: not */
} Sender;

/* A sender of the server, without connections yet. */
extern Sender *sender_create(MemoryContext parent, Oid serverid, RecentAccounts *recent);

/* Look at everything that waits, from the beginning. */
extern void sender_look_anew(Sender *sender);

/* Pushes were committed of which the first may be sent then. */
extern void sender_note_pushes(Sender *sender, TimestampTz send_at);

/*
 * Take over what push_server says, in a transaction.  If somebody else has
 * changed it, the server's trouble is forgotten and it is tried at once.
 * False if it cannot be read now.
 */
extern bool sender_load_state(Sender *sender);

/* Take over options that may have changed; in a transaction. */
extern void sender_refresh(Sender *sender);

/* Forget the server; what is in flight goes on. */
extern void sender_destroy(Sender *sender);

/* When there is something to claim, DT_NOEND if never. */
extern TimestampTz sender_due(const Sender *sender);

/*
 * When something may leave, as far as that is known; DT_NOEND if never.
 * *busy becomes true if pushes wait for nothing but their turn by the rate.
 */
extern TimestampTz sender_leaves(const Sender *sender, TimestampTz now, bool *busy);

/* Is it not known what waits, but should be before anything is claimed? */
extern bool sender_must_look(const Sender *sender);

/*
 * To be called with what waits known, before anything is claimed: if the
 * server goes on after something has kept it back for long, it begins slowly.
 */
extern void sender_recover(Sender *sender, TimestampTz now);

/*
 * May something leave now, as far as signature, health, limit and room go?
 * Returns how many requests, and otherwise lowers *when to the time when it
 * is worth asking again.
 */
extern int	sender_room(Sender *sender, TimestampTz now, TimestampTz *when);

/*
 * How many accounts a request may carry now, and whether calls are scarce,
 * so that it pays to fill them.
 */
extern int	sender_request_size(const Sender *sender, TimestampTz now, bool *scarce);

/* The most that it may ever carry, by its options and what was refused. */
extern int	sender_most_accounts(const Sender *sender);

/*
 * Send the request, or keep it until the limit lets it leave.  A request
 * that cannot leave at all, or not soon, is judged: true.
 */
extern bool sender_send(Sender *sender, Request *request);

/*
 * A claimed request does not leave after all: judge it so that it goes back
 * into the journal, to be claimed again.
 */
extern void sender_put_back(Sender *sender, Request *request, const char *why);

/* The next kept request that sender_send() would not keep, or NULL. */
extern Request *sender_next_ready(Sender *sender, TimestampTz now);

/* When the next kept request may leave, DT_NOEND if there is none. */
extern TimestampTz sender_ready_due(const Sender *sender, TimestampTz now);

/*
 * A kept request that shall not leave after all, judged, or NULL if there is
 * none.
 */
extern Request *sender_take_back(Sender *sender, const char *why);

/* Judge a finished transfer: outcome, next step, health of the server. */
extern void sender_judge(Sender *sender, Request *request, const Transfer *transfer);

/* Judge a request that was left in flight; sender may be NULL. */
extern void sender_judge_orphan(Sender *sender, Request *request);

/* Has anything about the server changed that is to be written? */
extern bool sender_has_news(const Sender *sender);

/*
 * Write what has changed about the server, in a transaction; false if that is
 * to be tried again after sender_load_state().  And when it is committed:
 */
extern bool sender_note_problem(Sender *sender);
extern void sender_problem_noted(Sender *sender);

#endif							/* TIMPUSH_SENDER_H */
