
# Taking pushes back, and sending again what was not accepted.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(time);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main');

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub pause
{
	return sql("SELECT timpush_pause('$_[0]')");
}

sub resume
{
	return sql("SELECT timpush_resume('$_[0]')");
}

sub cancel
{
	return sql("SELECT timpush_cancel($_[0])");
}

# State and the counts of a push
sub outcome
{
	my $status = status($node, $_[0]);

	return join '/',
	  @$status{qw(state sent failed expired cancelled unknown waiting)};
}

# Wait for a state that is not final.
sub wait_for_state
{
	my ($id, $state) = @_;

	$node->poll_query_until('postgres',
		"SELECT state = '$state' FROM push_status WHERE push_id = $id")
	  or die "push $id does not become $state\n";
	return;
}

sub times_seen
{
	return scalar requests_with($tim, $_[0]);
}

# The error of a statement that is to fail
sub error
{
	my ($ret, undef, $stderr) = $node->psql('postgres', $_[0]);

	return $ret == 0 ? 'none' : $stderr =~ s/.*?ERROR:  ([^\n]*).*/$1/sr;
}

sql(    $tim->create_server_sql('chat')
	  . $tim->create_server_sql('other')
	  . $tim->create_server_sql(
		'slow',
		requests_per_second => 2,
		accounts_per_request => 10));

#
# What waits
#
pause('chat');
my $id = push_id($node, [ 'waits-1', 'waits-2' ], server => 'chat');
my $later =
  push_id($node, 'later', server => 'chat', send_at => '2100-01-01');
is(cancel($id), 't', 'a push that waits can be cancelled');
is(outcome($id), 'cancelled/0/0/0/2/0/0', 'and is, with all its accounts');
is(cancel($later), 't', 'so can one that is scheduled');
is(cancel($id), 'f', 'once only');
is(cancel(987654321), 'f', 'a push that is not there cannot be');
my ($request) = requests($node, $id);
is_deeply(
	[
		@$request{
			qw(state msg_random accounts attempts first_sent_at next_attempt_at)
		}
	],
	[ 'cancelled', 0, [ 'waits-1', 'waits-2' ], 0, undef, undef ],
	'the journal keeps its accounts');
is($request->{content}{OfflinePushInfo}{Title},
	'title', 'and what it would have said');

# in the transaction that enqueued it
is( sql(<<'SQL'),
BEGIN;
CREATE TEMP TABLE own AS
  SELECT timpush_batch('administrator', '{own}', 'title', 'text', server => 'chat') AS id;
SELECT timpush_cancel(id), timpush_cancel(id), state FROM own, push_status WHERE push_id = id;
COMMIT;
SELECT state, cancelled FROM own, push_status WHERE push_id = id;
SQL
	"t|f|waiting\ncancelled|1",
	'a push can be cancelled in its own transaction');

# more than fits into a step
my $large = push_id(
	$node,
	\"ARRAY(SELECT 'large-' || n FROM generate_series(1, 120001) n)",
	server => 'chat');
is(cancel($large), 't', 'a large push can be cancelled');
is(outcome($large), 'cancelled/0/0/0/120001/0/0', 'all of it');
is( sql("SELECT sum(accounts), max(accounts), count(*) FROM push_result WHERE push_id = $large"
	),
	'120001|500|241',
	'in parts as the API would have got them');

#
# A transaction that is left open
#
my $kept = push_id($node, 'kept', server => 'chat');
my $gone = push_id($node, 'gone', server => 'chat');
my $one = $node->background_psql('postgres', on_error_stop => 1);
my $two = $node->background_psql('postgres', on_error_stop => 1);
is($one->query_safe("BEGIN; SELECT timpush_cancel($kept)"),
	't', 'cancelled, but not yet committed');
is($two->query_safe("BEGIN; SELECT timpush_cancel($gone)"), 't', 'again');
resume('chat');
my $behind = push_id($node, 'behind', server => 'chat');
settle($node, where => "push_id = $behind");
is(times_seen('kept') + times_seen('gone'), 0, 'they are not sent meanwhile');
$one->query_safe('ROLLBACK');
$two->query_safe('COMMIT');
settle($node);
is(outcome($kept), 'sent/1/0/0/0/0/0', 'what is rolled back is sent');
is(outcome($gone), 'cancelled/0/0/0/1/0/0', 'what is committed is not');

pause('chat');
my $savepoint = push_id($node, 'savepoint', server => 'chat');
is( $one->query_safe("BEGIN; SAVEPOINT a; SELECT timpush_cancel($savepoint)"),
	't', 'cancelled within a savepoint');
resume('chat');
$behind = push_id($node, 'behind', server => 'chat', title => 'other');
settle($node, where => "push_id = $behind");
$one->query_safe('ROLLBACK TO a');
settle($node);
is(outcome($savepoint),
	'sent/1/0/0/0/0/0', 'that is rolled back: it is sent before the end');
$one->query_safe('COMMIT');

#
# What is on its way
#
$id = push_id($node, 'slow-2000-a', server => 'chat');
wait_for_state($id, 'sending');
is(cancel($id), 'f', 'what is on its way cannot be cancelled');
settle($node);
is(outcome($id), 'sent/1/0/0/0/0/0', 'and is not');
is(cancel($id), 'f', 'nor can what was sent');

my $doubtful = push_id($node, 'first1-reset-after-a', server => 'chat');
wait_for_state($doubtful, 'retrying');
is(cancel($doubtful), 'f', 'what is in doubt cannot be cancelled');

#
# What goes again after a definite refusal: three pushes in a call
#
sub refused_together
{
	my ($prefix) = @_;

	pause('other');
	my @ids = map {
		push_id(
			$node,
			[ "$prefix-$_-a", "$prefix-$_-b" ],
			server => 'other',
			title => $prefix)
	} 1 .. 3;
	$tim->rules(
		[ { kind => 'code', arg => 70009, count => 1, account => $prefix } ]);
	resume('other');
	wait_for_state($ids[0], 'retrying');
	$tim->clear_rules;
	return @ids;
}

my @ids = refused_together('trio');
is_deeply(
	[ map { outcome($_) } @ids ],
	[ ('retrying/0/0/0/0/0/2') x 3 ],
	'a call with three pushes is refused');
is(cancel($ids[1]), 't', 'one of them can be cancelled');
is(outcome($ids[1]), 'cancelled/0/0/0/2/0/0', 'all of it');
is(server_state($node, 'other')->{state},
	'suspended', 'while the server is suspended');
resume('other');
settle($node, where => "server = 'other'");
is_deeply(
	[ map { outcome($_) } @ids[ 0, 2 ] ],
	[ ('sent/2/0/0/0/0/0') x 2 ],
	'the others are sent');
is(times_seen('trio-2-a'), 1, 'it was seen once, when it was refused');
my @seen = requests_with($tim, 'trio-1-a');
is_deeply(
	$seen[1]{accounts},
	[ map { ("trio-$_-a", "trio-$_-b") } 1, 3 ],
	'the others go together');
isnt($seen[0]{msg_random}, $seen[1]{msg_random}, 'as a new call');
is( sql("SELECT count(*) FROM push_request
		 WHERE next_attempt_at IS NOT NULL AND state <> 'retry'"),
	0,
	'nothing that has ended stays among what goes again');

@ids = refused_together('all');
is( sql("SELECT sum(timpush_cancel(push_id)::integer) FROM push_status
		WHERE push_id IN ($ids[0], $ids[1], $ids[2])"),
	3,
	'all of them can be cancelled');
is_deeply(
	[ map { outcome($_) } @ids ],
	[ ('cancelled/0/0/0/2/0/0') x 3 ],
	'and are');

# Two sessions cancel two pushes of one request.
@ids = refused_together('pair');
is($one->query_safe("BEGIN; SELECT timpush_cancel($ids[0])"),
	't', 'one session cancels a push');
$two->query_until(qr/begun/,
	"\\echo begun\nSELECT timpush_cancel($ids[1]);\n");
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_locks WHERE NOT granted")
  or die "the other session does not wait\n";
$one->query_safe('COMMIT');
is($two->query_safe('SELECT 1'),
	"t\n1", 'another session cancels another one');
resume('other');
settle($node, where => "server = 'other'");
is_deeply(
	[ map { outcome($_) } @ids ],
	[ 'cancelled/0/0/0/2/0/0', 'cancelled/0/0/0/2/0/0', 'sent/2/0/0/0/0/0' ],
	'only the third is sent');

# Both want the same one.
@ids = refused_together('same');
is($one->query_safe("BEGIN; SELECT timpush_cancel($ids[0])"),
	't', 'one session cancels a push');
$two->query_until(qr/begun/,
	"\\echo begun\nSELECT timpush_cancel($ids[0]);\n");
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_locks WHERE NOT granted")
  or die "the other session does not wait\n";
$one->query_safe('COMMIT');
is($two->query_safe('SELECT 1'), "f\n1", 'another session is too late');
resume('other');
settle($node, where => "server = 'other'");

# One account of a push goes again, the other one has been accepted.
$id = push_id($node, [ 'accepted', 'acctN-91000-9' ], server => 'other');
$node->poll_query_until('postgres',
	"SELECT bool_or(retried > 0) FROM push_result WHERE push_id = $id");
pause('other');
wait_for_state($id, 'retrying');
is(cancel($id), 't', 'the account that goes again can be cancelled');
is(outcome($id), 'partial/1/0/0/1/0/0', 'what was accepted stays so');
resume('other');

#
# A large push that has been handed out in part
#
$id = push_id(
	$node,
	\"ARRAY(SELECT 'part-' || n FROM generate_series(1, 95) n)",
	server => 'slow');
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM push_progress WHERE push_id = $id AND done > 10"
);
my $progress = row($node, 'SELECT *, eta::text AS left FROM push_progress');
is_deeply(
	[ @$progress{qw(push_id server total)} ],
	[ $id, 'slow', 95 ],
	'push_progress shows it');
cmp_ok($progress->{done}, '<', 95, 'while it is on its way');
is($progress->{percent}, sprintf('%.1f', 100 * $progress->{done} / 95) + 0,
	'in percent');
cmp_ok($progress->{rate}, '>', 0, 'with its rate');
like($progress->{left}, qr/^00:0\d:\d\d$/, 'and the time left');
is(cancel($id), 't', 'the rest of a push can be cancelled');
settle($node, where => "push_id = $id");
is(sql('SELECT count(*) FROM push_progress'), 0, 'and is no longer shown');
my $status = status($node, $id);
is($status->{state}, 'partial', 'what was sent stays so');
is($status->{sent} + $status->{cancelled}, 95,
	'every account is one of them');
cmp_ok($status->{cancelled}, '>=', 50, 'many were cancelled');
my $sent = grep { !@{ $_->{failed} } && $_->{delivered} }
  map { requests_with($tim, "part-$_") } map { 10 * $_ + 1 } 0 .. 9;
is($sent * 10, $status->{sent}, 'as the service has it');

#
# Sending again
#
settle($node);
is(outcome($doubtful), 'sent/1/0/0/0/0/0', 'what was in doubt was sent');
is( error("SELECT timpush_retry($doubtful)"),
	"push $doubtful has no accounts to send again",
	'it has nothing to be sent again');
is( error('SELECT timpush_retry(987654321)'),
	'push 987654321 does not exist',
	'a push that is not there cannot be sent again');

my $again = sql("SELECT timpush_retry($id)");
cmp_ok($again, '>', $id, 'sending again makes another push');
settle($node);
is(status($node, $again)->{sent},
	$status->{cancelled}, 'to the accounts that were cancelled');
is_deeply([ grep { times_seen("part-$_") != 1 } 1 .. 95 ],
	[], 'so that each account gets it once');
is(outcome($id) =~ s/\d+/N/gr,
	'partial/N/N/N/N/N/N', 'the first push stays as it is');

# All that a push can carry is carried again.
my %full = (
	server => 'chat',
	title => "T\"\\' 推送",
	descr => '',
	data_id => 'order-1',
	priority => 7,
	on_unknown => 'hold',
	dedup_key => 'once',
	extra =>
	  '{"Classification": 1, "OfflinePushInfo": {"Ext": {"page": "x"}, "ApnsInfo": {"BadgeMode": 1}}}'
);
$id = push_id($node, [ 'full-1', 'nobody-1', 'full-2', 'nobody-2' ], %full);
settle($node);
is(outcome($id), 'partial/2/2/0/0/0/0', 'some accounts fail');
pause('chat');
my $before = time;
$again = sql("SELECT timpush_retry($id)");
my $row = row(
	$node, "SELECT *, extract(epoch FROM send_at) AS send,
	  extract(epoch FROM expires_at) AS expiry FROM push_outbox WHERE id = $again"
);
is_deeply(
	[
		@$row{
			qw(to_accounts title descr data_id priority on_unknown dedup_key
			  server enqueued_by from_account)
		}
	],
	[
		[ 'nobody-1', 'nobody-2' ],
		"T\"\\' \x{63a8}\x{9001}",
		'',
		'order-1',
		7,
		'hold',
		undef,
		'chat',
		sql('SELECT current_user'),
		'administrator'
	],
	'the same goes again to those that failed');
cmp_ok(abs($row->{send} - $before), '<', 60, 'now');
cmp_ok(abs($row->{expiry} - $before - 86400),
	'<', 60, 'with a life of its own');
resume('chat');
settle($node);
my @requests = map { (requests($node, $_))[0] } $id, $again;
is_deeply(
	$requests[1]{content},
	$requests[0]{content},
	'with the same content');
is(outcome($again), 'failed/0/2/0/0/0/0', 'and fails again');
is(times_seen('full-1'), 1, 'those that got it do not get it again');
is( sql("SELECT timpush_batch('administrator', '{x}', 'other', 'text', server => 'chat',
		   dedup_key => 'once')"),
	$id,
	'the key stays with the first');

# what is in doubt
my $unknown = push_id(
	$node, 'first1-reset-after-b',
	server => 'chat',
	on_unknown => 'hold');
settle($node);
is(outcome($unknown), 'unknown/0/0/0/0/1/0', 'a push ends in doubt');
$again = sql("SELECT timpush_retry($unknown)");
settle($node);
is(outcome($again), 'sent/1/0/0/0/0/0', 'and is sent again by order');
is(status($node, $again)->{maybe_duplicate},
	0, 'as a push of its own, that was seen once');

# what is still open
pause('chat');
$id = push_id($node, 'open', server => 'chat');
is( error("SELECT timpush_retry($id)"),
	"push $id has accounts without an outcome",
	'what is open cannot be sent again');
$again = sql("SELECT timpush_cancel($id); SELECT timpush_retry($id)");
$again =~ s/^t\n//;
resume('chat');
settle($node);
is(outcome($again), 'sent/1/0/0/0/0/0', 'what was cancelled can');

#
# Keys
#
sub keyed
{
	my ($account, $key, $server) = @_;

	$server //= 'chat';
	return
	  "SELECT timpush_batch('administrator', '{$account}', 'keyed', 'text',
	  server => '$server', dedup_key => '$key')";
}

# Two sessions at once: the second waits for what becomes of the first.
foreach my $end ('ROLLBACK', 'COMMIT')
{
	my $first = $one->query_safe('BEGIN; ' . keyed("first-$end", $end));
	my $elsewhere = sql(keyed("elsewhere-$end", $end, 'other'));

	isnt($elsewhere, $first, 'another server does not know the key');
	$two->query_until(qr/begun/,
		"\\echo begun\n" . keyed("second-$end", $end) . ";\n");
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_locks WHERE NOT granted")
	  or die "the other session does not wait\n";
	$one->query_safe($end);
	my ($second) = split /\n/, $two->query_safe('SELECT 1');
	settle($node);

	if ($end eq 'COMMIT')
	{
		is($second, $first, 'a key that was committed is known');
		is(times_seen("second-$end"), 0, 'its second push is not sent');
		is(times_seen("first-$end"), 1, 'the first is');
	}
	else
	{
		isnt($second, $first, 'a key that was rolled back is not known');
		is(times_seen("second-$end"), 1, 'the second push is sent');
		is(times_seen("first-$end"), 0, 'the first is not');
	}
}

# A snapshot from before the first does not hide it.
$two->query_safe(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM push_status'
);
my $known = sql(keyed('snapshot', 'snapshot'));
is($two->query_safe(keyed('snapshot-2', 'snapshot')),
	$known, 'a key is known whatever the snapshot');
$two->query_safe('COMMIT');

# Whatever became of the first
pause('chat');
my %keyed = map { $_ => sql(keyed($_, "was-$_")) } qw(sent cancelled);
my $expiring = keyed('expired', 'was-expired');
$expiring =~ s/\)$/, expires_at => clock_timestamp() + interval '1 s')/;
$keyed{expired} = sql($expiring);
is(cancel($keyed{cancelled}), 't', 'one is cancelled');
$node->poll_query_until('postgres',
	"SELECT state = 'expired' FROM push_status WHERE push_id = $keyed{expired}"
);
resume('chat');
settle($node);

foreach my $state (sort keys %keyed)
{
	is(status($node, $keyed{$state})->{state}, $state, "one is $state");
	is(sql(keyed("$state-again", "was-$state")),
		$keyed{$state}, 'its key is known');
}
settle($node);
is(times_seen("$_-again"), 0, 'and nothing is sent') foreach sort keys %keyed;
sql("DELETE FROM push_result WHERE push_id = $keyed{cancelled}");
isnt(sql(keyed('forgotten', 'was-cancelled')),
	$keyed{cancelled}, 'until its outcome is deleted');
settle($node);
is(times_seen('forgotten'), 1, 'then another one is sent');

$one->quit;
$two->quit;
is( scalar log_lines($node,
		qr/lock timeout|deadlock detected|ERROR:  .*lock/),
	0,
	'nobody waited for long');
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
