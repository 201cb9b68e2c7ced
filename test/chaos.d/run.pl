
# The run of test/chaos: clients enqueue, trouble is made, and in the end three
# accounts of it are compared.  See there for the options, and ChaosClient.pm,
# ChaosDisturber.pm and ChaosAudit.pm for the parts.

use strict;
use warnings;

my $terminal;

# PostgreSQL's modules take the output for themselves.
BEGIN { open $terminal, '>&', \*STDOUT or die "no output: $!\n"; }

use File::Basename qw(dirname);
use FindBin;
use Getopt::Long;
use List::Util qw(sum0);
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use ChaosAudit;
use ChaosClient;
use ChaosDisturber;
use FakeTIM;

use constant CLIENTS => 4;

# A round is so long at most: then all is settled, compared, and begun anew.
use constant ROUND => 90;

# What is in doubt waits for a minute, and its server may rest before.
use constant SETTLE => 240;

my ($seconds, $seed, $only) = (75, undef, '');
GetOptions('seconds=i' => \$seconds, 'seed=i' => \$seed, 'only=s' => \$only)
  or die "see test/chaos --help\n";
$seed //= int rand 1_000_000_000;

my @dbs = qw(postgres other);
my @children;

$terminal->autoflush(1);

sub say_it
{
	my ($text) = @_;
	print $terminal "$text\n";
	print "$text\n";
	return;
}

END
{
	my $status = $?;
	kill 'KILL', @children if @children;
	$? = $status;
}

# Names of the fault points, out of the source.
sub fault_points
{
	my %names;

	foreach my $file (glob "$FindBin::Bin/../../src/*.c")
	{
		$names{$_} = 1
		  foreach slurp_file($file) =~
		  /FAULT_POINT(?:_QUIET)?\("([a-z-]+)"\)/g;
	}
	return [ sort keys %names ];
}

sub start_cluster
{
	my ($round) = @_;
	my $node = PostgreSQL::Test::Cluster->new("chaos$round");

	$node->init;
	$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'timpush'
restart_after_crash = on
log_statement = none
log_line_prefix = '%m [%p] %b '
log_min_messages = log
max_prepared_transactions = 20
max_connections = 40
# what is not flushed at its commit is not for long
wal_writer_delay = 10s
wal_writer_flush_after = 0
min_wal_size = 32MB
max_wal_size = 96MB
autovacuum = on
timpush.idle_exit = 2s
include = 'chaos.conf'
CONF
	append_to_file($node->data_dir . '/chaos.conf', '');
	$node->start;
	return $node;
}

sub start_stand_ins
{
	return (
		one => FakeTIM->new(keepalive_requests => 200)->start,
		two => FakeTIM->new(
			http1 => 1,
			keepalive_requests => 50,
			sdkappid => 99999999,
			key => 'another-key-of-another-app')->start);
}

sub make_database
{
	my ($node, $db, %tims) = @_;
	my %common = (
		request_timeout => '4s',
		connect_timeout => '2s',
		accounts_per_request => 500,
		max_in_flight => 32);

	$node->safe_psql('postgres', "CREATE DATABASE $db")
	  unless $db eq 'postgres';
	$node->safe_psql(
		$db,
		'CREATE EXTENSION timpush;'
		  . $tims{one}
		  ->create_server_sql('one', %common, max_unknown_resends => 1)
		  . $tims{two}->create_server_sql(
			'two', %common,
			max_unknown_resends => 2,
			requests_per_second => 40)
		  . q{
		CREATE TABLE chaos_done (what text, name text);
		CREATE TABLE orders (who text[], title text, descr text, data_id text, server name,
			priority int, send_at timestamptz, expires_at timestamptz, dedup_key text);
		CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION
			timpush_enqueue('from=#administrator', 'to=who', 'title=title', 'descr=descr',
			'data_id=data_id', 'server=server', 'priority=priority', 'send_at=send_at',
			'expires_at=expires_at', 'dedup_key=dedup_key')});
	return;
}

sub start_clients
{
	my ($node, $dir, $round_seed) = @_;

	foreach my $number (1 .. CLIENTS)
	{
		my $pid = fork // die "cannot fork: $!\n";

		if ($pid == 0)
		{
			eval {
				ChaosClient->new(
					number => $number,
					seed => $round_seed,
					db => $dbs[ $number % @dbs ],
					dir => $dir,
					connect => {
						host => $node->host,
						port => $node->port,
						user => getpwuid($<) // 'postgres'
					})->work;
				1;
			} or print STDERR "client $number: $@";
			POSIX::_exit($@ ? 1 : 0);
		}
		push @children, $pid;
	}
	return;
}

sub stop_clients
{
	my ($dir) = @_;

	append_to_file("$dir/stop", '');
	foreach my $pid (@children)
	{
		waitpid $pid, 0;
		die "a client ended with status $?\n" if $? != 0;
	}
	@children = ();
	return;
}

# Waits until every account has its outcome; how many pushes are still open?
sub settle
{
	my ($node, $disturber) = @_;
	my $deadline = time + SETTLE;
	my $resume_at = 0;
	my $open;

	do
	{
		if ($resume_at < time)
		{
			$disturber->resume_all;
			$resume_at = time + 5;
		}
		sleep 0.5;
		$open = sum0(
			map {
				$node->safe_psql($_,
					"SELECT (SELECT count(*) FROM push_outbox) + (SELECT count(*) FROM push_result WHERE state IN ('sending', 'retry'))"
				)
			} @dbs);
	} while ($open > 0 && time < $deadline);
	return $open;
}

sub add
{
	my ($total, $part) = @_;

	foreach my $key (keys %$part)
	{
		if (ref $part->{$key})
		{
			add($total->{$key} //= {}, $part->{$key});
		}
		else
		{
			$total->{$key} += $part->{$key};
		}
	}
	return;
}

sub list
{
	my ($counts) = @_;
	return join(', ', map { "$_ $counts->{$_}" } sort keys %{ $counts // {} })
	  || 'none';
}

# What the log tells: faults at points, and what the worker found at its starts.
sub count_log
{
	my ($node, $count) = @_;

	foreach my $line (split /\n/, slurp_file($node->logfile))
	{
		$count->{points}{"$1 $2"}++
		  if $line =~ /timpush: (\w+) at fault point "([a-z-]+)"/;
		$count->{log}{'worker exits by an error'}++
		  if $line =~ /timpush worker.*exited with exit code 1/;
		$count->{log}{'crash recoveries'}++
		  if $line =~
		  /database system was (?:not properly shut down|interrupted)/;
		$count->{log}{'requests left in flight'} += $1
		  if $line =~ /timpush: (\d+) requests? (?:was|were) left in flight/;
		$count->{log}{PANIC}++ if $line =~ /PANIC:/;
		$count->{log}{'signal 6 or 11'}++
		  if $line =~ /terminated by signal (?:6|11)/;
	}
	return;
}

sub show_findings
{
	my ($audit, $node, $dir) = @_;
	my %shown;
	my $more = 0;

	open my $out, '>', "$dir/evidence" or die "cannot write evidence: $!\n";
	foreach my $finding (@{ $audit->{findings} })
	{
		my $evidence = $audit->evidence($finding->{name} // '');

		print $out "$finding->{figure}: $finding->{text}\n$evidence";
		if ($shown{ $finding->{figure} }++ < 3)
		{
			say_it("  $finding->{figure}: $finding->{text}");
			say_it("    $_")
			  foreach map { substr $_, 0, 400 }
			  (split /\n/, $evidence)[ 0 .. 11 ];
		}
		else { $more++; }
	}
	close $out;
	say_it("  and $more more") if $more;
	say_it("  all of it is in $dir/evidence, the log is " . $node->logfile);
	my @lines = split /\n/, slurp_file($node->logfile);
	say_it("    $_") foreach grep { defined } @lines[ -8 .. -1 ];
	return;
}

sub round
{
	my ($number, $length, $total, $figures) = @_;
	my $dir = $PostgreSQL::Test::Utils::tmp_check . "/round$number";
	my $round_seed = $seed + $number - 1;

	mkdir $dir or die "cannot make $dir: $!\n";
	my $node = start_cluster($number);
	my %tims = start_stand_ins();
	make_database($node, $_, %tims) foreach @dbs;
	my $disturber = ChaosDisturber->new(
		seed => $round_seed,
		node => $node,
		tims => \%tims,
		dbs => \@dbs,
		dir => $dir,
		only => $only,
		points => fault_points());

	start_clients($node, $dir, $round_seed);
	$disturber->run($length * 0.6);

	# what comes into doubt now is not to wait for a minute
	$disturber->later(
		0,
		sub {
			return $disturber->try_sql($dbs[0],
				"ALTER SERVER two OPTIONS (SET max_unknown_resends '1')")
			  && $disturber->try_sql($dbs[1],
				"ALTER SERVER two OPTIONS (SET max_unknown_resends '1')");
		});
	$disturber->run($length * 0.4);
	$disturber->heal;
	stop_clients($dir);
	my $open = settle($node, $disturber);

	$disturber->restart_fast;    # so that the log and the tables are at rest
	my $audit = ChaosAudit->new(
		node => $node,
		dbs => \@dbs,
		tims => \%tims,
		dir => $dir,
		windows => $disturber->{windows});
	$audit->check;
	count_log($node, $audit->{count});
	add($total, $audit->{count});
	add($total->{troubles} //= {}, $disturber->{count});
	add($figures, $audit->{figures});
	show_findings($audit, $node, $dir) if @{ $audit->{findings} };
	$node->stop('fast');
	$_->stop foreach values %tims;
	return @{ $audit->{findings} } == 0;
}

my (%total, %figures);
my $good = 1;
my $rounds = int(($seconds + ROUND - 1) / ROUND);

say_it("seed $seed; it fixes what is tried, not how far each of it comes");
foreach my $number (1 .. $rounds)
{
	$good = round($number, $seconds / $rounds, \%total, \%figures) && $good;
	last unless $good;
}

say_it(
	sprintf
	  '%d pushes committed, %d rolled back, %d with an uncertain commit; %d accounts; %d requests',
	map { $_ // 0 } @total{qw(committed undone uncertain accounts requests)});
say_it('outcomes of accounts: ' . list($total{outcomes}));
say_it(
	sprintf
	  '%d accounts are marked maybe_duplicate, %d were delivered more than once, %d calls swallowed',
	map { $_ // 0 } @total{qw(maybe_duplicate duplicates swallowed)});
say_it('troubles: ' . list($total{troubles}));
say_it('at fault points: ' . list($total{points}));
say_it('faults of the stand-ins: ' . list($total{faults}));
say_it( 'transactions: '
	  . list($total{transactions})
	  . "; connections lost $total{lost_connections}; log: "
	  . list($total{log}));
say_it("$_ $figures{$_}") foreach @ChaosAudit::figures;
exit($good && %figures ? 0 : 1);
