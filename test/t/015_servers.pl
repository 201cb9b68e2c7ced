
# Servers that cannot send: pushes wait, the reason can be read and is logged
# once, and all is sent when it is put right, without a restart.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use FakeTIM;
use TimpushTest;

my $other_key = 'the-key-of-the-other-app';
my $tim = FakeTIM->new(apps => { 1600150143 => $other_key })->start;
my $stranger = FakeTIM->new->start;    # has a CA of its own
my $node = start_node('main');
my $dir = PostgreSQL::Test::Utils::tempdir;

sub write_file
{
	my ($name, $text, $mode) = @_;

	open my $fh, '>', "$dir/$name" or die "cannot write $name: $!";
	print $fh $text;
	close $fh;
	chmod $mode // 0600, "$dir/$name";
	return "$dir/$name";
}

sub server
{
	my ($name, %options) = @_;
	$node->safe_psql('postgres',
		'BEGIN;' . $tim->create_server_sql($name, %options) . 'COMMIT;');
	return;
}

my $good_file = write_file('good.key', $tim->key . "\n");
my $closed_port = PostgreSQL::Test::Cluster::get_free_port();

# What is wrong with each, what its reason must match, how it is put right, and
# whether the API itself is the one that refuses, or nothing leaves at all
my %trouble = (
	no_file => [
		{ secret_key_file => "$dir/missing.key" },
		qr/missing\.key/,
		"ALTER USER MAPPING FOR PUBLIC SERVER no_file OPTIONS (SET secret_key_file '$good_file')"
	],
	no_right => [
		{
			secret_key_file => write_file('closed.key', $tim->key, 0000)
		},
		qr/closed\.key.*Permission denied/,
		"ALTER USER MAPPING FOR PUBLIC SERVER no_right OPTIONS (SET secret_key_file '$good_file')"
	],
	no_mapping => [
		{}, qr/no user mapping/,
		'CREATE USER MAPPING FOR PUBLIC SERVER no_mapping
		 OPTIONS (identifier \'administrator\', secret_key_file ' . "'$good_file')"
	],
	wrong_key => [
		{ secret_key => 'not-the-key' },
		qr/./,
		"ALTER USER MAPPING FOR PUBLIC SERVER wrong_key OPTIONS (SET secret_key '"
		  . $tim->key . "')"
	],
	no_host => [
		{ host => "localhost:$closed_port" },
		qr/connect/i,
		"ALTER SERVER no_host OPTIONS (SET host 'localhost:"
		  . $tim->port . "')"
	],
	no_name => [
		{ host => 'no-such-host.invalid' },
		qr/resolve/i,
		"ALTER SERVER no_name OPTIONS (SET host 'localhost:"
		  . $tim->port . "')"
	],
	wrong_ca => [
		{ ca_file => $stranger->ca },
		qr/certificate/i,
		"ALTER SERVER wrong_ca OPTIONS (SET ca_file '" . $tim->ca . "')"
	],
	wrong_app => [
		{ sdkappid => 12345 },
		qr/./,
		'ALTER SERVER wrong_app OPTIONS (SET sdkappid \''
		  . $tim->sdkappid . "')"
	],);
my %id;

# A file that is to appear later, with no other change, waits the longest.
server('late_file', secret_key_file => "$dir/late.key");
my $late = push_id($node, 'late', server => 'late_file');

foreach my $name (sort keys %trouble)
{
	server($name, %{ $trouble{$name}[0] });
	$node->safe_psql('postgres', "DROP USER MAPPING FOR PUBLIC SERVER $name")
	  if $name eq 'no_mapping';
	$id{$name} = push_id($node, "to-$name", server => $name);
}
server('good');
push_id($node, 'to-good', server => 'good');
settle($node, where => "server = 'good'");
pass('a server without trouble sends');

# A server that is half made and that no push waits for is no trouble.
$node->safe_psql(
	'postgres',
	"CREATE SERVER unused FOREIGN DATA WRAPPER timpush
	   OPTIONS (sdkappid '1', host 'localhost')");
push_id($node, 'to-good', server => 'good', title => 'another');
settle($node, where => "server = 'good'");
is(scalar log_lines($node, qr/server "unused"/),
	0, 'nothing is logged of a server that is not in use');

foreach my $name (sort keys %trouble)
{
	$node->poll_query_until('postgres',
		"SELECT reason IS NOT NULL FROM push_server WHERE server = '$name'");
	my $status = status($node, $id{$name});
	my $server = server_state($node, $name);

	like(
		$status->{state},
		qr/^(?:waiting|retrying|sending)$/,
		"$name: the push waits");
	is($status->{waiting}, 1, "$name: its account is open");
	like(
		$status->{error_info},
		$trouble{$name}[1],
		"$name: push_status says why");
	like($server->{reason}, $trouble{$name}[1],
		"$name: push_server says why");
	is( $server->{state},
		$name =~ /^(?:no_host|no_name|wrong_ca)$/ ? 'active' : 'suspended',
		"$name: state of the server");
	is($server->{error_code}, 70009, "$name: code of the API")
	  if $name eq 'wrong_key';
	is($server->{error_code}, 60006, "$name: code of the API")
	  if $name eq 'wrong_app';
	is(requests_with($tim, "to-$name"), 0, "$name: nothing was accepted");
}

# More pushes and more tries are no news.
push_id($node, "more-$_", server => $_) foreach sort keys %trouble;
write_file('late.key', $tim->key);

my $began = time;
foreach my $name (sort keys %trouble)
{
	$node->safe_psql('postgres', $trouble{$name}[2]);
}
my @slow;
foreach my $name (sort keys %trouble)
{
	settle($node, where => "server = '$name'");
	my $took = time - $began;

	push @slow, $name if $took > 20;
	note sprintf '%s: sent %.1f s after it was put right', $name, $took;
	is( $node->safe_psql(
			'postgres',
			"SELECT state, count(*), sum(maybe_duplicate) FROM push_status WHERE server = '$name' GROUP BY 1"
		),
		'sent|2|0',
		"$name: everything is sent once it is put right");
}
is_deeply(\@slow, [], 'at once');
foreach my $name (sort keys %trouble)
{
	$node->poll_query_until('postgres',
		"SELECT state = 'active' AND reason IS NULL FROM push_server WHERE server = '$name'"
	);
	is_deeply(
		[
			map { /"$name" (is suspended|has trouble|is sending again)/ }
			  log_lines($node, qr/timpush: server "$name"/)
		],
		[
			$name =~ /^(?:no_host|no_name|wrong_ca)$/
			? 'has trouble'
			: 'is suspended',
			'is sending again'
		],
		"$name: a line in the log for each change");
}

# Two apps in one database; options that change while it works
server('second', sdkappid => 1600150143, secret_key => $other_key);
push_id($node, 'one', server => 'good', title => 'two apps');
push_id($node, 'two', server => 'second', title => 'two apps');
settle($node, where => "server IN ('good', 'second')");
is((requests_with($tim, 'one'))[0]{app}, $tim->sdkappid, 'one app');
is((requests_with($tim, 'two'))[0]{app}, 1600150143, 'and another');

sub sizes_of
{
	my ($n) = @_;
	my $push = push_id(
		$node,
		\"ARRAY(SELECT 'size-' || n FROM generate_series(1, $n) n)",
		server => 'good');
	settle($node, where => "push_id = $push");
	return [ map { $_->{part} } requests($node, $push) ];
}
is_deeply(sizes_of(30), [30], 'a request of all accounts');
$node->safe_psql('postgres',
	'ALTER SERVER good OPTIONS (ADD accounts_per_request \'10\')');
is_deeply(sizes_of(30), [ 10, 10, 10 ], 'ALTER SERVER works at once');
$node->safe_psql('postgres',
	'ALTER SERVER good OPTIONS (DROP accounts_per_request)');

# The key changes at the other side, then at ours.
$tim->stop;
$tim->start(key => 'a-new-key', apps => { 1600150143 => $other_key });
my $rotated = push_id($node, 'rotated', server => 'good');
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'good'");
is(server_state($node, 'good')->{error_code},
	70009, 'a key that is no longer good');
push_id($node, 'unimpressed', server => 'second');
settle($node, where => "server = 'second'");
pass('the other app is not affected');
$node->safe_psql('postgres',
	"ALTER USER MAPPING FOR PUBLIC SERVER good OPTIONS (SET secret_key 'a-new-key')"
);
$began = time;
settle($node, where => "server = 'good'");
cmp_ok(time - $began, '<', 20, 'the new key is used at once');
$tim->stop;
$tim->start;

# The signature is made once: nobody looks for the key meanwhile.
my $once = write_file('once.key', $tim->key);
server('cached', secret_key_file => $once, usersig_lifetime => '60s');
push_id($node, 'cached-1', server => 'cached');
settle($node, where => "server = 'cached'");
my $made = time;
unlink $once;
push_id($node, 'cached-2', server => 'cached');
settle($node, where => "server = 'cached'");
pass('a signature is used again');

SKIP:
{
	skip 'takes half a minute, set TIMPUSH_LONG=1', 1
	  unless $ENV{TIMPUSH_LONG};

	# until half of its life is over
	PostgreSQL::Test::Utils::system_log('sleep', int($made + 31 - time));
	push_id($node, 'cached-3', server => 'cached');
	$node->poll_query_until('postgres',
		"SELECT reason LIKE '%once.key%' FROM push_server WHERE server = 'cached'"
	);
	write_file('once.key', $tim->key);
	$node->safe_psql('postgres',
		"ALTER USER MAPPING FOR PUBLIC SERVER cached OPTIONS (SET usersig_lifetime '1h')"
	);
	settle($node, where => "server = 'cached'");
	pass('a signature is renewed at half life');
}

# By now the key that was late has been found.
settle($node, where => "server = 'late_file'");
is(status($node, $late)->{state}, 'sent', 'a key file that appears is found');
note sprintf 'the test was %.0f s old', time - $^T;

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
