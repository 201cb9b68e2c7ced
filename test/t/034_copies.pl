
# A copy of a database sends nothing until it is told to: neither one out of a
# dump, which carries what is open, nor one of a template.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new(apps => { 1001 => 'key' })->start;
my $node = start_node('main', 'timpush.idle_exit' => '1s');
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';

$node->safe_psql(
	'postgres',
	$tim->create_server_sql('chat')
	  . $tim->create_server_sql(
		'slow',
		sdkappid => 1001,
		secret_key => 'key',
		requests_per_second => 0.1));

# Sent, refused for an hour, partly handed out, and waiting
my $done = push_id($node, 'done', server => 'chat');
settle($node);
my $again = push_id($node, 'first1-code-60028', server => 'chat');
my $large = push_id(
	$node,
	\"ARRAY(SELECT 'large-' || n FROM generate_series(1, 1200) n)",
	server => 'slow');
my $waiting = push_id(
	$node, 'waiting',
	server => 'slow',
	title => 'waiting',
	priority => 0,
	dedup_key => 'k');
$node->poll_query_until(
	'postgres',
	"SELECT (SELECT state = 'retrying' FROM push_status WHERE push_id = $again)
	    AND (SELECT sent = 500 FROM push_status WHERE push_id = $large)"
) or die "the pushes are not where they should be\n";

# What both databases should know
sub open_pushes
{
	my ($db) = @_;
	return $node->safe_psql($db, <<'SQL');
SELECT s.push_id, s.server, s.accounts, s.sent, s.waiting, o.handed_out, o.dedup_key
FROM push_status s LEFT JOIN push_outbox o ON o.id = s.push_id
WHERE s.waiting > 0 ORDER BY 1
SQL
}

sub held
{
	my ($db) = @_;
	return $node->safe_psql($db,
		"SELECT string_agg(state, ' ' ORDER BY server) FROM push_server");
}

# Nothing arrives for a while
sub is_silent
{
	my ($name) = @_;
	my $before = $tim->stats->{accepted};

	sleep 3;
	is($tim->stats->{accepted}, $before, $name);
	return;
}

$node->safe_psql('postgres',
	"SELECT timpush_pause('chat'), timpush_pause('slow')");
$node->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM push_request WHERE state = 'sending'");
my $open = open_pushes('postgres');
is(scalar(split /\n/, $open), 3, 'three pushes are open');

#
# Out of a dump
#
foreach my $format ('plain', 'custom')
{
	my $db = "restored_$format";

	$node->command_ok(
		[ 'pg_dump', "--format=$format", '-f', "$dump.$format", 'postgres' ],
		"pg_dump, $format");
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->command_ok(
		$format eq 'plain'
		? [
			'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1',
			'-f', "$dump.plain", $db
		  ]
		: [
			'pg_restore', '--exit-on-error',
			'--jobs=3', '-d',
			$db, "$dump.custom"
		],
		"restored, $format");
	$node->poll_query_until($db,
		"SELECT count(*) = 2 FROM push_server WHERE state = 'held'")
	  or die "the servers are not held\n";
	is(open_pushes($db), $open, "$db: has what is open, and nothing else");
	is( $node->safe_psql(
			$db, "SELECT count(*) FROM push_status WHERE push_id = $done"),
		0,
		"$db: has nothing that is done");
	like(
		$node->safe_psql($db, 'SELECT DISTINCT reason FROM push_server'),
		qr/^copied from another database/,
		"$db: push_server says why it is held");
	is( scalar log_lines(
			$node, qr/WARNING:  timpush: database "$db" is a copy of another/
		),
		1,
		"$db: so does the log, once");
}
is_silent('copies out of a dump send nothing');

#
# Of a template, in use before anybody has looked
#
wait_for_worker($node, 0);
$node->safe_psql('postgres', 'SELECT pg_stat_clear_snapshot()');
$node->safe_psql('template1', 'CREATE DATABASE twin TEMPLATE postgres');
my $late = push_id($node, 'late', server => 'chat', dbname => 'twin');
$node->poll_query_until('twin',
	"SELECT count(*) = 2 FROM push_server WHERE state = 'held'")
  or die "the servers are not held\n";
is_silent('a copy of a template sends nothing');
cmp_ok($late, '>', $waiting, 'pushes are numbered on');
is(held('postgres'), 'paused paused', 'the original is as it was');

# a restart changes nothing
$node->restart;
is_silent('nor after a restart');
is(held($_), 'held held', "$_: is held")
  foreach 'restored_plain', 'restored_custom', 'twin';

#
# On demand they send, each server by itself
#
$node->safe_psql('restored_plain', "SELECT timpush_resume('chat')");
settle($node, dbname => 'restored_plain', where => "server = 'chat'");
is(status($node, $again, dbname => 'restored_plain')->{state},
	'sent', 'a server that is resumed sends');
is(held('restored_plain'), 'active held', 'the other one does not');
is( push_id(
		$node, 'x',
		server => 'slow',
		title => 'waiting',
		dedup_key => 'k',
		dbname => 'restored_plain'),
	$waiting,
	'a key that was restored is known');
$node->safe_psql('restored_plain',
	"ALTER SERVER slow OPTIONS (SET requests_per_second '0'); SELECT timpush_resume('slow')"
);
settle($node, dbname => 'restored_plain');
my $status = status($node, $large, dbname => 'restored_plain');
is( "$status->{sent} of $status->{accounts}",
	'1200 of 1200',
	'a large push goes on where it was');
is(scalar(requests_with($tim, 'large-1')),
	1, 'what had been sent is not sent again');
is(scalar(requests_with($tim, 'large-1200')), 1, 'the rest is, once');

# A database that is used for the first time is nobody's copy
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh',
	'CREATE EXTENSION timpush; ' . $tim->create_server_sql('chat'));
push_id($node, 'fresh', dbname => 'fresh');
settle($node, dbname => 'fresh');
is(held('fresh'), 'active', 'a database of its own sends at once');


#
# Parts of dumps, and dumps that come back to where they were taken
#
sub held_warnings
{
	my ($db) = @_;
	return
	  scalar log_lines($node,
		qr/WARNING:  timpush: database "$db" .* its servers are held/);
}

sub wait_for_held
{
	my ($db) = @_;
	$node->poll_query_until($db,
		"SELECT count(*) > 0 FROM push_server WHERE state = 'held'")
	  or die "the servers of $db are not held\n";
	return;
}

sub dump_and_restore
{
	my ($from, $to, @options) = @_;

	$node->command_ok([ 'pg_dump', @options, '-f', "$dump.part", $from ],
		"pg_dump @options");
	$node->command_ok(
		[ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', "$dump.part", $to ],
		"restored into $to");
	return;
}

# of what is open, each alone
foreach my $part ([ 'empty', '--schema-only' ], [ 'rows', '--data-only' ])
{
	my ($db, $option) = @$part;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql(
		$db,
		'CREATE EXTENSION timpush; '
		  . $tim->create_server_sql('chat')
		  . $tim->create_server_sql(
			'slow',
			sdkappid => 1001,
			secret_key => 'key')) if $option eq '--data-only';
	dump_and_restore('postgres', $db, $option);
}
is(open_pushes('empty'), '', 'a dump of the schema alone has no pushes');
push_id($node, 'empty', server => 'chat', dbname => 'empty');
settle($node, dbname => 'empty');
is(held('empty'), 'active active', 'and is no copy of any');
wait_for_held('rows');
is(open_pushes('rows'), $open, 'a dump of the data alone has all of them');
is(held_warnings('rows'), 1, 'and the log says that they are held');

# of one table, into a database that is sending
push_id($node, 'own', dbname => 'fresh');
settle($node, dbname => 'fresh');
dump_and_restore('postgres', 'fresh', '--data-only', '--table=push_outbox');
wait_for_held('fresh');
is( $node->safe_psql(
		'fresh', 'SELECT server, state FROM push_server ORDER BY server'),
	"chat|held\nslow|held",
	'what comes into a sending database makes it hold, also a server that it has not'
);
is(held_warnings('fresh'), 1, 'and say so');

# one table comes without its sequence
$node->safe_psql('fresh',
	"SELECT setval('push_outbox_id_seq', max(id)) FROM push_outbox");
push_id($node, 'more', dbname => 'fresh');
is_silent('nothing of a part is sent');

# into the database that it was taken from: what has been sent since comes
# back as well
$node->safe_psql('fresh', <<'SQL');
SELECT timpush_cancel(id) FROM push_outbox;
SELECT timpush_resume('chat');
SQL
$node->safe_psql('fresh', $tim->create_server_sql('slow'));
is(held('fresh'), 'active held', 'a held server is held when it is made');
$node->safe_psql('fresh', "SELECT timpush_pause('chat')");
push_id($node, 'again', dbname => 'fresh', server => 'chat');
$node->command_ok(
	[ 'pg_dump', '--format=custom', '-f', "$dump.fresh", 'fresh' ],
	'pg_dump');
$node->safe_psql('fresh', "SELECT timpush_resume('chat')");
settle($node, dbname => 'fresh');

foreach my $option ('--data-only', '--exit-on-error')
{
	$node->safe_psql('fresh', 'DROP EXTENSION timpush CASCADE')
	  unless $option eq '--data-only';
	$node->command_ok([ 'pg_restore', $option, '-d', 'fresh', "$dump.fresh" ],
		"pg_restore $option");
	wait_for_held('fresh');
	is_silent('what is restored where it was is not sent');
}
is(scalar(requests_with($tim, 'again')), 1, 'once it was');
is(held_warnings('fresh'), 3, 'each time the log says so');
$node->safe_psql('fresh', "SELECT timpush_resume('chat')");
settle($node, dbname => 'fresh');
is(scalar(requests_with($tim, 'again')), 2, 'on demand it is');

# resumed before any worker has looked
set_config($node, 'timpush.enabled' => 'off');
$node->safe_psql('postgres', 'CREATE DATABASE early');
dump_and_restore('postgres', 'early');
$node->safe_psql('early', "SELECT timpush_resume('chat')");
is(held('early'), 'active held',
	'timpush_resume() holds the others, and cannot come too early');
set_config($node, 'timpush.enabled' => undef);
settle($node, dbname => 'early', where => "server = 'chat'");
is(held('early'), 'active held', 'and the worker leaves it at that');

# who may not see all pushes cannot dump them
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE reader LOGIN IN ROLE pg_read_all_data;
CREATE ROLE stranger LOGIN;
SQL
foreach my $role ([ 'reader', qr/row-level security/ ],
	[ 'stranger', qr/permission denied|may lack SELECT privilege/ ])
{
	$node->command_fails_like(
		[ 'pg_dump', '-U', $role->[0], '-f', "$dump.role", 'postgres' ],
		$role->[1], "pg_dump by a $role->[0] fails");
}

# Files are copied as blocks are, and a database that is renamed is the same.
wait_for_worker($node, 0);
$node->safe_psql('postgres', 'SELECT pg_stat_clear_snapshot()');
$node->safe_psql('template1',
	'CREATE DATABASE files TEMPLATE postgres STRATEGY file_copy');
push_id($node, 'files', server => 'chat', dbname => 'files');
wait_for_held('files');
is(held('files'), 'held held', 'a copy by files is held');
$node->safe_psql('postgres',
	'ALTER DATABASE restored_plain RENAME TO renamed');
push_id($node, 'renamed', server => 'chat', dbname => 'renamed');
settle($node, dbname => 'renamed');
is(held('renamed'), 'active active', 'a database that is renamed is not');

$node->stop;
done_testing();
