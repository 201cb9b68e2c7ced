--
-- Who may do and see what
--
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET client_min_messages = error;
DROP ROLE IF EXISTS regress_timpush_app, regress_timpush_two, regress_timpush_lead, regress_timpush_none,
  regress_timpush_writer, regress_timpush_monitor, regress_timpush_auditor;
CREATE ROLE regress_timpush_app;
CREATE ROLE regress_timpush_two;
CREATE ROLE regress_timpush_lead IN ROLE regress_timpush_app;
CREATE ROLE regress_timpush_none;
CREATE ROLE regress_timpush_writer;
CREATE ROLE regress_timpush_monitor IN ROLE pg_monitor;
CREATE ROLE regress_timpush_auditor IN ROLE pg_read_all_data;
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
CREATE USER MAPPING FOR PUBLIC SERVER chat OPTIONS (identifier 'administrator', secret_key 'hidden');
CREATE SERVER chat2 FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888889', host '127.0.0.1:1');
SET timpush.default_server = 'chat';

-- nobody may call anything
SELECT p.oid::regprocedure
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush')
  AND has_function_privilege('regress_timpush_none', p.oid, 'EXECUTE');
-- what PUBLIC has on tables, columns and sequences
SELECT c.relname, p
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid,
     unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND c.relkind IN ('r', 'v')
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush')
  AND has_table_privilege('regress_timpush_none', c.oid, p)
ORDER BY c.relname COLLATE "C", p COLLATE "C";
SELECT string_agg(a.attname, ' ' ORDER BY a.attnum)
FROM pg_attribute a WHERE a.attrelid = 'push_server'::regclass AND a.attnum > 0
  AND has_column_privilege('regress_timpush_none', a.attrelid, a.attnum, 'SELECT');
SELECT c.relname
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid, unnest('{SELECT,USAGE,UPDATE}'::text[]) p
WHERE d.classid = 'pg_class'::regclass AND c.relkind = 'S'
  AND (d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush') OR d.refobjid IN ('push_outbox'::regclass, 'push_request'::regclass))
  AND has_sequence_privilege('regress_timpush_none', c.oid, p);
-- and what PUBLIC can read is under row-level security
SELECT c.relname, c.relrowsecurity
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND c.relkind = 'r'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush')
  AND has_any_column_privilege('regress_timpush_none', c.oid, 'SELECT')
ORDER BY c.relname COLLATE "C";

-- without EXECUTE
SET ROLE regress_timpush_none;
SELECT refused('SELECT ' || f) FROM unnest(ARRAY[$$timpush_batch('boss', '{u1}', 'Hello', 'World')$$, 'timpush_wait(1)', 'timpush_preview(1)',
  $$timpush_usersig('ann')$$]) f;
CREATE TEMP TABLE orders (id integer);
SELECT refused($$CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#t')$$);
SELECT refused($$CREATE SERVER mine FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1', region 'china')$$);
SELECT refused($$ALTER SERVER chat OPTIONS (ADD region 'china')$$);
SELECT refused($$CREATE USER MAPPING FOR regress_timpush_none SERVER chat OPTIONS (identifier 'a', secret_key 'hidden')$$);
SELECT refused('SELECT * FROM push_request');
SELECT refused('SELECT * FROM push_server');
SELECT refused('SELECT * FROM push_server_key');
SELECT refused('SELECT * FROM push_worker');
SELECT refused('SELECT * FROM push_activation');
SELECT refused($$INSERT INTO push_outbox (from_account, to_accounts, title) VALUES ('boss', '{u1}', 'Hello')$$);
SELECT refused('UPDATE push_outbox SET priority = 9');
SELECT refused('DELETE FROM push_outbox');
SELECT refused('TRUNCATE push_result');
SELECT refused($$SELECT nextval('push_msg_random_seq')$$);
DROP TABLE orders;
RESET ROLE;

-- EXECUTE without USAGE
GRANT EXECUTE ON FUNCTION timpush_batch, timpush_enqueue, timpush_wait, timpush_preview, timpush_usersig
  TO regress_timpush_app, regress_timpush_two, regress_timpush_writer, regress_timpush_auditor;
SET ROLE regress_timpush_app;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World')$$);
SELECT refused($$SELECT timpush_usersig('ann')$$);
CREATE TEMP TABLE orders (id integer);
CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#t', 'send_at=#2100-01-01');
SELECT refused('INSERT INTO orders VALUES (1)');
RESET ROLE;

-- EXECUTE and USAGE suffice
GRANT USAGE ON FOREIGN SERVER chat TO regress_timpush_app, regress_timpush_two, regress_timpush_writer;
SET ROLE regress_timpush_app;
SELECT timpush_batch('boss', '{u1}', 'app''s', 'World', send_at => '2100-01-01') AS app_id \gset
INSERT INTO orders VALUES (1);
DROP TABLE orders;
SELECT length(timpush_usersig('ann')) > 200;
SELECT refused($$SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', server => 'chat2')$$);
SELECT refused($$SELECT timpush_usersig('ann', server => 'chat2')$$);
SET ROLE regress_timpush_two;
SELECT timpush_batch('boss', '{u2}', 'two''s', 'World', send_at => '2100-01-01', dedup_key => 'k') AS two_id \gset
RESET ROLE;
SELECT title, enqueued_by FROM push_outbox ORDER BY id;

-- a function that runs as another role enqueues as that role
CREATE FUNCTION enqueue_for_app() RETURNS bigint LANGUAGE sql SECURITY DEFINER
  AS $$ SELECT timpush_batch('boss', '{u3}', 'definer''s', 'World', send_at => '2100-01-01') $$;
ALTER FUNCTION enqueue_for_app() OWNER TO regress_timpush_app;
SET ROLE regress_timpush_none;
SELECT enqueue_for_app() > 0;
RESET ROLE;
SELECT title, enqueued_by FROM push_outbox ORDER BY id DESC LIMIT 1;
DROP FUNCTION enqueue_for_app();

-- who sees what: rows of the journal for two roles
SELECT journal_request(-1, '{-1,-2}', '{mine,theirs}', 'done', 1, '{"From_Account": "boss"}', 't1');
SELECT journal_result(-1, -1, 1, 1, 'sent', role => 'regress_timpush_app');
SELECT journal_result(-2, -1, 2, 1, 'partial', 1, role => 'regress_timpush_two');
INSERT INTO push_error VALUES (-2, -1, 'theirs', 70107, 'no such account', 'final', 'regress_timpush_two');
CREATE FUNCTION seen() RETURNS TABLE (role name, outbox bigint, result bigint, error bigint, status bigint, titles text) LANGUAGE sql AS $$
  SELECT current_user, (SELECT count(*) FROM push_outbox), (SELECT count(*) FROM push_result), (SELECT count(*) FROM push_error),
         (SELECT count(*) FROM push_status), (SELECT string_agg(title, ', ' ORDER BY id) FROM push_outbox)
$$;
SET ROLE regress_timpush_app;
SELECT * FROM seen();
SELECT push_id, state, task_ids FROM push_status WHERE push_id < 0;
SELECT timpush_preview(-1);
SELECT timpush_preview(:app_id);
SELECT left(refused('SELECT timpush_preview(-2)'), 5), left(refused(format('SELECT timpush_preview(%s)', :two_id)), 5),
       left(refused('SELECT timpush_wait(-2)'), 5), left(refused(format('SELECT timpush_wait(%s)', :two_id)), 5);
SELECT refused('SELECT * FROM push_request');
SET ROLE regress_timpush_two;
SELECT * FROM seen();
SET ROLE regress_timpush_lead;
SELECT * FROM seen();
SET ROLE regress_timpush_none;
SELECT * FROM seen();
SET ROLE regress_timpush_monitor;
SELECT * FROM seen();
SET ROLE regress_timpush_auditor;
SELECT count(*) FROM push_request;
SET row_security = off;
SELECT refused('SELECT title FROM push_outbox');
RESET row_security;
RESET ROLE;
SELECT outbox, result, error, status FROM seen();

-- the state of servers: for those who may use them and for pg_monitor
INSERT INTO push_server (server, state, reason)
  SELECT srvname, 'active', 'some reason' FROM pg_foreign_server WHERE srvname IN ('chat', 'chat2')
  ON CONFLICT (server) DO NOTHING;
SET ROLE regress_timpush_app;
SELECT server FROM push_server;
SET ROLE regress_timpush_none;
SELECT server FROM push_server;
SET ROLE regress_timpush_monitor;
SELECT server FROM push_server ORDER BY server;
RESET ROLE;
DELETE FROM push_server WHERE reason = 'some reason';

-- a right to INSERT: the same checks, and in one's own name only
GRANT INSERT ON push_outbox TO regress_timpush_writer;
SET ROLE regress_timpush_writer;
INSERT INTO push_outbox (from_account, to_accounts, title, send_at) VALUES ('boss', '{u1}', 'writer''s', '2100-01-01') RETURNING title, enqueued_by;
INSERT INTO push_outbox (from_account, to_accounts, title, send_at, enqueued_by, created_at, handed_out, content_key)
  VALUES ('boss', '{u1}', 'forged', '2100-01-01', 'regress_timpush_app', '2000-01-01', 1, 1)
  RETURNING title, enqueued_by, created_at = now(), handed_out, content_key <> 1;
SELECT refused($$INSERT INTO push_outbox (from_account, to_accounts, title, server) VALUES ('boss', '{u1}', 'Hello', 'chat2')$$);
SELECT refused($$INSERT INTO push_outbox (from_account, to_accounts, title, content_key) VALUES ('boss', '{u1,u1}', 'Hello', 1)$$);
SELECT refused('UPDATE push_outbox SET priority = 9');
SELECT refused('DELETE FROM push_outbox');
-- a key that another role has used for the server is known, its push is not shown
INSERT INTO push_outbox (from_account, to_accounts, title, send_at, dedup_key) VALUES ('boss', '{u1}', 'Hello', '2100-01-01', 'k');
SELECT * FROM seen();
-- an id of one's own choice opens nobody else's push
CREATE FUNCTION pg_temp.peek(id bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO push_outbox (id, from_account, to_accounts, title, send_at) VALUES (peek.id, 'boss', '{u1}', 'Hello', '2100-01-01');
  RETURN concat(timpush_preview(peek.id), (SELECT s FROM push_status s WHERE push_id = peek.id));
EXCEPTION WHEN OTHERS THEN
  RETURN SQLERRM;
END $$;
SELECT pg_temp.peek(-2) ~ 'theirs|no such account';
SELECT * FROM seen();
RESET ROLE;

-- the key is for the server's owner, and only the mapping FOR PUBLIC counts
SET ROLE regress_timpush_app;
SELECT usename, umoptions FROM pg_user_mappings WHERE srvname = 'chat';
SELECT refused('SELECT umoptions FROM pg_user_mapping');
CREATE USER MAPPING FOR regress_timpush_app SERVER chat OPTIONS (identifier 'mallory', usersig 'eJw-');
SELECT length(timpush_usersig('ann')) > 200;
RESET ROLE;
DROP USER MAPPING FOR PUBLIC SERVER chat;
SET ROLE regress_timpush_app;
ALTER USER MAPPING FOR regress_timpush_app SERVER chat OPTIONS (DROP usersig, ADD secret_key 'mine');
SELECT refused($$SELECT timpush_usersig('ann')$$);
RESET ROLE;

-- objects in front of the search path are not used
CREATE SCHEMA regress_timpush_trap;
CREATE TABLE regress_timpush_trap.push_outbox (id bigint);
CREATE FUNCTION regress_timpush_trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION regress_timpush_trap.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE OPERATOR regress_timpush_trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_timpush_trap.eq);
GRANT USAGE ON SCHEMA regress_timpush_trap TO regress_timpush_app;
SET search_path = regress_timpush_trap, pg_catalog, public;
SET ROLE regress_timpush_app;
SELECT public.timpush_batch('boss', '{u1}', 'safe', 'World', send_at => '2100-01-01', dedup_key => 'k9') AS id \gset
SELECT public.timpush_preview(:id) IS NOT NULL, (public.timpush_wait(:id, '0')).state;
RESET ROLE;
RESET search_path;
DROP SCHEMA regress_timpush_trap CASCADE;

-- a push outlives its role
SET ROLE regress_timpush_two;
SELECT timpush_batch('boss', '{u1}', 'gone', 'World', send_at => '2100-01-01') AS id \gset
RESET ROLE;
DROP OWNED BY regress_timpush_two;
DROP ROLE regress_timpush_two;
SELECT state, enqueued_by FROM push_status WHERE push_id = :id;
SELECT timpush_preview(:id) IS NOT NULL;

DELETE FROM push_outbox;
DELETE FROM push_error;
DELETE FROM push_result;
DELETE FROM push_request;
DROP FUNCTION seen();
DROP SERVER chat CASCADE;
DROP SERVER chat2 CASCADE;
DROP OWNED BY regress_timpush_app, regress_timpush_lead, regress_timpush_none,
  regress_timpush_writer, regress_timpush_monitor, regress_timpush_auditor;
DROP ROLE regress_timpush_app, regress_timpush_lead, regress_timpush_none,
  regress_timpush_writer, regress_timpush_monitor, regress_timpush_auditor;
