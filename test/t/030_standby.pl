
# Streaming replication: a standby sends nothing and takes over when it is
# promoted.  With synchronous replication nothing is lost and what may have
# been sent twice is marked, however the primary ends.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use Failover;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $alice = PostgreSQL::Test::Cluster->new('alice');
my $bob = PostgreSQL::Test::Cluster->new('bob');

$alice->init(allows_streaming => 1);
$alice->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'timpush'
autovacuum = off
shared_buffers = 16MB
max_connections = 20
wal_keep_size = 256MB
CONF
$alice->start;
$alice->safe_psql('postgres', 'CREATE EXTENSION timpush');
$alice->safe_psql('postgres',
	$tim->create_server_sql('chat', request_timeout => '3001ms')
	  . load_sql());
$alice->backup('first');
$bob->init_from_backup($alice, 'first', has_streaming => 1);
$bob->start;
set_config($alice, synchronous_standby_names => '*');

sub enqueue
{
	my ($node, $account) = @_;
	return $node->safe_psql('postgres',
		"SET synchronous_commit = local; SELECT enqueue('$account', 'title')"
	);
}

sub received
{
	my ($account) = @_;
	return scalar requests_with($tim, $account);
}

# Waits for the worker to wait for a standby to confirm its claim.
sub wait_for_wait
{
	my ($node) = @_;
	return $node->poll_query_until(
		'postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE backend_type = 'timpush worker' AND wait_event = 'SyncRep'");
}

sub stop_fast
{
	my ($node) = @_;
	my $begun = time;

	$node->stop('fast');
	return time - $begun;
}

#
# A standby sends nothing, and nothing can be enqueued on it.
#

enqueue($alice, 'kept-first');
settle($alice);
$alice->wait_for_catchup($bob);
ok_sends_nothing($bob, 'a standby');
is($bob->safe_psql('postgres', 'SELECT state FROM push_status'),
	'sent', 'it shows what became of pushes');
is($bob->safe_psql('postgres', 'SELECT state FROM timpush_wait(1)'),
	'sent', 'also by timpush_wait()');
foreach my $sql (
	q{SELECT timpush_batch('administrator', ARRAY['x'], 'title', 'text')},
	q{INSERT INTO push_outbox (from_account, to_accounts, title, descr)
	  VALUES ('administrator', ARRAY['x'], 'title', 'text')})
{
	my ($code, $out, $err) = $bob->psql(
		'postgres', "\\set VERBOSITY sqlstate
		$sql");
	like($err, qr/ERROR:  25006/, 'a standby refuses pushes');
}

#
# Without a synchronous standby a claim is not confirmed, so nothing leaves,
# whatever ends the wait.
#

$bob->stop;
enqueue($alice, 'kept-unconfirmed');
wait_for_wait($alice);
is(received('kept-unconfirmed'),
	0, 'nothing leaves before a standby has confirmed the claim');
is( $alice->safe_psql(
		'postgres', 'SELECT pg_cancel_backend(' . worker_pid($alice) . ')'),
	't',
	'the worker can be cancelled');
$alice->wait_for_log(qr/canceling wait for synchronous replication/);
wait_for_wait($alice);
is(received('kept-unconfirmed'), 0, 'nor then');
my $took = stop_fast($alice);
cmp_ok($took, '<', 10, 'a fast stop is fast all the same');
note "it took $took s";
is(received('kept-unconfirmed'), 0, 'and sends nothing either');

$alice->start;
wait_for_wait($alice);
is(received('kept-unconfirmed'), 0, 'a new worker waits again');
$bob->start;
settle($alice);
is(received('kept-unconfirmed'), 1, 'the push leaves with the standby back');
is( $alice->safe_psql(
		'postgres', 'SELECT sum(maybe_duplicate) FROM push_status'),
	0,
	'and never was in doubt');

# An answer that comes while the worker waits is not lost.
enqueue($alice, 'slow-1000-kept');
wait_until(sub { received('slow-1000-kept') }, 'a call');
$bob->stop;
enqueue($alice, 'kept-behind');
wait_for_wait($alice);
sleep 4;
$bob->start;
settle($alice);
is(received('slow-1000-kept'),
	1, 'a call is not repeated because the worker was held up');

# The death of the postmaster confirms nothing.
$bob->stop;
enqueue($alice, 'kept-orphan');
wait_for_wait($alice);
kill_postmaster($alice);
is(received('kept-orphan'), 0, 'a dead postmaster confirms nothing');
$alice->start;
$bob->start;

#
# The primary is killed under load, and the standby promoted.
#

settle($alice);
my $seen = -s $bob->logfile;
$tim->rules([ { kind => 'latency', arg => 200 } ]);
my $load = start_load($alice, $bob);
wait_until(sub { acknowledged($load) > 300 }, 'the load');
kill_cluster($alice);
my $before = acknowledged($load);
$bob->promote;
wait_until(
	sub { acknowledged($load) > $before + 300 },
	'the load on the promoted standby');
like(
	slurp_file($bob->logfile, $seen),
	qr/timpush: launcher started/,
	'promotion starts the launcher');
like(
	slurp_file($bob->logfile, $seen),
	qr/timpush: \d+ requests? w(?:as|ere) left in flight/,
	'and the worker finds what was in flight');

# The old primary comes back as a standby.
sub follow
{
	my ($node, $primary) = @_;
	my $seen = -s $node->logfile;

	$node->append_conf('postgresql.conf',
			'port = '
		  . $node->port
		  . "\nprimary_conninfo = '"
		  . $primary->connstr
		  . "'");
	$node->set_standby_mode;
	$node->start;
	set_config($node, synchronous_standby_names => undef);
	$primary->wait_for_catchup($node);
	return $seen;
}

# pg_rewind reads the new timeline from the control file
$bob->safe_psql('postgres', 'CHECKPOINT');
system_or_bail('pg_rewind', '--target-pgdata',
	$alice->data_dir, '--source-server',
	$bob->connstr . ' dbname=postgres', '--no-sync');
$seen = follow($alice, $bob);
set_config($bob, synchronous_standby_names => '*');
$before = acknowledged($load);
wait_until(sub { acknowledged($load) > $before + 100 },
	'the load with both nodes');
ok_sends_nothing($alice, 'the killed primary, now standby,', $seen);
stop_load($load);
settle($bob);
my ($total, $marked, $repeated) = ok_accounting($tim, $bob, $load);
cmp_ok($repeated, '>', 0, 'the service has got some pushes twice');

#
# Switchover under load
#

$load = start_load($alice, $bob);
wait_until(sub { acknowledged($load) > 300 }, 'the load');
$took = stop_fast($bob);
cmp_ok($took, '<', 30, 'a fast stop under load');
note "it took $took s";
$before = acknowledged($load);
$alice->promote;
wait_until(sub { acknowledged($load) > $before + 300 },
	'the load after the switchover');
$seen = follow($bob, $alice);
set_config($alice, synchronous_standby_names => '*');
$before = acknowledged($load);
wait_until(sub { acknowledged($load) > $before + 100 },
	'the load with both nodes');
ok_sends_nothing($bob, 'the former primary', $seen);
stop_load($load);
settle($alice);
ok_accounting($tim, $alice, $load);

#
# Asynchronous replication: what the old primary sent and did not replicate,
# the new one sends again and cannot know.
#

set_config(
	$alice,
	synchronous_standby_names => undef,
	'timpush.enabled' => 'off');
wait_for_worker($alice, 0);
enqueue($alice, 'kept-twice');
$alice->wait_for_catchup($bob);
$bob->append_conf('postgresql.conf', "primary_conninfo = ''");
$bob->reload;
$bob->poll_query_until('postgres',
	'SELECT count(*) = 0 FROM pg_stat_wal_receiver');
set_config($alice, 'timpush.enabled' => undef);
settle($alice);
$alice->stop('immediate');
$bob->promote;
settle($bob);
is(received('kept-twice'), 2, 'without synchronous replication: sent twice');
my $id = $bob->safe_psql('postgres',
	"SELECT push_id FROM noted WHERE account = 'kept-twice'");
is(status($bob, $id)->{maybe_duplicate}, 0, 'and not marked');
is_deeply(
	[ map { s/\d+/N/gr } $tim->check_ledger($bob) ],
	[
		'b the service accepted msg_random N (seq N), which no push_request has'
	],
	'the call of the old primary is unknown to the new one');

$bob->stop;
done_testing();
