
# MsgRandom: the service drops a call whose MsgRandom it has just seen from the
# same app, so servers and databases that share an app must not draw alike.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;

use FakeTIM;
use TimpushTest;

my $calls = 400;

my $tim = FakeTIM->new->start;
my $node = start_node('main', 'timpush.idle_exit' => '1s');

$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('second', 'CREATE EXTENSION timpush');
foreach my $db ('postgres', 'second')
{
	$node->safe_psql($db,
		$tim->create_server_sql('chat') . $tim->create_server_sql('other'));
}

# One call for each push
sub enqueue
{
	my ($db, $server, $title) = @_;

	$node->safe_psql($db, <<"SQL");
SELECT count(timpush_batch('administrator', ARRAY['$db-$server'], '$title ' || i, 'text',
                           server => '$server'))
FROM generate_series(1, $calls) i
SQL
	settle($node, dbname => $db);
	return;
}

# The numbers of a database's calls of a server, in order
sub numbers
{
	my ($db, $server) = @_;
	return split /\n/,
	  $node->safe_psql($db,
		"SELECT msg_random FROM push_request WHERE server = '$server' ORDER BY id"
	  );
}

my %seen;
my %drawn;
foreach my $db ('postgres', 'second')
{
	foreach my $server ('chat', 'other')
	{
		enqueue($db, $server, 'title');
		$drawn{"$db $server"} = [ numbers($db, $server) ];
		is(scalar @{ $drawn{"$db $server"} },
			$calls, "$db, $server: a number for each call");
		$seen{$_}++ foreach @{ $drawn{"$db $server"} };
	}
}
is(scalar(grep { $_ > 1 } values %seen),
	0, 'no number is drawn twice by servers and databases of one app');
is_deeply(
	[ sort { $a <=> $b } map { $_->{msg_random} } $tim->accepted ],
	[ sort { $a <=> $b } keys %seen ],
	'they are what the service got');

# The numbers of consecutive calls tell nothing of each other: not the same
# step from one to the next in two sequences, as an offset would give.
sub steps
{
	my ($numbers) = @_;
	return
	  map { ($numbers->[$_] - $numbers->[ $_ - 1 ]) % 2**32 } 1 .. $#$numbers;
}

my %step;
$step{$_}++ foreach map { steps($_) } values %drawn;
cmp_ok((sort { $b <=> $a } values %step)[0],
	'<', 3, 'nor do the sequences run in parallel');

# A server made anew draws a key of its own
my $key = "SELECT random_key FROM push_server_key WHERE server = 'other'";
my $before = $node->safe_psql('postgres', $key);
$node->safe_psql('postgres',
	'DROP SERVER other CASCADE; ' . $tim->create_server_sql('other'));
enqueue('postgres', 'other', 'anew');
isnt($node->safe_psql('postgres', $key),
	$before, 'a server made anew draws another key');
my %again;
$again{$_}++ foreach numbers('postgres', 'other');
is(scalar keys %again, 2 * $calls, 'and other numbers');

# ... which it keeps over a restart
my $now = $node->safe_psql('postgres', $key);
$node->restart;
enqueue('postgres', 'other', 'restarted');
is($node->safe_psql('postgres', $key), $now, 'the key outlives a restart');
$again{$_}++ foreach numbers('postgres', 'other');
is(scalar keys %again, 3 * $calls, 'and no number comes again');

# A copy of a template has the original's key and goes on counting where that
# does; both must not call the service with the same numbers.
wait_for_worker($node, 0);
$node->safe_psql('template1', 'CREATE DATABASE twin TEMPLATE postgres');
$node->safe_psql('twin', "SELECT timpush_resume('chat')");
my $last = $node->safe_psql('twin', 'SELECT max(id) FROM push_request');
my %number;
foreach my $db ('postgres', 'twin')
{
	enqueue($db, 'chat', 'twins');
	$number{$_}++
	  foreach split /\n/,
	  $node->safe_psql($db,
		"SELECT msg_random FROM push_request WHERE id > $last");
}
is(scalar keys %number,
	2 * $calls, 'nor by a database and a copy that goes on from it');

$tim->ok_ledger(
	$node,
	'tables and ledger agree',
	dbname => [ 'postgres', 'second', 'twin' ]);
$node->stop;
done_testing();
