
# What is committed is sent, what is not is not; a commit wakes the worker,
# and without one nothing runs.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main', max_prepared_transactions => 5);
my $batch =
  q{SELECT timpush_batch('administrator', ARRAY['%s'], '%s', 'text');};

sub batch
{
	my ($account) = @_;
	return sprintf $batch, $account, $account;
}

# Who is in the ledger
sub received
{
	my ($account) = @_;
	return scalar requests_with($tim, $account);
}

$node->safe_psql('postgres', $tim->create_server_sql('chat'));

$node->safe_psql('postgres',
	'BEGIN;' . batch('rolled-back') . 'ROLLBACK;' . batch('after'));
$node->safe_psql('postgres',
		'BEGIN;'
	  . batch('outer')
	  . 'SAVEPOINT a;'
	  . batch('inner')
	  . 'ROLLBACK TO a;'
	  . batch('later')
	  . 'COMMIT;');
$node->psql(
	'postgres',
	"INSERT INTO push_outbox (from_account, to_accounts, title, descr)
		SELECT 'administrator', ARRAY['statement-' || n], 'title', (1 / (3 - n))::text
		FROM generate_series(1, 3) n");
$node->psql('postgres', 'BEGIN;' . batch('failed') . 'SELECT 1/0; COMMIT;');
push_id($node, 'last');
settle($node);
ok(received('after'), 'a commit is sent');
ok(!received('rolled-back'), 'a rollback is not');
ok(received('outer') && received('later'), 'a transaction is sent');
ok(!received('inner'), 'but not what its savepoint took back');
ok(!received('statement-1'), 'a failed statement sends nothing');
ok(!received('failed'), 'a failed transaction sends nothing');

# Two-phase commit: prepared in one session, committed in another
$node->safe_psql('postgres',
	'BEGIN;' . batch('prepared') . "PREPARE TRANSACTION 'a'");
$node->safe_psql('postgres',
	'BEGIN;' . batch('unprepared') . "PREPARE TRANSACTION 'b'");
push_id($node, 'last');
settle($node);
ok(!received('prepared'), 'a prepared transaction is not sent');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'b'");
$node->safe_psql('postgres', "COMMIT PREPARED 'a'");
wait_until(sub { received('prepared') }, 'the prepared push');
pass('COMMIT PREPARED wakes the worker');

# An idle worker: nothing runs, but a commit is served at once.
$node->safe_psql('postgres', 'CREATE DATABASE elsewhere');
settle($node);
sleep 1;
my $activity =
  q{SELECT xact_commit + xact_rollback, a.pid, a.state, a.state_change
	FROM pg_stat_database d JOIN pg_stat_activity a USING (datname)
	WHERE d.datname = 'postgres' AND a.backend_type = 'timpush worker'};
my $before = $node->safe_psql('elsewhere', $activity);
like($before, qr/^\d+\|\d+\|idle\|/, 'the worker is idle');
sleep 3;
is($node->safe_psql('elsewhere', $activity),
	$before, 'no transaction runs while there is nothing to do');

my $fastest = 60;
foreach my $i (1 .. 5)
{
	my $commit = time;
	push_id($node, "quick-$i");
	my ($got) = wait_until(sub { requests_with($tim, "quick-$i") },
		'the push to arrive');
	$got = (requests_with($tim, "quick-$i"))[0];
	my $took = $got->{time} / 1e6 - $commit;
	$fastest = $took if $took < $fastest;
}
cmp_ok($fastest, '<', 0.5, 'a commit wakes an idle worker at once');
note "fastest from before the session's start to the service: $fastest s";

# A worker with nothing to do leaves, and comes back.
set_config($node, 'timpush.idle_exit' => '1s');
wait_for_worker($node, 0);
pass('an idle worker leaves');
push_id($node, 'back');
settle($node);
ok(received('back'), 'and comes back at the next commit');

# Also for what is due later
my $due = time + 3;
push_id($node, 'scheduled', send_at => scalar(gmtime($due)) . ' UTC');
is( $node->safe_psql(
		'postgres', 'SELECT state FROM push_status WHERE waiting > 0'),
	'scheduled',
	'a push for later is scheduled');
wait_for_worker($node, 0);
settle($node);
cmp_ok((requests_with($tim, 'scheduled'))[0]->{time} / 1e6,
	'>=', int($due), 'and sent when it is due');

# What expires while nobody may send is never sent.
set_config($node, 'timpush.enabled' => 'off');
wait_for_worker($node, 0);
push_id($node, 'expired', expires_at => scalar(gmtime(time + 2)) . ' UTC');
push_id($node, 'kept');
$node->poll_query_until('postgres',
	'SELECT bool_or(expires_at < now()) FROM push_outbox');

# Restarts, in order and not
$node->restart;
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM push_status WHERE waiting > 0'),
	2,
	'pushes wait across a restart while sending is off');
set_config($node, 'timpush.enabled' => undef);
settle($node);
ok(received('kept'), 'and are sent once it is on');
ok(!received('expired'), 'except for what has expired');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_status WHERE state = 'expired'"),
	1,
	'which is its outcome');

set_config($node, 'timpush.enabled' => 'off');
wait_for_worker($node, 0);
push_id($node, "crash-$_") foreach 1 .. 3;
$node->append_conf('postgresql.conf', 'timpush.enabled = on');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET timpush.enabled');
$node->stop('immediate');
$node->start;
settle($node);
is(received('crash-3'), 1, 'a cluster that starts sends what waits');

is( $node->safe_psql(
		'postgres', 'SELECT sum(maybe_duplicate) FROM push_status'),
	0,
	'nothing of this is in doubt');
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
