
# What becomes of a push, for every answer that there may be.
#
# Each case has a server of its own, so that one server's trouble is not
# another's, and all run at the same time.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main');

# Columns: what is tested, accounts, on_unknown, options of the server; then
# state of the push, its accounts sent/failed/unknown/maybe_duplicate, and of
# its last request class, error_code, attempts, resends; then how many calls
# the service saw for the first account, and what error_info must match.
my @cases = (

	# definite answers
	[ 'OK', 'ok-1', 'retry', {}, 'sent', '1/0/0/0', 'sent', 0, 1, 0, 1 ],
	[
		'an ErrorList', [ 'nobody-2', 'ok-2' ],
		'retry', {}, 'partial', '1/1/0/0', 'partial', 0, 1, 0, 1
	],
	(   map {
			[
				"refused with $_",
				"code-$_", 'retry', {}, 'failed', '0/1/0/0',
				'bad-request', $_, 1, 0, 1, qr/^error $_ as ordered$/
			]
		} qw(60003 70107 70402 80001 90001 90008 90011 90043 90048 90057)),
	[
		'a code that nobody knows',
		'code-12345',
		'retry',
		{},
		'failed',
		'0/1/0/0',
		'transient',
		12345,
		3,
		0,
		3,
		qr/^error 12345/
	],
	[
		'a code that nobody knows, once',
		'first1-code-12345',
		'retry',
		{},
		'sent',
		'1/0/0/0',
		'sent',
		0,
		2,
		0,
		2
	],

	# throttled: free, and not by count
	(   map {
			[
				"throttled by $_",
				"first1-code-$_", 'retry', {}, 'sent',
				'1/0/0/0', 'sent', 0, 1, 0, 2
			]
		} qw(60007 60011 90024)),
	[
		'throttled often',
		'first3-code-60007',
		'hold',
		{},
		'sent',
		'1/0/0/0',
		'sent',
		0,
		1,
		0,
		4
	],
	[
		'429 with Retry-After',
		'first1-http-429-ra1',
		'hold',
		{},
		'sent',
		'1/0/0/0',
		'sent',
		0,
		1,
		0,
		2
	],
	[
		'HTTP 503',
		'first1-http-503',
		'hold',
		{},
		'sent',
		'1/0/0/0',
		'sent',
		0,
		1,
		0,
		2
	],

	# transient
	(   map {
			[
				"transient $_", "first2-code-$_", 'hold', {}, 'sent',
				'1/0/0/0', 'sent', 0, 3, 0, 3
			]
		} qw(91000 60014 70500)),
	[
		'a refusal without the words of the API',
		'first1-http-404',
		'hold',
		{},
		'sent',
		'1/0/0/0',
		'sent',
		0,
		2,
		0,
		2
	],

	# for an account alone
	[
		'transient for one account',
		[ 'acctN-91000-1', 'ok-3' ],
		'retry', {}, 'sent', '2/0/0/0', 'sent', 0, 2, 0, 2
	],
	[
		'a strange code for one account',
		[ 'acct-54321', 'ok-4' ],
		'retry', {}, 'partial', '1/1/0/0', 'partial', 0, 4, 0, 4
	],
	[
		'an account listed twice, and a stranger',
		[ 'extraerr-1', 'ok-5' ],
		'retry', {}, 'partial', '1/1/0/0', 'partial', 0, 1, 0, 1
	],

	# odd answers that can be read
	[
		'a NUL', [ 'nul-1', 'ok-7' ],
		'hold', {}, 'partial', '1/1/0/0', 'partial', 0, 1, 0, 1
	],
	[
		'a slow answer',
		'slow-2000', 'hold', {}, 'sent', '1/0/0/0', 'sent', 0, 1, 0, 1
	],
	[
		'an answer byte by byte',
		'drip-5', 'hold', {}, 'sent', '1/0/0/0', 'sent', 0, 1, 0, 1
	],

	# doubt, and the push wants to be held
	(   map {
			[
				"in doubt: $_->[0]", $_->[0],
				'hold', { request_timeout => '3100ms' },
				'unknown', '0/0/1/0',
				'unknown', $_->[2],
				1, 0,
				1, $_->[1]
			]
		} ( [ 'reset-before-1', qr/./ ],
			[ 'reset-after-1', qr/./ ],
			[ 'drop-before-1', qr/./ ],
			[ 'drop-after-1', qr/./ ],
			[ 'truncate-1', qr/./ ],
			[ 'garbage-1', qr/HTTP 200.*this is no JSON/s ],
			[ 'html502-1', qr/HTTP 502.*Bad Gateway/s ],
			[ 'http-500', qr/HTTP 500/ ],
			[ 'http-504', qr/HTTP 504/ ],
			[ 'huge-2', qr/./ ],
			[ 'deep-1', qr/HTTP 200/ ],
			[ 'badutf8-1', qr/HTTP 200/ ],
			[ 'slow-6000', qr/timed? ?out/i ],
			[ 'code-60008', qr/error 60008/, 60008 ],
			[ 'code-60013', qr/error 60013/, 60013 ],)),

	# doubt, and the push is sent again: marked, whether the first came or not
	(   map {
			[
				"sent again after $_",
				"first1-$_", 'retry', {}, 'sent',
				'1/0/0/1', 'sent', 0, 2, 1, 2
			]
		} qw(reset-after reset-before truncate garbage html502 code-60008)),
	[
		'sent again in vain',
		'reset-after-2',
		'retry',
		{ max_unknown_resends => 1 },
		'unknown',
		'0/0/1/1',
		'unknown',
		undef,
		2,
		1,
		2
	],
	[
		'not to be sent again by the server\'s options',
		'reset-after-3',
		'retry',
		{ max_unknown_resends => 0 },
		'unknown',
		'0/0/1/0',
		'unknown',
		undef,
		1,
		0,
		1
	],

	# doubt, and the push takes it for sent
	[
		'taken for sent',
		'reset-after-4', 'accept', {},
		'sent', '1/0/0/0', 'unknown', undef, 1, 0, 1
	],
	[
		'taken for sent, and was not',
		'html502-2', 'accept', {},
		'sent', '1/0/0/0', 'unknown', undef, 1, 0, 1
	],);

my $servers = '';
my %id;

foreach my $n (0 .. $#cases)
{
	$servers .= $tim->create_server_sql("s$n", %{ $cases[$n][3] });
}
$node->safe_psql('postgres', $servers);
foreach my $n (0 .. $#cases)
{
	my ($name, $accounts, $on_unknown) = @{ $cases[$n] };

	$id{$n} = push_id(
		$node, $accounts,
		server => "s$n",
		title => "case $n",
		on_unknown => $on_unknown);
}

# A good answer to a question asked twice in one breath says nothing new.
$node->safe_psql('postgres', $tim->create_server_sql('dupkeys'));
my $dupkeys =
  push_id($node, 'dupkeys-1', server => 'dupkeys', on_unknown => 'hold');

# One bad push among those that share a call
$node->safe_psql('postgres', $tim->create_server_sql('merged'));
$node->safe_psql('postgres', <<'SQL');
SELECT timpush_batch('administrator',
    CASE n WHEN 6 THEN ARRAY['code-90001', 'innocent'] ELSE ARRAY['m' || n] END,
    'merged', 'text', server => 'merged')
FROM generate_series(1, 9) n;
SQL

settle($node);

my %status = map { $_->{push_id} => $_ } rows($node, 'TABLE push_status');
my %last =
  map { $_->{push_id} => $_ } rows(
	$node,
	'SELECT push_id, q.* FROM push_result JOIN push_request q ON q.id = request_id
	 ORDER BY q.id');

foreach my $n (0 .. $#cases)
{
	my ($name, $accounts, undef, undef, $state, $counts,
		$class, $code, $attempts, $resends, $calls, $info) = @{ $cases[$n] };
	my $status = $status{ $id{$n} };
	my $last = $last{ $id{$n} };
	my $account = ref $accounts ? $accounts->[0] : $accounts;
	my @seen =
	  grep { $_->{title} eq "case $n" } requests_with($tim, $account);

	is_deeply(
		[
			$status->{state},
			join('/', @$status{qw(sent failed unknown maybe_duplicate)}),
			@$last{qw(class error_code attempts resends)},
			scalar @seen
		],
		[ $state, $counts, $class, $code, $attempts, $resends, $calls ],
		$name);
	like($last->{error_info} // '', $info, "$name: the reason") if $info;

	# In doubt the very same goes again; after a refusal it is a new call.
	my %randoms = map { $_->{msg_random} => 1 } @seen;
	my %bodies = map { $_->{crc32} => 1 } @seen;
	is( scalar keys %randoms,
		$resends ? 1 : $calls,
		"$name: MsgRandom of each call") if $calls > 1;
	is(scalar keys %bodies, 1, "$name: the same, byte by byte")
	  if $resends;

	my %ended = (
		sent => 'done',
		partial => 'done',
		failed => 'failed',
		unknown => 'unknown');
	is($last->{state}, $ended{$state}, "$name: the journal")
	  unless ref $accounts;
	ok( (        $status->{finished_at}
			  && $last->{finished_at}
			  && !$status->{waiting}),
		"$name: has ended");
}

like($status{$dupkeys}{state},
	qr/^(?:sent|unknown)$/, 'an answer that contradicts itself');

# The request is split until the bad one is alone; the others have been sent.
is( $node->safe_psql(
		'postgres',
		"SELECT state, count(*), sum(sent), sum(failed), sum(maybe_duplicate)
		 FROM push_status WHERE server = 'merged' GROUP BY 1 ORDER BY 1"),
	"failed|1|0|2|0\nsent|8|8|0|0",
	'one bad push does not fail those that share its call');
is( $node->safe_psql(
		'postgres',
		"SELECT string_agg(account || ' ' || e.error_code, ', ' ORDER BY account)
		 FROM push_error e JOIN push_request q ON q.id = request_id WHERE server = 'merged'"
	),
	'code-90001 90001, innocent 90001',
	'each account of the bad one is told why');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) > 0, bool_and(class = 'bad-request' AND error_code = 90001)
		 FROM push_request WHERE server = 'merged' AND state = 'split'"),
	't|t',
	'the journal shows what was split and why');
is_deeply(
	[
		map {
			scalar grep { $_->{delivered} }
			  requests_with($tim, "m$_")
		} 1 .. 5,
		7 .. 9
	],
	[ (1) x 8 ],
	'each of the others was sent once');

ok( log_lines(
		$node, qr/listed 2 accounts that are not in it or are listed twice/),
	'strange entries of an ErrorList are logged');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM push_request WHERE error_info ~ '[\\x01-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]'"
	),
	0,
	'no control character is stored');
unlike(
	join("\n", log_lines($node, qr/./)),
	qr/terminated by signal/,
	'no crash');

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
