
# The worker stays as large as it is, whatever it has done: no file, no socket
# and no memory is left from pushes that are through.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use FakeTIM;
use TimpushTest;

# After the first in all ways, the worker has all that it needs.
my $rounds = $ENV{TIMPUSH_LONG} ? 10 : 3;
my $limit_kb = 5 * 1024;

my $tim = FakeTIM->new(workers => 1)->start;
my %restless =
  map { $_ => FakeTIM->new(http1 => $_, keepalive_requests => 5)->start } 0,
  1;
my $node = start_node('main', 'timpush.idle_exit' => '1h');

$node->safe_psql('postgres',
		$tim->create_server_sql('chat')
	  . $tim->create_server_sql('altered')
	  . $tim->create_server_sql('troubled')
	  . $restless{0}->create_server_sql('restless')
	  . $restless{1}->create_server_sql('old'));

my @servers = qw(chat altered troubled restless old);

# $n pushes, numbered on from the last ones; their accounts and titles are SQL
my $last = 0;

sub enqueue
{
	my ($server, $n, $accounts, $title, $more) = @_;

	$more //= '';
	$node->safe_psql(
		'postgres',
		"SELECT count(timpush_batch('administrator', $accounts, $title, 'text', server => '$server'$more))
		FROM generate_series($last + 1, $last + $n) n");
	$last += $n;
	return;
}

sub wait_for_rest
{
	$node->poll_query_until(
		'postgres',
		"SELECT NOT EXISTS (SELECT FROM push_outbox)
			AND NOT EXISTS (SELECT FROM push_request WHERE state IN ('sending', 'retry'))"
	) or die "pushes are still waiting\n";
	return;
}

# All ways to send; the numbers of the pushes add up to $total.
sub work
{
	my ($total) = @_;
	my %kb;
	my %ways = (
		'distinct' => sub {
			enqueue(
				'chat',
				$total * 0.3,
				"ARRAY['user-' || n]",
				"'title ' || n");
		},
		'merged' => sub {
			enqueue('chat', $total * 0.3, "ARRAY['user-' || n]", "'news'");
		},
		'of one account and many contents' => sub {
			enqueue(
				'chat',
				$total * 0.1,
				"ARRAY['user-' || n % 10]",
				"'title ' || n");
		},
		'scheduled, of all priorities, expired' => sub {
			enqueue(
				'chat',
				$total * 0.05,
				"ARRAY['user-' || n]",
				"'title ' || n",
				", priority => n % 10, send_at => now() + n % 20 * interval '100 ms'"
			);
			enqueue(
				'chat',
				$total * 0.02,
				"ARRAY['user-' || n]",
				"'title ' || n",
				", send_at => now() + interval '900 ms', expires_at => now() + interval '901 ms'"
			);
		},
		'large' => sub {
			enqueue(
				'chat',
				$total * 0.002,
				"(SELECT array_agg('user-' || n || '-' || a) FROM generate_series(1, 2000) a)",
				"'large'");
		},
		'failed in part, as a whole, for a while' => sub {
			enqueue(
				'troubled',
				$total * 0.02,
				"ARRAY['nobody-' || n, 'acctN-70169-1-' || n, 'user-' || n]",
				"'title ' || n");
			enqueue(
				'troubled',
				$total * 0.02,
				"ARRAY['code-90001-' || n]",
				"'title ' || n / 5");
			enqueue(
				'troubled',
				$total * 0.02,
				"ARRAY[CASE n % 20 WHEN 0 THEN 'first1-garbage-' || n WHEN 10 THEN 'first1-code-60014-' || n ELSE 'user-' || n END, 'b-' || n]",
				"'title ' || n");
		},
		'over connections that end' => sub {
			enqueue($_, $total * 0.07, "ARRAY['user-' || n]", "'title ' || n")
			  foreach qw(restless old);
		},
		'to servers that are altered' => sub {
			foreach my $i (1 .. $total * 0.004)
			{
				$node->safe_psql(
					'postgres',
					"ALTER SERVER altered OPTIONS (SET requests_per_second '"
					  . $i % 2 * 1000 . "');
					 ALTER SERVER altered OPTIONS (ADD request_timeout '"
					  . (5 + $i % 2) . "s')");
				enqueue('altered', 5, "ARRAY['user-' || n]", "'title ' || n");
				$node->safe_psql('postgres',
					'ALTER SERVER altered OPTIONS (DROP request_timeout)');
			}
		},);

	foreach my $way (sort keys %ways)
	{
		my $began = time;

		$ways{$way}->();
		wait_for_rest();
		note sprintf '%s: %.1f s, %d kB', $way, time - $began, memory();
	}
	return;
}

my $worker;

# Memory of the worker that no file and no other process has a part in, in kB
sub memory
{
	$worker //= worker_pid($node);
	my ($kb) =
	  slurp_file("/proc/$worker/smaps_rollup") =~ /^Anonymous:\s+(\d+) kB/m;
	return $kb;
}

# What of it is in use, by PostgreSQL's own account, in kB
sub used
{
	my $seen = -s $node->logfile;

	$node->safe_psql('postgres',
		"SELECT pg_log_backend_memory_contexts($worker)");
	$node->wait_for_log(qr/Grand total: .*/, $seen);
	my ($bytes) =
	  substr(slurp_file($node->logfile), $seen) =~
	  /Grand total: .* (\d+) used/;
	return int $bytes / 1024;
}

sub sockets
{
	return
	  grep { (readlink($_) // q()) =~ m{socket} } glob "/proc/$worker/fd/*";
}

# Its open files, after it has left the connections to all servers
sub files
{
	my %count;

	$node->safe_psql('postgres',
		"ALTER SERVER $_ OPTIONS (ADD connect_timeout '2s')")
	  foreach @servers;
	foreach my $server (@servers)
	{
		enqueue($server, 1, "ARRAY['user-' || n]", "'title ' || n");
		settle($node,
			where => 'push_id = (SELECT max(push_id) FROM push_result)');
	}
	cmp_ok(scalar sockets(), '>', 0, 'there are connections');
	$node->safe_psql('postgres',
		"ALTER SERVER $_ OPTIONS (DROP connect_timeout)")
	  foreach @servers;
	wait_until(sub { !sockets() }, 'connections to be left');
	foreach my $fd (glob "/proc/$worker/fd/*")
	{
		my $target = readlink $fd // next;

		# a table gets those as it grows
		$count{ $target =~ s/\d+/N/gr }++ if $target !~ /_(?:fsm|vm)$/;
	}
	return \%count;
}

# As many accounts in flight at once as there can be
enqueue('chat', 40_000, "ARRAY['user-' || n]", "'news'");
enqueue(
	'chat',
	100,
	"(SELECT array_agg('user-' || n || '-' || a) FROM generate_series(1, 2000) a)",
	"'large'");
wait_for_rest();
work(10_000);
my $files = files();
my ($memory, $used) = (memory(), used());
foreach my $round (2 .. $rounds)
{
	work(10_000);
	note sprintf 'after %d pushes: %d kB', $last, memory();
}
my $files_then = files();
my ($memory_then, $used_then) = (memory(), used());

is(worker_pid($node), $worker, 'it is still the same worker');
cmp_ok(
	$used_then - $used,
	'<',
	$limit_kb / 5,
	"memory in use before and after: $used kB, $used_then kB");
cmp_ok($memory_then - $memory,
	'<', $limit_kb,
	"private memory before and after: $memory kB, $memory_then kB");
is_deeply($files_then, $files, 'the same open files');

$node->stop;
done_testing();
