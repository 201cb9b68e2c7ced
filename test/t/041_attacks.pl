
# What roles without rights try in order to run code as somebody else, to see
# what others push, or to be shown another's UserSig.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main');

# Runs SQL in a session of the role's own; yields what it prints and what it
# complains about.
sub as
{
	my ($role, $sql, $dbname) = @_;
	my ($out, $err) = ('', '');

	$node->psql(
		$dbname // 'postgres', $sql,
		stdout => \$out,
		stderr => \$err,
		on_error_stop => 0,
		extra_params => [ '-U', $role ]);
	return wantarray ? ($out, $err) : $out;
}

# The role is refused each of the statements.
sub refused
{
	my ($role, $pattern, @statements) = @_;

	foreach my $sql (@statements)
	{
		my ($out, $err) = as($role, $sql);

		like($err, $pattern, "refused to $role: $sql");
	}
	return;
}

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE mallory LOGIN;
CREATE ROLE alice LOGIN;
CREATE ROLE boss LOGIN NOINHERIT;
CREATE ROLE carol LOGIN;
GRANT CREATE ON DATABASE postgres TO mallory, boss;
SQL
$node->safe_psql('postgres', $tim->create_server_sql('chat'));
$node->safe_psql('postgres', <<'SQL');
GRANT USAGE ON FOREIGN SERVER chat TO mallory, alice;
GRANT EXECUTE ON FUNCTION timpush_batch, timpush_enqueue, timpush_cancel, timpush_retry,
  timpush_wait, timpush_preview, timpush_usersig TO mallory, alice;
SQL

# Operators for all pairs of types that pg_catalog has none for, and functions
# with names that we use, in a schema of mallory's.  Each says so when it runs.
my $traps = <<'SQL';
CREATE SCHEMA trap;
DO $$
DECLARE
  l text;
  r text;
  o text;
  types text[] := '{smallint,integer,bigint,numeric,real,double precision,text,varchar,bpchar,name,boolean,oid,regclass,timestamptz,timestamp,interval,jsonb,text[],bigint[],integer[],name[],xid}';
BEGIN
  FOREACH l IN ARRAY types LOOP
    FOREACH r IN ARRAY types LOOP
      EXECUTE format('CREATE FUNCTION trap.said(%s, %s) RETURNS boolean LANGUAGE plpgsql'
        ' AS $f$ BEGIN RAISE ''sprung by %%'', current_user; END $f$', l, r);
      EXECUTE format('CREATE FUNCTION trap.made(%s, %s) RETURNS %s LANGUAGE plpgsql'
        ' AS $f$ BEGIN RAISE ''sprung by %%'', current_user; END $f$', l, r, l);
      FOREACH o IN ARRAY '{=,<>,<,<=,>,>=,~}'::text[] LOOP
        EXECUTE format('CREATE OPERATOR trap.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = trap.said)', o, l, r);
      END LOOP;
      FOREACH o IN ARRAY '{+,-,*,/,||,->,->>,#>,#>>,#-}'::text[] LOOP
        EXECUTE format('CREATE OPERATOR trap.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = trap.made)', o, l, r);
      END LOOP;
    END LOOP;
  END LOOP;
END $$;
CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung by %', current_user; END $$;
CREATE FUNCTION trap.count() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung by %', current_user; END $$;
CREATE FUNCTION trap.unnest(text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung by %', current_user; END $$;
CREATE FUNCTION trap.nextval(regclass) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung by %', current_user; END $$;
CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung by %', current_user; END $$;
SQL

#
# The schema of the extension: others may create in it, before it is there
#
$node->safe_psql('postgres', 'CREATE DATABASE shared');
$node->safe_psql('shared',
	'GRANT CREATE ON DATABASE shared TO mallory; GRANT CREATE ON SCHEMA public TO mallory'
);
is((as('mallory', $traps, 'shared'))[1], '', 'the traps are laid');
$node->safe_psql('shared', 'CREATE EXTENSION timpush SCHEMA trap');
is( $node->safe_psql('shared', <<'SQL'),
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' calls ' || pg_describe_object(d.refclassid, d.refobjid, 0)
FROM pg_depend d
WHERE (d.refclassid = 'pg_operator'::regclass AND d.refobjid IN (SELECT oid FROM pg_operator WHERE oprowner = 'mallory'::regrole)
    OR d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM pg_proc WHERE proowner = 'mallory'::regrole))
  AND d.classid NOT IN ('pg_operator'::regclass, 'pg_proc'::regclass)
SQL
	'',
	'nothing of the extension calls what lay in its schema before');
$node->safe_psql('shared', $tim->create_server_sql('chat', sdkappid => 4711));
my ($out, $err) =
  as($node->safe_psql('postgres', 'SELECT current_user'), <<'SQL', 'shared');
SET search_path = trap, pg_catalog;
SELECT trap.timpush_batch('administrator', '{u1}', 'title', 'text', send_at => '2100-01-01', dedup_key => 'k');
SELECT trap.timpush_preview(1);
SELECT state FROM trap.timpush_wait(1, '0');
SELECT state FROM trap.push_status;
SELECT percent FROM trap.push_progress;
SELECT account FROM trap.push_dead_account;
SELECT server FROM trap.push_server;
SELECT trap.timpush_cancel(1);
SELECT trap.timpush_retry(1);
SELECT trap.timpush_pause('chat'), trap.timpush_resume('chat');
INSERT INTO trap.push_outbox (from_account, to_accounts, title, send_at) VALUES ('a', '{b}', 'c', '2100-01-01');
SQL
is($err, '', 'and a superuser can use it all, with the traps in his way');
$node->safe_psql('shared', 'DROP EXTENSION timpush CASCADE');

#
# The search path and temporary objects of who calls us
#
as('mallory', $traps);
($out, $err) = as('mallory', <<'SQL');
CREATE TEMP TABLE push_outbox (id bigint);
CREATE TEMP TABLE push_result (id bigint);
CREATE TEMP TABLE push_activation (id bigint);
CREATE TEMP VIEW push_status AS SELECT 1::bigint AS push_id;
CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'sprung by %', current_user; END $$;
CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (false);
SET search_path = pg_temp, trap, pg_catalog;
SELECT public.timpush_batch('administrator', '{u1}', 'title', 'text', send_at => '2100-01-01', dedup_key => 'mine') AS id \gset
SELECT public.timpush_batch('administrator', '{u1}', 'title', 'text', send_at => '2100-01-01', dedup_key => 'mine') OPERATOR(pg_catalog.=) :id;
SELECT public.timpush_preview(:id) IS NOT NULL;
SELECT state FROM public.timpush_wait(:id, '0');
SELECT public.timpush_cancel(:id);
SELECT public.timpush_cancel(public.timpush_retry(:id));
SELECT pg_catalog.length(public.timpush_usersig('u1')) OPERATOR(pg_catalog.>) 100;
CREATE TEMP TABLE orders (id integer, readers pg_catalog.text[]);
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW
  EXECUTE FUNCTION public.timpush_enqueue('from=#administrator', 'to=readers', 'title=id', 'send_at=#2100-01-01', 'dedup_key=id');
INSERT INTO orders VALUES (1, '{u1,u2}');
SELECT pg_catalog.count(*) FROM public.push_status WHERE accounts OPERATOR(pg_catalog.=) 2;
SQL
is($err, '', 'no operator, function, table or type in front is used');
is($out, "t\nt\nscheduled\nt\nt\nt\n1", 'but what is meant is');

#
# Code of the owner's runs with his rights, so not by the caller's search path
#
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE audit (who name, what text);
CREATE FUNCTION note_push() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.audit VALUES (current_user, lower(NEW.title));
  RETURN NEW;
END $$;
CREATE TRIGGER note AFTER INSERT ON push_outbox FOR EACH ROW EXECUTE FUNCTION note_push();
CREATE FUNCTION note_activation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM lower('a');
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT ON push_activation FOR EACH STATEMENT EXECUTE FUNCTION note_activation();
DELETE FROM push_activation;
SQL
as('mallory', <<'SQL');
CREATE FUNCTION trap.lower(text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('ALTER ROLE mallory %s', 'SUPERUSER');
  RETURN 'owned';
END $$;
SQL
($out, $err) = as('mallory', <<'SQL');
SET search_path = trap, pg_catalog, public;
SELECT timpush_batch('administrator', '{u1}', 'LOUD', 'text', send_at => '2100-01-01') IS NOT NULL;
SHOW search_path;
SQL
is( $out,
	"t\ntrap, pg_catalog, public",
	'a push with a trigger of the owner\'s, by a path of the caller\'s');
is($err, '', 'without an error');
is( $node->safe_psql(
		'postgres',
		q(SELECT a.what, r.rolsuper FROM audit a, pg_roles r WHERE r.rolname = 'mallory')
	),
	'loud|f',
	'runs what the owner meant');
$node->safe_psql('postgres', <<'SQL');
DROP TRIGGER note ON push_outbox;
DROP TRIGGER note ON push_activation;
DELETE FROM push_outbox;
SQL

#
# Code of who enqueues runs with no rights but his
#
$node->safe_psql('postgres',
	'GRANT CREATE ON SCHEMA public TO mallory; GRANT SELECT ON push_outbox TO mallory'
);
($out, $err) = as('mallory', <<'SQL');
CREATE TABLE ran (place text, role name);
GRANT ALL ON ran TO PUBLIC;
CREATE FUNCTION note(place text) RETURNS void LANGUAGE plpgsql
  AS $$ BEGIN INSERT INTO public.ran VALUES (place, current_user); END $$;
CREATE FUNCTION ran(place text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE
  AS $$ BEGIN PERFORM public.note(place); RETURN true; END $$;
CREATE FUNCTION ran_text(place text) RETURNS text LANGUAGE plpgsql IMMUTABLE
  AS $$ BEGIN PERFORM public.note(place); RETURN place; END $$;
CREATE DOMAIN account AS text CHECK (ran('domain over text'));
CREATE DOMAIN fields AS jsonb CHECK (ran('domain over jsonb'));
CREATE TYPE pair AS (a account, b fields);
CREATE FUNCTION pair_to_text(pair) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM ran('cast'); RETURN 'cast'; END $$;
CREATE CAST (pair AS text) WITH FUNCTION pair_to_text(pair) AS IMPLICIT;
CREATE TABLE orders (
  id integer,
  reader account,
  extra fields,
  both_of pair,
  made text DEFAULT ran_text('default'),
  derived text GENERATED ALWAYS AS (ran_text('generated')) STORED,
  CHECK (ran('check')));
CREATE INDEX ON orders (ran_text('index')) WHERE ran('predicate');
CREATE FUNCTION before_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM ran('trigger'); RETURN NEW; END $$;
CREATE TRIGGER before_order BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION before_order();
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW WHEN (ran('when'))
  EXECUTE FUNCTION timpush_enqueue('from=#administrator', 'to=reader', 'title=both_of', 'descr=made', 'extra=extra', 'send_at=#2100-01-01');
GRANT INSERT ON orders TO alice;
INSERT INTO orders VALUES (1, 'u1', '{"Classification": 1}', ROW('u2', '{}'));
SELECT public.timpush_batch('administrator', ARRAY['u1'::account], ROW('u2', '{}')::pair, 'text', extra => '{}'::fields, send_at => '2100-01-01') > 0;
SQL
is($err, '',
	'types, casts, defaults, checks, indexes and triggers of a role');
is( $node->safe_psql(
		'postgres',
		q(SELECT string_agg(DISTINCT place, ', ' ORDER BY place), string_agg(DISTINCT role, ' ') FROM ran)
	),
	'cast, check, default, domain over jsonb, domain over text, generated, index, predicate, trigger, when|mallory',
	'run as that role');
is( $node->safe_psql(
		'postgres',
		'SELECT string_agg(DISTINCT enqueued_by, \' \') FROM push_outbox'),
	'mallory',
	'which has enqueued');

#
# Which role it is that enqueues
#
$node->safe_psql('postgres', 'DELETE FROM push_outbox; GRANT alice TO boss');
my $enqueue =
  "SELECT timpush_batch('administrator', '{u1}', '%s', 'text', send_at => '2100-01-01') > 0;";
as('boss', 'SET ROLE alice;' . sprintf $enqueue, 'set role');
$node->safe_psql(
	'postgres',
	'SET SESSION AUTHORIZATION alice;' . sprintf $enqueue,
	'set session authorization');
as('mallory', <<'SQL' . sprintf $enqueue, 'a trigger\'\'s');
CREATE FUNCTION inner_definer() RETURNS boolean LANGUAGE sql SECURITY DEFINER
  AS $$ SELECT timpush_batch('administrator', '{u1}', 'definer''s', 'text', send_at => '2100-01-01') > 0 $$;
SQL
as('alice', <<'SQL');
SELECT inner_definer();
INSERT INTO orders VALUES (2, 'u1', '{}', ROW('u2', '{}'));
SQL
as('boss', sprintf $enqueue, 'without the right');
is( $node->safe_psql(
		'postgres',
		q(SELECT string_agg(enqueued_by || ' ' || coalesce(title, ''), ', ' ORDER BY id) FROM push_outbox)
	),
	'alice set role, alice set session authorization, mallory a trigger\'s, mallory definer\'s, alice (u2,{})',
	'is the current one: not the session\'s, nor the owner of a trigger');

#
# Pushes of others
#
$node->safe_psql('postgres', <<'SQL');
DELETE FROM push_outbox;
DELETE FROM push_result;
SET ROLE alice;
SELECT timpush_batch('administrator', '{secret-reader,other}', 'secret title', 'text', send_at => '2100-01-01');
RESET ROLE;
INSERT INTO push_request (id, server, msg_random, content, accounts, push_ids, state, on_unknown, created_at)
  VALUES (-1, 'chat', 1, '{"From_Account": "secret sender"}', '{secret-reader}', '{-1}', 'done', 'retry', now());
INSERT INTO push_result (push_id, request_id, first, accounts, state, failed, server, enqueued_by, data_id, push_accounts, priority, enqueued_at)
  VALUES (-1, -1, 1, 1, 'failed', 1, 'chat', 'alice', 'secret id', 1, 4, now()),
         ((SELECT max(id) FROM push_outbox), -1, 1, 1, 'sent', 0, 'chat', 'alice', 'secret id', 2, 4, now());
UPDATE push_outbox SET handed_out = 1;
INSERT INTO push_error VALUES (-1, -1, 'secret-reader', 70107, 'secret text', 'bad-request', 'alice');
SQL
my $id = $node->safe_psql('postgres', 'SELECT max(id) FROM push_outbox');
($out, $err) = as('mallory', <<'SQL');
CREATE FUNCTION leak(anyelement) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0000001
  AS $$ BEGIN RAISE NOTICE 'leaked %', $1; RETURN true; END $$;
SELECT * FROM push_outbox o WHERE leak(o);
SELECT * FROM push_result r WHERE leak(r);
SELECT * FROM push_error e WHERE leak(e);
SELECT * FROM push_status s WHERE leak(s);
SELECT * FROM push_status s WHERE leak(data_id) AND leak(error_info);
SELECT * FROM push_status WHERE leak(push_id);
SELECT * FROM push_progress p WHERE leak(p);
SELECT * FROM push_progress WHERE leak(total);
SELECT * FROM push_dead_account d WHERE leak(d);
SELECT * FROM push_dead_account WHERE leak(account);
SELECT * FROM push_status WHERE push_id < 0 AND 1 / (accounts - 1) > 0;
SELECT most_common_vals FROM pg_stats WHERE tablename LIKE 'push%';
SQL
unlike(
	"$out$err",
	qr/leaked|secret|division/,
	'functions that tell are shown no row of others');
refused(
	'mallory',
	qr/push -?\d+ does not exist/,
	map {
		(   "SELECT timpush_preview($_)",
			"SELECT timpush_wait($_)",
			"SELECT timpush_retry($_)")
	} $id,
	-1);
is(as('mallory', "SELECT timpush_cancel($id), timpush_cancel(-1)"),
	'f|f', 'nor is a push of others cancelled');
is(as('alice', "SELECT timpush_preview($id)") =~ /secret title/,
	1, 'its own role sees it');

is( as( 'alice',
		'SELECT total FROM push_progress; SELECT account FROM push_dead_account'
	),
	"2\nsecret-reader",
	'and its progress');

#
# Nothing of ours can be made to carry code of others
#
refused(
	'mallory',
	qr/permission denied|must be owner/,
	'CREATE TRIGGER t AFTER INSERT ON push_outbox FOR EACH ROW EXECUTE FUNCTION before_order()',
	'CREATE TRIGGER t AFTER INSERT ON push_activation EXECUTE FUNCTION before_order()',
	'CREATE RULE r AS ON INSERT TO push_outbox DO ALSO SELECT ran(\'rule\')',
	'CREATE POLICY p ON push_outbox USING (ran(\'policy\'))',
	'CREATE INDEX ON push_outbox (ran_text(title))',
	'CREATE STATISTICS s ON (ran_text(title)), title FROM push_outbox',
	'ALTER TABLE push_outbox ADD CHECK (ran(\'check\'))',
	'ALTER TABLE push_outbox ALTER title SET DEFAULT ran_text(\'default\')',
	'CREATE TABLE child () INHERITS (push_outbox)',
	'CREATE TABLE refers (id bigint REFERENCES push_outbox)',
	'ALTER VIEW push_status SET (security_barrier = off)',
	'CREATE OR REPLACE VIEW push_dead_account AS SELECT 1',
	'ALTER FUNCTION timpush_wait(bigint, interval) SET search_path = trap',
	'CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION timpush_outbox_check()',
	'CREATE FUNCTION mine() RETURNS trigger LANGUAGE c AS \'timpush\', \'timpush_outbox_check\'',
	'ALTER EXTENSION timpush ADD TABLE orders',
	'ALTER EXTENSION timpush UPDATE',
	'ALTER EXTENSION timpush SET SCHEMA trap',
	'DROP EXTENSION timpush CASCADE');
($out, $err) = as('mallory', "LOAD 'timpush'");
like(
	$err,
	qr/access to library "timpush" is not allowed/,
	'the library is not for everybody to load');

#
# Who may make servers, and where their signatures go
#
my $stranger = FakeTIM->new->start;
refused(
	'mallory',
	qr/permission denied|must be owner/,
	'CREATE SERVER mine FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid \'1\', host \'localhost\')',
	'ALTER SERVER chat OPTIONS (SET host \'localhost:'
	  . $stranger->port . '\')',
	'ALTER SERVER chat OPTIONS (ADD proxy \'http://localhost:1\')',
	'ALTER SERVER chat OWNER TO mallory',
	'ALTER SERVER chat RENAME TO other',
	'DROP SERVER chat CASCADE',
	'ALTER USER MAPPING FOR PUBLIC SERVER chat OPTIONS (SET secret_key \'mine\')',
	'DROP USER MAPPING FOR PUBLIC SERVER chat',
	'CREATE USER MAPPING FOR alice SERVER chat OPTIONS (identifier \'a\', secret_key \'k\')',
	'CREATE USER MAPPING FOR mallory SERVER chat OPTIONS (identifier \'a\', secret_key_file \'/etc/passwd\')',
	'CREATE FOREIGN DATA WRAPPER other VALIDATOR timpush_fdw_validator',
	'SELECT timpush_pause(\'chat\')');

# Who may use the wrapper may make servers of his own, but names no files.
$node->safe_psql('postgres',
	'GRANT USAGE ON FOREIGN DATA WRAPPER timpush TO mallory');
($out, $err) = as('mallory', <<'SQL');
CREATE SERVER mine FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1', host 'localhost');
CREATE USER MAPPING FOR PUBLIC SERVER mine OPTIONS (identifier 'a', secret_key 'k');
SQL
is($err, '', 'a role that may use the wrapper makes a server');
refused(
	'mallory',
	qr/permission denied to set option|has no handler/,
	'ALTER SERVER mine OPTIONS (ADD ca_file \'/etc/passwd\')',
	'ALTER USER MAPPING FOR PUBLIC SERVER mine OPTIONS (DROP secret_key, ADD secret_key_file \'/etc/passwd\')',
	'CREATE FOREIGN TABLE t (id integer) SERVER mine; SELECT * FROM t',
	'IMPORT FOREIGN SCHEMA public FROM SERVER mine INTO trap');

# A server that is given away keeps its mapping.  Its new owner says where it
# goes, so it must not sign with what he may not read.
my $key_file = PostgreSQL::Test::Utils::tempdir . '/owned.key';
append_to_file($key_file, $tim->key);
$node->safe_psql('postgres',
	$tim->create_server_sql('owned', secret_key_file => $key_file));
push_id($node, 'before', server => 'owned');
settle($node, where => "server = 'owned'");
pass('a server with a key file sends');
$node->safe_psql('postgres', <<'SQL');
GRANT USAGE ON FOREIGN DATA WRAPPER timpush TO carol;
GRANT EXECUTE ON FUNCTION timpush_usersig TO carol;
ALTER SERVER owned OPTIONS (DROP ca_file);
ALTER SERVER owned OWNER TO carol;
SQL
($out, $err) = as('carol',
		"ALTER SERVER owned OPTIONS (SET host 'localhost:"
	  . $stranger->port
	  . "')");
is($err, '', 'its new owner lets it go elsewhere');
push_id($node, 'after', server => 'owned');
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'owned'");
is( server_state($node, 'owned')->{reason},
	'the owner of server "owned" lacks the privileges of role pg_read_server_files, which a key file takes',
	'but nothing is signed with the file then');
refused(
	'carol',
	qr/cannot make a UserSig: the owner of server "owned" lacks/,
	"SELECT timpush_usersig('u1', server => 'owned')");
is_deeply([ $stranger->ledger ], [], 'and nobody else was asked');
$node->safe_psql('postgres', 'GRANT pg_read_server_files TO carol');
$node->safe_psql('postgres',
		"ALTER SERVER owned OPTIONS (SET host 'localhost:"
	  . $tim->port
	  . "', ADD ca_file '"
	  . $tim->ca
	  . "')");
settle($node, where => "server = 'owned'");
pass('an owner who may read files has it used');

#
# The owner of the tables need not be a superuser, and gains nothing by it
#
$node->safe_psql('postgres', <<'SQL');
DELETE FROM push_outbox;
CREATE ROLE keeper LOGIN;
GRANT CREATE ON SCHEMA public TO keeper;
DO $$
DECLARE t regclass;
BEGIN
  FOR t IN SELECT oid FROM pg_class WHERE relkind IN ('r', 'v') AND relname LIKE 'push%' AND relnamespace = 'public'::regnamespace LOOP
    EXECUTE format('ALTER TABLE %s OWNER TO keeper', t);
  END LOOP;
END $$;
SQL
as('keeper', <<'SQL');
CREATE TABLE kept (what text);
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.kept SELECT TG_NAME || ': ' || current_user || ' ' || rolsuper
    FROM pg_roles WHERE rolname = current_user;
  BEGIN
    EXECUTE 'SET SESSION AUTHORIZATION DEFAULT';
    EXECUTE 'RESET ROLE';
    INSERT INTO public.kept VALUES (TG_NAME || ': became ' || current_user);
  EXCEPTION WHEN OTHERS THEN
    INSERT INTO public.kept VALUES (TG_NAME || ': ' || SQLERRM);
  END;
  RETURN NULL;
END $$;
CREATE TRIGGER a_push AFTER DELETE ON push_outbox FOR EACH ROW EXECUTE FUNCTION keep();
SQL
push_id($node, 'kept', server => 'chat');
settle($node, where => "server = 'chat'");
like(
	$node->safe_psql('postgres', 'SELECT what FROM kept'),
	qr/^a_push: keeper false\na_push: cannot set parameter "session_authorization" within security-\S+ \S+$/,
	'the worker runs a trigger as the owner of the table, who cannot get out of it'
);
as('keeper', <<'SQL');
DROP TRIGGER a_push ON push_outbox;
DELETE FROM kept;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON push_request DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION keep();
SQL
push_id($node, 'later', server => 'chat');
wait_until(
	sub {
		log_lines($node,
			qr/cannot fire deferred trigger within security-restricted operation/
		);
	},
	'the worker to refuse');
is($node->safe_psql('postgres', 'SELECT count(*) FROM kept'),
	0, 'nor is one that waits for the commit run as a superuser');
as('keeper', 'DROP TRIGGER later ON push_request');
settle($node, where => "server = 'chat'");
pass('without it the push is sent');

#
# The extension and its owner
#
$node->safe_psql('postgres', 'CREATE DATABASE hers OWNER mallory');
($out, $err) = as('mallory', 'CREATE EXTENSION timpush', 'hers');
like(
	$err,
	qr/permission denied to create extension "timpush".*superuser/s,
	'the owner of a database does not create it');

$node->safe_psql('postgres',
	'DELETE FROM push_error WHERE push_id < 0; DELETE FROM push_result WHERE request_id < 0; DELETE FROM push_request WHERE id < 0'
);
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
