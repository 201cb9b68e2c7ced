
# Ends of every kind, while a server hangs and pushes wait: an orderly one takes
# a second or two, whatever hangs, and records what can be known; after any,
# what was in flight is in doubt, all goes on by itself and the sums close.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use Failover;
use TimpushTest;

# What hangs does so for the first time that it is sent.
my $hang = 'first1-slow-60000';
my %ids;
my $tim = FakeTIM->new->start;
my $node = start_node(
	'main',
	restart_after_crash => 'on',
	wal_level => 'replica',
	max_wal_senders => 2);

$node->safe_psql('postgres',
	$tim->create_server_sql('chat', max_in_flight => 6) . <<'SQL');
CREATE TABLE hang (caught boolean);
CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  WHILE EXISTS (SELECT FROM public.hang) LOOP
    PERFORM pg_sleep(0.1);
  END LOOP;
  RETURN NEW;
EXCEPTION WHEN query_canceled THEN
  IF EXISTS (SELECT FROM public.hang WHERE caught) THEN
    RETURN NEW;
  END IF;
  RAISE;
END $$;
CREATE TRIGGER hang BEFORE UPDATE ON push_result FOR EACH ROW EXECUTE FUNCTION hang();
SQL

# Enqueues pushes that share no call.
sub enqueue
{
	my ($accounts, %options) = @_;
	my $wait = delete $options{wait} // 1;

	# a test's own commits wait for no standby
	local $ENV{PGOPTIONS} = '-c synchronous_commit=local';
	$ids{$_} = push_id($node, $_, title => $_, %options) foreach @$accounts;
	foreach my $account ($wait ? @$accounts : ())
	{
		wait_until(sub { received($account) }, "the call for $account");
	}
	return;
}

sub received
{
	my ($account) = @_;
	return scalar requests_with($tim, $account);
}

sub settle_plain
{
	my $ids = join ', ', 0, map { $ids{$_} } grep { /^plain/ } keys %ids;

	settle($node, where => "push_id IN ($ids)");
	return;
}

# Calls that hang, further calls on the way, and pushes that wait behind them
sub fill
{
	my ($name, @others) = @_;

	settle_plain();
	enqueue([ map { "$hang-$name$_" } 1 .. 5 - @others ]);
	enqueue([ "slow-60000-$name", map { "$_-$name" } @others ],
		on_unknown => 'hold');
	enqueue([ map { "plain-$name$_" } 1 .. 5 ], wait => 0, priority => 0);
	return;
}

sub ok_stop
{
	my ($name, $mode) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begun = time;

	$node->stop($mode // 'fast');
	my $took = time - $begun;
	cmp_ok($took, '<', 5, "$name: the stop is a matter of seconds");
	note sprintf '%s: it took %.2f s', $name, $took;
	return;
}

sub ok_known
{
	my ($name, @accounts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	foreach my $account (@accounts)
	{
		settle($node, where => "push_id = $ids{$account}");
		my $status = status($node, $ids{$account});
		is_deeply(
			[
				$status->{state}, $status->{maybe_duplicate},
				received($account)
			],
			[ 'sent', 0, 1 ],
			"$name: no doubt of $account");
	}
	return;
}

# The server's log since the last call
my $log_seen = 0;

sub new_log
{
	my $log = slurp_file($node->logfile, $log_seen);

	$log_seen += length $log;
	return $log;
}

# Waits until the worker waits for something of this name in a cycle.
sub wait_for_wait
{
	my ($event) = @_;

	$node->poll_query_until(
		'postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE backend_type = 'timpush worker' AND '$event' IN (wait_event, wait_event_type)"
	) or die "the worker does not wait for $event";
	return;
}

sub configure_stopped
{
	my ($name, $value) = @_;

	$node->append_conf('postgresql.auto.conf', "$name = '$value'");
	return;
}

sub signal_worker
{
	my ($function) = @_;
	return $node->safe_psql(
		'template1',
		"SELECT $function(pid) FROM pg_stat_activity
		 WHERE backend_type = 'timpush worker' AND datname = 'postgres'");
}

# Waits for another worker than that, and returns its process.
sub wait_for_successor
{
	my ($old) = @_;
	my $new;

	wait_until(
		sub {
			$new = worker_pid($node);
			$new =~ /^\d+$/ && $new != $old;
		},
		'another worker');
	return $new;
}

#
# A fast stop with calls in flight
#

fill('fast', 'slow-600');
new_log();
ok_stop('fast');
my $log = new_log();
unlike($log, qr/FATAL|ERROR|WARNING/,
	'fast: which makes no noise in the log');
unlike(
	$log,
	qr/worker.*exited with exit code [^1]/,
	'fast: and is no crash of a process');
$node->start;
$node->wait_for_log(qr/timpush: \d requests were left in flight/, $log_seen);
ok_known('fast', 'slow-600-fast', map { "plain-fast$_" } 1 .. 5);

#
# A commit that waits for a synchronous standby: what it has claimed does not
# leave, and is in no doubt.
#

enqueue([ "$hang-sync", "$hang-sync-too" ]);
set_config($node, synchronous_standby_names => 'missing');
enqueue(['unconfirmed'], wait => 0);
wait_for_wait('SyncRep');
ok_stop('no standby');
is(received('unconfirmed'), 0, 'no standby: nothing leaves unconfirmed');
configure_stopped(synchronous_standby_names => '');
$node->start;
ok_known('no standby', 'unconfirmed');

#
# Other sessions hold locks: on a table, and on the row that is to be written.
#

my $locker = $node->background_psql('postgres', on_error_stop => 1);
fill('table', 'slow-600');
$locker->query_safe('BEGIN; LOCK TABLE push_request IN SHARE MODE');
ok_stop('locked table');
$locker->quit;
$node->start;
ok_known('locked table', 'slow-600-table');

$locker = $node->background_psql('postgres', on_error_stop => 1);
fill('row', 'slow-1500');
$locker->query_safe('BEGIN; SELECT FROM push_request FOR UPDATE');
wait_for_wait('Lock');
ok_stop('locked row');
$locker->quit;
$node->start;
ok_known('locked row', 'slow-1500-row');

#
# Recording hangs, and the cancel of it is caught; or it hangs for good.
#

fill('caught', 'slow-1500');
$node->safe_psql('postgres', 'INSERT INTO hang VALUES (true)');
set_config($node, synchronous_standby_names => 'missing');
wait_for_wait('PgSleep');
ok_stop('caught cancel');
configure_stopped(synchronous_standby_names => '');
$node->start;
$node->safe_psql('postgres', 'DELETE FROM hang');
ok_known('caught cancel', 'slow-1500-caught');

fill('stuck', 'slow-1500');
$node->safe_psql('postgres', 'INSERT INTO hang VALUES (false)');
wait_for_wait('PgSleep');
ok_stop('stuck');
$node->start;
$node->safe_psql('postgres', 'DELETE FROM hang');

#
# The worker is told to end, and the launcher: both come again, and not at once.
#

fill('end', 'slow-1500');
$locker = $node->background_psql('postgres', on_error_stop => 1);
$locker->query_safe('BEGIN; SELECT FROM push_request FOR UPDATE');
wait_for_wait('Lock');
new_log();
my $pid = worker_pid($node);
my $begun =
  $node->safe_psql('postgres',
	'SELECT extract(epoch FROM clock_timestamp())');
signal_worker('pg_terminate_backend') foreach 1 .. 2;
$locker->query_safe('ROLLBACK');
$locker->quit;
$pid = wait_for_successor($pid);
my $pause = $node->safe_psql('postgres',
	"SELECT extract(epoch FROM backend_start) - $begun FROM pg_stat_activity WHERE pid = $pid"
);
cmp_ok($pause, '>', 1.5,
	'a worker that was told to end is missed for a while');
note "it came after $pause s";
ok_known('worker ended', 'slow-1500-end');
unlike(new_log(), qr/FATAL|ERROR/, 'which makes no noise in the log');

# One that has to end without order is replaced too, without a call for it.
fill('fail', 'slow-1500');
$node->safe_psql('postgres', 'INSERT INTO hang VALUES (false)');
wait_for_wait('PgSleep');
signal_worker('pg_terminate_backend');
$node->wait_for_log(
	qr/FATAL:  terminating background worker "timpush worker"/, $log_seen);
$node->safe_psql('postgres', 'DELETE FROM hang');
$pid = wait_for_successor($pid);
new_log();

my $launcher = q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'timpush launcher'};
my $old = $node->safe_psql('postgres', $launcher);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM ($launcher AND pid <> $old) l")
  or die 'there is no launcher';
is(worker_pid($node), $pid, 'the worker goes on without the launcher');
$log = new_log();
like(
	$log,
	qr/background worker "timpush launcher" \(PID $old\) exited with exit code 1/,
	'the launcher ends so that it is started again');
unlike($log, qr/FATAL/, 'without further noise');
signal_worker('pg_terminate_backend');
ok(wait_for_successor($pid), 'a new launcher looks after an old worker');

#
# A cancel does no harm.
#

enqueue(['slow-1500-cancel']);
$pid = worker_pid($node);
signal_worker('pg_cancel_backend');
$locker = $node->background_psql('postgres', on_error_stop => 1);
$locker->query_safe('BEGIN; SELECT FROM push_request FOR UPDATE');
wait_for_wait('Lock');
signal_worker('pg_cancel_backend');
$node->wait_for_log(qr/canceling statement due to user request/, $log_seen);
$locker->query_safe('ROLLBACK');
$locker->quit;
ok_known('cancel', 'slow-1500-cancel');
is(worker_pid($node), $pid, 'a cancel does not end the worker');

#
# Ends without order
#

fill('restart');
$node->restart;
fill('immediate');
ok_stop('immediate', 'immediate');
$node->start;
fill('quit');
new_log();
kill 'QUIT', worker_pid($node);
$node->wait_for_log(qr/database system is ready to accept connections/,
	$log_seen);
fill('orphan');
my $killed = time;
kill_postmaster($node);
cmp_ok(time - $killed, '<', 5, 'no process outlives the postmaster');
$node->start;

#
# A smart stop: the last session is waited for, and as long as it stays, a
# worker is started, sends, and drains the queue.
#

settle($node);
set_config($node, 'timpush.idle_exit' => '1s');
$node->safe_psql('postgres',
	"ALTER SERVER chat OPTIONS (SET requests_per_second '20')");
my $client = $node->background_psql('postgres', on_error_stop => 1);
wait_for_worker($node, 0);
system_or_bail('pg_ctl', '-D', $node->data_dir, '-m', 'smart', '--no-wait',
	'stop');
wait_until(
	sub {
		my ($code, $out, $err) = $node->psql('postgres', 'SELECT 1');
		return $err =~ /the database system is shutting down/;
	},
	'the refusal of new sessions');

sub enqueue_as_client
{
	my (@accounts) = @_;
	my $accounts = join ', ', map { quote($_) } @accounts;

	foreach my $line (
		split /\n/,
		$client->query_safe(
			"SELECT account || ' ' || timpush_batch('administrator', ARRAY[account], account, 'text')
			 FROM unnest(ARRAY[$accounts]) account"))
	{
		my ($account, $id) = split / /, $line;
		$ids{$account} = $id;
	}
	return;
}

enqueue_as_client(map { "smart-$_" } 1 .. 40);
wait_until(
	sub {
		return $client->query_safe(
			'SELECT count(*) FROM push_status WHERE waiting > 0') eq '0';
	},
	'a smart stop to let the queue drain');
enqueue_as_client('slow-600-smart');
wait_until(sub { received('slow-600-smart') }, 'the last call');
$client->quit;
$killed = time;
wait_until(sub { !-e $node->data_dir . '/postmaster.pid' }, 'the stop');
cmp_ok(time - $killed, '<', 5, 'smart: the stop follows the last session');
note sprintf 'it took %.2f s', time - $killed;
$node->stop('smart', fail_ok => 1);
$node->start;

#
# Whatever the end, everything is accounted for.
#

settle($node);
my %times;
foreach my $event (grep { $_->{event} eq 'request' } $tim->ledger)
{
	$times{$_}++ foreach @{ $event->{accounts} };
}
my %status = map { $_->{push_id} => $_ }
  rows($node, 'SELECT push_id, state, maybe_duplicate FROM push_status');
my %seen;
foreach my $account (sort keys %ids)
{
	my $status = $status{ $ids{$account} };
	my $what =
		$account =~ /^$hang/ ? 'a call that hung'
	  : $account =~ /^slow-60000|^slow-1500-(?:stuck|fail)/
	  ? 'a call that is held'
	  : 'any other';

	push @{ $seen{$what} },
	  "$account: $status->{state}, marked $status->{maybe_duplicate}, received "
	  . ($times{$account} > 1 ? 'again' : $times{$account});
}
my %expected = (
	'a call that hung' => 'sent, marked 1, received again',
	'a call that is held' => 'unknown, marked 0, received 1',
	'any other' => 'sent, marked 0, received 1');
foreach my $what (sort keys %expected)
{
	note scalar(@{ $seen{$what} }), " times: $what";
	is_deeply([ grep { !/: $expected{$what}$/ } @{ $seen{$what} } ],
		[], "$what: $expected{$what}, and counted");
}
$tim->ok_ledger($node, 'tables and ledger agree');

$node->stop;
done_testing();
