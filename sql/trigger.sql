--
-- timpush_enqueue: a trigger without PL/pgSQL
--
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET client_min_messages = error;
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');
CREATE SERVER chat2 FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888889', host '127.0.0.1:1');
SET timpush.default_server = 'chat';

CREATE DOMAIN account AS text;
CREATE DOMAIN accounts AS text[];
CREATE TABLE orders (
  id integer, customer_id bigint, summary text, watchers text[], code char(10), short varchar(5),
  numbers integer[], short_list varchar(5)[], one account, many accounts, ident name, "Odd name" text,
  details jsonb, urgency smallint, due timestamp, until timestamptz, server name);

-- Make the trigger, insert a row, and show what is enqueued; undo it all.
CREATE FUNCTION enqueued_by_trigger(arguments text, assignments jsonb DEFAULT '{}') RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
  report text[];
BEGIN
  BEGIN
    EXECUTE 'CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION timpush_enqueue(' || arguments || ')';
    INSERT INTO orders SELECT * FROM jsonb_populate_record(NULL::orders,
      '{"id": 7, "customer_id": 12345678901, "summary": "a table", "watchers": ["w1", "w2"], "code": "c1", "short": "s1",
        "numbers": [1, 2], "short_list": ["x", "y"], "one": "o1", "many": ["m1", "m2"], "ident": "n1", "Odd name": "odd",
        "details": {"Classification": 1}, "urgency": 8, "due": "2100-01-01 12:00", "until": "2100-01-03", "server": "chat2"}' || assignments);
    SELECT array_agg(concat_ws('|', o.server, o.from_account, o.to_accounts::text, coalesce(o.title, '(null)'), coalesce(o.descr, '(null)'),
                               o.data_id, o.extra::text, o.priority, nullif(o.send_at, now()), nullif(o.expires_at, greatest(o.send_at, now()) + '24h'), o.dedup_key))
      INTO report FROM push_outbox o;
    RAISE 'undo' USING ERRCODE = 'TP000';
  EXCEPTION WHEN SQLSTATE 'TP000' THEN
    NULL;
  END;
  RETURN QUERY SELECT coalesce(r, '(none)') FROM unnest(report) r;
END $$;

-- constants and columns
SELECT * FROM enqueued_by_trigger($$'from=#administrator', 'to=customer_id', 'title=#Order received', 'descr=summary', 'data_id=id'$$);
SELECT * FROM enqueued_by_trigger($$'from=#a', 'to=#u1', 'title=#'$$ || $$, 'descr=#=#='$$);
SELECT * FROM enqueued_by_trigger($$'from=#a', 'to=Odd name', 'title=Odd name'$$);
-- every argument
SELECT * FROM enqueued_by_trigger($$'from=one', 'to=watchers', 'title=summary', 'descr=ident', 'data_id=id', 'server=server', 'extra=details',
                                    'priority=urgency', 'send_at=due', 'expires_at=until', 'dedup_key=customer_id'$$);
SELECT * FROM enqueued_by_trigger($$'from=#a', 'to=#u1', 'title=#t', 'descr=#d', 'data_id=#1', 'server=#chat2', 'extra=#{"Classification": 0}',
                                    'priority=#0', 'send_at=#2100-01-01', 'expires_at=#2100-01-02', 'dedup_key=#k'$$);
-- what "to" can be
SELECT c, r
FROM unnest('{id, customer_id, summary, watchers, code, short, numbers, short_list, one, many, ident}'::text[]) c,
     enqueued_by_trigger(format($$'from=#a', 'title=#t', 'to=%s'$$, c)) r;
SELECT * FROM enqueued_by_trigger($$'from=code', 'to=short', 'title=code'$$);
-- NULL columns are arguments left out
SELECT * FROM enqueued_by_trigger($$'from=#a', 'to=short', 'title=summary', 'descr=one', 'data_id=id', 'server=server', 'extra=details',
                                    'priority=urgency', 'send_at=due', 'expires_at=until', 'dedup_key=ident'$$,
  '{"one": null, "id": null, "server": null, "details": null, "urgency": null, "due": null, "until": null, "ident": null}');

-- the same errors as those of timpush_batch, in the statement that fires the trigger
CREATE FUNCTION refused_by_trigger(arguments text, assignments jsonb DEFAULT '{}') RETURNS text LANGUAGE sql AS $$
  SELECT refused(format('SELECT * FROM enqueued_by_trigger(%L, %L)', arguments, assignments))
$$;
SELECT refused_by_trigger('');
SELECT refused_by_trigger($$'from=#a'$$);
SELECT refused_by_trigger($$'from=#', 'to=id', 'title=#t'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id'$$);
SELECT refused_by_trigger($$'from=#a', 'to=watchers', 'title=#t'$$, '{"watchers": ["w1", null]}');
SELECT refused_by_trigger($$'from=#a', 'to=watchers', 'title=#t'$$, '{"watchers": ["w1", "w1"]}');
SELECT refused_by_trigger($$'from=#a', 'to=watchers', 'title=#t'$$, '{"watchers": null}');
SELECT refused_by_trigger($$'from=#a', 'to=watchers', 'title=#t'$$, '{"watchers": []}');
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'server=#chat3'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'data_id=summary'$$, jsonb_build_object('summary', repeat('d', 65)));
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'extra=#[]'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'expires_at=#2000-01-01'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'priority=id'$$, '{"id": 70}');
-- and those of the arguments themselves
SELECT refused_by_trigger($$'from=#a', 'to=id', 'titel=#t'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', ''$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', '=#t'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'Title=#t'$$);
SELECT refused_by_trigger($$'from=#a', 'to=customer', 'title=#t'$$);
SELECT refused_by_trigger($$'from=#a', 'to=', 'title=#t'$$);
SELECT refused_by_trigger($$'from=#a', 'to=ctid', 'title=#t'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'priority=#high'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'send_at=#soon'$$);
SELECT refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'extra=summary'$$);
SELECT left(refused_by_trigger($$'from=#a', 'to=id', 'title=#t', 'title=summary'$$), 5);

-- it has to be a row trigger
CREATE TRIGGER notify AFTER INSERT ON orders EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=#u1', 'title=#t');
SELECT refused('INSERT INTO orders (id) VALUES (1)');
DROP TRIGGER notify ON orders;
SELECT refused('SELECT timpush_enqueue()');

-- UPDATE takes the new row, DELETE the old one; BEFORE lets the row through
BEGIN;
INSERT INTO orders (id, summary) VALUES (1, 'one'), (2, 'two'), (3, 'three');
CREATE TRIGGER notify_update AFTER UPDATE OF summary ON orders FOR EACH ROW WHEN (old.summary IS DISTINCT FROM new.summary)
  EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#changed', 'descr=summary');
CREATE TRIGGER notify_delete BEFORE DELETE ON orders FOR EACH ROW
  EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#deleted', 'descr=summary');
CREATE TRIGGER notify_insert BEFORE INSERT ON orders FOR EACH ROW
  EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#new', 'descr=summary');
UPDATE orders SET summary = 'uno' WHERE id = 1;
UPDATE orders SET summary = 'two' WHERE id = 2;
UPDATE orders SET urgency = 1;
DELETE FROM orders WHERE id = 3;
INSERT INTO orders (id, summary) VALUES (4, 'four');
SELECT to_accounts, title, descr FROM push_outbox ORDER BY id;
SELECT id, summary FROM orders ORDER BY id;
ROLLBACK;

-- as many pushes as rows, and none if one row is bad
BEGIN;
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=summary', 'title=#t');
SAVEPOINT s;
INSERT INTO orders (summary) VALUES ('u1'), ('u2'), (' ');
ROLLBACK TO s;
SELECT count(*) FROM push_outbox;
INSERT INTO orders (summary) SELECT 'u' || i FROM generate_series(1, 1000) i;
SELECT count(*), count(DISTINCT to_accounts), count(DISTINCT content_key) FROM push_outbox;
ROLLBACK;

DROP FUNCTION enqueued_by_trigger, refused_by_trigger;
DROP TABLE orders;
DROP DOMAIN account;
DROP DOMAIN accounts;
DROP SERVER chat;
DROP SERVER chat2;
