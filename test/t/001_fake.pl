
# The stand-in of the remote service: that it is as strict as the tests of the
# extension need it to be, and that every trouble happens when asked for.
#
# Nothing of the extension takes part.  The client is the curl program, and
# UserSigs are made here once more, from the description alone.

use strict;
use warnings;

use Compress::Zlib qw(compress);
use Digest::SHA qw(hmac_sha256);
use File::Temp;
use FindBin;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(time);

use lib "$FindBin::RealBin/../perl";
use FakeTIM;

my $scratch = File::Temp->newdir('fake_test_XXXXXX', TMPDIR => 1);
my $json = JSON::PP->new->utf8->canonical;
my $second_key = 'test-server-secret';
my $tim = FakeTIM->new(apps => { 1600150143 => $second_key });
$tim->start;

my $next_random = 1;

# A UserSig; every part may be given another value.
sub usersig
{
	my (%o) = (
		identifier => 'administrator',
		sdkappid => 88888888,
		key => $tim->key,
		time => int(time),
		expire => 86400,
		ver => '2.0',
		level => 6,
		@_);
	my $text = "TLS.identifier:$o{identifier}\nTLS.sdkappid:$o{sdkappid}\n"
	  . "TLS.time:$o{time}\nTLS.expire:$o{expire}\n";
	my $sig = encode_base64(hmac_sha256($text, $o{key}), '');
	my $ticket = $json->encode(
		{
			'TLS.ver' => $o{ver},
			'TLS.identifier' => $o{identifier},
			'TLS.sdkappid' => $o{sdkappid} + 0,
			'TLS.time' => $o{time} + 0,
			'TLS.expire' => $o{expire} + 0,
			'TLS.sig' => $sig
		});
	my $packed = encode_base64(compress($ticket, $o{level}), '');
	$packed =~ tr{+/=}{*\-_};
	return $packed;
}

# The body of a good request, with changes; undef takes a field away.
sub body
{
	my (%change) = @_;
	my %b = (
		From_Account => 'administrator',
		To_Account => [ 'user1', 'user2' ],
		MsgRandom => $next_random++,
		OfflinePushInfo =>
		  { PushFlag => 0, Title => 'title', Desc => 'text' },
		%change);
	delete $b{$_} foreach grep { !defined $b{$_} } keys %b;
	return $json->encode(\%b);
}

# Calls the service.  Returns curl's exit status, the HTTP status and version,
# the body, and the JSON in it.
sub call
{
	my (%o) = @_;
	my %query = (
		sdkappid => 88888888,
		identifier => 'administrator',
		usersig => undef,
		random => 99999999,
		contenttype => 'json',
		%{ $o{query} // {} });
	$query{usersig} //= usersig()
	  unless $o{query} && exists $o{query}{usersig};
	my $query = $o{raw_query} // join '&',
	  map { "$_=$query{$_}" } grep { defined $query{$_} } sort keys %query;
	my $path = $o{path} // '/v4/timpush/batch';
	my $host = $o{host} // 'localhost';
	my $port = $tim->port;
	my $data = $o{body} // body(%{ $o{with} // {} });

	open my $fh, '>:raw', "$scratch/body" or die "cannot write: $!";
	print $fh $data;
	close $fh;
	unlink "$scratch/answer", "$scratch/headers";

	my $pid = open my $out, '-|';
	die "cannot fork: $!" unless defined $pid;
	if (!$pid)
	{
		open STDERR, '>', "$scratch/stderr";
		exec 'curl', '-sS', '--globoff', '--max-time', $o{timeout} // 20,
		  '--noproxy', '*', '--cacert', $tim->ca,
		  ($o{http1} ? '--http1.1' : '--http2'), '-X', $o{method} // 'POST',
		  '-H', 'Expect:', '--data-binary', "\@$scratch/body",
		  '-o', "$scratch/answer", '-D', "$scratch/headers",
		  '-w', '%{http_code} %{http_version}',
		  @{ $o{curl} // [] }, "https://$host:$port$path?$query"
		  or die "cannot run curl: $!";
	}
	my ($status, $version) = split / /, <$out> // '';
	close $out;
	my $exit = $? >> 8;
	my ($answer, $headers) = map { slurp("$scratch/$_") } qw(answer headers);
	my $decoded = eval { $json->decode($answer) };

	return {
		exit => $exit,
		status => $status,
		version => $version,
		body => $answer,
		headers => $headers,
		json => $decoded,
		code => ref $decoded ? $decoded->{ErrorCode} : undef
	};
}

sub slurp
{
	my ($file) = @_;
	open my $fh, '<:raw', $file or return '';
	local $/;
	return <$fh> // '';
}

# The last event of a kind
sub last_event
{
	my ($kind) = @_;
	return (grep { $_->{event} eq $kind } $tim->ledger)[-1] // {};
}

# A refusal in the documented shape
sub refused
{
	my ($r, $code, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply([ $r->{code}, @{ $r->{json} // {} }{qw(ActionStatus TaskId)} ],
		[ $code, 'FAIL', '' ], $name)
	  or diag "curl $r->{exit}, HTTP $r->{status}: $r->{body}";
	my $event = last_event('answer');
	is_deeply(
		[ $event->{code}, $event->{delivered} ? 1 : 0 ],
		[ $code, 0 ],
		"$name: in the ledger");
	return;
}

note 'the good case';

foreach my $http1 (0, 1)
{
	foreach my $host ('localhost', '127.0.0.1')
	{
		my $r = call(http1 => $http1, host => $host);
		my $version = $http1 ? '1.1' : '2';
		is($r->{version}, $version, "$host: HTTP/$version");
		is($r->{status}, 200, "$host: HTTP status");
		is_deeply(
			[ @{ $r->{json} }{qw(ActionStatus ErrorInfo ErrorCode)} ],
			[ 'OK', '', 0 ],
			"$host: the answer says OK");
		like($r->{json}{TaskId}, qr/^batch(_[0-9a-f]+){4,}$/,
			"$host: TaskId");
		ok(!exists $r->{json}{ErrorList}, "$host: no ErrorList");
	}
}

{
	my $r =
	  call( body => '{"From_Account":"发送者","To_Account":["b","a","b"],'
		  . '"MsgRandom":4294967295,"DataId":"'
		  . 'x' x 64 . '",'
		  . '"Classification":1,"OfflineStorageTime":86400,"TaskName":"t",'
		  . '"OfflinePushInfo":{"Title":"标题","Desc":"\u6587\ud83d\ude00",'
		  . '"Ext":"{\"a\":1}","New":1,"ApnsInfo":{"BadgeMode":1},'
		  . '"AndroidInfo":{"Sound":"s","VIVONotifyType":"4"}}}');
	is($r->{code}, 0, 'all known fields are accepted');
	my ($q) = ($tim->accepted)[-1];
	is_deeply($q->{accounts}, [ 'b', 'a', 'b' ], 'accounts in their order');
	is_deeply($q->{dup_accounts}, ['b'], 'a repeated account is noted');
	is($q->{msg_random}, 4294967295, 'MsgRandom up to 2^32-1');
	is($q->{from}, "\x{53d1}\x{9001}\x{8005}", 'From_Account');
	is($q->{desc}, "\x{6587}\x{1f600}", 'Desc');
	is($q->{data_id}, 'x' x 64, 'DataId');
	is($q->{task_id}, $r->{json}{TaskId}, 'TaskId');
	is_deeply($q->{unknown_fields}, ['New'],
		'an unknown field of OfflinePushInfo is noted');
	ok($q->{ext_ok}, 'Ext is JSON text');
	ok(abs($q->{time} / 1e6 - time) < 60, 'time in microseconds');
}
call(with => { OfflinePushInfo => { Ext => 'page=1' } });
ok(!last_event('request')->{ext_ok}, 'Ext that is no JSON text is noted');

note 'UserSig';

is(call(query => { usersig => usersig(level => 0) })->{code},
	0, 'a stored block is accepted');
is( call(
		query => {
			sdkappid => 1600150143,
			usersig => usersig(sdkappid => 1600150143, key => $second_key)
		})->{code},
	0,
	'the second app');
is(call(query => { usersig => usersig() =~ s/\*/%2A/gr })->{code},
	0, 'an escaped UserSig is accepted');
refused(
	call(
		query => { usersig => usersig(time => int(time) - 100, expire => 50) }
	),
	70001,
	'expired');
{
	my $short = usersig(expire => 3);
	is(call(query => { usersig => $short })->{code}, 0, 'not yet expired');
	sleep 5;
	refused(call(query => { usersig => $short }),
		70001, 'expired after it was used');
}
refused(call(query => { usersig => 'nonsense' }), 70003, 'no UserSig at all');
refused(call(query => { usersig => substr(usersig(), 0, -8) }),
	70003, 'a truncated UserSig');
refused(call(query => { usersig => usersig() =~ s/^./f/r }),
	70003, 'a damaged header');
{
	# one in which the two alphabets differ
	my ($sig) = grep { /[*]/ } map { usersig(expire => 86400 + $_) } 1 .. 100;
	is(call(query => { usersig => $sig })->{code}, 0, 'a UserSig with *');
	refused(call(query => { usersig => $sig =~ tr{*\-}{\-_}r }),
		70003, 'the alphabet of base64url');
}
refused(call(query => { usersig => usersig() =~ s/\W/%252A/gr . '%252A' }),
	70003, 'escaped twice');
refused(call(query => { usersig => usersig(ver => '1.0') }),
	70003, 'another version');
refused(call(query => { usersig => usersig(key => 'another') }),
	70009, 'another key');
refused(call(query => { usersig => usersig(identifier => 'other') }),
	70013, 'another identifier');
refused(call(query => { usersig => usersig(sdkappid => 88888889) }),
	70014, 'another SDKAppID');
refused(
	call(
		query => {
			identifier => 'user1',
			usersig => usersig(identifier => 'user1')
		}),
	90009,
	'not an admin');

note 'the address';

refused(call(query => { sdkappid => undef }), 60012, 'no sdkappid');
refused(call(query => { sdkappid => 'abc' }), 60006, 'sdkappid is no number');
refused(call(query => { sdkappid => 12345 }), 60006, 'unknown sdkappid');
refused(call(query => { $_ => undef }), 60025, "no $_")
  foreach qw(identifier usersig random contenttype);
refused(call(query => { random => $_ }), 60025, "random=$_")
  foreach qw(-1 4294967296 1.5 99999999999 x);
refused(call(query => { contenttype => 'JSON' }), 60025, 'contenttype=JSON');
is(call(query => { random => $_ })->{code}, 0, "random=$_")
  foreach 0, 4294967295;
{
	my $r = call(method => 'PUT');
	is($r->{status}, 405, 'PUT: 405');
	refused($r, 60002, 'PUT');
}
refused(call(path => '/v4/timpush/bach'), 60009, 'another call');
is(call(path => '/other')->{status}, 404, 'another path: 404');

note 'the body';

sub bad_body
{
	my ($code, $name, $body) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	refused(call(body => $body), $code, $name);
	return;
}

bad_body(60003, 'empty', '');
bad_body(60003, 'blank', " \n");
bad_body(90001, 'no JSON', '{"From_Account":');
bad_body(90001, 'an array', '[' . body() . ']');
bad_body(90001, 'two values', body() . '{}');
bad_body(90001, 'NaN', body() =~ s/"MsgRandom":\d+/"MsgRandom":NaN/r);
bad_body(90001, 'broken UTF-8', body() =~ s/title/ti\xff/r);
bad_body(90001, 'a surrogate in UTF-8', body() =~ s/title/\xed\xa0\x80/r);
bad_body(90001, 'a control byte in a text', body() =~ s/title/ti\ntle/r);
bad_body(90001, 'a field twice', body() =~ s/"Title":/"Desc":"x",$&/r);
bad_body(90001, 'unknown field', body(Foo => 1));
bad_body(90008, 'no From_Account', body(From_Account => undef));
bad_body(90008, 'From_Account is a number', body(From_Account => 1));
bad_body(90008, 'From_Account is empty', body(From_Account => ''));
bad_body(90003, 'no To_Account', body(To_Account => undef));
bad_body(90012, 'To_Account is a text', body(To_Account => 'user1'));
bad_body(90012, 'To_Account is an object', body(To_Account => {}));
bad_body(90029, 'To_Account is empty', body(To_Account => []));
bad_body(90018, '501 accounts',
	body(To_Account => [ map { "u$_" } 1 .. 501 ]));
bad_body(60015, 'an account is a number', body(To_Account => [ 'a', 1 ]));
bad_body(60015, 'an account is null', body(To_Account => [undef]));
bad_body(60015, 'an account is empty', body(To_Account => [ 'a', '' ]));
bad_body(90001, "MsgRandom $_", body() =~ s/("MsgRandom":)\d+/$1$_/r)
  foreach qw(1.5 1.0 1e3 -1 -0 4294967296 "1" null true);
bad_body(90001, 'no MsgRandom', body(MsgRandom => undef));
is( call(body => body(MsgRandom => undef))->{json}{ErrorInfo},
	'Invalid format of MsgRandom',
	'the documented text');
bad_body(90043, 'no OfflinePushInfo', body(OfflinePushInfo => undef));
bad_body(90043, 'OfflinePushInfo is a list', body(OfflinePushInfo => []));
bad_body(90043, "OfflinePushInfo $_->[0]", body(OfflinePushInfo => $_->[1]))
  foreach (
	[ 'Title', { Title => 1 } ],
	[ 'Desc', { Desc => [] } ],
	[ 'Ext', { Ext => { a => 1 } } ],
	[ 'PushFlag', { PushFlag => '0' } ],
	[ 'ApnsInfo', { ApnsInfo => 'x' } ],
	[ 'BadgeMode', { ApnsInfo => { BadgeMode => 'x' } } ],
	[ 'Sound', { AndroidInfo => { Sound => 1 } } ]);
bad_body(90057, 'DataId of 65 bytes', body(DataId => 'x' x 65));
bad_body(
	90057,
	'DataId of 22 characters, 66 bytes',
	body(DataId => "\x{6587}" x 22));
bad_body(90026, 'Classification', body(Classification => '1'));
bad_body(90026, 'OfflineStorageTime', body(OfflineStorageTime => 1.5));
is(call(with => { To_Account => [ map { "u$_" } 1 .. 500 ] })->{code},
	0, '500 accounts');
is(scalar @{ last_event('request')->{accounts} },
	500, '500 accounts in a line of the ledger');
is(call(body => ' ' x (2 * 1024 * 1024))->{status}, 413, 'a body of 2 MB');

note 'deduplication by MsgRandom';

{
	my ($random, @r) = ($next_random + 1_000_000);

	# on a machine that is very busy a second may pass between the two
	foreach my $try (1 .. 10)
	{
		my $begin = time;
		@r = map { call(with => { MsgRandom => $random }) } 1 .. 2;
		last if time - $begin < 1;
		$random++;
	}
	is_deeply([ map { $_->{code} } @r ], [ 0, 0 ], 'twice within a second');
	isnt($r[0]{json}{TaskId}, $r[1]{json}{TaskId}, 'each has a TaskId');
	my $event = last_event('answer');
	ok($event->{swallowed} && !$event->{delivered},
		'the second is swallowed');
	sleep 2;
	call(with => { MsgRandom => $random });
	ok(last_event('answer')->{delivered}, 'after a second it is taken again');
}

note 'accounts that fail';

{
	my $r =
	  call(with => { To_Account => [ 'user1', 'nobody7', 'acct-70169-x' ] });
	is_deeply(
		$r->{json}{ErrorList},
		[
			{ To_Account => 'nobody7', ErrorCode => 70107 },
			{
				To_Account => 'acct-70169-x',
				ErrorCode => 70169,
				ErrorInfo => ''
			}
		],
		'ErrorList');
	is_deeply(
		[ @{ $r->{json} }{qw(ActionStatus ErrorCode)} ],
		[ 'OK', 0 ],
		'the call as such is OK');
	my $q = ($tim->accepted)[-1];
	is_deeply(
		$q->{failed},
		[
			{ account => 'nobody7', code => 70107 },
			{ account => 'acct-70169-x', code => 70169 }
		],
		'in the ledger');

	my @failed =
	  map {
		call(with => { To_Account => ['acctN-70500-2-x'] })->{json}{ErrorList}
	  } 1 .. 3;
	is_deeply(
		[ map { $_ ? $_->[0]{ErrorCode} : 0 } @failed ],
		[ 70500, 70500, 0 ],
		'acctN fails as often as it says');
}

note 'calls that fail, by the name of an account';

# What curl and the ledger say of a request to an account of that name: exit
# status of curl (or a list of possible ones), HTTP status, ErrorCode in the
# answer, HTTP status in the ledger, has it been processed?
sub trouble
{
	my ($name, $exit, $status, $code, $ledger_status, $delivered) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	foreach my $http1 (0, 1)
	{
		my $r =
		  call(http1 => $http1, with => { To_Account => [ 'user1', $name ] });
		my $as = "$name over HTTP/" . ($http1 ? 1 : 2);
		my $e = last_event('answer');

		ok(scalar(grep { $_ == $r->{exit} } ref $exit ? @$exit : $exit),
			"$as: curl")
		  or diag "exit $r->{exit}: " . slurp("$scratch/stderr");
		is($r->{status}, $status, "$as: HTTP status") if defined $status;
		is($r->{code}, $code, "$as: ErrorCode");
		is_deeply(
			[ $e->{http}, $e->{delivered} ? 1 : 0 ],
			[ $ledger_status, $delivered ],
			"$as: in the ledger");
		return $r if $http1;
	}
}

# curl: 18 partial file, 52 empty reply, 55/56 send or receive failure,
# 92 HTTP/2 stream error, 16 HTTP/2 framing error
my $reset = [ 16, 52, 55, 56, 92 ];

trouble('code-60007-a', 0, 200, 60007, 200, 0);
trouble('code-91000', 0, 200, 91000, 200, 0);
trouble('reset-before', $reset, '000', undef, 0, 0);
trouble('reset-during', $reset, '000', undef, 0, 0);
trouble('reset-after-1', $reset, '000', undef, 0, 1);
trouble('drop-before', $reset, '000', undef, 0, 0);
trouble('drop-after', $reset, '000', undef, 0, 1);
trouble('truncate', [ 18, 92 ], 200, undef, 200, 1);
trouble('garbage-x', 0, 200, undef, 200, 1);
trouble('http-503', 0, 503, undef, 503, 0);
trouble('html502', 0, 502, undef, 502, 0);
{
	my $r = trouble('http-429-ra7-x', 0, 429, undef, 429, 0);
	like($r->{headers}, qr/^retry-after: 7\r$/mi, 'Retry-After');
	is($r->{body}, '', 'an empty body');
}
{
	my $begin = time;
	my $r = trouble('drip-2', 0, 200, 0, 200, 1);
	cmp_ok(time - $begin, '>', 2 * 2 * 90 / 1000, 'drip takes its time');
	$begin = time;
	trouble('slow-300-x', 0, 200, 0, 200, 1);
	cmp_ok(time - $begin, '>', 0.6, 'slow takes its time');
}
{
	my $r = trouble('huge-5', 0, 200, 0, 200, 1);
	cmp_ok(length $r->{body}, '>', 5 * 1024 * 1024, 'huge is');
	$r = trouble('badutf8', 0, 200, undef, 200, 1);
	like($r->{body}, qr/"ErrorInfo":"bad \xff\xfe.*\x01\x1b/, 'broken text');

	# JSON::PP gives up at a depth of 512
	$r = trouble('deep', 0, 200, undef, 200, 1);
	like($r->{body}, qr/\[{10000}/, 'deep is');
	$r = trouble('dupkeys', 0, 200, 0, 200, 1);
	is(scalar(() = $r->{body} =~ /"ErrorCode"/g), 2, 'keys occur twice');
	$r = trouble('nul-1', 0, 200, 0, 200, 1);
	like($r->{json}{TaskId}, qr/^batch_.*\0tail$/, 'NUL in TaskId');
	$r = trouble('extraerr', 0, 200, 0, 200, 1);
	is_deeply(
		[ map { $_->{To_Account} =~ s/-\d+$//r } @{ $r->{json}{ErrorList} } ],
		[ 'extraerr', 'extraerr', 'stranger' ],
		'one account twice and one of nobody');
	is_deeply(
		($tim->accepted)[-1]{failed},
		[ { account => 'extraerr', code => 70107 } ],
		'the ledger tells the truth');
}
is(call(with => { To_Account => ['slow-5000'] }, timeout => 2)->{exit},
	28, 'the client gives up');
ok( ($tim->accepted)[-1]{accounts}[0] eq 'slow-5000',
	'what was too slow has been processed');
is_deeply(
	[
		map {
			call(with => { To_Account => ['first2-code-60008-x'] })->{code}
		} 1 .. 3
	],
	[ 60008, 60008, 0 ],
	'first<N> passes after N times');
is( call(
		with => {
			To_Account =>
			  [qw(admin code http-5 slow reset nuls acct-x first firstx f)]
		})->{code},
	0,
	'similar names are ordinary');

note 'a UserSig that is repeated';

{
	my $sig = usersig(expire => 86399, level => 0);
	my $n = length $sig;
	my %echo = (
		plain => $sig,
		url => $sig =~ s/(\W)/sprintf '%%%02X', ord $1/ger,
		escaped => $sig =~ s/(.)/sprintf '%%%02x', ord $1/ger,
		twice => $sig =~ s/(.)/sprintf '%%25%02X', ord $1/ger,
		upper => uc $sig,
		lower => lc $sig,
		tail => substr($sig, int($n / 2) - 1),
		middle =>
		  substr($sig, int($n / 3) - 1, int(2 * $n / 3) - int($n / 3) + 1),
		short => substr($sig, 100, 16),
		wrapped => $sig =~ s/(.{64})/$1\n/gr,
		broken => substr($sig, 0, 40) . '...' . substr($sig, -40));
	my %query = (usersig => $sig);

	foreach my $form (sort keys %echo)
	{
		my $r = call(
			query => {%query},
			with => { To_Account => ["echo-$form-info"] });
		refused($r, 90001, "echo-$form-info");
		is( $r->{json}{ErrorInfo},
			"not understood: $echo{$form}",
			"$form: the text");
	}
	my $list = call(
		query => {%query},
		with => { To_Account => [ 'user1', 'echo-url-list' ] });
	is_deeply(
		$list->{json}{ErrorList},
		[
			{
				To_Account => 'echo-url-list',
				ErrorCode => 70107,
				ErrorInfo => "not understood: $echo{url}"
			}
		],
		'in ErrorList');
	my $task = call(
		query => {%query},
		with => { To_Account => ['echo-tail-task'] });
	is($task->{json}{TaskId}, "not understood: $echo{tail}", 'in TaskId');
	my $page = call(
		query => {%query},
		with => { To_Account => ['echo-lower-page'] });
	is($page->{status}, 502, 'a page: HTTP status');
	like($page->{body}, qr/<p>not understood: \Q$echo{lower}\E</, 'a page');
	is_deeply(
		[
			map { $_->{delivered} ? 1 : 0 }
			  (grep { $_->{event} eq 'answer' } $tim->ledger)[ -3 .. -1 ]
		],
		[ 1, 1, 0 ],
		'what of them was processed');
	is(call(with => { To_Account => ['echo-nonsense-info'] })->{code},
		0, 'a form that does not exist is an ordinary name');

	my @noted = split /\n/, slurp($tim->dir . '/usersigs');
	is(scalar(grep { $_ eq $sig } @noted), 1, 'a UserSig is noted once');
	ok(scalar(grep { $_ eq 'nonsense' } @noted), 'whatever it was worth');
}

note 'rules';

$tim->reset;
$tim->rules([ { kind => 'code', arg => 60011, count => 2 } ]);
is_deeply(
	[ map { call()->{code} } 1 .. 3 ],
	[ 60011, 60011, 0 ],
	'a rule with a count');
$tim->rules(
	[
		{ kind => 'latency', arg => 200 },
		{ kind => 'code', arg => 60018, account => 'vip' },
		{
			kind => 'status',
			arg => 503,
			app => '1600150143',
			retry_after => 1
		},
	]);
{
	my $begin = time;
	is(call()->{code}, 0, 'rules for others');
	cmp_ok(time - $begin, '>', 0.2, 'latency');
}
is(call(with => { To_Account => [ 'a', 'vip1' ] })->{code},
	60018, 'a rule for accounts');
is( call(
		query => {
			sdkappid => 1600150143,
			usersig => usersig(sdkappid => 1600150143, key => $second_key)
		})->{status},
	503,
	'a rule for an app');
foreach my $http1 (0, 1)
{
	foreach my $kind (qw(reset-before reset-during drop-before))
	{
		$tim->rules([ { kind => $kind, count => 1 } ]);
		my $before = scalar $tim->ledger;
		my $r = call(http1 => $http1);
		my @new = $tim->ledger;
		@new = @new[ $before .. $#new ];
		ok( scalar(grep { $_ == $r->{exit} } @$reset),
			"$kind over HTTP/" . ($http1 ? 1 : 2)) or diag "curl $r->{exit}";
		is_deeply([ map { "$_->{event} $_->{fault}" } @new ],
			["partial $kind"], "$kind: the ledger has a partial request");
		is(call(http1 => $http1)->{code}, 0, "$kind: the next one passes");
	}
}
$tim->rules(
	[ { kind => 'code', arg => 60008, delivered => JSON::PP::true } ]);
call();
is_deeply(
	[ @{ ($tim->accepted)[-1] }{qw(code task_id)} ],
	[ 60008, '' ],
	'a failure that was processed nevertheless');
$tim->rules([ { kind => 'acct', arg => 70169, account => 'user2' } ]);
is_deeply([ map { $_->{To_Account} } @{ call()->{json}{ErrorList} } ],
	['user2'], 'accounts that fail by rule');
$tim->rules([ { kind => 'code', arg => 90011, over => 2 } ]);
is_deeply(
	[
		map { call(with => { To_Account => $_ })->{code} }[ 'a', 'b' ],
		[ 'a', 'b', 'c' ]
	],
	[ 0, 90011 ],
	'a rule for requests with many accounts');
$tim->rules([ { kind => 'garbage', probability => 0 } ]);
is(call()->{code}, 0, 'probability 0');
$tim->rules([ { kind => 'garbage', probability => 1 } ]);
is(call()->{code}, undef, 'probability 1');
$tim->clear_rules;
is(call()->{code}, 0, 'no rules');

foreach my $bad (
	{ kind => 'nonsense' },
	{ kind => 'code' },
	{ kind => 'drip', arg => 'x' },
	{ kind => 'nul', often => 1 },
	{ kind => 'echo-info' })
{
	ok(!eval { $tim->rules([$bad]); 1 },
		'a wrong rule is refused: ' . $json->encode($bad));
}

note 'a body that does not arrive';

foreach my $http1 (0, 1)
{
	# curl announces more than it has
	my $r = call(
		http1 => $http1,
		timeout => 1,
		curl => [ '-H', 'Content-Length: 5000' ]);
	ok(!defined $r->{code}, 'no answer of the API');
	my $event;
	foreach my $try (1 .. 50)
	{
		$event = ($tim->ledger)[-1];
		last if $event->{event} eq 'partial';
		select undef, undef, undef, 0.1;
	}
	is($event->{event}, 'partial', 'the ledger has a partial request');
}

note 'counters';

# requests that their client has given up are still on their way
foreach my $try (1 .. 100)
{
	last if $tim->stats->{active} == 0;
	select undef, undef, undef, 0.1;
}
$tim->reset;
{
	my @config;

	# one process, one connection
	foreach my $n (1 .. 20)
	{
		push @config, '--next' if @config;
		push @config, '-sS', '--http2', '--cacert', $tim->ca, '-o',
		  '/dev/null',
		  '--data-binary', body(To_Account => [ 'user1', 'nobody' ]),
		  'https://localhost:'
		  . $tim->port
		  . '/v4/timpush/batch?sdkappid=88888888&identifier=administrator'
		  . '&random=1&contenttype=json&usersig='
		  . usersig();
	}
	is(system('curl', @config), 0, 'twenty requests');
	call(http1 => 1);
	my $stats = $tim->stats;
	is_deeply(
		$stats,
		{
			requests => 21,
			accepted => 21,
			accounts => 22,
			refused => 0,
			partial => 0,
			swallowed => 0,
			connections => 2,
			max_concurrent => 1,
			active => 0,
			protocols => { 'HTTP/2.0' => 20, 'HTTP/1.1' => 1 },
			codes => { 0 => 21 },
			faults => {}
		},
		'counters') or diag explain $stats;
}

note 'stop and start again';

{
	my $port = $tim->port;
	my @before = $tim->ledger;
	$tim->stop;
	is(call()->{exit}, 7, 'nobody answers');
	$tim->start(http1 => 1);
	is($tim->port, $port, 'the same port');
	my $r = call();
	is($r->{code}, 0, 'it is back');
	is($r->{version}, '1.1', 'without HTTP/2');
	my @after = $tim->ledger;
	is(scalar @after, scalar @before + 2, 'the ledger goes on');
	my %seen;
	ok(!grep({ $seen{"$_->{event} $_->{seq}"}++ } @after),
		'no sequence number twice');
}

note 'several workers, one ledger';

{
	$tim->stop;
	$tim->start(workers => 3);
	my $before = scalar $tim->ledger;
	my $accounts = [ map { "account-with-a-long-name-$_" } 1 .. 500 ];
	my @config;
	foreach my $n (1 .. 60)
	{
		open my $fh, '>', "$scratch/body$n" or die "cannot write: $!";
		print $fh body(To_Account => $accounts);
		close $fh;
		push @config, '--next' if @config;
		push @config, '-sS', '--http1.1', '--cacert', $tim->ca,
		  '-o', '/dev/null', '--data-binary', "\@$scratch/body$n",
		  'https://localhost:'
		  . $tim->port
		  . '/v4/timpush/batch?sdkappid=88888888&identifier=administrator'
		  . '&random=1&contenttype=json&usersig='
		  . usersig();
	}
	is( system(
			'curl', '--no-progress-meter',
			'--parallel', '--parallel-immediate',
			'--parallel-max', 20,
			@config),
		0,
		'sixty large requests side by side');

	# an interleaved line would not decode
	my @ledger = $tim->ledger;
	is(scalar @ledger, $before + 120, 'every line is in the ledger');
	is($tim->stats->{accepted}, 60, 'counters are shared');
}

unlike(
	slurp($tim->dir . '/error.log'),
	qr/lua entry thread aborted/,
	'the service met no error of its own');

{
	my $dir = $tim->dir;
	my $port = $tim->port;
	undef $tim;
	ok(!-e $dir, 'nothing is left behind');
	ok(!IO::Socket::INET->new("127.0.0.1:$port"), 'nobody listens any more');
}

done_testing();
