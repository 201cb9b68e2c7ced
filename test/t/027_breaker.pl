
# A server that fails is left alone: nothing is claimed for it but one probe at
# a time, so that an outage leaves little in doubt, and no other server minds.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

my $tim =
  FakeTIM->new(apps => { map { $_ => 'key' } 1001, 1002, 1003 })->start;
my $node = start_node('main');

$node->safe_psql(
	'postgres',
	join '',
	map {
		$tim->create_server_sql(
			$_->[0],
			sdkappid => $_->[1],
			secret_key => 'key',
			request_timeout => '3.5s',
			max_in_flight => 4)
	}[ broken => 1001 ],
	[ half => 1002 ],
	[ good => 1003 ]);

# $n pushes that cannot share a call, to accounts that are named after them
sub enqueue
{
	my ($server, $prefix, $n) = @_;

	$node->safe_psql('postgres', <<"SQL");
SELECT count(timpush_batch('administrator', ARRAY['$prefix-' || n], '$prefix ' || n, 'text',
                           server => '$server'))
FROM generate_series(1, $n) n
SQL
	return;
}

sub rule
{
	my ($app, %rule) = @_;

	$tim->rules([ { app => $app, %rule } ]);
	return;
}

sub calls
{
	my ($app) = @_;
	return
	  grep { $_->{event} eq 'request' && $_->{app} == $app } $tim->ledger;
}

sub tried
{
	my ($server) = @_;
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM push_request WHERE server = '$server'");
}

#
# An outage: answers do not come
#
rule(1001, kind => 'reset-after');
my $begin = time;
enqueue('broken', 'broken', 100);
enqueue('good', 'good', 100);
settle($node, where => "server = 'good'");
cmp_ok(time - $begin, '<', 4, 'another server on the same host goes on');
$node->poll_query_until('postgres',
	"SELECT reason IS NOT NULL FROM push_server WHERE server = 'broken'")
  or die "no trouble is noted\n";
is(server_state($node, 'broken')->{state},
	'active', 'the server is not suspended');

# five failures, and what was in flight with them
my $first = tried('broken');
cmp_ok($first, '>=', 5, 'five requests fail');
cmp_ok($first, '<=', 9, 'and hardly more are claimed');
sleep 2;
is(tried('broken'), $first, 'then it rests');

# what was claimed when it opened may have been kept back
my $called = calls(1001);
wait_until(sub { calls(1001) > $called }, 'the probe');
my $probe = (calls(1001))[$called];
my $last = (calls(1001))[ $called - 1 ];
my $rest = ($probe->{time} - $last->{time}) / 1e6;
cmp_ok($rest, '>', 4.5, 'for five seconds');
sleep 1;
is(scalar calls(1001), $called + 1, 'until a probe goes, alone');
cmp_ok(tried('broken'), '<=', $first + 1, 'for which one request is claimed');

$tim->clear_rules;
settle($node);
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_status WHERE server = 'broken' AND state <> 'sent'"
	),
	0,
	'all is sent when the outage is over');
is(server_state($node, 'broken')->{reason}, undef, 'and nothing is wrong');
cmp_ok(
	$node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_status WHERE server = 'broken' AND maybe_duplicate > 0"
	),
	'<=',
	$first + 1,
	'only what was tried in the outage is in doubt');

# options that change say that it may be mended
rule(1001, kind => 'code', arg => 91000);
enqueue('broken', 'altered', 20);
wait_until(sub { server_state($node, 'broken')->{reason} }, 'the trouble');
$tim->clear_rules;
$begin = time;
$node->safe_psql('postgres',
	"ALTER SERVER broken OPTIONS (SET max_in_flight '5')");
settle($node);
cmp_ok(time - $begin, '<', 4.5, 'ALTER SERVER ends the rest');

#
# Half of all: never five in a row, but too often
#
$node->safe_psql('postgres',
	"ALTER SERVER half OPTIONS (SET max_in_flight '1')");
$node->safe_psql('postgres', <<'SQL');
SELECT count(timpush_batch('administrator',
    ARRAY[CASE n % 2 WHEN 0 THEN 'first9-code-91000-' ELSE 'well-' END || n], 'half ' || n, 'text',
    server => 'half'))
FROM generate_series(1, 60) n
SQL
$node->poll_query_until('postgres',
	"SELECT reason IS NOT NULL FROM push_server WHERE server = 'half'")
  or die "no trouble is noted\n";
my $half = tried('half');
cmp_ok($half, '>=', 9, 'of ten requests half fail');
cmp_ok($half, '<=', 12, 'and no more are claimed');
sleep 1;
is(tried('half'), $half, 'for a while');

# what has failed goes on failing now and then; it has a server of its own
$node->safe_psql('postgres',
	"SELECT count(timpush_cancel(push_id)) FROM push_status WHERE waiting > 0"
);
settle($node);
is( $node->safe_psql(
		'postgres',
		'SELECT count(*) FROM push_status WHERE sent + cancelled <> accounts'
	),
	0,
	'all has an outcome');

is(scalar log_lines($node, qr/server "good"/),
	0, 'the other server has had no trouble');
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
