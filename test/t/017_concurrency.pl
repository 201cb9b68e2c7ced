
# Many sessions that commit and roll back, and a worker that is killed while
# they do: in the end everything committed is accounted for, and nothing else.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main', restart_after_crash => 'on');
my $script = PostgreSQL::Test::Utils::tempdir . '/enqueue.sql';

# Every transaction notes its push, so that the note is there if the push is.
# A quarter rolls back, and every eighth takes a second push back.
$node->safe_psql('postgres', $tim->create_server_sql('chat') . <<'SQL');
CREATE SEQUENCE numbers;
CREATE TABLE noted (push_id bigint, account text);
CREATE FUNCTION enqueue(prefix text) RETURNS void LANGUAGE sql AS $$
  WITH a AS (SELECT prefix || '-' || nextval('numbers') AS account),
       p AS (SELECT account, timpush_batch('administrator', ARRAY[account],
                'title ' || mod(currval('numbers'), 100), 'text') AS id FROM a)
  INSERT INTO noted SELECT id, account FROM p;
$$;
SQL
append_to_file($script, <<'SQL');
\set kind random(1, 8)
BEGIN;
\if :kind <= 2
SELECT enqueue('gone');
ROLLBACK;
\elif :kind = 3
SELECT enqueue('kept');
SAVEPOINT a;
SELECT enqueue('gone');
ROLLBACK TO a;
COMMIT;
\else
SELECT enqueue('kept');
COMMIT;
\endif
SQL

sub pgbench
{
	my ($transactions) = @_;
	my ($out, $err) = ('', '');

	return IPC::Run::start(
		[
			'pgbench', '-n', '-c', 4, '-j', 2, '-t', $transactions, '-f',
			$script, '-h', $node->host, '-p', $node->port, 'postgres'
		],
		'<',
		\undef,
		'>',
		\$out,
		'2>',
		\$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
}

# The worker is killed while four sessions are at it; PostgreSQL then ends all
# sessions and recovers.
my $bench = pgbench(100_000);
foreach my $count (200, 400)
{
	$node->poll_query_until('postgres',
		"SELECT count(*) > $count FROM push_result WHERE state = 'sent'");
	last if $count == 400;
	kill_worker($node);
	$bench->finish;
	isnt($bench->result(0), 0, 'the sessions are ended by the crash');
	$bench = pgbench(250);
}
ok($bench->finish, 'sessions after the recovery');
settle($node);

is($node->safe_psql('postgres', "SELECT count(*) >= 1000 FROM noted"),
	't', 'many pushes were committed');
is( $node->safe_psql(
		'postgres',
		'SELECT (SELECT count(*) FROM noted) - (SELECT count(*) FROM push_status),
		   (SELECT count(*) FROM noted JOIN push_status USING (push_id)
			WHERE state = \'sent\' AND accounts = 1) - (SELECT count(*) FROM noted)'),
	'0|0',
	'each has exactly one outcome');
is($node->safe_psql('postgres', 'SELECT count(*) FROM push_outbox'),
	0, 'nothing is left');

my %times;
foreach my $request ($tim->accepted)
{
	$times{$_}++ foreach @{ $request->{accounts} };
}
my @noted = split /\n/,
  $node->safe_psql('postgres', 'SELECT account FROM noted');
my %marked = map { $_ => 1 } split /\n/,
  $node->safe_psql('postgres',
	'SELECT account FROM noted JOIN push_status USING (push_id) WHERE maybe_duplicate > 0'
  );

is(scalar(grep { !$times{$_} } @noted), 0, 'nothing committed is lost');
is(scalar(grep { /^gone/ } keys %times), 0, 'nothing rolled back is sent');
is(scalar keys %times, scalar @noted, 'nothing else is sent');
is_deeply([ grep { $times{$_} > 1 && !$marked{$_} } @noted ],
	[], 'what was sent twice is marked');
note scalar(@noted), ' pushes, ', scalar(keys %marked), ' marked, ',
  scalar(grep { $times{$_} > 1 } @noted), ' sent twice, ',
  $tim->stats->{accepted}, ' requests';

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
