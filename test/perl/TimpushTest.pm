
=pod

=head1 NAME

TimpushTest - what the TAP tests with a server share

=head1 SYNOPSIS

  use TimpushTest;

  my $node = start_node('main', 'timpush.idle_exit' => '1s');
  my $id = push_id($node, "ARRAY['alice']", title => 'hello');
  settle($node);
  is(status($node, $id)->{state}, 'sent');

=cut

package TimpushTest;

use strict;
use warnings;

use Exporter qw(import);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(start_node set_config rows row push_id quote settle status
  requests errors server_state worker_pid wait_for_worker kill_worker
  wait_until requests_with log_lines);

my $json = JSON::PP->new->utf8;

=head1 FUNCTIONS

=head2 start_node($name, %settings)

A running cluster with timpush preloaded and created in the database postgres.
%settings are lines of postgresql.conf.

=cut

sub start_node
{
	my ($name, %settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init;
	%settings = (
		shared_preload_libraries => 'timpush',
		autovacuum => 'off',
		%settings);
	$node->append_conf('postgresql.conf', "$_ = '$settings{$_}'")
	  foreach sort keys %settings;
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION timpush');
	return $node;
}

=head2 set_config($node, %settings)

Changes settings of a running cluster; undef resets one.

=cut

sub set_config
{
	my ($node, %settings) = @_;

	foreach my $name (sort keys %settings)
	{
		$node->safe_psql('postgres',
			defined $settings{$name}
			? "ALTER SYSTEM SET $name = '$settings{$name}'"
			: "ALTER SYSTEM RESET $name");
	}
	$node->reload;
	return;
}

=head2 rows($node, $query, %options)

The rows of a query, each as a hash.  Options: dbname.

=cut

sub rows
{
	my ($node, $query, %options) = @_;
	my $out = $node->safe_psql(
		$options{dbname} // 'postgres',
		"SET client_encoding = 'UTF8'; SELECT row_to_json(r) FROM ($query) r"
	);

	return map { $json->decode($_) } split /\n/, $out;
}

=head2 row($node, $query, %options)

The only row of a query.

=cut

sub row
{
	my @rows = rows(@_);
	return $rows[0];
}

=head2 quote($text)

$text as a literal of SQL, undef as NULL.

=cut

sub quote
{
	my ($text) = @_;
	return 'NULL' unless defined $text;
	$text =~ s/'/''/g;
	return $text =~ s/\\/\\\\/g ? " E'$text'" : "'$text'";
}

=head2 push_id($node, $accounts, %options)

Enqueues a push by timpush_batch() and returns its id.  $accounts is one
account, a list of them, or SQL within C<\'...'>.  Options: from, title, descr,
further arguments of timpush_batch(), on_unknown, dbname.

=cut

sub push_id
{
	my ($node, $accounts, %options) = @_;
	my $dbname = delete $options{dbname} // 'postgres';
	my $on_unknown = delete $options{on_unknown};
	my $to =
		ref $accounts eq 'SCALAR' ? $$accounts
	  : ref $accounts
	  ? 'ARRAY[' . join(', ', map { quote($_) } @$accounts) . ']'
	  : 'ARRAY[' . quote($accounts) . ']';
	my %arguments = (
		from => 'administrator',
		title => 'title',
		descr => 'text',
		%options);
	my $sql = "SELECT timpush_batch(\"to\" => $to";

	$sql .= ", \"$_\" => " . quote($arguments{$_})
	  foreach sort keys %arguments;
	$sql = "SET timpush.on_unknown = $on_unknown; $sql" if $on_unknown;
	return $node->safe_psql($dbname, "$sql)");
}

=head2 settle($node, %options)

Waits until every push has its outcome; with C<where>, those of push_status
that it chooses.

=cut

sub settle
{
	my ($node, %options) = @_;
	my $where = $options{where} // 'true';
	my $dbname = $options{dbname} // 'postgres';

	$node->poll_query_until($dbname,
		"SELECT count(*) = 0 FROM push_status WHERE waiting > 0 AND ($where)")
	  or die "pushes are still waiting:\n"
	  . $node->safe_psql($dbname,
		"SELECT * FROM push_status WHERE waiting > 0 AND ($where) LIMIT 20");
	return;
}

=head2 status, requests, errors, server_state

The push's row of push_status; its requests, oldest first, each with what
push_result says in result_state, failed, retried and result_duplicate; its
rows of push_error; a server's row of push_server.

=cut

sub status
{
	my ($node, $id, %options) = @_;
	return row($node, "SELECT * FROM push_status WHERE push_id = $id",
		%options);
}

sub requests
{
	my ($node, $id, %options) = @_;
	return rows(
		$node,
		"SELECT q.*, r.first, r.accounts AS part, r.state AS result_state,
		  r.failed, r.retried, r.maybe_duplicate AS result_duplicate
		 FROM push_result r JOIN push_request q ON q.id = r.request_id
		 WHERE r.push_id = $id ORDER BY q.id", %options);
}

sub errors
{
	my ($node, $id, %options) = @_;
	return rows(
		$node,
		"SELECT * FROM push_error WHERE push_id = $id ORDER BY request_id, account",
		%options);
}

sub server_state
{
	my ($node, $server) = @_;
	return row($node, "SELECT * FROM push_server WHERE server = '$server'");
}

=head2 worker_pid($node, $dbname)

Process of the database's worker, '' if there is none.

=cut

sub worker_pid
{
	my ($node, $dbname) = @_;
	$dbname //= 'postgres';
	return $node->safe_psql(
		'template1',
		"SELECT pid FROM pg_stat_activity
		 WHERE backend_type = 'timpush worker' AND datname = '$dbname'");
}

=head2 wait_for_worker($node, $there)

Waits until there is a worker for postgres, or, if $there is false, none.

=cut

sub wait_for_worker
{
	my ($node, $there) = @_;
	my $compare = $there ? '=' : '<>';

	return $node->poll_query_until(
		'template1',
		"SELECT (SELECT count(*) FROM pg_stat_activity
				 WHERE backend_type = 'timpush worker' AND datname = 'postgres') $compare 1"
	);
}

=head2 kill_worker($node)

Kills the worker by SIGKILL, at which the cluster restarts, and waits until it
can be connected to again.  Needs restart_after_crash.

=cut

sub kill_worker
{
	my ($node) = @_;
	my $pid = worker_pid($node);

	die "there is no worker\n" unless $pid =~ /^\d+$/;
	my $seen = -s $node->logfile;
	kill 'KILL', $pid or die "could not kill $pid: $!\n";
	$node->wait_for_log(qr/database system is ready to accept connections/,
		$seen);
	return;
}

=head2 wait_until($condition, $what)

Waits until the function $condition returns true, and returns that.

=cut

sub wait_until
{
	my ($condition, $what) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $deadline)
	{
		my $result = $condition->();
		return $result if $result;
		sleep 0.02;
	}
	die "timed out waiting for $what\n";
}

=head2 requests_with($tim, $account)

The ledger's "request" events that carry the account, with the fields of their
answers, oldest first.

=cut

sub requests_with
{
	my ($tim, $account) = @_;
	my @found;
	my %found;

	foreach my $event ($tim->ledger)
	{
		if ($event->{event} eq 'request'
			&& grep { $_ eq $account } @{ $event->{accounts} })
		{
			$found{ $event->{seq} } = $event;
			push @found, $event;
		}
		elsif ($event->{event} eq 'answer' && $found{ $event->{seq} })
		{
			my $request = $found{ $event->{seq} };

			%$request = (%$event, %$request);
		}
	}
	return @found;
}

=head2 log_lines($node, $pattern)

The lines of the server's log that match.

=cut

sub log_lines
{
	my ($node, $pattern) = @_;
	return grep { /$pattern/ } split /\n/, slurp_file($node->logfile);
}

1;
