
# The limits of apps: no second sees more calls than allowed, whoever shares
# them; they follow ALTER SERVER and throttle answers at once.
#
# When calls left is in the journal, to the microsecond; when they arrived is
# in the ledger.  On the way they may bunch by as much as the time under way
# varies, which is measured, so that neither side has to be believed.

use strict;
use warnings;

use List::Util qw(max min);
use POSIX qw(ceil floor);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

# Apps of their own, so that what is tested of one says nothing of another
my $app = 1001;
my %app = map { $_ => $app++ }
  qw(half two thirty hundred alone share ramp crowd accounts strangers retries free
  lowest live throttled hours suspended broken odd restart);
my $tim = FakeTIM->new(apps => { map { $_ => 'key' } values %app })->start;
my $node = start_node(
	'main',
	'timpush.enabled' => 'off',
	'timpush.idle_exit' => '1s');

foreach my $dbname ('other', 'alone', 'third')
{
	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	$node->safe_psql($dbname, 'CREATE EXTENSION timpush');
}

sub server
{
	my ($dbname, $name, $app, $rate, %options) = @_;

	$node->safe_psql(
		$dbname,
		$tim->create_server_sql(
			$name,
			sdkappid => $app{$app},
			secret_key => 'key',
			requests_per_second => $rate,
			%options));
	return;
}

sub alter
{
	my ($dbname, $name, $options) = @_;

	$node->safe_psql($dbname, "ALTER SERVER $name OPTIONS ($options)");
	return;
}

# Pushes that need a call each, to "$prefix-1", "$prefix-2", ...
sub enqueue
{
	my ($dbname, $server, $prefix, $n, %options) = @_;
	my $send_at = $options{send_at} // 'now()';

	$node->safe_psql(
		$dbname,
		"SELECT count(timpush_batch('administrator', ARRAY['$prefix-' || n],
		   '$prefix ' || n, 'text', server => '$server', send_at => $send_at))
		 FROM generate_series(1, $n) n");
	return;
}

# $tim->accepted, but read once
my (@accepted, $size_read);

sub accepted
{
	my $size = -s $tim->ledger_file;

	@accepted = $tim->accepted if ($size_read // -1) != $size;
	$size_read = $size;
	return @accepted;
}

# The calls of an app that were answered well, from both databases' journals,
# as [when it left, when it arrived, server, accounts], by the time it left
sub calls
{
	my ($app, @dbnames) = @_;
	my %arrived = map { $_->{msg_random} => $_ }
	  grep { $_->{app} eq $app{$app} } accepted();
	my @calls;

	@dbnames = ('postgres', 'other') unless @dbnames;
	foreach my $dbname (@dbnames)
	{
		my $out = $node->safe_psql(
			$dbname,
			"SELECT msg_random, server, cardinality(accounts),
			   (extract(epoch FROM finished_at - latency) * 1000000)::bigint
			 FROM push_request WHERE state = 'done'");

		foreach my $line (split /\n/, $out)
		{
			my ($random, $server, $accounts, $left) = split /\|/, $line;

			push @calls,
			  [
				$left / 1e6, $arrived{$random}{time} / 1e6,
				$server, $accounts
			  ]
			  if $arrived{$random};
		}
	}
	return sort { $a->[0] <=> $b->[0] } @calls;
}

# The most of these times that any window of so many seconds holds
sub fullest
{
	my ($window, @times) = @_;
	my ($most, $first) = (0, 0);

	@times = sort { $a <=> $b } @times;
	foreach my $i (0 .. $#times)
	{
		$first++ while $times[$i] - $times[$first] >= $window;
		$most = max($most, $i - $first + 1);
	}
	return $most;
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	return $sorted[ $#sorted / 2 ];
}

sub gaps
{
	my (@times) = @_;
	return map { $times[$_] - $times[ $_ - 1 ] } 1 .. $#times;
}

# Did the calls keep to the limit?
sub ok_limit
{
	my ($name, $limit, @calls) = @_;
	my @left = map { $_->[0] } @calls;
	my @under_way = map { $_->[1] - $_->[0] } @calls;
	my $bunching = max(@under_way) - min(@under_way);
	my $most = fullest(1, @left);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok($most, '<=', ceil($limit) + 1, "$name: calls a second");
	cmp_ok(
		fullest(0.1, @left),
		'<=',
		ceil($limit / 10) + 1,
		"$name: calls in a tenth of a second");

	# Two calls that were allowed at the same time would be together.
	cmp_ok(
		min(gaps(@left)) + 0.000002,
		'>',
		0.1 / $limit,
		"$name: calls that follow each other");
	cmp_ok(min(@under_way), '>', -0.001,
		"$name: nothing arrives before it has left");
	cmp_ok(
		fullest(1 - $bunching, map { $_->[1] } @calls),
		'<=',
		ceil($limit) + 1,
		"$name: calls a second by the ledger") if $bunching < 0.9;
	note sprintf '%s: %d calls, %.2f a second, at most %d, bunching %.3f s',
	  $name, scalar @left, $#left / ($left[-1] - $left[0]), $most, $bunching;
	return;
}

# Are the calls spread evenly, as far as this machine lets them?
sub ok_even
{
	my ($name, $limit, @calls) = @_;
	my $gap = median(gaps(map { $_->[0] } @calls)) * $limit;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($gap > 0.5 && $gap < 1.6, "$name: evenly")
	  or diag "the median gap is $gap intervals";
	return;
}

sub count_of
{
	my ($dbname, $query) = @_;
	return $node->safe_psql($dbname, "SELECT count(*) FROM $query");
}

#
# What waits when sending begins: an ordinary backlog, and after a long stop
#

my %paced = (half => 0.5, two => 2.5, thirty => 30, hundred => 100);
my $long_ago = "now() - interval '10 minutes'";

server('postgres', $_, $_, $paced{$_}) foreach keys %paced;
enqueue('postgres', 'half', 'half', 6);
enqueue('postgres', 'two', 'two', 25);
enqueue('postgres', 'thirty', 'thirty', 240);
enqueue('postgres', 'hundred', 'hundred-1', 300);

# It has a second server, of another database
server('other', 'hundred_other', 'hundred', 100);
enqueue('other', 'hundred_other', 'hundred-2', 300);

# Alone in its database
server('alone', 'alone', 'alone', 0.4);
enqueue('alone', 'alone', 'alone', 5);

# Two servers of one app, and a third in another database
server('postgres', 'share_1', 'share', 20);
server('postgres', 'share_2', 'share', 20);
server('other', 'share_3', 'share', 20);
enqueue('postgres', "share_$_", "share-$_", 80) foreach 1, 2;
enqueue('other', 'share_3', 'share-3', 80);

# The lowest rate holds, also that of a server which sends nothing
server('postgres', 'lowest', 'lowest', 0);
server('other', 'lowest_other', 'lowest', 5);

# A long stop
server('postgres', 'ramp', 'ramp', 40);
enqueue('postgres', 'ramp', 'ramp', 300, send_at => $long_ago);
server('postgres', 'crowd', 'crowd', 0, max_in_flight => 20);
enqueue('postgres', 'crowd', 'crowd', 300, send_at => $long_ago);

# Accounts
server('postgres', 'accounts', 'accounts', 0, accounts_per_second => 200);
my $large = push_id(
	$node,
	\"ARRAY(SELECT 'large-' || n FROM generate_series(1, 1000) n)",
	server => 'accounts');
is( $node->safe_psql(
		'postgres', "SELECT jsonb_array_length(timpush_preview($large))"),
	5,
	'a preview shows requests of the size that they will have');
server('postgres', 'strangers', 'strangers', 0);
server('other', 'strangers_other', 'strangers', 0,
	accounts_per_second => 100);
my $slices = push_id(
	$node,
	\"ARRAY(SELECT 'slices-' || n FROM generate_series(1, 250) n)",
	server => 'strangers');

# Retries: an account of each push fails for a while
server('postgres', 'retries', 'retries', 20);
enqueue('postgres', 'retries', 'acctN-91000-1', 80);
enqueue('postgres', 'retries', 'fresh', 60);

server('postgres', 'free', 'free', 0);

# The answers of these take their time.
my @rules = map { { kind => 'latency', arg => 300, app => "$app{$_}" } }
  qw(crowd throttled);
push @rules,
  { kind => 'code', arg => 60007, app => "$app{throttled}", count => 6 },
  { kind => 'code', arg => 91000, app => "$app{broken}", count => 5 };
$tim->rules(\@rules);

set_config($node, 'timpush.enabled' => 'on');

# One app waits, another does not wait for it.
$node->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM push_status WHERE server = 'half' AND state = 'sent'"
);
enqueue('postgres', 'free', 'free', 100);
settle($node, where => "server = 'free'");
cmp_ok(count_of('postgres', "push_outbox WHERE server = 'half'"),
	'>', 0, 'an app that waits for its turn delays no other');
enqueue('postgres', 'lowest', 'lowest', 15);

settle($node, where => "server = 'hundred'");
settle($node, dbname => 'other', where => "server = 'hundred_other'");

# Two calls of the one that is alone are further apart than timpush.idle_exit.
my $alone = "push_status WHERE state = 'sent'";
my $worker = worker_pid($node, 'alone');
my $sent = count_of('alone', $alone);
$node->poll_query_until('alone', "SELECT count(*) > $sent FROM $alone");
is(worker_pid($node, 'alone'),
	$worker, 'a worker whose pushes wait for their turn stays');

#
# Trouble: throttle answers, and what comes back after a long stop
#

server('postgres', 'throttled', 'throttled', 40);
server('other', 'throttled_other', 'throttled', 40);
enqueue('postgres', 'throttled', 'throttled-1', 120);
enqueue('other', 'throttled_other', 'throttled-2', 120);

# Credentials that are wrong, and a service that fails five times
server('postgres', 'suspended', 'suspended', 20, secret_key => 'wrong');
enqueue('postgres', 'suspended', 'suspended', 40, send_at => $long_ago);
server('postgres', 'broken', 'broken', 20);
enqueue('postgres', 'broken', 'broken', 40, send_at => $long_ago);
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'suspended'");
$node->safe_psql('postgres',
	"ALTER USER MAPPING FOR PUBLIC SERVER suspended OPTIONS (SET secret_key 'key')"
);

# The trial's day is used up, which is a pause of an hour for all of the app.
# A worker that has nothing else to do leaves meanwhile.
server('postgres', 'hours', 'hours', 0);
server('other', 'hours_other', 'hours', 0);
my ($refused, $expiring) = split /\|/, $node->safe_psql(
	'postgres', q{
	BEGIN;
	SELECT timpush_batch('administrator', ARRAY['first1-code-60028'], 'one', 'text',
	    server => 'hours'),
	  timpush_batch('administrator', ARRAY['first1-code-60028-2'], 'two', 'text',
	    server => 'hours', expires_at => now() + interval '4 s');
	COMMIT});
$node->poll_query_until('postgres',
	"SELECT error_code = 60028 AND state = 'retrying' FROM push_status WHERE push_id = $refused"
);

#
# Rates that change while pushes wait
#

# Enqueue pushes until one waits
sub stall
{
	my ($dbname, $server) = @_;

	foreach my $n (1 .. 100)
	{
		my $id = push_id(
			$node, "stall-$n",
			dbname => $dbname,
			server => $server,
			title => "stall $server $n " . time);
		my $deadline = time + 1.5;
		my $state = '';

		while (time < $deadline && $state ne 'sent')
		{
			sleep 0.1;
			$state = status($node, $id, dbname => $dbname)->{state};
		}
		return if $state ne 'sent';
	}
	die "nothing waits for server $server\n";
}

# What waits goes within seconds, not at the old rate of a call in 1000 s.
sub ok_soon
{
	my ($name, $dbname, $server) = @_;
	my $began = time;

	settle($node, dbname => $dbname, where => "server = '$server'");
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok(time - $began, '<', 20, $name);
	return;
}

settle($node, where => "server = 'lowest'");
my @lowest = calls('lowest');
is(scalar @lowest, 15, 'a lower rate elsewhere: all calls');
ok_limit('a lower rate elsewhere', 5, @lowest);

alter('other', 'lowest_other', "SET requests_per_second '0.001'");
stall('postgres', 'lowest');
alter('other', 'lowest_other', "SET requests_per_second '50'");
ok_soon('a rate that rises elsewhere', 'postgres', 'lowest');
server('third', 'lowest_third', 'lowest', 0.001);
stall('postgres', 'lowest');
$node->safe_psql('postgres', 'DROP DATABASE third');
ok_soon('the lowest rate goes with its database', 'postgres', 'lowest');
alter('other', 'lowest_other', "SET requests_per_second '0.001'");
stall('postgres', 'lowest');
alter('other', 'lowest_other', "SET sdkappid '$app{odd}'");
ok_soon('with a server that changes its app', 'postgres', 'lowest');
stall('other', 'lowest_other');
$node->safe_psql(
	'other',
	"CREATE SERVER odd FOREIGN DATA WRAPPER timpush
	   OPTIONS (sdkappid '$app{odd}', host 'localhost', requests_per_second '0.0001');
	 ALTER SERVER lowest_other OPTIONS (SET requests_per_second '1000000')");
sleep 1;
cmp_ok(count_of('other', 'push_outbox'),
	'>', 0, 'a server that cannot send counts');
$node->safe_psql('other', 'DROP SERVER odd');
ok_soon('with a server that is dropped', 'other', 'lowest_other');

# In a database where nothing else keeps the worker awake
settle($node, dbname => 'alone');
alter('alone', 'alone', "SET requests_per_second '0.001'");
stall('alone', 'alone');
alter('alone', 'alone', "SET requests_per_second '50'");
ok_soon('a rate that rises where nothing else happens', 'alone', 'alone');

# One server alone, up and down
server('postgres', 'live', 'live', 0.001);
stall('postgres', 'live');
alter('postgres', 'live', "SET requests_per_second '50'");
ok_soon('a rate that rises', 'postgres', 'live');
enqueue('postgres', 'live', 'live', 150);
$node->poll_query_until('postgres',
	"SELECT count(*) > 50 FROM push_status WHERE server = 'live' AND state = 'sent'"
);
alter('postgres', 'live', "SET requests_per_second '2'");
my $lowered = time;
sleep 4;
alter('postgres', 'live', "SET requests_per_second '0'");
my $lifted = time;
ok_soon('no limit any more', 'postgres', 'live');
my @live = calls('live');
ok_limit('a rate of 50, lowered meanwhile',
	50, grep { $_->[0] < $lowered } @live);
ok_limit('a rate that has been lowered to 2',
	2, grep { $_->[0] > $lowered && $_->[0] < $lifted - 0.5 } @live);

# By now the pause of an hour has become some seconds old.
push_id($node, 'later', dbname => 'other', server => 'hours_other');
$node->poll_query_until(
	'template1',
	"SELECT count(*) = 0 FROM pg_stat_activity
	 WHERE backend_type = 'timpush worker' AND datname = 'other'");
is(status($node, $refused)->{state}, 'retrying', 'a pause of hours');
settle($node, where => "push_id = $expiring");
is(status($node, $expiring)->{state},
	'expired', 'a push that was throttled expires in time');
is(scalar requests_with($tim, 'first1-code-60028-2'),
	1, 'and does not go again');
is(count_of('other', "push_outbox WHERE server = 'hours_other'"),
	1, 'is one of all servers of the app');
alter('postgres', 'hours', "ADD max_in_flight '5'");
ok_soon('ALTER ends the pause', 'postgres', 'hours');
ok_soon('for all servers of the app, also where no worker is',
	'other', 'hours_other');

#
# What came of it
#

settle($node, dbname => $_) foreach 'postgres', 'other', 'alone';

foreach my $name (sort { $paced{$a} <=> $paced{$b} } keys %paced)
{
	my @calls = calls($name);

	ok_limit("$paced{$name} a second", $paced{$name}, @calls);
	ok_even("$paced{$name} a second", $paced{$name}, @calls) if @calls > 20;
}

my @calls = calls('share');
is(scalar @calls, 240, 'three servers of an app: all calls');
ok_limit('three servers of an app', 20, @calls);
ok_even('three servers of an app', 20, @calls);
my %early;
$early{ $_->[2] }++ foreach @calls[ 0 .. 119 ];
cmp_ok($early{"share_$_"} // 0, '>=', 20, "server $_ gets its share")
  foreach 1 .. 3;

# A tenth of the rate for five seconds, then twice as much, and so on
sub ok_ramp
{
	my ($name, $limit, @calls) = @_;
	my @counts = (0) x 4;
	my $began = $calls[0][0];

	foreach my $call (@calls)
	{
		my $step = floor(($call->[0] - $began) / 5);
		$counts[$step]++ if $step < @counts;
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	# it had begun a moment before the first call left
	cmp_ok($counts[0], '<=', $limit * 0.65 + 2, "$name: a tenth of the rate");
	cmp_ok($counts[0], '>=', $limit * 0.2, "$name: which is not nothing");
	cmp_ok($counts[1], '<=', $limit * 1.3 + 2, "$name: then a fifth");
	cmp_ok($counts[1], '>', $counts[0], "$name: which is more");
	note "$name: @counts in each five seconds";
	return;
}

ok_ramp('after a long stop', 40, calls('ramp'));
ok_limit('after a long stop', 40, calls('ramp'));

# Without a rate it is the calls in flight: 2 of 20, then 4, each for 0.3 s
ok_ramp('after a long stop, without a rate', 20 / 0.3, calls('crowd'));
ok_ramp('after a suspension', 20, calls('suspended'));
my @after = calls('broken');
ok_ramp('after an outage', 20, @after);

# Six calls that were in flight together were throttled.
@calls = calls('throttled');
my @refused = grep {
		 $_->{event} eq 'answer'
	  && $_->{app} eq $app{throttled}
	  && $_->{code} != 0
} $tim->ledger;
my @gaps = gaps(map { $_->[0] } @calls);
my ($pause) = sort { $gaps[$b] <=> $gaps[$a] } 0 .. $#gaps;
my $resumed = $calls[ $pause + 1 ][0];
my $count = grep { $_->[0] >= $resumed && $_->[0] < $resumed + 6 } @calls;

is(scalar @refused, 6, 'several calls are throttled');
cmp_ok($gaps[$pause], '>', 0.45, 'the app pauses');
cmp_ok($count, '<=', 28 * 6 + 2, 'goes on with 0.7 of the rate');
cmp_ok($count, '>', 0.49 * 40 * 6 + 4, 'and not with less');
is(scalar(grep { $_->{app} eq $app{throttled} } accepted()),
	240, 'all is sent in the end');
note sprintf 'paused for %.2f s, then %.1f a second', $gaps[$pause],
  $count / 6;

is_deeply(
	[ map { $_->{part} } requests($node, $large) ],
	[ (200) x 5 ],
	'a request holds no more than the accounts of a second');
@calls = calls('accounts');
cmp_ok($calls[-1][0] - $calls[0][0],
	'>', 3.9, 'and the next one waits until they are paid for');
is_deeply(
	[ map { $_->{part} } requests($node, $slices) ],
	[ 100, 100, 50 ],
	'the accounts of another database\'s server as well');

# In any eight calls in a row at most two are retries, while fresh pushes wait.
my (@kinds, @times, %seen);
foreach my $event ($tim->ledger)
{
	next
	  unless $event->{event} eq 'request' && $event->{app} eq $app{retries};
	push @kinds, $seen{ $event->{accounts}[0] }++ ? 1 : 0;
	push @times, $event->{time} / 1e6;
}
my ($last_fresh) = grep { !$kinds[$_] } reverse 0 .. $#kinds;
my $most = 0;
my $early = grep { $_ } @kinds[ 0 .. $last_fresh ];
foreach my $i (0 .. $last_fresh - 8)
{
	$most = max($most, scalar grep { $_ } @kinds[ $i .. $i + 7 ]);
}
is(scalar @kinds, 220, 'fresh pushes and retries: all calls');
is($most, 2, 'a quarter of the calls is for retries while fresh pushes wait');
cmp_ok($early, '>=', 25, 'and is used');
cmp_ok($#kinds - $last_fresh, '>=', 20, 'the others go later');
cmp_ok(median(gaps(@times[ $last_fresh .. $#times ])),
	'<', 1.6 / 20, 'when nothing fresh waits they get all calls');
note "$early retries before the last fresh push";

#
# A call that waits for its turn when the worker has to go is not in doubt.
#

server('postgres', 'restart', 'restart', 1);
server('other', 'restart_other', 'restart', 1);
enqueue('postgres', 'restart', 'restart-1', 50);
enqueue('other', 'restart_other', 'restart-2', 50);

# Both want the same turn; the answer to a call that has left comes sooner.
wait_until(
	sub {
		my $query = "push_request WHERE state = 'sending'";

		foreach my $dbname ('postgres', 'other')
		{
			next unless count_of($dbname, $query);
			sleep 0.1;
			return 1 if count_of($dbname, $query);
		}
		return 0;
	},
	'a call that waits for its turn');
$node->restart;
alter('postgres', 'restart', "SET requests_per_second '0'");
alter('other', 'restart_other', "SET requests_per_second '0'");
settle($node, dbname => $_) foreach 'postgres', 'other';
is(scalar log_lines($node, qr/left in flight/), 0, 'nothing was in doubt');
is_deeply(
	[
		map { count_of($_, 'push_status WHERE maybe_duplicate > 0') }
		  'postgres',
		'other'
	],
	[ 0, 0 ],
	'nor is anything marked');
is( scalar log_lines($node,
		qr/timpush worker.*(?:exit code [2-9]|terminated by)/),
	0,
	'no worker has failed');
note sprintf 'the test was %.0f s old', time - $^T;

$tim->ok_ledger(
	$node,
	'tables and ledger agree',
	dbname => [ 'postgres', 'other', 'alone' ]);
$node->stop;
done_testing();
