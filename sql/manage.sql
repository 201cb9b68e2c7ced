--
-- timpush_cancel, timpush_retry, timpush_pause, timpush_resume, push_progress
--
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET client_min_messages = error;
DROP ROLE IF EXISTS regress_timpush_app, regress_timpush_two, regress_timpush_lead, regress_timpush_owner, regress_timpush_boss;
CREATE ROLE regress_timpush_app;
CREATE ROLE regress_timpush_two;
CREATE ROLE regress_timpush_lead NOINHERIT IN ROLE regress_timpush_app;
CREATE ROLE regress_timpush_owner;
CREATE ROLE regress_timpush_boss IN ROLE regress_timpush_owner;
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
CREATE SERVER chat2 FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888889', host '127.0.0.1:1');
GRANT USAGE ON FOREIGN SERVER chat TO regress_timpush_app, regress_timpush_two, regress_timpush_lead;
GRANT EXECUTE ON FUNCTION timpush_batch, timpush_cancel, timpush_retry
  TO regress_timpush_app, regress_timpush_two, regress_timpush_lead;
SET timpush.default_server = 'chat';

-- what is left of the outbox and what the journal has, in few words
CREATE FUNCTION outbox() RETURNS SETOF text LANGUAGE sql AS $$
  SELECT concat_ws(' ', to_accounts, title, descr, data_id, extra, priority, on_unknown, dedup_key,
                   CASE enqueued_by WHEN session_user THEN 'superuser' ELSE enqueued_by END,
                   CASE WHEN send_at > now() THEN 'later' END, expires_at - created_at)
  FROM push_outbox ORDER BY id
$$;
CREATE FUNCTION journal(first bigint) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT concat_ws(' ', q.state, q.accounts, 'MsgRandom ' || q.msg_random, q.next_attempt_at AT TIME ZONE 'UTC', q.class, q.error_code,
                   CASE WHEN q.parent IS NOT NULL THEN 'child' END, CASE WHEN q.finished_at IS NOT NULL THEN 'finished' END,
                   '|', r.push_id, r.first, r.accounts, r.state, r.dedup_key, CASE WHEN r.finished_at IS NOT NULL THEN 'finished' END)
  FROM push_request q LEFT JOIN push_result r ON r.request_id = q.id
  WHERE $1 = ANY (q.push_ids)
  ORDER BY q.id, r.first
$$;

--
-- Cancelling
--
SELECT timpush_cancel(NULL) IS NULL, timpush_cancel(0), timpush_cancel(-1), timpush_cancel(9223372036854775807);
SELECT timpush_batch('boss', '{u1,u2}', 'Hello', 'World', 'd', extra => '{"OfflinePushInfo": {"Ext": {"a": 1}}}', dedup_key => 'k',
                     send_at => '2100-01-01') AS id \gset
SELECT timpush_cancel(:id);
SELECT timpush_cancel(:id);
SELECT outbox();
SELECT regexp_replace(journal(:id), '\| \d+ ', '| N ');
SELECT content, on_unknown, first_sent_at, attempts FROM push_request WHERE :id = ANY (push_ids);
SELECT state, accounts, cancelled, waiting, finished_at = (SELECT max(finished_at) FROM push_result WHERE push_id = :id), data_id
FROM push_status WHERE push_id = :id;
-- its key stays known
SELECT timpush_batch('boss', '{u9}', 'Hello', 'World', dedup_key => 'k') = :id;
-- in one's own transaction, and rolled back
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') AS id \gset
SAVEPOINT s;
SELECT timpush_cancel(:id), timpush_cancel(:id);
SELECT count(*) FROM push_outbox;
ROLLBACK TO s;
SELECT count(*) FROM push_outbox;
SELECT timpush_cancel(:id);
COMMIT;
SELECT state FROM push_status WHERE push_id = :id;
BEGIN READ ONLY;
SELECT refused('SELECT timpush_cancel(1)'), refused('SELECT timpush_retry(1)'), refused('SELECT timpush_pause(''chat'')'),
       refused('SELECT timpush_resume(''chat'')');
ROLLBACK;
-- the snapshot of a transaction is kept
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', send_at => '2100-01-01') AS id \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT timpush_cancel(:id), timpush_cancel(:id);
COMMIT;

-- what has left the outbox, as the journal may have it
SELECT journal_request(-100 - n, ARRAY[-n], '{u1}', s) <> journal_result(-n, -100 - n, 1, 1, r)
FROM (VALUES (1, 'sending', 'sending'), (2, 'retry', 'retry'), (3, 'retry', 'retry'), (4, 'retry', 'retry'), (5, 'done', 'sent'),
             (6, 'unknown', 'unknown')) v(n, s, r);
UPDATE push_request SET next_attempt_at = '2100-01-01' WHERE state = 'retry';
UPDATE push_request SET in_doubt = true WHERE id = -103;
UPDATE push_request SET maybe_duplicate = true WHERE id = -104;
SELECT n, timpush_cancel(-n) FROM generate_series(1, 6) n;
SELECT journal(-2);
-- one of several in a request: the others go on in another one at the same time
SELECT journal_request(-200, '{-11,-12,-13}', '{a1,a2,b1,c1,c2}', 'retry', 7);
UPDATE push_request SET next_attempt_at = '2100-01-01', attempts = 2, error_code = 91000, error_info = 'busy', class = 'transient'
  WHERE id = -200;
SELECT journal_result(-11, -200, 1, 2, 'retry', key => 'k11'), journal_result(-12, -200, 3, 1, 'retry'), journal_result(-13, -200, 4, 2, 'retry');
SELECT timpush_cancel(-12);
SELECT journal(-12) UNION ALL SELECT journal(-11);
SELECT timpush_cancel(-11), timpush_cancel(-12);
SELECT timpush_cancel(-13), timpush_cancel(-13);
SELECT state, count(*) FROM push_request WHERE -13 = ANY (push_ids) GROUP BY state ORDER BY state;
SELECT push_id, state, cancelled, error_code, error_info FROM push_status WHERE push_id BETWEEN -13 AND -11 ORDER BY push_id;
-- what has been handed out in part
SELECT timpush_batch('boss', '{u1,u2,u3,u4}', 'Hello', 'World', send_at => '2100-01-01') AS id \gset
UPDATE push_outbox SET handed_out = 3, handed_bytes = 24 WHERE id = :id;
SELECT journal_request(-300, ARRAY[:id], '{u1,u2}', 'done', task_id => 't', error_code => 0), journal_result(:id, -300, 1, 2, 'sent', total => 4);
SELECT journal_request(-301, ARRAY[:id], '{u3}', 'sending', 2), journal_result(:id, -301, 1, 1, 'sending', total => 4);
SELECT timpush_cancel(:id), timpush_cancel(:id);
SELECT state, sent, cancelled, waiting FROM push_status WHERE push_id = :id;
SELECT accounts FROM push_request WHERE state = 'cancelled' AND :id = ANY (push_ids);

-- whose push it is
SET ROLE regress_timpush_app;
SELECT timpush_batch('boss', '{u1}', n::text, 'World', send_at => '2100-01-01') > 0 FROM generate_series(1, 4) n;
RESET ROLE;
SELECT min(id) AS one, min(id) + 1 AS two, min(id) + 2 AS three, min(id) + 3 AS four FROM push_outbox \gset
SET ROLE regress_timpush_two;
SELECT timpush_cancel(:one), left(refused(format('SELECT timpush_retry(%s)', :one)), 5);
SET ROLE regress_timpush_app;
SELECT timpush_cancel(:one), timpush_cancel(:one);
SELECT refused('SELECT timpush_pause(''chat'')');
SET ROLE regress_timpush_lead;
SELECT timpush_cancel(:two);
RESET ROLE;
SELECT timpush_cancel(:three);
SET ROLE regress_timpush_app;
SELECT state FROM push_status WHERE push_id IN (:one, :two, :three);
RESET ROLE;
DELETE FROM push_outbox WHERE id <> :four;
-- of a role that is gone
UPDATE push_outbox SET enqueued_by = 'regress_timpush_gone';
SET ROLE regress_timpush_app;
SELECT timpush_cancel(:four);
RESET ROLE;
SELECT timpush_cancel(:four);

--
-- Sending again
--
SELECT refused('SELECT timpush_retry(-999)');
SELECT timpush_retry(NULL) IS NULL;
SELECT refused('SELECT timpush_retry(-5)');
SELECT refused('SELECT timpush_retry(-1)');
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', send_at => '2100-01-01') AS id \gset
SELECT regexp_replace(refused(format('SELECT timpush_retry(%s)', :id)), 'push \d+', 'push N');
DELETE FROM push_outbox;
-- the accounts that were not accepted, wherever they are, in their order
SELECT journal_request(-400, '{-20,-21}', '{a1,a2,a3,b1}', 'done', 1,
                       '{"From_Account": "boss", "DataId": "d", "Classification": 1,
                         "OfflinePushInfo": {"Title": "T", "Desc": "D", "Ext": "{\"a\": 1}"}}', 't', 0);
UPDATE push_request SET on_unknown = 'hold' WHERE id = -400;
SELECT journal_result(-20, -400, 1, 3, 'partial', 1, total => 8), journal_result(-21, -400, 4, 1, 'sent');
INSERT INTO push_error VALUES (-20, -400, 'a2', 70107, '', 'bad-request', current_user), (-21, -400, 'b1', 1, '', 'x', current_user);
SELECT journal_request(-400 + n, '{-20}', ARRAY['x' || n], s), journal_result(-20, -400 + n, 1, 1, s, total => 8)
FROM (VALUES (1, 'expired'), (2, 'cancelled'), (3, 'unknown'), (4, 'failed')) v(n, s);
SELECT journal_request(-390, '{-20}', '{a4}', 'done', 2), journal_result(-20, -390, 1, 1, 'sent', total => 8);
UPDATE push_result SET priority = 6 WHERE push_id = -20;
SELECT state, sent, failed, expired, cancelled, unknown FROM push_status WHERE push_id = -20;
SET timpush.default_ttl = '2h';
SET timpush.on_unknown = 'accept';
SELECT timpush_retry(-20) > 0;
SELECT outbox();
DELETE FROM push_outbox;
-- no more than what was said; by the caller's default life
SET timpush.default_ttl = 0;
SELECT journal_request(-410, '{-22}', '{a1}', 'failed', 1, '{"From_Account": "boss", "OfflinePushInfo": {"Title": "T"}}'),
       journal_result(-22, -410, 1, 1, 'failed', 1);
SELECT journal_request(-411, '{-23}', '{a1}', 'failed', 1, '{"From_Account": "boss", "OfflinePushInfo": {"Desc": ""}, "X": [1]}'),
       journal_result(-23, -411, 1, 1, 'failed', 1, role => 'regress_timpush_app');
UPDATE push_request SET content = '{"From_Account": "boss", "OfflinePushInfo": {"Title": "", "Desc": "D"}, "X": [1]}' WHERE id = -411;
SELECT timpush_retry(-22) > 0, timpush_retry(-23) > 0;
SELECT outbox();
SELECT title IS NULL, title = '', descr IS NULL, data_id IS NULL, extra FROM push_outbox ORDER BY id;
-- so that it can share a call with another one of the same content
RESET timpush.on_unknown;
SELECT timpush_batch('boss', '{a2}', 'T', NULL) > 0;
SELECT count(*), count(DISTINCT content_key) FROM push_outbox WHERE title = 'T';
DELETE FROM push_outbox;
RESET timpush.default_ttl;
-- in the name of the caller, who needs USAGE on the server
SET ROLE regress_timpush_lead;
SELECT timpush_retry(-23) > 0;
RESET ROLE;
SELECT outbox();
DELETE FROM push_outbox;
REVOKE USAGE ON FOREIGN SERVER chat FROM regress_timpush_app;
SET ROLE regress_timpush_app;
SELECT refused('SELECT timpush_retry(-23)');
RESET ROLE;
UPDATE push_result SET server = 'nowhere' WHERE push_id = -22;
SELECT refused('SELECT timpush_retry(-22)');

--
-- Pausing
--
CREATE FOREIGN DATA WRAPPER other;
CREATE SERVER alien FOREIGN DATA WRAPPER other;
SELECT refused(format('SELECT %s(%s)', f, s)) FROM unnest('{timpush_pause,timpush_resume}'::text[]) f,
  unnest(ARRAY['NULL', '''nowhere''', '''alien''']) s;
ALTER SERVER chat2 OWNER TO regress_timpush_owner;
GRANT EXECUTE ON FUNCTION timpush_pause, timpush_resume TO regress_timpush_app, regress_timpush_owner, regress_timpush_boss;
GRANT USAGE ON FOREIGN SERVER chat2 TO regress_timpush_app;
SET ROLE regress_timpush_app;
SELECT refused('SELECT timpush_pause(''chat2'')'), refused('SELECT timpush_resume(''chat2'')');
RESET ROLE;
CREATE FUNCTION server(name) RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', state, reason, error_code, since > now() - interval '1 minute', next_probe_at) FROM push_server WHERE server = $1
$$;
DELETE FROM push_server WHERE server IN ('chat', 'chat2');
SET ROLE regress_timpush_boss;
SELECT timpush_pause('chat2');
SELECT server('chat2');
SELECT timpush_pause('chat2');
SET ROLE regress_timpush_owner;
SELECT timpush_resume('chat2');
SELECT server('chat2');
SELECT timpush_resume('chat2');
SELECT timpush_pause('chat2');
SELECT server('chat2');
RESET ROLE;
SELECT timpush_resume('chat2');
-- whatever state it is in
CREATE FUNCTION pg_temp.put(text) RETURNS void LANGUAGE sql AS $$
  UPDATE push_server SET state = $1, reason = 'some reason', error_code = 70009, since = '2000-01-01', next_probe_at = '2100-01-01'
  WHERE server = 'chat2'
$$;
BEGIN;
SELECT pg_temp.put('suspended');
SELECT timpush_pause('chat2');
SELECT regexp_replace(server('chat2'), 'by .* t', 'by ROLE t');
SELECT pg_temp.put('held');
SELECT timpush_pause('chat2');
SELECT server('chat2');
SELECT timpush_resume('chat2');
SELECT server('chat2');
SELECT pg_temp.put('suspended');
SELECT timpush_resume('chat2');
SELECT server('chat2');
SELECT pg_temp.put('active');
SELECT timpush_resume('chat2');
SELECT server('chat2');
ROLLBACK;
DROP FUNCTION server(name);

--
-- Objects in front of the search path are not used
--
CREATE SCHEMA regress_timpush_trap;
CREATE FUNCTION regress_timpush_trap.eq(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE OPERATOR regress_timpush_trap.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = regress_timpush_trap.eq);
CREATE FUNCTION regress_timpush_trap.eq(name, name) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE OPERATOR regress_timpush_trap.= (LEFTARG = name, RIGHTARG = name, FUNCTION = regress_timpush_trap.eq);
CREATE FUNCTION regress_timpush_trap.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE TABLE regress_timpush_trap.push_outbox (id bigint);
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', send_at => '2100-01-01') AS id \gset
SET search_path = regress_timpush_trap, pg_catalog, public;
SELECT public.timpush_cancel(:id), public.timpush_retry(:id) > 0;
SELECT public.timpush_pause('chat2');
SELECT public.timpush_resume('chat2');
SELECT count(*) FROM public.push_progress;
SHOW search_path;
RESET search_path;
DROP SCHEMA regress_timpush_trap CASCADE;
DELETE FROM push_outbox;

--
-- Keys: each is known for its server, as long as its push is
--
DELETE FROM push_result WHERE dedup_key IS NOT NULL;
CREATE FUNCTION key(text, server name DEFAULT 'chat') RETURNS bigint LANGUAGE sql AS $$
  SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => $2, dedup_key => $1, send_at => '2100-01-01')
$$;
SELECT length(k), key(k) = key(k), key(k) <> key(k, 'chat2'), key(k || 'x') <> key(k)
FROM (VALUES (''), ('k'), (repeat('k', 1000)), ((SELECT string_agg(md5(n::text), '' ORDER BY n) FROM generate_series(1, 31) n)), ('ключ')) v(k);
SELECT length(k), key(k) = key(k) FROM (SELECT string_agg(md5(n::text), '' ORDER BY n) FROM generate_series(1, 32) n) v(k);
SELECT refused(format('SELECT key(%L)', repeat('k', 1025)));
SELECT refused($$SELECT key(repeat('k', 10485760))$$);
SELECT count(*), count(DISTINCT (server, dedup_key)) FROM push_outbox;
-- in one statement
SELECT count(DISTINCT timpush_batch('boss', '{u1}', 'Hello', 'World', dedup_key => 'one', send_at => '2100-01-01'))
FROM generate_series(1, 10);
-- without a key nothing is known
SELECT key(NULL) <> key(NULL);
-- another role learns the number, and no more
SET ROLE regress_timpush_two;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => 'chat', dedup_key => 'one') AS id \gset
SELECT count(*) FROM push_status;
SELECT timpush_cancel(:id);
RESET ROLE;
SELECT count(*) FROM push_outbox WHERE dedup_key = 'one' AND id = :id;
-- whatever became of it
SELECT timpush_cancel(:id), key('one') = :id;
SELECT s, journal_request(-500 - n, ARRAY[-500 - n], '{u1}', q), journal_result(-500 - n, -500 - n, 1, 1, s, key => s), key(s) = -500 - n
FROM (VALUES (1, 'sending', 'sending'), (2, 'retry', 'retry'), (3, 'sent', 'done'), (4, 'partial', 'done'), (5, 'failed', 'failed'),
             (6, 'expired', 'expired'), (7, 'cancelled', 'cancelled'), (8, 'unknown', 'unknown')) v(n, s, q);
-- until its outcome is deleted
DELETE FROM push_result WHERE dedup_key = 'sent';
SELECT key('sent') > 0;
-- a plain INSERT is skipped
INSERT INTO push_outbox (from_account, to_accounts, title, dedup_key) VALUES ('boss', '{u1}', 'Hello', 'sent') RETURNING 1;
DROP FUNCTION key(text, name);

--
-- Progress
--
DELETE FROM push_outbox;
DELETE FROM push_error;
DELETE FROM push_result;
DELETE FROM push_request;
SET ROLE regress_timpush_two;
SELECT timpush_batch('boss', array_agg('u' || n), 'Hello', 'World', send_at => '2100-01-01') AS id FROM generate_series(1, 1200) n \gset
RESET ROLE;
SELECT * FROM push_progress;
UPDATE push_outbox SET handed_out = 1000, handed_bytes = 1 WHERE id = :id;
SELECT journal_request(-1, ARRAY[:id], '{u1}', 'done'), journal_result(:id, -1, 1, 400, 'partial', 10, 5, total => 1200, role => 'regress_timpush_two');
SELECT journal_request(-2, ARRAY[:id], '{u1}', 'done', 2), journal_result(:id, -2, 1, 500, 'sent', total => 1200, role => 'regress_timpush_two');
SELECT journal_request(-3, ARRAY[:id], '{u1}', 'sending', 3), journal_result(:id, -3, 1, 100, 'sending', total => 1200, role => 'regress_timpush_two');
SELECT journal_request(-4, ARRAY[:id], '{u1}', 'retry', 4), journal_result(:id, -4, 1, 5, 'retry', total => 1200, role => 'regress_timpush_two');
UPDATE push_request SET created_at = now() - interval '1 minute' WHERE -1 >= id;
UPDATE push_result SET finished_at = now() - interval '1 minute' WHERE request_id = -1;
SELECT push_id = :id, server, state, done, total, percent, started_at < now() - interval '50 s' FROM push_progress;
BEGIN;
UPDATE push_result SET finished_at = now() WHERE request_id = -2;
SELECT rate, eta FROM push_progress;
UPDATE push_result SET finished_at = now() - interval '1 minute' WHERE request_id = -2;
SELECT rate, eta FROM push_progress;
ROLLBACK;
UPDATE push_result SET state = 'sent', finished_at = now() WHERE request_id = -3;
SELECT state, done, percent FROM push_progress;
-- a role sees its own
SET ROLE regress_timpush_app;
SELECT count(*) FROM push_progress;
SET ROLE regress_timpush_two;
SELECT count(*) FROM push_progress;
RESET ROLE;
-- one that waits only to go again, and small ones that do
DELETE FROM push_outbox;
SELECT count(*) FROM push_progress;
SELECT timpush_pause('chat');
UPDATE push_request SET next_attempt_at = '2100-01-01' WHERE id = -4;
SELECT journal_request(-5, '{-7,-8}', '{u1,u2,v1}', 'retry', 5), journal_result(-7, -5, 1, 2, 'retry'), journal_result(-8, -5, 3, 1, 'retry');
UPDATE push_request SET next_attempt_at = '2100-01-01' WHERE id = -5;
SELECT state, done, total FROM push_progress;
-- what it reads does not grow with the history
CREATE FUNCTION blocks_read() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  plan json;
BEGIN
  EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM push_progress' INTO plan;
  EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM push_progress' INTO plan;
  RETURN (plan->0->'Plan'->>'Shared Hit Blocks')::bigint + (plan->0->'Plan'->>'Shared Read Blocks')::bigint;
END $$;
CREATE FUNCTION add_history(bigint, bigint) RETURNS void LANGUAGE sql AS $$
  INSERT INTO push_request (id, server, msg_random, content, accounts, push_ids, state, on_unknown, created_at)
    SELECT -n, 'chat', 1, '{}', '{u1}', ARRAY[-n], 'done', 'retry', now() FROM generate_series($1, $2) n;
  INSERT INTO push_result (push_id, request_id, first, accounts, state, server, enqueued_by, push_accounts, priority, enqueued_at, finished_at)
    SELECT -n, -n, 1, 1, 'sent', 'chat', current_user, 1, 4, now(), now() FROM generate_series($1, $2) n;
$$;
SELECT add_history(10000, 10999);
SELECT blocks_read() AS few \gset
SELECT add_history(11000, 50999);
-- whether or not there are statistics
SELECT blocks_read() < :few + 50;
ANALYZE push_outbox, push_request, push_result, push_server;
SELECT blocks_read() < :few + 50;

SELECT timpush_resume('chat');
DELETE FROM push_result;
DELETE FROM push_request;
DROP FUNCTION blocks_read(), add_history(bigint, bigint), outbox(), journal(bigint);
DROP SERVER chat CASCADE;
DROP SERVER chat2 CASCADE;
DROP FOREIGN DATA WRAPPER other CASCADE;
DROP OWNED BY regress_timpush_app, regress_timpush_two, regress_timpush_lead, regress_timpush_owner, regress_timpush_boss;
DROP ROLE regress_timpush_app, regress_timpush_two, regress_timpush_lead, regress_timpush_owner, regress_timpush_boss;
