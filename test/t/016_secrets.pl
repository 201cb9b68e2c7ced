
# Neither the key nor a UserSig gets out: not into the log, though all is logged
# that PostgreSQL can log, nor into a table, a view, a statistic or any file.

use strict;
use warnings;

use Compress::Zlib qw(uncompress);
use File::Find;
use IPC::Open2;
use JSON::PP;
use MIME::Base64 qw(decode_base64 encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

my $inline_key = 'inline-key-7f3a9c51';
my $wrong_key = 'a-wrong-but-secret-key';
my $binary_key = 'binary-key-5e0c77';
my $tim = FakeTIM->new(apps => { 77777777 => $inline_key })->start;
my $stranger = FakeTIM->new->start;
my $node = start_node(
	'main',
	shared_preload_libraries => 'timpush, pg_stat_statements, auto_explain',
	restart_after_crash => 'on',
	log_min_messages => 'debug5',
	log_min_error_statement => 'debug5',
	log_error_verbosity => 'verbose',
	log_statement => 'all',
	log_duration => 'on',
	log_parameter_max_length => -1,
	log_parameter_max_length_on_error => -1,
	debug_print_parse => 'on',
	debug_print_rewritten => 'on',
	debug_print_plan => 'on',
	'auto_explain.log_min_duration' => 0,
	'auto_explain.log_parameter_max_length' => -1,
	'auto_explain.log_verbose' => 'on',
	'auto_explain.log_nested_statements' => 'on',
	'pg_stat_statements.track' => 'all');
my $key_file = PostgreSQL::Test::Utils::tempdir . '/secret.key';
append_to_file($key_file, $tim->key);
append_to_file("$key_file.wrong", $wrong_key);
append_to_file("$key_file.binary", "\x01$binary_key\x00\xff");
append_to_file("$key_file.large", $tim->key x 100);
append_to_file("$key_file.empty", "\n");
append_to_file("$key_file.closed", $tim->key);
chmod 0, "$key_file.closed" or die "could not chmod: $!\n";
mkdir "$key_file.folder" or die "could not make a folder: $!\n";
append_to_file("$key_file.folder/key", $tim->key);
$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements');

# What PostgreSQL itself logs of DDL with a secret in it is not our business.
my $quiet = "
	SET log_statement = none;
	SET log_min_messages = panic;
	SET log_min_error_statement = panic;
	SET log_duration = off;
	SET debug_print_parse = off;
	SET debug_print_rewritten = off;
	SET debug_print_plan = off;
	SET pg_stat_statements.track_utility = off;";

# A server that says in its answer what it was asked, as proxies do.  Yields
# the addresses that it was asked for.
sub echo_server
{
	my ($port, $n, $status) = @_;
	my @asked;
	my $pid = open2(
		my $out, my $in,
		'openssl', 's_server',
		'-quiet', '-accept',
		$port, '-naccept',
		$n, '-cert',
		$tim->dir . '/server.crt', '-key',
		$tim->dir . '/server.key');

	return sub {
		foreach my $i (1 .. $n)
		{
			my $line = <$out>;
			my $length = 0;

			while (defined(my $header = <$out>))
			{
				$length = $1 if $header =~ /^content-length: (\d+)/i;
				last if $header =~ /^\r?\n$/;
			}
			read $out, my ($body), $length;
			push @asked, $line;
			my ($address) = $line =~ / (\S+)/;
			my $answer = "sorry, could not forward $line$line";
			print $in
			  "HTTP/1.1 $status oops $address\r\nContent-Type: text/html\r\n",
			  "Location: https://elsewhere.invalid$address\r\n",
			  'Content-Length: ', length $answer,
			  "\r\nConnection: close\r\n\r\n", $answer;
			$in->flush;
		}
		close $in;
		close $out;
		waitpid $pid, 0;
		return @asked;
	};
}

my @bad_files = qw(binary large empty closed folder missing);
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $talk = echo_server($port, 1, 502);

sub server
{
	my ($name, %options) = @_;
	$options{secret_key_file} //= $key_file unless $options{secret_key};
	return $tim->create_server_sql($name, %options);
}

$node->safe_psql(
	'postgres',
	server('echo', host => "localhost:$port")
	  . server('good')
	  . server('pages')
	  . server('broken')
	  . server('wrong', secret_key_file => "$key_file.wrong")
	  . server('stranger', ca_file => $stranger->ca)
	  . server('nobody',
		host => 'localhost:' . PostgreSQL::Test::Cluster::get_free_port())
	  . server('nowhere', host => 'nowhere.invalid')
	  . server('patient', request_timeout => '4s')
	  . join('',
		map { server($_, secret_key_file => "$key_file.$_") } @bad_files));
$node->safe_psql(
	'postgres',
	$quiet
	  . server('inline', sdkappid => 77777777, secret_key => $inline_key)
	  . server('proxied',
		proxy => 'http://user:password@localhost:' . $stranger->port)
	  . server('badproxy', proxy => 'gopher://user:password@localhost')
	  . server('worseproxy', proxy => 'http://user:password@local host'));
my @stopped = (
	qw(wrong stranger nobody nowhere proxied badproxy worseproxy), @bad_files
);

# One push each, in doubt once at most
sub send_to
{
	my ($server, @accounts) = @_;
	return map {
		push_id(
			$node, $_,
			server => $server,
			title => ref $_ ? $_->[0] : $_,
			on_unknown => 'hold')
	} @accounts;
}

my $listener = $node->background_psql('postgres', on_error_stop => 1);
$listener->query_safe('LISTEN timpush');

# All that may go wrong, with an error of ours while it is recorded
$node->safe_psql(
	'postgres', q{
	CREATE SEQUENCE forced;
	CREATE FUNCTION force_error() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF nextval('public.forced') <= 2 THEN
			RAISE EXCEPTION 'forced: %', NEW;
		END IF;
		RETURN NULL;
	END $$;
	CREATE TRIGGER force_error AFTER INSERT OR UPDATE ON push_request
		FOR EACH ROW EXECUTE FUNCTION force_error();
	CREATE TRIGGER force_error AFTER INSERT ON push_error
		FOR EACH ROW EXECUTE FUNCTION force_error();});
my ($echoed) = send_to('echo', 'somebody');
my @forms =
  qw(plain url escaped twice upper lower tail middle short wrapped broken);
send_to(
	'good',
	qw(alice nobody-1 code-90001),
	(map { ("echo-$_-info", "echo-$_-list") } @forms),
	map { "echo-$_-task" } qw(plain url));
send_to('inline', qw(bob echo-url-info echo-tail-list));
send_to('pages', map { "echo-$_-page" } qw(url escaped tail middle));
send_to('broken', qw(html502 truncate reset-after badutf8));
my ($refused) = send_to('wrong', 'bob');
send_to($_, 'bob') foreach grep { $_ ne 'wrong' } @stopped;
send_to('patient', 'slow-60000');

my ($asked) = $talk->();
my ($usersig) = $asked =~ /[?&]usersig=([^& ]+)/;
my $settling =
  "server IN ('echo', 'good', 'inline', 'pages', 'broken', 'patient')";
my ($activity, $titles) = ('', '');
wait_until(
	sub {
		$activity .= $node->safe_psql('postgres',
			'SELECT to_jsonb(a) FROM pg_stat_activity a');
		$titles .= slurp_file("/proc/$_/cmdline")
		  foreach grep { -r "/proc/$_/cmdline" } worker_pid($node);
		return $node->safe_psql('postgres',
			"SELECT count(*) FROM push_status WHERE waiting > 0 AND $settling"
		) == 0;
	},
	'pushes to end');
$node->poll_query_until(
	'postgres',
	"SELECT count(*) = ${\ scalar @stopped} FROM push_server
	 WHERE reason IS NOT NULL AND server IN ("
	  . join(', ', map { "'$_'" } @stopped) . ')'
) or die "a server has no trouble\n";
cmp_ok($node->safe_psql('postgres', "SELECT nextval('forced')"),
	'>', 3, 'errors were forced while outcomes were recorded');

# The mapping changes and goes while a request is on its way; the worker is
# asked for what it has, is ended, and dies.
sub hang
{
	my ($account, $echo) = @_;
	send_to('good', [ $account, $echo ]);
	wait_until(sub { requests_with($tim, $account) }, 'a request to hang');
	return;
}

hang('slow-1500', 'echo-tail-info');
append_to_file("$key_file.copy", $tim->key);
$node->safe_psql('postgres',
	"ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (SET secret_key_file '$key_file.copy')"
);
settle($node, where => "server = 'good'");
hang('slow-1501', 'echo-tail-list');
$node->safe_psql('postgres', 'DROP USER MAPPING FOR PUBLIC SERVER good');
settle($node, where => "server = 'good'");
$node->safe_psql('postgres',
	"CREATE USER MAPPING FOR PUBLIC SERVER good OPTIONS (identifier 'administrator', secret_key_file '$key_file')"
);
hang('slow-1502', 'echo-tail-info');
my $pid = worker_pid($node);
$node->safe_psql('postgres',
	"SELECT pg_log_backend_memory_contexts($pid), pg_cancel_backend($pid)");
$node->wait_for_log(qr/logging memory contexts of PID $pid/);
settle($node, where => "server = 'good'");
hang('slow-1503', 'echo-tail-info');
$node->safe_psql('postgres',
	'SELECT pg_terminate_backend(' . worker_pid($node) . ')');
settle($node, where => "server = 'good'");
my $notified = $listener->query('SELECT 1');
$listener->quit;
hang('slow-1504', 'echo-tail-info');
kill_worker($node);
settle($node, where => "server = 'good'");

# What a session does with the key
my @for_clients = map {
	$node->safe_psql('postgres',
		"SELECT timpush_usersig('client', server => '$_')")
} qw(good inline);
my ($status, $stdout, $stderr) = $node->psql('postgres',
	"SELECT timpush_usersig('client', server => 'large')");
like($stderr, qr/key file ".*" is too large/, 'a key file that is too large');

# What it looks like, so that we know what to look for
$usersig =~ s/%([0-9A-F]{2})/chr hex $1/ge;
(my $base64 = $usersig) =~ tr{*\-_}{+/=};
my $ticket = JSON::PP->new->decode(uncompress(decode_base64($base64)));
is($ticket->{'TLS.identifier'},
	$tim->identifier, 'the address holds a UserSig');
is($ticket->{'TLS.expire'}, 86400, 'that lives for a day');
is($ticket->{'TLS.sdkappid'}, $tim->sdkappid, 'for the app');

my ($request) = requests($node, $echoed);
like(
	$request->{error_info},
	qr/sorry, could not forward POST/,
	'an answer that repeats the address is kept');
like($request->{error_info}, qr/sdkappid=/, 'with the address');
foreach my $form (@forms)
{
	like(
		$node->safe_psql(
			'postgres',
			"SELECT error_info FROM push_request WHERE accounts = '{echo-$form-info}'"
		),
		qr/^not understood: .*(?:xxxxxxxx|\*\*\*)/,
		"$form: an answer that repeats the UserSig is kept, but not that");
	like(
		$node->safe_psql(
			'postgres',
			"SELECT DISTINCT error_info FROM push_error WHERE account = 'echo-$form-list'"
		),
		qr/^not understood: .*(?:xxxxxxxx|\*\*\*)/,
		"$form: and what is said of an account");
}

# All that was written, and may hold no secret
my %places = (
	log => slurp_file($node->logfile),
	notifications => $notified,
	'process titles' => $titles,
	pg_stat_activity => $activity,
	pg_stat_statements =>
	  $node->safe_psql('postgres', 'SELECT query FROM pg_stat_statements'));
foreach my $table (
	qw(push_outbox push_request push_result push_error push_server push_status)
  )
{
	$places{$table} =
	  $node->safe_psql('postgres', "SELECT to_jsonb(t) FROM $table t");
}
cmp_ok(length $places{log}, '>', 1_000_000, 'there is a log');
like($places{log}, qr/DEBUG:  00000: /, 'of everything');
like($places{log}, qr/Query Text:/, 'with plans');
like($places{log}, qr/timpush server: \d+ total/, 'memory contexts');
like($places{notifications}, qr/"suspended"/, 'there are notifications');
like($places{'process titles'}, qr/timpush worker/, 'and process titles');
like($places{pg_stat_statements},
	qr/push_request/, "and of the worker's statements");

# The catalog holds the secrets that DDL gave it, and those of the proxy.
my %secrets = (
	key => $tim->key,
	'wrong key' => $wrong_key,
	'binary key' => $binary_key,
	'inline key' => $inline_key,
	'password of the proxy' => 'user:password');
my @signatures = do
{
	my %seen;
	grep { !$seen{$_}++ } @for_clients,
	  split /\n/, slurp_file($tim->dir . '/usersigs');
};
cmp_ok(scalar @signatures, '>=', 7, 'several UserSigs were in use');

# A text that holds 15 characters of a UserSig holds one of these.
my %parts;
foreach my $signature (@signatures)
{
	for (my $i = 0; $i + 12 <= length $signature; $i += 4)
	{
		$parts{ lc substr $signature, $i, 12 } = 1;
	}
}
my $any_part = join '|', map { quotemeta } sort keys %parts;
$any_part = qr/($any_part)/;

sub spellings
{
	my ($secret) = @_;
	my @all = ($secret, encode_base64($secret, ''), unpack('H*', $secret));

	# the middle of base64 does not tell what stood before
	foreach my $before (1, 2)
	{
		my $text = encode_base64('x' x $before . $secret, '');
		push @all, substr $text, 4, length($text) - 8;
	}
	push @all, $secret =~ s/(\W)/sprintf '%%%02X', ord $1/ger;
	return map { lc } @all;
}

sub decoded
{
	my ($text) = @_;
	$text =~ s/%(?:25)*([0-9A-Fa-f]{2})/chr hex $1/ge;
	return $text;
}

sub search
{
	my ($place, $text, @names) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @found;

	foreach my $form (lc $text, lc decoded($text))
	{
		foreach my $name (@names)
		{
			push @found, "$name as $_"
			  foreach grep { index($form, $_) >= 0 }
			  spellings($secrets{$name});
		}
		push @found, "part of a UserSig: " . substr $form, $-[0] - 40, 90
		  if $form =~ $any_part;
	}
	is_deeply(\@found, [], "$place: no secret");
	return;
}

search($_, $places{$_}, sort keys %secrets) foreach sort keys %places;

# Everything in files: a dump, and the data directory with its WAL
search(
	'dump',
	(   run_command(
			[
				'pg_dumpall', '--inserts', '-h', $node->host,
				'-p', $node->port
			]))[0],
	'key',
	'wrong key',
	'binary key');
$node->safe_psql('postgres', 'CHECKPOINT');
$node->stop;
my %files;
find(
	{
		no_chdir => 1,
		wanted => sub {
			return unless -f && -s;
			my ($kind) = m{/pgdata/([^/]+)};
			push @{ $files{$kind} }, $_;
		}
	},
	$node->data_dir);
foreach my $kind (sort keys %files)
{
	search(
		"files in $kind",
		join("\n", map { slurp_file($_) } @{ $files{$kind} }),
		'key', 'wrong key', 'binary key');
}
$node->start;

# Nor for roles that may use the server
$node->safe_psql(
	'postgres', 'CREATE ROLE app LOGIN;
	GRANT USAGE ON FOREIGN SERVER good, inline TO app');
foreach my $catalog (qw(pg_user_mappings pg_foreign_server push_server))
{
	my $text = $node->safe_psql('postgres',
			"SET SESSION AUTHORIZATION app; SELECT "
		  . ($catalog eq 'push_server' ? 'server, state, reason' : '*')
		  . " FROM $catalog");

	unlike(
		$text,
		qr/\Q${\ $tim->key}\E|\Q$inline_key/,
		"$catalog: no key for others");
}

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
