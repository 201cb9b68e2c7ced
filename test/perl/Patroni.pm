
=pod

=head1 NAME

Patroni - clusters under the control of Patroni, with an etcd, for TAP tests

=head1 SYNOPSIS

  use Patroni;

  my $patroni = Patroni->new('alice', 'bob');
  $patroni->start('alice');
  $patroni->wait_for('alice', 'leader');
  $patroni->node('alice')->safe_psql('postgres', ...);
  $patroni->kill('alice');
  $patroni->stop;

All listen on the loopback only and keep their files in the test's folder.
They are ended when the test ends, in whichever way.

=cut

package Patroni;

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use Failover;
use TimpushTest;

my @clusters;

=head1 METHODS

=head2 Patroni->new(@names)

Starts an etcd and prepares a node of each name; the nodes are
PostgreSQL::Test::Cluster objects, of which Patroni starts and stops the
server.

=cut

sub new
{
	my ($class, @names) = @_;
	my $self = bless {
		dir => PostgreSQL::Test::Utils::tempdir,
		etcd_port => PostgreSQL::Test::Cluster::get_free_port(),
		daemons => {},
		nodes => {},
		rest_port => {}
	}, $class;

	foreach my $program ('patroni', 'etcd')
	{
		die "there is no program \"$program\"\n"
		  unless grep { -x "$_/$program" } split /:/, $ENV{PATH};
	}
	push @clusters, $self;
	foreach my $name (@names)
	{
		$self->{nodes}{$name} = PostgreSQL::Test::Cluster->new($name);
		$self->{rest_port}{$name} =
		  PostgreSQL::Test::Cluster::get_free_port();
	}
	$self->_start_etcd;
	$self->_configure($_) foreach @names;
	return $self;
}

=head2 $patroni->node($name)

=cut

sub node { return $_[0]->{nodes}{ $_[1] }; }

# A program of our own process group, so that it can be ended alone.
sub _spawn
{
	my ($self, $name, $log, @command) = @_;
	my $pid = fork // die "could not fork: $!";

	if ($pid == 0)
	{
		$SIG{$_} = 'DEFAULT' foreach qw(INT TERM HUP);
		setpgrp 0, 0;
		chdir $self->{dir}
		  and open(STDIN, '<', '/dev/null')
		  and open(STDOUT, '>>', $log)
		  and open(STDERR, '>&', \*STDOUT)
		  and exec { $command[0] } @command;
		print STDERR "could not run $command[0]: $!\n";
		POSIX::_exit(1);
	}
	$self->{daemons}{$name} = $pid;
	return;
}

sub _start_etcd
{
	my ($self) = @_;
	my $client = "http://127.0.0.1:$self->{etcd_port}";
	my $peer =
	  'http://127.0.0.1:' . PostgreSQL::Test::Cluster::get_free_port();
	my ($log) = values %{ $self->{nodes} };

	($log = $log->logfile) =~ s/[^_]+\.log$/etcd.log/;
	$self->_spawn(
		'etcd', $log, 'etcd',
		'--data-dir' => "$self->{dir}/etcd",
		'--listen-client-urls' => $client,
		'--advertise-client-urls' => $client,
		'--listen-peer-urls' => $peer,
		'--initial-advertise-peer-urls' => $peer,
		'--initial-cluster' => "default=$peer");
	wait_until(sub { _get("$client/health")->{success} }, 'etcd');
	return;
}

sub _get
{
	my ($url) = @_;
	return HTTP::Tiny->new(timeout => 5)->get($url);
}

# The settings that matter here are those of "dcs" and "parameters"; the
# times are as short as a loaded machine can keep.
sub _configure
{
	my ($self, $name) = @_;
	my $node = $self->node($name);
	my $user = getpwuid $<;
	my $bindir = $node->config_data('--bindir');
	my $rest = "127.0.0.1:$self->{rest_port}{$name}";
	my $address = '127.0.0.1:' . $node->port;

	append_to_file("$self->{dir}/$name.yml", <<"YML");
scope: shop
name: $name
restapi:
  listen: $rest
  connect_address: $rest
etcd3:
  host: 127.0.0.1:$self->{etcd_port}
bootstrap:
  dcs:
    ttl: 10
    loop_wait: 1
    retry_timeout: 4
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      parameters:
        shared_preload_libraries: timpush
        wal_log_hints: 'on'
        max_connections: 30
        autovacuum: 'off'
  initdb:
  - auth: trust
  - encoding: UTF8
  - locale: C
  - no-sync
postgresql:
  listen: $address
  connect_address: $address
  data_dir: @{[ $node->data_dir ]}
  bin_dir: $bindir
  basebackup:
    checkpoint: fast
  pgpass: $self->{dir}/$name.pgpass
  authentication:
    superuser:
      username: $user
    replication:
      username: replicator
  parameters:
    unix_socket_directories: @{[ $node->host ]}
    fsync: 'off'
    log_line_prefix: '%m [%p] '
  pg_hba:
  - local all all trust
  - host all all 127.0.0.1/32 trust
  - host replication all 127.0.0.1/32 trust
YML
	return;
}

=head2 $patroni->start($name)

Starts the Patroni of a node.  It makes the node's server a leader if there is
none, or a standby.  What either logs goes to the node's logfile.

=cut

sub start
{
	my ($self, $name) = @_;

	$self->_spawn(
		$name, $self->node($name)->logfile,
		'patroni', "$self->{dir}/$name.yml");
	return;
}

=head2 $patroni->wait_for($name, $role)

Waits until the node is C<leader>, C<replica> or C<synchronous>, the standby
that the leader's commits wait for.

=cut

sub wait_for
{
	my ($self, $name, $role) = @_;
	my $url = "http://127.0.0.1:$self->{rest_port}{$name}/$role";

	wait_until(sub { _get($url)->{success} }, "$name to become $role");
	return;
}

=head2 $patroni->switchover($from, $to)

=cut

sub switchover
{
	my ($self, $from, $to) = @_;
	my $url = "http://127.0.0.1:$self->{rest_port}{$from}/switchover";
	my $answer =
	  HTTP::Tiny->new(timeout => 60)
	  ->post($url,
		{ content => encode_json({ leader => $from, candidate => $to }) });

	die "switchover: $answer->{status} $answer->{content}\n"
	  unless $answer->{success};
	$self->wait_for($to, 'leader');
	return;
}

=head2 $patroni->kill($name)

Kills the node's Patroni and all processes of its server by SIGKILL.

=cut

sub kill
{
	my ($self, $name) = @_;

	$self->_end($name, 'KILL');
	kill_cluster($self->node($name));
	return;
}

sub _end
{
	my ($self, $daemon, $signal) = @_;
	my $pid = delete $self->{daemons}{$daemon};

	return unless defined $pid;
	CORE::kill($signal, $pid);
	waitpid $pid, 0;
	return;
}

=head2 $patroni->stop

Ends everything.  The servers end in immediate mode, for one that is killed
leaves its shared memory behind.

=cut

sub stop
{
	my ($self) = @_;

	$self->_end($_, 'KILL') foreach keys %{ $self->{daemons} };
	foreach my $node (values %{ $self->{nodes} })
	{
		system('pg_ctl', '-s', '-D', $node->data_dir, '-m', 'immediate',
			'stop')
		  if cluster_processes($node);
	}
	return;
}

END
{
	my $status = $?;
	$_->stop foreach @clusters;
	$? = $status;
}

1;
