
# Patroni and etcd: the leader is killed under load, together with its
# Patroni.  The standby takes over and the accounting closes; the killed node
# comes back as a standby and sends nothing.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use Failover;
use Patroni;
use TimpushTest;

plan skip_all => 'the sanitized server is too slow for Patroni'
  if $ENV{TIMPUSH_SANITIZE};

my $tim = FakeTIM->new->start;
my $patroni = Patroni->new('alice', 'bob');
my $alice = $patroni->node('alice');
my $bob = $patroni->node('bob');

$patroni->start('alice');
$patroni->wait_for('alice', 'leader');
$alice->safe_psql('postgres', 'CREATE EXTENSION timpush');
$alice->safe_psql('postgres', $tim->create_server_sql('chat') . load_sql());
$patroni->start('bob');
$patroni->wait_for('bob', 'synchronous');
is($alice->safe_psql('postgres', 'SHOW synchronous_standby_names'),
	'bob', 'Patroni makes the leader wait for the standby');

# The leader is killed.
my $seen = -s $bob->logfile;
$tim->rules([ { kind => 'latency', arg => 200 } ]);
my $load = start_load($alice, $bob);
wait_until(sub { acknowledged($load) > 300 }, 'the load');
ok_sends_nothing($bob, 'the standby', 0);
$patroni->kill('alice');
my $before = acknowledged($load);
$patroni->wait_for('bob', 'leader');
wait_until(sub { acknowledged($load) > $before + 300 },
	'the load on the new leader');
like(
	slurp_file($bob->logfile, $seen),
	qr/timpush: launcher started/,
	'promotion starts the launcher');
like(
	slurp_file($bob->logfile, $seen),
	qr/timpush: \d+ requests? w(?:as|ere) left in flight/,
	'and the worker finds what was in flight');

# It comes back.
$seen = -s $alice->logfile;
$patroni->start('alice');
$patroni->wait_for('alice', 'synchronous');
$before = acknowledged($load);
wait_until(sub { acknowledged($load) > $before + 100 },
	'the load with both nodes');
ok_sends_nothing($alice, 'the killed leader, now standby,', $seen);

# Switchover
$patroni->switchover('bob', 'alice');
$patroni->wait_for('bob', 'synchronous');
$seen = -s $bob->logfile;
$before = acknowledged($load);
wait_until(sub { acknowledged($load) > $before + 300 },
	'the load after the switchover');
ok_sends_nothing($bob, 'the former leader', $seen);
stop_load($load);
settle($alice);
my ($total, $marked, $repeated) = ok_accounting($tim, $alice, $load);
cmp_ok($repeated, '>', 0, 'the service has got some pushes twice');

$patroni->stop;
done_testing();
