
# Outcomes that cannot be recorded and pushes that cannot be claimed, for
# reasons that are real: users' triggers and constraints, locks, settings of
# roles, a full disk.  Nothing is lost or sent twice, one row at fault does not
# stop the others, and the log tells of each change of state once.

use strict;
use warnings;

use File::Temp qw(tempdir);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node(
	'main',
	restart_after_crash => 'on',
	'timpush.default_server' => 'a');

# both may send what they like, so that only what is tested holds them back
$node->safe_psql('postgres',
	$tim->create_server_sql('a') . $tim->create_server_sql('b'));

sub logged
{
	my ($pattern) = @_;
	return scalar log_lines($node, $pattern);
}

sub wait_for_lines
{
	my ($pattern, $n) = @_;
	return wait_until(sub { logged($pattern) >= $n }, "$n lines $pattern");
}

sub is_sent
{
	my ($id, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$node->poll_query_until('postgres',
		"SELECT waiting = 0 FROM push_status WHERE push_id = $id");
	return is(status($node, $id)->{state}, 'sent', $what);
}

# A trigger that raises for requests with a title, whose error names it.
sub refuse
{
	my ($table, $when, $condition, $name) = @_;

	return $node->safe_psql(
		'postgres', qq{
		CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
		  'BEGIN RAISE EXCEPTION ''refused by %'', TG_NAME; END';
		CREATE TRIGGER $name $when ON $table FOR EACH ROW
		  WHEN ($condition) EXECUTE FUNCTION refuse()});
}

sub title_is
{
	my ($title) = @_;
	return "NEW.content->'OfflinePushInfo'->>'Title' = '$title'";
}

sub seen { return scalar requests_with($tim, $_[0]); }

# Requests that were made of one account must have been made once.
sub is_seen_once
{
	my ($what, @accounts) = @_;
	my %count = map { $_ => seen($_) } @accounts;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is_deeply(\%count, { map { $_ => 1 } @accounts }, $what);
}

#
# A push that cannot be claimed
#

refuse('push_request', 'BEFORE INSERT', title_is('bad'), 'no_bad');
my ($bad, @good) = split /\n/, $node->safe_psql(
	'postgres', q{
	SELECT timpush_batch('administrator', ARRAY['claim-bad'], 'bad', 'text')
	UNION ALL
	SELECT timpush_batch('administrator', ARRAY['claim-' || n], 'good ' || n, 'text')
	FROM generate_series(1, 40) n});

is_sent($_, "the push behind it is sent") foreach @good[ 0, 39 ];
settle($node, where => "push_id <> $bad");
wait_for_lines(qr/WARNING:.*push $bad is set aside/, 1);
is(status($node, $bad)->{state}, 'waiting', 'a push that is refused waits');

# it has been tried by itself at least once when this has passed
sleep 1.5;
is_sent(push_id($node, 'claim-later', title => 'later'),
	'what comes later is sent');
is( logged(
		qr/push $bad is set aside, because it makes the transaction fail: refused by no_bad/
	),
	1,
	'the log names it, and why, once');
is(logged(qr/set aside/), 1, 'and no other push');

$node->safe_psql('postgres', 'DROP TRIGGER no_bad ON push_request');
is_sent($bad, 'it is sent when it is no longer refused');
wait_for_lines(qr/push $bad is no longer set aside/, 1);
is_seen_once('each was sent once',
	'claim-bad', 'claim-later', map { "claim-$_" } 1 .. 40);

# a row that is referred to cannot be deleted
my $referred = push_id(
	$node, 'claim-referred',
	title => 'referred',
	send_at => '2100-01-01');
$node->safe_psql(
	'postgres', qq{
	CREATE TABLE diary (push bigint REFERENCES push_outbox);
	INSERT INTO diary VALUES ($referred);
	UPDATE push_outbox SET send_at = now() WHERE id = $referred});
is_sent(
	push_id($node, 'claim-free', title => 'free'),
	'one that nothing refers to is sent');
wait_for_lines(qr/push $referred is set aside.*diary/, 1);
is(seen('claim-referred'), 0,
	'a push that a foreign key refers to has not left');
$node->safe_psql('postgres', 'DROP TABLE diary');
is_sent($referred, 'it leaves when nothing refers to it');

# nor can an expired one end, if that is refused
refuse(
	'push_request', 'BEFORE INSERT',
	"NEW.state = 'expired' AND " . title_is('mayfly'), 'no_end');
$node->safe_psql('postgres', "SELECT timpush_pause('a')");
my ($mayfly, $fly) = split /\n/, $node->safe_psql(
	'postgres', q{
	SELECT timpush_batch('administrator', ARRAY['expire-' || t], t, 'text',
		expires_at => now() + interval '1s')
	FROM unnest(ARRAY['mayfly', 'fly']) t});
settle($node, where => "push_id <> $mayfly");
wait_for_lines(qr/push $mayfly is set aside/, 1);
is(status($node, $fly)->{state}, 'expired', 'another push expires');
$node->safe_psql('postgres', 'DROP TRIGGER no_end ON push_request');
settle($node);
is(status($node, $mayfly)->{state}, 'expired', 'and then this one too');
$node->safe_psql('postgres', "SELECT timpush_resume('a')");

# a request that is to go again
refuse(
	'push_request', 'BEFORE UPDATE',
	"NEW.state = 'sending' AND " . title_is('again'), 'no_again');
my $again = push_id($node, 'first1-code-91000-again', title => 'again');
my $other_again = push_id($node, 'first1-code-91000-other', title => 'other');
is_sent($other_again, 'another request goes again');
wait_for_lines(qr/request \d+ is set aside.*refused by no_again/, 1);
is(status($node, $again)->{state},
	'retrying', 'a request that is refused waits');
$node->safe_psql('postgres', 'DROP TRIGGER no_again ON push_request');
is_sent($again, 'and goes again when it is no longer refused');

# trouble of one server's row in push_server
refuse('push_server', 'BEFORE UPDATE', "NEW.server = 'b'", 'no_note');
$node->safe_psql('postgres',
	$tim->create_server_sql('c', identifier => 'stranger'));
my $suspended = push_id($node, 'server-c', server => 'c');
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'c'");
push_id($node, 'code-70001', server => 'b', title => 'unsigned');
is_sent(
	push_id($node, 'server-a', title => 'server a'),
	'a server goes on whose row is not refused');
$node->safe_psql('postgres', 'DROP TRIGGER no_note ON push_server');
$node->safe_psql('postgres',
	"SELECT count(timpush_cancel(push_id)) FROM push_status WHERE waiting > 0"
);
settle($node);
$node->safe_psql('postgres',
	"DROP SERVER c CASCADE; ALTER SERVER b OPTIONS (request_timeout '9s')");

#
# An outcome that cannot be recorded
#

refuse(
	'push_request', 'BEFORE UPDATE',
	"NEW.state = 'done' AND " . title_is('stuck'), 'no_stuck');
my @together = split /\n/, $node->safe_psql(
	'postgres', q{
	SELECT timpush_batch('administrator', ARRAY['record-' || n],
		CASE n WHEN 3 THEN 'stuck' ELSE 'other ' || n END, 'text')
	FROM generate_series(1, 20) n});
my $stuck = $together[2];

settle($node, where => "push_id <> $stuck");
is(status($node, $stuck)->{state},
	'sending', 'an outcome that is refused waits in memory');
wait_for_lines(
	qr/WARNING:.*outcome of request \d+ cannot be recorded.*server "a": refused by no_stuck/,
	1);
is_sent(push_id($node, 'record-b', server => 'b'), 'another server goes on');
my $held = push_id($node, 'record-held', title => 'held');
sleep 1.5;
is(status($node, $held)->{state},
	'waiting', 'nothing is claimed for its own server');
is(seen('record-held'), 0, 'nothing is sent');
is(logged(qr/outcome of request \d+ cannot be recorded/),
	1, 'the log names the request once');

$node->safe_psql('postgres', 'DROP TRIGGER no_stuck ON push_request');
is_sent($stuck, 'it is recorded when it is no longer refused');
is_sent($held, 'and the server goes on');
wait_for_lines(qr/outcome of request \d+ has been recorded after all/, 1);
is_seen_once('each was sent once', 'record-held',
	map { "record-$_" } 1 .. 20);

# all are refused: a constraint that is not checked for the rows that are there
$node->safe_psql('postgres',
	"ALTER TABLE push_result ADD CONSTRAINT no_sent CHECK (state <> 'sent') NOT VALID"
);
$node->safe_psql(
	'postgres', q{
	SELECT timpush_batch('administrator', ARRAY['slow-300-' || n], 'all ' || n, 'text')
	FROM generate_series(1, 12) n});
wait_for_lines(
	qr/outcomes cannot be recorded, so nothing is claimed.*no_sent/, 1);
my $waits = push_id($node, 'all-waits', server => 'b', title => 'waits');
sleep 2.5;
is(status($node, $waits)->{state},
	'waiting', 'if none can be recorded, nothing is claimed');
is(seen('all-waits'), 0, 'of no server');
is( row($node,
		"SELECT count(*)::integer AS n FROM push_request WHERE state = 'sending'"
	)->{n},
	12,
	'the outcomes wait in memory');
is(logged(qr/outcomes cannot be recorded/), 1, 'the log tells it once');
is(logged(qr/outcomes can be recorded again/), 0, 'and nothing else');
$node->safe_psql('postgres',
	'ALTER TABLE push_result DROP CONSTRAINT no_sent');
settle($node);
is(logged(qr/outcomes can be recorded again/), 1, 'and once that it is over');
is(logged(qr/Failing row/), 0, 'but shows no row, which tells who gets what');
is_seen_once('each was sent once', 'all-waits',
	map { "slow-300-$_" } 1 .. 12);

#
# Locks
#

# the answer comes while the row is locked
my $locked = push_id($node, 'slow-1500-locked', title => 'locked');
$node->poll_query_until('postgres',
	"SELECT state = 'sending' FROM push_status WHERE push_id = $locked");
my $session = $node->background_psql('postgres');
$session->query_safe("BEGIN");
$session->query_safe(
	"SELECT count(*) FROM (SELECT FROM push_request WHERE state = 'sending' FOR UPDATE) q"
);
wait_for_lines(qr/outcome of request \d+ cannot be recorded.*lock timeout/,
	1);
is_sent(push_id($node, 'row-lock', server => 'b', title => 'row lock'),
	'a row that is locked holds its own server only');
$session->query_safe("COMMIT");
is_sent($locked, 'its outcome is recorded when the lock is gone');

# nobody waits for a lock on a table
$locked = push_id($node, 'slow-1000-table', title => 'table');
$node->poll_query_until('postgres',
	"SELECT state = 'sending' FROM push_status WHERE push_id = $locked");
$session->query_safe("BEGIN");
$session->query_safe("LOCK TABLE push_result");
my $waited = 0;
wait_until(
	sub {
		$waited += $node->safe_psql(
			'template1',
			"SELECT count(*) FROM pg_stat_activity
			 WHERE backend_type = 'timpush worker' AND wait_event_type = 'Lock'");
		return logged(qr/waiting for another session's lock/);
	},
	'a line about the lock');
is($waited, 0, 'the worker does not wait for the lock of a table');
sleep 1;
$session->query_safe("COMMIT");
$session->quit;
is_sent($locked, 'the outcome is recorded when the lock is gone');
wait_for_lines(qr/no longer locked/, 1);
is(logged(qr/waiting for another session's lock/), 1,
	'the log tells it once');
is(logged(qr/no longer locked/), 1, 'and once that it is over');
is_seen_once(
	'each was sent once', 'slow-1500-locked',
	'slow-1000-table', 'row-lock');

# what the worker counts reaches the statistics
ok( $node->poll_query_until(
		'postgres',
		"SELECT n_tup_del > 60 FROM pg_stat_user_tables WHERE relname = 'push_outbox'"
	),
	'the statistics count what the worker does');

#
# A request that was left in flight and cannot be read
#

my ($damaged, $whole) =
  map { push_id($node, "first1-slow-60000-$_", title => $_) }
  qw(damaged whole);
$node->poll_query_until('postgres',
	"SELECT count(*) = 2 FROM push_request WHERE state = 'sending'");
wait_until(
	sub {
		seen('first1-slow-60000-damaged') && seen('first1-slow-60000-whole');
	},
	'both calls');
$node->safe_psql(
	'postgres',
	"UPDATE push_request SET accounts = ARRAY[NULL]
	 WHERE accounts = ARRAY['first1-slow-60000-damaged']");
kill_worker($node);
is_sent($whole,
	'a request in doubt goes again beside one that cannot be read');
wait_for_lines(qr/request \d+ is set aside.*null array element/, 1);
is(status($node, $damaged)->{state}, 'sending', 'which waits');
$node->safe_psql(
	'postgres',
	"UPDATE push_request SET accounts = ARRAY['first1-slow-60000-damaged']
	 WHERE accounts = ARRAY[NULL]::text[]");
is_sent($damaged, 'and goes again when it can be read');
is(status($node, $damaged)->{maybe_duplicate}, 1, 'with its mark');

#
# Settings that are for other sessions
#

{
	my %hostile = (
		statement_timeout => '1ms',
		lock_timeout => '1ms',
		idle_in_transaction_session_timeout => '1ms',
		default_transaction_read_only => 'on',
		default_transaction_isolation => 'serializable',
		session_replication_role => 'replica',
		search_path => 'nowhere',
		default_tablespace => '',
		client_encoding => 'SQL_ASCII',
		work_mem => '64kB',
		enable_indexscan => 'off',
		exit_on_error => 'on',
		role => 'pg_monitor',
		synchronous_commit => 'off');
	my $user = $node->safe_psql('postgres', 'SELECT current_user');
	my $before = worker_pid($node);
	my @sql;

	foreach my $name (sort keys %hostile)
	{
		push @sql, "ALTER $_ SET $name = '$hostile{$name}';"
		  foreach "ROLE $user", "DATABASE postgres",
		  "ROLE $user IN DATABASE postgres";
	}

	# in one transaction, as the next session would be read only
	$node->safe_psql('postgres', join("\n", 'BEGIN;', @sql, 'COMMIT;'));

	# our own sessions
	local $ENV{PGOPTIONS} = join ' ',
	  map { "-c $_" }
	  qw(statement_timeout=0 lock_timeout=0 idle_in_transaction_session_timeout=0
	  default_transaction_read_only=off session_replication_role=origin
	  search_path=public role=none exit_on_error=off);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($before)");
	my $id = push_id($node, 'slow-200-settings', title => 'settings');
	is_sent($id,
		'settings of the role and the database do not reach the worker');
	isnt(worker_pid($node), $before, 'of which there is a new one');
	set_config(
		$node,
		statement_timeout => '1ms',
		default_transaction_read_only => 'on');
	is_sent(push_id($node, 'settings-reload', title => 'reload'),
		'nor do those that come by a reload');
	set_config(
		$node,
		statement_timeout => undef,
		default_transaction_read_only => undef);
	$node->safe_psql(
		'postgres',
		"BEGIN; ALTER ROLE $user RESET ALL; ALTER DATABASE postgres RESET ALL;
		 ALTER ROLE $user IN DATABASE postgres RESET ALL; COMMIT");
}
is_seen_once('each was sent once', 'slow-200-settings', 'settings-reload');
unlike(
	slurp_file($node->logfile),
	qr/(?:ERROR|FATAL).*(?:read-only transaction|statement timeout)/,
	'and nothing fails by them');

settle($node);
is(logged(qr/was made again step by step/), 0, 'each failure was explained');
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;

#
# A full disk: a tablespace on a file system of memory, which the server mounts
# for itself in name spaces of its own, so that it takes no privilege
#

SKIP:
{
	my $dir = tempdir(CLEANUP => 1);
	my $unshare = 'unshare -Umc --keep-caps';

	skip 'the kernel grants no user name space', 1
	  if system("$unshare mount -t tmpfs none '$dir' 2>/dev/null") != 0;

	my $bin = tempdir(CLEANUP => 1);
	chomp(my $pg_ctl = `which pg_ctl`);
	append_to_file("$bin/pg_ctl", <<"END");
#!/bin/sh
case " \$* " in
*" start "*) exec $unshare sh -c 'mount -t tmpfs -o size=4m,mode=700 none "$dir" && exec "$pg_ctl" "\$\@"' pg_ctl "\$\@" ;;
*) exec "$pg_ctl" "\$\@" ;;
esac
END
	chmod 0755, "$bin/pg_ctl";
	local $ENV{PATH} = "$bin:$ENV{PATH}";

	my $fake = FakeTIM->new->start;
	$node = start_node('full');
	$node->safe_psql('postgres', $fake->create_server_sql('a'));
	$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$dir'");
	$node->safe_psql('postgres', "ALTER TABLE $_ SET TABLESPACE small")
	  foreach qw(push_request push_result push_error);
	$node->safe_psql('postgres',
		'CREATE TABLE filler (t text) TABLESPACE small');

	# what is in flight is refused account by account, which takes space
	my @ids = split /\n/, $node->safe_psql(
		'postgres', q{
		SELECT timpush_batch('administrator',
			ARRAY['slow-1500-' || n] || array_agg('nobody-' || n || '-' || m), 'full ' || n, 'text')
		FROM generate_series(1, 5) n, generate_series(1, 100) m GROUP BY n});
	$node->poll_query_until('postgres',
		"SELECT count(*) = 5 FROM push_request WHERE state = 'sending'");
	my ($code, $out, $err) = $node->psql(
		'postgres', q{
		DO $$ BEGIN
			LOOP INSERT INTO filler VALUES (repeat('x', 1900)); COMMIT; END LOOP;
		END $$});
	like($err, qr/No space left on device/, 'the disk is full');

	wait_for_lines(
		qr/outcomes cannot be recorded, so nothing is claimed.*No space left/,
		1);
	my @later = map { push_id($node, "full-$_", title => "later $_") } 1 .. 5;
	sleep 3;
	is(scalar(grep { status($node, $_)->{state} eq 'waiting' } @later),
		5, 'nothing is claimed');
	is(scalar(grep { $_->{event} eq 'request' } $fake->ledger),
		5, 'nothing is sent');
	is(logged(qr/cannot be recorded/), 1, 'the log tells it once');
	is(logged(qr/ERROR.*No space left/),
		1, 'our own session had the only error');
	$node->safe_psql('postgres', 'DROP TABLE filler; CHECKPOINT');
	settle($node);
	is(logged(qr/can be recorded again/), 1, 'and once that it is over');
	is(status($node, $ids[0])->{failed},
		100, 'the errors of accounts are there');
	is(scalar(grep { $_->{event} eq 'request' } $fake->ledger),
		10, 'each request was made once');
	$fake->ok_ledger($node, 'tables and ledger agree');
	$node->stop;
}

done_testing;
