
# What leaves when, and with what: priority, send_at and expires_at act until
# the last moment, pushes of one content share calls, and an account gets the
# same content at most once a second.

use strict;
use warnings;

use List::Util qw(max min sum);
use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

# Servers of different apps, so that one's limit is not the other's
my $tim = FakeTIM->new(apps => { map { $_ => 'key' } 1001, 1002 })->start;
my $node = start_node('main');

$node->safe_psql(
	'postgres',
	$tim->create_server_sql('chat')
	  . $tim->create_server_sql(
		'paced',
		sdkappid => 1002,
		secret_key => 'key',
		requests_per_second => 20)
	  . $tim->create_server_sql(
		'slow',
		sdkappid => 1001,
		secret_key => 'key',
		requests_per_second => 2));

# When the requests with the account arrived, in seconds, in order.
sub arrivals
{
	my ($account) = @_;
	return map { $_->{time} / 1e6 } requests_with($tim, $account);
}

# The sizes of all accepted requests with that title, in order.
sub sizes
{
	my ($title) = @_;
	return [
		map { scalar @{ $_->{accounts} } }
		grep { $_->{title} eq $title } $tim->accepted
	];
}

# The first account of each accepted request whose account has that prefix.
sub order
{
	my ($prefix) = @_;
	return [ grep { /^$prefix/ } map { $_->{accounts}[0] } $tim->accepted ];
}

# Enqueue in one transaction: a list of [ account or SQL of accounts, arguments ].
sub together
{
	my ($server, @pushes) = @_;
	my $sql = "BEGIN;\n";

	foreach my $push (@pushes)
	{
		my ($to, %options) = @$push;
		my %arguments = (
			title => 'together',
			descr => 'text',
			server => $server,
			%options);

		$sql .= "SELECT timpush_batch('administrator', "
		  . (ref $to ? $$to : 'ARRAY[' . quote($to) . ']');
		$sql .=
		  ", \"$_\" => "
		  . (ref $arguments{$_} ? ${ $arguments{$_} } : quote($arguments{$_}))
		  foreach sort keys %arguments;
		$sql .= ");\n";
	}
	return split /\n/, $node->safe_psql('postgres', $sql . 'COMMIT');
}

#
# One account, one content: a second apart
#

my @ids = together('chat', map { ['again'] } 1 .. 4);
settle($node);
my @times = arrivals('again');
is(scalar @times, 4, 'four equal pushes to one account: four requests');

# the service's clock runs when a request has arrived, which may vary a little
cmp_ok(min(map { $times[$_] - $times[ $_ - 1 ] } 1 .. 3),
	'>', 0.95, 'that are a second apart');
cmp_ok($times[3] - $times[0], '<', 5, 'and no more than that');
is( $node->safe_psql(
		'postgres',
		'SELECT string_agg(push_id::text, \',\' ORDER BY request_id) FROM push_result WHERE push_id IN ('
		  . join(', ', @ids) . ')'),
	join(',', @ids),
	'the oldest first');

@ids = together('chat', map { [ 'other', title => "other $_" ] } 1 .. 4);
settle($node);
@times = arrivals('other');
is(scalar @times, 4, 'four pushes of other contents');
cmp_ok($times[3] - $times[0], '<', 0.9, 'do not wait for each other');

# a large push meets an account of a small one in its middle
@ids = together(
	'chat',
	[ 'meet-700', title => 'meet' ],
	[
		\"ARRAY(SELECT 'meet-' || i FROM generate_series(1, 1000) i)",
		title => 'meet'
	]);
settle($node);
@times = arrivals('meet-700');
is(scalar @times, 2, 'an account of a small and of a large push: twice');
cmp_ok($times[1] - $times[0], '>', 0.95, 'a second apart');
is(sum(@{ sizes('meet') }), 1001, 'and all others once');
is(status($node, $ids[1])->{sent}, 1000, 'the large push is sent');

#
# Sharing calls
#

sub many
{
	my ($prefix, $n) = @_;
	return \"ARRAY(SELECT '$prefix-' || i FROM generate_series(1, $n) i)";
}

# whether calls are scarce or not
foreach my $server ('chat', 'paced')
{
	together(
		$server,
		[ many("$server-slice", 1200), title => "slices $server" ],
		[ many("$server-ride", 250), title => "slices $server" ],
		[ many("$server-too", 60), title => "slices $server" ],
		[ many("$server-last", 50), title => "slices $server" ]);
	settle($node);
	is_deeply(
		[ sort { $b <=> $a } @{ sizes("slices $server") } ],
		[ 500, 500, 500, 60 ],
		"$server: the last slice takes along what fits whole");
}

together(
	'chat',
	(map { [ "one-$_", title => 'shared' ] } 1 .. 600),
	[ 'alone', title => 'shared', descr => 'other' ]);
settle($node);
is_deeply(
	[ sort { $b <=> $a } @{ sizes('shared') } ],
	[ 500, 100, 1 ],
	'equal contents share calls, others do not');

#
# Late binding, on a server that makes two calls a second
#

@ids = together(
	'slow',
	(map { [ "low-$_", title => "low $_", priority => 1 ] } 1 .. 4),
	[
		'low-expires',
		title => 'expires',
		priority => 0,
		expires_at => \"clock_timestamp() + '1.2s'"
	]);
wait_until(sub { @{ order('low') } >= 1 }, 'the first to leave');
push_id(
	$node, 'low-but-high',
	server => 'slow',
	title => 'high',
	priority => 9);
settle($node);
my @order = @{ order('low') };
my ($place) = grep { $order[$_] eq 'low-but-high' } 0 .. $#order;
cmp_ok($place, '<=', 2, 'a high priority overtakes what waits');
is_deeply(
	[ grep { $_ ne 'low-but-high' } @order ],
	[ map { "low-$_" } 1 .. 4 ],
	'the others keep their order, and what has expired is not sent');
is(status($node, $ids[4])->{state}, 'expired', 'but recorded');

# the same content: a newer push of high priority takes the old along
together(
	'slow',
	[ 'urge-first', title => 'urge first', priority => 5 ],
	(map { [ "urge-old-$_", title => "urge $_", priority => 1 ] } 1 .. 3),
	[ 'urge-same', title => 'urge', priority => 1 ],
	[ 'urge-new', title => 'urge', priority => 4 ]);
settle($node);
is(scalar(requests_with($tim, 'urge-same')),
	1, 'a push of low priority is sent once');
is_deeply(
	[
		sort map { @{ $_->{accounts} } }
		grep { $_->{title} eq 'urge' } $tim->accepted
	],
	[ 'urge-new', 'urge-same' ],
	'with the newer one of its content');
is_deeply(
	order('urge'),
	[ 'urge-first', 'urge-new', map { "urge-old-$_" } 1 .. 3 ],
	'at the place of the head');

#
# send_at
#

my $begin = time;
@ids = together(
	'chat',
	[ 'at-3', title => 'at 3', send_at => \"clock_timestamp() + '2.4s'" ],
	[ 'at-1', title => 'at 1', send_at => \"clock_timestamp() + '0.8s'" ],
	[ 'at-2', title => 'at 2', send_at => \"clock_timestamp() + '1.6s'" ],
	[
		'at-0',
		title => 'at 0',
		send_at => \"clock_timestamp() - interval '1h'"
	]);
is(status($node, $ids[0])->{state},
	'scheduled', 'what is to be sent later is scheduled');
settle($node);
is_deeply(order('at'), [ map { "at-$_" } 0 .. 3 ], 'send_at orders');
my %planned = (1 => 0.8, 2 => 1.6, 3 => 2.4);
foreach my $n (1 .. 3)
{
	my ($time) = arrivals("at-$n");

	cmp_ok($time - $begin, '>', $planned{$n}, "at-$n does not leave before");
	cmp_ok($time - $begin, '<', $planned{$n} + 2,
		"at-$n does not leave late");
}

# pushes that go to one second leave in the order in which they came
together(
	'slow',
	map {
		[
			"tie-$_",
			title => "tie $_",
			send_at => \"date_trunc('second', now()) + '1s'"
		]
	} 1 .. 4);
settle($node);
is_deeply(order('tie'), [ map { "tie-$_" } 1 .. 4 ], 'ties go by id');

#
# expires_at and timpush.default_ttl
#

@ids = together(
	'slow',
	map {
		[
			"ttl-$_",
			title => "ttl $_",
			expires_at => \"clock_timestamp() + '1.7s'"
		]
	} 1 .. 8);
settle($node);
my $sent = @{ order('ttl') };
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FILTER (WHERE state = 'sent'), count(*) FILTER (WHERE state = 'expired')
		 FROM push_status WHERE push_id BETWEEN $ids[0] AND $ids[-1]"),
	$sent . '|' . (8 - $sent),
	'each is sent or expires');
cmp_ok($sent, '<', 6, 'most of them expire before their turn');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_result r JOIN push_request q ON q.id = r.request_id
		 WHERE push_id BETWEEN $ids[0] AND $ids[-1] AND q.first_sent_at >= r.expires_at"
	),
	0,
	'none leaves after its time');

is_deeply(
	[
		split /\n/,
		$node->safe_psql(
			'postgres', q(
SET timpush.default_ttl = '90min';
BEGIN;
SELECT timpush_batch('administrator', ARRAY['ttl'], 'x', 'y', server => 'chat', send_at => '2100-01-01 UTC') AS a \gset
SET LOCAL timpush.default_ttl = 0;
SELECT timpush_batch('administrator', ARRAY['ttl'], 'x', 'y', server => 'chat', send_at => '2100-01-01 UTC') AS b \gset
SELECT expires_at - send_at FROM push_outbox WHERE id = :a;
SELECT expires_at IS NULL FROM push_outbox WHERE id = :b;
ROLLBACK))
	],
	[ '01:30:00', 't' ],
	'timpush.default_ttl counts from send_at; 0 is for ever');

# an account that has just been sent the same does not outlive its push
@ids = together(
	'chat',
	[ 'brief', title => 'brief' ],
	[
		'brief',
		title => 'brief',
		expires_at => \"clock_timestamp() + '0.5s'"
	]);
settle($node);
is(join(' ', map { status($node, $_)->{state} } @ids),
	'sent expired', 'what must wait a second may expire meanwhile');

# what nobody can wait for hinders nobody
push_id(
	$node, 'far',
	server => 'chat',
	send_at => '294276-12-31 23:59:59 UTC',
	expires_at => 'infinity');
my $id = push_id($node, 'near', server => 'chat');
settle($node, where => "push_id = $id");
is(status($node, $id)->{state}, 'sent', 'a far future hinders nobody');

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
