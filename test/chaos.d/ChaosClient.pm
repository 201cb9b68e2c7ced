
=pod

=head1 NAME

ChaosClient - one session of the load, and its own account of what it did

=head1 SYNOPSIS

  ChaosClient->new(number => 1, seed => 7, db => 'postgres', dir => $dir,
	connect => { host => $host, port => $port })->work;

What a transaction does is drawn from the seed, the number of the client and
that of the transaction, so that the plan is the same in each run; how far it
comes depends on what happens to the cluster meanwhile.

Each push has a name that is part of the names of all its accounts, so the
ledger alone tells whose an account is.  With each push, cancel and retry a row
goes into chaos_done in the same transaction: where a connection is lost
during COMMIT, that row tells later what came of it.

=cut

package ChaosClient;

use strict;
use warnings;

use IO::Select;
use IPC::Open2;
use JSON::PP;
use POSIX qw(strftime);
use Time::HiRes qw(sleep time);

# A statement without an answer for so long counts as a lost connection.
use constant STALL => 60;

my $json = JSON::PP->new->canonical;

# Accounts that make something go wrong, see test/fake/README.md; some more
# often than others.
my @troubles = (
	qw(nobody nobody nobody acct-70107 acct-90992 acctN-90992-1 acctN-90992-1),
	qw(acctN-90992-2 acctN-60007-1 first1-reset-before first1-reset-during),
	qw(first1-reset-after first1-reset-after first1-drop-before),
	qw(first1-drop-after first1-truncate first1-garbage first1-html502),
	qw(first2-reset-after first1-http-503 first1-http-429-ra1),
	qw(first1-http-500 first1-http-404 code-90001 code-70107 first1-code-90992),
	qw(first1-code-60007 first1-code-60008 first1-code-99999 code-99999),
	qw(first1-code-70001 slow-300 first1-slow-5000 drip-2 badutf8 deep nul),
	qw(dupkeys extraerr first1-huge-2));

sub new
{
	my ($class, %options) = @_;
	my $self = {
		%options,
		transaction => 0,
		statement => 0,
		prepared => [],
		pushes => [],
	};

	open $self->{journal}, '>>', "$options{dir}/client$options{number}"
	  or die "cannot open the journal: $!\n";
	$self->{journal}->autoflush(1);
	return bless $self, $class;
}

sub note
{
	my ($self, %entry) = @_;

	print { $self->{journal} } $json->encode(\%entry), "\n"
	  or die "cannot write the journal: $!\n";
	return;
}

# ------------------------------------------------------------------------
# The connection: a psql of our own
# ------------------------------------------------------------------------

sub disconnect
{
	my ($self, $signal) = @_;

	return unless $self->{pid};
	kill $signal, $self->{pid} if $signal;
	close $self->{in};
	close $self->{out};
	waitpid $self->{pid}, 0;
	delete $self->{pid};
	return;
}

sub connect
{
	my ($self) = @_;
	my $c = $self->{connect};

	$self->disconnect('KILL');
	$self->{connecting} = 1;
	$self->{buffer} = '';
	$self->{pid} = open2(
		$self->{out},
		$self->{in},
		'sh',
		'-c',
		'exec "$@" 2>&1',
		'sh',
		'psql',
		'-X',
		'-q',
		'-A',
		'-t',
		'-d',
		"host=$c->{host} port=$c->{port} dbname=$self->{db} user=$c->{user} connect_timeout=10"
	);
	$self->{in}->autoflush(1);
	my ($status) =
	  $self->run(
		"SET client_min_messages = error; SET application_name = 'chaos'");
	$self->{connecting} = 0;
	return $status eq 'ok';
}

sub connect_anyhow
{
	my ($self) = @_;

	until ($self->{pid} && $self->{usable})
	{
		$self->{usable} = $self->connect;
		sleep 0.1 unless $self->{usable};
	}
	return;
}

# Runs a statement.  Returns "ok", "error" or "lost", and the output.
sub run
{
	my ($self, $sql) = @_;
	my $mark = 'end-' . ++$self->{statement};
	my $select = IO::Select->new($self->{out});
	my $deadline = time + STALL;

	return ('lost', '') unless $self->{pid};
	local $SIG{PIPE} = 'IGNORE';
	print { $self->{in} } "$sql;\n\\echo $mark :ERROR\n";
	for (;;)
	{
		if ($self->{buffer} =~ s/\A(.*?)^\Q$mark\E (\w+)\n//ms)
		{
			my ($output, $failed) = ($1, $2);
			chomp $output;
			return ($failed eq 'true' ? 'error' : 'ok', $output);
		}
		my $ready = $select->can_read($deadline - time);

		if (!$ready || !sysread $self->{out},
			$self->{buffer}, 65536, length $self->{buffer})
		{
			$self->note(
				e => 'lost',
				at => time,
				stalled => !$ready,
				output => substr $self->{buffer},
				-300) unless $self->{connecting};
			$self->disconnect('KILL');
			$self->{usable} = 0;
			return ('lost', $self->{buffer});
		}
	}
}

# ------------------------------------------------------------------------
# The plan
# ------------------------------------------------------------------------

sub pick { return $_[ int rand @_ ]; }

sub chance { return rand() < $_[0]; }

sub stamp
{
	my ($time) = @_;
	return strftime('%Y-%m-%d %H:%M:%S', gmtime int $time)
	  . sprintf('.%06d+00', ($time - int $time) * 1e6);
}

sub plan_accounts
{
	my ($name) = @_;
	my $kind = rand;
	my $n =
		$kind < 0.80 ? 1
	  : $kind < 0.93 ? 2 + int rand 4
	  : $kind < 0.993 ? 20 + int rand 40
	  : 501 + int rand 800;
	my @accounts = map { "user-u$name-a$_" } 1 .. $n;

	if (chance($n > 500 ? 0.2 : 0.12))
	{
		my $i = int rand $n;
		$accounts[$i] = pick(@troubles) . substr $accounts[$i], 4;
	}
	return \@accounts;
}

sub plan_push
{
	my ($name) = @_;
	my %push = (
		name => $name,
		accounts => plan_accounts($name),
		server => chance(0.65) ? 'one' : 'two',
		title => 'title ' . (chance(0.75) ? int rand 5 : $name),
		way => pick(qw(batch batch batch insert insert trigger)),
		on_unknown => pick(qw(retry retry retry retry hold accept)),
		priority => chance(0.1) ? int rand 10 : 4);

	$push{data_id} = $name if chance(0.05);
	$push{dedup_key} = $name if chance(0.08);
	$push{send_in} = rand 2 if chance(0.08);
	$push{expires_in} = ($push{send_in} // 0) + 0.1 + rand 4 if chance(0.12);
	return \%push;
}

# What a transaction does, and how it ends.
sub plan
{
	my ($self) = @_;
	my $n = ++$self->{transaction};
	my $kind;
	my @steps;

	srand(($self->{seed} * 1009 + $self->{number}) * 1_000_003 + $n);
	foreach my $i (1 .. 1 + int rand 4)
	{
		my $push = plan_push("$self->{number}x${n}x$i");

		push @steps, [ push => $push ];
		push @steps, [ pause => rand 0.1 ] if chance(0.05);
		if (chance(0.12))
		{
			# what stands between is rolled back or not, as a part
			my $inner = plan_push("$self->{number}x${n}x${i}s");
			push @steps, ['savepoint'], [ push => $inner ],
			  [ chance(0.6) ? 'rollback_to' : 'release' ];
		}
	}
	push @steps, ['cancel'] if chance(0.2);
	push @steps, ['retry'] if chance(0.06);
	$kind = rand;
	return {
		steps => \@steps,
		end => $kind < 0.70 ? 'commit'
		: $kind < 0.83 ? 'rollback'
		: $kind < 0.92 ? 'commit prepared'
		: $kind < 0.96 ? 'rollback prepared'
		: 'vanish',
		rest => rand 0.06
	};
}

# ------------------------------------------------------------------------
# Carrying it out
# ------------------------------------------------------------------------

sub quote
{
	my ($text) = @_;
	return defined $text ? "'$text'" : 'NULL';
}

sub push_sql
{
	my ($push) = @_;
	my $to = "'{" . join(',', @{ $push->{accounts} }) . "}'";
	my $done =
	  "WITH done AS (INSERT INTO chaos_done VALUES ('push', '$push->{name}'))";
	my @values = (
		"'administrator'", $to,
		quote($push->{title}), "'text'",
		quote($push->{data_id}), quote($push->{server}),
		$push->{priority}, quote($push->{send_at}),
		quote($push->{expires_at}), quote($push->{dedup_key}));

	if ($push->{way} eq 'batch')
	{
		splice @values, 6, 0, 'NULL';
		return "$done SELECT timpush_batch(" . join(', ', @values) . ')';
	}
	if ($push->{way} eq 'insert')
	{
		$values[7] = 'now()' unless defined $push->{send_at};
		return
		  "$done INSERT INTO push_outbox (from_account, to_accounts, title, descr, data_id, server,"
		  . ' priority, send_at, expires_at, dedup_key, on_unknown) VALUES ('
		  . join(', ', @values, quote($push->{on_unknown}))
		  . ') RETURNING id';
	}
	shift @values;
	return "$done INSERT INTO orders VALUES (" . join(', ', @values) . ')';
}

sub do_push
{
	my ($self, $push) = @_;

	foreach my $time (qw(send expires))
	{
		$push->{"${time}_at"} =
		  stamp($push->{$time} = time + $push->{"${time}_in"})
		  if defined $push->{"${time}_in"};
	}
	$self->note(
		e => 'push',
		transaction => $self->{transaction},
		db => $self->{db},
		map { $_ => $push->{$_} }
		  qw(name accounts server on_unknown send expires dedup_key way));
	if ($push->{way} ne 'insert')
	{
		my ($status) =
		  $self->run("SET LOCAL timpush.on_unknown = $push->{on_unknown}");
		return $status unless $status eq 'ok';
	}
	my ($status, $output) = $self->run(push_sql($push));
	if ($status eq 'ok' && $output =~ /^(\d+)$/ && $1 > 0)
	{
		push @{ $self->{new} },
		  { id => $1, name => $push->{name}, at => time };
	}
	push @{ $self->{again} }, $push
	  if $push->{dedup_key} && !$push->{expires} && !$push->{repeated}++;
	return $status;
}

# Take one of our pushes back.
sub do_cancel
{
	my ($self) = @_;
	my $push = $self->{pushes}[ -1 - int rand 8 ] or return 'ok';
	my ($status, $output) = $self->run(
		"WITH c AS (SELECT timpush_cancel($push->{id}) AS ok) INSERT INTO chaos_done"
		  . " SELECT 'cancel', '$push->{name}' FROM c WHERE ok RETURNING 't'"
	);

	$self->note(
		e => 'cancel',
		transaction => $self->{transaction},
		name => $push->{name},
		id => $push->{id},
		result => $status eq 'ok' && $output eq 't'
		? JSON::PP::true
		: JSON::PP::false) unless $status eq 'error';
	return $status;
}

# Send one of our pushes again to those who have not got it.
sub do_retry
{
	my ($self) = @_;
	my @old = grep { $_->{at} < time - 6 } @{ $self->{pushes} }
	  or return 'ok';
	my $push = $old[ rand @old ];

	# refused as long as it is open, and that must not end our transaction
	my ($status) = $self->run('SAVEPOINT retry');
	return $status unless $status eq 'ok';
	$self->note(
		e => 'retry',
		transaction => $self->{transaction},
		name => $push->{name},
		id => $push->{id});
	($status) = $self->run(
		"INSERT INTO chaos_done SELECT 'retry', timpush_retry($push->{id})");
	($status) = $self->run('ROLLBACK TO retry') if $status eq 'error';
	return $status;
}

sub do_step
{
	my ($self, $step, $argument) = @_;

	return $self->do_push($argument) if $step eq 'push';
	return $self->do_cancel if $step eq 'cancel';
	return $self->do_retry if $step eq 'retry';
	if ($step eq 'pause')
	{
		sleep $argument;
		return 'ok';
	}
	if ($step eq 'savepoint')
	{
		$self->{kept} = { map { $_ => @{ $self->{$_} } + 0 } qw(new again) };
		return ($self->run('SAVEPOINT part'))[0];
	}
	return ($self->run('RELEASE part'))[0] if $step eq 'release';

	# rolled back, whatever becomes of the transaction
	$#{ $self->{$_} } = $self->{kept}{$_} - 1 foreach qw(new again);
	$self->note(
		e => 'undone',
		transaction => $self->{transaction},
		name => "$argument");
	return ($self->run('ROLLBACK TO part'))[0];
}

# The end of a transaction that has come so far: committed, rolled back, or
# not known.
sub end
{
	my ($self, $end) = @_;
	my ($status);

	if ($end eq 'vanish')
	{
		$self->disconnect('KILL');
		$self->{usable} = 0;
		return 'rolled back';
	}
	if ($end eq 'commit' || $end eq 'rollback')
	{
		($status) = $self->run($end);
		return 'rolled back' if $end eq 'rollback' || $status eq 'error';
		return $status eq 'ok' ? 'committed' : 'not known';
	}
	my $gid = "chaos-$self->{number}-$self->{transaction}";
	($status) = $self->run("PREPARE TRANSACTION '$gid'");
	return 'rolled back' if $status eq 'error';
	return $self->end_prepared($end, $gid, $status eq 'ok');
}

# A prepared transaction outlives a crash, and so does our duty to end it.
sub end_prepared
{
	my ($self, $end, $gid, $certain) = @_;

	for (;;)
	{
		my ($status, $there) = ('ok', 1);

		$self->connect_anyhow;
		($status, $there) = $self->run(
			"SELECT count(*) FROM pg_prepared_xacts WHERE gid = '$gid'");
		next unless $status eq 'ok';
		if ($there eq '0')
		{
			return 'not known' unless $certain;
			return $end eq 'commit prepared' ? 'committed' : 'rolled back';
		}
		$certain = 1;
		($status) = $self->run("$end '$gid'");
		if ($status eq 'ok')
		{
			return $end eq 'commit prepared' ? 'committed' : 'rolled back';
		}
		sleep 0.1;
	}
}

sub transact
{
	my ($self, $plan) = @_;
	my $outcome = 'rolled back';
	my $status;

	$self->{new} = [];
	$self->{again} = [];
	($status) = $self->run('BEGIN');
	my $inner;
	foreach my $step (@{ $plan->{steps} })
	{
		last unless $status eq 'ok';
		my ($what, $argument) = @$step;

		$inner = $argument->{name} if $what eq 'push';
		$argument = $inner if $what eq 'rollback_to';
		$status = $self->do_step($what, $argument);
	}
	if ($status eq 'ok')
	{
		$outcome = $self->end($plan->{end});
	}
	elsif ($status eq 'error')
	{
		$self->run('ROLLBACK');
	}
	$self->note(
		e => 'end',
		at => time,
		transaction => $self->{transaction},
		outcome => $outcome);
	push @{ $self->{pushes} }, @{ $self->{new} } if $outcome eq 'committed';
	shift @{ $self->{pushes} } while @{ $self->{pushes} } > 200;

	# A push with a key is enqueued again, as one does who does not know what
	# became of the first try, and must come but once.
	return map { [ push => $_ ] } @{ $self->{again} };
}

sub work
{
	my ($self) = @_;
	my $dir = $self->{dir};
	my @again;

	until (-e "$dir/stop")
	{
		if (-e "$dir/hold")
		{
			sleep 0.02;
			next;
		}
		$self->connect_anyhow;
		my $plan = $self->plan;
		push @{ $plan->{steps} }, @again;
		@again = $self->transact($plan);
		sleep $plan->{rest};
	}
	$self->note(e => 'bye', transactions => $self->{transaction});
	$self->disconnect('TERM');
	return;
}

1;
