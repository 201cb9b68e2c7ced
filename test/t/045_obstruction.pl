
# Nothing that an administrator does waits for the worker, though all its calls
# hang; and nothing is lost by that.

use strict;
use warnings;

use File::Copy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

# More than that no command may take on a busy machine; what it really takes
# is noted, and is to be less than a second.
use constant LIMIT => 3;

# The second one is for databases that are dropped with what they know.
my $tim = FakeTIM->new->start;
my $other_tim = FakeTIM->new->start;
my $node = start_node('main', max_worker_processes => 16);
my $serial = 0;

sub create_database
{
	my ($name) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name,
		'CREATE EXTENSION timpush; '
		  . $other_tim->create_server_sql('chat', request_timeout => '1min'));
	return;
}

# Makes a call of the database hang.
sub hang
{
	my ($name) = @_;
	my $account = 'slow-60000-' . ++$serial;

	push_id($node, $account, dbname => $name, on_unknown => 'hold');
	wait_until(
		sub {
			requests_with($name eq 'postgres' ? $tim : $other_tim, $account);
		},
		"the call of $name");
	return;
}

# Runs a statement, or a function, and says how long it took.
sub ok_quick
{
	my ($what, $dbname, $statement) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, $out, $err) = (0, '', '');
	my $begun = time;

	if (ref $statement)
	{
		$statement->();
	}
	else
	{
		($status, $out, $err) =
		  $node->psql($dbname, $statement, timeout => 60);
	}
	my $took = time - $begun;
	is($status, 0, "$what is not refused") or diag $err;
	cmp_ok($took, '<', LIMIT, "$what is not held up");
	note sprintf '%s: %.0f ms', $what, $took * 1000;
	return $err;
}

# What was on the way in a database is held, as it is in doubt, and no other
# call was made for it.
sub ok_nothing_lost
{
	my ($name, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$node->poll_query_until($name,
		"SELECT count(*) = $n FROM push_status WHERE state = 'unknown'")
	  or die "in $name is not in doubt what should be";
	is($node->safe_psql($name, 'SELECT count(*) FROM push_status'),
		$n, "$name: all is accounted for");
	return;
}

#
# VACUUM, and DDL on the tables
#

$node->safe_psql('postgres',
	$tim->create_server_sql('chat', request_timeout => '1min'));
hang('postgres') foreach 1 .. 3;
my $waits = $node->safe_psql('postgres', <<'SQL');
SELECT query || '|' || (backend_xmin IS NULL) || (backend_xid IS NULL) || (xact_start IS NULL)
FROM pg_stat_activity WHERE backend_type = 'timpush worker'
SQL
is($waits, 'sending|truetruetrue',
	'the worker has no snapshot and no transaction while calls hang');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.backend_type = 'timpush worker'"
	),
	0,
	'nor a lock');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE dead AS SELECT generate_series(1, 1000) AS n;
DELETE FROM dead;
SQL
like(
	ok_quick('VACUUM', 'postgres', 'VACUUM (VERBOSE) dead'),
	qr/tuples: 1000 removed, 0 remain, 0 are dead but not yet removable/,
	'and removes what was deleted meanwhile');
ok_quick('VACUUM of our tables',
	'postgres', 'VACUUM (FREEZE) push_outbox, push_request, push_result');
ok_quick('VACUUM FULL', 'postgres', 'VACUUM FULL push_request');
ok_quick('TRUNCATE', 'postgres', 'BEGIN; TRUNCATE push_outbox; ROLLBACK');

# An update that takes the strongest lock on the tables
my $script =
  $node->config_data('--sharedir') . '/extension/timpush--0.9--1.0.sql';
append_to_file($script, <<"SQL") foreach qw(outbox request result error);
ALTER TABLE push_$_ ADD CONSTRAINT mine CHECK (true);
ALTER TABLE push_$_ DROP CONSTRAINT mine;
SQL
$node->safe_psql('postgres',
	"UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'timpush'");
ok_quick('ALTER EXTENSION UPDATE',
	'postgres', 'ALTER EXTENSION timpush UPDATE');
unlink $script or die "could not remove $script: $!";
is( $node->safe_psql(
		'postgres',
		"SELECT extversion FROM pg_extension WHERE extname = 'timpush'"),
	'1.0',
	'which was one');
push_id($node, 'after-update');
wait_until(sub { requests_with($tim, 'after-update') },
	'the call after the update');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_status WHERE state = 'sending'"),
	3,
	'the calls still hang after all that');

#
# Databases come and go
#

create_database($_) foreach qw(app forced);
my $space = PostgreSQL::Test::Utils::tempdir;
$node->safe_psql('postgres', "CREATE TABLESPACE other LOCATION '$space'");
$node->safe_psql('postgres', "CREATE DATABASE unused");

# Files are let go of by a signal that each process must heed.
hang('app');
ok_quick('DROP DATABASE of another', 'postgres', 'DROP DATABASE unused');
ok_quick(
	'CREATE DATABASE TEMPLATE',
	'postgres',
	'CREATE DATABASE copy TEMPLATE app');
ok_nothing_lost('app', 1);
hang('app');
ok_quick(
	'CREATE DATABASE TEMPLATE by files',
	'postgres',
	'CREATE DATABASE copy_too TEMPLATE app STRATEGY file_copy');
ok_nothing_lost('app', 2);
hang('app');
ok_quick(
	'ALTER DATABASE SET TABLESPACE',
	'postgres',
	'ALTER DATABASE app SET TABLESPACE other');
ok_nothing_lost('app', 3);
hang('app');
ok_quick(
	'ALTER DATABASE RENAME',
	'postgres',
	'ALTER DATABASE app RENAME TO app_too');
ok_nothing_lost('app_too', 4);
$other_tim->ok_ledger($node, 'tables and ledger agree', dbname => 'app_too');
hang('app_too');
ok_quick('DROP DATABASE', 'postgres', 'DROP DATABASE app_too');

hang('forced');
my $forced = $node->safe_psql('postgres',
	"SELECT oid FROM pg_database WHERE datname = 'forced'");
ok_quick(
	'DROP DATABASE WITH (FORCE)',
	'postgres',
	'DROP DATABASE forced WITH (FORCE)');

# How often the launcher has gone to sleep
my ($launcher) = $node->safe_psql('postgres',
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'timpush launcher'"
);

sub launcher_sleeps
{
	my ($switches) =
	  slurp_file("/proc/$launcher/status") =~
	  /^voluntary_ctxt_switches:\s+(\d+)/m
	  or die 'no count of context switches';

	return $switches;
}
sleep 1;
my $sleeps = launcher_sleeps();
sleep 5;
cmp_ok(launcher_sleeps() - $sleeps,
	'<=', 1, 'nothing is started again and again for what is dropped');
unlike(
	slurp_file($node->logfile),
	qr/FATAL|worker.*exited with exit code [^01]/,
	'and no process has failed');

#
# The calls of the first database still hang: its end, and the cluster's
#

is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_status WHERE state = 'sending'"),
	3,
	'other databases did not notice');
ok_quick('a fast stop', 'postgres', sub { $node->stop('fast') });
$node->start;
$node->poll_query_until('postgres',
	"SELECT count(*) = 3 FROM push_status WHERE state = 'unknown'")
  or die 'what was on the way is not in doubt';
hang('postgres');
ok_quick('DROP EXTENSION',
	'postgres', 'BEGIN; DROP EXTENSION timpush CASCADE; ROLLBACK');
is( $node->safe_psql(
		'postgres',
		"SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) FROM (SELECT state, count(*) AS n FROM push_status GROUP BY 1) s"
	),
	'sending 1, sent 1, unknown 3',
	'after which, rolled back, all is as it was');

#
# Under load the worker's transactions are short
#

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE sample (age interval);
CREATE PROCEDURE sample(seconds float8) LANGUAGE plpgsql AS $$
DECLARE
  until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
  WHILE clock_timestamp() < until LOOP
    PERFORM pg_stat_clear_snapshot();
    INSERT INTO sample
    SELECT clock_timestamp() - xact_start FROM pg_stat_activity
    WHERE backend_type = 'timpush worker' AND xact_start IS NOT NULL;
    -- no old snapshot is to be in the way of what is measured
    COMMIT;
    PERFORM pg_sleep(0.001);
  END LOOP;
END $$;
SQL
my $sampler = $node->background_psql('postgres');
$sampler->query_until(qr/begun/, "\\echo begun\nCALL sample(8);\n");
foreach my $round (1 .. 15)
{
	$node->safe_psql('postgres', <<"SQL");
SELECT count(timpush_batch('administrator', ARRAY['load-$round-' || n], 'title ' || n % 200, 'text'))
FROM generate_series(1, 1000) n
SQL
}
$sampler->quit;
settle($node, where => "state <> 'sending'");
my ($n, $max, $late) = split /\|/, $node->safe_psql('postgres', <<'SQL');
SELECT count(*), max(extract(epoch FROM age) * 1000)::numeric(10, 1),
  percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM age) * 1000)
FROM sample
SQL
cmp_ok($n, '>', 20, 'the worker was met in transactions');
cmp_ok($max, '<', 500, 'none of which was long');
note "age of $n transactions met: at most $max ms, 99 of 100 up to $late ms";

$tim->ok_ledger($node, 'tables and ledger agree');
ok_quick(
	'DROP EXTENSION for good',
	'postgres',
	'DROP EXTENSION timpush CASCADE');
$node->stop;
done_testing();
