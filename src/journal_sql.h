/*-------------------------------------------------------------------------
 *
 * journal_sql.h
 *	  Statements that read and write the journal, for the worker and for
 *	  sessions.
 *
 * "@" stands for the schema.  Names are looked up in pg_catalog only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_JOURNAL_SQL_H
#define TIMPUSH_JOURNAL_SQL_H

/* $1: new push_request rows, new push_result rows */
#define SQL_INSERT_REQUESTS \
	"INSERT INTO @.push_request SELECT * FROM unnest($1)"
#define SQL_INSERT_RESULTS \
	"INSERT INTO @.push_result SELECT * FROM unnest($1)"

/* $1: what load_member() wants, of the requests with these ids */
#define SQL_LOAD_MEMBERS \
	"SELECT r.request_id, r.push_id, r.first, r.accounts, r.expires_at, r.enqueued_at " \
	"FROM @.push_request q CROSS JOIN unnest(q.push_ids) p" \
	" JOIN @.push_result r ON r.push_id = p AND r.request_id = q.id " \
	"WHERE q.id = ANY ($1) ORDER BY r.request_id, r.first"

/* $1: changed push_request rows; without a class the last outcome stays */
#define SQL_CHANGE_REQUESTS \
	"UPDATE @.push_request q SET state = u.state, msg_random = u.msg_random," \
	" attempts = u.attempts, resends = u.resends, in_doubt = u.in_doubt," \
	" http_status = CASE WHEN u.class IS NULL THEN q.http_status ELSE u.http_status END," \
	" task_id = u.task_id," \
	" error_code = CASE WHEN u.class IS NULL THEN q.error_code ELSE u.error_code END," \
	" error_info = CASE WHEN u.class IS NULL THEN q.error_info ELSE u.error_info END," \
	" class = coalesce(u.class, q.class), maybe_duplicate = u.maybe_duplicate," \
	" first_sent_at = u.first_sent_at, next_attempt_at = u.next_attempt_at," \
	" finished_at = u.finished_at, latency = coalesce(u.latency, q.latency) " \
	"FROM unnest($1) u WHERE q.id = u.id"

/* $1: changed push_result rows */
#define SQL_CHANGE_RESULTS \
	"UPDATE @.push_result r SET state = u.state, failed = u.failed," \
	" retried = u.retried, maybe_duplicate = u.maybe_duplicate," \
	" finished_at = u.finished_at " \
	"FROM unnest($1) u WHERE r.request_id = u.request_id AND r.push_id = u.push_id"

/* $1: push_result rows that move from a request to its child */
#define SQL_MOVE_RESULTS \
	"UPDATE @.push_result r SET request_id = u.request_id, first = u.first," \
	" accounts = u.accounts, state = u.state, maybe_duplicate = u.maybe_duplicate," \
	" finished_at = u.finished_at " \
	"FROM unnest($1) u JOIN @.push_request c ON c.id = u.request_id " \
	"WHERE r.request_id = c.parent AND r.push_id = u.push_id"

/* $1: a server that is no more; its requests that would go again do not */
#define SQL_END_REQUESTS \
	"WITH q AS (" \
	" UPDATE @.push_request SET next_attempt_at = NULL, finished_at = clock_timestamp()," \
	"  state = CASE WHEN in_doubt OR maybe_duplicate THEN 'unknown' ELSE 'cancelled' END" \
	" WHERE server = $1 AND next_attempt_at IS NOT NULL AND state = 'retry'" \
	" RETURNING id, push_ids, state, finished_at) " \
	"UPDATE @.push_result r SET state = q.state, finished_at = q.finished_at " \
	"FROM q CROSS JOIN unnest(q.push_ids) p WHERE r.push_id = p AND r.request_id = q.id"

#endif							/* TIMPUSH_JOURNAL_SQL_H */
