
# What the counters say is what the service and the tables say: each moves when
# it should and only then.  Who may look at them and set them back; what
# becomes of them when a server or a database goes; and what a look at the
# queue costs.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node(
	'main',
	max_prepared_transactions => 2,
	fsync => 'off');

sub sql
{
	my ($query, $dbname) = @_;
	return $node->safe_psql($dbname // 'postgres', $query);
}

sub stat_of
{
	my ($server, $dbname) = @_;
	$dbname //= 'postgres';
	return row($node,
		"SELECT * FROM pg_stat_timpush WHERE server = '$server' AND datname = '$dbname'"
	);
}

# Counters of transactions move a moment after others see what they did.
sub stat_becomes
{
	my ($server, $column, $value, $name) = @_;

	ok( $node->poll_query_until(
			'postgres',
			"SELECT $column = $value FROM pg_stat_timpush
			 WHERE server = '$server' AND datname = 'postgres'"),
		$name) or note explain stat_of($server);
	return;
}

# one call at a time, so that a connection that breaks takes no other along
sql(    $tim->create_server_sql('chat', max_in_flight => 1)
	  . $tim->create_server_sql('other'));

#
# Enqueued: by commits alone
#
sql(q(SELECT timpush_pause('other')));
push_id($node, [ map { "plain-$_" } 1 .. 3 ], server => 'other');
is(stat_of('other')->{enqueued}, 3, 'a commit counts its accounts');

my $call =
  q(PERFORM timpush_batch('boss', ARRAY['%s'], 't', 'd', server => 'other'););
my $plpgsql = sprintf <<"SQL", map { $_ } qw(kept caught again lost last);
DO \$\$
BEGIN
  $call
  BEGIN
    $call
    $call
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
  BEGIN
    $call
    RAISE 'undone';
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
  $call
END \$\$;
SQL
sql($plpgsql);
is(stat_of('other')->{enqueued},
	7, 'of subtransactions those count that were committed');
sql("BEGIN; $plpgsql ROLLBACK");
sql("BEGIN; SAVEPOINT a; SAVEPOINT b; $plpgsql RELEASE b; ROLLBACK TO a; COMMIT"
);
is(stat_of('other')->{enqueued}, 7, 'what is rolled back does not');
sql("UPDATE push_outbox SET priority = 7 WHERE server = 'other'");
is(stat_of('other')->{enqueued}, 7, 'nor does an UPDATE');
sql(q(SELECT timpush_batch('boss', '{twice}', 't', 'd', server => 'other', dedup_key => 'k')
	  FROM generate_series(1, 2)));
is(stat_of('other')->{enqueued},
	8, 'nor a push whose deduplication key is known');
sql(q(INSERT INTO push_outbox (server, from_account, to_accounts, title, descr)
	  SELECT 'other', 'boss', '{many}', 't' || i, 'd' FROM generate_series(1, 5) i)
);
is(stat_of('other')->{enqueued}, 13, 'rows of an INSERT do');
is(stat_of('other')->{claimed}, 0, 'and none of all that was claimed');
is(stat_of('other')->{requests}, 0, 'nor sent');
sql("BEGIN; $plpgsql PREPARE TRANSACTION 'p'");
sql("COMMIT PREPARED 'p'");
is(stat_of('other')->{enqueued},
	13, 'what was prepared is known not to be counted');
stat_becomes('other', 'state', q('paused'), 'a pause is seen');
like(stat_of('other')->{reason}, qr/^paused by /, 'with its reason');

#
# A run with mixed outcomes
#
my %hold = (server => 'chat', on_unknown => 'hold');
push_id($node, "good-$_", server => 'chat') foreach 1 .. 40;
push_id($node, [ "nobody-$_", "fine-$_" ], server => 'chat', title => "p$_")
  foreach 1 .. 3;

# the answer's text has this account's name in it
push_id(
	$node,
	[ "code-90001-$_", 'ordered' ],
	server => 'chat',
	title => "f$_") foreach 1 .. 2;
push_id(
	$node, [ 'acctN-70169-1', 'rest' ],
	server => 'chat',
	title => 'again');
push_id($node, 'first1-code-91000', server => 'chat', title => 'transient');
push_id($node, 'first1-code-60011', server => 'chat', title => 'throttled');
push_id($node, "reset-after-$_", %hold, title => "held $_") foreach 1 .. 2;
push_id($node, 'first1-reset-after', server => 'chat', title => 'doubt');
sql(q(SELECT timpush_cancel(timpush_batch('boss', '{c1,c2}', 't', 'd', server => 'chat', send_at => 'tomorrow')))
);
push_id(
	$node, [qw(e1 e2 e3)],
	server => 'other',
	expires_at => scalar(gmtime(time + 2)) . ' UTC');
settle($node, where => "server = 'chat'");
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM push_status WHERE state = 'expired'")
  or die 'nothing expires';

my $tables = row($node, <<'SQL');
SELECT sum(sent) AS accepted, sum(failed) AS failed, sum(cancelled) AS cancelled, sum(unknown) AS unknown,
       sum(accounts) AS enqueued, sum(maybe_duplicate) AS maybe_duplicate,
       sum(accounts) - sum(cancelled) AS claimed
FROM push_status WHERE server = 'chat'
SQL
foreach my $column (sort keys %$tables)
{
	cmp_ok($tables->{$column}, '>', 0, "$column: there is something to count")
	  unless $column eq 'claimed';
	stat_becomes('chat', $column, $tables->{$column},
		"$column is what the tables say");
}
my @ledger = $tim->ledger;
my @calls = grep { $_->{event} eq 'request' } @ledger;
my $stat = stat_of('chat');
is($stat->{requests}, scalar(@calls), 'requests are those of the ledger');
is( $stat->{requests} - $stat->{retries},
	sql("SELECT count(*) FROM push_request WHERE server = 'chat' AND first_sent_at IS NOT NULL"
	),
	'retries are what exceeds the first attempts');
cmp_ok($stat->{retries}, '>', 0, 'of which there are some');
is( $stat->{throttles},
	scalar(
		grep { $_->{event} eq 'answer' && ($_->{code} // 0) == 60011 }
		  @ledger),
	'throttles are those of the ledger');
is($stat->{throttles}, 1, 'which has one');
is($stat->{suspensions}, 0, 'the server was never suspended');
cmp_ok($stat->{connections}, '>=', 1, 'a connection was opened');
cmp_ok($stat->{bytes}, '>', 100 * @calls, 'bytes were sent');
is($stat->{in_flight}, 0, 'nothing is on its way');
is($stat->{state}, 'active', 'the server is active');
is($stat->{expired}, 0, 'nothing of it has expired');
stat_becomes('other', 'expired', 3, 'but of the other one');
is(stat_of('other')->{requests}, 0, 'of which nothing was sent');
is($stat->{rate}, undef, 'no rate without a limit');

$tim->ok_ledger($node, 'tables and ledger agree');

# in whatever state, the sum is what was enqueued
is( $stat->{accepted} +
	  $stat->{failed} +
	  $stat->{expired} +
	  $stat->{cancelled} +
	  $stat->{unknown},
	$stat->{enqueued},
	'the account closes');

#
# Errors and times
#
my %error = map { ($_->{error_code} // '') . " $_->{class}" => $_ }
  rows($node, 'SELECT * FROM pg_stat_timpush_errors');
is($error{'90001 bad-request'}{last_hour}, 2, 'errors are counted by code');
is($error{'90001 bad-request'}{last_day}, 2, 'for the day as well');
is($error{'70107 bad-request'}{last_hour}, 3, 'and those of accounts');
is($error{'91000 transient'}{last_hour}, 1, 'of each class');
is($error{'60011 throttled'}{last_hour}, 1, 'a throttle answer too');
is($error{' unknown'}{last_hour}, 3, 'and what has no code');
is(keys %error, 6, 'and nothing else but one code more')
  or note explain \%error;
like(
	$error{'90001 bad-request'}{last_text},
	qr/^error 90001 as \*{7}$/,
	'with the last text, an account blanked out');

my %count = map { $_->{latency} => $_->{n} } rows($node, <<'SQL');
SELECT latency, sum(count) AS n FROM pg_stat_timpush_latency WHERE server = 'chat' GROUP BY 1
SQL
is($count{'request'}, $stat->{requests}, 'each attempt has a time');
is( $count{'commit to first byte'},
	sql(q(SELECT count(*) FROM push_result r JOIN push_request q ON q.id = r.request_id
		  WHERE r.server = 'chat' AND q.first_sent_at IS NOT NULL)),
	'each part of a push has one to its first byte');
cmp_ok($count{'commit to accepted'}, '>=', 40,
	'and one until it is accepted');
like(
	sql(q(SELECT string_agg(bar, ',' ORDER BY up_to) FROM pg_stat_timpush_latency
		  WHERE server = 'chat' AND latency = 'request')),
	qr/(^|,)#{40}(,|$)/,
	'the longest bar is of the highest count');

#
# No content
#
my $shown =
	sql(q(SELECT to_jsonb(t) FROM pg_stat_timpush t))
  . sql(q(SELECT to_jsonb(t) FROM pg_stat_timpush_errors t))
  . sql(q(SELECT to_jsonb(t) FROM pg_stat_timpush_queue t));
unlike($shown, qr/nobody-|fine-|reset-after/, 'no account is shown');

#
# Who may
#
sql('CREATE ROLE watcher; GRANT pg_monitor TO watcher; CREATE ROLE stranger');
foreach my $view ('', '_queue', '_latency', '_errors')
{
	is( sql("SET ROLE watcher; SELECT count(*) > 0 FROM pg_stat_timpush$view"
		),
		't',
		"pg_monitor reads pg_stat_timpush$view");
	my ($status, undef, $stderr) =
	  $node->psql('postgres',
		"SET ROLE stranger; TABLE pg_stat_timpush$view");
	like($stderr, qr/permission denied/, 'others do not');
}
foreach my $role ('watcher', 'stranger')
{
	my (undef, undef, $stderr) =
	  $node->psql('postgres', "SET ROLE $role; SELECT timpush_stat_reset()");
	like($stderr, qr/permission denied/, "$role may not reset");
}

#
# Reset
#
settle($node, where => "server = 'chat'");
my $other = stat_of('other');
my $before = stat_of('chat');
sql(q(SELECT timpush_stat_reset('chat')));
my $after = stat_of('chat');
is_deeply(
	[
		grep { $after->{$_} }
		  qw(enqueued claimed requests accepted failed bytes connections last_error)
	],
	[],
	'a reset sets all to zero');
isnt($after->{stats_reset}, $before->{stats_reset}, 'and says when');
is_deeply(stat_of('other'), $other, 'and touches no other server');
is( sql(q(SELECT count(*) FROM pg_stat_timpush_errors WHERE server = 'chat')),
	0, 'the errors are forgotten');
is( sql(q(SELECT sum(count) FROM pg_stat_timpush_latency WHERE server = 'chat')
	),
	0,
	'and the times');
sql('SELECT timpush_stat_reset()');
is(stat_of('other')->{enqueued}, 0, 'without a name all are reset');
my (undef, undef, $stderr) =
  $node->psql('postgres', q(SELECT timpush_stat_reset('nothing')));
like($stderr, qr/server "nothing" does not exist/, 'a server has to exist');

#
# State
#
push_id($node, 'code-70009', server => 'chat', title => 'suspends');
stat_becomes('chat', 'state', q('suspended'), 'a suspension is seen');
stat_becomes(
	'chat', 'since',
	quote(server_state($node, 'chat')->{since}),
	'and since when');
$stat = stat_of('chat');
is($stat->{suspensions}, 1, 'and counted');
is($stat->{last_error_code}, 70009, 'with its code');
is(stat_of('other')->{suspensions}, 0, 'for that server alone');
sql(q(ALTER SERVER other OPTIONS (SET requests_per_second '7'); SELECT timpush_resume('other'))
);
stat_becomes('other', 'state', q('active'), 'a server is active again');

# less than what is set, because the throttle answer slowed the app down
$node->poll_query_until('postgres',
	"SELECT rate BETWEEN 4.8 AND 7 AND tokens BETWEEN 0 AND 1 FROM pg_stat_timpush WHERE server = 'other'"
) or die 'the rate is not seen';
pass('the rate in force is shown');

#
# Two databases, and what becomes of them
#
sql('CREATE DATABASE second');
sql('CREATE EXTENSION timpush', 'second');
sql($tim->create_server_sql('chat'), 'second');
push_id($node, [ 'second-1', 'second-2' ], dbname => 'second');
settle($node, dbname => 'second');
$node->poll_query_until('postgres',
	"SELECT accepted = 2 FROM pg_stat_timpush WHERE datname = 'second'")
  or die 'the second database is not counted';
is(stat_of('chat')->{accepted},
	0, 'the server of another database is another one');
sql('SELECT timpush_stat_reset()');
is(stat_of('chat', 'second')->{accepted}, 2, 'its counters as well');
sql('DROP SERVER chat CASCADE');
$node->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_timpush WHERE server = 'chat' AND datname = 'postgres'"
) or die 'the server stays';
is( sql(q(SELECT string_agg(datname || '.' || server, ' ' ORDER BY 1) FROM timpush_stat_servers() s
		  JOIN pg_database d ON d.oid = datid)),
	'postgres.other second.chat',
	'a dropped server leaves its place');
sql('DROP DATABASE second');
is(sql('SELECT count(*) FROM timpush_stat_servers()'),
	1, 'a dropped database too');

#
# The queue
#
sql(q(SELECT timpush_pause('other'); DELETE FROM push_outbox));

sub queue
{
	return row($node, 'SELECT * FROM pg_stat_timpush_queue');
}

sub fill
{
	my ($n, $priority, $send_at) = @_;
	my $id = push_id(
		$node, [ 'q1', 'q2' ],
		server => 'other',
		priority => $priority,
		send_at => $send_at);

	sql(<<"SQL");
INSERT INTO push_outbox (server, from_account, to_accounts, title, descr, priority, send_at)
SELECT server, from_account, to_accounts, title || i, descr, priority, send_at
FROM push_outbox, generate_series(1, $n - 1) i WHERE id = $id
SQL
	return;
}

is_deeply(
	queue(),
	{
		server => 'other',
		ready => 0,
		scheduled => 0,
		retrying => 0,
		held => 0,
		oldest_ready_age => undef,
		drain_time => '00:00:00'
	},
	'an empty queue');
fill(30, 4, '2001-01-01');
fill(20, 9, '2002-01-01');
fill(10, 4, '2100-01-01');
my $queue = queue();
is_deeply(
	[ @$queue{qw(ready scheduled retrying held)} ],
	[ 0, 10, 0, 50 ],
	'what waits for a paused server');
is( sql(q(SELECT oldest_ready_age BETWEEN now() - '2001-01-01' - interval '1 min'
		  AND now() - '2001-01-01' + interval '1 min' FROM pg_stat_timpush_queue)),
	't',
	'since when');
is($queue->{drain_time}, undef, 'and nobody knows until when');

# Blocks that a look touches
sub cost
{
	my $plan = sql(
			'SET track_io_timing = off; SELECT 1 FROM pg_stat_timpush_queue; '
		  . 'EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) TABLE pg_stat_timpush_queue'
	);
	my ($hit) = $plan =~ /Buffers: shared.*?hit=(\d+)/;
	my ($read) = $plan =~ /Buffers: shared.*?read=(\d+)/;

	return ($hit // 0) + ($read // 0);
}

my $many =
  $ENV{PG_TEST_EXTRA} && $ENV{PG_TEST_EXTRA} =~ /long/ ? 1_000_000 : 200_000;

sql('DELETE FROM push_outbox; VACUUM push_outbox');
fill(20_000, 4, '2001-01-01');
fill(20_000, 4, '2100-01-01');
sql('VACUUM ANALYZE push_outbox');
my $few_cost = cost();
fill($many, 4, '2001-02-01');
fill($many, 4, '2100-02-01');
sql('VACUUM ANALYZE push_outbox');
my $many_cost = cost();
note "20,000: $few_cost blocks; $many: $many_cost blocks";
cmp_ok($few_cost, '>', 20, 'the blocks are seen');
cmp_ok(
	$many_cost, '<',
	$few_cost * 1.1,
	'a look costs the same with a long queue');
$queue = queue();
cmp_ok(abs($queue->{held} / ($many + 20_000) - 1),
	'<', 0.2, 'and estimates how long it is');
cmp_ok(abs($queue->{scheduled} / ($many + 20_000) - 1),
	'<', 0.2, 'for what is scheduled too');
sql('TRUNCATE push_outbox');

$node->stop;
done_testing();
