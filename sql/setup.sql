--
-- The extension, its settings, and what the other files use
--
CREATE EXTENSION timpush;
LOAD 'timpush';

-- whatever the cluster's configuration says
DO $$
BEGIN
  EXECUTE format('ALTER DATABASE %I SET timpush.default_server = %L', current_database(), '');
  EXECUTE format('ALTER DATABASE %I SET timpush.default_ttl = %L', current_database(), '24h');
  EXECUTE format('ALTER DATABASE %I SET timpush.on_unknown = %L', current_database(), 'retry');
END $$;

-- Run a command that is to be refused and say how; undo it if it is not.
CREATE FUNCTION refused(command text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  code text;
  message text;
  detail text;
  hint text;
BEGIN
  BEGIN
    EXECUTE command;
    RAISE 'accepted' USING ERRCODE = 'TP000';
  EXCEPTION
    WHEN SQLSTATE 'TP000' THEN
      RETURN 'accepted';
    WHEN OTHERS THEN
      GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  END;
  RETURN code || ': ' || message
    || CASE WHEN detail <> '' THEN E'\nDETAIL: ' || detail ELSE '' END
    || CASE WHEN hint <> '' THEN E'\nHINT: ' || hint ELSE '' END;
END $$;

-- Rows of the journal as the worker writes them.
CREATE FUNCTION journal_request(id bigint, pushes bigint[], accounts text[], state text, msg_random bigint DEFAULT 1,
                                content jsonb DEFAULT '{}', task_id text DEFAULT NULL, error_code integer DEFAULT NULL,
                                error_info text DEFAULT NULL)
RETURNS text LANGUAGE sql AS $$
  INSERT INTO push_request (id, server, msg_random, content, accounts, push_ids, state, on_unknown, created_at, task_id,
                            error_code, error_info)
    VALUES ($1, 'chat', $5, $6, $3, $2, $4, 'retry', now(), $7, $8, $9)
    RETURNING 'request ' || push_request.state
$$;
CREATE FUNCTION journal_result(push bigint, request bigint, first integer, accounts integer, state text, failed integer DEFAULT 0,
                               retried integer DEFAULT 0, duplicate boolean DEFAULT false, total integer DEFAULT NULL,
                               role name DEFAULT current_user, key text DEFAULT NULL)
RETURNS text LANGUAGE sql AS $$
  INSERT INTO push_result (push_id, request_id, first, accounts, state, failed, retried, maybe_duplicate, server, enqueued_by,
                           push_accounts, priority, enqueued_at, finished_at, dedup_key)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'chat', $10, coalesce($9, $4), 4, now(),
            CASE WHEN $5 NOT IN ('sending', 'retry') THEN now() END, $11)
    RETURNING 'result ' || push_result.state
$$;

-- settings
SELECT name, unit, context, vartype, boot_val, enumvals
FROM pg_settings WHERE name LIKE 'timpush.%' ORDER BY name COLLATE "C";
SET timpush.on_unknown = 'guess';
\set VERBOSITY sqlstate
SET timpush.default_ttl = '-1';
\set VERBOSITY default
SET timpush.default_ttl = 'soon';
SET timpush.default_ttl = '2d';
SHOW timpush.default_ttl;
SET timpush.enabled = off;
SET timpush.defualt_ttl = '1h';

-- functions
\pset format unaligned
\pset tuples_only on
SELECT p.proname, p.provolatile, p.proisstrict, pg_get_function_result(p.oid), pg_get_function_arguments(p.oid)
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush')
ORDER BY p.proname COLLATE "C";

\pset format aligned
\pset tuples_only off

-- tables and views: what the manual names is there
WITH promised (relation, names) AS (VALUES
  ('push_outbox', 'id server from_account to_accounts title descr data_id extra priority send_at expires_at on_unknown dedup_key '
                  'enqueued_by created_at content_key'),
  ('push_request', 'id server msg_random content accounts state attempts http_status task_id error_code error_info class '
                   'maybe_duplicate parent created_at first_sent_at next_attempt_at finished_at latency'),
  ('push_result', 'push_id request_id first accounts state failed maybe_duplicate server enqueued_by data_id dedup_key '
                  'push_accounts enqueued_at finished_at'),
  ('push_error', 'push_id request_id account error_code error_info class enqueued_by'),
  ('push_server', 'server state reason error_code since next_probe_at'),
  ('push_status', 'push_id server state accounts sent failed expired cancelled unknown waiting maybe_duplicate task_ids '
                  'error_code error_info data_id enqueued_by enqueued_at finished_at'))
SELECT relation, name AS missing
FROM promised, unnest(string_to_array(names, ' ')) name
WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = relation::regclass AND a.attname = name AND a.attnum > 0);
SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_attribute a WHERE a.attrelid = 'push_status'::regclass AND a.attnum > 0
ORDER BY a.attnum;

-- not relocatable
SELECT extversion, extrelocatable FROM pg_extension WHERE extname = 'timpush';
