
# Logical replication.  A subscriber sends nothing of what comes from elsewhere
# until it is told to.  One that gathers the pushes of several databases sends
# them from then on; one that has all tables of another database takes over
# from it.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use FakeTIM;
use Failover;
use TimpushTest;

my %settings = (
	wal_level => 'logical',
	max_wal_senders => 8,
	'timpush.idle_exit' => '2s');
my $tim = FakeTIM->new->start;

# A server that needs no credentials, as nothing is sent
my $server_without_key =
  "CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1400000000', region 'singapore');";

# Nothing arrives for a while
sub is_silent
{
	my ($name) = @_;
	my $before = $tim->stats->{requests};

	sleep 3;
	is($tim->stats->{requests}, $before, $name);
	return;
}

sub subscribe
{
	my ($node, $publisher) = @_;
	my $name = $publisher->name;

	$node->safe_psql('postgres',
			"CREATE SUBSCRIPTION $name CONNECTION '"
		  . $publisher->connstr
		  . ' dbname=postgres'
		  . "' PUBLICATION pushes");
	$node->wait_for_subscription_sync($publisher, $name);
	return;
}

sub held_warnings
{
	my ($node) = @_;
	return
	  scalar log_lines($node,
		qr/WARNING:  timpush: database "postgres" .* its servers are held/);
}

sub received
{
	my ($account) = @_;
	return scalar requests_with($tim, $account);
}

#
# Several databases enqueue, one sends.  Their pushes have different numbers.
#
my $first = start_node('first', %settings, 'timpush.enabled' => 'off');
my $second = start_node('second', %settings);
my $hub = start_node('hub', %settings);
my $n = 0;

foreach my $node ($first, $second)
{
	$n++;
	$node->safe_psql('postgres', <<"SQL");
$server_without_key
ALTER SEQUENCE push_outbox_id_seq INCREMENT BY 10 RESTART WITH $n;
CREATE PUBLICATION pushes FOR TABLE push_outbox WITH (publish = 'insert');
SQL
}
$hub->safe_psql('postgres', $tim->create_server_sql('chat'));
push_id($first, 'early-1');
push_id($second, 'early-2');
subscribe($hub, $_) foreach $first, $second;
$hub->poll_query_until('postgres',
	"SELECT state = 'held' FROM push_server WHERE server = 'chat'")
  or die "the server is not held\n";
is($hub->safe_psql('postgres', 'SELECT count(*) FROM push_outbox'),
	2, 'the pushes of both are there');
push_id($first, 'held-1');
$first->wait_for_catchup('first');
is_silent('a subscriber sends nothing');
like(
	server_state($hub, 'chat')->{reason},
	qr/^copied from another database/,
	'push_server says why');
is(held_warnings($hub), 1, 'so does the log, once');
is($hub->safe_psql('postgres', 'SELECT count(*) FROM push_outbox'),
	3, 'the pushes go on to arrive');

$hub->safe_psql('postgres', "SELECT timpush_resume('chat')");
settle($hub);
is(received($_), 1, "resumed, it sends $_")
  foreach 'early-1', 'early-2', 'held-1';

# The worker is woken by what comes, be it there or not.
push_id($second, 'later-2');
$second->wait_for_catchup('second');
settle($hub);
is(received('later-2'), 1, 'a push that comes later is sent');
wait_for_worker($hub, 0);
my $id = push_id($first, 'later-1', send_at => '2100-01-01');
push_id($first, 'later-3');
$first->wait_for_catchup('first');
settle($hub, where => "push_id <> $id");
is(received('later-3'), 1, 'so is one that has to start a worker');
is(status($hub, $id)->{state}, 'scheduled', 'one of the future waits');
is(held_warnings($hub), 1, 'and nothing is held again');
$hub->restart;
push_id($first, 'last-1');
$first->wait_for_catchup('first');
settle($hub, where => "push_id <> $id");
is(received('last-1'), 1, 'nor after a restart');

# What the publishers delete is not taken back.
is($first->safe_psql('postgres', 'SELECT count(*) FROM push_outbox'),
	5, 'a publisher keeps its rows');
$first->safe_psql('postgres', 'DELETE FROM push_outbox');
push_id($first, 'end');
$first->wait_for_catchup('first');
settle($hub, where => "push_id <> $id");
is(status($hub, $id)->{state}, 'scheduled', 'and may delete them');
$hub->safe_psql('postgres', "SELECT timpush_cancel($id)");
settle($hub);
$tim->ok_ledger($hub, 'tables and ledger agree');
is($tim->stats->{accounts}, 7, 'nobody else has sent');
$_->stop foreach $first, $second;

# A subscriber that is resumed before anything comes sends what comes.
my $third = start_node('third', %settings, 'timpush.enabled' => 'off');
$third->safe_psql('postgres',
	"$server_without_key CREATE PUBLICATION pushes FOR TABLE push_outbox WITH (publish = 'insert')"
);
$hub->safe_psql('postgres', 'CREATE DATABASE other');
$hub->safe_psql('other',
		'CREATE EXTENSION timpush;'
	  . $tim->create_server_sql('chat')
	  . "SELECT timpush_resume('chat');");
$hub->safe_psql('other',
		"CREATE SUBSCRIPTION third CONNECTION '"
	  . $third->connstr
	  . ' dbname=postgres'
	  . "' PUBLICATION pushes");
push_id($third, 'third-1');
$hub->wait_for_subscription_sync($third, 'third', 'other');
$hub->poll_query_until('other', 'SELECT count(*) = 1 FROM push_status')
  or die "nothing has come\n";
settle($hub, dbname => 'other');
is(received('third-1'), 1, 'resumed at first, it sends what comes');
$third->stop;
$hub->stop;

#
# All tables of a database that sends itself
#
$tim = FakeTIM->new(apps => { 1001 => 'key', 1002 => 'key' })->start;
my $servers =
	$tim->create_server_sql('chat')
  . $tim->create_server_sql('other', sdkappid => 1001, secret_key => 'key')
  . $tim->create_server_sql('paused', sdkappid => 1002, secret_key => 'key');
my $main = start_node('main', %settings);
my $spare = start_node('spare', %settings);

$main->safe_psql('postgres',
	"$servers CREATE PUBLICATION pushes FOR ALL TABLES");
$spare->safe_psql('postgres', $servers);
push_id($main, 'main-sent', server => 'chat');
push_id($main, 'code-90001', server => 'other');
settle($main);
subscribe($spare, $main);
push_id($main, 'main-more', server => 'chat');
push_id($main, 'first1-code-60028', server => 'other');
$main->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM push_status WHERE state = 'retrying'")
  or die "there is no retry\n";
settle($main, where => "server = 'chat'");

# whatever happens to the servers of the publisher
$main->safe_psql('postgres',
	"SELECT timpush_pause('paused'), timpush_pause('chat')");
push_id($main, 'main-waits', server => 'paused');
$main->safe_psql('postgres', "SELECT timpush_resume('chat')");
$main->wait_for_catchup('main');
$spare->poll_query_until('postgres',
	"SELECT count(*) = 3 FROM push_server WHERE state = 'held'")
  or die "the servers are not held\n";
is_silent('a subscriber to all tables sends nothing');
is(held_warnings($spare), 1, 'and says so');
$spare->restart;
is_silent('nor after a restart');
is( $spare->safe_psql(
		'postgres',
		"SELECT string_agg(state, ' ' ORDER BY push_id) FROM push_status"),
	$main->safe_psql(
		'postgres',
		"SELECT string_agg(state, ' ' ORDER BY push_id) FROM push_status"),
	'it shows what became of pushes');

# The publisher can delete what is done, although it publishes that.
$main->safe_psql('postgres', 'DELETE FROM push_error');
$main->wait_for_catchup('main');
is($spare->safe_psql('postgres', 'SELECT count(*) FROM push_error'),
	0, 'what the publisher deletes goes');

# The publisher is lost with a call on the way, and the subscriber takes over.
$tim->rules([ { kind => 'latency', arg => 60_000, count => 1 } ]);
push_id($main, 'main-flight', server => 'chat');
$main->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM push_status WHERE state = 'sending'")
  or die "nothing is on its way\n";
wait_until(sub { received('main-flight') }, 'the call');
$main->wait_for_catchup('main');
kill_cluster($main);
$spare->safe_psql('postgres', "ALTER SUBSCRIPTION main $_")
  foreach 'DISABLE', 'SET (slot_name = NONE)';
$spare->safe_psql('postgres', <<'SQL');
DROP SUBSCRIPTION main;
SELECT setval('push_outbox_id_seq', max(push_id)) FROM push_status;
SELECT setval('push_request_id_seq', max(id)) FROM push_request;
SELECT timpush_resume(server) FROM push_server;
SQL
push_id($spare, 'spare', server => 'chat');
settle($spare);
is( $spare->safe_psql(
		'postgres', 'SELECT count(*), sum(maybe_duplicate) FROM push_status'),
	'7|1',
	'what was on its way is marked, and nothing else');
is(received($_), 1, "$_ is sent once")
  foreach 'main-sent', 'main-waits', 'spare';
is(received('first1-code-60028'), 2, 'what was refused for an hour, again');
is(received('main-flight'), 2, 'what was on its way, again');
$tim->ok_ledger($spare, 'tables and ledger agree');
$spare->stop;

done_testing();
