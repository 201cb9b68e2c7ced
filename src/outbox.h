/*-------------------------------------------------------------------------
 *
 * outbox.h
 *	  The worker's SQL: claiming what may leave, recording what came of it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_OUTBOX_H
#define TIMPUSH_OUTBOX_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "aside.h"
#include "front.h"
#include "recent.h"
#include "request.h"
#include "retention.h"
#include "server.h"

/* What push_server says of a server. */
typedef struct ServerState
{
	bool		paused;			/* paused or held: nothing may leave */
	bool		held;			/* the database is a copy of another one */
	bool		suspended;
	char	   *reason;			/* of its trouble, NULL: none */
	int			error_code;
	TimestampTz next_probe_at;	/* of a server that is left alone, else 0 */
	uint64		options_version;	/* under which that was so */
	int			rests;			/* how often in a row it has been left alone */
	int			most_accounts;	/* that a call may have; 0: not known */
	uint64		random_key;
	TimestampTz since;			/* differs after any change by somebody else */
} ServerState;

/* Who makes a server's row in push_server holds this lock on the server. */
#define SERVER_ROW_LOCK	ShareUpdateExclusiveLock

typedef enum OutboxFound
{
	OUTBOX_ABSENT,				/* timpush is not in the database */
	OUTBOX_UNFIT,				/* its version or tables are not what we know */
	OUTBOX_FOUND
} OutboxFound;

/*
 * Find our tables in the current database, and say in the log what is wrong
 * with them.  In a transaction.
 */
extern OutboxFound outbox_open(void);

typedef enum OutboxAccess
{
	OUTBOX_READY,				/* a transaction is open */
	OUTBOX_LOCKED,				/* somebody has locked our tables */
	OUTBOX_GONE					/* they are not those of outbox_open() */
} OutboxAccess;

/*
 * A transaction with the rights of the tables' owner, if there can be one
 * now.  It holds all the locks that it will need, so that it never waits for
 * one: neither can it deadlock with DDL, nor be in its way for long.
 */
extern OutboxAccess outbox_begin(void);
extern void outbox_commit(void);
extern void outbox_abort(void);

/*
 * Were the pushes enqueued in this database?  Where they come from elsewhere,
 * all servers become "held", and it counts as an original from then on; *held
 * tells whether there was one to be held.
 */
typedef enum OutboxOrigin
{
	OUTBOX_UNUSED,				/* nothing was enqueued and nothing came */
	OUTBOX_ORIGINAL,
	OUTBOX_COPY
} OutboxOrigin;

extern OutboxOrigin outbox_find_origin(bool *held);

/* Is that so still?  If not, whoever asks has to begin anew. */
extern bool outbox_same_origin(void);

/*
 * push_server's row of the server, made if it is not there; palloc'd text.
 * False if it is not there and cannot be made now.
 */
extern bool outbox_server_state(const ServerOptions *server, ServerState *state);

/*
 * Note why a server does not send, or that it does again (no reason), and
 * what a new worker shall know; keys and options are not looked at.  False if
 * nothing was noted: the server is paused or held, or somebody is about to
 * change its row.
 */
extern bool outbox_note_server(const ServerOptions *server, const ServerState *state);

/*
 * How often a claim has found no row to ride along behind the first ones; the
 * caller keeps it for each server.
 */
typedef struct RiderHistory
{
	int			misses;			/* looks in a row that found none */
	int			skipped;		/* claims since the last look */
} RiderHistory;

/* What claiming for a server takes, and keeps from one claim to the next. */
typedef struct Claim
{
	const ServerOptions *server;
	uint64		random_key;
	bool		probe;			/* one account of what has waited longest */
	int			size;			/* accounts that a new request may carry ... */
	int			size_again;		/* ... and one that goes again */
	bool		scarce;			/* there is a limit of calls or accounts */
	bool		alone;			/* nothing but the heads */
	RiderHistory *riders;
	Front	   *front;
	Position   *retry_front;
	RecentAccounts *recent;
} Claim;

/*
 * Take what may leave now, in a transaction: rows of push_outbox become
 * requests in the journal.  Returns at most "max" of them, each in a context
 * of its own under "parent".  *due becomes the time of the first push that
 * waits, DT_NOEND if none does.
 */
extern List *outbox_claim(Claim *claim, int max, TimestampTz *due, MemoryContext parent);

/*
 * Requests whose time to go again has come, likewise; their front, before
 * which there is none, moves on to the first that is left.  One that has too
 * many accounts and is not in doubt is cut first.
 */
extern List *outbox_claim_retries(Claim *claim, int max, MemoryContext parent);

/* Move the fronts of a server to what waits now, and take nothing. */
extern void outbox_look(const ServerOptions *server, Front *front, Position *retry_front);

/*
 * Give an outcome to pushes, of any server, that expired while they waited,
 * as many as fit into a short transaction.  *front, before which none expires,
 * moves on; *due becomes the time at which the next one expires, DT_NOEND if
 * none does.  One "alone", if that is asked for.  Returns how many requests
 * they made.
 */
extern int	outbox_expire(Position *front, bool alone, TimestampTz *due);

/*
 * Likewise for pushes of a server that expired in requests that are to go
 * again.  Returns how many requests they were in.
 */
extern int	outbox_expire_retries(const ServerOptions *server, bool alone, TimestampTz *due);

/*
 * Requests that an earlier worker left in flight, as if their attempts had
 * just ended in doubt; the caller plans and records the next step.  Not those
 * that are "known", and only one if that is to be "alone".
 */
extern List *outbox_orphans(const List *known, bool alone, MemoryContext parent);

/*
 * The rows of this list are left out of everything else, until they are asked
 * for by their ids: a push that is claimed, or only expired if "claim" is
 * NULL; a request that goes again or has expired; an orphan.  Each returns
 * at most one request, and none if somebody has locked the row.
 */
extern void outbox_leave_out(const AsideList *list);
extern List *outbox_claim_push(Claim *claim, int64 id, MemoryContext parent);
extern List *outbox_claim_request(const Claim *claim, int64 id, MemoryContext parent);
extern List *outbox_orphan(int64 id, MemoryContext parent);

/*
 * After an error: the row that the transaction had begun with.  False if
 * there was none or more than one.
 */
extern bool outbox_suspect(AsideKind *kind, int64 *id);

/*
 * Note that no request with a smaller id is in flight for the first time, so
 * that a worker that starts need not search the whole journal for orphans.
 */
extern void outbox_note_in_flight(int64 first);

/* Record the outcomes and steps of the requests. */
extern void outbox_record(List *requests);

/* End what would go again for a server that is no more. */
extern void outbox_end_server(Name server);

/*
 * One step of removing what is older than timpush.retention: as many rows as
 * fit into a short transaction; a large push leaves as a whole.
 */
extern void outbox_remove_old(Retention *retention);

#endif							/* TIMPUSH_OUTBOX_H */
