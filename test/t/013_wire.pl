
# On the wire: few connections, requests that end independently of each other,
# none that is sent behind our back, and nothing held while it is on its way.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $old = FakeTIM->new(http1 => 1)->start;
my $restless = FakeTIM->new(keepalive_requests => 100)->start;
my $node = start_node(
	'main',
	restart_after_crash => 'on',
	wal_level => 'replica',
	max_wal_senders => 2);

# Each service has a database, because it has a ledger.
$node->safe_psql('postgres', 'CREATE DATABASE old');
$node->safe_psql('postgres', 'CREATE DATABASE restless');
$node->safe_psql('old',
	'CREATE EXTENSION timpush;'
	  . $old->create_server_sql('old', max_in_flight => 8));
$node->safe_psql('restless',
	'CREATE EXTENSION timpush;' . $restless->create_server_sql('restless'));
$node->safe_psql('postgres',
		$tim->create_server_sql('chat', max_in_flight => 200)
	  . $tim->create_server_sql('patient', request_timeout => '20s'));

# $n pushes that cannot share a call
sub many
{
	my ($server, $prefix, $n) = @_;
	return
	  "SELECT count(timpush_batch('administrator', ARRAY['$prefix-' || n],
			'title ' || n, 'text', server => '$server'))
		FROM generate_series(1, $n) n";
}

# HTTP/2
$node->safe_psql('postgres', many('chat', 'slow-1000', 200));
settle($node);
my $stats = $tim->stats;
is($stats->{accepted}, 200, 'all of 200 slow requests are answered');
cmp_ok($stats->{max_concurrent}, '>=', 100, 'at the same time');
cmp_ok($stats->{connections}, '<=', 2, 'over two connections at most');
is_deeply([ keys %{ $stats->{protocols} } ], ['HTTP/2.0'], 'of HTTP/2');

# HTTP/1.1
$node->safe_psql('old', many('old', 'slow-20', 200));
settle($node, dbname => 'old');
$stats = $old->stats;
is_deeply([ keys %{ $stats->{protocols} } ], ['HTTP/1.1'], 'HTTP/1.1');
is($stats->{accepted}, 200, 'all requests are answered');
cmp_ok($stats->{max_concurrent}, '>', 1, 'several at the same time');
cmp_ok($stats->{max_concurrent}, '<=', 8, 'but no more than max_in_flight');
cmp_ok($stats->{connections}, '<=', 8, 'over connections that are kept');

# A slow answer is waited for by nobody else.
foreach my $case ([ 'postgres', 'chat', $tim ], [ 'old', 'old', $old ])
{
	my ($dbname, $server, $service) = @$case;
	my $slow =
	  push_id($node, 'slow-4000-1', dbname => $dbname, server => $server);

	wait_until(sub { requests_with($service, 'slow-4000-1') },
		'the slow one');
	$node->safe_psql($dbname, many($server, 'swift', 30));
	settle($node, dbname => $dbname, where => "push_id <> $slow");
	is(status($node, $slow, dbname => $dbname)->{state},
		'sending', "$server: 30 others are done before a slow one");
	settle($node, dbname => $dbname);
}

# A connection that has served before dies without an answer: the journal
# knows of every request that the service has seen, and nobody else makes one.
foreach my $kind (qw(reset-after drop-after reset-during))
{
	push_id($node, "warm-$kind", dbname => 'old');
	settle($node, dbname => 'old');
	my $seen = $old->ledger;
	$old->rules([ { kind => $kind, count => 1 } ]);
	my $id = push_id($node, "dies-$kind", dbname => 'old');
	$node->poll_query_until('old',
		"SELECT state = 'retrying' FROM push_status WHERE push_id = $id");
	my ($request) = requests($node, $id, dbname => 'old');
	my @events = grep { $_->{event} ne 'answer' } $old->ledger;

	is( @{ [ $old->ledger ] } - $seen,
		$kind eq 'reset-during' ? 1 : 2,
		"$kind: one attempt in the ledger");
	is_deeply(
		[
			@$request{qw(attempts resends class)},
			$request->{in_doubt} ? 1 : 0
		],
		[ 1, 0, 'unknown', 1 ],
		"$kind: it is one attempt and in doubt");
	settle($node, dbname => 'old');

	my $warm = (requests_with($old, "warm-$kind"))[0]{connection};
	my @got = requests_with($old, "dies-$kind");

	is($got[0]{connection}, $warm, "$kind: it was a connection in use")
	  unless $kind eq 'reset-during';
	($request) = requests($node, $id, dbname => 'old');
	is_deeply(
		[ @$request{qw(attempts resends state)} ],
		[ 2, 1, 'done' ],
		"$kind: it is sent again, once");
	is(scalar @got, $kind eq 'reset-during' ? 1 : 2, "$kind: by us alone");
	is( $_->{msg_random},
		$request->{msg_random},
		"$kind: with the same MsgRandom") foreach @got;
	ok($request->{result_duplicate}, "$kind: and marked");
}

# A peer that retires connections
$node->safe_psql('restless', many('restless', 'user', 2000));
settle($node, dbname => 'restless');
$stats = $restless->stats;
cmp_ok($stats->{connections}, '>=', 20, 'a peer that retires connections');
is( $node->safe_psql(
		'restless', 'SELECT state, count(*) FROM push_status GROUP BY 1'),
	'sent|2000',
	'all of 2000 requests are sent');
is( $node->safe_psql(
		'restless',
		"SELECT string_agg(DISTINCT error_info, '; ') FROM push_request
		 WHERE maybe_duplicate"),
	'',
	'and none is in doubt');
note 'maybe duplicates: ',
  $node->safe_psql('restless',
	'SELECT sum(maybe_duplicate) FROM push_status');

# Nothing may leave before its claim is durable, also on a standby if commits
# wait for one.
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->restart;
$node->safe_psql(
	'postgres',
	"SET synchronous_commit = local;
	 SELECT timpush_batch('administrator', ARRAY['durable'], 'title', 'text', server => 'chat')"
);
$node->poll_query_until(
	'postgres',
	"SELECT wait_event = 'SyncRep' FROM pg_stat_activity
	 WHERE backend_type = 'timpush worker' AND datname = 'postgres'");
is(scalar requests_with($tim, 'durable'),
	0, 'nothing leaves before its claim is durable');
set_config($node, synchronous_standby_names => '');
settle($node);
is(scalar requests_with($tim, 'durable'), 1, 'but then');

# A peer that does not answer
push_id($node, 'slow-60000-1', server => 'patient', title => 'hangs 1');
push_id(
	$node, [ 'slow-60000-2', 'companion' ],
	server => 'patient',
	title => 'hangs 2');
wait_until(
	sub {
		requests_with($tim, 'slow-60000-1')
		  && requests_with($tim, 'slow-60000-2');
	},
	'requests to hang');
my @hanging = map { (requests_with($tim, "slow-60000-$_"))[0] } 1, 2;
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_request WHERE state = 'sending'
		 AND msg_random IN ($hanging[0]{msg_random}, $hanging[1]{msg_random})"),
	2,
	'requests that the service has are in the journal, committed');
my $worker = worker_pid($node);
is( $node->safe_psql(
		'postgres',
		"SELECT backend_xid, backend_xmin, xact_start, state, query
		 FROM pg_stat_activity WHERE pid = $worker"),
	'|||active|sending',
	'no transaction and no snapshot while requests hang');
is( $node->safe_psql(
		'postgres', "SELECT count(*) FROM pg_locks WHERE pid = $worker"),
	0,
	'and no lock');
my $began = time;
$node->safe_psql(
	'postgres', "SET lock_timeout = '1s';
	BEGIN; LOCK TABLE push_outbox, push_request, push_result, push_error, push_server;
	ALTER TABLE push_request ADD COLUMN mine integer; ROLLBACK;");
$node->safe_psql('postgres', 'VACUUM FULL push_result');
cmp_ok(time - $began, '<', 5, 'DDL and VACUUM do not wait');

# The worker is killed while they hang.  Its successor sends them again.
kill_worker($node);
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_status WHERE server = 'patient' AND waiting = 0"
	),
	0,
	'after a crash they have no outcome yet');
wait_until(sub { requests_with($tim, 'slow-60000-2') >= 2 },
	'requests to be sent again');
foreach my $n (1, 2)
{
	my ($first, $second) = requests_with($tim, "slow-60000-$n");

	is($second->{msg_random}, $first->{msg_random},
		"request $n goes again with the same MsgRandom");
	is($second->{crc32}, $first->{crc32}, 'and is the same byte by byte');
}
is( $node->safe_psql(
		'postgres',
		"SELECT maybe_duplicate, waiting FROM push_status
		 WHERE server = 'patient' ORDER BY push_id"),
	"1|1\n2|2",
	'marked before it leaves');

# They hang again; the extension can be dropped nevertheless.
$worker = worker_pid($node);
$tim->ok_ledger($node, 'tables and ledger agree');
$old->ok_ledger($node, 'and those of HTTP/1.1', dbname => 'old');
$restless->ok_ledger(
	$node,
	'and those of the restless peer',
	dbname => 'restless');

$began = time;
$node->safe_psql('postgres', 'DROP EXTENSION timpush CASCADE');
cmp_ok(time - $began, '<', 5, 'DROP EXTENSION does not wait for an answer');
wait_for_worker($node, 0);
is(worker_pid($node), '', 'and the worker leaves when it has come');
is(scalar log_lines($node, qr/PANIC|exited with exit code [2-9]/),
	0, 'in good order');
$node->stop;
done_testing();
