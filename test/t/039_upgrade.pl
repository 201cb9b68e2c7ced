
# pg_upgrade.  Nothing starts while it works; afterwards the servers are held,
# as the cluster is another one, and go on when they are resumed.

use strict;
use warnings;

use File::Find;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use FakeTIM;
use TimpushTest;

plan skip_all => 'the sanitized server is too slow for pg_upgrade'
  if $ENV{TIMPUSH_SANITIZE};

my $tim = FakeTIM->new(apps => { 1001 => 'key', 1002 => 'key' })->start;
my $old = start_node('old', 'timpush.idle_exit' => '2s');
my $bindir = $old->config_data('--bindir');
my $dir = PostgreSQL::Test::Utils::tempdir;

sub received
{
	my ($account) = @_;
	return scalar requests_with($tim, $account);
}

sub statuses
{
	my ($node) = @_;
	return $node->safe_psql('postgres', <<'SQL');
SELECT push_id, server, state, accounts, sent, failed, waiting, maybe_duplicate
FROM push_status ORDER BY push_id
SQL
}

#
# Sent, refused for an hour, waiting, and on its way when the cluster crashes
#
$old->safe_psql(
	'postgres',
	$tim->create_server_sql('chat')
	  . $tim->create_server_sql(
		'later',
		sdkappid => 1001,
		secret_key => 'key')
	  . $tim->create_server_sql(
		'slow',
		sdkappid => 1002,
		secret_key => 'key',
		requests_per_second => 0.1));
push_id($old, 'done', server => 'chat');
settle($old);
my $retry = push_id($old, 'first1-code-60028', server => 'later');
my $large = push_id(
	$old,
	\"ARRAY(SELECT 'large-' || n FROM generate_series(1, 1200) n)",
	server => 'slow');
$old->poll_query_until(
	'postgres',
	"SELECT (SELECT state = 'retrying' FROM push_status WHERE push_id = $retry)
	    AND (SELECT sent = 500 FROM push_status WHERE push_id = $large)"
) or die "the pushes are not where they should be\n";
$old->safe_psql('postgres', "SELECT timpush_pause('slow')");
my $orphan = push_id($old, 'slow-9000', server => 'chat');
wait_until(sub { received('slow-9000') }, 'the call');
$old->stop('immediate');

# pg_upgrade wants a cluster that was shut down: nothing may send meanwhile
$old->append_conf('postgresql.conf', 'timpush.enabled = off');
$old->start;
my $waiting = push_id($old, 'waiting', server => 'chat');
my $before = statuses($old);
is(status($old, $orphan)->{state}, 'sending', 'a call was on its way');
$old->stop;

my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
$new->append_conf('postgresql.conf',
	"shared_preload_libraries = 'timpush'\nautovacuum = off\ntimpush.idle_exit = '2s'"
);
my $requests = $tim->stats->{requests};

#
# While pg_upgrade works
#
# The old cluster would send if anything started, as timpush.enabled is on.
$old->append_conf('postgresql.conf', 'timpush.enabled = on');
{
	# it writes into the working directory
	my $cwd = Cwd::getcwd();
	chdir $dir or die "could not change to $dir: $!";
	command_ok(
		[
			'pg_upgrade', '--no-sync',
			'--retain', '--old-datadir',
			$old->data_dir, '--new-datadir',
			$new->data_dir, '--old-bindir',
			$bindir, '--new-bindir',
			$bindir, '--socketdir',
			$new->host, '--old-port',
			$old->port, '--new-port',
			$new->port
		],
		'pg_upgrade');
	chdir $cwd or die "could not change to $cwd: $!";
}
my @logs;
find(sub { push @logs, $File::Find::name if /\.(?:log|txt)$/ },
	$dir, $new->data_dir . '/pg_upgrade_output.d');
cmp_ok(scalar(grep { /starting PostgreSQL/ } map { slurp_file($_) } @logs),
	'>=', 1, 'the logs of its servers are there');
is_deeply([ grep { /timpush: / } map { split /\n/, slurp_file($_) } @logs ],
	[], 'timpush says nothing in them');
is($tim->stats->{requests}, $requests, 'and has sent nothing');

#
# Afterwards
#
$new->start;
$new->poll_query_until('postgres',
	"SELECT count(*) = 3 FROM push_server WHERE state = 'held'")
  or die "the servers are not held\n";
is( scalar log_lines(
		$new,
		qr/WARNING:  timpush: database "postgres" .* its servers are held/),
	1,
	'the log says that the servers are held');
like(
	$new->safe_psql('postgres', 'SELECT DISTINCT reason FROM push_server'),
	qr/^copied from another database/,
	'push_server says why');
is(statuses($new), $before, 'all is as it was');
my $late = push_id($new, 'late', server => 'chat');
sleep 3;
is($tim->stats->{requests}, $requests, 'nothing is sent');

$new->safe_psql('postgres', "SELECT timpush_resume('chat')");
settle($new, where => "server = 'chat'");
is(received($_), 1, "the resumed server sends $_") foreach 'waiting', 'late';
is(received('slow-9000'), 2, 'and what was on its way once more');
my $status = status($new, $orphan);
is("$status->{state}|$status->{maybe_duplicate}",
	'sent|1', 'which is in doubt, and marked');
is( $new->safe_psql(
		'postgres',
		"SELECT string_agg(state, ' ' ORDER BY server) FROM push_server"),
	'active held held',
	'the others are held');
$new->safe_psql('postgres', <<'SQL');
ALTER SERVER slow OPTIONS (SET requests_per_second '0');
SELECT timpush_resume('slow'), timpush_resume('later');
UPDATE push_request SET next_attempt_at = now() WHERE state = 'retry';
SQL
$new->restart;
settle($new);
is(status($new, $retry)->{state}, 'sent', 'what was to go again goes');
is(status($new, $large)->{sent}, 1200, 'a large push goes on where it was');
is(received("large-$_"), 1, "once, large-$_") foreach 1, 501, 1200;
is( $new->safe_psql(
		'postgres', 'SELECT sum(maybe_duplicate) FROM push_status'),
	1,
	'nothing else is marked');
$tim->ok_ledger($new, 'tables and ledger agree');
$new->stop;

done_testing();
