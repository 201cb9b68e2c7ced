
# Neither the key nor a UserSig is in what PostgreSQL writes when an error is
# raised at any point of a call's way: with all logged that can be.  Needs a
# build with fault points.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node(
	'main',
	log_min_messages => 'debug5',
	log_min_error_statement => 'debug5',
	log_error_verbosity => 'verbose',
	log_statement => 'all',
	log_parameter_max_length_on_error => -1,
	debug_print_plan => 'on',
	'timpush.on_unknown' => 'hold');
my $key_file = PostgreSQL::Test::Utils::tempdir . '/secret.key';
append_to_file($key_file, $tim->key);
$node->safe_psql('postgres',
	$tim->create_server_sql('chat', secret_key_file => $key_file));

plan skip_all => 'this build has no fault points'
  if $node->safe_psql('postgres',
	"SELECT current_setting('timpush.fault_points', true) IS NULL") eq 't';

# All points that there are, and those at which there is a secret in memory
my %points;
foreach my $file (glob "$FindBin::RealBin/../../src/*.c")
{
	$points{$_} = 1
	  foreach slurp_file($file) =~ /\bFAULT_POINT\("([a-z-]+)"\)/g;
}
my @needed =
  qw(key-read send sent on-the-wire answered judged record recorded claimed);
cmp_ok(scalar keys %points, '>', 20, 'there are fault points');
ok($points{$_}, "there is a point \"$_\"") foreach @needed;

# What a session does may fail as well.
sub use_all
{
	$node->psql(
		'postgres', "
		SELECT timpush_batch('administrator', ARRAY['echo-tail-list'], 'a', 'b');
		SELECT timpush_batch('administrator', ARRAY['bob'], 'a', 'b',
							 expires_at => now() + interval '10 ms');
		SELECT timpush_cancel(timpush_batch('administrator', ARRAY['eve'], 'a', 'b',
											send_at => now() + interval '1 h'));"
	);
	return;
}

sub was_hit
{
	my ($point, $since) = @_;
	my $log = substr slurp_file($node->logfile), $since;
	return $log =~ /fault point "$point" was hit/;
}

# The cluster is started anew for each, because the launcher waits longer and
# longer with a worker that fails.  A point that is not reached in a while may
# want what is not done here.
my %hit;
foreach my $point (@needed, sort keys %points)
{
	next if $hit{$point};
	my $since = -s $node->logfile;
	my $patience = (grep { $_ eq $point } @needed) ? 300 : 10;

	$node->append_conf('postgresql.conf',
		"timpush.fault_points = '$point:error'");
	$node->restart;
	for (1 .. $patience)
	{
		use_all();
		last if was_hit($point, $since);
		sleep 0.1;
	}
	$hit{$_} = 1 foreach grep { was_hit($_, $since) } keys %points;
}
$node->append_conf('postgresql.conf', "timpush.fault_points = ''");
ok($hit{$_}, "an error was raised at \"$_\"") foreach @needed;
note 'not reached: ', join ' ', grep { !$hit{$_} } sort keys %points;

# A new worker clears up what the last one left.
$node->restart;
settle($node);

# A text that holds 15 characters of a UserSig holds one of these.
my %parts;
foreach my $signature (split /\n/, slurp_file($tim->dir . '/usersigs'))
{
	for (my $i = 0; $i + 12 <= length $signature; $i += 4)
	{
		$parts{ substr $signature, $i, 12 } = 1;
	}
}
cmp_ok(scalar keys %parts, '>', 100, 'UserSigs were in use');
my $secret = join '|', map { quotemeta } $tim->key, sort keys %parts;
my %places = (log => slurp_file($node->logfile));
$places{$_} = $node->safe_psql('postgres', "SELECT to_jsonb(t) FROM $_ t")
  foreach qw(push_request push_error push_server push_status);
foreach my $place (sort keys %places)
{
	my $found =
	  $places{$place} =~ /$secret/
	  ? substr $places{$place}, $-[0] - 40, 100
	  : undef;

	is($found, undef, "$place: no secret");
}
$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
