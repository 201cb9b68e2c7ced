
# Many sessions that cancel what the worker is about to send, is sending or is
# to send again: every push is either cancelled or sent, and every answer of
# timpush_cancel() is true to what happened.

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
my $script = PostgreSQL::Test::Utils::tempdir . '/cancel.sql';

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub wait_for_state
{
	my ($id, $state) = @_;

	$node->poll_query_until('postgres',
		"SELECT state = '$state' FROM push_status WHERE push_id = $id")
	  or die "push $id does not become $state\n";
	return;
}

#
# A session that splits a request takes its number from further ahead than the
# worker's own, which must not make the worker lose sight of what is on its
# way for the first time.
#
sql("SELECT setval('push_request_id_seq', 5000)");
sql($tim->create_server_sql('chat') . "SELECT timpush_pause('chat')");
my @pair = map { push_id($node, "pair-$_", title => 'pair') } 1 .. 2;
$tim->rules([ { kind => 'code', arg => 70009, count => 1 } ]);
sql("SELECT timpush_resume('chat')");
wait_for_state($pair[0], 'retrying');
sql("SELECT setval('push_request_id_seq', 20000)");
is(sql("SELECT timpush_cancel($pair[0]); SELECT timpush_resume('chat')"),
	"t\n", 'a session splits a request');
settle($node);
is(status($node, $pair[1])->{state}, 'sent', 'the rest of it is sent');
my $slow = push_id($node, 'slow-5000');
wait_for_state($slow, 'sending');
my $behind = push_id($node, 'behind', title => 'other');
settle($node, where => "push_id = $behind");
cmp_ok(
	(requests($node, $pair[1]))[0]{id},
	'>',
	(requests($node, $slow))[0]{id},
	'the session\'s number is ahead of the worker\'s');
kill_worker($node);
settle($node);
is(status($node, $slow)->{state}, 'sent', 'after a crash nothing is lost');
is(status($node, $slow)->{maybe_duplicate}, 1, 'and what is in doubt marked');

#
# The race
#
my $pushes = 4000;
sql(<<"SQL");
SELECT timpush_pause('chat');
ALTER SERVER chat OPTIONS (SET requests_per_second '200');
CREATE TABLE noted (n serial PRIMARY KEY, push_id bigint);
CREATE TABLE answers (push_id bigint, cancelled boolean);
-- one in four shares its call with many others, one in forty takes two calls
INSERT INTO noted (push_id)
SELECT timpush_batch('administrator',
         ARRAY(SELECT concat('r', n, '-', m) FROM generate_series(1, CASE WHEN n % 40 = 0 THEN 800 ELSE 1 + n % 2 END) m),
         CASE WHEN n % 4 = 1 THEN 'shared ' || n % 5 ELSE 'title ' || n END, 'text')
FROM generate_series(1, $pushes) n;
SQL

# Some of what is cancelled is not committed.
append_to_file($script, <<"SQL");
\\set n random(1, $pushes)
\\set kind random(1, 5)
SELECT push_id AS id FROM noted WHERE n = :n \\gset
\\if :kind = 1
BEGIN;
SELECT timpush_cancel(:id);
ROLLBACK;
\\else
INSERT INTO answers SELECT :id, timpush_cancel(:id);
\\endif
SQL

sub pgbench
{
	my ($seconds) = @_;
	my ($out, $err) = ('', '');

	return IPC::Run::start(
		[
			'pgbench', '-n', '-c', 4,
			'-j', 2, '-T', $seconds,
			'-R', 200, '-f', $script,
			'-h', $node->host, '-p', $node->port,
			'postgres'
		],
		'<',
		\undef,
		'>',
		\$out,
		'2>',
		\$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
}

$tim->rules(
	[
		{ kind => 'code', arg => 60014, probability => 0.1 },
		{ kind => 'acct', arg => 91000, account => 'r', probability => 0.05 },
		{ kind => 'drop-after', probability => 0.005 },
		{ kind => 'latency', arg => 50, probability => 0.5 },
	]);
sql("SELECT timpush_resume('chat')");
my $bench = pgbench(60);
$node->poll_query_until('postgres',
	"SELECT count(*) > 700 FROM push_result WHERE state = 'sent'");
kill_worker($node);
$bench->finish;
isnt($bench->result(0), 0, 'the sessions are ended by a crash');
$bench = pgbench(10);
ok($bench->finish, 'and go on after it');
$tim->clear_rules;
settle($node);

is( sql("SELECT count(*) > 100, count(*) FILTER (WHERE n > 1)
		 FROM (SELECT count(*) AS n FROM answers WHERE cancelled GROUP BY push_id) c"
	),
	't|0',
	'many pushes were cancelled, each once');
is( sql("SELECT count(*) FROM push_status s
		 WHERE (cancelled > 0) <> EXISTS (SELECT FROM answers a WHERE a.push_id = s.push_id AND a.cancelled)
		   AND push_id <> $pair[0]"),
	0,
	'those are cancelled that were said to be, and no others');
is( sql("SELECT count(*) FROM push_status s JOIN noted USING (push_id)
		 WHERE sent + failed + cancelled + unknown <> accounts"),
	0,
	'every other account was sent');
is(sql('SELECT count(*) FROM push_error WHERE error_code <> 91000'),
	0, 'or has failed too often');
note sql(
	"SELECT s.state, count(*), sum(sent) AS sent, sum(cancelled) AS cancelled,
		   sum(maybe_duplicate) AS twice, count(a.push_id) AS cancelled_in_vain
		 FROM push_status s LEFT JOIN (SELECT DISTINCT push_id FROM answers WHERE NOT cancelled) a USING (push_id)
		 GROUP BY 1 ORDER BY 1");
note sql(
	"SELECT state, class, parent IS NOT NULL AS child, count(*) FROM push_request GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
);
is(scalar log_lines($node, qr/lock timeout|deadlock detected/),
	0, 'nobody waited for long');
is( sql("SELECT count(*) FROM push_request
		 WHERE next_attempt_at IS NOT NULL AND state <> 'retry'"),
	0,
	'nothing that has ended stays among what goes again');
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
