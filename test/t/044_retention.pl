
# What ended before timpush.retention leaves by itself: whole pushes, with
# their errors and calls; and nobody has to wait for that.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new(apps => { 1001 => 'key', 1002 => 'key' })->start;
my $node = start_node('main', 'timpush.idle_exit' => '1h');

$node->safe_psql(
	'postgres',
	$tim->create_server_sql('chat')
	  . $tim->create_server_sql(
		'slow',
		sdkappid => 1001,
		secret_key => 'key',
		requests_per_second => 0.01)
	  . $tim->create_server_sql(
		'throttled',
		sdkappid => 1002,
		secret_key => 'key'));

# A database that nobody touches, for the end
my $idle = start_node(
	'idle',
	'timpush.retention' => '20s',
	'timpush.idle_exit' => '1s');
my $other = FakeTIM->new->start;
$idle->safe_psql('postgres', $other->create_server_sql('chat'));
push_id($idle, 'nobody-idle');
settle($idle);
wait_for_worker($idle, 0);
is($idle->safe_psql('postgres', 'SELECT count(*) FROM push_result'),
	1, 'the worker of an idle database leaves before anything is old');

# Pushes become nine days old, whatever has become of them
sub age
{
	my $ids = join ', ', @_;

	$node->safe_psql('postgres', <<"SQL");
UPDATE push_request SET created_at = created_at - interval '9 days',
  finished_at = finished_at - interval '9 days'
WHERE push_ids && ARRAY[$ids]::bigint[] AND created_at > now() - interval '1 day';
UPDATE push_result SET enqueued_at = enqueued_at - interval '9 days',
  finished_at = finished_at - interval '9 days'
WHERE push_id IN ($ids) AND enqueued_at > now() - interval '1 day';
SQL
	return;
}

sub enqueue
{
	my ($account, %options) = @_;
	return push_id(
		$node, $account,
		server => 'chat',
		title => $account,
		%options);
}

sub count_of
{
	my ($from) = @_;
	return $node->safe_psql('postgres', "SELECT count(*) FROM $from");
}

# What is left of pushes: results, calls that name them, errors
sub left
{
	my $ids = join ', ', @_;
	return join ' ',
	  count_of("push_result WHERE push_id IN ($ids)"),
	  count_of("push_request WHERE push_ids && ARRAY[$ids]::bigint[]"),
	  count_of("push_error WHERE push_id IN ($ids)");
}

# Walk through all there is.  The last push leaves last of all, and its error
# after that.
my @settings = ('7d', '6d');

sub walk
{
	my $last = enqueue('nobody-last');

	settle($node, where => "push_id = $last");
	age($last);
	push @settings, shift @settings;
	set_config($node, 'timpush.retention' => $settings[0]);
	$node->poll_query_until('postgres',
		"SELECT NOT EXISTS (SELECT FROM push_error WHERE push_id = $last)")
	  or die "old pushes stay\n";
	return $last;
}

sub states
{
	my $ids = join ', ', @_;
	return $node->safe_psql('postgres',
		"SELECT * FROM push_status WHERE push_id IN ($ids) ORDER BY push_id");
}

#
# What leaves and what stays
#
my $half = push_id(
	$node,
	\"ARRAY(SELECT 'half-' || n FROM generate_series(1, 1200) n)",
	server => 'slow');
my $open = enqueue('first1-code-60028', server => 'throttled');
my $sent = enqueue('sent', dedup_key => 'k');
my $many = push_id(
	$node,
	\"ARRAY(SELECT 'nobody-' || n FROM generate_series(1, 1200) n)",
	server => 'chat');
my ($merged_old, $merged_young) = split /\n/,
  $node->safe_psql('postgres', <<'SQL');
SELECT timpush_batch('administrator', ARRAY['m-' || n], 'merged', 'text', server => 'chat')
FROM generate_series(1, 2) n
SQL
my @split = split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT timpush_batch('administrator', ARRAY[a], 'split', 'text', server => 'chat')
FROM unnest('{s-1,s-2,s-3,code-90001-s}'::text[]) a
SQL
my $unknown = enqueue('reset-after-u', on_unknown => 'hold');
my $cancelled = enqueue('c', send_at => '2038-01-01');
$node->safe_psql('postgres', "SELECT timpush_cancel($cancelled)");
my $young = enqueue('nobody-young');
settle($node, where => "push_id NOT IN ($half, $open)");
$node->poll_query_until(
	'postgres',
	"SELECT (SELECT sent = 500 AND waiting = 700 FROM push_status WHERE push_id = $half)
	    AND (SELECT state = 'retrying' FROM push_status WHERE push_id = $open)"
) or die "the open pushes are not where they should be\n";
is( (requests($node, $merged_old))[0]->{id},
	(requests($node, $merged_young))[0]->{id},
	'two pushes share a call');
cmp_ok(
	count_of(
		"push_request WHERE state = 'split' AND push_ids && ARRAY[$split[0]]::bigint[]"
	),
	'>', 0,
	'a call was split');
is(status($node, $unknown)->{state}, 'unknown', 'one is in doubt');
is(enqueue('again', dedup_key => 'k'), $sent, 'a key is known');
$tim->ok_ledger($node, 'tables and ledger agree');

my @stay = ($half, $open, $merged_young, $young);
my $before = states(@stay);
my $rows = left(@stay);

age($half, $open, $sent, $many, $merged_old, @split, $unknown, $cancelled);

# of those that share a call, one has just ended
$node->safe_psql('postgres', <<"SQL");
UPDATE push_request SET created_at = created_at - interval '9 days',
  finished_at = finished_at - interval '9 days'
WHERE push_ids && ARRAY[$merged_young]::bigint[] AND created_at > now() - interval '1 day'
SQL
my $half_aged = states($half, $open);
walk();
is(left($sent), '0 0 0', 'a push leaves with its call');
is(left($many), '0 0 0', 'a large one as well, with all of its errors');
is(left($merged_old), '0 1 0', 'one of a shared call without the call');
is(left(@split), '0 0 0', 'calls that were split leave');
is(left($unknown), '0 0 0', 'so does what is in doubt');
is(left($cancelled), '0 0 0', 'and what was never sent');
is(left($half), '1 1 0', 'a push stays as long as some of it waits');
is(states($half, $open), $half_aged, 'push_status shows it as before');
is(left(@stay), $rows, 'what is young or open stays');
is( states($merged_young, $young),
	do
	{
		my %keep = map { $_ => 1 } $merged_young, $young;
		join "\n", grep { /^(\d+)/ && $keep{$1} } split /\n/, $before;
	},
	'as it is');

my $again = enqueue('again', dedup_key => 'k');
cmp_ok($again, '>', $sent, 'the key is free again');
settle($node, where => "push_id = $again");

age($merged_young);
walk();
is(left($merged_young), '0 0 0',
	'a shared call leaves with the last of its pushes');

# Others do not wait for what is open, and it is found in its turn.
is($node->safe_psql('postgres', "SELECT timpush_cancel($half)"),
	't', 'the rest of a push is taken back');
settle($node, where => "push_id = $half");
walk();
isnt(left($half), '0 0 0', 'its end is not long ago');
age($half);
$node->safe_psql('postgres',
	"UPDATE push_result SET finished_at = now() - interval '8 days' WHERE push_id = $half"
);
$node->safe_psql('postgres',
	"UPDATE push_request SET finished_at = now() - interval '8 days' WHERE push_ids && ARRAY[$half]::bigint[]"
);
walk();
is(left($half), '0 0 0', 'then it leaves as a whole');

#
# Nobody minds what makes it fail
#
my @old = map { enqueue("old-$_") } 1 .. 3;
settle($node, where => "push_id <> $open");
age(@old);
$node->safe_psql('postgres', <<"SQL");
CREATE TABLE note (push_id bigint, request_id bigint,
  FOREIGN KEY (push_id, request_id) REFERENCES push_result);
INSERT INTO note SELECT push_id, request_id FROM push_result WHERE push_id = $old[1];
SQL
walk();
is(left(@old), '1 1 0', 'one that a foreign key refers to stays alone');
walk();
is( scalar log_lines(
		$node, qr/rows older than timpush.retention cannot be removed/),
	1,
	'the log says so once');
$node->safe_psql('postgres', 'DROP TABLE note');
walk();
is(left(@old), '0 0 0', 'until nothing refers to it');
wait_until(
	sub {
		log_lines($node,
			qr/rows older than timpush.retention can be removed again/);
	},
	'the end of the trouble');

@old = map { enqueue("old-$_") } 1 .. 3;
settle($node, where => "push_id <> $open");
age(@old);
my $session = $node->background_psql('postgres');
$session->query_safe(
	"BEGIN; SELECT FROM push_result WHERE push_id = $old[0] FOR UPDATE");
walk();
is(left(@old), '1 1 0', 'one that a session has locked stays alone');
$session->quit;
walk();
is(left(@old), '0 0 0', 'until it is not');

#
# Sending goes on: a journal of 100,000 calls, and pushes one after the other
#
$node->safe_psql('postgres', <<'SQL');
SELECT setval('push_outbox_id_seq', 1000000), setval('push_request_id_seq', 1000000);
INSERT INTO push_request (id, server, msg_random, content, accounts, push_ids, state, on_unknown,
  created_at, finished_at)
SELECT n, 'chat', 1, '{}', '{a}', ARRAY[n], 'done', 'retry', at, at
FROM generate_series(500001, 600000) n, CAST(now() - interval '10 days' AS timestamptz) at;
INSERT INTO push_result (push_id, request_id, first, accounts, state, server, enqueued_by,
  push_accounts, priority, enqueued_at, finished_at)
SELECT n, n, 1, 1, 'sent', 'chat', current_user, 1, 4, at, at
FROM generate_series(500001, 600000) n, CAST(now() - interval '10 days' AS timestamptz) at;
SQL
my $stale = 'push_result WHERE push_id BETWEEN 500001 AND 600000';
set_config($node, 'timpush.retention' => '5d');
$node->poll_query_until('postgres',
	"SELECT (SELECT count(*) FROM $stale) < 100000")
  or die "old pushes stay\n";
my @took;
foreach my $n (1 .. 10)
{
	my $begin = time;

	my $id = enqueue("meanwhile-$n");
	$node->safe_psql('postgres', "SELECT timpush_wait($id)");
	push @took, time - $begin;
	is( $node->safe_psql(
			'postgres', "SELECT state FROM push_result WHERE push_id = $id"),
		'sent',
		"push $n is sent");
}
cmp_ok(count_of($stale), '>', 0, 'pushes are sent while old ones leave');
note sprintf 'slowest of 10 took %.3f s, %d of 100000 are left',
  (sort { $b <=> $a } @took)[0], count_of($stale);
my $leaving = time;
$node->poll_query_until(
	'postgres',
	"SELECT NOT EXISTS (SELECT FROM $stale)
	    AND NOT EXISTS (SELECT FROM push_request WHERE id BETWEEN 500001 AND 600000)"
) or die "old pushes stay\n";
note sprintf 'the rest left within %.1f s', time - $leaving;

#
# For an idle database, a worker is started
#
ok( $idle->poll_query_until(
		'postgres', 'SELECT NOT EXISTS (SELECT FROM push_request)'),
	'an idle database is cleaned');
is( $idle->safe_psql(
		'postgres',
		'SELECT (SELECT count(*) FROM push_result), (SELECT count(*) FROM push_error)'
	),
	'0|0',
	'of everything');
is(scalar log_lines($idle, qr/WARNING|ERROR/), 0, 'without a complaint');

done_testing();
