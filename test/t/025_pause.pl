
# Servers that are paused and resumed: nothing leaves meanwhile, whatever else
# happens, and all that is still wanted leaves afterwards.

use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use FakeTIM;
use TimpushTest;

# Servers of different apps, so that the limits and pauses of one are not
# another's
my $tim = FakeTIM->new(
	apps => {
		1600150143 => 'another-key',
		map { $_ => 'key' } 1001, 1002
	})->start;
my $node = start_node('main');
my $key_file = PostgreSQL::Test::Utils::tempdir . '/chat.key';

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

sub state_of
{
	my $server = server_state($node, $_[0]);

	return $server->{state}
	  . ($server->{reason} ? ": $server->{reason}" : '');
}

sub in_seconds
{
	return scalar(gmtime(time + $_[0])) . ' UTC';
}

sub seen
{
	return scalar requests_with($tim, $_[0]);
}

# A push to an active server is sent: whatever the worker had to look at before
# that, it has.
my $marks = 0;

sub worker_has_looked
{
	my $id = push_id($node, 'mark', server => 'open', title => $marks++);
	settle($node, where => "push_id = $id");
	return;
}

append_to_file($key_file, 'not-the-key');
sql(    $tim->create_server_sql('open', sdkappid => 1001, secret_key => 'key')
	  . $tim->create_server_sql('chat')
	  . $tim->create_server_sql(
		'paced',
		sdkappid => 1002,
		secret_key => 'key',
		requests_per_second => 5)
	  . $tim->create_server_sql('wrong', secret_key_file => $key_file));
my $user = sql('SELECT current_user');

#
# Paused
#
worker_has_looked();
pause('chat');
is(state_of('chat'), "paused: paused by $user", 'push_server says so');
my $since = server_state($node, 'chat')->{since};
pause('chat');
is(server_state($node, 'chat')->{since},
	$since, 'to pause a paused server changes nothing');
my $id = push_id($node, 'waits', server => 'chat');
worker_has_looked();
is(seen('waits'), 0, 'nothing leaves for it, but for another one');
my $status = status($node, $id);
is($status->{state}, 'waiting', 'the push waits');
is($status->{error_info}, "paused by $user", 'and says why');

# across a restart of any kind
foreach my $mode ('fast', 'immediate')
{
	$node->stop($mode);
	$node->start;
	worker_has_looked();
	is(seen('waits'), 0, "nothing leaves after a restart ($mode)");
}
is(state_of('chat'), "paused: paused by $user", 'the pause outlives it');

# What expires meanwhile ends at once and does not leave later; what is to be
# sent later, or came later with a higher priority, goes in its order.
my $expires = push_id(
	$node, 'expires',
	server => 'chat',
	expires_at => in_seconds(2));
$node->poll_query_until('postgres',
	"SELECT state = 'expired' FROM push_status WHERE push_id = $expires")
  or die "the push does not expire\n";
pass('a push expires in a paused server');
is(state_of('chat'), "paused: paused by $user", 'which stays paused');
resume('chat');
settle($node);
is(state_of('chat'), 'active', 'push_server says that it is resumed');
is(seen('waits'), 1, 'what waited leaves');
is(seen('expires'), 0, 'what has expired does not');

pause('paced');
foreach my $n (1 .. 3)
{
	push_id($node, "low-$n", server => 'paced', title => "low $n");
}
push_id(
	$node, 'high',
	server => 'paced',
	title => 'high',
	priority => 9);
push_id(
	$node, 'due',
	server => 'paced',
	title => 'due',
	send_at => in_seconds(1),
	priority => 8);
push_id(
	$node, 'far',
	server => 'paced',
	title => 'far',
	priority => 9,
	send_at => in_seconds(3600));
sleep 1.5;
resume('paced');
settle($node, where => "state <> 'scheduled'");
my @order =
  sort {
	(requests_with($tim, $a))[0]{time} <=> (requests_with($tim, $b))[0]{time}
  } qw(low-1 low-2 low-3 high due);
is( "@order",
	'high due low-1 low-2 low-3',
	'those of higher priority go first, whenever they came');
is(seen('far'), 0, 'those for later wait');
is( sql("SELECT timpush_cancel(push_id) FROM push_status WHERE waiting > 0"),
	't', 'and can be cancelled');

# What is on its way at the pause ends as it does.
$id = push_id($node, 'slow-1500', server => 'chat');
$node->poll_query_until('postgres',
	"SELECT state = 'sending' FROM push_status WHERE push_id = $id");
pause('chat');
my $next = push_id($node, 'next', server => 'chat');
settle($node, where => "push_id = $id");
is(status($node, $id)->{state}, 'sent', 'what was on its way is recorded');
worker_has_looked();
is(seen('next'), 0, 'nothing follows it');
resume('chat');
settle($node);
is(seen('next'), 1, 'until the server is resumed');

# Its trouble then is not written over the pause, and is no work for the worker.
$id = push_id($node, [ 'slow-1000-b', 'code-70009' ], server => 'chat');
$node->poll_query_until('postgres',
	"SELECT state = 'sending' FROM push_status WHERE push_id = $id");
pause('chat');
$node->poll_query_until('postgres',
	"SELECT state = 'retrying' FROM push_status WHERE push_id = $id");
worker_has_looked();
sleep 0.5;
my $activity = q{SELECT xact_commit + xact_rollback, a.state, a.state_change
	FROM pg_stat_database d JOIN pg_stat_activity a USING (datname)
	WHERE d.datname = 'postgres' AND a.backend_type = 'timpush worker'};
my $before = $node->safe_psql('template1', $activity);
sleep 1.5;
is($node->safe_psql('template1', $activity),
	$before, 'the worker has nothing to do');
is(state_of('chat'), "paused: paused by $user", 'the server stays paused');
is(sql("SELECT timpush_cancel($id)"),
	't', 'what was refused can be cancelled');
resume('chat');

# What was claimed, but has to wait for the limit, does not leave any more: two
# databases share an app of a call in four seconds.  When both may send, the one
# whose journal is slower to write is too late.
my %slow = (
	sdkappid => 1600150143,
	secret_key => 'another-key',
	requests_per_second => '0.25');
$node->safe_psql('postgres', 'CREATE DATABASE rival');
$node->safe_psql('rival',
	'CREATE EXTENSION timpush;' . $tim->create_server_sql('slow', %slow));
sql($tim->create_server_sql('slow', %slow));
foreach my $slowness ([ 'rival', 0.2 ], [ 'postgres', 0.6 ])
{
	$node->safe_psql($slowness->[0], <<"SQL");
CREATE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM pg_sleep(TG_ARGV[0]::float); RETURN NEW; END';
CREATE TRIGGER doze BEFORE INSERT ON push_request FOR EACH ROW EXECUTE FUNCTION doze($slowness->[1]);
SQL
}
my $held = 0;
foreach my $round (1 .. 5)
{
	last if $held;
	push_id($node, "token-$round", dbname => 'rival');
	settle($node, dbname => 'rival');
	my $rival = push_id($node, "rival-$round", dbname => 'rival');
	my $mine = push_id($node, "mine-$round", server => 'slow');

	# one of the two leaves
	wait_until(sub { seen("rival-$round") || seen("mine-$round") },
		'the next call');
	sleep 1;
	if (!seen("mine-$round"))
	{
		$held++ if status($node, $mine)->{state} eq 'sending';
		pause('slow');
		$node->poll_query_until('postgres',
			"SELECT state <> 'sending' FROM push_status WHERE push_id = $mine"
		);
		is(sql("SELECT timpush_cancel($mine)"),
			't', 'what has not left can be cancelled');
		resume('slow');
	}
	settle($node, where => "push_id = $mine");
	settle($node, dbname => 'rival');
	is( seen("mine-$round"),
		status($node, $mine)->{sent},
		'and does not leave');
}
is($held, 1, 'such a one was there');
sql('DROP TRIGGER doze ON push_request');

# Of what has been tried before, what expires meanwhile ends as well.
$tim->rules([ { kind => 'code', arg => 91000, account => 'tried' } ]);
my @tried = map {
	push_id(
		$node, "tried-$_",
		server => 'chat',
		title => "tried $_",
		$_ == 1 ? (expires_at => in_seconds(4)) : ())
} 1 .. 2;
wait_until(sub { seen('tried-1') && seen('tried-2') }, 'the first attempts');
pause('chat');
$node->poll_query_until('postgres',
	"SELECT state = 'expired' FROM push_status WHERE push_id = $tried[0]")
  or die "the push does not expire\n";
pass('a push that was refused expires in a paused server');
is(status($node, $tried[1])->{state}, 'retrying', 'another one waits');
$tim->clear_rules;
resume('chat');
settle($node);
is(status($node, $tried[1])->{state}, 'sent', 'and is sent');

#
# A transaction that is left open holds up nothing.
#
my $session = $node->background_psql('postgres', on_error_stop => 1);
my $listener = $node->background_psql('postgres', on_error_stop => 1);
$listener->query_safe('LISTEN timpush');
my $seen = -s $node->logfile;
$session->query_safe("BEGIN; SELECT timpush_pause('wrong')");
push_id($node, 'refused', server => 'wrong');
$node->wait_for_log(qr/server "wrong" is suspended/, $seen);
worker_has_looked();
is(state_of('wrong'), 'active',
	'the trouble of a server that is being paused cannot be noted yet');
$session->query_safe('ROLLBACK');
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'wrong'")
  or die "the trouble is not noted\n";
pass('but when the pause is rolled back');

# The row of a server that was not used before
sql("DELETE FROM push_server WHERE server = 'chat'");
$session->query_safe("BEGIN; SELECT timpush_pause('chat')");
sql("ALTER SERVER open OPTIONS (SET requests_per_second '1000')");
worker_has_looked();
my $during = push_id($node, 'during', server => 'chat');
worker_has_looked();
$session->query_safe('COMMIT');
is( state_of('chat'),
	"paused: paused by $user",
	'a server can be paused before it is used');
worker_has_looked();
resume('chat');
settle($node, where => "server = 'chat'");
is(seen('during'), 1, 'and resumed');
is(scalar log_lines($node, qr/lock timeout/),
	0, 'the worker has waited for no lock');

#
# Resuming makes a server be tried at once.
#
unlink $key_file;
append_to_file($key_file, $tim->key);
is(server_state($node, 'wrong')->{error_code},
	70009, 'a server is suspended for its key');
my $began = time;
resume('wrong');
settle($node);
cmp_ok(time - $began,
	'<', 30,
	'it is tried at once when it is resumed, with the key read anew');
is(state_of('wrong'), 'active', 'and is active');

# An hour's rest
$id = push_id($node, 'first1-code-60028', server => 'wrong');
wait_until(sub { seen('first1-code-60028') }, 'the first call');
my $fresh = push_id($node, 'fresh', server => 'wrong');
worker_has_looked();
is(status($node, $fresh)->{state}, 'waiting', 'a server rests for long');
is(sql("SELECT timpush_cancel($id)"),
	't', 'what is to go again later can be cancelled');
resume('wrong');
settle($node, where => "push_id = $fresh");
is(seen('fresh'), 1, 'until it is resumed');

# Paused in its trouble
unlink $key_file;
sql("ALTER USER MAPPING FOR PUBLIC SERVER wrong OPTIONS (ADD usersig_lifetime '2d')"
);
push_id($node, 'without-key', server => 'wrong');
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'wrong'");
pause('wrong');
is( state_of('wrong'),
	"paused: paused by $user",
	'a suspended server is paused');
append_to_file($key_file, $tim->key);
worker_has_looked();
is(seen('without-key'), 0, 'and stays so when it could go on');
resume('wrong');
settle($node);
is(seen('without-key'), 1, 'until it is resumed');

# Paused while the worker is in a transaction that is going to note a trouble:
# it notes that of another server first, and is slow at that.
unlink $key_file;
sql("ALTER USER MAPPING FOR PUBLIC SERVER wrong OPTIONS (SET usersig_lifetime '3d');"
	  . $tim->create_server_sql('wrong too', secret_key_file => $key_file));
worker_has_looked();
sql(<<'SQL');
CREATE TRIGGER doze BEFORE UPDATE ON push_server FOR EACH ROW
  WHEN (NEW.server = 'wrong' AND NEW.state = 'suspended') EXECUTE FUNCTION doze(2);
SELECT timpush_batch('administrator', ARRAY['meanwhile'], 'title', 'text', server => s)
FROM unnest(ARRAY['wrong', 'wrong too']::name[]) s;
SQL
$node->poll_query_until(
	'postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity
	 WHERE backend_type = 'timpush worker' AND wait_event = 'PgSleep'"
) or die "the worker notes no trouble\n";
pause('wrong too');
is(state_of('wrong'), 'active', 'the worker is in its transaction');
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'wrong'");
is( state_of('wrong too'),
	"paused: paused by $user",
	'a pause is not overwritten by trouble');
sql('DROP TRIGGER doze ON push_server');
append_to_file($key_file, $tim->key);
resume('wrong');
resume('wrong too');
settle($node);

$session->quit;
is_deeply(
	[ map { /"chat" is (\w+)/ } log_lines($node, qr/server "chat" is/) ],
	[
		('paused', 'resumed') x 2, 'paused',
		'suspended', 'resumed',
		('paused', 'resumed') x 2
	],
	'each change is logged once'
) or note log_lines($node, qr/server "chat" is/);

# What a listener was told
my %told;
foreach my $payload ($listener->query_safe('SELECT 1') =~
	/notification "timpush" with payload "(.*)" received/g)
{
	my $change = decode_json($payload);

	is( join(' ', sort keys %$change),
		'database error_code server state',
		'a change is told');
	push @{ $told{ $change->{server} } },
	  join ' ', grep { defined } @$change{qw(state error_code)};
}
is_deeply(
	$told{wrong},
	[
		'suspended 70009', 'active', 'suspended', 'paused',
		'active', 'suspended', 'active'
	],
	'each change of a state is told once');
is( scalar(
		grep { $told{chat}[$_] eq $told{chat}[ $_ - 1 ] }
		  1 .. $#{ $told{chat} }),
	0,
	'and no other one');
$listener->quit;
is( sql("SELECT count(*) FROM push_request
		 WHERE next_attempt_at IS NOT NULL AND state <> 'retry'"),
	0,
	'nothing that has ended stays among what goes again');
$tim->ok_ledger(
	$node,
	'tables and ledger agree',
	dbname => [ 'postgres', 'rival' ]);
$node->stop;
done_testing();
