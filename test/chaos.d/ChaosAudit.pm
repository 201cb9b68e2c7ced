
=pod

=head1 NAME

ChaosAudit - compares three accounts of a run: the clients', the ledgers', and
the tables'

=head1 SYNOPSIS

  my $audit = ChaosAudit->new(node => $node, dbs => [...], tims => {...},
	dir => $dir, windows => $disturber->{windows});
  $audit->check;
  print "$_: $audit->{figures}{$_}\n" foreach @ChaosAudit::figures;

What the clients committed and what they rolled back is known from their
journals; where a connection was lost during COMMIT, chaos_done tells.  The
ledgers tell which account was delivered, when and how often; an account's
name says of which push it is.  What the tables say is held against both.

C<findings> has a line for each disagreement, C<evidence($name)> all that is
known of a push.

=cut

package ChaosAudit;

use strict;
use warnings;

use JSON::PP;
use List::Util qw(max min sum0);

our @figures = (
	'lost',
	'sent though rolled back',
	'sent after expiry',
	'unexplained duplicates',
	'unclosed sums');

# From the check for expiry to the arrival: a connection, and a busy machine.
use constant LATE => 1.5;

# Between the end of an attempt and what the clocks of others say of it.
use constant SLACK => 1.5;

# Faults after which the client cannot know what became of the request.
my %doubtful = map { $_ => 1 }
  qw(reset-before reset-during reset-after drop-before drop-after truncate
  garbage html502 http drip huge badutf8 nul deep dupkeys);
my %doubtful_code = (60008 => 1, 60013 => 1);

my $json = JSON::PP->new->utf8;

sub new
{
	my ($class, %options) = @_;

	return bless {
		%options,
		figures => { map { $_ => 0 } @figures },
		findings => [],
		count => {},
	}, $class;
}

sub find
{
	my ($self, $figure, $name, $text, $n) = @_;

	$self->{figures}{$figure} += $n // 1;
	push @{ $self->{findings} },
	  { figure => $figure, name => $name, text => $text };
	return;
}

# The push that an account belongs to.
sub name_of
{
	my ($account) = @_;
	return $account =~ /-u(\w+)-a\d+$/ ? $1 : '';
}

# ------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------

sub read_lines
{
	my ($file, $each) = @_;

	open my $in, '<', $file or die "cannot read $file: $!\n";
	while (my $line = <$in>)
	{
		$each->($json->decode($line), $line);
	}
	close $in;
	return;
}

# A client's journal.  Each push has its tries, each with the outcome of its
# transaction, of which a savepoint may have taken it out.
sub read_client
{
	my ($self, $file) = @_;
	my (%try, @cancels, @retries, $bye);

	read_lines(
		$file,
		sub {
			my ($entry) = @_;
			my $what = $entry->{e};

			if ($what eq 'push')
			{
				my $push = $self->{push}{ $entry->{name} } //=
				  { %$entry, tries => [] };
				push @{ $push->{tries} },
				  $try{ $entry->{name} } = { outcome => 'rolled back' };
				push @{ $self->{open} }, [ $try{ $entry->{name} } ];

				# the tries of a push with a key differ in their times
				$push->{send} = $entry->{send};
			}
			elsif ($what eq 'undone') { $try{ $entry->{name} }{undone} = 1; }
			elsif ($what eq 'cancel') { push @cancels, $entry; }
			elsif ($what eq 'retry') { push @retries, $entry; }
			elsif ($what eq 'lost') { $self->{count}{lost_connections}++; }
			elsif ($what eq 'bye') { $bye = 1; }
			elsif ($what eq 'end')
			{
				$_->{outcome} = $entry->{outcome} foreach values %try;
				$self->{count}{transactions}{ $entry->{outcome} }++;
				foreach my $cancel (grep { $_->{result} } @cancels)
				{
					$self->{cancelled}{ $cancel->{name} } = 1
					  if $entry->{outcome} eq 'committed'
					  || $entry->{outcome} eq 'not known'
					  && $self->{done}{cancel}{ $cancel->{name} };
				}
				$self->{retried}{ $_->{name} } = 1 foreach @retries;
				(%try, @cancels, @retries) = ();
			}
		});
	die "$file: the client did not come to its end\n" unless $bye;
	return;
}

sub read_done
{
	my ($self) = @_;

	foreach my $db (@{ $self->{dbs} })
	{
		foreach
		  my $row ($self->rows($db, 'SELECT what, name FROM chaos_done'))
		{
			$self->{done}{ $row->{what} }{ $row->{name} }++;
			push @{ $self->{retry_ids}{$db} }, $row->{name}
			  if $row->{what} eq 'retry';
		}
	}
	return;
}

# Which pushes are committed?  Dies if chaos_done contradicts a client: then
# it is the database that lost a transaction, or this harness that errs.
sub decide
{
	my ($self) = @_;

	foreach my $push (values %{ $self->{push} })
	{
		my $name = $push->{name};
		my @tries = grep { !$_->{undone} } @{ $push->{tries} };
		my $sure = grep { $_->{outcome} eq 'committed' } @tries;
		my $maybe = grep { $_->{outcome} eq 'not known' } @tries;
		my $done = $self->{done}{push}{$name} // 0;

		die
		  "push $name: $sure tries committed, $maybe not known, but $done in the database\n"
		  if $done < $sure || $done > $sure + $maybe;
		$push->{committed} = $done > 0;
		$self->{count}{uncertain} += $maybe;
		$self->{count}{ $done > 0 ? 'committed' : 'undone' }++;
	}
	return;
}

# The ledger of one service.
sub read_ledger
{
	my ($self, $server, $file) = @_;
	my %request;

	read_lines(
		$file,
		sub {
			my ($line, $text) = @_;
			my $what = $line->{event};

			$line->{server} = $server;
			if ($what eq 'request')
			{
				$request{ $line->{seq} } = $line;
				$self->{count}{requests}++;
			}
			elsif ($what eq 'partial')
			{
				push @{ $self->{windows} },
				  [ ($line->{time} / 1e6) x 2, $server, 'partial' ];
				$self->{count}{faults}{ $line->{fault} // 'cut off' }++;
			}
			elsif (my $request = delete $request{ $line->{seq} })
			{
				$self->read_call($request, $line);
			}
			else
			{
				$self->{count}{faults}{"refused $line->{code}"}++;
				push @{ $self->{refused} }, $line;
			}
		});
	return;
}

sub read_call
{
	my ($self, $request, $answer) = @_;
	my %failed = map { $_->{account} => 1 } @{ $answer->{failed} };
	my $call = {
		%$answer,
		at => $request->{time} / 1e6,
		accounts => $request->{accounts},
		doubtful => $doubtful{ $answer->{fault} // '' }
		  || $doubtful_code{ $answer->{code} }
		  || grep({ /(?:slow-5|drip|huge)/ } @{ $request->{accounts} }) > 0,
	};

	$self->{count}{faults}{
		$answer->{fault} eq 'code'
		? "code $answer->{code}"
		: $answer->{fault}
	  }++
	  if $answer->{fault};
	$self->{count}{swallowed}++ if $answer->{swallowed};
	$self->{count}{account_errors} += keys %failed;
	foreach my $account (@{ $request->{accounts} })
	{
		push @{ $self->{calls}{$account} }, $call;
		$self->{delivered}{$account}++
		  if $answer->{delivered} && !$failed{$account};

		# this answer says that all went well, without a list
		$self->{not_told}{$account} = 1
		  if $failed{$account} && ($answer->{fault} // '') eq 'dupkeys';
	}
	push @{ $self->{all_calls} }, $call;

	# on HTTP/2 a reset ends all that shares the connection
	push @{ $self->{resets}{ connection_of($call) } }, $call->{at}
	  if ($answer->{fault} // '') =~ /^reset/;
	return;
}

# Connections are numbered anew after a restart, sequences are not.
sub connection_of
{
	my ($call) = @_;
	return join '/', $call->{server}, int($call->{seq} / 1e9),
	  $call->{connection};
}

sub rows
{
	my ($self, $db, $query) = @_;
	my $out = $self->{node}->safe_psql($db,
		"SET client_encoding = 'UTF8'; SELECT row_to_json(r) FROM ($query) r"
	);

	return map { $json->decode($_) } split /\n/, $out;
}

sub read_tables
{
	my ($self, $db) = @_;
	my %request;

	foreach my $row (
		$self->rows(
			$db,
			'SELECT id, server, msg_random, accounts, state, class, on_unknown, parent,
			  maybe_duplicate, attempts, resends, error_code, error_info, in_doubt,
			  extract(epoch FROM created_at) AS created, extract(epoch FROM finished_at) AS finished
			  FROM push_request'))
	{
		$request{ $row->{id} } = $row;
	}
	foreach my $row (
		$self->rows(
			$db,
			'SELECT push_id, request_id, first, accounts AS n, state, failed, retried,
			  maybe_duplicate, push_accounts, extract(epoch FROM expires_at) AS expires
			  FROM push_result'))
	{
		my $request = $request{ $row->{request_id} };

		$row->{request} = $request;
		push @{ $request->{parts} }, $row;
		push @{ $self->{parts}{$db}{ $row->{push_id} } }, $row;
	}
	foreach my $row (
		$self->rows(
			$db, 'SELECT push_id, request_id, account FROM push_error'))
	{
		$self->{error}{$db}{ $row->{request_id} }{ $row->{account} }++;
		$self->{errors}{$db}{"$row->{push_id}/$row->{request_id}"}++;
	}
	$self->{request}{$db} = \%request;
	foreach my $row (
		$self->rows($db, 'SELECT id, accounts, to_accounts FROM push_outbox'))
	{
		$self->{waiting}{ name_of($row->{to_accounts}[0]) } =
		  "push $row->{id} still waits";
	}
	return;
}

# ------------------------------------------------------------------------
# What became of each account, by the tables
# ------------------------------------------------------------------------

# An account may be in several calls of a push, of which each but the last has
# left it to a child.  What it is called in the others is its outcome.
sub follow_accounts
{
	my ($self, $db) = @_;

	foreach my $id (keys %{ $self->{parts}{$db} })
	{
		my $parts = $self->{parts}{$db}{$id};
		my (%of, %went_on);

		foreach my $part (@$parts)
		{
			my $request = $part->{request};
			my $first = $part->{first} - 1;

			foreach my $account (
				@{ $request->{accounts} }[ $first .. $first + $part->{n} - 1 ]
			  )
			{
				push @{ $of{$account} }, $part;

				# one that was split has left its parts to its children
				for (
					my $parent = $request->{parent};
					defined $parent;
					$parent = $self->{request}{$db}{$parent}{parent})
				{
					$went_on{$account}{$parent} = 1;
				}
			}
		}
		foreach my $account (keys %of)
		{
			my @last =
			  grep { !$went_on{$account}{ $_->{request_id} } }
			  @{ $of{$account} };

			push @{ $self->{outcome}{$account} },
			  {
				db => $db,
				push_id => $id,
				parts => $of{$account},
				last => \@last,
				state => @last == 1
				? $self->state_of($db, $account, $last[0])
				: 'none',
				marked =>
				  grep({ $_->{maybe_duplicate} } @{ $of{$account} }) > 0
			  };
		}
		$self->{name_of_id}{$db}{$id} = name_of((keys %of)[0] // '');
	}
	return;
}

sub state_of
{
	my ($self, $db, $account, $part) = @_;

	return $part->{state}
	  unless $part->{state} =~ /^(?:sent|partial|failed)$/;
	return
		$self->{error}{$db}{ $part->{request_id} }{$account} ? 'failed'
	  : $part->{state} eq 'failed' ? 'failed without an error'
	  : 'sent';
}

# ------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------

# Each account of a committed push has one outcome, and a right one.
sub check_committed
{
	my ($self, $push) = @_;
	my $name = $push->{name};
	my (%lost, %wrong);

	if ($self->{waiting}{$name})
	{
		$self->find('lost', $name, $self->{waiting}{$name});
		return;
	}
	foreach my $account (@{ $push->{accounts} })
	{
		my $outcomes = $self->{outcome}{$account} // [];
		my $delivered = $self->{delivered}{$account} // 0;

		$lost{'accounts are unknown to the tables'}++ unless @$outcomes;
		foreach my $outcome (@$outcomes)
		{
			my $state = $outcome->{state};
			my $part = $outcome->{last}[0];

			$self->{count}{outcomes}{$state}++;
			$lost{'accounts have no outcome or several'}++
			  if $state eq 'none';
			$lost{"accounts are still $state"}++
			  if $state eq 'sending' || $state eq 'retry';
			$lost{"accounts are $state"}++
			  if $state eq 'failed without an error';
			$lost{'accounts are called sent, but were not delivered'}++
			  if $state eq 'sent'
			  && !$delivered
			  && !$self->{not_told}{$account}
			  && !($part->{request}{on_unknown} eq 'accept'
				&& ($part->{request}{class} // '') eq 'unknown');

			# a repetition may have been refused, and is marked then
			$lost{"accounts are called $state, but were delivered"}++
			  if $state =~ /^(?:failed|expired|cancelled)$/
			  && $delivered
			  && @$outcomes == 1
			  && !$outcome->{marked};
		}
	}
	$self->find('lost', $name, "push $name: $lost{$_} $_", $lost{$_})
	  foreach sort keys %lost;
	return;
}

# Nothing of a push that was rolled back is anywhere.
sub check_undone
{
	my ($self, $push) = @_;
	my @sent = grep { $self->{calls}{$_} } @{ $push->{accounts} };
	my @known = grep { $self->{outcome}{$_} } @{ $push->{accounts} };

	$self->find(
		'sent though rolled back',
		$push->{name},
		"push $push->{name}: "
		  . @sent
		  . ' accounts sent, '
		  . @known
		  . ' known to the tables'
	) if @sent || @known || $self->{waiting}{ $push->{name} };
	return;
}

# Too late, and not because the process slept between the last look at the
# expiry and the moment when the connection stood?
sub is_late
{
	my ($self, $at, $expires) = @_;

	return 0 if $at <= $expires + LATE;
	return !grep { $_->[3] eq 'sleep' && $_->[0] < $at && $_->[1] > $expires }
	  @{ $self->{windows} };
}

# Nothing arrives after its expiry, nor what was taken back.
sub check_in_time
{
	my ($self, $push) = @_;
	my $name = $push->{name};
	my ($late, $worst, $cancelled) = (0, 0, 0);

	# its accounts may be sent again by another push
	return
	  if $self->{retried}{$name} || ($push->{tries}[1] && $push->{expires});
	foreach my $account (@{ $push->{accounts} })
	{
		my @calls = @{ $self->{calls}{$account} // [] };
		my $expires = $push->{expires};

		if (defined $expires
			&& grep { $self->is_late($_->{at}, $expires) } @calls)
		{
			$late++;
			$worst = max($worst, map { $_->{at} - $expires } @calls);
		}
		$cancelled++
		  if $self->{cancelled}{$name} && $self->{delivered}{$account};
	}
	$self->find(
		'sent after expiry',
		$name,
		sprintf(
			'push %s: %d accounts sent up to %.3f s after expiry',
			$name, $late, $worst),
		$late) if $late;
	$self->find(
		'sent after expiry',
		$name,
		"push $name: $cancelled accounts sent, but timpush_cancel() has taken it back",
		$cancelled)
	  if $cancelled
	  && @{ $push->{accounts} } < 30
	  && !grep { !/^user-/ } @{ $push->{accounts} };
	return;
}

# Does anything explain that the outcome of a call was not known?
sub explained
{
	my ($self, $account, $outcome) = @_;
	my $calls = $self->{calls}{$account} // [];
	my ($from, $to, %seen);

	return 1
	  if grep { $_->{doubtful} || $self->{resets}{ connection_of($_) } }
	  @$calls;
	foreach my $part (@{ $outcome->{parts} })
	{
		for (
			my $request = $part->{request};
			$request;
			$request =
			$self->{request}{ $outcome->{db} }{ $request->{parent} // 0 })
		{
			$from = min(grep { defined } $from, $request->{created});
			$to = max(grep { defined } $to, $request->{finished});

			# an account may have come into doubt by another one of its call
			return 1
			  if grep { $_->{doubtful} }
			  @{ $self->{by_random}{ $request->{msg_random} } // [] };
		}
	}
	return 1 unless defined $from && defined $to;
	my $server = $outcome->{parts}[0]{request}{server};

	# it may have been on its way on such a connection, and not have arrived
	if (grep {
			$_->{request}{attempts} >
			  @{ $self->{by_random}{ $_->{request}{msg_random} } // [] }
		} @{ $outcome->{parts} })
	{
		foreach
		  my $connection (grep { m{^$server/} } keys %{ $self->{resets} })
		{
			return 1
			  if grep { $_ > $from - 0.5 && $_ < $to + 0.5 }
			  @{ $self->{resets}{$connection} };
		}
	}
	foreach my $window (@{ $self->{windows} })
	{
		my ($begin, $end, $where) = @$window;

		return 1
		  if $begin < $to + SLACK
		  && $end > $from - SLACK
		  && (!defined $where || $where eq $server);
	}
	return 0;
}

# What arrived more than once is marked, and what is marked has a reason.
sub check_duplicates
{
	my ($self, $push) = @_;
	my ($unmarked, $groundless, $doubts) = (0, 0, 0);

	foreach my $account (@{ $push->{accounts} })
	{
		my $outcomes = $self->{outcome}{$account} // [];
		my $marked = grep { $_->{marked} } @$outcomes;

		$self->{count}{maybe_duplicate}++ if $marked;
		$self->{count}{duplicates}++
		  if ($self->{delivered}{$account} // 0) > @$outcomes;
		$unmarked++
		  if ($self->{delivered}{$account} // 0) > max(1, scalar @$outcomes)
		  && !$marked;
		foreach my $outcome (@$outcomes)
		{
			next unless $outcome->{marked} || $outcome->{state} eq 'unknown';
			next if $self->explained($account, $outcome);
			$outcome->{marked} ? $groundless++ : $doubts++;
		}
	}
	$self->find(
		'unexplained duplicates',
		$push->{name},
		"push $push->{name}: $unmarked accounts delivered more than once, not marked",
		$unmarked) if $unmarked;
	$self->find(
		'unexplained duplicates',
		$push->{name},
		"push $push->{name}: $groundless accounts marked, $doubts unknown, without a cause",
		$groundless + $doubts) if $groundless + $doubts;
	return;
}

# The sums that the tables promise.
sub check_sums
{
	my ($self, $db) = @_;
	my %length = map { $_->{name} => scalar @{ $_->{accounts} } }
	  values %{ $self->{push} };

	foreach my $row ($self->rows($db, 'SELECT * FROM push_status'))
	{
		my $id = $row->{push_id};
		my $name = $self->{name_of_id}{$db}{$id} // '';
		my $sum =
		  sum0(@$row{qw(sent failed expired cancelled unknown waiting)});
		my $promised = $self->{retry_id}{$db}{$id} ? undef : $length{$name};

		$self->find(
			'unclosed sums',
			$name,
			"push $id ($name): $sum accounts in push_status, not $row->{accounts}"
		) if $sum != $row->{accounts};
		$self->find(
			'unclosed sums',
			$name,
			"push $id ($name): $row->{accounts} accounts, enqueued were $promised"
		) if defined $promised && $promised != $row->{accounts};
	}
	foreach my $request (values %{ $self->{request}{$db} })
	{
		next if $request->{state} eq 'split';
		my $n = sum0(map { $_->{n} } @{ $request->{parts} });

		$self->find(
			'unclosed sums',
			'',
			"request $request->{id}: $n of its "
			  . @{ $request->{accounts} }
			  . ' accounts are in push_result'
		) if $n != @{ $request->{accounts} };
	}
	foreach my $id (keys %{ $self->{parts}{$db} })
	{
		foreach my $part (@{ $self->{parts}{$db}{$id} })
		{
			my $errors = $self->{errors}{$db}{"$id/$part->{request_id}"} // 0;

			$self->find(
				'unclosed sums',
				$self->{name_of_id}{$db}{$id},
				"push $id, request $part->{request_id}: failed $part->{failed}, $errors errors"
			) if $errors != $part->{failed};
		}
	}
	return;
}

# The comparison that other tests make too, for each database with the lines
# of the ledgers that are of its pushes.
sub check_by_sql
{
	my ($self, $db) = @_;
	my %figure = (
		a => 'lost',
		b => 'lost',
		c => 'unexplained duplicates',
		d => 'unclosed sums',
		e => 'sent after expiry');
	my $file = "$self->{dir}/ledger.$db";
	my $offset = 0;

	open my $out, '>', $file or die "cannot write $file: $!\n";
	foreach my $server (sort keys %{ $self->{tims} })
	{
		my %mine;

		read_lines(
			$self->{tims}{$server}->ledger_file,
			sub {
				my ($line) = @_;
				my $name = name_of(($line->{accounts} // [])->[0] // '');

				$mine{ $line->{seq} } = 1
				  if $line->{event} eq 'request'
				  && ($self->{push}{$name}{db} // '') eq $db;
				return unless $mine{ $line->{seq} };
				$line->{seq} += $offset;
				print $out $json->encode($line), "\n";
			});
		$offset += 1e12;
	}
	close $out or die "cannot write $file: $!\n";
	my ($tim) = values %{ $self->{tims} };
	foreach my $line (
		$tim->check_ledger($self->{node}, dbname => $db, ledger => $file))
	{
		my ($kind, $id) = $line =~ /^(?:\w+: )?(\w) (?:push (\d+))?/;
		my $name = defined $id ? $self->{name_of_id}{$db}{$id} : '';

		$self->find($figure{$kind} // 'lost', $name, "$db: $line");
	}
	return;
}

# A call that was dropped as a repetition was told to be accepted: rightly if it
# is one, and then it is marked.
sub check_swallowed
{
	my ($self) = @_;

	foreach my $call (grep { $_->{swallowed} } @{ $self->{all_calls} })
	{
		my $accounts = $call->{accounts};
		my $name = name_of($accounts->[0]);
		my ($first) = grep { $_->{delivered} && $_->{app} eq $call->{app} }
		  @{ $self->{by_random}{ $call->{msg_random} } };

		if (!$first || "@{ $first->{accounts} }" ne "@$accounts")
		{
			$self->find('lost', $name,
				"MsgRandom $call->{msg_random} was used again within a second for other accounts"
			);
		}
		elsif (grep { $_->{marked} }
			@{ $self->{outcome}{ $accounts->[0] } // [] })
		{
			next;
		}
		else
		{
			$self->find(
				'unexplained duplicates',
				$name,
				"MsgRandom $call->{msg_random} arrived twice within a second and is not marked"
			);
		}
	}
	return;
}

=head1 METHODS

=head2 $audit->check

=cut

sub check
{
	my ($self) = @_;

	$self->read_done;
	$self->read_client($_) foreach glob "$self->{dir}/client*";
	$self->decide;
	$self->read_ledger($_, $self->{tims}{$_}->ledger_file)
	  foreach sort keys %{ $self->{tims} };
	push @{ $self->{by_random}{ $_->{msg_random} } }, $_
	  foreach @{ $self->{all_calls} };
	foreach my $db (@{ $self->{dbs} })
	{
		$self->read_tables($db);
		$self->follow_accounts($db);
		$self->{retry_id}{$db}{$_} = 1
		  foreach @{ $self->{retry_ids}{$db} // [] };
		foreach my $id (keys %{ $self->{retry_id}{$db} })
		{
			$self->find('lost', '', "push $id of timpush_retry() is unknown")
			  unless $self->{parts}{$db}{$id};
		}
	}
	foreach my $push (map { $self->{push}{$_} } sort keys %{ $self->{push} })
	{
		if ($push->{committed})
		{
			$self->check_committed($push);
			$self->check_in_time($push);
			$self->check_duplicates($push);
		}
		else
		{
			$self->check_undone($push);
		}
		$self->{count}{accounts} += @{ $push->{accounts} }
		  if $push->{committed};
	}
	$self->check_swallowed;
	foreach my $db (@{ $self->{dbs} })
	{
		$self->check_sums($db);
		$self->check_by_sql($db);
	}
	return;
}

=head2 $audit->evidence($name)

=cut

sub evidence
{
	my ($self, $name) = @_;
	my $push = $self->{push}{$name} or return '';
	my %shown = (%$push, accounts => scalar @{ $push->{accounts} });
	my $text = 'push ' . $json->canonical->encode(\%shown) . "\n";
	my %seen;

	foreach my $account (@{ $push->{accounts} })
	{
		foreach my $outcome (@{ $self->{outcome}{$account} // [] })
		{
			foreach my $part (@{ $outcome->{parts} })
			{
				next if $seen{"$outcome->{db} $part->{request_id}"}++;
				my %request = %{ $part->{request} };
				my %part = %$part;

				delete $request{parts};
				delete $part{request};
				$request{accounts} = scalar @{ $request{accounts} };
				$text .= '  result  ' . $json->encode(\%part) . "\n";
				$text .= '  request ' . $json->encode(\%request) . "\n";
			}
		}
		foreach my $call (@{ $self->{calls}{$account} // [] })
		{
			next if $seen{$call}++;
			my %call = (%$call, accounts => scalar @{ $call->{accounts} });

			delete $call{failed};
			$text .= '  ledger  ' . $json->encode(\%call) . "\n";
		}
	}
	my ($from, $to) = (
		min(map { $_->{at} }
			map { @{ $self->{calls}{$_} // [] } } @{ $push->{accounts} }),
		time);
	if (defined $from)
	{
		foreach my $window (@{ $self->{windows} })
		{
			$text .= sprintf "  event   %.3f .. %.3f %s\n",
			  @$window[ 0, 1, 3 ]
			  if $window->[3] ne 'partial' && abs($window->[0] - $from) < 10;
		}
	}
	return $text;
}

1;
