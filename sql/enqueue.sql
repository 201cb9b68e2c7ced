--
-- timpush_batch and INSERT
--
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET client_min_messages = error;
SET timezone = 'UTC';
SET datestyle = 'ISO';

-- no server, one, several
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$) LIKE '42704: there is no timpush server in database "%';
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
CREATE SERVER chat2 FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888889', host '127.0.0.1:1');
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => 'chat2')$$);
SET timpush.default_server = 'chat2';
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
SET timpush.default_server = 'chat3';
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => 'chat')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => '')$$);
SET timpush.default_server = 'chat';

-- a server of somebody else
CREATE FOREIGN DATA WRAPPER regress_timpush_other;
CREATE SERVER other FOREIGN DATA WRAPPER regress_timpush_other;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => 'other')$$);
DROP FOREIGN DATA WRAPPER regress_timpush_other CASCADE;

-- what is filled in
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0;
SELECT server, from_account, to_accounts, title, descr, data_id IS NULL, extra IS NULL, priority,
       send_at = now(), expires_at - now(), on_unknown, dedup_key IS NULL,
       enqueued_by = current_user, created_at = now(), content_key IS NOT NULL, handed_out
FROM push_outbox;
ROLLBACK;
SELECT count(*) FROM push_outbox;
BEGIN;
SELECT timpush_batch("from" => 'boss', "to" => '{u1,u2}', title => 'Hello', descr => 'World', data_id => 'd1',
                     server => 'chat2', extra => '{"Classification": 1}', priority => 9,
                     send_at => '2100-01-01', expires_at => '2100-01-02', dedup_key => 'k1') > 0;
SELECT server, from_account, to_accounts, title, descr, data_id, extra, priority,
       send_at, expires_at, on_unknown, dedup_key, handed_out
FROM push_outbox;
ROLLBACK;

-- how long it lives
BEGIN;
SET LOCAL timpush.default_ttl = '1h';
SELECT timpush_batch('boss', '{u1}', 'ttl 1h', '') > 0, timpush_batch('boss', '{u1}', 'ttl 1h later', '', send_at => '2100-01-01') > 0,
       timpush_batch('boss', '{u1}', 'past', '', send_at => '2000-01-01') > 0;
SELECT title, CASE WHEN send_at > now() THEN expires_at::text ELSE (expires_at - now())::text END FROM push_outbox ORDER BY id;
SET LOCAL timpush.default_ttl = 0;
SELECT timpush_batch('boss', '{u1}', 'ttl 0', '') > 0, timpush_batch('boss', '{u1}', 'ttl 0, named', '', expires_at => '2100-01-01') > 0,
       timpush_batch('boss', '{u1}', 'for ever', '', expires_at => 'infinity') > 0;
SELECT title, coalesce(expires_at::text, 'never') FROM push_outbox WHERE title IN ('ttl 0', 'ttl 0, named', 'for ever') ORDER BY id;
ROLLBACK;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', expires_at => '2000-01-01')$$);
SELECT left(refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', expires_at => now())$$), 5);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', send_at => '2100-01-02', expires_at => '2100-01-01')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', send_at => '2100-01-01', expires_at => '2100-01-01')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', expires_at => '-infinity')$$);
SELECT left(refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', send_at => 'infinity')$$), 5);
SELECT left(refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', send_at => 'infinity', expires_at => 'infinity')$$), 5);
-- an expiry past the end of time is none
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'Hello', '', send_at => '294276-12-31 12:00+00') > 0;
SELECT expires_at IS NULL FROM push_outbox;
ROLLBACK;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', '', send_at => 'tomorrowish')$$);

-- what is done in doubt
BEGIN;
SET LOCAL timpush.on_unknown = 'hold';
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0;
SET LOCAL timpush.on_unknown = 'accept';
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0;
INSERT INTO push_outbox (from_account, to_accounts, title, on_unknown) VALUES ('boss', '{u1}', 'Hello', 'retry');
SELECT on_unknown, count(DISTINCT content_key) FROM push_outbox GROUP BY on_unknown ORDER BY on_unknown COLLATE "C";
SELECT count(DISTINCT content_key) FROM push_outbox;
ROLLBACK;
SELECT refused($$INSERT INTO push_outbox (from_account, to_accounts, title, on_unknown) VALUES ('boss', '{u1}', 'Hello', 'guess')$$);

-- the accounts
SELECT refused($$SELECT timpush_batch(NULL, '{u1}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('', '{u1}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('  ', '{u1}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', NULL, 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1,NULL,u3}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1,""}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1,u2," "}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1,u2,u3,u2}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{{u1,u2},{u3,u4}}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '[5:6]={u1,u1}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '[5:6]={u1,u2}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1,U1," u1"}', 'Hello', 'World')$$);
-- more than a call takes are split, more than a row should hold are not taken
SELECT refused($$SELECT timpush_batch('boss', array(SELECT 'u' || i FROM generate_series(1, 501) i), 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', array(SELECT 'u' || i FROM generate_series(1, 100000) i), 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', array(SELECT 'u' || i % 99999 FROM generate_series(1, 100000) i), 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', array_fill('u1'::text, ARRAY[1000001]), 'Hello', 'World')$$);

-- the texts
SELECT refused($$SELECT timpush_batch('boss', '{u1}', NULL, NULL)$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', '', '')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', NULL)$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', NULL, 'World')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', NULL, NULL, extra => '{"OfflinePushInfo": {"PushTemplateId": "88888888-1"}}')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', NULL, NULL, extra => '{"OfflinePushInfo": {"PushTemplateId": ""}}')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', NULL, NULL, extra => '{"PushTemplateId": "88888888-1"}')$$);
SELECT refused(format($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', data_id => %L)$$, v))
FROM unnest(ARRAY['', repeat('d', 64), repeat('é', 32), repeat('d', 65), repeat('é', 32) || 'd']) v;

-- priority
SELECT refused(format($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', priority => %L)$$, v))
FROM unnest('{0, 9, NULL, -1, 10, 2147483647}'::int[]) v;

-- extra
SELECT refused(format($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', extra => %L)$$, v)) || E'\n  <' || v || '>'
FROM unnest(ARRAY['{}', '{"OfflinePushInfo": {}}', '{"OfflinePushInfo": {"Ext": {"page": "order/1"}}}',
                  '{"OfflinePushInfo": {"Ext": "order/1"}}', '{"Classification": 1, "Other": {"Title": "x", "To_Account": []}}',
                  '{"OfflinePushInfo": {"ApnsInfo": {"Title": "x"}}}', '{"title": "x", "to_account": []}',
                  '[]', '"text"', '1', 'null', '[{"Classification": 1}]',
                  '{"From_Account": "x"}', '{"To_Account": []}', '{"MsgRandom": 1}', '{"DataId": null}',
                  '{"OfflinePushInfo": {"Title": "x"}}', '{"OfflinePushInfo": {"Desc": "x"}}',
                  '{"OfflinePushInfo": null}', '{"OfflinePushInfo": []}', '{"OfflinePushInfo": "x"}',
                  '{"OfflinePushInfo": {"Ext": []}}', '{"OfflinePushInfo": {"Ext": 1}}', '{"OfflinePushInfo": {"Ext": null}}']) v;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', extra => '{"a": "\u0000"}')$$);
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', extra => '{"a": ')$$);

-- the same content has the same key
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0, timpush_batch('boss', '{u2,u3}', 'Hello', 'World', priority => 9, send_at => '2100-01-01') > 0,
       timpush_batch('boss', '{u1}', 'Hello', 'World', expires_at => '2100-01-01', dedup_key => 'k') > 0;
INSERT INTO push_outbox (from_account, to_accounts, title, descr) VALUES ('boss', '{u4}', 'Hello', 'World');
SELECT count(*), count(DISTINCT content_key) FROM push_outbox;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', extra => '{"A": 1, "B": {"C": 2}}') > 0,
       timpush_batch('boss', '{u2}', 'Hello', 'World', extra => '{"B": {"C": 2}, "A": 1}') > 0;
SELECT count(*), count(DISTINCT content_key) FROM push_outbox;
SELECT count(timpush_batch(f, '{u1}', t, d, i, s, e))
FROM (VALUES ('boss2', 'Hello', 'World', NULL, 'chat', NULL::jsonb), ('boss', 'Hello2', 'World', NULL, 'chat', NULL),
             ('boss', 'Hello', 'World2', NULL, 'chat', NULL), ('boss', 'Hello', NULL, NULL, 'chat', NULL),
             ('boss', 'Hello', '', NULL, 'chat', NULL), ('boss', '', 'Hello', NULL, 'chat', NULL),
             ('boss', 'HelloW', 'orld', NULL, 'chat', NULL), ('boss', 'Hello', 'World', 'd', 'chat', NULL),
             ('boss', 'Hello', 'World', NULL, 'chat2', NULL), ('boss', 'Hello', 'World', NULL, 'chat', '{}'),
             ('boss', 'Hello', 'World', NULL, 'chat', '{"A": 1}')) t (f, t, d, i, s, e);
SELECT count(*), count(DISTINCT content_key) FROM push_outbox;
ROLLBACK;

-- a key is known once for a server: the function gives the id, INSERT skips the row
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', dedup_key => 'k1') AS id \gset
SELECT timpush_batch('boss', '{u2}', 'Hello again', 'World', dedup_key => 'k1') = :id;
SELECT timpush_batch('boss', '{u2}', 'Hello again', 'World', dedup_key => 'k2') = :id;
SELECT timpush_batch('boss', '{u2}', 'Hello again', 'World', dedup_key => 'k1', server => 'chat2') = :id;
INSERT INTO push_outbox (from_account, to_accounts, title, dedup_key)
  VALUES ('boss', '{u1}', 'Hello', 'k1'), ('boss', '{u1}', 'Hello', 'k3'), ('boss', '{u1}', 'Hello', 'k3') RETURNING dedup_key;
SELECT server, dedup_key, to_accounts FROM push_outbox ORDER BY server, dedup_key COLLATE "C";
SELECT left(refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', dedup_key => (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i))$$), 5);
-- the arguments are checked nevertheless
SELECT refused($$SELECT timpush_batch('boss', '{}', 'Hello', 'World', dedup_key => 'k1')$$);
-- nor is the key of a push that has left the outbox free
DELETE FROM push_outbox;
SELECT journal_result(:id, 1, 1, 1, 'sent', key => 'k1');
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', dedup_key => 'k1') = :id;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', dedup_key => 'k2') = :id;
ROLLBACK;

-- a plain INSERT is as good
BEGIN;
INSERT INTO push_outbox (from_account, to_accounts, title, descr) VALUES ('boss', '{u1,u2}', 'Hello', 'World');
SELECT server, from_account, to_accounts, title, descr, data_id IS NULL, extra IS NULL, priority,
       send_at = now(), expires_at - now(), on_unknown, dedup_key IS NULL,
       enqueued_by = current_user, created_at = now(), content_key IS NOT NULL, handed_out
FROM push_outbox;
INSERT INTO push_outbox (from_account, to_accounts, title, priority, send_at, handed_out, created_at, enqueued_by)
  VALUES ('boss', '{u1,u2}', 'forged', NULL, NULL, 2, '2000-01-01', 'nobody');
SELECT priority, send_at = now(), handed_out, created_at = now(), enqueued_by = current_user FROM push_outbox WHERE title = 'forged';
ROLLBACK;
SELECT refused('INSERT INTO push_outbox DEFAULT VALUES');
SELECT refused('INSERT INTO push_outbox ' || v) FROM unnest(ARRAY[
  $$(to_accounts, title) VALUES ('{u1}', 'Hello')$$,
  $$(from_account, to_accounts, title) VALUES (' ', '{u1}', 'Hello')$$,
  $$(from_account, title) VALUES ('boss', 'Hello')$$,
  $$(from_account, to_accounts, title) VALUES ('boss', '{}', 'Hello')$$,
  $$(from_account, to_accounts, title) VALUES ('boss', '{NULL}', 'Hello')$$,
  $$(from_account, to_accounts, title) VALUES ('boss', '{""}', 'Hello')$$,
  $$(from_account, to_accounts, title) VALUES ('boss', '{u1,u1}', 'Hello')$$,
  $$(from_account, to_accounts) VALUES ('boss', '{u1}')$$,
  $$(from_account, to_accounts, title, data_id) VALUES ('boss', '{u1}', 'Hello', repeat('d', 65))$$,
  $$(from_account, to_accounts, title, priority) VALUES ('boss', '{u1}', 'Hello', 10)$$,
  $$(from_account, to_accounts, title, extra) VALUES ('boss', '{u1}', 'Hello', '{"DataId": "d"}')$$,
  $$(from_account, to_accounts, title, extra) VALUES ('boss', '{u1}', 'Hello', '[]')$$,
  $$(from_account, to_accounts, title, expires_at) VALUES ('boss', '{u1}', 'Hello', '2000-01-01')$$,
  $$(from_account, to_accounts, title, server) VALUES ('boss', '{u1}', 'Hello', 'chat3')$$]) v;

-- one bad row undoes the statement; UPDATE is checked like INSERT
BEGIN;
SAVEPOINT s;
INSERT INTO push_outbox (from_account, to_accounts, title) SELECT 'boss', ARRAY[a], 'Hello' FROM unnest('{u1,u2,NULL}'::text[]) a;
ROLLBACK TO s;
SELECT count(*) FROM push_outbox;
INSERT INTO push_outbox (from_account, to_accounts, title) VALUES ('boss', '{u1}', 'Hello');
SELECT content_key AS key FROM push_outbox \gset
UPDATE push_outbox SET title = 'Bye' RETURNING content_key <> :key;
UPDATE push_outbox SET title = 'Hello', content_key = 1 RETURNING content_key = :key;
UPDATE push_outbox SET priority = 9, send_at = '2100-01-01', expires_at = NULL RETURNING content_key = :key, priority, expires_at IS NULL;
SELECT refused($$UPDATE push_outbox SET title = NULL$$);
SELECT refused($$UPDATE push_outbox SET to_accounts = '{u1,u1}'$$);
SELECT refused($$UPDATE push_outbox SET expires_at = send_at$$);
SELECT refused($$UPDATE push_outbox SET server = 'chat3'$$);
ROLLBACK;

-- not in a transaction that cannot write
BEGIN READ ONLY;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
ROLLBACK;

-- a prepared statement works more than once, a subtransaction loses its own only
BEGIN;
PREPARE push (text) AS SELECT timpush_batch('boss', ARRAY[$1], 'Hello', 'World') > 0;
EXECUTE push('u1');
SAVEPOINT s;
EXECUTE push('u2');
ROLLBACK TO s;
EXECUTE push('u3');
EXECUTE push('');
ROLLBACK TO s;
SELECT to_accounts FROM push_outbox ORDER BY id;
ROLLBACK;
DEALLOCATE push;

-- as psql shows it
SELECT timpush_batch('boss', '{u1,u1}', 'Hello', 'World');

SELECT count(*) FROM push_outbox;
DROP SERVER chat;
DROP SERVER chat2;
