
# Neither the key nor a UserSig gets out: not into the log, whatever is logged,
# nor into a table, nor into pg_stat_activity.

use strict;
use warnings;

use Compress::Zlib qw(uncompress);
use IPC::Open2;
use JSON::PP;
use MIME::Base64 qw(decode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $stranger = FakeTIM->new->start;

# PostgreSQL itself logs a statement that holds a key, if it logs statements.
my $node = start_node(
	'main',
	log_min_messages => 'debug2',
	log_statement => 'none',
	log_min_error_statement => 'panic');
my $key_file = PostgreSQL::Test::Utils::tempdir . '/secret.key';
append_to_file($key_file, $tim->key);

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
			my $answer = "sorry, could not forward $line$line";
			print $in "HTTP/1.1 $status oops\r\nContent-Type: text/html\r\n",
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

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $talk = echo_server($port, 1, 502);

$node->safe_psql(
	'postgres',
	$tim->create_server_sql(
		'echo',
		secret_key_file => $key_file,
		host => "localhost:$port")
	  . $tim->create_server_sql('good', secret_key_file => $key_file)
	  . $tim->create_server_sql('direct')
	  . $tim->create_server_sql(
		'wrong', secret_key => 'a-wrong-but-secret-key')
	  . $tim->create_server_sql(
		'stranger',
		secret_key_file => $key_file,
		ca_file => $stranger->ca)
	  . $tim->create_server_sql(
		'nobody',
		secret_key_file => $key_file,
		host => 'localhost:' . PostgreSQL::Test::Cluster::get_free_port())
	  . $tim->create_server_sql(
		'proxied',
		secret_key_file => $key_file,
		proxy => 'http://user:password@localhost:' . $stranger->port));

my $echoed =
  push_id($node, 'somebody', server => 'echo', on_unknown => 'hold');
push_id($node, $_, server => 'good', title => $_, on_unknown => 'hold')
  foreach qw(alice nobody-1 code-90001 garbage-1);
push_id($node, $_, server => 'direct', title => $_, on_unknown => 'hold')
  foreach qw(html502 truncate reset-after badutf8);
my $refused = push_id($node, 'bob', server => 'wrong');
push_id($node, 'bob', server => $_) foreach qw(stranger nobody proxied);

my ($asked) = $talk->();
my ($usersig) = $asked =~ /[?&]usersig=([^& ]+)/;
settle($node, where => "server IN ('echo', 'good', 'direct')");
$node->poll_query_until(
	'postgres',
	"SELECT count(*) = 4 FROM push_server WHERE reason IS NOT NULL
	 AND server IN ('wrong', 'stranger', 'nobody', 'proxied')");

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

my %secrets = (
	key => qr/\Q${\ $tim->key}/,
	'wrong key' => qr/a-wrong-but-secret-key/,
	UserSig => qr/\Q$usersig/,
	'part of the UserSig' => qr/\Q${\ substr $usersig, 0, 24}/,
	'anything like a UserSig' => qr/eJ[A-Za-z0-9*_%+-]{30}/,
	'password of the proxy' => qr/user:password/,);
my %places = (log => slurp_file($node->logfile));

foreach my $table (
	qw(push_outbox push_request push_result push_error push_server
	push_status pg_stat_activity))
{
	$places{$table} =
	  $node->safe_psql('postgres', "SELECT to_jsonb(t) FROM $table t");
}
cmp_ok(length $places{log}, '>', 1000, 'there is a log');
foreach my $place (sort keys %places)
{
	unlike($places{$place}, $secrets{$_}, "$place: no $_")
	  foreach sort keys %secrets;
}

# Nor for roles that may use the server
$node->safe_psql(
	'postgres', 'CREATE ROLE app LOGIN;
	GRANT USAGE ON FOREIGN SERVER good, direct TO app');
foreach my $catalog (qw(pg_user_mappings pg_foreign_server push_server))
{
	my $text = $node->safe_psql('postgres',
			"SET SESSION AUTHORIZATION app; SELECT "
		  . ($catalog eq 'push_server' ? 'server, state, reason' : '*')
		  . " FROM $catalog");

	unlike($text, $secrets{key}, "$catalog: no key for others");
}

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
