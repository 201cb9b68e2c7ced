--
-- timpush_usersig
--
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET client_min_messages = error;
SET intervalstyle = 'postgres';

-- HMAC-SHA256 in SQL, for a key of at most 64 bytes
CREATE FUNCTION hmac_sha256(data bytea, key bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  inner_pad bytea := decode(repeat('36', 64), 'hex');
  outer_pad bytea := decode(repeat('5c', 64), 'hex');
BEGIN
  FOR i IN 0..length(key) - 1 LOOP
    inner_pad := set_byte(inner_pad, i, get_byte(key, i) # 54);
    outer_pad := set_byte(outer_pad, i, get_byte(key, i) # 92);
  END LOOP;
  RETURN sha256(outer_pad || sha256(inner_pad || data));
END $$;
-- RFC 4231, test case 2
SELECT encode(hmac_sha256('what do ya want for nothing?', 'Jefe'), 'hex');

CREATE FUNCTION adler32(data bytea) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  a bigint := 1;
  b bigint := 0;
BEGIN
  FOR i IN 0..length(data) - 1 LOOP
    a := (a + get_byte(data, i)) % 65521;
    b := (b + a) % 65521;
  END LOOP;
  RETURN b * 65536 + a;
END $$;
SELECT to_hex(adler32('Wikipedia'));

-- The JSON inside a UserSig; NULL if it is not one stored block of zlib.
CREATE FUNCTION usersig_json(sig text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  packed bytea := decode(translate(sig, '*-_', '+/='), 'base64');
  len integer := length(packed) - 11;
  data bytea := substr(packed, 8, len);
BEGIN
  IF sig ~ '[^A-Za-z0-9*_-]' OR substr(packed, 1, 3) <> '\x780101'
     OR get_byte(packed, 3) + 256 * get_byte(packed, 4) <> len
     OR get_byte(packed, 5) + 256 * get_byte(packed, 6) <> 65535 - len
     OR lpad(to_hex(adler32(data)), 8, '0') <> encode(substr(packed, len + 8, 4), 'hex') THEN
    RETURN NULL;
  END IF;
  RETURN convert_from(data, 'UTF8')::jsonb;
END $$;

-- Is it a signature by this key?
CREATE FUNCTION usersig_signed_by(sig text, key text) RETURNS boolean LANGUAGE sql AS $$
  SELECT j ->> 'TLS.sig' = encode(hmac_sha256(convert_to(format(E'TLS.identifier:%s\nTLS.sdkappid:%s\nTLS.time:%s\nTLS.expire:%s\n',
      j ->> 'TLS.identifier', j ->> 'TLS.sdkappid', j ->> 'TLS.time', j ->> 'TLS.expire'), 'UTF8'), convert_to(key, 'UTF8')), 'base64')
  FROM usersig_json(sig) j
$$;

-- no server, no mapping, no key
SELECT refused($$SELECT timpush_usersig('ann')$$) LIKE '42704: there is no timpush server in database "%';
CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '4294967295', host '127.0.0.1:1');
SELECT refused($$SELECT timpush_usersig('ann')$$);
CREATE USER MAPPING FOR PUBLIC SERVER chat OPTIONS (identifier 'administrator', usersig 'eJw-');
SELECT refused($$SELECT timpush_usersig('ann')$$);
ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (DROP usersig, ADD secret_key_file '/nonexistent/chat.key');
SELECT refused($$SELECT timpush_usersig('ann')$$);
ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (SET secret_key_file '/');
SELECT refused($$SELECT timpush_usersig('ann')$$);
ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (DROP secret_key_file, ADD secret_key 'sesame', ADD usersig_lifetime '1h');

-- its fields
SELECT j - '{TLS.time,TLS.sig}'::text[], abs((j ->> 'TLS.time')::bigint - extract(epoch FROM clock_timestamp())) < 100,
       length(decode(j ->> 'TLS.sig', 'base64'))
FROM usersig_json(timpush_usersig('ann')) j;
SELECT usersig_signed_by(s, 'sesame'), usersig_signed_by(s, 'Sesame') FROM timpush_usersig('ann') s;
SELECT usersig_json(timpush_usersig('ann', l::interval)) -> 'TLS.expire'
FROM unnest('{1s,1500ms,1min,24h,1 day,1 mon,180 days,10 years,3650 days}'::text[]) l;
SELECT j ->> 'TLS.identifier', usersig_signed_by(s, 'sesame')
FROM unnest(ARRAY['a', 'with space', '"quoted"', 'back\slash', '{json}', '客户', repeat('u', 256)]) u,
     timpush_usersig(u) s, usersig_json(s) j;

-- the server: by name, by default, by being the only one
CREATE SERVER chat2 FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '2', host '127.0.0.1:1');
CREATE USER MAPPING FOR PUBLIC SERVER chat2 OPTIONS (identifier 'administrator', secret_key 'other');
SELECT refused($$SELECT timpush_usersig('ann')$$);
SELECT refused($$SELECT timpush_usersig('ann', server => 'chat3')$$);
SELECT usersig_signed_by(timpush_usersig('ann', server => 'chat2'), 'other'),
       usersig_json(timpush_usersig('ann', server => 'chat2')) -> 'TLS.sdkappid';
SET timpush.default_server = 'chat';
SELECT usersig_signed_by(timpush_usersig('ann'), 'sesame');

-- a changed key counts at once
ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (SET secret_key 'new');
SELECT usersig_signed_by(timpush_usersig('ann'), 'new');

-- the key is nowhere in it
SELECT position('sesame' IN usersig_json(timpush_usersig('ann'))::text);

-- bad arguments
SELECT refused('SELECT timpush_usersig(NULL)');
SELECT refused('SELECT timpush_usersig('''')');
SELECT refused('SELECT timpush_usersig(''ann'', NULL)');
SELECT refused(format('SELECT timpush_usersig(''ann'', %L)', l))
FROM unnest(ARRAY['0', '999 ms', '-1 day', '3650 days 1 s', '11 years', '7116800 mons', '-7116800 mons', '178000000 years', 'soon']) l;
SELECT refused('SELECT timpush_usersig(E''a\nb'')');
SELECT left(refused('SELECT timpush_usersig(E''a\x01'')'), 5);
SELECT left(refused('SELECT timpush_usersig(repeat(''u'', 257))'), 40);
SELECT refused('SELECT timpush_usersig(repeat(''u'', 257))') LIKE '%HINT: A UserID has at most 256 bytes and no control characters.';

DROP SERVER chat CASCADE;
DROP SERVER chat2 CASCADE;
DROP FUNCTION usersig_signed_by, usersig_json, adler32, hmac_sha256;
