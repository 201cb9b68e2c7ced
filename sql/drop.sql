--
-- DROP EXTENSION leaves nothing behind
--
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET client_min_messages = error;

CREATE FUNCTION leftovers() RETURNS SETOF text LANGUAGE sql AS $$
  SELECT pg_describe_object('pg_class'::regclass, oid, 0) FROM pg_class WHERE relname ~ '^(push_|timpush)'
  UNION ALL
  SELECT pg_describe_object('pg_proc'::regclass, oid, 0) FROM pg_proc WHERE proname ~ '^timpush' OR probin ~ 'timpush'
  UNION ALL
  SELECT pg_describe_object('pg_type'::regclass, oid, 0) FROM pg_type WHERE typname ~ '^_?(push_|timpush)'
  UNION ALL
  SELECT pg_describe_object('pg_policy'::regclass, oid, 0) FROM pg_policy WHERE polname ~ '^(push_|timpush)'
  UNION ALL
  SELECT pg_describe_object('pg_trigger'::regclass, oid, 0) FROM pg_trigger WHERE tgname ~ '^(push_|timpush)'
  UNION ALL
  SELECT 'wrapper ' || fdwname FROM pg_foreign_data_wrapper WHERE fdwname = 'timpush'
  UNION ALL
  SELECT 'server ' || srvname FROM pg_foreign_server
  UNION ALL
  SELECT 'user mapping' FROM pg_user_mapping
$$;

-- the tables of the tests before were left empty
SELECT count(*) FROM push_outbox;
SELECT count(*) FROM push_result;

-- its parts cannot go alone, nor can it while a server, or a trigger of a user's, is there
SELECT refused('DROP TABLE push_outbox');
SELECT refused('DROP FOREIGN DATA WRAPPER timpush');
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
SELECT refused('DROP EXTENSION timpush');
SELECT refused('DROP EXTENSION timpush CASCADE');
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', send_at => '2100-01-01') AS id \gset
SELECT timpush_cancel(:id), timpush_cancel(timpush_retry(:id));
CREATE TABLE orders (id integer);
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#t', 'send_at=#2100-01-01');
INSERT INTO orders VALUES (1);
SELECT regexp_replace(refused('DROP SERVER chat'), 'Push \d+', 'Push N');
SELECT regexp_replace(refused('ALTER SERVER chat RENAME TO chat2'), 'Push \d+', 'Push N');
DROP SERVER chat CASCADE;
SELECT count(*) FROM push_outbox;
SELECT refused('DROP EXTENSION timpush');
DROP TABLE orders;
DROP EXTENSION timpush;
SELECT * FROM leftovers();

-- again, and in a schema of its own, all in one session
CREATE EXTENSION timpush;
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World', send_at => '2100-01-01') AS id \gset
SELECT state FROM timpush_wait(:id, '0');
SELECT timpush_cancel(:id), timpush_cancel(timpush_retry(:id));
DROP EXTENSION timpush CASCADE;
SELECT * FROM leftovers();

CREATE SCHEMA "Push it";
CREATE EXTENSION timpush SCHEMA "Push it";
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
SELECT "Push it".timpush_batch('boss', '{u1}', 'Hello', 'World', send_at => '2100-01-01', dedup_key => 'k') AS id \gset
SELECT "Push it".timpush_batch('boss', '{u1}', 'Hello', 'World', send_at => '2100-01-01', dedup_key => 'k') = :id;
SELECT "Push it".timpush_preview(:id);
SELECT state FROM "Push it".timpush_wait(:id, '0');
SELECT state FROM "Push it".push_status;
SELECT "Push it".timpush_cancel(:id), "Push it".timpush_cancel("Push it".timpush_retry(:id));
SELECT "Push it".timpush_pause('chat');
SELECT state FROM "Push it".push_server;
SELECT refused('ALTER EXTENSION timpush SET SCHEMA public');
ALTER SCHEMA "Push it" RENAME TO push_it;
SELECT refused($$SELECT push_it.timpush_batch('boss', '{u2}', 'Hello', 'World', send_at => '2100-01-01')$$);
SELECT push_it.timpush_preview(:id);
SELECT push_it.timpush_retry(:id) AS id \gset
SELECT push_it.timpush_cancel(:id), state FROM push_it.push_status WHERE push_id = :id;
SELECT push_it.timpush_resume('chat');
SELECT state FROM push_it.push_server;
DROP EXTENSION timpush CASCADE;
SELECT * FROM leftovers();
DROP SCHEMA push_it;
DROP FUNCTION leftovers();
