use strict; use warnings;
use PostgreSQL::Test::Cluster; use PostgreSQL::Test::Utils; use Test::More; use Time::HiRes qw(time sleep);
use FakeTIM; use TimpushTest;
my $node = start_node('main');
sub run_case {
	my ($name, $n, $sopt, %fopt) = @_;
	my $tim = FakeTIM->new(%fopt);
	$tim->start;
	system("sed -i 's/error.log\" warn/error.log\" info/' " . $tim->dir . "/nginx.conf");
	system("nginx -p ".$tim->dir." -c ".$tim->dir."/nginx.conf -e ".$tim->dir."/error.log -s reload");
	sleep 1;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, 'CREATE EXTENSION timpush;' . $tim->create_server_sql($name, %$sopt));
	my $t = time;
	$node->safe_psql($name, "SELECT count(timpush_batch('administrator', ARRAY['user-' || n], 'title ' || n, 'text')) FROM generate_series(1, $n) n");
	my $e = time;
	my $ok = $node->poll_query_until($name, "SELECT count(*) = 0 FROM push_outbox") && 
	 $node->poll_query_until($name, "SELECT count(*) = 0 FROM push_request WHERE state IN ('sending','retry')");
	my $d = time - $e;
	diag sprintf("%s: enqueue %.1f, %d in %.1f s (ok %d)", $name, $e-$t, $n, $d, $ok//0);
	diag $node->safe_psql($name, "SELECT state, class, http_status, attempts, resends, maybe_duplicate, left(error_info,150), count(*) FROM push_request GROUP BY 1,2,3,4,5,6,7 ORDER BY 8 DESC LIMIT 20");
	my $st = $tim->stats; diag explain($st);
	diag `grep -c REFUSED @{[$tim->dir]}/error.log`; diag `cut -c21- @{[$tim->dir]}/error.log | sed 's/[0-9][0-9]*/N/g' | sort | uniq -c | sort -rn | head -20`;
	diag explain([ $tim->check_ledger($node, dbname=>$name) ]);
}
for my $c (split /;/, 'goaway;streams;h1') {
	run_case('goaway', 20000, {}, keepalive_requests => 100) if $c eq 'goaway';
	run_case('streams', 3000, {max_in_flight=>64}, max_streams => 4) if $c eq 'streams';
	run_case('preread', 3000, {}, preread => 1024, keepalive_requests=>50) if $c eq 'preread';
	run_case('h1', 20000, {}, http1 => 1, keepalive_requests => 100) if $c eq 'h1';
}
ok 1;
done_testing();
