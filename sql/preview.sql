--
-- timpush_preview: the bodies of a push that waits
--
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '88888888', host '127.0.0.1:1');

BEGIN;
CREATE FUNCTION preview_of("to" text[], title text, descr text, data_id text DEFAULT NULL, extra jsonb DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  id bigint := timpush_batch('boss', "to", title, descr, data_id, NULL, extra);
BEGIN
  RETURN jsonb_pretty(timpush_preview(id));
END $$;
SELECT preview_of('{u1}', 'Hello', 'World');
SELECT preview_of('{u1,u2}', 'Hello', NULL, 'order-1');
SELECT preview_of('{u1}', NULL, 'World', '');

-- extra is merged by the API's names, an object Ext becomes JSON text
SELECT preview_of('{u1}', 'Hello', 'World', 'd', '{"Classification": 1, "OfflinePushInfo": {"PushFlag": 0,
  "Ext": {"page": "order/1", "list": [1, "two", null]}, "ApnsInfo": {"BadgeMode": 1, "Title": "inner"}}, "Other": [1.50, true]}');
SELECT preview_of('{u1}', 'Hello', 'World', NULL, '{"OfflinePushInfo": {"Ext": "as it is {"}}');
SELECT preview_of('{u1}', 'Hello', 'World', NULL, '{"OfflinePushInfo": {"Ext": {}}}');
SELECT preview_of('{u1}', NULL, NULL, NULL, '{"OfflinePushInfo": {"PushTemplateId": "88888888-1", "PushTemplateParam": {"name": "Ann"}}}');
-- Ext elsewhere is none of ours
SELECT preview_of('{u1}', 'Hello', NULL, NULL, '{"Ext": {"a": 1}, "OfflinePushInfo": {"AndroidInfo": {"Ext": {"a": 1}}}}');
SELECT (preview_of('{u1}', 'Hello', NULL, NULL, '{"OfflinePushInfo": {"Ext": {"b": {"c": "\"\\"}, "a": 1}}}')::jsonb
  #>> '{0,OfflinePushInfo,Ext}')::jsonb;

-- a field that "extra" has twice is the last one; a number keeps its digits
SELECT preview_of('{u1}', 'Hello', NULL, NULL, '{"A": 1, "A": [1e40, -0.0, 1.50, 12345678901234567890123456789012345678901234567890, 1e-10],
  "OfflinePushInfo": {"Ext": "first"}, "OfflinePushInfo": {"Ext": {"b": 1, "b": "last"}}}');
-- a row that came by replication was not checked here
SET LOCAL session_replication_role = replica;
INSERT INTO push_outbox (server, from_account, to_accounts, title, extra, content_key, send_at, on_unknown, enqueued_by, created_at, accounts)
  SELECT 'chat', 'boss', '{u1}', 'Hello', v, 1, now(), 'retry', current_user, now(), 1
  FROM unnest('{"{\"OfflinePushInfo\": 1}","{\"OfflinePushInfo\": [2]}","{\"OfflinePushInfo\": {\"Ext\": 3}}","{\"OfflinePushInfo\": {\"Ext\": [4]}}","[5]"}'::jsonb[]) v;
SET LOCAL session_replication_role = origin;
SELECT timpush_preview(id) FROM push_outbox WHERE content_key = 1 ORDER BY id;

-- what JSON has to escape, and what is not ASCII
SELECT preview_of(ARRAY['"u1"', 'back\slash', E'tab\there', '{u}'], E'line\nend', '</script> & "quoted"');
SELECT preview_of('{客户,Ünï}', '你好', '😀 Grüße', 'é', '{"OfflinePushInfo": {"Ext": {"页": "订单/1"}}}');

-- more accounts than a call takes
CREATE FUNCTION sizes_of(n integer) RETURNS TABLE (accounts bigint, first text, last text) LANGUAGE sql AS $$
  SELECT jsonb_array_length(b -> 'To_Account'), b #>> '{To_Account,0}', b #>> '{To_Account,-1}'
  FROM jsonb_array_elements(preview_of(array(SELECT 'u' || i FROM generate_series(1, n) i), 'Hello', 'World')::jsonb)
       WITH ORDINALITY t (b, i)
  ORDER BY i
$$;
SELECT * FROM sizes_of(500);
SELECT * FROM sizes_of(501);
SELECT * FROM sizes_of(1234);
ALTER SERVER chat OPTIONS (ADD accounts_per_request '200');
SELECT * FROM sizes_of(500);
ALTER SERVER chat OPTIONS (SET accounts_per_request '1');
SELECT * FROM sizes_of(3);
ALTER SERVER chat OPTIONS (DROP accounts_per_request);

-- the accounts that were handed out are shown as they were journaled
SELECT timpush_batch('boss', '{u1,u2,u3,u4}', 'Hello', 'World') AS id \gset
UPDATE push_outbox SET handed_out = 2 WHERE id = :id;
SELECT journal_request(1000000001, ARRAY[:id], '{x,u1,u2,y}', 'sending', 4294967295,
                       '{"From_Account": "boss", "OfflinePushInfo": {"Title": "Hello"}}');
SELECT journal_result(:id, 1000000001, 2, 2, 'sending', total => 4);
SELECT jsonb_pretty(timpush_preview(:id));
SELECT timpush_preview(:id) = timpush_preview(:id);
UPDATE push_result SET first = 4 WHERE push_id = :id;
SELECT refused(format('SELECT timpush_preview(%s)', :id));
ROLLBACK;

-- it reads what the statement sees, so not a push of the same statement
SELECT regexp_replace(refused($$SELECT timpush_preview(timpush_batch('boss', '{u1}', 'Hello', 'World'))$$), '\d+ does', 'N does');
SELECT refused('SELECT timpush_preview(-1)');
SELECT timpush_preview(NULL) IS NULL;
DROP SERVER chat;
