
=pod

=head1 NAME

FakeTIM - a stand-in of the TIMPush service for TAP tests

=head1 SYNOPSIS

  use FakeTIM;

  my $tim = FakeTIM->new(keepalive_requests => 100);
  $tim->start;
  $node->safe_psql('postgres', $tim->create_server_sql('chat'));
  ...
  $tim->rules([ { kind => 'code', arg => 60007, count => 3 } ]);
  ...
  is($tim->stats->{accepted}, 10, 'ten calls were accepted');
  $tim->ok_ledger($node, 'tables and ledger agree');

The service is started by test/fake/fake; test/fake/README.md says what it can
be told to do.  It is stopped when the object goes away and when the test ends,
in whichever way.

=cut

package FakeTIM;

use strict;
use warnings;

use Carp;
use File::Basename qw(dirname);
use File::Spec;
use File::Temp;
use HTTP::Tiny;
use JSON::PP;
use Scalar::Util qw(weaken);
use Test::More;

my $script = File::Spec->rel2abs(
	File::Spec->catfile(dirname(__FILE__), '..', 'fake', 'fake'));

# Options of "fake start" that take a value.
my @value_options =
  qw(sdkappid key identifier port keepalive_requests idle max_streams preread
  workers);

# Options of a user mapping; any other one is of the server.
my %mapping_option = map { $_ => 1 }
  qw(identifier secret_key secret_key_file usersig usersig_lifetime);

my %running;

=head1 METHODS

=head2 FakeTIM->new(%options)

C<dir> is the directory to work in, by default a temporary one.  Further
options are those of C<fake start>, with underscores: sdkappid, key,
identifier (a name or a list), port, keepalive_requests, idle, max_streams,
preread, workers, http1 (boolean), and apps, a hash of further sdkappid => key.

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = { options => {%options} };
	my %known = map { $_ => 1 } @value_options, qw(dir http1 apps);

	foreach my $name (keys %options)
	{
		croak "unknown option \"$name\"" unless $known{$name};
	}
	$self->{dir} = $options{dir};
	if (!defined $self->{dir})
	{
		$self->{tempdir} = File::Temp->newdir('faketim_XXXXXX', TMPDIR => 1);
		$self->{dir} = "$self->{tempdir}";
	}
	return bless $self, $class;
}

=head2 $tim->start

Starts the service.  After a stop it comes back with the same port,
certificates and ledger.  Options given here replace those of new().

=cut

sub start
{
	my ($self, %options) = @_;
	my $o = { %{ $self->{options} }, %options };
	my @args;

	foreach my $name (@value_options)
	{
		next unless defined $o->{$name};
		(my $option = "--$name") =~ tr/_/-/;
		push @args, $option, $_
		  foreach ref $o->{$name} ? @{ $o->{$name} } : $o->{$name};
	}
	push @args, '--http1' if $o->{http1};
	push @args, '--app', "$_:$o->{apps}{$_}"
	  foreach sort keys %{ $o->{apps} // {} };

	# A list, so that no shell sees the key.
	open my $out, '-|', $script, 'start', $self->{dir}, @args
	  or croak "cannot run $script: $!";
	while (my $line = <$out>)
	{
		$self->{env}{$1} = $2 if $line =~ /^(\w+)=(.*)$/;
	}
	close $out or croak "$script start failed";

	# END does not run for a process that is ended by a signal.
	foreach my $signal (qw(INT TERM HUP))
	{
		$SIG{$signal} ||= sub { die "death by SIG$_[0]\n"; };
	}
	$self->{pid} = $$;
	$running{$self} = $self;
	weaken $running{$self};
	return $self;
}

=head2 $tim->stop

=cut

sub stop
{
	my ($self) = @_;

	# A forked child must not stop what its parent started.
	return unless ($self->{pid} // 0) == $$;
	local $?;
	system($script, 'stop', $self->{dir}) == 0
	  or carp "$script stop failed";
	delete $self->{pid};
	delete $running{$self};
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	$self->stop;
	return;
}

END
{
	my $status = $?;
	$_->stop foreach grep { defined } values %running;
	$? = $status;
}

=head2 port, ca, key, sdkappid, identifier, ledger_file, dir

=cut

sub port { return $_[0]->{env}{PORT}; }
sub ca { return $_[0]->{env}{CA}; }
sub key { return $_[0]->{env}{KEY}; }
sub sdkappid { return $_[0]->{env}{SDKAPPID}; }
sub identifier { return $_[0]->{env}{IDENTIFIER}; }
sub ledger_file { return $_[0]->{env}{LEDGER}; }
sub dir { return $_[0]->{dir}; }

sub _control
{
	my ($self, $method, $path, $content) = @_;
	my $response = HTTP::Tiny->new(timeout => 30)->request(
		$method,
		$self->{env}{CONTROL} . $path,
		defined $content ? { content => $content } : {});

	croak "$method $path: $response->{status} $response->{content}"
	  unless $response->{success};
	return $response->{content};
}

=head2 $tim->rules([{kind => ..., ...}, ...])

Replaces the rules that decide what goes wrong.

=head2 $tim->clear_rules

=head2 $tim->stats

The counters, as a hash.

=head2 $tim->reset

Sets the counters to zero, also those of how often an account was seen.
Rules and ledger stay.

=cut

sub rules
{
	my ($self, $rules) = @_;
	$self->_control('POST', '/rules', JSON::PP->new->utf8->encode($rules));
	return;
}

sub clear_rules
{
	my ($self) = @_;
	$self->_control('DELETE', '/rules');
	return;
}

sub stats
{
	my ($self) = @_;
	return JSON::PP->new->utf8->decode($self->_control('GET', '/stats'));
}

sub reset
{
	my ($self) = @_;
	$self->_control('POST', '/reset', '');
	return;
}

=head2 $tim->ledger

All events so far, oldest first.

=cut

sub ledger
{
	my ($self) = @_;
	my $json = JSON::PP->new->utf8;

	open my $fh, '<', $self->ledger_file
	  or croak "cannot open ledger: $!";
	my @events = map { $json->decode($_) } <$fh>;
	close $fh;
	return @events;
}

=head2 $tim->accepted

What the service has processed: the "request" events, each with the fields of
its answer (task_id, failed, fault, ...), oldest first.

=cut

sub accepted
{
	my ($self) = @_;
	my (%request, @accepted);

	foreach my $event ($self->ledger)
	{
		if ($event->{event} eq 'request')
		{
			$request{ $event->{seq} } = $event;
		}
		elsif ($event->{event} eq 'answer' && $event->{delivered})
		{
			push @accepted, { %$event, %{ $request{ $event->{seq} } } };
		}
	}
	return @accepted;
}

sub _literal
{
	my ($value) = @_;
	$value =~ s/'/''/g;
	return $value =~ /\\/
	  ? "E'" . ($value =~ s/\\/\\\\/gr) . "'"
	  : "'$value'";
}

sub _options
{
	my ($options) = @_;
	return join ', ', map { "$_ " . _literal($options->{$_}) }
	  grep { defined $options->{$_} } sort keys %$options;
}

=head2 $tim->create_server_sql($name, %options)

The SQL that makes a foreign server for this service and its user mapping FOR
PUBLIC.  %options are options of either; an undefined one is left out.

=cut

sub create_server_sql
{
	my ($self, $name, %options) = @_;
	my %server = (
		sdkappid => $self->sdkappid,
		host => 'localhost:' . $self->port,
		ca_file => $self->ca,
		requests_per_second => 0);
	my %mapping = (identifier => $self->identifier);

	$mapping{secret_key} = $self->key
	  unless exists $options{secret_key_file} || exists $options{usersig};
	while (my ($option, $value) = each %options)
	{
		if ($mapping_option{$option})
		{
			$mapping{$option} = $value;
		}
		else
		{
			$server{$option} = $value;
		}
	}

	# either of the two says where the service is
	delete $server{host} if defined $options{region};

	$name =~ s/"/""/g;
	return
		qq{CREATE SERVER "$name" FOREIGN DATA WRAPPER timpush OPTIONS (}
	  . _options(\%server) . ");\n"
	  . qq{CREATE USER MAPPING FOR PUBLIC SERVER "$name" OPTIONS (}
	  . _options(\%mapping) . ");\n";
}

# The comparison of check_ledger, to be run in one session.  Every line of
# its output is a disagreement, preceded by the letter of its kind.
my $audit_sql = <<'SQL';
SET client_min_messages = warning;
SET client_encoding = 'UTF8';
SET search_path = :schema;
CREATE TEMP TABLE fake_line (line jsonb);
-- JSON holds neither of these two bytes, so a line is one value as it is.
\copy fake_line FROM LEDGER_FILE WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')
CREATE TEMP TABLE fake_accepted AS
	SELECT (q.line->>'seq')::bigint AS seq,
		   (q.line->>'msg_random')::bigint AS msg_random,
		   ARRAY(SELECT x FROM jsonb_array_elements_text(q.line->'accounts')
				 WITH ORDINALITY AS t(x, n) ORDER BY n) AS accounts,
		   ARRAY(SELECT x->>'account'
				 FROM jsonb_array_elements(a.line->'failed') AS x) AS failed
	FROM fake_line q JOIN fake_line a ON a.line->'seq' = q.line->'seq'
	WHERE q.line->>'event' = 'request' AND a.line->>'event' = 'answer'
	  AND (a.line->>'delivered')::boolean;
ANALYZE fake_accepted;

-- One row for every time that an account of a push was accepted.
CREATE TEMP TABLE fake_got AS
	SELECT f.seq, p.push_id, p.state, p.maybe_duplicate, x.account
	FROM fake_accepted f
		JOIN push_request r USING (msg_random)
		JOIN push_result p ON p.request_id = r.id
		CROSS JOIN LATERAL
			unnest(r.accounts[p.first : p.first + p.accounts - 1]) AS x(account)
	WHERE x.account <> ALL (f.failed);

SELECT format('a request %s (msg_random %s) is done, but the service did not accept it with these accounts',
			  r.id, r.msg_random)
FROM push_request r
WHERE r.state = 'done' AND coalesce(r.error_code, 0) = 0
  AND r.class IS DISTINCT FROM 'unknown'	-- in doubt, counted as sent by order
  AND NOT EXISTS (SELECT FROM fake_accepted f
				  WHERE f.msg_random = r.msg_random AND f.accounts = r.accounts)
ORDER BY r.id;

SELECT format('b the service accepted msg_random %s (seq %s), which no push_request has',
			  f.msg_random, f.seq)
FROM fake_accepted f
WHERE NOT EXISTS (SELECT FROM push_request r WHERE r.msg_random = f.msg_random)
ORDER BY f.seq;

SELECT format('c push %s, account %s was accepted %s times and is not marked maybe_duplicate',
			  push_id, account, count(DISTINCT seq))
FROM fake_got
GROUP BY push_id, account
HAVING count(DISTINCT seq) > 1 AND NOT bool_or(maybe_duplicate)
ORDER BY push_id, account;

SELECT format('d push %s: sent %s + failed %s + expired %s + cancelled %s + unknown %s + waiting %s are not its %s accounts',
			  push_id, sent, failed, expired, cancelled, unknown, waiting, accounts)
FROM push_status
WHERE (sent + failed + expired + cancelled + unknown + waiting = accounts) IS NOT TRUE
ORDER BY push_id;

-- The same from the rows themselves.  An account may be in several of them,
-- because one that failed for a while is sent again alone.
WITH account AS (
	SELECT p.push_id, x.account,
		   bool_and(p.state IN ('sent', 'partial', 'failed', 'expired',
								'cancelled', 'unknown')) AS final
	FROM push_result p
		JOIN push_request r ON r.id = p.request_id
		CROSS JOIN LATERAL
			unnest(r.accounts[p.first : p.first + p.accounts - 1]) AS x(account)
	GROUP BY p.push_id, x.account
), counted AS (
	SELECT push_id, count(*) FILTER (WHERE final) AS final
	FROM account GROUP BY push_id
), promised AS (
	SELECT push_id, min(push_accounts) AS least, max(push_accounts) AS most
	FROM push_result GROUP BY push_id
)
SELECT format('d push %s of %s accounts: %s have an outcome and %s wait',
			  push_id, p.most, coalesce(c.final, 0), s.waiting)
FROM promised p LEFT JOIN counted c USING (push_id)
	LEFT JOIN push_status s USING (push_id)
WHERE (p.least = p.most AND coalesce(c.final, 0) + s.waiting = p.most) IS NOT TRUE
ORDER BY push_id;

SELECT DISTINCT format('e push %s, account %s is %s, but the service accepted it',
					   push_id, account, state)
FROM fake_got
WHERE state IN ('expired', 'cancelled')
ORDER BY 1;
SQL

=head2 $tim->check_ledger($node, %options)

Compares the tables of a node at rest with the ledger and returns the list of
disagreements:

  a  a request is done without error, but the service has not accepted one
     with its msg_random and exactly its accounts in that order
  b  the service accepted a request that no push_request has
  c  an account of a push was accepted more than once, and no push_result of
     it says maybe_duplicate
  d  the accounts of a push do not add up
  e  an account that is expired or cancelled was accepted

Options: C<dbname>, by default postgres, may be a list, whose databases
together account for the ledger; C<schema> of the extension, by default public;
C<ledger>, a file to read instead of the service's own.

=cut

sub check_ledger
{
	my ($self, $node, %options) = @_;
	my $dbname = $options{dbname} // 'postgres';
	my @dbnames = ref $dbname ? @$dbname : ($dbname);
	my $schema = $options{schema} // 'public';
	my (@disagreements, %stranger);

	(my $file = $options{ledger} // $self->ledger_file) =~ s/'/''/g;
	$schema =~ s/"/""/g;
	(my $sql = $audit_sql) =~ s/LEDGER_FILE/'$file'/;
	$sql =~ s/:schema/"$schema"/;

	foreach my $db (@dbnames)
	{
		foreach my $line (split /\n/, $node->safe_psql($db, $sql))
		{
			if ($line =~ /^b /)
			{
				$stranger{$line}++;
			}
			else
			{
				push @disagreements, "$db: $line";
			}
		}
	}

	# A request is a stranger only if no database knows it.
	push @disagreements,
	  grep { $stranger{$_} == @dbnames } sort keys %stranger;
	return @disagreements;
}

=head2 $tim->ok_ledger($node, $name, %options)

check_ledger() as a test.

=cut

sub ok_ledger
{
	my ($self, $node, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is_deeply([ $self->check_ledger($node, %options) ], [], $name);
}

1;
