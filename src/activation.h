/*-------------------------------------------------------------------------
 *
 * activation.h
 *	  Where the database's pushes were enqueued.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_ACTIVATION_H
#define TIMPUSH_ACTIVATION_H

#include "postgres.h"

/*
 * Statements for the worker and for sessions; "@" stands for the schema.  To
 * own up to what was copied is to run the three of them in this order, the
 * others only if the first has found something.
 *
 * $1 and $2 are this cluster and database.  The journal of a copy is searched
 * whole for what was in flight, and its servers draw keys of their own, or it
 * would go on with the MsgRandoms of the original.
 */
#define SQL_FORGET_COPIED \
	"WITH gone AS (" \
	" DELETE FROM @.push_activation WHERE system_identifier <> $1 OR database_oid <> $2 RETURNING 1), " \
	"keys AS (DELETE FROM @.push_server_key WHERE EXISTS (SELECT FROM gone)) " \
	"UPDATE @.push_worker SET first_in_flight = 0 WHERE EXISTS (SELECT FROM gone)"

/* Also a server that only pushes name: it may be created yet. */
#define SQL_HOLD_SERVERS \
	"INSERT INTO @.push_server AS p (server, state, reason, since) " \
	"SELECT n.server, 'held', 'copied from another database; timpush_resume() lets it send', clock_timestamp() " \
	"FROM (SELECT s.srvname FROM pg_foreign_server s" \
	"  JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE w.fdwname = 'timpush'" \
	" UNION SELECT server FROM @.push_outbox" \
	" UNION SELECT server FROM @.push_request WHERE state IN ('sending', 'retry')) n(server) " \
	"ON CONFLICT (server) DO UPDATE SET state = excluded.state, reason = excluded.reason," \
	" error_code = NULL, next_probe_at = NULL, since = excluded.since " \
	"WHERE p.state <> 'held'"

#define SQL_NOTE_ACTIVATION \
	"INSERT INTO @.push_activation DEFAULT VALUES"

/*
 * Note in push_activation, unless there is a note of whatever kind, that
 * pushes are enqueued in this cluster and database; "outbox" is push_outbox.
 * In a transaction, with any rights.
 */
extern void activation_ensure(Oid outbox);

/*
 * Note that a row of push_outbox comes from elsewhere, so that all servers
 * become "held": one that a session brings, always; one of a subscription,
 * only where nothing has been noted yet.
 */
extern void activation_note_copied(Oid outbox, bool subscribed);

#endif							/* TIMPUSH_ACTIVATION_H */
