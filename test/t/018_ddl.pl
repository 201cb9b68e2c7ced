
# DDL on the extension's tables while the worker works: neither waits for the
# other longer than it must, and nothing is lost.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(time);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main', 'deadlock_timeout' => '100ms');
my $create_server = $tim->create_server_sql('chat', requests_per_second => 0);

$node->safe_psql('postgres', $create_server);

# A lock on a table that the worker writes, held for a while
my $locker = $node->background_psql('postgres', on_error_stop => 1);
$locker->query_safe('BEGIN; LOCK TABLE push_request IN SHARE MODE');
my $id = push_id($node, 'behind-a-lock', title => 'waits');
is( $node->safe_psql(
		'postgres', "SELECT state FROM timpush_wait($id, '2500ms')"),
	'waiting',
	'a locked table makes pushes wait');
is( $node->safe_psql(
		'postgres', "SELECT title FROM push_outbox WHERE id = $id"),
	'waits',
	'and the worker holds no lock meanwhile');
$locker->query_safe('COMMIT');
$locker->quit;
is( $node->safe_psql(
		'postgres', "SELECT state FROM timpush_wait($id, '30s')"),
	'sent',
	'until the lock is gone');
is(scalar log_lines($node, qr/lock timeout/), 0, 'which is no error');

# DROP and CREATE EXTENSION again and again with pushes on their way
my $longest = 0;
foreach my $round (1 .. 10)
{
	$node->safe_psql('postgres', <<'SQL');
SELECT timpush_batch('administrator', ARRAY['u' || n], 'title ' || n, 'text')
FROM generate_series(1, 300) n;
SQL
	my $start = time;
	$node->safe_psql('postgres', 'DROP EXTENSION timpush CASCADE');
	my $took = time - $start;
	$longest = $took if $took > $longest;
	$node->safe_psql('postgres',
		'CREATE EXTENSION timpush; ' . $create_server);
}
is(scalar log_lines($node, qr/deadlock detected/),
	0, 'DROP EXTENSION and the worker never deadlock');
note(sprintf('the longest DROP EXTENSION took %.0f ms', $longest * 1000));

# The last incarnation works.
$id = push_id($node, 'at-last', title => 'again');
is( $node->safe_psql(
		'postgres', "SELECT state FROM timpush_wait($id, '30s')"),
	'sent',
	'an extension made anew sends without a restart');

# VACUUM FULL and CREATE INDEX in between
$node->safe_psql('postgres',
	'VACUUM FULL push_result; REINDEX TABLE push_request');
$id = push_id($node, 'after-vacuum', title => 'again');
is( $node->safe_psql(
		'postgres', "SELECT state FROM timpush_wait($id, '30s')"),
	'sent',
	'rewritten tables are found again');

# A session that enqueues follows what others do to the table: a constraint,
# and an index that it first meets half made.
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $enqueue =
  "SELECT timpush_batch('administrator', '{u1}', 'title', 'text', data_id => '%s', send_at => '2100-01-01') > 0";
is(scalar $session->query(sprintf $enqueue, 'first'),
	't', 'a session enqueues');
$node->safe_psql('postgres',
	"ALTER TABLE push_outbox ADD CONSTRAINT mine CHECK (data_id <> 'second')"
);
is(scalar $session->query(sprintf $enqueue, 'second'),
	'', 'and follows a constraint of another session');
$node->safe_psql('postgres', 'ALTER TABLE push_outbox DROP CONSTRAINT mine');
is(scalar $session->query(sprintf $enqueue, 'second'),
	't', 'until it is dropped');
my $holder = $node->background_psql('postgres', on_error_stop => 1);
$holder->query_safe('BEGIN; ' . sprintf $enqueue, 'held');
my $maker = $node->background_psql('postgres', on_error_stop => 1);
$maker->query_until(qr/begun/,
	"\\echo begun\nCREATE UNIQUE INDEX CONCURRENTLY mine ON push_outbox (data_id);\n"
);
$node->poll_query_until('postgres', <<'SQL')
SELECT count(*) = 1 FROM pg_stat_activity
WHERE query LIKE 'CREATE UNIQUE INDEX%' AND wait_event_type = 'Lock'
SQL
  or die 'the index is not being made';
is(scalar $session->query(sprintf $enqueue, 'third'),
	't', 'it enqueues while an index is made');
$holder->query_safe('COMMIT');
$holder->quit;
$maker->quit;
is(scalar $session->query(sprintf $enqueue, 'fourth'),
	't', 'and when it is made');
is(scalar $session->query(sprintf $enqueue, 'fourth'), '', 'into the index');
$session->quit;
is( $node->safe_psql(
		'postgres',
		"SET enable_seqscan = off;
		SELECT string_agg(data_id, ' ' ORDER BY id) FROM push_outbox WHERE data_id > ''"
	),
	'first second held third fourth',
	'which holds what was enqueued before, meanwhile and after');
$node->safe_psql('postgres', 'DROP INDEX mine; DELETE FROM push_outbox');

# What wants a database to itself does not have to wait for an idle worker.
$node->safe_psql('postgres', 'CREATE DATABASE app');
$node->safe_psql('app', 'CREATE EXTENSION timpush; ' . $create_server);
$id = $node->safe_psql('app',
	"SELECT timpush_batch('administrator', '{in-app}', 'title', 'text')");
is($node->safe_psql('app', "SELECT state FROM timpush_wait($id, '30s')"),
	'sent', 'another database sends');
my $start = time;
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE app');
cmp_ok(time - $start, '<', 4, 'a database with a worker can be a template');
$id = $node->safe_psql('app',
	"SELECT timpush_batch('administrator', '{in-app-again}', 'title', 'text')"
);
is($node->safe_psql('app', "SELECT state FROM timpush_wait($id, '30s')"),
	'sent', 'and sends again');
$node->safe_psql('postgres', 'ALTER DATABASE app RENAME TO app2');
$start = time;
$node->safe_psql('postgres', 'DROP DATABASE app2');
cmp_ok(time - $start, '<', 4, 'and be dropped');
is(scalar log_lines($node, qr/FATAL: .*database .* does not exist/),
	0, 'after which no worker is started for it');

$node->stop;
done_testing();
