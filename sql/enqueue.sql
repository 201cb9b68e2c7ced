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
-- its size is that of its text
SELECT split_part(refused(format($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', extra => %s)$$, v)), E'\n', 1) || E'\n  <' || left(v, 50) || '>'
FROM unnest(ARRAY[$$'{"a": 1e400, "b": 1234567890123456789012345678901234567890}'$$, $$'{"a": 1e131071}'$$, $$'{"a": [-1e-16383, {"b": 1e50000}]}'$$,
                  $$'{"a": 1e131072}'$$, $$'{"OfflinePushInfo": {"Ext": {"a": [1e40000, 1e40000]}}}'$$,
                  $$jsonb_build_object('a', repeat('x', 65500))$$, $$jsonb_build_object('a', repeat('x', 65600))$$,
                  $$jsonb_build_object('a', repeat('"', 40000))$$,
                  $$jsonb_build_object('OfflinePushInfo', jsonb_build_object('Ext', repeat('"', 40000)))$$,
                  $$jsonb_build_object('OfflinePushInfo', jsonb_build_object('Ext', jsonb_build_object('a', repeat('"', 40000))))$$,
                  $$jsonb_build_object('a', array_fill(1e100, ARRAY[500]))$$, $$jsonb_build_object('a', array_fill(1e100, ARRAY[700]))$$,
                  $$('{"a": ' || repeat('[', 5000) || repeat(']', 5000) || '}')::jsonb$$,
                  $$('{"a": ' || repeat('[', 9000) || repeat(']', 9000) || '}')::jsonb$$,
                  $$('{"a": ' || repeat('[', 100000) || repeat(']', 100000) || '}')::jsonb$$]) v;
SELECT split_part(refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', extra => jsonb_build_object('a', repeat('x', 104857600)))$$), E'\n', 1);

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

-- a row is there for the next command, and for a query of a function's own
CREATE FUNCTION waiting_now() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT count(*) FROM push_outbox';
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0, waiting_now(), (SELECT count(*) FROM push_outbox);
SELECT waiting_now(), count(*) FROM push_outbox;
-- so that this finds no end of it
INSERT INTO push_outbox (from_account, to_accounts, title)
  SELECT 'boss', ARRAY['copy' || timpush_batch('boss', '{u1}', title, 'World')], title FROM push_outbox;
SELECT count(*) FROM push_outbox;
ROLLBACK;
DROP FUNCTION waiting_now();

-- subtransactions of PL/pgSQL
BEGIN;
DO $$
BEGIN
  FOR i IN 1 .. 4 LOOP
    BEGIN
      PERFORM timpush_batch('boss', ARRAY['u' || i], 'Hello', 'World');
      PERFORM timpush_batch('boss', ARRAY['v' || i], CASE i WHEN 2 THEN '' ELSE 'Hello' END, '');
      IF i = 3 THEN RAISE division_by_zero; END IF;
    EXCEPTION
      WHEN invalid_parameter_value OR division_by_zero THEN NULL;
    END;
  END LOOP;
END $$;
SELECT to_accounts FROM push_outbox ORDER BY id;
ROLLBACK;

-- other ways of INSERT
BEGIN;
INSERT INTO push_outbox (from_account, to_accounts, title) VALUES ('boss', '{u1}', 'Hello') RETURNING id, priority, handed_out \gset
SELECT :id = max(id), :priority, :handed_out FROM push_outbox;
INSERT INTO push_outbox (id, from_account, to_accounts, title) VALUES (:id, 'boss', '{u2}', 'Hello') ON CONFLICT (id) DO NOTHING;
INSERT INTO push_outbox (id, from_account, to_accounts, title) VALUES (:id, 'boss', '{u3}', 'Hello')
  ON CONFLICT (id) DO UPDATE SET to_accounts = excluded.to_accounts, title = 'Bye';
COPY push_outbox (from_account, to_accounts, title, extra) FROM stdin;
boss	{c1,c2}	Hello	{"Classification": 1}
boss	{c3}	Bye	\N
\.
SELECT id >= :id, server, to_accounts, title, extra, priority, enqueued_by = current_user, accounts FROM push_outbox ORDER BY id;
SELECT count(DISTINCT content_key) FROM push_outbox WHERE title = 'Bye';
SAVEPOINT s;
COPY push_outbox (from_account, to_accounts, title) FROM stdin;
boss	{c4}	Hello
boss	{c5,c5}	Hello
\.
ROLLBACK TO s;
SELECT count(*) FROM push_outbox;
ROLLBACK;

-- what is set, or who calls, may be another with each call
CREATE ROLE regress_timpush_app;
GRANT EXECUTE ON FUNCTION timpush_batch TO regress_timpush_app;
GRANT USAGE ON FOREIGN SERVER chat TO regress_timpush_app;
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'as set', 'World') > 0;
SET LOCAL timpush.default_server = 'chat2';
SET LOCAL timpush.default_ttl = '1h';
SET LOCAL timpush.on_unknown = 'hold';
SELECT timpush_batch('boss', '{u1}', 'set anew', 'World') > 0;
SET LOCAL timpush.default_server = 'chat';
SET LOCAL ROLE regress_timpush_app;
SELECT timpush_batch('boss', '{u1}', 'role', 'World') > 0;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => 'chat2')$$);
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER chat FROM regress_timpush_app;
SELECT timpush_batch('boss', '{u1}', 'reset', 'World') > 0;
SET LOCAL ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
RESET ROLE;
GRANT USAGE ON FOREIGN DATA WRAPPER timpush TO regress_timpush_app;
ALTER SERVER chat OWNER TO regress_timpush_app;
SET LOCAL ROLE regress_timpush_app;
SELECT timpush_batch('boss', '{u1}', 'owner', 'World') > 0;
RESET ROLE;
SELECT title, server, enqueued_by = current_user, on_unknown, expires_at - now() FROM push_outbox ORDER BY id;
ROLLBACK;

-- another server of the same name, and none
BEGIN;
DROP SERVER chat;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:2');
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0;
SET LOCAL ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
RESET ROLE;
DELETE FROM push_outbox RETURNING server;
ALTER SERVER chat RENAME TO chat9;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => 'chat9') > 0;
DROP SERVER chat2;
SET LOCAL timpush.default_server = '';
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0;
DELETE FROM push_outbox RETURNING server;
ALTER SERVER chat9 RENAME TO chat;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') > 0;
SELECT server FROM push_outbox ORDER BY id;
ROLLBACK;

-- values that are stored apart, packed or unfolded in memory
BEGIN;
DO $$
DECLARE
  receivers text[] := array(SELECT 'u' || i FROM generate_series(1, 3000) i);
BEGIN
  receivers[1] := repeat('long', 100);
  PERFORM timpush_batch('boss', receivers, repeat('Hello ', 1000), 'World', extra => jsonb_build_object('a', repeat('b', 9000)));
  PERFORM timpush_batch(from_account, to_accounts, title, descr, extra => extra) FROM push_outbox;
END $$;
SELECT count(*), count(DISTINCT (to_accounts, title, extra)), min(accounts), min(cardinality(to_accounts)), min(length(title)), min(length(extra->>'a'))
FROM push_outbox;
ROLLBACK;

-- What the owner adds to the table holds for the function and for INSERT alike,
-- from the next row on and no longer than it is there.
CREATE TABLE log (line text);
CREATE FUNCTION log_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('INSERT INTO %I.log VALUES ($1)', tg_table_schema) USING concat_ws(' ', tg_when, tg_level, new.title);
  RETURN NULL;
END $$;
CREATE FUNCTION log_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.log SELECT concat_ws(' ', tg_when, tg_level, count(*), min(title)) FROM added;
  RETURN NULL;
END $$;
CREATE FUNCTION change_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF new.title = 'skip' THEN RETURN NULL; END IF;
  IF new.title = 'empty' THEN new.to_accounts = '{}'; END IF;
  IF new.title = 'again' THEN PERFORM public.timpush_batch('boss', '{u2}', 'inner', NULL); END IF;
  IF new.title = 'server' THEN new.server = 'chat2'; END IF;
  new.title = upper(new.title);
  RETURN new;
END $$;
CREATE FUNCTION push_more(title text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
  IF title = 'outer' THEN PERFORM public.timpush_batch('boss', '{u3}', 'inner', NULL); END IF;
  RETURN title;
END $$;
CREATE DOMAIN checked AS text CHECK (push_more(VALUE) <> 'bad');
CREATE FUNCTION push_one_way(way text, title text, data_id text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  report text;
BEGIN
  IF way = 'timpush_batch' THEN
    PERFORM timpush_batch('boss', '{u1}', title, NULL, data_id);
  ELSE
    INSERT INTO push_outbox (from_account, to_accounts, title, data_id) VALUES ('boss', '{u1}', push_one_way.title, push_one_way.data_id);
  END IF;
  SET CONSTRAINTS ALL IMMEDIATE;
  SET CONSTRAINTS ALL DEFERRED;
  SELECT coalesce(string_agg(concat_ws(' ', o.title, o.to_accounts, o.data_id, o.server), ', ' ORDER BY o.id), 'nothing')
         || (SELECT coalesce('; log: ' || string_agg(line, ', '), '') FROM log)
    INTO report FROM push_outbox o;
  DELETE FROM push_outbox;
  DELETE FROM log;
  RETURN report;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
CREATE FUNCTION both_ways(title text, data_id text DEFAULT NULL) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT way || ': ' || push_one_way(way, title, data_id) FROM unnest('{timpush_batch,INSERT}'::text[]) way
$$;
SELECT both_ways('as it is', 'd1');
-- which other sessions cannot do while a push is being enqueued
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) > 0;
SELECT relation::regclass, mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation::regclass::text LIKE 'push_outbox%' ORDER BY 1, 2;
ROLLBACK;
-- triggers, before ours and after it
BEGIN;
CREATE TRIGGER a BEFORE INSERT ON push_outbox FOR EACH ROW EXECUTE FUNCTION change_row();
SELECT both_ways(title) FROM unnest('{changed,skip,empty,again,server}'::text[]) title;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) > 0, timpush_batch('boss', '{u1}', 'skip', NULL);
ALTER TABLE push_outbox DISABLE TRIGGER a;
SELECT timpush_batch('boss', '{u1}', 'HELLO', NULL) > 0;
SELECT title, count(DISTINCT content_key) FROM push_outbox GROUP BY title;
DELETE FROM push_outbox;
SELECT both_ways('skip');
-- a role may not use another server by way of it
ALTER TABLE push_outbox ENABLE TRIGGER a;
GRANT USAGE ON FOREIGN SERVER chat TO regress_timpush_app;
SET LOCAL ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'server', NULL)$$);
RESET ROLE;
DROP TRIGGER a ON push_outbox;
SELECT both_ways('skip');
CREATE TRIGGER z AFTER INSERT ON push_outbox FOR EACH ROW EXECUTE FUNCTION log_row();
SELECT both_ways('after row');
SAVEPOINT s;
CREATE TRIGGER y BEFORE INSERT ON push_outbox EXECUTE FUNCTION log_row();
CREATE TRIGGER x AFTER INSERT ON push_outbox REFERENCING NEW TABLE AS added EXECUTE FUNCTION log_rows();
SELECT both_ways('statement');
ROLLBACK TO s;
SELECT both_ways('after row');
DROP TRIGGER z ON push_outbox;
SELECT both_ways('no trigger');
CREATE CONSTRAINT TRIGGER z AFTER INSERT ON push_outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_row();
SELECT both_ways('deferred');
ROLLBACK;
BEGIN;
CREATE RULE also AS ON INSERT TO push_outbox DO ALSO INSERT INTO log VALUES ('rule ' || new.title);
SELECT both_ways('rule');
DROP RULE also ON push_outbox;
SELECT both_ways('no rule');
ROLLBACK;
-- constraints
BEGIN;
ALTER TABLE push_outbox ADD CONSTRAINT short CHECK (length(title) < 9);
SELECT both_ways(title) FROM unnest('{short,too long for it}'::text[]) title;
ALTER TABLE push_outbox DROP CONSTRAINT short, ADD CONSTRAINT mine CHECK (push_more(title) <> 'bad');
SELECT both_ways(title) FROM unnest('{good,bad,outer}'::text[]) title;
ALTER TABLE push_outbox DROP CONSTRAINT mine, ADD CONSTRAINT mine CHECK (title::checked IS NOT NULL);
SELECT both_ways(title) FROM unnest('{good,bad,outer}'::text[]) title;
ALTER TABLE push_outbox DROP CONSTRAINT mine, ADD CONSTRAINT mine CHECK (
  title <> 'outer' OR query_to_xml($$SELECT public.timpush_batch('boss', '{u3}', 'inner', NULL)$$, true, true, '') IS NOT NULL);
SELECT both_ways('outer');
ALTER TABLE push_outbox DROP CONSTRAINT mine, ALTER data_id SET NOT NULL;
SELECT both_ways('Hello', data_id) FROM unnest('{d1,NULL}'::text[]) data_id;
ROLLBACK;
SELECT both_ways('too long for it');
BEGIN;
CREATE TABLE orders (id text PRIMARY KEY);
INSERT INTO orders VALUES ('d1');
ALTER TABLE push_outbox ADD FOREIGN KEY (data_id) REFERENCES orders;
SELECT both_ways('key', data_id) FROM unnest('{d1,d2}'::text[]) data_id;
CREATE TABLE sent_for (push bigint REFERENCES push_outbox ON DELETE CASCADE);
INSERT INTO sent_for VALUES (timpush_batch('boss', '{u1}', 'Hello', NULL, 'd1'));
SELECT count(*) FROM sent_for JOIN push_outbox ON id = push;
DELETE FROM push_outbox;
SELECT count(*) FROM sent_for;
ROLLBACK;
-- indexes
BEGIN;
SET LOCAL enable_seqscan = off;
CREATE FUNCTION by_data_id() RETURNS TABLE (plan text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM timpush_batch('boss', ARRAY['u' || i], 'Hello', NULL, 'd' || i) FROM generate_series(1, 3) i;
  FOR plan IN EXPLAIN (COSTS off) SELECT FROM push_outbox WHERE data_id = 'd2' LOOP
    CONTINUE WHEN plan LIKE '%Cond:%';
    RETURN NEXT;
  END LOOP;
  RETURN QUERY SELECT 'to ' || to_accounts[1] FROM push_outbox WHERE data_id = 'd2';
  DELETE FROM push_outbox;
END $$;
CREATE UNIQUE INDEX push_outbox_mine ON push_outbox (data_id);
SELECT * FROM by_data_id();
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL, 'd1') > 0;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', NULL, 'd1')$$);
DELETE FROM push_outbox;
DROP INDEX push_outbox_mine;
CREATE INDEX push_outbox_mine ON push_outbox USING hash (data_id);
SELECT * FROM by_data_id();
DROP INDEX push_outbox_mine;
CREATE INDEX push_outbox_mine ON push_outbox USING brin (data_id);
SELECT * FROM by_data_id();
DROP INDEX push_outbox_mine;
CREATE INDEX push_outbox_mine ON push_outbox (data_id) WHERE title = 'Hello' OR title = 'Bye';
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL, 'd1') > 0, timpush_batch('boss', '{u1}', 'Hi', NULL, 'd1') > 0;
SELECT title FROM push_outbox WHERE data_id = 'd1' AND (title = 'Hello' OR title = 'Bye');
DELETE FROM push_outbox;
DROP INDEX push_outbox_mine;
SAVEPOINT s;
CREATE INDEX push_outbox_mine ON push_outbox (push_more(title));
SELECT timpush_batch('boss', '{u1}', 'outer', NULL) > 0;
SELECT title FROM push_outbox WHERE push_more(title) = 'outer';
ROLLBACK TO s;
CREATE INDEX push_outbox_mine ON push_outbox (data_id) WHERE push_more(title) <> 'bad';
SELECT timpush_batch('boss', '{u1}', 'outer', NULL, 'd1') > 0;
SELECT title FROM push_outbox WHERE data_id = 'd1' AND push_more(title) <> 'bad';
ROLLBACK;
BEGIN;
ALTER TABLE push_outbox ADD CONSTRAINT once UNIQUE (data_id) DEFERRABLE INITIALLY DEFERRED;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL, 'd1') > 0, timpush_batch('boss', '{u1}', 'Hello', NULL, 'd1') > 0;
SELECT refused('SET CONSTRAINTS ALL IMMEDIATE');
ROLLBACK;
BEGIN;
ALTER TABLE push_outbox ADD CONSTRAINT alone EXCLUDE (data_id WITH =);
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL, 'd1') > 0;
SELECT both_ways('Hello', 'd1');
ROLLBACK;
-- columns
BEGIN;
ALTER TABLE push_outbox ADD COLUMN mine integer DEFAULT 1;
SELECT both_ways('one column more');
ALTER TABLE push_outbox DROP COLUMN mine;
SELECT both_ways('as before', 'd1');
ALTER TABLE push_outbox ALTER handed_bytes TYPE bigint;
SELECT both_ways('another type');
ALTER TABLE push_outbox ALTER handed_bytes TYPE integer;
SELECT both_ways('as before', 'd1');
ROLLBACK;
SELECT both_ways('as before', 'd1');
BEGIN;
ALTER EXTENSION timpush DROP SEQUENCE push_outbox_id_seq;
ALTER TABLE push_outbox ALTER id DROP IDENTITY;
SELECT both_ways('no id');
ALTER TABLE push_outbox ALTER id SET DEFAULT 42;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL);
ROLLBACK;
BEGIN;
ALTER TABLE push_outbox ALTER id SET GENERATED ALWAYS;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) = lastval();
ROLLBACK;
-- storage
BEGIN;
SELECT timpush_batch('boss', '{u1}', 'lost', NULL) > 0;
TRUNCATE push_outbox;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) > 0;
CLUSTER push_outbox USING push_outbox_pkey;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) > 0;
REINDEX TABLE push_outbox;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) > 0;
ALTER SCHEMA public RENAME TO regress_timpush_moved;
SET LOCAL search_path = regress_timpush_moved;
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) > 0;
CREATE TRIGGER z AFTER INSERT ON push_outbox FOR EACH ROW EXECUTE FUNCTION log_row();
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL) > 0;
SET LOCAL enable_seqscan = off;
SELECT count(*), count(DISTINCT id) FROM push_outbox WHERE id > 0;
ROLLBACK;
-- as a part of another table, which no table with an identity can be since 17
BEGIN;
CREATE TABLE all_pushes (LIKE push_outbox) PARTITION BY LIST (server);
SELECT current_setting('server_version_num')::integer < 170000 AS can_be_a_part, true AS ok \gset
\if :can_be_a_part
ALTER TABLE all_pushes ATTACH PARTITION push_outbox FOR VALUES IN ('chat');
SELECT string_agg(line, ', ') = 'timpush_batch: part {u1} chat, INSERT: part {u1} chat' AND
  refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', NULL, server => 'chat2')$$) LIKE '23514: new row for relation "push_outbox" violates partition constraint%' AS ok
FROM both_ways('part') line \gset
\endif
SELECT :'ok';
ROLLBACK;
-- an owner with no rights of his own
BEGIN;
CREATE ROLE regress_timpush_owner;
GRANT USAGE, CREATE ON SCHEMA public TO regress_timpush_owner;
GRANT USAGE ON FOREIGN SERVER chat TO regress_timpush_app;
ALTER TABLE push_outbox OWNER TO regress_timpush_owner;
SET LOCAL ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', NULL)$$);
RESET ROLE;
ALTER TABLE push_outbox ADD CONSTRAINT short CHECK (length(title) < 9);
SET LOCAL ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'too long for it', NULL)$$) LIKE E'23514: %\nDETAIL: Failing row contains%';
RESET ROLE;
ALTER TABLE push_outbox FORCE ROW LEVEL SECURITY;
SET LOCAL ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', NULL)$$);
RESET ROLE;
ALTER TABLE push_outbox NO FORCE ROW LEVEL SECURITY;
REVOKE INSERT ON push_outbox FROM regress_timpush_owner;
SET LOCAL ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', NULL)$$);
ROLLBACK;
-- another table of the same name
BEGIN;
DROP EXTENSION timpush CASCADE;
CREATE EXTENSION timpush;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', NULL)$$) LIKE '42704: %';
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
SELECT timpush_batch('boss', '{u1}', 'Hello', NULL);
ROLLBACK;
SELECT both_ways('as before', 'd1');

-- a temporary table can be written in a transaction that cannot write else
CREATE TEMP TABLE temporary (id integer);
CREATE TRIGGER t AFTER INSERT ON temporary FOR EACH ROW EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#t');
BEGIN READ ONLY;
SELECT refused('INSERT INTO temporary VALUES (1)');
ROLLBACK;
DROP TABLE temporary;

DROP FUNCTION both_ways, push_one_way, log_row, log_rows, change_row;
DROP FUNCTION push_more CASCADE;
DROP DOMAIN checked;
DROP TABLE log;
DROP OWNED BY regress_timpush_app;
DROP ROLE regress_timpush_app;

-- as psql shows it
SELECT timpush_batch('boss', '{u1,u1}', 'Hello', 'World');

SELECT count(*) FROM push_outbox;
DROP SERVER chat;
DROP SERVER chat2;
