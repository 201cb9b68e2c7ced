
# Library and extension of different versions: a clear message and no crash,
# and ALTER EXTENSION timpush UPDATE from every version that there is.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(basename dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main', 'timpush.idle_exit' => '60s');
my $dir = $node->config_data('--sharedir') . '/extension';
my $current = $node->safe_psql('postgres',
	q(SELECT default_version FROM pg_available_extensions WHERE name = 'timpush')
);
my @made;

END { unlink @made; }

sub script
{
	my ($version) = @_;
	return "$dir/timpush--$version.sql";
}

sub make_script
{
	my ($version, $text) = @_;

	die "there is a version $version\n" if -e script($version);
	push @made, script($version);
	append_to_file(script($version), $text);
	return;
}

# Changes a text where it must match.
sub replaced
{
	my ($text, $what, $by) = @_;

	$text =~ s/$what/$by/ or die "the script does not match $what\n";
	return $text;
}

sub versions
{
	return
	  sort map { basename($_) =~ /^timpush--([^-]+)\.sql$/ ? $1 : () }
	  glob("$_[0]/timpush--*.sql");
}

# Versions that cannot be updated to the current one
sub without_path
{
	return $node->safe_psql('postgres',
		"SELECT source FROM pg_extension_update_paths('timpush') WHERE target = '$current' AND path IS NULL ORDER BY 1"
	);
}

# All that an extension consists of, as text
sub catalog
{
	my ($dbname) = @_;

	return $node->safe_psql($dbname, <<'SQL');
WITH member AS (
  SELECT d.classid, d.objid
  FROM pg_depend d
  WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
    AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'timpush')),
tables AS (SELECT c.* FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid)
SELECT 'object ' || pg_describe_object(classid, objid, 0) || ': ' || coalesce(obj_description(objid, classid::regclass::name), '') FROM member
UNION ALL
SELECT 'table ' || relname || ' ' || concat_ws(' ', relkind, relacl, reloptions, relrowsecurity) FROM tables
UNION ALL
SELECT 'column ' || concat_ws(' ', relname, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attstorage,
  pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
UNION ALL
SELECT 'constraint ' || conname || ' ' || pg_get_constraintdef(c.oid) FROM pg_constraint c JOIN tables t ON t.oid = conrelid
UNION ALL
SELECT 'index ' || pg_get_indexdef(indexrelid) || ': ' || coalesce(obj_description(indexrelid, 'pg_class'), '') FROM pg_index i JOIN tables t ON t.oid = indrelid
UNION ALL
SELECT 'trigger ' || pg_get_triggerdef(g.oid) || ' ' || tgenabled::text FROM pg_trigger g JOIN tables t ON t.oid = tgrelid WHERE NOT tgisinternal
UNION ALL
SELECT 'policy ' || concat_ws(' ', polname, polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) FROM pg_policy p JOIN tables t ON t.oid = polrelid
UNION ALL
SELECT 'view ' || relname || ' ' || pg_get_viewdef(oid) FROM tables WHERE relkind = 'v'
UNION ALL
SELECT 'function ' || pg_get_functiondef(p.oid) || ' ' || coalesce(proacl::text, '') FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
UNION ALL
SELECT 'dumped ' || c.relname || ' ' || k.condition
FROM pg_extension e, unnest(extconfig, extcondition) k(rel, condition) JOIN pg_class c ON c.oid = k.rel WHERE extname = 'timpush'
ORDER BY 1
SQL
}

#
# The scripts that there are
#
is_deeply(
	[ versions($dir) ],
	[ versions(abs_path(dirname(__FILE__) . '/../../sql')) ],
	'all scripts are installed');
is(without_path(), '', 'every version can be updated to the current one');
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh', 'CREATE EXTENSION timpush');
foreach my $version (grep { $_ ne $current } versions($dir))
{
	$node->safe_psql('postgres', 'CREATE DATABASE upgraded');
	$node->safe_psql('upgraded',
		"CREATE EXTENSION timpush VERSION '$version'; ALTER EXTENSION timpush UPDATE"
	);
	is(catalog('upgraded'), catalog('fresh'),
		"version $version becomes the same as a fresh one");
	$node->safe_psql('postgres', 'DROP DATABASE upgraded');
}

#
# An old extension: a column of push_outbox and a function are not there yet
#
my $text = slurp_file(script($current));
my $old = replaced(
	replaced(
		replaced($text, qr/,\s+handed_bytes integer NOT NULL DEFAULT 0/, ''),
		qr/COMMENT ON COLUMN push_outbox\.handed_bytes[^;]*;/,
		''),
	qr/CREATE FUNCTION timpush_retry\(.*?COMMENT[^']*'[^']*';/s,
	'');
make_script('0.9', $old);
is(without_path(), '0.9', 'a version without an update script is noticed');
$text =~ /(COMMENT ON COLUMN push_outbox\.handed_bytes[^;]*;)/;
my $comment = $1;
$text =~ /(CREATE FUNCTION timpush_retry\(.*?COMMENT[^']*'[^']*';)/s;
make_script("0.9--$current",
	"ALTER TABLE push_outbox ADD COLUMN handed_bytes integer NOT NULL DEFAULT 0;\n$comment\n$1\n"
);
is(without_path(), '', 'one with a script is not');

my $other = "extension in database \"old\" is version 0.9";
my $library = "library of timpush is version $current, but the $other";
my $hint =
  'Run ALTER EXTENSION timpush UPDATE. If another version has just been installed, restart the server before.';
$node->safe_psql('postgres', 'CREATE DATABASE old');
$node->safe_psql('old', "CREATE EXTENSION timpush VERSION '0.9'");
$node->safe_psql('old', $tim->create_server_sql('chat'));
wait_until(
	sub {
		log_lines($node,
			qr/WARNING:  timpush: library is version \Q$current, but the $other\E/
		);
	},
	'the warning');
my ($ret, $out, $err);
$node->restart;
wait_until(
	sub {
		log_lines($node,
			qr/WARNING:  timpush: library is version \Q$current, but the $other\E/
		) > 1;
	},
	'the warning after a restart');

# All that can be called, with and without rows that an old library left
my @calls = (
	q(SELECT timpush_batch('administrator', '{u1}', 'title', 'text')),
	q(SELECT timpush_cancel(1)),
	q(SELECT * FROM timpush_wait(1, '0')),
	q(SELECT timpush_preview(1)),
	q(SELECT timpush_pause('chat')),
	q(SELECT timpush_resume('chat')),
	q(INSERT INTO push_outbox (from_account, to_accounts, title) VALUES ('administrator', '{u1}', 'title')),
	q(CREATE TEMP TABLE o (id int); CREATE TRIGGER t AFTER INSERT ON o FOR EACH ROW EXECUTE FUNCTION timpush_enqueue('from=#a', 'to=id', 'title=#t'); INSERT INTO o VALUES (1))
);
foreach my $sql (@calls)
{
	$node->psql(
		'old', $sql,
		stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like(
		$err,
		$sql =~ /INSERT INTO push_outbox/
		? qr/ERROR:  42804: relation "push_outbox" does not have the columns|ERROR:  55000: \Q$library\E/
		: qr/ERROR:  55000: \Q$library\E\nHINT:  \Q$hint\E/,
		"refused: $sql");
}
is($node->psql('old', $_), 0, "works: $_")
  foreach (
	map { "SELECT * FROM $_" }
	qw(push_outbox push_request push_result push_error push_server push_status
	push_progress push_dead_account)),
  q(SELECT timpush_usersig('u1')),
  q(ALTER SERVER chat OPTIONS (SET requests_per_second '20')),
  q(ALTER SERVER chat RENAME TO talk; ALTER SERVER talk RENAME TO chat),
  q(CREATE SERVER other FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1', host 'localhost')),
  q(DROP SERVER other);
is(worker_pid($node, 'old'), '', 'no worker is there');
$node->safe_psql('fresh', $tim->create_server_sql('chat'));
push_id($node, 'other', dbname => 'fresh');
settle($node, dbname => 'fresh');
pass('another database sends');

$node->safe_psql('old', 'ALTER EXTENSION timpush UPDATE');
is(catalog('old'), catalog('fresh'), 'the update makes it what it should be');
push_id($node, 'updated', dbname => 'old');
settle($node, dbname => 'old');
pass('after ALTER EXTENSION UPDATE it sends');

# What was enqueued before another version was installed
make_script("0.95--$current", "SELECT 1;\n");
my $before = $node->safe_psql(
	'fresh', q(
	SELECT timpush_batch('administrator', '{before}', 'title', 'text', send_at => now() + '1 s');
	UPDATE pg_extension SET extversion = '0.95' WHERE extname = 'timpush'));
$node->restart;
wait_until(sub { log_lines($node, qr/"fresh" is version 0.95/) },
	'the warning');
$node->safe_psql('fresh', 'ALTER EXTENSION timpush UPDATE');
settle($node, dbname => 'fresh');
is(status($node, $before, dbname => 'fresh')->{state},
	'sent', 'what waited is sent after ALTER EXTENSION UPDATE');

#
# A new extension with an old library, as after an update without a restart,
# while the worker works
#
make_script("$current--99.0",
	"ALTER TABLE push_outbox ADD COLUMN colour integer DEFAULT 7;\nALTER TABLE push_result ADD COLUMN colour integer;\n"
	  . "CREATE FUNCTION timpush_new() RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C;\n"
);
make_script('99.0', 'SELECT 1;');
$node->safe_psql('old',
	q(SELECT timpush_batch('administrator', '{later}', 'title', 'text', send_at => now() + '3 s'))
);
like(worker_pid($node, 'old'), qr/^\d+$/, 'a worker waits for a push');
my $session = $node->background_psql('old', on_error_stop => 0);
$session->query(
	q(SELECT timpush_batch('administrator', '{u1}', 'title', 'text', send_at => '2100-01-01'))
);
($ret, $out, $err) =
  $node->psql('old', "ALTER EXTENSION timpush UPDATE TO '99.0'");
like(
	$err,
	qr/could not find function "timpush_new" in file/,
	'a script with functions that the loaded library does not have fails');
unlink script("$current--99.0");
append_to_file(script("$current--99.0"),
	"ALTER TABLE push_outbox ADD COLUMN colour integer DEFAULT 7;\nALTER TABLE push_result ADD COLUMN colour integer;\n"
);
$node->safe_psql('old', "ALTER EXTENSION timpush UPDATE TO '99.0'");
$other = "extension in database \"old\" is version 99.0";
$library = "library of timpush is version $current, but the $other";
wait_until(
	sub {
		log_lines($node,
			qr/WARNING:  timpush: library is version \Q$current, but the $other\E/
		);
	},
	'the warning');
pass('the worker that was there says so');
$session->query(
	q(SELECT timpush_batch('administrator', '{u1}', 'title', 'text')));
like(
	$session->{stderr},
	qr/ERROR:  \Q$library\E/,
	'a session that has enqueued before does too');
foreach my $sql (@calls)
{
	$node->psql('old', $sql, stderr => \$err);
	like(
		$err,
		qr/ERROR:  (?:\Q$library\E|relation "push_outbox" does not)/,
		"refused: $sql");
}
$session->quit;

#
# The tables altered by hand, while the worker works
#
push_id($node, 'first', dbname => 'fresh');
settle($node, dbname => 'fresh');
my $altered = $node->safe_psql('fresh',
	q(SELECT timpush_batch('administrator', '{altered}', 'title', 'text', send_at => now() + '2 s'))
);
$node->safe_psql('fresh',
	'ALTER TABLE push_outbox ADD COLUMN mine integer DEFAULT 5');
wait_until(
	sub {
		log_lines($node,
			qr/WARNING:  timpush: tables of the extension in database "fresh" have been altered/
		);
	},
	'the warning');
($ret, $out, $err) = $node->psql('fresh', "SELECT timpush_cancel($altered)");
like(
	$err,
	qr/ERROR:  relation "push_outbox" does not have the columns that it was made with/,
	'timpush_cancel() does not take one column for another');
$node->safe_psql('fresh',
	"ALTER TABLE push_outbox DROP COLUMN mine; SELECT timpush_resume('chat')"
);
settle($node, dbname => 'fresh');
is(status($node, $altered, dbname => 'fresh')->{state},
	'sent', 'what waited is sent when the column is gone');
$node->safe_psql('fresh',
	'ALTER TABLE push_result ADD COLUMN mine integer DEFAULT 5');
my $held = $node->safe_psql('fresh',
	q(SELECT timpush_batch('administrator', '{held}', 'title', 'text', send_at => '2100-01-01'))
);
($ret, $out, $err) = $node->psql('fresh', "SELECT timpush_cancel($held)");
like(
	$err,
	qr/ERROR:  tables of the extension do not have the columns/,
	'nor fills what it does not know');

is(scalar log_lines($node, qr/terminated by signal/), 0, 'nothing crashed');
$tim->ok_ledger($node, 'tables and ledger agree', dbname => [qw(old fresh)]);
$node->stop;
done_testing();
