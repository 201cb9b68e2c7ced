
# Doubt is never invented and never hidden: a peer that retires connections, as
# all do, causes none on HTTP/2, and whatever the API may have seen twice, but
# nothing else, is marked.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use FakeTIM;
use RawPeer;
use TimpushTest;

my $calls = $ENV{TIMPUSH_LONG} ? 100_000 : 10_000;
my $node = start_node('main');

# A server of its own database, because each service has a ledger
sub database
{
	my ($tim, $name, %options) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name,
		'CREATE EXTENSION timpush;'
		  . $tim->create_server_sql($name, %options));
	return;
}

# $n pushes that cannot share a call; in $bursts with a pause after each
sub enqueue
{
	my ($dbname, $n, $bursts, $pause) = @_;

	$bursts //= 1;
	$pause //= 0;
	$node->safe_psql(
		$dbname, qq{
		DO \$\$
		BEGIN
			FOR burst IN 0 .. $bursts - 1 LOOP
				PERFORM timpush_batch('administrator', ARRAY['user-' || n], 'title ' || n, 'text')
				FROM generate_series(burst * $n / $bursts + 1, (burst + 1) * $n / $bursts) n;
				COMMIT;
				PERFORM pg_sleep($pause);
			END LOOP;
		END \$\$});
	return;
}

# push_status of so many pushes would be slow to ask again and again
sub settle_all
{
	my ($dbname) = @_;

	$node->poll_query_until(
		$dbname,
		"SELECT NOT EXISTS (SELECT FROM push_outbox)
			AND NOT EXISTS (SELECT FROM push_request WHERE state IN ('sending', 'retry'))"
	) or die "pushes of $dbname are still waiting\n";
	return;
}

sub doubts
{
	my ($dbname) = @_;
	return row(
		$node, "
		SELECT count(*)::integer AS requests,
			(count(*) FILTER (WHERE state = 'done'))::integer AS done,
			(count(*) FILTER (WHERE state = 'unknown'))::integer AS unknown,
			(count(*) FILTER (WHERE in_doubt OR class = 'unknown' OR attempts <> 1 OR resends <> 0))::integer AS doubts,
			(count(*) FILTER (WHERE maybe_duplicate))::integer AS marked,
			(SELECT coalesce(sum(accounts) FILTER (WHERE maybe_duplicate), 0) FROM push_result)::integer AS marked_results,
			(SELECT sum(maybe_duplicate) FROM push_status)::integer AS marked_status
		FROM push_request", dbname => $dbname);
}

# How often each account was asked for, by the ledger, whose lines are too many
# to be taken apart as JSON
sub times_seen
{
	my ($tim) = @_;
	my %seen;

	foreach my $line (split /\n/, slurp_file($tim->ledger_file))
	{
		next if $line !~ /^\{"event":"request"/;
		$line =~ /"accounts":\["([\w-]+)"\]/ or die "cannot read $line\n";
		$seen{$1}++;
	}
	return \%seen;
}

# Accounts that are marked, by the tables
sub marked
{
	my ($dbname) = @_;
	return {
		map { $_->{account} => 1 } rows(
			$node, "
			SELECT DISTINCT a.account
			FROM push_result p JOIN push_request r ON r.id = p.request_id,
				unnest(r.accounts[p.first : p.first + p.accounts - 1]) a(account)
			WHERE p.maybe_duplicate", dbname => $dbname)
	};
}

sub no_doubt
{
	my ($tim, $dbname, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $seen = times_seen($tim);

	is_deeply(
		doubts($dbname),
		{
			requests => $n,
			done => $n,
			unknown => 0,
			doubts => 0,
			marked => 0,
			marked_results => 0,
			marked_status => 0
		},
		"$dbname: $n calls and no doubt");
	is_deeply(
		[ scalar keys %$seen, scalar grep { $_ > 1 } values %$seen ],
		[ $n, 0 ],
		"$dbname: the service has seen each of them, and none twice");
	$tim->ok_ledger(
		$node,
		"$dbname: tables and ledger agree",
		dbname => $dbname);
	is(scalar log_lines($node, qr/server "$dbname" has trouble/),
		0, "$dbname: and a connection that ends is no trouble");
	return;
}

# HTTP/2: a peer that retires a connection after 100 requests, in the middle of
# what is in flight.  The requests that it has not taken, it has disowned.
{
	my $tim = FakeTIM->new(keepalive_requests => 100)->start;
	my $began = time;

	database($tim, 'restless');
	enqueue('restless', $calls);
	settle_all('restless');
	note sprintf '%d calls over HTTP/2 in %.1f s', $calls, time - $began;
	no_doubt($tim, 'restless', $calls);
	my $stats = $tim->stats;
	is_deeply([ keys %{ $stats->{protocols} } ], ['HTTP/2.0'], 'HTTP/2');
	cmp_ok($stats->{connections},
		'>=', $calls / 100, 'over many connections');
	$node->safe_psql('postgres', 'DROP DATABASE restless');
}

# HTTP/1.1: idle connections are closed by the peer, and after 100 requests any.
{
	my $tim =
	  FakeTIM->new(http1 => 1, keepalive_requests => 100, idle => 1)->start;
	my $bursts = $calls / 1000;
	my $began = time;

	# away from the moment when a request meets the end of its connection
	database($tim, 'old');
	enqueue('old', $calls, $bursts,
		'CASE WHEN burst % 2 = 0 THEN 0.3 ELSE 1.5 END');
	settle_all('old');
	note sprintf '%d calls over HTTP/1.1 in %.1f s', $calls, time - $began;
	no_doubt($tim, 'old', $calls);
	my $stats = $tim->stats;
	is_deeply([ keys %{ $stats->{protocols} } ], ['HTTP/1.1'], 'HTTP/1.1');
	cmp_ok($stats->{connections},
		'>=', $calls / 100, 'over many connections');
	$node->safe_psql('postgres', 'DROP DATABASE old');
}

# Idle connections are left before the usual peer closes them: after some
# seconds over HTTP/1.1, where that matters, and later over HTTP/2.
{
	my @services = map { FakeTIM->new(http1 => $_)->start } 0, 1;

	database($services[$_], "idle$_") foreach 0, 1;
	foreach my $round (0, 1)
	{
		enqueue("idle$_", 1) foreach 0, 1;
		settle_all("idle$_") foreach 0, 1;
		sleep 5 if $round == 0;
	}
	is_deeply(
		[ map { $_->stats->{connections} } @services ],
		[ 1, 2 ],
		'an idle connection of HTTP/1.1 is not used again for long');
}

# A request that meets the end of an idle connection: HTTP/2 says that it was
# not taken.  HTTP/1.1 has no such word.  Either nothing of the body had left,
# and the request goes on another connection; or it is in doubt, marked, and
# the ledger has it once, as it happens.  It never goes twice behind our back.
# libcurl 8 does not look whether a connection that was just used has ended, so
# that one request may meet that in all of its resends, and ends in doubt.
foreach my $http1 (0, 1)
{
	my $dbname = $http1 ? 'race1' : 'race2';
	my $tim = FakeTIM->new(http1 => $http1, idle => '20ms')->start;

	database($tim, $dbname);
	enqueue($dbname, 500, 500, '0.0195 + random() * 0.002');
	settle_all($dbname);
	my $doubts = doubts($dbname);
	my $seen = times_seen($tim);
	my $marked = marked($dbname);

	is($doubts->{done} + ($http1 ? $doubts->{unknown} : 0),
		500, "$dbname: all have arrived or are in doubt");
	cmp_ok($tim->stats->{connections},
		'>', 50, "$dbname: many met the end of a connection");
	if ($http1)
	{
		note "$doubts->{doubts} of 500 in doubt, seen twice ",
		  scalar grep { $_ > 1 } values %$seen;
		is($doubts->{marked}, $doubts->{doubts},
			"$dbname: those in doubt are marked, and no others");
		is(scalar(grep { $seen->{$_} > 1 && !$marked->{$_} } keys %$seen),
			0, "$dbname: what was seen twice is marked");
	}
	else
	{
		no_doubt($tim, $dbname, 500);
	}
}

# Requests that were processed without an answer: what is marked and what the
# service has seen twice are the same.
foreach my $http1 (0, 1)
{
	my $dbname = $http1 ? 'deaf1' : 'deaf2';
	my $tim = FakeTIM->new(http1 => $http1)->start;

	# so rarely that it opens no breaker, and before pushes are merged
	$tim->rules(
		[ { kind => 'drop-after', probability => 0.02, count => 20 } ]);
	database($tim, $dbname);
	enqueue($dbname, 2000);
	settle_all($dbname);
	my $seen = times_seen($tim);
	my @twice = sort grep { $seen->{$_} > 1 } keys %$seen;
	my $doubts = doubts($dbname);

	cmp_ok(scalar @twice, '>', 0, "$dbname: some requests went twice");
	is_deeply([ sort keys %{ marked($dbname) } ],
		\@twice, "$dbname: those are marked, and no others");
	is_deeply(
		[ @$doubts{qw(doubts marked marked_results marked_status)} ],
		[ (scalar @twice) x 4 ],
		"$dbname: in every table, and summed");
	$tim->ok_ledger(
		$node,
		"$dbname: tables and ledger agree",
		dbname => $dbname);
}

# A peer that takes fewer streams than a client may take for granted, and one
# that takes none before its settings are acknowledged, refuse streams.  With the
# latter little gets through, and nothing by a libcurl that begins many at once.
{
	my $narrow =
	  FakeTIM->new(max_streams => 4, keepalive_requests => 50)->start;
	database($narrow, 'narrow', max_in_flight => 64);
	enqueue('narrow', 3000);
	settle_all('narrow');
	no_doubt($narrow, 'narrow', 3000);

	my $slow = FakeTIM->new(preread => 1024)->start;
	database($slow, 'prudish');
	enqueue('prudish', 30);
	wait_until(
		sub {
			doubts('prudish')->{done} > 15
			  || log_lines($node, qr/server "prudish" has trouble/);
		},
		'many refusals');
	is( $node->safe_psql(
			'prudish',
			"SELECT count(*) FROM push_request WHERE in_doubt OR maybe_duplicate"
		),
		0,
		'a peer that refuses streams for long causes no doubt');
	$node->safe_psql('postgres', 'DROP DATABASE prudish WITH (FORCE)');
}

# The rest needs a peer that is played by a script, whose times a busy machine
# upsets.
unless ($ENV{TIMPUSH_LONG})
{
	$node->stop;
	done_testing();
	exit 0;
}

# The rest is about a peer that says whatever it likes.
my $tim = FakeTIM->new->start;
my $ok = '{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0,"TaskId":"raw"}';

# A server for it, and its port
sub raw_server
{
	my ($name, %options) = @_;
	my $port = RawPeer->new($tim, alpn => delete $options{alpn});

	$node->safe_psql(
		'postgres',
		$tim->create_server_sql(
			$name,
			host => 'localhost:' . $port->port,
			%options));
	return $port;
}

my %account;

sub send_to
{
	my ($server, $account) = @_;

	$account{$account} = push_id(
		$node, $account,
		server => $server,
		title => $account,
		on_unknown => 'hold');
	return $account{$account};
}

sub fate
{
	my ($account) = @_;

	settle($node, where => "push_id = $account{$account}");
	my ($request) = requests($node, $account{$account});
	return join ' ', $request->{state}, $request->{attempts},
	  map { $request->{$_} ? $_ : () } qw(resends in_doubt maybe_duplicate);
}

my $sent = 'done 1';
my $unknown = 'unknown 1 in_doubt';

# REFUSED_STREAM, on a connection that is new and on one that has served
{
	my $port = raw_server('refusing');
	my $peer;

	foreach my $account (qw(new used))
	{
		send_to('refusing', $account);
		$peer //= $port->accept;
		my $stream = $peer->next_request;
		my $body = $peer->body($stream);

		$peer->frame(RawPeer::RST_STREAM, 0, $stream, pack 'N', 7);
		my $next = $port->accept;
		$stream = $next->next_request;
		is($next->body($stream),
			$body, 'a request whose stream was refused goes again');
		$next->answer($stream, $ok);
		is(fate($account), $sent, 'and is sent, without doubt');
		$peer = $next;
	}

	# any other reason says nothing
	send_to('refusing', 'internal-error');
	$peer->frame(RawPeer::RST_STREAM, 0, $peer->next_request, pack 'N', 2);
	is(fate('internal-error'), $unknown, 'INTERNAL_ERROR is no refusal');
}

# GOAWAY, at once and announced
{
	my $port = raw_server('leaving');

	send_to('leaving', 'stays');
	my $peer = $port->accept;
	$peer->answer($peer->next_request, $ok);
	is(fate('stays'), $sent, 'a request is answered');
	foreach my $announced (0, 1)
	{
		send_to('leaving', "goes-$announced");
		my $stream = $peer->next_request;

		$peer->goaway(2**31 - 1) if $announced;
		$peer->goaway($stream - 2);
		my $next = $port->accept;
		$next->answer($next->next_request, $ok);
		is(fate("goes-$announced"), $sent,
			'one that came after the last goes again, without doubt');
		$peer = $next;
		send_to('leaving', "between-$announced");
		$peer->answer($peer->next_request, $ok);
		fate("between-$announced");
	}

	# the peer's own words, which are not what it says by the number
	send_to('leaving', 'kept');
	my $stream = $peer->next_request;
	$peer->goaway($stream,
		"', last_stream=0] GOAWAY, error=0, last_stream=0");
	$peer->kill;
	is(fate('kept'), $unknown, 'the last one that it acts upon is in doubt');
}

# An answer that has begun; and a handle of libcurl's that remembers a refusal
{
	my $port = raw_server('contrary', max_in_flight => 1);

	send_to('contrary', 'begun');
	my $peer = $port->accept;
	my $stream = $peer->next_request;
	$peer->headers($stream, 0, 200);
	$peer->frame(RawPeer::RST_STREAM, 0, $stream, pack 'N', 7);
	is(fate('begun'), $unknown, 'an answer that has begun is no refusal');

	send_to('contrary', 'next');
	$peer = $port->accept;
	$peer->next_request;
	$peer->kill;
	is(fate('next'), $unknown, 'nor is it one of the next request');

	send_to('contrary', 'first');
	$peer = $port->accept;
	$peer->answer($peer->next_request, $ok);
	fate('first');
	send_to('contrary', 'disowned-late');
	$stream = $peer->next_request;
	$peer->headers($stream, 0, 200);
	$peer->goaway($stream - 2);
	$peer->kill;
	is(fate('disowned-late'),
		$unknown, 'nor can a peer disown what it has begun to answer');
}

# What a peer writes into an answer is not what libcurl traces: nobody forges a
# refusal of another's request by a name or a text that comes back.
foreach my $alpn ('h2', 'http/1.1')
{
	my $name = $alpn eq 'h2' ? 'forging' : 'forging-old';
	my $port = raw_server($name, alpn => $alpn);
	my @words = (
		'refused_stream' => 'REFUSED_STREAM, retrying a fresh connect',
		'recveived' => 'GOAWAY, error=0, last_stream=0',
		'received' => 'GOAWAY, error=0, last_stream=0',
		'connection' => 'Connection died, retrying a fresh connect',
		'using' =>
		  'Using Stream ID: 1 recveived GOAWAY, error=0, last_stream=0');
	my $text = join "\n", @words;

	if ($alpn eq 'h2')
	{
		# Connection is not for HTTP/2
		splice @words, 6, 2;
		send_to($name, 'other');
		my $peer = $port->accept;
		$peer->next_request;
		send_to($name, 'forger');
		my $stream = $peer->next_request;
		$peer->headers($stream, 0, 103, @words);
		$peer->headers($stream, 0, 200, @words);
		$peer->frame(RawPeer::DATA, 0, $stream, $text);
		$peer->headers($stream, 1, 200, @words);
		$peer->sync;
		$peer->kill;
		is(fate('other'), $unknown, 'words in an answer refuse nothing');
		isnt(fate('forger'), $sent, 'nor are they an answer of the API');
	}
	else
	{
		send_to($name, 'old-forger');
		my $peer = $port->accept;
		$peer->read_http1;
		$peer->write("HTTP/1.1 100 $words[1]\r\n"
			  . "REFUSED_STREAM, retrying a fresh connect: 1\r\n"
			  . "Using Stream ID: 1\r\n"
			  . "recveived GOAWAY, error=0, last_stream=0: 1\r\n"
			  . "Connection died, retrying a fresh connect: 1\r\n\r\n");
		$peer->kill;
		is(fate('old-forger'), $unknown, 'nor over HTTP/1.1');
	}
}

# A peer that breaks the protocol makes libcurl leave the connection, with two
# requests on it.
{
	my $port = raw_server('broken', request_timeout => '4s');
	my $peer;

	foreach my $account (qw(broken-1 broken-2))
	{
		send_to('broken', $account);
		$peer //= $port->accept;
		$peer->next_request;
	}
	$peer->frame(RawPeer::SETTINGS, 0, 0, 'five!');
	is(fate($_), $unknown, 'a broken protocol refuses nothing')
	  foreach qw(broken-1 broken-2);
}

# GOAWAY of an idle connection, read by a request that comes from another one:
# it says nothing of that other one, where a request still waits.
{
	my $port = raw_server('two');

	send_to('two', 'warm');
	my $first = $port->accept(settings => { 3 => 2 });
	$first->answer($first->next_request, $ok);
	fate('warm');
	send_to('two', 'waits');
	$first->next_request;
	send_to('two', 'wanders');
	my $wanders = $first->next_request;

	send_to('two', 'elsewhere');
	my $second = $port->accept;
	$second->answer($second->next_request, $ok);
	fate('elsewhere');
	$second->goaway(1);
	$first->frame(RawPeer::RST_STREAM, 0, $wanders, pack 'N', 7);
	my $third = $port->accept;
	$third->answer($third->next_request, $ok);
	is(fate('wanders'), $sent,
		'a refused request goes on a third connection');
	$first->kill;
	is(fate('waits'), $unknown, 'a GOAWAY is of its connection only');
}

$node->stop;
done_testing();
