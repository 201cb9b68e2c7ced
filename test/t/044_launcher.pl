
# Launcher and workers in a cluster of many databases: each that has work gets
# a worker, whatever is the matter with the others; none stays where there is
# nothing to do, and then nothing runs at all.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);
use Time::Local qw(timegm);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;

# With one process for the launcher of logical replication and one for ours,
# two are left.
my $node = start_node(
	'main',
	max_worker_processes => 4,
	log_timezone => 'UTC',
	'timpush.idle_exit' => '1min');
my %pushes;
my $log_seen = 0;

sub create_database
{
	my (@names) = @_;

	foreach my $name (@names)
	{
		$node->safe_psql('postgres', "CREATE DATABASE $name");
		$node->safe_psql($name,
			'CREATE EXTENSION timpush; ' . $tim->create_server_sql('chat'));
	}
	return;
}

sub enqueue
{
	my (@names) = @_;

	foreach my $name (@names)
	{
		push @{ $pushes{$name} },
		  push_id(
			$node,
			"$name-" . @{ $pushes{$name} // [] },
			dbname => $name);
	}
	return;
}

# The service has received all that was enqueued in the database.
sub all_received
{
	my ($name) = @_;
	my %seen = map { $_ => 1 }
	  map { @{ $_->{accounts} } }
	  grep { $_->{event} eq 'request' } $tim->ledger;

	return !grep { !$seen{"$name-$_"} } 0 .. $#{ $pushes{$name} };
}

sub ok_sends
{
	my ($what, @names) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	foreach my $name (@names)
	{
		wait_until(sub { all_received($name) }, "what $name sends");
	}
	pass($what);
	return;
}

sub workers
{
	return $node->safe_psql('template1',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'timpush worker'"
	);
}

sub wait_for_no_worker
{
	wait_until(sub { workers() == 0 }, 'the workers to leave');
	return;
}

# When the new lines of the log that match were written, in seconds
sub log_times
{
	my ($pattern) = @_;
	my @times;

	foreach my $line (
		grep { /$pattern/ } split /\n/,
		slurp_file($node->logfile, $log_seen))
	{
		my ($y, $mon, $d, $h, $min, $s) =
		  $line =~ /^(\d+)-(\d+)-(\d+) (\d+):(\d+):([\d.]+)/
		  or die "no time in: $line\n";
		push @times, timegm(int $s, $min, $h, $d, $mon - 1, $y) + $s - int $s;
	}
	return @times;
}

# Each pause is twice the one before, and the first a second.
sub ok_pauses_grow
{
	my ($pattern, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @times;

	wait_until(sub { (@times = log_times($pattern)) >= 4 }, $what);
	my @pauses = map { $times[ $_ + 1 ] - $times[$_] } 0 .. $#times - 1;
	is(scalar(grep { $pauses[$_] < 0.95 * 2**$_ } 0 .. $#pauses),
		0, "$what: the pauses grow");
	note "$what: " . join ' ', map { sprintf '%.2f', $_ } @pauses;
	return $times[3];
}

#
# No more processes than there are
#

my @many = map { "many$_" } 1 .. 6;
create_database(@many);
my $begun = time;
enqueue(@many);
ok_sends('more databases than processes: all have their turn', @many);
cmp_ok(time - $begun,
	'<', 50, 'for who has nothing to do makes room before timpush.idle_exit');

# Others take all of them: a query in parallel.
set_config($node, 'timpush.idle_exit' => '1s');
wait_for_no_worker();
$node->safe_psql('postgres',
	'CREATE TABLE sleep AS SELECT generate_series(1, 10000) AS n');
my $others = $node->background_psql('postgres', on_error_stop => 0);
$others->query_until(qr/begun/, <<'SQL');
SET max_parallel_workers_per_gather = 2;
SET parallel_leader_participation = off;
SET min_parallel_table_scan_size = 0;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
ALTER TABLE sleep SET (parallel_workers = 2);
\echo begun
SELECT n FROM sleep WHERE pg_sleep(3600) IS NOT NULL;
SQL
$node->poll_query_until('postgres',
	"SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'parallel worker'"
) or die 'the processes are not taken';
$log_seen = -s $node->logfile;
my $warned = log_lines($node, qr/no background worker slot is free/);
enqueue(@many);
$node->wait_for_log(qr/WARNING: .*no background worker slot is free/,
	$log_seen);
like(
	slurp_file($node->logfile, $log_seen),
	qr/HINT:  Consider increasing max_worker_processes/,
	'no process is free: the log says what to do');
sleep 3;
is(scalar log_lines($node, qr/no background worker slot is free/),
	$warned + 1, 'once');
$node->safe_psql('postgres',
	"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg\\_sleep(3600)%' AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
);
$others->quit;
ok_sends('and when some are free, all goes on', @many);
$node->wait_for_log(qr/background worker slots are free again/, $log_seen);
is( scalar log_lines($node, qr/slots are free again/),
	$warned + 1,
	'which it says as well');

#
# Settings act on reload
#

wait_for_no_worker();
set_config($node, 'timpush.enabled' => 'off');
wait_until(
	sub {
		$node->safe_psql('postgres', 'SHOW timpush.enabled') eq 'off';
	},
	'the reload');
sleep 0.5;
enqueue(@many);
sleep 1;
is(workers(), 0, 'timpush.enabled off: no worker starts');
is(scalar(grep { all_received($_) } @many), 0, 'and nothing is sent');
set_config($node, 'timpush.enabled' => 'on');
ok_sends('timpush.enabled on: all is sent', @many);

set_config($node, 'timpush.idle_exit' => '1h', max_worker_processes => 32);
$node->restart;
enqueue('many1', 'many2');
ok_sends('two databases send', 'many1', 'many2');
sleep 2;
is(workers(), 2, 'timpush.idle_exit raised: their workers stay');
set_config($node, 'timpush.idle_exit' => '1s');
wait_for_no_worker();
pass('lowered: they leave');

# The time to send comes when there is no worker.
push @{ $pushes{many3} },
  push_id(
	$node, 'many3-' . @{ $pushes{many3} },
	dbname => 'many3',
	send_at => $node->safe_psql('postgres', "SELECT now() + '6 s'"));
wait_until(sub { workers() == 1 }, 'a worker') if workers() == 0;
wait_for_no_worker();
ok(!all_received('many3'), 'a worker leaves before the time to send');
ok_sends('another one comes', 'many3');
my $late = $node->safe_psql('many3', <<'SQL');
SELECT extract(epoch FROM q.first_sent_at - q.created_at) >= 0,
  q.first_sent_at - r.enqueued_at BETWEEN '5.9 s' AND '10 s'
FROM push_request q JOIN push_result r ON r.request_id = q.id ORDER BY q.id DESC LIMIT 1
SQL
is($late, 't|t', 'in time');

#
# What may be wrong with a database
#

my @good = qw(good1 template limited renamed);
my @broken = qw(altered version closed damaged);
set_config($node, 'timpush.enabled' => 'off');
create_database(@broken, @good, 'dropped');
enqueue(@broken, @good, 'dropped');
$node->safe_psql('altered',
	'ALTER TABLE push_result ADD COLUMN mine integer');
$node->safe_psql('version',
	"UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'timpush'");
$node->safe_psql('postgres', "ALTER DATABASE $_")
  foreach 'closed ALLOW_CONNECTIONS false', 'limited CONNECTION LIMIT 0',
  'template IS_TEMPLATE true', 'renamed RENAME TO renamed_too';
my $damaged =
	$node->data_dir
  . '/base/'
  . $node->safe_psql('postgres',
	"SELECT oid FROM pg_database WHERE datname = 'damaged'")
  . '/PG_VERSION';
rename $damaged, "$damaged.away" or die "could not rename $damaged: $!";
$log_seen = -s $node->logfile;
set_config($node, 'timpush.enabled' => 'on');
$node->wait_for_log(qr/database "closed" does not allow connections/,
	$log_seen);
$node->stop;
$log_seen = -s $node->logfile;
$node->start;

ok_sends('after a start each database sends, a template too', @good);
$node->safe_psql('postgres', 'DROP DATABASE dropped');
ok_pauses_grow(qr/have been altered, so nothing is sent/, 'altered tables');
ok_pauses_grow(qr/FATAL: .*\/PG_VERSION"|FATAL: .*not a valid data directory/,
	'a damaged database');
my $last = ok_pauses_grow(qr/but the extension in database "version" is/,
	'another version');
ok(!all_received($_), "nothing is sent from $_") foreach @broken;

# Whatever may have mended one ends its pause.
$node->safe_psql('version',
	"UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'timpush'; ALTER EXTENSION timpush UPDATE"
);
ok_sends('ALTER EXTENSION is heeded', 'version');
cmp_ok(time - $last, '<', 7.5, 'before the pause is over');
is( scalar log_lines($node, qr/database "closed" does not allow connections/),
	1,
	'a database without connections is in the log once');
is(scalar log_lines($node, qr/FATAL: .*not currently accepting/),
	0, 'and not tried');
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS true');
ok_sends('ALTER DATABASE is heeded', 'closed');

# And so does the next one.
rename "$damaged.away", $damaged or die "could not rename $damaged: $!";
ok_sends('what was mended by hand is found in a while', 'damaged');
enqueue('good1');
ok_sends('the others are as ever', 'good1');

#
# Idle: nothing runs
#

wait_for_no_worker();
$node->safe_psql('postgres', 'DROP DATABASE altered');
$node->safe_psql('postgres', 'CREATE DATABASE observer');
my $launcher = $node->safe_psql('observer',
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'timpush launcher'"
);

# How often the launcher has gone to sleep, and what the databases have done
sub activity
{
	my ($switches) =
	  slurp_file("/proc/$launcher/status") =~
	  /^voluntary_ctxt_switches:\s+(\d+)/m
	  or die 'no count of context switches';

	return ($switches, $node->safe_psql('observer', <<'SQL'));
SELECT string_agg(coalesce(datname, '') || ' ' || xact_commit + xact_rollback || ' ' || sessions, E'\n' ORDER BY datname)
FROM pg_stat_database WHERE datname IS DISTINCT FROM 'observer'
SQL
}
sleep 2;
my ($switches, $databases) = activity();
sleep 20;
my ($switches_after, $databases_after) = activity();
is($databases_after, $databases, 'idle: no transaction and no session');
cmp_ok($switches_after - $switches, '<=', 1, 'and the launcher sleeps');
note 'the launcher woke ' . ($switches_after - $switches) . ' times in 20 s';
is(workers(), 0, 'there is no worker');
is($node->safe_psql('observer', <<'SQL'), $launcher, 'nor another launcher');
SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE backend_type LIKE 'timpush%'
SQL

# A start, in a cluster in which timpush is everywhere but has nothing to do
create_database('everywhere');
$node->safe_psql('postgres',
	"CREATE DATABASE everywhere$_ TEMPLATE everywhere")
  foreach 1 .. 20;
set_config($node, 'timpush.idle_exit' => '1h');
$node->restart;
wait_for_no_worker();
pass('after a start no worker stays where there is nothing to do');
enqueue('everywhere7');
ok_sends('and a push in any database is sent', 'everywhere7');

foreach my $name ('many1', 'version', 'closed', 'damaged', 'everywhere7')
{
	settle($node, dbname => $name);
	is( $node->safe_psql(
			$name, 'SELECT count(*) FROM push_status WHERE state <> $$sent$$'
		),
		0,
		"$name: all is sent");
}
unlike(
	slurp_file($node->logfile),
	qr/database \d+ does not exist|PANIC|terminated by signal/,
	'nothing was started in vain');

$node->stop;
done_testing();
