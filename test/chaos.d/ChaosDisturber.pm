
=pod

=head1 NAME

ChaosDisturber - what happens to the cluster and to the stand-ins meanwhile

=head1 SYNOPSIS

  my $disturber = ChaosDisturber->new(seed => 7, node => $node,
	tims => { one => $tim1, two => $tim2 }, dbs => [qw(postgres other)],
	dir => $dir, points => \@names_of_fault_points);
  $disturber->run(90);
  $disturber->heal;

Kinds of trouble are dealt from a bag that is filled anew when it is empty, so
that a run of some length meets each; the seed shuffles the bag.  What is to be
undone is undone a while later, so troubles overlap.  C<windows> lists when
something could have been cut off, for the audit.

=cut

package ChaosDisturber;

use strict;
use warnings;

use List::Util qw(shuffle min);
use POSIX ();
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(sleep time);

# Kinds and how many of each are in a bag.
my %bag = (
	'kill -9 of the worker' => 3,
	'kill -9 of a session' => 3,
	'kill -9 of the postmaster' => 2,
	'immediate stop' => 2,
	'fast restart' => 2,
	'power cut' => 4,
	'worker terminated' => 2,
	'worker cancelled' => 1,
	'kill at a fault point' => 5,
	'kill at a commit' => 4,
	'error at a fault point' => 4,
	'sleep at a fault point' => 2,
	'sleep before leaving' => 5,
	'stand-in stopped' => 2,
	'stand-in faulty' => 10,
	'server paused' => 2,
	'server resumed' => 4,
	'option changed' => 2,
	'checkpoint' => 1,
	'calm' => 3);

# Rules of the stand-in; lists go together.
my @rules = (
	[ { kind => 'reset-before', probability => 0.2 } ],
	[ { kind => 'reset-during', probability => 0.2 } ],
	[ { kind => 'reset-after', probability => 0.3 } ],
	[ { kind => 'drop-before', probability => 0.2 } ],
	[ { kind => 'drop-after', probability => 0.3 } ],
	[ { kind => 'truncate', probability => 0.3 } ],
	[ { kind => 'garbage', probability => 0.3 } ],
	[ { kind => 'html502', probability => 0.3 } ],
	[ { kind => 'html502', probability => 0.3, delivered => \1 } ],
	[ { kind => 'code', arg => 60007, count => 3 } ],
	[ { kind => 'code', arg => 60028, count => 1 } ],
	[ { kind => 'code', arg => 60008, probability => 0.2, delivered => \1 } ],
	[ { kind => 'code', arg => 60013, probability => 0.2 } ],
	[ { kind => 'code', arg => 90994, probability => 0.3 } ],
	[ { kind => 'code', arg => 70001, count => 1 } ],
	[ { kind => 'code', arg => 70003, count => 2 } ],
	[ { kind => 'code', arg => 70009, count => 1 } ],
	[ { kind => 'code', arg => 90001, probability => 0.2 } ],
	[ { kind => 'code', arg => 90011, over => 7 } ],
	[ { kind => 'code', arg => 90018, over => 100 } ],
	[ { kind => 'code', arg => 12345, probability => 0.3 } ],
	[ { kind => 'http', arg => 503, retry_after => 1, count => 2 } ],
	[ { kind => 'http', arg => 429, count => 2 } ],
	[ { kind => 'http', arg => 500, probability => 0.3 } ],
	[ { kind => 'http', arg => 504, probability => 0.3, delivered => \1 } ],
	[ { kind => 'http', arg => 404, count => 2 } ],
	[ { kind => 'latency', arg => 300 } ],
	[ { kind => 'latency', arg => 5000, probability => 0.3 } ],
	[ { kind => 'drip', arg => 5, probability => 0.3 } ],
	[ { kind => 'huge', arg => 2, probability => 0.3 } ],
	[ { kind => 'badutf8', probability => 0.3 } ],
	[ { kind => 'nul', probability => 0.3 } ],
	[ { kind => 'deep', probability => 0.3 } ],
	[ { kind => 'dupkeys', probability => 0.3 } ],
	[ { kind => 'extraerr', probability => 0.3 } ],
	[ { kind => 'acct', arg => 90992, probability => 0.4 } ],
	[ { kind => 'acct', arg => 70107, probability => 0.2 } ],
	[
		{ kind => 'latency', arg => 100 },
		{ kind => 'reset-after', probability => 0.1 },
		{ kind => 'code', arg => 90994, probability => 0.1 }
	]);

sub new
{
	my ($class, %options) = @_;

	return bless {
		%options,
		bag => [],
		windows => [],
		count => {},
		fired => {},
		later => [],
		number => 0,
	}, $class;
}

# Something may be cut off between the two times, at one server or at all.
sub window
{
	my ($self, $what, $from, $to, $server) = @_;

	push @{ $self->{windows} }, [ $from, $to // time, $server, $what ];
	return;
}

# To be done so many seconds from now, again if it returns false.
sub later
{
	my ($self, $seconds, $what) = @_;

	@{ $self->{later} } =
	  sort { $a->[0] <=> $b->[0] } @{ $self->{later} },
	  [ time + $seconds, $what ];
	return;
}

sub do_due
{
	my ($self, $everything) = @_;

	while (@{ $self->{later} }
		&& ($everything || $self->{later}[0][0] <= time))
	{
		my $item = shift @{ $self->{later} };

		next if $item->[1]->();
		$self->later(0.3, $item->[1]);
		sleep 0.3 if $everything;
	}
	return;
}

# ------------------------------------------------------------------------
# Processes
# ------------------------------------------------------------------------

sub postmaster
{
	my ($self) = @_;

	open my $file, '<', $self->{node}->data_dir . '/postmaster.pid'
	  or return 0;
	my ($pid) = (readline($file) // '') =~ /^(\d+)/;
	close $file;
	return $pid && kill(0, $pid) ? $pid : 0;
}

sub fields_of
{
	my ($pid) = @_;

	open my $file, '<', "/proc/$pid/stat" or return;
	my $line = readline $file;
	close $file;
	return unless defined $line && $line =~ s/^.*\) //;
	return split / /, $line;
}

# Processes of the cluster by their titles.
sub children
{
	my ($self, $postmaster) = @_;
	my %children;

	foreach my $dir (glob '/proc/[0-9]*')
	{
		my ($pid) = $dir =~ /(\d+)/;
		my ($state, $parent) = fields_of($pid);

		next unless $parent && $parent == $postmaster && $state ne 'Z';
		if (open my $file, '<', "$dir/cmdline")
		{
			($children{$pid} = readline($file) // '') =~ tr/\0/ /;
			close $file;
		}
	}
	return \%children;
}

sub pick_child
{
	my ($self, $pattern) = @_;
	my $children = $self->children($self->postmaster);
	my @found =
	  sort { $a <=> $b } grep { $children->{$_} =~ $pattern } keys %$children;

	return @found ? $found[ rand @found ] : 0;
}

sub wait_gone
{
	my ($self, @pids) = @_;
	my $deadline = time + 60;

	# one that is dead and not yet buried counts: PostgreSQL takes it for alive
	while (grep { kill 0, $_ } @pids)
	{
		die "processes of the cluster do not end\n" if time > $deadline;
		sleep 0.02;
	}
	return;
}

sub pg_ctl
{
	my ($self, @arguments) = @_;

	local $ENV{PGAPPNAME};
	return PostgreSQL::Test::Utils::system_log('pg_ctl', '-w', '-D',
		$self->{node}->data_dir, @arguments) == 0;
}

# The last of the cluster is gone: start it again.
sub start_cluster
{
	my ($self) = @_;
	my $node = $self->{node};

	foreach my $try (1 .. 3)
	{
		# it is the node's again, whose END stops it
		return $node->_update_pid(1)
		  if $self->pg_ctl('start', '-l', $node->logfile, '-o',
			'--cluster-name=chaos');
		sleep 1;
	}
	die "the cluster does not start again\n";
}

sub wait_ready
{
	my ($self) = @_;
	my $deadline = time + 60;

	until ($self->try_sql('postgres', 'SELECT 1'))
	{
		die "the cluster cannot be connected to\n" if time > $deadline;
		sleep 0.1;
	}
	return;
}

# ------------------------------------------------------------------------
# Means
# ------------------------------------------------------------------------

sub try_sql
{
	my ($self, $db, $sql) = @_;
	my $node = $self->{node};

	my $pid = fork // die "cannot fork: $!\n";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', '/dev/null';
		open STDERR, '>', '/dev/null';
		exec 'timeout', '20', 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1',
		  '-d', $node->connstr($db) . ' connect_timeout=10', '-c', $sql
		  or POSIX::_exit(1);
	}
	waitpid $pid, 0;
	return $? == 0;
}

sub set_points
{
	my ($self, $value) = @_;
	my $file = $self->{node}->data_dir . '/chaos.conf';

	open my $out, '>', "$file.new" or die "cannot write $file: $!\n";
	print $out "timpush.fault_points = '$value'\n";
	close $out;
	rename "$file.new", $file or die "cannot rename $file: $!\n";
	my $postmaster = $self->postmaster;
	kill 'HUP', $postmaster if $postmaster;
	return 1;
}

# What sessions do stands still for a moment, so that what the worker has just
# done is not made durable by a commit of theirs.
sub hold_sessions
{
	my ($self) = @_;

	open my $file, '>', "$self->{dir}/hold" or die "cannot hold: $!\n";
	close $file;
	sleep 0.15 + rand 0.3;
	return;
}

sub release_sessions
{
	my ($self) = @_;

	unlink "$self->{dir}/hold";
	return;
}

sub any { return $_[ int rand @_ ]; }

# ------------------------------------------------------------------------
# Troubles
# ------------------------------------------------------------------------

# Kills the processes that a pattern chooses, at which the cluster restarts.
sub kill_child
{
	my ($self, $pattern) = @_;
	my $pid = $self->pick_child($pattern) or return 0;

	return kill 'KILL', $pid;
}

sub kill_worker
{
	my ($self) = @_;
	return $self->kill_child(qr/timpush worker/);
}

sub kill_session
{
	my ($self) = @_;
	return $self->kill_child(
		qr/ (?:idle in transaction|INSERT|SELECT|COMMIT)/);
}

sub kill_postmaster
{
	my ($self) = @_;
	my $postmaster = $self->postmaster or return 0;
	my @children = keys %{ $self->children($postmaster) };

	kill 'KILL', $postmaster;
	$self->wait_gone($postmaster, @children);
	$self->start_cluster;
	return 1;
}

sub stop_immediately
{
	my ($self) = @_;

	$self->pg_ctl('stop', '-m', 'immediate') or return 0;
	$self->start_cluster;
	return 1;
}

sub restart_fast
{
	my ($self) = @_;

	$self->pg_ctl('stop', '-m', 'fast') or return 0;
	$self->start_cluster;
	return 1;
}

# Freeze every process, so that what the operating system has of the files
# stands still; go on from a copy of that.
sub cut_power
{
	my ($self) = @_;
	my $node = $self->{node};
	my $data = $node->data_dir;
	my $postmaster = $self->postmaster or return 0;
	my %frozen = ($postmaster => 1);

	$self->freeze($postmaster);
	for (;;)
	{
		my @more =
		  grep { !$frozen{$_} } keys %{ $self->children($postmaster) };

		last unless @more;
		$self->freeze($_) foreach @more;
		$frozen{$_} = 1 foreach @more;
	}
	system('cp', '-a', $data, "$data.cut") == 0 or die "cannot copy $data\n";
	kill 'KILL', keys %frozen;
	$self->wait_gone(keys %frozen);

	# The folder itself stays: its number is the key of the shared memory,
	# which the next start then finds and removes.
	mkdir "$data.old" or die "cannot make $data.old: $!\n";
	foreach my $move ([ $data, "$data.old" ], [ "$data.cut", $data ])
	{
		my ($from, $to) = @$move;

		opendir my $dir, $from or die "cannot read $from: $!\n";
		foreach my $name (grep { !/^\.\.?$/ } readdir $dir)
		{
			rename "$from/$name", "$to/$name"
			  or die "cannot move $from/$name: $!\n";
		}
		closedir $dir;
	}
	system('rm', '-rf', "$data.old", "$data.cut") == 0
	  or die "cannot remove $data.old\n";
	$self->start_cluster;
	return 1;
}

sub freeze
{
	my ($self, $pid) = @_;

	kill 'STOP', $pid;
	while (((fields_of($pid))[0] // 'T') !~ /[TtZX]/)
	{
		sleep 0.001;
	}
	return;
}

sub terminate_worker
{
	my ($self) = @_;
	my $pid = $self->pick_child(qr/timpush worker/) or return 0;
	return kill 'TERM', $pid;
}

sub cancel_worker
{
	my ($self) = @_;
	my $pid = $self->pick_child(qr/timpush worker/) or return 0;
	return kill 'INT', $pid;
}

# One or two points of the source, with some probability.
sub set_fault_points
{
	my ($self, $action) = @_;
	my @points = map { any(@{ $self->{points} }) } 1 .. 1 + int rand 2;

	return $self->set_for_a_while($action,
		map { "$_:$action:" . any(1, 0.3, 0.1) } @points);
}

sub set_for_a_while
{
	my ($self, $action, @points) = @_;
	my $began = time;

	$self->set_points(join ', ', @points);
	$self->later(

		# each hit is a crash, and one or two are enough
		$action eq 'kill' ? 0.3 + rand 0.7 : 1 + rand 2,
		sub {
			$self->set_points('');
			$self->window($action, $began, time + 3);
			return 1;
		});
	return 1;
}

# Lets pushes gather, and the worker sleep when it has claimed them: what
# expires meanwhile is not to leave.
sub sleep_before_leaving
{
	my ($self) = @_;
	my $db = any(@{ $self->{dbs} });
	my @servers = sort keys %{ $self->{tims} };

	my $paused =
	  grep { $self->try_sql($db, "SELECT timpush_pause('$_')") } @servers;

	if ($paused)
	{
		sleep 1.5;
		$self->set_for_a_while('late', 'leave:sleep:1');
	}
	foreach my $server (@servers)
	{
		$self->later(0, sub { return $self->resume_server($db, $server); });
	}
	return $paused;
}

sub stop_stand_in
{
	my ($self) = @_;
	my $name = any(sort keys %{ $self->{tims} });
	my $tim = $self->{tims}{$name};
	my $began = time;

	return 0 if $self->{stopped}{$name}++;
	$tim->stop;
	$self->later(
		0.5 + rand 2,
		sub {
			$tim->start(keepalive_requests => 20 + int rand 200);
			delete $self->{stopped}{$name};
			$self->window('stand-in', $began, time + 1, $name);
			return 1;
		});
	return 1;
}

sub set_rules
{
	my ($self) = @_;
	my $name = any(sort keys %{ $self->{tims} });
	my $rules = $self->{rules}{$name} = any(@rules);
	my $tim = $self->{tims}{$name};
	my $began = time;

	return 0 if $self->{stopped}{$name};
	$tim->rules($rules);
	$self->later(
		1 + rand 2,
		sub {
			# it may be that other rules have been set since
			return 0 if $self->{stopped}{$name};
			$tim->clear_rules if $self->{rules}{$name} == $rules;
			$self->window('rules', $began, time + 5, $name)
			  if grep {
				($_->{kind} eq 'latency' && $_->{arg} > 3000)
				  || $_->{kind} =~ /before|during/
			  } @$rules;
			return 1;
		});
	return 1;
}

sub resume_server
{
	my ($self, $db, $server) = @_;
	$db //= any(@{ $self->{dbs} });
	$server //= any(sort keys %{ $self->{tims} });
	return $self->try_sql($db, "SELECT timpush_resume('$server')");
}

sub pause_server
{
	my ($self) = @_;
	my $db = any(@{ $self->{dbs} });
	my $server = any(sort keys %{ $self->{tims} });

	$self->try_sql($db, "SELECT timpush_pause('$server')") or return 0;
	$self->later(0.5 + rand 2,
		sub { return $self->resume_server($db, $server); });
	return 1;
}

sub change_option
{
	my ($self) = @_;
	my $option = any(
		'accounts_per_request ' . any("'500'", "'200'", "'30'"),
		'max_in_flight ' . any("'32'", "'4'", "'100'"));
	my $sql = 'ALTER SERVER ' . any('one', 'two') . " OPTIONS (SET $option)";

	return $self->try_sql(any(@{ $self->{dbs} }), $sql);
}

my %how = (
	'kill -9 of the worker' => \&kill_worker,
	'kill -9 of a session' => \&kill_session,
	'kill -9 of the postmaster' => \&kill_postmaster,
	'immediate stop' => \&stop_immediately,
	'fast restart' => \&restart_fast,
	'power cut' => \&cut_power,
	'worker terminated' => \&terminate_worker,
	'worker cancelled' => \&cancel_worker,

	'sleep before leaving' => \&sleep_before_leaving,

	# low, so that the worker has connections when it dies
	'kill at a commit' =>
	  sub { $_[0]->set_for_a_while('kill', 'commit:kill:0.02') },
	'kill at a fault point' => sub { $_[0]->set_fault_points('kill') },
	'error at a fault point' => sub { $_[0]->set_fault_points('error') },
	'sleep at a fault point' => sub { $_[0]->set_fault_points('sleep') },
	'stand-in stopped' => \&stop_stand_in,
	'stand-in faulty' => \&set_rules,
	'server paused' => \&pause_server,
	'server resumed' => sub { $_[0]->resume_server },
	'option changed' => \&change_option,
	'checkpoint' => sub { $_[0]->try_sql('postgres', 'CHECKPOINT') },
	'calm' => sub { sleep 2 });

sub next_kind
{
	my ($self) = @_;

	$self->{bag} = [
		shuffle map { ($_) x $bag{$_} }
		  grep { /(?:$self->{only})/ } sort keys %bag
	  ]
	  unless @{ $self->{bag} };
	return shift @{ $self->{bag} };
}

=head1 METHODS

=head2 $disturber->run($seconds)

=cut

sub run
{
	my ($self, $seconds) = @_;
	my $deadline = time + $seconds;

	while (time < $deadline)
	{
		# what one trouble draws does not depend on how the last one went
		srand($self->{seed} * 100_003 + $self->{number}++);
		my $kind = $self->next_kind;
		my $hold = rand() < 0.4;
		my $pause = 0.2 + rand 1.2;
		my $crash = $kind =~ /kill -9|immediate|restart|power|worker/;
		my $began = time;

		$self->hold_sessions if $crash && $hold;
		my $done = $how{$kind}->($self);
		$self->{count}{$kind}++ if $done;
		printf "%.3f %s%s%s, %.3f s\n", $began, $kind,
		  $hold && $crash ? ', sessions held' : '',
		  $done ? '' : ' (came to nothing)', time - $began;
		$self->window($kind, $began - 0.5, time + 1.5) if $crash;
		$self->release_sessions;
		my $until = min($deadline, time + $pause);

		while (time < $until)
		{
			$self->do_due;
			sleep 0.05;
		}
	}
	return;
}

=head2 $disturber->heal

Undoes all that goes wrong, restarts the cluster and resumes the servers.

=cut

sub heal
{
	my ($self) = @_;
	my $began = time;

	$self->set_points('');
	$self->do_due(1);
	$_->clear_rules foreach values %{ $self->{tims} };
	$self->wait_ready;
	until ($self->restart_fast) { sleep 1; }
	$self->window('heal', $began, time + 1);
	return;
}

sub resume_all
{
	my ($self) = @_;

	foreach my $db (@{ $self->{dbs} })
	{
		$self->resume_server($db, $_) foreach sort keys %{ $self->{tims} };
	}
	return;
}

1;
