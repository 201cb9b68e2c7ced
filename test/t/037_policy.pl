
# What the policy says of a request: when it goes again and for how long, what
# goes in its place, and what that costs the other pushes in it.  Spans of a
# minute and more are not waited for: what was planned is looked at, and then
# the owner of the tables sets it back.

use strict;
use warnings;

use List::Util qw(max min sum);
use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

# A server of each name, each with an app of its own
my @servers = qw(many lone bad transient bounded doubt thrice forever held
  account expiring throttle gateway signed given changed);
my %app = map { $servers[$_] => 2001 + $_ } 0 .. $#servers;
my $tim = FakeTIM->new(apps => { map { $_ => 'key' } values %app })->start;
my $node = start_node('main');
my @rules;

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub server
{
	my ($name, %options) = @_;

	sql($tim->create_server_sql(
			$name,
			sdkappid => $app{$name},
			secret_key => 'key',
			max_in_flight => 1,
			%options));
	return;
}

# Rules for one app more, or none any more
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
	my %answer;

	foreach ($tim->ledger)
	{
		$answer{ $_->{seq} } = $_ if $_->{event} eq 'answer';
	}
	return map {
		{ %{ $answer{ $_->{seq} } }, %$_ }
	  }
	  grep { $_->{event} eq 'request' && $_->{app} == $app{$server} }
	  $tim->ledger;
}

sub sizes
{
	return join ' ', map { scalar @{ $_->{accounts} } } @_;
}

sub in_seconds
{
	return scalar(gmtime(time + $_[0])) . ' UTC';
}

# Pushes of one transaction, each with so many accounts of its own.  Those of
# one title share a call.
sub enqueue
{
	my ($server, $prefix, $pushes, $accounts, $title) = @_;

	return split /\n/, sql(<<"SQL");
SELECT timpush_batch('administrator',
    ARRAY(SELECT '$prefix-' || n || '-' || m FROM generate_series(1, $accounts) m),
    $title, 'text', server => '$server')
FROM generate_series(1, $pushes) n ORDER BY n
SQL
}

# The worker writes down here what it plans, as the time may come soon.
sql(<<'SQL');
CREATE TABLE planned (LIKE push_request, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('application_name') = 'timpush worker' THEN
    INSERT INTO public.planned SELECT NEW.*;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER note_plan AFTER INSERT OR UPDATE ON push_request FOR EACH ROW
  WHEN (NEW.state = 'retry') EXECUTE FUNCTION note_plan();
SQL

# What was planned for a request of the server after so many attempts
sub planned
{
	my ($server, $attempts) = @_;
	my $where = "server = '$server' AND attempts = $attempts";

	$node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM planned WHERE $where)")
	  or die "there is no retry number $attempts for \"$server\"\n";
	return row(
		$node,
		"SELECT extract(epoch FROM next_attempt_at - at)::float AS left_over,
		   extract(epoch FROM next_attempt_at - first_sent_at - latency)::float AS after_first, *
		 FROM planned WHERE $where");
}

# Its time has come; and the server shall not rest after failures either.
sub set_back
{
	my ($server) = @_;

	sql("UPDATE push_request SET next_attempt_at = clock_timestamp()
		 WHERE server = '$server' AND state = 'retry';
		 SELECT timpush_resume('$server')");
	$node->reload;
	return;
}

server($_) foreach grep { $_ ne 'given' } @servers;

#
# Too many accounts
#
rule('many', { kind => 'code', arg => 90011, over => 100 });
rule('lone', { kind => 'code', arg => 90018, over => 0, account => 'lone' });

# 450 accounts of three pushes in one call: 450, 225 and 113 are too many.  What
# was cut meanwhile is cut further before it leaves.
my @pushes = enqueue('many', 'many', 3, 150, "'too many'");
my ($lone) = enqueue('lone', 'lone', 1, 3, "'too many'");
settle($node);
my @calls = calls('many');
is(sizes(grep { $_->{code} == 90011 } @calls),
	'450 225 113', 'calls with too many accounts are refused');
is( join(' ', sort split / /, sizes(grep { $_->{code} == 0 } @calls)),
	'55 55 56 56 57 57 57 57',
	'and go again in smaller ones');
is( sql("SELECT string_agg(format('%s %s %s %s', state, accounts, sent, maybe_duplicate), ',')
		 FROM push_status WHERE push_id IN (@{[join ',', @pushes]})"),
	join(',', ('sent 150 150 0') x 3),
	'nobody is left out, or gets it twice');
is_deeply(
	[
		map { /carry (\d+) at most/ }
		  log_lines($node, qr/"many" has refused a call/)
	],
	[ 225, 113, 57 ],
	'each lower size is logged once');

# The next ones are composed so at once, also by another worker.
enqueue('many', 'next', 3, 150, "'next'");
settle($node, where => "server = 'many'");
is( max(split / /, sizes((calls('many'))[ @calls .. $#{ [ calls('many') ] } ])
	),
	57,
	'it is remembered');
set_config($node, 'timpush.enabled' => 'off');
wait_for_worker($node, 0);
set_config($node, 'timpush.enabled' => 'on');
@calls = calls('many');
enqueue('many', 'new', 1, 100, "'new'");
settle($node, where => "server = 'many'");
is(sizes((calls('many'))[ @calls .. @calls + 1 ]),
	'57 43', 'by a new worker too');
sql("ALTER SERVER many OPTIONS (ADD accounts_per_request '100')");
@calls = calls('many');
enqueue('many', 'altered', 1, 250, "'altered'");
settle($node, where => "server = 'many'");
is(sizes((calls('many'))[ @calls .. @calls + 2 ]),
	'100 100 50', 'until the options change');
is(scalar log_lines($node, qr/"many" has refused a call/),
	3, 'and there is no more to log');

is(sizes(calls('lone')), '3 2 1 1 1', 'down to one account');
is_deeply(
	[ @{ status($node, $lone) }{qw(state sent failed)} ],
	[ 'failed', 0, 3 ],
	'which fails');
is( join(',',
		sort map { "$_->{account} $_->{error_code}" } errors($node, $lone)),
	'lone-1-1 90018,lone-1-2 90018,lone-1-3 90018',
	'with the code');

#
# One bad push among 500
#
rule('bad', { kind => 'code', arg => 90001, account => 'bad-223-' });
@pushes = enqueue('bad', 'bad', 500, 1, "'bad'");
settle($node, where => "server = 'bad'");
is( sql("SELECT state, count(*), sum(sent), sum(failed), sum(maybe_duplicate), min(push_id) FILTER (WHERE failed > 0)
		 FROM push_status WHERE server = 'bad' GROUP BY 1 ORDER BY 1"),
	"failed|1|0|1|0|$pushes[222]\nsent|499|499|0|0|",
	'one bad push fails alone');
is(scalar(() = calls('bad')),
	19, 'at the cost of two calls for each of nine levels');
is( sql("SELECT max(attempts), count(*) FILTER (WHERE state = 'split')
		 FROM push_request WHERE server = 'bad'"),
	'1|9',
	'no call counts for what follows from it');
is( sql("WITH RECURSIVE tree AS (
		   SELECT id, 0 AS level FROM push_request WHERE server = 'bad' AND parent IS NULL
		   UNION ALL SELECT q.id, level + 1 FROM push_request q JOIN tree ON q.parent = tree.id)
		 SELECT max(level) FROM tree"),
	9,
	'and no deeper');

#
# Transient: any time within a second, two, four ... five minutes
#
rule('transient', { kind => 'code', arg => 91000 });
my ($id) = enqueue('transient', 'transient', 1, 1, "'again and again'");
my @shares;
my $late = 0;

foreach my $n (1 .. 11)
{
	my $most = min(2**($n - 1), 300);
	my $plan = planned('transient', $n);

	$late++ if $plan->{left_over} > $most;
	push @shares, max($plan->{left_over}, 0) / $most;
	is($plan->{class}, 'transient', "attempt $n is refused for now")
	  if $n == 1;
	set_back('transient');
}
is($late, 0, 'a retry comes within a second, two, four ... five minutes');
cmp_ok(max(@shares) - min(@shares[ 4 .. 10 ]),
	'>', 0.1, 'at any time within');
rule('transient');
set_back('transient');
settle($node, where => "server = 'transient'");
is(status($node, $id)->{state}, 'sent', 'no count bounds it');
my %randoms = map { $_->{msg_random} => 1 } calls('transient');
is( scalar keys %randoms,
	scalar(() = calls('transient')),
	'each attempt has a MsgRandom of its own');

# None is planned past the expiry: it comes before, or the push ends at once.
rule('bounded', { kind => 'code', arg => 91000 });
$id = push_id(
	$node, 'bounded',
	server => 'bounded',
	expires_at => in_seconds(150));
planned('bounded', 1);
sql("SELECT timpush_pause('bounded')");
$node->poll_query_until('postgres',
	"SELECT state = 'retry' FROM push_request WHERE server = 'bounded'");
sql("UPDATE push_request SET attempts = 20 WHERE server = 'bounded'");
my $past = 0;
my $request;
foreach my $n (21 .. 80)
{
	set_back('bounded');
	$node->poll_query_until('postgres',
		"SELECT attempts = $n AND state <> 'sending' FROM push_request WHERE server = 'bounded'"
	) or die "there is no attempt number $n\n";
	$request = row(
		$node,
		"SELECT q.state, q.next_attempt_at >= r.expires_at AS past, q.finished_at < r.expires_at AS early
		 FROM push_request q JOIN push_result r ON r.request_id = q.id WHERE q.server = 'bounded'"
	);
	last if $request->{state} ne 'retry';
	$past++ if $request->{past};
}
is($past, 0, 'no retry is planned past the expiry');
is($request->{state}, 'expired', 'what could only come later ends');
ok($request->{early}, 'at once');

#
# In doubt
#
rule('doubt', { kind => 'reset-after' });
($id) = enqueue('doubt', 'doubt', 1, 2, "'doubt'");
my $plan = planned('doubt', 1);
cmp_ok(abs($plan->{after_first} - 5),
	'<', 0.001, 'the first resend after 5 s');
is(sql("SELECT timpush_cancel($id)"),
	'f', 'what is in doubt is not cancelled');
foreach my $n (2 .. 3)
{
	set_back('doubt');
	last if $n == 3;
	$plan = planned('doubt', $n);
	cmp_ok($plan->{left_over}, '>', 50, 'the next one after 60 s');
	cmp_ok($plan->{left_over}, '<=', 60, 'and not later');
	ok($plan->{maybe_duplicate}, 'it is marked');
}
settle($node, where => "server = 'doubt'");
is_deeply(
	[ @{ status($node, $id) }{qw(state unknown maybe_duplicate)} ],
	[ 'unknown', 2, 2 ],
	'after two resends it ends in doubt');
@calls = calls('doubt');
is(scalar @calls, 3, 'that were three calls');
is(scalar(keys %{ { map { $_->{crc32} => 1 } @calls } }),
	1, 'of the very same bytes');
is(scalar(keys %{ { map { $_->{msg_random} => 1 } @calls } }),
	1, 'and MsgRandom');

# Three resends, or as many as it takes
sql("ALTER SERVER thrice OPTIONS (ADD max_unknown_resends '3');
	 ALTER SERVER forever OPTIONS (ADD max_unknown_resends '-1')");
foreach my $server ('thrice', 'forever')
{
	rule($server, { kind => 'http', arg => 504 });
	($id) = enqueue($server, $server, 1, 1, "'doubt'");
	my $last = $server eq 'thrice' ? 3 : 7;
	foreach my $n (1 .. $last)
	{
		planned($server, $n);
		rule($server) if $n == 7;
		set_back($server);
	}
	settle($node, where => "server = '$server'");
	is( join(' ', @{ status($node, $id) }{qw(state maybe_duplicate)}),
		$server eq 'thrice' ? 'unknown 1' : 'sent 1',
		"max_unknown_resends, $server: the outcome");
	is( scalar(() = calls($server)),
		$server eq 'thrice' ? 4 : 8,
		"max_unknown_resends, $server: the calls");
}

# A doubt whose answer then is a refusal for now stays one: the same goes again.
rule(
	'held',
	{ kind => 'reset-after', count => 1 },
	{ kind => 'code', arg => 91000, count => 1 });
($id) = enqueue('held', 'held', 1, 1, "'doubt'");
planned('held', 1);
set_back('held');
settle($node, where => "server = 'held'");
@calls = calls('held');
is_deeply(
	[ map { $_->{code} } @calls[ 1, 2 ] ],
	[ 91000, 0 ],
	'a request in doubt is refused for now, then accepted');
is(scalar(keys %{ { map { $_->{crc32} => 1 } @calls } }),
	1, 'and was the same at each attempt');
is(status($node, $id)->{maybe_duplicate}, 1, 'and is marked');

#
# Accounts
#
rule(
	'account',
	{ kind => 'code', arg => 91000, count => 5 },
	{ kind => 'acct', arg => 70169, account => 'account-1-2' },
	{ kind => 'acct', arg => 70107, account => 'account-1-3' },
	{ kind => 'acct', arg => 54321, account => 'account-2-1' });
@pushes = enqueue('account', 'account', 2, 3, "'accounts'");
foreach my $n (1 .. 5)
{
	planned('account', $n);
	set_back('account');
}
my @again;
foreach my $n (1 .. 3)
{
	my $retry = planned('account', 5 + $n);

	push @again, join ' ', @{ $retry->{accounts} };
	cmp_ok(
		$retry->{left_over}, '<=',
		2**($n - 1),
		"single accounts, try $n: a back-off of their own");
	set_back('account');
}
settle($node, where => "server = 'account'");
is_deeply(
	[@again],
	[ ('account-1-2 account-2-1') x 3 ],
	'only accounts that may do better are tried again');
is( join(',',
		map { "$_->{account} $_->{error_code} $_->{class}" }
		map { errors($node, $_) } @pushes),
	'account-1-3 70107 bad-request,account-1-2 70169 transient,account-2-1 54321 transient',
	'four times, however often the call was refused before');
is(sizes(calls('account')), '6 6 6 6 6 6 2 2 2', 'in as many calls');
is( join(',',
		map { join '/', @{ status($node, $_) }{qw(state sent failed)} }
		  @pushes),
	'partial/1/2,partial/2/1',
	'each is counted where it belongs');

# Nor are single accounts tried again past the expiry of their push.
rule('expiring', { kind => 'acct', arg => 70169, account => 'expiring' });
$past = 0;
foreach my $n (1 .. 40)
{
	$id = push_id(
		$node, [ "expiring-$n", 'other' ],
		server => 'expiring',
		title => "expiring $n",
		expires_at => in_seconds(1.2));
	settle($node, where => "push_id = $id");
	is_deeply(
		[ @{ status($node, $id) }{qw(state sent expired)} ],
		[ 'partial', 1, 1 ],
		'an account that is tried again expires') if $n == 1;
	$past++
	  if sql(
		"SELECT count(*) FROM push_request q JOIN push_result r ON r.request_id = q.id
			  WHERE push_id = $id AND q.state = 'expired' AND q.finished_at < r.expires_at - interval '0.1 s'"
	  );
	last if $past > 0;
}
is($past, 1, 'at once, if it could only be tried later');

#
# Throttled: for free, and a pause of about a second or what the answer says
#
sql("ALTER SERVER throttle OPTIONS (SET requests_per_second '50')");
my @pauses;
foreach my $case ([ 60018, 0.5, 1.5 ], [ 60019, 0.5, 1.5 ], [ 503, 2, 2 ])
{
	my ($code, $least) = @$case;
	my $before = () = calls('throttle');

	rule('throttle',
		$code == 503
		? { kind => 'http', arg => 503, retry_after => 2, count => 1 }
		: { kind => 'code', arg => $code, count => 1 });
	enqueue('throttle', "throttle-$code", 1, 1, "'throttled'");
	settle($node, where => "server = 'throttle'");
	@calls = (calls('throttle'))[ $before .. $before + 1 ];
	my $pause = ($calls[1]{time} - $calls[0]{time}) / 1e6;
	cmp_ok($pause, '>=', $least, "$code: a pause");
	note sprintf '%d: a pause of %.3f s', $code, $pause;
}
is( sql("SELECT DISTINCT attempts FROM push_request WHERE server = 'throttle'"
	),
	1,
	'no attempt counts that was throttled');

#
# A refusal without the words of the API: the third in a row stops the server,
# other trouble in between counts for itself.
rule(
	'gateway',
	(map { { kind => 'http', arg => $_, count => 1 } } 404, 403),
	{ kind => 'code', arg => 91000, count => 1 },
	(map { { kind => 'http', arg => $_, count => 1 } } 404, 405, 400));
enqueue('gateway', 'gateway', 1, 1, "'gateway'");
foreach my $n (1 .. 5)
{
	planned('gateway', $n);
	is(server_state($node, 'gateway')->{state},
		'active', "not suspended after $n refusals");
	sql("UPDATE push_request SET next_attempt_at = clock_timestamp() WHERE server = 'gateway'"
	);
	$node->reload;
}
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'gateway'")
  or die "the server is not suspended\n";
is(scalar(() = calls('gateway')),
	6, 'the third such refusal in a row stops the server');
is( row($node, "SELECT * FROM push_request WHERE server = 'gateway'")
	  ->{attempts},
	5,
	'and does not count');
sql("SELECT timpush_resume('gateway')");

#
# The UserSig: another one is made, once.
#
foreach my $code (60004, 60005, 60025, 70001, 70003)
{
	my $before = () = calls('signed');

	rule('signed', { kind => 'code', arg => $code, count => 1 });
	($id) = enqueue('signed', "signed-$code", 1, 1, "'signed'");
	settle($node, where => "server = 'signed'");
	is(scalar(() = calls('signed')) - $before, 2, "$code: goes again");
}
is( sql("SELECT DISTINCT attempts, state FROM push_request WHERE server = 'signed'"
	),
	'1|done',
	'for free');
is(server_state($node, 'signed')->{reason}, undef, 'and it is no trouble');
my $before = () = calls('signed');
rule('signed', { kind => 'code', arg => 70003 });
enqueue('signed', 'again', 1, 1, "'signed'");
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'signed'")
  or die "the server is not suspended\n";
is(scalar(() = calls('signed')) - $before,
	2, 'a UserSig that is refused twice stops the server');

# One that is given cannot be made anew: no second call is wasted on it.
sql($tim->create_server_sql(
		'giver',
		sdkappid => $app{given},
		secret_key => 'key'));
server(
	'given',
	secret_key => undef,
	usersig =>
	  sql("SELECT timpush_usersig('administrator', server => 'giver')"));
rule('given', { kind => 'code', arg => 70003 });
enqueue('given', 'given', 1, 1, "'given'");
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'given'")
  or die "the server is not suspended\n";
is(scalar(() = calls('given')), 1, 'a UserSig that is given is refused once');

#
# Open requests that must change.  Three pushes share a call; then one expires
# and one is cancelled.
#
sub together
{
	my ($prefix, $seconds) = @_;

	sql("SELECT timpush_pause('changed')");
	my @ids = map {
		push_id(
			$node, "$prefix-$_",
			server => 'changed',
			title => $prefix,
			$_ eq 'expires' ? (expires_at => in_seconds($seconds)) : ())
	} qw(expires cancelled stays);
	sql("SELECT timpush_resume('changed')");
	return @ids;
}

rule('changed', { kind => 'code', arg => 60016, count => 1 });
my @ids = together('refused', 6);
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'changed'")
  or die "the server is not suspended\n";
is(sql("SELECT timpush_cancel($ids[1])"),
	't', 'what was refused for now can be cancelled');
settle($node, where => "push_id = $ids[0]");
sql("SELECT timpush_resume('changed')");
settle($node, where => "server = 'changed'");
is_deeply(
	[
		map { join ' ', @{ status($node, $_) }{qw(state maybe_duplicate)} }
		  @ids
	],
	[ 'expired 0', 'cancelled 0', 'sent 0' ],
	'each leaves the refused request with its own outcome');
@calls = calls('changed');
is_deeply(
	[ map { [ sort @{ $_->{accounts} } ] } @calls ],
	[
		[ map { "refused-$_" } qw(cancelled expires stays) ],
		['refused-stays']
	],
	'the rest goes alone');
isnt($calls[1]{msg_random}, $calls[0]{msg_random}, 'with a new MsgRandom');

rule('changed', { kind => 'reset-after', count => 1 });
@ids = together('doubtful', 4);
$node->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM planned WHERE server = 'changed' AND in_doubt")
  or die "nothing is in doubt\n";
is(sql("SELECT timpush_cancel($ids[1])"), 'f', 'what is in doubt cannot');
settle($node, where => "push_id = $ids[0]");
set_back('changed');
settle($node, where => "server = 'changed'");
is_deeply(
	[
		map { join ' ', @{ status($node, $_) }{qw(state maybe_duplicate)} }
		  @ids
	],
	[ 'unknown 0', 'sent 1', 'sent 1' ],
	'who expires in doubt ends so, the others go again and are marked');
@calls = (calls('changed'))[ 2, 3 ];
is_deeply(
	[ sort @{ $calls[1]{accounts} } ],
	[ 'doubtful-cancelled', 'doubtful-stays' ],
	'without the one that has expired');
isnt($calls[1]{msg_random}, $calls[0]{msg_random}, 'as a new request');

@rules = ();
$tim->clear_rules;
sql('SELECT count(timpush_cancel(push_id)) FROM push_status WHERE waiting > 0'
);
settle($node);
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
