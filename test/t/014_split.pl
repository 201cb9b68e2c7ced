
# Large pushes go in several requests, small ones of one content share one.

use strict;
use warnings;

use List::Util qw(sum);
use PostgreSQL::Test::Cluster;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main');

$node->safe_psql('postgres',
		$tim->create_server_sql('chat')
	  . $tim->create_server_sql('small', accounts_per_request => 100));

# SQL for the array of accounts prefix-1 .. prefix-n, some of which are others
sub accounts
{
	my ($prefix, $n, $else) = @_;
	my $name = "'$prefix-' || n";

	$name = "CASE $else ELSE $name END" if $else;
	return "ARRAY(SELECT $name FROM generate_series(1, $n) n)";
}

# Sizes of a push's requests, in order
sub sizes
{
	return [ map { $_->{part} } requests($node, $_[0]) ];
}

# All that the service has accepted of those accounts, in order of requests
sub received
{
	my ($prefix, @requests) = @_;
	my %by_random = map { $_->{msg_random} => $_->{accounts} } $tim->accepted;

	return map { @{ $by_random{ $_->{msg_random} } // [] } } @requests;
}

my $id =
  push_id($node, \accounts('a', 1201), server => 'chat', data_id => 'x');
settle($node);
is_deeply(sizes($id), [ 500, 500, 201 ], '1201 accounts are three requests');
is_deeply(
	[ received('a', requests($node, $id)) ],
	[ map { "a-$_" } 1 .. 1201 ],
	'that hold each account once and in order');
my $status = status($node, $id);
is_deeply(
	[ @$status{qw(state accounts sent waiting data_id)} ],
	[ 'sent', 1201, 1201, 0, 'x' ],
	'of one push');
is(scalar @{ $status->{task_ids} }, 3, 'with a TaskId each');

is_deeply(
	[
		map {
			my $n = $_;
			my $one = push_id($node, \accounts("b$n", $n), server => 'chat');
			settle($node);
			sizes($one);
		} 1,
		500, 501,
		1000
	],
	[ [1], [500], [ 500, 1 ], [ 500, 500 ] ],
	'500 is the limit');

$id = push_id($node, \accounts('c', 250), server => 'small');
settle($node);
is_deeply(sizes($id), [ 100, 100, 50 ], 'accounts_per_request');

# Accounts that fail are counted over all slices, and so is what is refused.
$id = push_id(
	$node,
	\accounts('d', 250, "WHEN n % 50 = 0 THEN 'nobody-' || n"),
	server => 'small');
my $refused = push_id(
	$node,
	\accounts('e', 250, "WHEN n = 150 THEN 'code-90001'"),
	server => 'small',
	title => 'refused');
settle($node);
$status = status($node, $id);
is_deeply(
	[ @$status{qw(state sent failed)} ],
	[ 'partial', 245, 5 ],
	'failed accounts of all slices add up');
is(scalar errors($node, $id), 5, 'and each is named');
$status = status($node, $refused);
is_deeply(
	[ @$status{qw(state sent failed error_code)} ],
	[ 'partial', 150, 100, 90001 ],
	'a slice that is refused fails alone');

# Pushes of one content that are committed together share a call.
$node->safe_psql('postgres', <<'SQL');
SELECT timpush_batch('administrator', ARRAY['f' || n, 'g' || n, 'nobody-f' || n],
    'shared', 'text', server => 'chat')
FROM generate_series(1, 20) n;
SQL
settle($node);
is( $node->safe_psql(
		'postgres',
		"SELECT count(*), sum(cardinality(accounts)) FROM push_request
		 WHERE content->'OfflinePushInfo'->>'Title' = 'shared'"),
	'1|60',
	'pushes of one content share a call');
is( $node->safe_psql(
		'postgres',
		"SELECT state, count(*), sum(sent), sum(failed) FROM push_status
		 WHERE push_id IN (SELECT push_id FROM push_error WHERE account LIKE 'nobody-f%')
		 GROUP BY 1"),
	'partial|20|40|20',
	'and each knows its own accounts');

# An account stands once in a call; its second push waits for a later one.
$node->safe_psql('postgres', <<'SQL');
SELECT timpush_batch('administrator', ARRAY['twice', 'once' || n], 'again', 'text',
    server => 'chat')
FROM generate_series(1, 2) n;
SQL
settle($node);
my @twice = requests_with($tim, 'twice');
is(scalar @twice, 2, 'an account of two pushes is in two calls');
isnt($twice[0]{msg_random}, $twice[1]{msg_random}, 'that are different');
ok(!grep({ @{ $_->{dup_accounts} // [] } } @twice), 'and once in each');

# A large one
$id = push_id($node, \accounts('z', 100_000), server => 'chat');
settle($node);
$status = status($node, $id);
is_deeply(
	[ @$status{qw(state accounts sent maybe_duplicate)} ],
	[ 'sent', 100_000, 100_000, 0 ],
	'a push of 100,000 accounts');
is_deeply(sizes($id), [ (500) x 200 ], 'is 200 full requests');
is(scalar received('z', requests($node, $id)), 100_000, 'that arrive');

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
