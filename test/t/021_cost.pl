
# What a claim reads does not depend on what else is in the queue: a million
# pushes that wait behind it, that are scheduled for tomorrow, or that belong
# to another server, or what an old transaction keeps vacuum from removing.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

# Blocks of the queue that the worker may touch for each request, and blocks
# of the journal.  A request of one push takes two dozen: some descents of
# trees of three or four levels, and a few rows.
my $limit = 30;

my $million = 1_000_000;

my $tim = FakeTIM->new->start;
my $node = start_node(
	'main',
	'timpush.enabled' => 'off',
	fsync => 'off',
	max_wal_size => '4GB',
	wal_level => 'minimal',
	max_wal_senders => 0);

$node->safe_psql('postgres',
		$tim->create_server_sql('chat', requests_per_second => 200)
	  . $tim->create_server_sql('other'));

# Copies of a push, each with its own content unless "alike" is set: the fastest
# way to a long queue.
sub fill
{
	my ($count, %options) = @_;
	my $distinct = delete $options{alike} ? 0 : 1;
	my $id = push_id($node, 'ballast-0', server => 'chat', %options);

	$node->safe_psql('postgres', <<"SQL");
INSERT INTO push_outbox (server, from_account, to_accounts, title, descr,
                         send_at, expires_at)
SELECT server, from_account, ARRAY['ballast-' || i], title || i * $distinct, descr,
       send_at, expires_at
FROM push_outbox, generate_series(1, $count - 1) i WHERE id = $id;
SQL
	return;
}

# What the worker has touched: blocks of the queue, of the journal, and scans
# of whole tables.
sub touched
{
	return row($node, <<'SQL');
SELECT sum(blocks) FILTER (WHERE relname = 'push_outbox') AS queue,
       sum(blocks) FILTER (WHERE relname <> 'push_outbox') AS journal,
       sum(seq_scan) AS scans
FROM (SELECT relname, heap_blks_read + heap_blks_hit + coalesce(toast_blks_read, 0)
             + coalesce(toast_blks_hit, 0) + coalesce(idx_blks_read, 0)
             + coalesce(idx_blks_hit, 0) AS blocks,
             pg_stat_get_numscans(relid) AS seq_scan
      FROM pg_statio_user_tables
      WHERE relname IN ('push_outbox', 'push_request', 'push_result', 'push_error')) t
SQL
}

# Let the worker send, from its start to its end, until the service has
# accepted so many more requests; what did each of them cost?  With "pushes",
# so many share a request.
sub cost
{
	my ($count, $name, %options) = @_;
	my $before = $tim->stats->{accepted};
	my ($first, $last, $requests);

	$node->safe_psql('postgres', 'SELECT pg_stat_force_next_flush()');
	$first = touched();
	set_config($node, 'timpush.enabled' => 'on');
	wait_until(sub { $tim->stats->{accepted} - $before >= $count },
		"$count requests");
	set_config($node, 'timpush.enabled' => 'off');
	wait_for_worker($node, 0);
	$last = touched();
	$requests = $tim->stats->{accepted} - $before;

	my %per_push =
	  map {
		$_ => ($last->{$_} - $first->{$_}) /
		  $requests /
		  ($options{pushes} // 1)
	  } qw(queue journal);
	note sprintf
	  '%s: %d requests, %.1f blocks of the queue and %.1f of the journal for each push',
	  $name, $requests, @per_push{qw(queue journal)};
	cmp_ok($per_push{queue}, '>', 1, "$name: the reads are seen");
	cmp_ok($per_push{queue}, '<', $limit,
		"$name: a push reads little of the queue");
	cmp_ok($per_push{journal}, '<', $limit,
		"$name: a push reads little of the journal");
	is($last->{scans} - $first->{scans},
		0, "$name: no table is read from end to end");
	return;
}

# Pushes to be sent, each its own request.
sub enqueue
{
	my ($count, $prefix, @more) = @_;

	$node->safe_psql('postgres', <<"SQL");
SELECT count(timpush_batch('administrator', ARRAY['$prefix-' || i], '$prefix ' || i, 'text',
                           server => 'chat'))
FROM generate_series(1, $count) i
SQL
	return;
}

sub empty_queue
{
	$node->safe_psql('postgres', 'TRUNCATE push_outbox');
	return;
}

enqueue(300, 'alone');
cost(300, 'a short queue');

fill($million, send_at => 'tomorrow');
enqueue(300, 'today');
cost(300, 'a million for tomorrow');
empty_queue();

# the other server is known and paused before it gets anything to do
$node->safe_psql('postgres', q(SELECT timpush_pause('other')));
fill($million, server => 'other');
enqueue(300, 'mine');
cost(300, 'a million of a paused server');
is( $node->safe_psql(
		'postgres', "SELECT count(*) FROM push_outbox WHERE server = 'other'"
	),
	$million,
	'which keeps them');
empty_queue();

fill($million);
cost(300, 'a million behind');
$node->safe_psql('postgres', 'VACUUM ANALYZE push_outbox');
cost(300, 'a million behind, and statistics of it');
empty_queue();

fill($million, alike => 1);
cost(100, 'a million that share calls', pushes => 500);
empty_queue();

# An old snapshot: nothing that has left can be removed.
$node->safe_psql('postgres',
	'ALTER SERVER chat OPTIONS (SET requests_per_second \'0\')');
my $old = $node->background_psql('postgres');
$old->query_safe(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()');
enqueue(20_000, 'held');
cost(10_000, 'an old transaction, at first');
cost(5_000, 'an old transaction, later on');
$old->query_safe('COMMIT');
$old->quit;

$node->stop;
done_testing();
