
=pod

=head1 NAME

Failover - load that survives the loss of a node, and what must be true after

=head1 SYNOPSIS

  use Failover;

  $primary->safe_psql('postgres', $tim->create_server_sql('chat') . load_sql());
  my $load = start_load($primary, $standby);
  kill_cluster($primary);
  $standby->promote;
  ...
  stop_load($load);
  settle($standby);
  ok_accounting($tim, $standby, $load);

=cut

package Failover;

use strict;
use warnings;

use Cwd qw(realpath);
use Exporter qw(import);
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use TimpushTest;

our @EXPORT = qw(load_sql start_load stop_load acknowledged cluster_processes
  kill_cluster kill_postmaster titles ok_sends_nothing ok_accounting);

my @loads;

# of clusters that were killed
my (%shared_files, %killed);

=head1 FUNCTIONS

=head2 load_sql()

What the load needs in the database: every transaction notes its push, so that
the note is there if the push is.

=cut

sub load_sql
{
	return <<'SQL';
CREATE TABLE noted (push_id bigint, account text);
CREATE FUNCTION enqueue(account text, title text) RETURNS text LANGUAGE sql AS $$
  INSERT INTO noted SELECT timpush_batch('administrator', ARRAY[account], title, 'text'), account
  RETURNING account;
$$;
SQL
}

# One session after the other, each with some transactions of one push.  A
# quarter of them is rolled back.  psql prints what a statement returned once
# its commit is acknowledged.
sub _client
{
	my ($load, $client) = @_;
	my $file = "$load->{dir}/client$client";
	my $n = 0;

	open STDOUT, '>>', "$file.out" or die "could not write $file.out: $!";
	open STDERR, '>>', "$file.err" or die "could not write $file.err: $!";
	$ENV{PGCONNECT_TIMEOUT} = 2;
	until (-e "$load->{dir}/stop")
	{
		open my $script, '>', "$file.sql" or die "could not write script: $!";
		foreach (1 .. 40)
		{
			$n++;
			my $title = 'title ' . $n % 20;
			my $account = "$load->{number}-$client-$n";
			print $script $n % 4
			  ? "SELECT enqueue('kept-$account', '$title');\n"
			  : "BEGIN; SELECT enqueue('gone-$account', '$title'); ROLLBACK;\n";
		}
		close $script or die "could not write script: $!";
		sleep 0.05
		  if system('psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f',
			"$file.sql", '-d', $load->{conninfo}) != 0;
	}
	return;
}

=head2 start_load(@nodes)

Sessions that enqueue on whichever of the nodes can be written, until
stop_load().

=cut

sub start_load
{
	my @nodes = @_;
	my $load = {
		number => @loads + 0,
		dir => PostgreSQL::Test::Utils::tempdir,
		clients => [],
		conninfo => 'host='
		  . join(',', map { $_->host } @nodes)
		  . ' port='
		  . join(',', map { $_->port } @nodes)
		  . ' dbname=postgres target_session_attrs=read-write'
	};

	push @loads, $load;
	foreach my $client (1 .. 2)
	{
		my $pid = fork // die "could not fork: $!";
		if ($pid == 0)
		{
			# the parent's signal handlers and END blocks are not ours
			$SIG{$_} = 'DEFAULT' foreach qw(INT TERM HUP);
			setpgrp 0, 0;
			eval { _client($load, $client); 1 } or print STDERR $@;
			POSIX::_exit(0);
		}
		push @{ $load->{clients} }, $pid;
	}
	return $load;
}

=head2 stop_load($load)

=cut

sub stop_load
{
	my ($load) = @_;

	append_to_file("$load->{dir}/stop", '');
	waitpid $_, 0 foreach @{ $load->{clients} };
	$load->{clients} = [];
	return;
}

END
{
	my $status = $?;
	foreach my $load (@loads)
	{
		foreach my $pid (@{ $load->{clients} })
		{
			kill 'KILL', -$pid;
			waitpid $pid, 0;
		}
	}
	$? = $status;
}

=head2 acknowledged($load)

The accounts of the pushes whose commit was acknowledged so far.

=cut

sub acknowledged
{
	my ($load) = @_;
	return grep { /^kept-/ }
	  map { split /\n/, slurp_file($_) } glob("$load->{dir}/client*.out");
}

=head2 cluster_processes($node)

The postmaster and all its children: those that live in the data directory.

=cut

sub cluster_processes
{
	my ($node) = @_;
	my $dir = realpath($node->data_dir);

	return map { m!/(\d+)/! }
	  grep { (readlink($_) // '') eq $dir } glob('/proc/[0-9]*/cwd');
}

=head2 kill_cluster($node)

Kills the postmaster and then all its children by SIGKILL, and returns when
they are gone and the cluster can be started again.

=head2 kill_postmaster($node)

Kills the postmaster alone, so that the children find out by themselves.

=cut

sub kill_cluster
{
	my ($node) = @_;

	_note_shared_memory($node);
	$node->kill9;
	kill 'KILL', cluster_processes($node);
	_wait_for_end($node);
	return;
}

sub kill_postmaster
{
	my ($node) = @_;

	_note_shared_memory($node);
	$node->kill9;
	_wait_for_end($node);
	return;
}

sub _wait_for_end
{
	my ($node) = @_;

	wait_until(
		sub { !cluster_processes($node) },
		'the killed processes to go away');

	# the postmaster looks alive until init has taken note of its end
	unlink $node->data_dir . '/postmaster.pid',
	  $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	return;
}

# A cluster that is killed leaves its shared memory behind until it is started
# again, which a test that dies does not do.
sub _note_shared_memory
{
	my ($node) = @_;

	foreach my $pid (cluster_processes($node))
	{
		open my $maps, '<', "/proc/$pid/maps" or next;
		while (<$maps>)
		{
			$shared_files{$1} = 1 if m!(/dev/shm/PostgreSQL\.\d+)!;
		}
		$killed{$pid} = 1;
	}
	return;
}

END
{
	my $status = $?;
	unlink keys %shared_files;
	foreach (%killed ? `ipcs -m -p` : ())
	{
		my ($id, undef, $creator) = split;
		system('ipcrm', '-m', $id) if $creator && $killed{$creator};
	}
	$? = $status;
}

=head2 titles($node)

What the cluster's processes call themselves.

=cut

sub titles
{
	my ($node) = @_;
	my @titles;

	foreach my $pid (cluster_processes($node))
	{
		open my $fh, '<', "/proc/$pid/cmdline" or next;
		push @titles, <$fh> // ();
	}
	return @titles;
}

=head2 ok_sends_nothing($node, $what, $offset)

Tests that a standby has no process of timpush, and that none has said
anything since its log had the length $offset.

=cut

sub ok_sends_nothing
{
	my ($node, $what, $offset) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @titles = titles($node);

	# seen at all?
	ok(scalar(grep { /startup recovering/ } @titles), "$what is in recovery");
	is_deeply([ grep { /^postgres: .*timpush/ } @titles ],
		[], "$what has neither launcher nor worker");
	is_deeply(
		[
			grep { /timpush:/ }
			  split /\n/,
			slurp_file($node->logfile, $offset // 0)
		],
		[],
		"$what logs nothing of timpush");
	return;
}

=head2 ok_accounting($tim, $node, $load)

Tests that on this node, with all pushes settled, everything is accounted for
that was acknowledged, and nothing else; and that what the service got twice
is marked.  Returns the numbers of acknowledged, marked and repeated pushes.

=cut

sub ok_accounting
{
	my ($tim, $node, $load) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %times;
	my @acknowledged = acknowledged($load);
	my %noted = map { split /\|/ } split /\n/,
	  $node->safe_psql('postgres', 'SELECT account, push_id FROM noted');
	my %marked = map { $_ => 1 } split /\n/,
	  $node->safe_psql('postgres',
		'SELECT account FROM noted JOIN push_status USING (push_id) WHERE maybe_duplicate > 0'
	  );

	foreach my $request ($tim->accepted)
	{
		$times{$_}++ foreach @{ $request->{accounts} };
	}
	my @repeated = grep { $times{$_} > 1 } keys %times;

	is_deeply([ grep { !$noted{$_} } @acknowledged ],
		[], 'no acknowledged commit is lost');
	is( $node->safe_psql(
			'postgres',
			"SELECT count(*) FROM noted FULL JOIN push_status s USING (push_id)
			 WHERE s.state IS DISTINCT FROM 'sent' OR account IS NULL"),
		0,
		'every push of the database has the outcome "sent"');
	is_deeply([ grep { !$times{$_} } keys %noted ],
		[], 'the service got them all');
	is_deeply([ grep { !$noted{$_} } keys %times ],
		[], 'and nothing that was rolled back or lost');
	is_deeply([ grep { !$marked{$_} } @repeated ],
		[], 'what it got twice is marked');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM push_outbox'),
		0, 'nothing is left');
	$tim->ok_ledger($node, 'tables and ledger agree');
	note scalar(@acknowledged), ' commits acknowledged, ',
	  scalar(keys %noted), ' in the database, ', scalar(keys %marked),
	  ' marked, ', scalar(@repeated), ' sent twice';
	return (scalar @acknowledged, scalar keys %marked, scalar @repeated);
}

1;
