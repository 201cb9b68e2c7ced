--
-- Options of servers and user mappings
--
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;

CREATE FUNCTION server_with(options text) RETURNS text LANGUAGE sql AS $$
  SELECT refused('CREATE SERVER tim FOREIGN DATA WRAPPER timpush OPTIONS (' || options || ')')
$$;
CREATE FUNCTION mapping_with(options text) RETURNS text LANGUAGE sql AS $$
  SELECT refused('CREATE USER MAPPING FOR PUBLIC SERVER chat OPTIONS (' || options || ')')
$$;

-- what is required
SELECT refused('CREATE SERVER tim FOREIGN DATA WRAPPER timpush');
SELECT server_with($$region 'singapore'$$);
SELECT server_with($$sdkappid '1'$$);
SELECT server_with($$sdkappid '1', region 'singapore', host 'example.com'$$);

-- no such option
SELECT server_with($$sdkappid '1', region 'singapore', sdkapid '1'$$);
SELECT server_with($$sdkappid '1', region 'singapore', "Region" 'china'$$);
SELECT server_with($$sdkappid '1', region 'singapore', secret_key 'hidden'$$);
SELECT refused($$ALTER FOREIGN DATA WRAPPER timpush OPTIONS (ADD sdkappid '1')$$);
SELECT refused($$CREATE SERVER tim FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1', sdkappid '2', region 'china')$$);

-- sdkappid
SELECT server_with($$region 'china', sdkappid $$ || quote_literal(v)) || ' <' || v || '>'
FROM unnest('{1, 88888888, 4294967295}'::text[]) v;
SELECT server_with($$region 'china', sdkappid $$ || quote_literal(v))
FROM unnest(ARRAY['', '0', '-1', '4294967296', '99999999999999999999', '1.5', ' 1', '1 ', '+1', '0x10', 'app', '1;2']) v;

-- the eight regions
SELECT server_with($$sdkappid '1', region $$ || quote_literal(v)) || ' <' || v || '>'
FROM unnest('{china, singapore, seoul, frankfurt, siliconvalley, jakarta, tokyo, riyadh}'::text[]) v;
SELECT server_with($$sdkappid '1', region $$ || quote_literal(v))
FROM unnest(ARRAY['', 'Singapore', 'mars', 'singapore ']) v;

-- host
SELECT server_with($$sdkappid '1', host $$ || quote_literal(v)) || ' <' || v || '>'
FROM unnest(ARRAY['example.com', 'example.com:8443', 'localhost', '127.0.0.1', '127.0.0.1:1', '10.0.0.1:65535',
                  '[::1]', '[::1]:8443', '[2001:db8::ff00:42:8329]:443', '[::ffff:127.0.0.1]', 'a_b-c.example.com.']) v;
SELECT server_with($$sdkappid '1', host $$ || quote_literal(v))
FROM unnest(ARRAY['', 'https://example.com', 'example.com/v4', 'example.com:', 'example.com:0', 'example.com:65536',
                  'example.com:123456', 'example.com:https', 'example.com:-1', 'user@example.com', 'example.com?a=b',
                  'exam ple.com', '.example.com', '-example.com', '::1', '[::1', '[]', '[::1]8443', '[example.com]',
                  '[:]', '[12345::]', '[1::2::3]', '[::1%25lo]', '[127.0.0.1]', '[' || repeat('0', 60) || ':]',
                  E'example.com\n', 'example.com:443:444', 'example.com:0443', repeat('a', 254)]) v;
SELECT left(refused($$SELECT timpush_fdw_validator(ARRAY['sdkappid=1', 'host=' || repeat('a', 104857600)], 'pg_foreign_server'::regclass)$$), 50);

-- rates
SELECT server_with($$sdkappid '1', region 'china', requests_per_second $$ || quote_literal(v)) || ' <' || v || '>',
       server_with($$sdkappid '1', region 'china', accounts_per_second $$ || quote_literal(v))
FROM unnest(ARRAY['0', '10', '0.5', '1e3', '1000000', '0.0001', '1e-4', '.5', '5.', '0e0', '-0']) v;
SELECT server_with($$sdkappid '1', region 'china', requests_per_second $$ || quote_literal(v))
FROM unnest(ARRAY['', '-1', '1000000.1', '1e308', '1e400', '0.00009', '1e-300', '1e-400', '-1e-300', 'inf', 'Infinity', 'nan', 'NaN',
                  '10/s', ' 10', '10 ', '1 0', '0,5', '1e', '1.2.3', '--1', '0x10', 'many', repeat('9', 400)]) v;
SELECT server_with($$sdkappid '1', region 'china', accounts_per_second '-0.1'$$);

-- counts
SELECT server_with(format($$sdkappid '1', region 'china', %I %L$$, o, v)) || format(' <%s %s>', o, v)
FROM (VALUES ('accounts_per_request', '1'), ('accounts_per_request', '500'), ('max_in_flight', '1'),
             ('max_in_flight', '1000'), ('max_unknown_resends', '-1'), ('max_unknown_resends', '0'),
             ('max_unknown_resends', '1000')) t (o, v);
SELECT server_with(format($$sdkappid '1', region 'china', %I %L$$, o, v))
FROM (VALUES ('accounts_per_request', '0'), ('accounts_per_request', '501'), ('accounts_per_request', ''),
             ('max_in_flight', '0'), ('max_in_flight', '1001'), ('max_in_flight', 'all'),
             ('max_unknown_resends', '-2'), ('max_unknown_resends', '1001'), ('max_unknown_resends', '1.0')) t (o, v);

-- durations, with units
SELECT server_with(format($$sdkappid '1', region 'china', %I %L$$, o, v)) || format(' <%s %s>', o, v)
FROM (VALUES ('connect_timeout', '1'), ('connect_timeout', '500ms'), ('connect_timeout', '3s'), ('connect_timeout', '0.5s'),
             ('connect_timeout', '1h'), ('request_timeout', '3001'), ('request_timeout', '10s'),
             ('request_timeout', '2min'), ('request_timeout', '3600000ms')) t (o, v);
SELECT server_with(format($$sdkappid '1', region 'china', %I %L$$, o, v))
FROM (VALUES ('connect_timeout', '0'), ('connect_timeout', '-1s'), ('connect_timeout', '61min'), ('connect_timeout', '3 seconds'),
             ('connect_timeout', ''), ('connect_timeout', '3kB'), ('request_timeout', '3s'), ('request_timeout', '3000'),
             ('request_timeout', '2h'), ('request_timeout', 'never')) t (o, v);

-- files and proxy
SELECT server_with($$sdkappid '1', region 'china', ca_file '/etc/ssl/ca.pem', proxy 'http://proxy.example.com:3128'$$);
SELECT server_with($$sdkappid '1', region 'china', ca_file 'ca.pem'$$);
SELECT server_with($$sdkappid '1', region 'china', ca_file ''$$);
SELECT server_with($$sdkappid '1', region 'china', proxy ''$$);

-- user mapping
CREATE SERVER chat FOREIGN DATA WRAPPER timpush
  OPTIONS (sdkappid '88888888', host '127.0.0.1:1', requests_per_second '30');
SELECT refused('CREATE USER MAPPING FOR PUBLIC SERVER chat');
SELECT mapping_with($$secret_key 'hidden'$$);
SELECT mapping_with($$identifier 'administrator'$$);
SELECT mapping_with($$identifier 'administrator', secret_key 'hidden'$$);
SELECT mapping_with($$identifier 'administrator', secret_key_file '/etc/timpush/chat.key'$$);
SELECT mapping_with($$identifier 'administrator', usersig 'eJw-'$$);
SELECT mapping_with($$identifier 'administrator', secret_key 'hidden', secret_key_file '/etc/timpush/chat.key'$$);
SELECT mapping_with($$identifier 'administrator', secret_key 'hidden', usersig 'hidden'$$);
SELECT mapping_with($$identifier 'administrator', secret_key_file '/f', usersig 'hidden'$$);
SELECT mapping_with($$identifier 'administrator', secret_key 'hidden', secret_key_file '/f', usersig 'hidden'$$);
SELECT mapping_with($$identifier 'administrator', password 'hidden'$$);
SELECT mapping_with($$identifier 'administrator', secret_key 'hidden', sdkappid '1'$$);
SELECT mapping_with($$identifier '', secret_key 'hidden'$$);
SELECT left(mapping_with(format('identifier %L, secret_key %L', repeat('i', n), 'hidden')), 40)
FROM unnest('{256, 257}'::int[]) n;
SELECT mapping_with($$identifier 'administrator', secret_key ''$$);
SELECT mapping_with($$identifier 'administrator', usersig ''$$);
SELECT mapping_with($$identifier 'administrator', secret_key_file 'chat.key'$$);
SELECT mapping_with(format($$identifier 'administrator', secret_key 'hidden', usersig_lifetime %L$$, v)) || ' <' || v || '>'
FROM unnest(ARRAY['60', '1min', '24h', '180d', '3650d']) v;
SELECT mapping_with(format($$identifier 'administrator', secret_key 'hidden', usersig_lifetime %L$$, v))
FROM unnest(ARRAY['', '0', '59s', '3651d', '-1d', 'forever']) v;

-- a signature cannot be made for, or from, such text
SELECT left(mapping_with(format('identifier %L, secret_key %L', i, 'hidden')), 5)
FROM unnest(ARRAY[E'admin\nistrator', E'admin\tistrator', E'\x01', '  ']) i;

-- no secret in a message, whatever the mistake
SELECT count(*) FROM (VALUES
  ($$secret_key 'hidden'$$), ($$identifier '', secret_key 'hidden'$$), ($$identifier 'a', secret_key 'hidden', usersig 'hidden'$$),
  ($$identifier 'a', secret_key 'hidden', usersig_lifetime '0'$$), ($$identifier 'a', usersig 'hidden', nonsense '1'$$),
  ($$identifier 'a', usersig '', secret_key 'hidden'$$), ($$identifier 'a', secret_key '', usersig 'hidden'$$)) t (o)
WHERE mapping_with(o) LIKE '%hidden%' OR mapping_with(o) = 'accepted';

-- ALTER checks the options as they will be
SELECT refused($$ALTER SERVER chat OPTIONS (DROP sdkappid)$$);
SELECT refused($$ALTER SERVER chat OPTIONS (DROP host)$$);
SELECT refused($$ALTER SERVER chat OPTIONS (ADD region 'china')$$);
SELECT refused($$ALTER SERVER chat OPTIONS (DROP host, ADD region 'china')$$);
SELECT refused($$ALTER SERVER chat OPTIONS (SET requests_per_second '-5')$$);
SELECT refused($$ALTER SERVER chat OPTIONS (ADD accounts_per_request '501')$$);
ALTER SERVER chat OPTIONS (SET requests_per_second '40', ADD max_in_flight '8');
CREATE USER MAPPING FOR PUBLIC SERVER chat OPTIONS (identifier 'administrator', secret_key 'hidden');
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (DROP identifier)$$);
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (DROP secret_key)$$);
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (ADD usersig 'hidden')$$);
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (DROP secret_key, ADD usersig 'eJw-')$$);
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (ADD usersig_lifetime '1s')$$);
ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (SET secret_key 'hidden2', ADD usersig_lifetime '12h');

-- files need pg_read_server_files, as the server would read them
DROP ROLE IF EXISTS regress_timpush_owner;
CREATE ROLE regress_timpush_owner;
GRANT USAGE ON FOREIGN DATA WRAPPER timpush TO regress_timpush_owner;
ALTER SERVER chat OWNER TO regress_timpush_owner;
SET ROLE regress_timpush_owner;
SELECT server_with($$sdkappid '1', region 'china', ca_file '/etc/ssl/ca.pem'$$);
SELECT refused($$ALTER SERVER chat OPTIONS (ADD ca_file '/etc/ssl/ca.pem')$$);
SELECT refused($$ALTER SERVER chat OPTIONS (SET requests_per_second '20')$$);
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (DROP secret_key, ADD secret_key_file '/etc/timpush/chat.key')$$);
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (SET secret_key 'hidden3')$$);
RESET ROLE;
GRANT pg_read_server_files TO regress_timpush_owner;
SET ROLE regress_timpush_owner;
SELECT refused($$ALTER SERVER chat OPTIONS (ADD ca_file '/etc/ssl/ca.pem')$$);
SELECT refused($$ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (DROP secret_key, ADD secret_key_file '/etc/timpush/chat.key')$$);
RESET ROLE;

-- what psql shows
COMMENT ON SERVER chat IS 'our app';
\pset format aligned
\pset tuples_only off
\des+ chat
\pset format unaligned
\pset tuples_only on

-- a foreign table can be made but not read, and has no options
SELECT refused($$CREATE FOREIGN TABLE pushes (id bigint) SERVER chat OPTIONS (a 'b')$$);
CREATE FOREIGN TABLE pushes (id bigint) SERVER chat;
SELECT refused('SELECT * FROM pushes');
DROP FOREIGN TABLE pushes;

DROP SERVER chat CASCADE;
DROP OWNED BY regress_timpush_owner;
DROP ROLE regress_timpush_owner;
DROP FUNCTION server_with, mapping_with;
