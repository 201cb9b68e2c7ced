--
-- push_status and timpush_wait
--
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');

-- a push that waits, one that is scheduled
BEGIN;
SELECT timpush_batch('boss', '{u1,u2}', 'Hello', 'World', data_id => 'd1') AS waiting,
       timpush_batch('boss', '{u1,u2,u3}', 'Hello', 'World', send_at => '2100-01-01') AS scheduled \gset
SELECT server, state, accounts, sent, failed, expired, cancelled, unknown, waiting, maybe_duplicate, task_ids,
       data_id, enqueued_by = current_user, enqueued_at = now(), finished_at IS NULL
FROM push_status ORDER BY push_id;
-- its own transaction cannot wait for it
SELECT regexp_replace(refused(format('SELECT timpush_wait(%s, %L)', id, '0')), '\d+ in', 'N in') FROM unnest(ARRAY[:waiting, :scheduled]) id;
SAVEPOINT s;
SELECT timpush_batch('boss', '{u1}', 'Hello', 'World') AS inner_id \gset
RELEASE s;
SELECT left(refused(format('SELECT timpush_wait(%s, %L)', :inner_id, '0')), 5);
ROLLBACK;
SELECT left(refused('SELECT timpush_wait(timpush_batch(''boss'', ''{u1}'', ''Hello'', ''World''))'), 5);
SELECT left(refused(format('SELECT timpush_wait(%s)', :waiting)), 5);

-- all that can become of a push, from rows as the journal has them
BEGIN;
CREATE FUNCTION part(push bigint, request bigint, state text, accounts integer, failed integer, total integer,
                     task text DEFAULT NULL, code integer DEFAULT NULL, info text DEFAULT NULL, duplicate boolean DEFAULT false,
                     retried integer DEFAULT 0)
RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', $1,
    journal_request(1000000000 - $2, ARRAY[$1], array_fill('u'::text, ARRAY[$4]),
                    CASE WHEN $3 IN ('sent', 'partial') THEN 'done' ELSE $3 END, 1, '{}', $7, $8, $9),
    journal_result($1, 1000000000 - $2, 1, $4, $3, $5, $11, $10, $6))
$$;
SELECT part(-1, -101, 'sent', 3, 0, 3, 't1', 0, 'OK');
SELECT part(-2, -102, 'sent', 500, 0, 501, 't2a', 0, ''), part(-2, -103, 'sent', 1, 0, 501, 't2b', 0, '');
SELECT part(-3, -104, 'partial', 3, 1, 3, 't3', 0, '');
INSERT INTO push_error VALUES (-3, 1000000104, 'u', 70107, 'no such account', 'final', current_user);
SELECT part(-4, -105, 'failed', 2, 2, 2, NULL, 90001, 'bad JSON');
SELECT part(-5, -106, 'expired', 2, 0, 2);
SELECT part(-6, -107, 'cancelled', 2, 0, 2);
SELECT part(-7, -108, 'unknown', 2, 0, 2, NULL, NULL, 'timed out', true);
SELECT part(-8, -109, 'sending', 2, 0, 2);
SELECT part(-9, -110, 'retry', 2, 0, 2, NULL, 91000, 'busy', true);
SELECT part(-10, -111, 'retry', 1, 0, 3), part(-10, -112, 'sending', 1, 0, 3), part(-10, -113, 'sent', 1, 0, 3, 't10', 0, '');
SELECT part(-11, -114, 'sent', 1, 0, 4, 't11', 0, ''), part(-11, -115, 'expired', 1, 0, 4), part(-11, -116, 'cancelled', 1, 0, 4), part(-11, -117, 'unknown', 1, 0, 4);
SELECT part(-12, -118, 'expired', 1, 0, 2), part(-12, -119, 'cancelled', 1, 0, 2);
SELECT part(-13, -120, 'failed', 1, 1, 3, NULL, 90001, 'bad JSON'), part(-13, -121, 'expired', 1, 0, 3), part(-13, -122, 'unknown', 1, 0, 3);
-- an account that was retried is counted where it went
SELECT part(-14, -123, 'partial', 3, 1, 3, 't14', 0, '', false, 1), part(-14, -124, 'sent', 1, 0, 3, 't14b', 0, '');
\pset null '-'
SELECT push_id, state, accounts, sent, failed, expired, cancelled, unknown, waiting, maybe_duplicate, task_ids, error_code, error_info,
       finished_at IS NOT NULL AS finished
FROM push_status ORDER BY push_id DESC;
-- no account is counted twice or forgotten
SELECT count(*) FROM push_status WHERE accounts <> sent + failed + expired + cancelled + unknown + waiting;
-- the rest of a large push that still waits
SELECT timpush_batch('boss', '{u1,u2,u3,u4}', 'Hello', 'World') AS id \gset
UPDATE push_outbox SET handed_out = 3 WHERE id = :id;
SELECT part(:id, -130, 'sent', 2, 0, 4, 't', 0, '') <> part(:id, -131, 'expired', 1, 0, 4);
SELECT state, accounts, sent, expired, waiting, task_ids, finished_at IS NOT NULL FROM push_status WHERE push_id = :id;
-- a final outcome is not waited for
SELECT (w).push_id, (w).state, (w).sent, (w).waiting FROM timpush_wait(-1) w;
SELECT (w).push_id, (w).state, (w).unknown, (w).maybe_duplicate FROM timpush_wait(-7, '1 hour') w;
SELECT state, waiting FROM timpush_wait(-9, '0');
SELECT state, waiting FROM timpush_wait(-8, '10 ms');
SELECT timpush_wait(-1, '0') = s FROM push_status s WHERE push_id = -1;
ROLLBACK;
\pset null ''

-- waiting for one that is scheduled ends at the timeout, with the row as it is
SELECT timpush_batch('boss', '{u1,u2,u3}', 'Hello', 'World', send_at => '2100-01-01') AS id \gset
SELECT state, accounts, waiting FROM timpush_wait(:id, '0');
SELECT state, accounts, waiting FROM timpush_wait(:id, '-1 day');
SELECT state, accounts, waiting FROM timpush_wait(:id, '50 ms');
SET statement_timeout = '200ms';
SELECT timpush_wait(:id);
RESET statement_timeout;
SELECT timpush_wait(NULL) IS NULL, timpush_wait(:id, NULL) IS NULL;
SELECT refused('SELECT timpush_wait(-1)');
SELECT refused('SELECT timpush_wait(-1, ''0'')');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT state FROM timpush_wait(:id, '0');
ROLLBACK;
BEGIN READ ONLY;
SELECT state FROM timpush_wait(:id, '0');
ROLLBACK;

-- each role sees its own pushes
DROP ROLE IF EXISTS regress_timpush_app;
CREATE ROLE regress_timpush_app;
GRANT EXECUTE ON FUNCTION timpush_wait, timpush_preview TO regress_timpush_app;
SET ROLE regress_timpush_app;
SELECT count(*) FROM push_status;
SELECT left(refused(format('SELECT timpush_wait(%s, %L)', :id, '0')), 5);
SELECT left(refused(format('SELECT timpush_preview(%s)', :id)), 5);
RESET ROLE;
REVOKE ALL ON FUNCTION timpush_wait, timpush_preview FROM regress_timpush_app;
DROP ROLE regress_timpush_app;

DELETE FROM push_outbox;
DROP SERVER chat;
