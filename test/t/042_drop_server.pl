
# Servers that are dropped or renamed while pushes need them: it is refused, or
# the pushes end with an outcome.  None is left behind without a server.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new(apps => { map { $_ => 'key' } 1001 .. 1010 })->start;
my $node = start_node('main', 'timpush.idle_exit' => '5s');
my $app = 1000;

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# Runs a statement and yields what psql says to it, with SQLSTATE.
sub complaint
{
	my ($sql, @params) = @_;
	my $err = '';

	$node->psql(
		'postgres', $sql,
		stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=verbose', @params ]);
	$err =~ s/^psql:\S+ |^LOCATION:.*\n?//mg;
	chomp $err;
	return $err;
}

# A server of an app of its own, so that no other one's pauses are its own
sub server
{
	my ($name, %options) = @_;

	sql($tim->create_server_sql(
			$name,
			sdkappid => ++$app,
			secret_key => 'key',
			%options));
	return;
}

sub paused_server
{
	server(@_);
	sql("SELECT timpush_pause('$_[0]')");
	return;
}

sub forgotten
{
	my ($name) = @_;
	return sql(
		"SELECT count(*) FROM (SELECT server FROM push_server UNION ALL SELECT server FROM push_server_key) s WHERE server = '$name'"
	) == 0;
}

# Drops the server by CASCADE; yields how long it took.
sub drop
{
	my ($name) = @_;
	my $began = time;

	sql("DROP SERVER $name CASCADE");
	return time - $began;
}

#
# What waits
#
paused_server('waits');
my $waiting = push_id($node, 'w1', server => 'waits', dedup_key => 'once');
my $large = push_id(
	$node,
	\"ARRAY(SELECT 'large-' || n FROM generate_series(1, 1200) n)",
	server => 'waits',
	send_at => '2100-01-01');
sql('DROP USER MAPPING FOR PUBLIC SERVER waits');
is( complaint('DROP SERVER waits'),
	"ERROR:  2BP01: cannot drop server waits because pushes wait for it\n"
	  . "DETAIL:  Push $waiting is one that has no outcome yet.\n"
	  . "HINT:  Wait until they are sent, or use DROP ... CASCADE to end them too.",
	'a server that pushes wait for is not dropped');
is( complaint('ALTER SERVER waits RENAME TO other'),
	"ERROR:  55006: cannot rename server waits because pushes wait for it\n"
	  . "DETAIL:  Push $waiting is one that has no outcome yet.\n"
	  . "HINT:  Wait until they are sent, or take them back with timpush_cancel().",
	'nor renamed');
is( complaint('BEGIN; DROP SERVER waits CASCADE; ROLLBACK'),
	"NOTICE:  00000: drop cascades to 2 pushes of server waits\n"
	  . "DETAIL:  Accounts without an outcome are cancelled, or unknown if the API may have got them.",
	'with CASCADE it is');
is(status($node, $waiting)->{state}, 'waiting', 'which can be rolled back');
ok(!forgotten('waits'), 'wholly');
drop('waits');
is_deeply(
	[
		map { @{ status($node, $_) }{qw(state accounts cancelled waiting)} }
		  $waiting,
		$large
	],
	[ 'cancelled', 1, 1, 0, 'cancelled', 1200, 1200, 0 ],
	'and the pushes are cancelled');
ok(forgotten('waits'), 'nothing is known of the server any more');
like(
	complaint("SELECT timpush_retry($waiting)"),
	qr/42704: server "waits" does not exist/,
	'they cannot go again without a server');
server('waits');
my $again = sql("SELECT timpush_retry($waiting)");
settle($node);
is(status($node, $again)->{state},
	'sent', 'but can with another one of that name, which is not paused');
is(complaint('DROP SERVER waits CASCADE') =~ /push/,
	'', 'a server without pushes is dropped like any');
is(status($node, $again)->{state}, 'sent', 'and what was sent stays known');

#
# What goes again: refused by the API, or in doubt
#
server('again');
my $refused = push_id($node, 'code-60028', server => 'again');
$node->poll_query_until('postgres',
	"SELECT state = 'retrying' FROM push_status WHERE push_id = $refused");
server('doubt');
my $doubt = push_id($node, 'reset-after', server => 'doubt');
$node->poll_query_until('postgres',
	"SELECT state = 'retrying' FROM push_status WHERE push_id = $doubt");
like(
	complaint("DROP USER MAPPING FOR PUBLIC SERVER $_; DROP SERVER $_"),
	qr/2BP01: cannot drop server $_ because/,
	"$_: not dropped") foreach qw(again doubt);
drop($_) foreach qw(again doubt);
is(status($node, $refused)->{state},
	'cancelled', 'what the API has refused is cancelled');
is(status($node, $refused)->{error_code}, 60028, 'its reason stays');
is(status($node, $doubt)->{state}, 'unknown', 'what is in doubt is unknown');

#
# What is on its way
#
server('way', max_in_flight => 10);
my @way = map { push_id($node, $_, server => 'way', title => $_) }
  qw(slow-3000 first1-code-60007);
my $late = push_id(
	$node, [ 'slow-2000', 'drop-after' ],
	server => 'way',
	title => 'late');
wait_until(sub { requests_with($tim, 'slow-3000') }, 'the call');
wait_until(sub { requests_with($tim, 'drop-after') }, 'the other one');
like(
	complaint('DROP USER MAPPING FOR PUBLIC SERVER way; DROP SERVER way'),
	qr/2BP01: cannot drop server way because/,
	'a server is not dropped while calls are on the way');
cmp_ok(drop('way'), '<', 2, 'with CASCADE it is, without waiting for them');
settle($node);
is(status($node, $way[0])->{state}, 'sent', 'their outcome is recorded');
like(status($node, $late)->{state}, qr/^(?:sent|unknown)$/,
	'none goes again');
like(status($node, $way[1])->{state},
	qr/^(?:sent|cancelled)$/, 'nor what was refused');
is( sql("SELECT count(*) FROM push_request WHERE state IN ('sending', 'retry')"
	),
	0,
	'and no call is left');

#
# Orphans, whose server is gone when the worker comes back
#
$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$node->reload;
server('orphans');
my $orphan = push_id($node, 'slow-4000', server => 'orphans');
wait_until(sub { requests_with($tim, 'slow-4000') }, 'the call');
set_config($node, 'timpush.enabled' => 'off');
kill_worker($node);
drop('orphans');
is(status($node, $orphan)->{state},
	'sending', 'what was on its way when the worker died');
set_config($node, 'timpush.enabled' => 'on');
server('wakes');
push_id($node, 'wakes', server => 'wakes');
settle($node);
is(status($node, $orphan)->{state}, 'unknown', 'is in doubt');

#
# Renaming
#
paused_server('old');
is(complaint('ALTER SERVER old RENAME TO new'),
	'', 'a server that nothing waits for is renamed');
is(server_state($node, 'new')->{state}, 'paused', 'it stays paused');
ok(forgotten('old'), 'under the new name only');
my $renamed = push_id($node, 'renamed', server => 'new');
is(sql("SELECT state FROM timpush_wait($renamed, '1s')"),
	'waiting', 'so what comes waits');
sql("SELECT timpush_resume('new')");
settle($node);
is(status($node, $renamed)->{state}, 'sent', 'until it is resumed');

#
# Transactions at the same time
#
server('races');
my $enqueuer = $node->background_psql('postgres', on_error_stop => 0);
my $dropper = $node->background_psql('postgres', on_error_stop => 0);
my $enqueue =
  "SELECT timpush_batch('administrator', '{raced}', 'title', 'text', server => 'races', send_at => '2100-01-01') > 0;";
my $waits = <<'SQL';
SELECT count(*) = 1 FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE '%races%' AND pid <> pg_backend_pid()
SQL
$enqueuer->query("BEGIN; $enqueue");
$dropper->query('DROP USER MAPPING FOR PUBLIC SERVER races');
$dropper->query_until(qr/begun/, "\\echo begun\nDROP SERVER races;\n");
ok( $node->poll_query_until('postgres', $waits),
	'DROP SERVER waits for who has enqueued');
$enqueuer->query('COMMIT');
$dropper->query('SELECT 1');
is(sql("SELECT count(*) FROM pg_foreign_server WHERE srvname = 'races'"),
	1, 'and finds the push');

$dropper->query('BEGIN; DROP SERVER races CASCADE');
$enqueuer->query_until(qr/begun/, "\\echo begun\n$enqueue\n");
ok( $node->poll_query_until('postgres', $waits),
	'who enqueues waits for DROP SERVER');
$dropper->query('COMMIT');
$enqueuer->query('SELECT 1');
is(sql("SELECT count(*) FROM push_outbox WHERE server = 'races'"),
	0, 'and finds the server gone');

server('repeatable');
$dropper->query(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM push_outbox'
);
my $unseen =
  push_id($node, 'unseen', server => 'repeatable', send_at => '2100-01-01');
$dropper->query_until(qr/begun/,
	"\\echo begun\nDROP SERVER repeatable CASCADE;\nCOMMIT;\n");
$dropper->query('SELECT 1');
is(status($node, $unseen)->{waiting},
	1, 'a transaction that does not see a push does not end it');
is( sql("SELECT count(*) FROM pg_foreign_server WHERE srvname = 'repeatable'"
	),
	1,
	'so it cannot drop the server');
$enqueuer->quit;
$dropper->quit;
drop('repeatable');

#
# Other ways to drop a server
#
sql(<<'SQL');
CREATE ROLE holder LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER timpush TO holder;
SQL
foreach my $name (qw(his hers))
{
	sql(<<"SQL");
SET ROLE holder;
CREATE SERVER $name FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1', host 'localhost');
RESET ROLE;
SQL
}
my ($his, $hers) =
  map { push_id($node, 'u1', server => $_, send_at => '2100-01-01') }
  qw(his hers);
like(
	complaint('DROP OWNED BY holder'),
	qr/2BP01: cannot drop server hi|her/,
	'DROP OWNED is refused as well');
is( complaint('DROP SERVER his CASCADE', '-U', 'holder'),
	"NOTICE:  00000: drop cascades to 1 push of server his\n"
	  . "DETAIL:  Accounts without an outcome are cancelled, or unknown if the API may have got them.",
	'an owner without rights on the tables drops his server');
sql('DROP OWNED BY holder CASCADE; DROP ROLE holder');
is_deeply([ map { status($node, $_)->{state} } $his, $hers ],
	[qw(cancelled cancelled)], 'and the pushes end');

sql('DROP SERVER wakes CASCADE; DROP SERVER new CASCADE');
$tim->ok_ledger($node, 'tables and ledger agree');

# Of others' servers we keep out.
is( complaint(
		'CREATE FOREIGN DATA WRAPPER other; CREATE SERVER s FOREIGN DATA WRAPPER other; ALTER SERVER s RENAME TO t; DROP SERVER t; DROP FOREIGN DATA WRAPPER other'
	),
	'',
	'servers of other wrappers are none of ours');

# With the extension everything goes, at once, however much waits.
paused_server('many');
sql(<<'SQL');
SELECT count(timpush_batch('administrator', ARRAY['u' || n], 'title', 'text', server => 'many'))
FROM generate_series(1, 20000) n
SQL
my $began = time;
like(
	complaint('BEGIN; DROP SERVER many CASCADE; ROLLBACK'),
	qr/20000 pushes/,
	'many pushes end');
note(sprintf '20000 pushes were ended in %.1f s', time - $began);
$began = time;
unlike(complaint('DROP EXTENSION timpush CASCADE'),
	qr/pushes/, 'DROP EXTENSION ends no push, as it takes the tables along');
cmp_ok(time - $began, '<', 2, 'so it takes no time');
sql('CREATE SCHEMA apart; CREATE EXTENSION timpush SCHEMA apart');
sql("CREATE SERVER s FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1', host 'localhost')"
);
sql("SELECT apart.timpush_batch('administrator', '{u1}', 'title', 'text', send_at => '2100-01-01')"
);
unlike(complaint('DROP SCHEMA apart CASCADE'),
	qr/ERROR/, 'and so does DROP SCHEMA CASCADE');

$node->stop;
done_testing();
