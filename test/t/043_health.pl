
# What the policy says of a server: suspended and probed, resumed at once when
# anything about it is changed, and each change told exactly once; left alone
# after failures, also by a worker that is new.

use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

# A server of each name, each with an app of its own
my @servers = qw(open told probed outage late);
my %app = map { $servers[$_] => 2101 + $_ } 0 .. $#servers;
my $tim = FakeTIM->new(apps => { map { $_ => 'key' } values %app })->start;
my $node = start_node('main', 'timpush.idle_exit' => '2s');
my $key_file = PostgreSQL::Test::Utils::tempdir . '/key';
my @rules;

append_to_file($key_file, 'key');
chmod 0600, $key_file;

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# Rules for one app, none if there are no more
sub rule
{
	my ($server, @more) = @_;

	@rules = grep { $_->{app} != $app{$server} } @rules;
	push @rules, map { { app => $app{$server}, %$_ } } @more;
	$tim->rules(\@rules);
	return;
}

sub calls
{
	my ($server) = @_;
	return
	  grep { $_->{event} eq 'request' && $_->{app} == $app{$server} }
	  $tim->ledger;
}

sub push_to
{
	my ($server, $account, %options) = @_;
	return push_id(
		$node, $account,
		server => $server,
		title => ref $account ? $account->[0] : $account,
		%options);
}

sub wait_for_state
{
	my ($server, $state) = @_;

	$node->poll_query_until('postgres',
		"SELECT state = '$state' FROM push_server WHERE server = '$server'")
	  or die "server \"$server\" does not become $state\n";
	return;
}

# The time of the next probe has come, for a worker that is new.  A worker that
# was started before it was set back does not know of it.
sub let_probe
{
	my ($server) = @_;

	foreach my $try (1 .. 10)
	{
		set_config($node, 'timpush.enabled' => 'off');
		wait_for_worker($node, 0);
		sql("UPDATE push_server SET next_probe_at = clock_timestamp() WHERE server = '$server'"
		);
		set_config($node, 'timpush.enabled' => 'on');

		# the launcher may not have seen that it was off
		push_to('open', 'wake');
		foreach (1 .. 100)
		{
			sleep 0.1;
			return
			  if sql(
				"SELECT next_probe_at IS NULL OR next_probe_at > clock_timestamp()
					  FROM push_server WHERE server = '$server'") eq 't';
		}
		note "probe of \"$server\", again";
	}
	die "no probe of \"$server\"\n";
}

# The pause that begins now, once it is noted.
sub next_pause
{
	my ($server) = @_;

	$node->poll_query_until('postgres',
		"SELECT next_probe_at > clock_timestamp() FROM push_server WHERE server = '$server'"
	) or die "no pause begins for \"$server\"\n";
	return row(
		$node,
		"SELECT extract(epoch FROM next_probe_at - clock_timestamp())::float AS pause
		 FROM push_server WHERE server = '$server'")->{pause};
}

sub doubles
{
	my ($pause, $expected, $what) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($pause > 0.6 * $expected && $pause <= $expected, $what)
	  or diag "$pause, not $expected";
	return;
}

#
# A change is told once
#
my $listener = $node->background_psql('postgres', on_error_stop => 1);
$listener->query_safe('LISTEN timpush');

# What was told since the last time, in the log and by NOTIFY
my $logged = 0;

sub told
{
	my ($server) = @_;
	my @lines = log_lines($node, qr/timpush: server "$server"/);
	my @new = map {
			/(WARNING|LOG):  timpush: server "\w+" ((?:is|has) \w+)/
		  ? "$1 $2"
		  : $_
	} @lines[ $logged .. $#lines ];
	my @payloads =
	  map { decode_json($_) }
	  $listener->query_safe('SELECT 1') =~
	  /notification "timpush" with payload "(.*)" received/g;

	$logged = @lines;
	return join ', ', @new, map {
		join ' ',
		  map { $_ // 'null' }
		  @$_{qw(database server state error_code)}
	} @payloads;
}

# Suspended, by an answer to several calls at once
sub suspend
{
	my ($code, $how) = @_;

	rule(
		'told',
		{ kind => 'latency', arg => 200 },
		{ kind => 'code', arg => $code });
	push_to('told', "$how-$_") foreach 1 .. 4;
	wait_for_state('told', 'suspended');

	# until the last of them has been answered and recorded
	$node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM push_request WHERE state = 'sending'");
	return;
}

sql($tim->create_server_sql(
		'told',
		sdkappid => $app{told},
		secret_key_file => $key_file,
		max_in_flight => 4));
sql($tim->create_server_sql(
		'open',
		sdkappid => $app{open},
		secret_key => 'key'));
push_to('told', 'first');
settle($node);
is(told('told'), '', 'nothing to tell of a server that works');

foreach my $how (
	[
		60009,
		'ALTER SERVER' => "ALTER SERVER told OPTIONS (SET max_in_flight '5')"
	],
	[
		60010,
		'ALTER USER MAPPING' =>
		  "ALTER USER MAPPING FOR PUBLIC SERVER told OPTIONS (ADD usersig_lifetime '2d')"
	],
	[ 60012, 'timpush_resume' => "SELECT timpush_resume('told')" ],
	[ 60020, 'a probe' => undef ])
{
	my ($code, $name, $sql) = @$how;

	suspend($code, $name);
	my $state = server_state($node, 'told');
	is($state->{error_code}, $code, 'suspended with the code');
	is($state->{reason}, "error $code as ordered", 'the text');
	is( sql("SELECT round(extract(epoch FROM next_probe_at - since)) FROM push_server WHERE server = 'told'"
		),
		60,
		'and a probe after 60 s');
	is( told('told'),
		"WARNING is suspended, postgres told suspended $code",
		'one WARNING and one NOTIFY');
	rule('told');
	$sql ? sql($sql) : let_probe('told');
	my $began = time;
	settle($node);
	wait_for_state('told', 'active');
	cmp_ok(time - $began, '<', 20, "$name: is tried at once");
	is( told('told'),
		$sql && $sql =~ /resume/
		? 'LOG is resumed, postgres told active null'
		: 'LOG is sending, postgres told active null',
		"$name: one line and one NOTIFY");
	is(sql("SELECT max(attempts) FROM push_request"),
		1, "$name: no attempt was counted");
}

# Paused while suspended, and suspended for another reason
suspend(60016, 'paused');
told('told');
sql("SELECT timpush_pause('told')");
push_to('told', 'while-paused');
is( told('told'),
	'LOG is paused, postgres told paused null',
	'a pause: one line and one NOTIFY');
sql("SELECT timpush_resume('told')");
wait_for_state('told', 'suspended');
my $told = told('told');
like(
	$told,
	qr/^(?:LOG is (?:paused|resumed), )*WARNING is suspended/,
	'still refused after it: suspended anew');
is(() = $told =~ /told suspended 60016/g, 1, 'told once');
rule('told', { kind => 'code', arg => 60017 });
sql("ALTER SERVER told OPTIONS (SET max_in_flight '4')");
$node->poll_query_until('postgres',
	"SELECT error_code = 60017 FROM push_server WHERE server = 'told'");
is( told('told'),
	'WARNING is suspended, postgres told suspended 60017',
	'refused for another reason: one WARNING and one NOTIFY');
sql("ALTER SERVER told OPTIONS (SET max_in_flight '5')");
wait_until(sub { (calls('told'))[-1]{time} > 0 }, 'a call');
rule('told');
sql("SELECT timpush_resume('told')");
settle($node);

#
# A success of before does not lift a suspension.
#
sql($tim->create_server_sql(
		'late',
		sdkappid => $app{late},
		secret_key => 'key'));
my $slow = push_to('late', 'slow-1500');
wait_until(sub { calls('late') }, 'the slow one');
rule('late', { kind => 'code', arg => 90045, account => 'refused' });
my $refused = push_to('late', 'refused');
wait_for_state('late', 'suspended');
settle($node, where => "push_id = $slow");
is(server_state($node, 'late')->{state},
	'suspended', 'who left before a suspension does not end it');
is(scalar(() = calls('late')), 2, 'nothing more leaves');
rule('late');
sql("SELECT timpush_resume('late')");
settle($node);

#
# Probes: one account of what has waited longest, with growing pauses that
# outlive the worker
#
unlink $key_file;
sql($tim->create_server_sql(
		'probed',
		sdkappid => $app{probed},
		secret_key_file => $key_file));
push_to('probed', [ map { "oldest-$_" } 1 .. 3 ], priority => 0);
wait_for_state('probed', 'suspended');
push_to('probed', [ map { "newer-$_" } 1 .. 3 ], priority => 9);
rule('probed', { kind => 'latency', arg => 1500 });
append_to_file($key_file, 'key');
chmod 0600, $key_file;
wait_until(sub { calls('probed') }, 'the probe');
sleep 0.7;
is_deeply(
	[ map { $_->{accounts} } calls('probed') ],
	[ ['oldest-1'] ],
	'the probe has one account of the oldest push, and is alone');
settle($node);
is_deeply(
	[ sort map { join ' ', @{ $_->{accounts} } } (calls('probed'))[ 1, 2 ] ],
	[ 'newer-1 newer-2 newer-3', 'oldest-2 oldest-3' ],
	'the others follow');

# What was refused goes again in parts.
rule('probed', { kind => 'code', arg => 90045 });
push_to('probed', [ map { "tried-$_" } 1 .. 3 ]);
wait_for_state('probed', 'suspended');
push_to('probed', 'new', priority => 9);
my $since = server_state($node, 'probed')->{since};
doubles(next_pause('probed'), 60, 'a probe after 60 s');
foreach my $pause (120, 240, 480, 900, 900)
{
	my $before = () = calls('probed');

	let_probe('probed');
	wait_until(sub { calls('probed') > $before }, 'a probe');
	doubles(next_pause('probed'), $pause, "the next one after $pause s");
	my @probes = (calls('probed'))[ $before .. $#{ [ calls('probed') ] } ];
	is_deeply(
		[ map { $_->{accounts} } @probes ],
		[ ['tried-1'] ],
		'one call with one account');
}
is(server_state($node, 'probed')->{since}, $since, 'since the first refusal');

# A probe that fails in another way lifts nothing, and is the only one in doubt.
foreach my $rule ({ kind => 'reset-after' }, { kind => 'code', arg => 91000 })
{
	my $before = () = calls('probed');

	rule('probed', $rule);
	let_probe('probed');
	wait_until(sub { calls('probed') > $before }, 'a probe');
	doubles(next_pause('probed'), 900, "$rule->{kind}: the pause is as long");
	is(server_state($node, 'probed')->{state},
		'suspended', "$rule->{kind}: no change");
	is(scalar(() = calls('probed')), $before + 1, "$rule->{kind}: one call");
}
is( scalar log_lines(
		$node, qr/WARNING:  timpush: server "probed" is suspended: error/),
	1,
	'one WARNING, however many probes and workers');
rule('probed');
let_probe('probed');
wait_for_state('probed', 'active');
$node->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM push_status WHERE waiting > 1");
sql("UPDATE push_request SET next_attempt_at = clock_timestamp() WHERE state = 'retry'"
);
$node->reload;
settle($node);
is( sql("SELECT string_agg(state, ',') FROM push_status WHERE server = 'probed'"
	),
	'sent,sent,sent,sent',
	'all is sent in the end');

#
# An outage: only probes are in doubt, whoever is the worker.
#
sql($tim->create_server_sql(
		'outage',
		sdkappid => $app{outage},
		secret_key => 'key',
		max_in_flight => 1));
rule('outage', { kind => 'reset-after' });
sql(<<'SQL');
SET timpush.on_unknown = hold;
SELECT count(timpush_batch('administrator', ARRAY['outage-' || n], 'outage ' || n, 'text', server => 'outage'))
FROM generate_series(1, 30) n
SQL

sub tried
{
	return sql("SELECT count(*) FROM push_request WHERE server = 'outage'");
}

doubles(next_pause('outage'), 5, 'left alone for 5 s');
is(server_state($node, 'outage')->{state}, 'active', 'it is not suspended');
is(tried(), 5, 'after five failures');
foreach my $n (1 .. 5)
{
	my $pause = (10, 20, 40, 80, 120)[ $n - 1 ];

	let_probe('outage');
	$node->poll_query_until('postgres',
		"SELECT count(*) = 5 + $n FROM push_request WHERE server = 'outage' AND state <> 'sending'"
	) or die "no probe\n";
	doubles(next_pause('outage'), $pause,
		"a new worker sends a probe, the next after $pause s");
	is(tried(), 5 + $n, 'and nothing else');
}
wait_for_worker($node, 0);
pass('a worker leaves while there is nothing to do but to wait');
$tim->clear_rules;
let_probe('outage');
settle($node);
is( sql("SELECT state, count(*) FROM push_status WHERE server = 'outage' GROUP BY 1 ORDER BY 1"
	),
	"sent|20\nunknown|10",
	'only the first five and the probes are in doubt');
is( sql("SELECT state, reason, next_probe_at FROM push_server WHERE server = 'outage'"
	),
	'active||',
	'and all is well');

$listener->quit;
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
