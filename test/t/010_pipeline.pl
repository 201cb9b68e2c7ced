
# From SQL to TaskId: every way to enqueue a push, and what of it arrives.

use strict;
use warnings;
use utf8;

use Compress::Zlib qw(uncompress);
use JSON::PP;
use MIME::Base64 qw(decode_base64);
use PostgreSQL::Test::Cluster;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main', 'timpush.idle_exit' => '1s');

# As characters in, as characters out.
sub in_utf8
{
	my ($text) = @_;
	utf8::encode($text);
	return $text;
}

$node->safe_psql('postgres', $tim->create_server_sql('chat'));

# Cold: the worker that looked at the new server found nothing and has left.
wait_for_worker($node, 0);
set_config($node, 'timpush.idle_exit' => '1min');
my $first = push_id($node, 'alice', title => 'first');
settle($node);
is(status($node, $first)->{state}, 'sent', 'a push starts the worker');
my $pid = worker_pid($node);
like($pid, qr/^\d+$/, 'one worker serves the database');

# Warm, and all that a body can carry
my $title = in_utf8(qq{Größe "quoted" \\ back\\slash 推送 \x{1F680}});
my $text = in_utf8("line one\nline two\ttab 'apostrophe'");
my $extra = in_utf8(<<'JSON');
{"OfflinePushInfo": {"PushFlag": 0, "Ext": {"page": "order/1", "名": [1, null]},
  "ApnsInfo": {"BadgeMode": 1, "Sound": "a.caf"}, "AndroidInfo": {"PushStyle": 1},
  "NewerField": "passed on"},
 "Classification": 1, "OfflineStorageTime": 86400, "TaskName": "task"}
JSON
my $full = push_id(
	$node,
	[ 'bob', in_utf8('用户 3'), 'a"b\c' ],
	from => 'sender-1',
	title => $title,
	descr => $text,
	data_id => 'order-17',
	extra => $extra);
settle($node);
is(worker_pid($node), $pid, 'the same worker sends the next push');

my ($got) = requests_with($tim, 'bob');
my ($request) = requests($node, $full);
is_deeply(
	[ map { in_utf8($_) } @{ $got->{accounts} } ],
	[ 'bob', in_utf8('用户 3'), 'a"b\c' ],
	'accounts arrive in order and unharmed');
is(in_utf8($got->{title}), $title, 'title arrives unharmed');
is(in_utf8($got->{desc}), $text, 'text arrives unharmed');
is($got->{from}, 'sender-1', 'sender arrives');
is($got->{data_id}, 'order-17', 'DataId arrives');
is($got->{app}, $tim->sdkappid, 'it is the app of the server');
ok($got->{ext_ok}, 'an object given for Ext is JSON text in the body');
is_deeply($got->{unknown_fields},
	['NewerField'], 'a field that nobody knows yet is passed on');
is($got->{protocol}, 'HTTP/2.0', 'over HTTP/2');
is($got->{msg_random}, $request->{msg_random}, 'MsgRandom is the journal\'s');
is($request->{task_id}, $got->{task_id}, 'TaskId is the service\'s');
is_deeply(
	status($node, $full)->{task_ids},
	[ $got->{task_id} ],
	'push_status shows it');
is_deeply(
	[ @$request{qw(state attempts resends http_status error_code class)} ],
	[ 'done', 1, 0, 200, 0, 'sent' ],
	'the journal has the outcome');
ok(!$request->{in_doubt} && !$request->{maybe_duplicate},
	'and there is no doubt');
ok( $request->{first_sent_at}
	  && $request->{finished_at}
	  && $request->{latency},
	'and when it was');

# Some accounts fail
my $partial = push_id($node, [ 'carol', 'nobody-1', 'dave', 'nobody-2' ]);
settle($node);
my $status = status($node, $partial);
is_deeply(
	[ @$status{qw(state accounts sent failed waiting error_code)} ],
	[ 'partial', 4, 2, 2, 0, 70107 ],
	'accounts that do not exist fail, the others are sent');
is_deeply(
	[ map { [ @$_{qw(account error_code class)} ] } errors($node, $partial) ],
	[
		[ 'nobody-1', 70107, 'bad-request' ],
		[ 'nobody-2', 70107, 'bad-request' ]
	],
	'push_error names them');
is((requests($node, $partial))[0]->{result_state},
	'partial', 'push_result says so');
is(status($node, push_id($node, 'nobody-3'))->{accounts}, 1, 'one alone');
settle($node);
is( $node->safe_psql(
		'postgres',
		"SELECT state FROM push_status s JOIN push_error e USING (push_id)
		 WHERE account = 'nobody-3'"),
	'failed',
	'a push of which no account exists has failed');

# A plain INSERT and a trigger are as good as the function.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE orders (id integer, customer_id text, summary text);
CREATE TRIGGER notify_customer AFTER INSERT ON orders FOR EACH ROW
  EXECUTE FUNCTION timpush_enqueue('from=#administrator', 'to=customer_id',
    'title=#Order received', 'descr=summary', 'data_id=id');
CREATE TABLE teams (members text[], news text);
CREATE TRIGGER notify_team AFTER INSERT OR UPDATE ON teams FOR EACH ROW
  EXECUTE FUNCTION timpush_enqueue('from=#administrator', 'to=members',
    'title=news', 'descr=#see inside');
INSERT INTO push_outbox (from_account, to_accounts, title, descr)
  VALUES ('administrator', ARRAY['erin'], 'plain', 'insert');
INSERT INTO orders VALUES (4711, 'frank', 'two books');
INSERT INTO teams VALUES (ARRAY['grace', 'heidi'], 'old news');
UPDATE teams SET news = 'new news';
SQL
settle($node);
($got) = requests_with($tim, 'erin');
is_deeply(
	[ @$got{qw(title desc)} ],
	[ 'plain', 'insert' ],
	'a plain INSERT is sent');
($got) = requests_with($tim, 'frank');
is_deeply(
	[ @$got{qw(title desc data_id)} ],
	[ 'Order received', 'two books', '4711' ],
	'a trigger sends the row');

# calls in flight together arrive in any order
is_deeply(
	[ sort map { $_->{title} } requests_with($tim, 'heidi') ],
	[ 'new news', 'old news' ],
	'a column of accounts, by INSERT and by UPDATE');

# timpush_wait() in a session of its own
my $waited = push_id($node, 'slow-300-ivan');
is( $node->safe_psql(
		'postgres', "SELECT state, sent FROM timpush_wait($waited)"),
	'sent|1',
	'timpush_wait() returns the outcome');

# What timpush_preview() shows is what is sent.
set_config($node, 'timpush.enabled' => 'off');
wait_for_worker($node, 0);
my $seen = push_id($node, 'judy', title => 'preview', data_id => 'p-1');
my $preview = row(
	$node,
	"SELECT b->'To_Account' AS to, b->'OfflinePushInfo'->>'Title' AS title,
	   b->>'DataId' AS data_id
	 FROM (SELECT jsonb_path_query(timpush_preview($seen), 'lax \$[*]') AS b) x"
);
is_deeply(
	$preview,
	{ to => ['judy'], title => 'preview', data_id => 'p-1' },
	'timpush_preview() shows the body');
is(status($node, $seen)->{state}, 'waiting', 'and sends nothing');
set_config($node, 'timpush.enabled' => undef);
settle($node);

# A database in another encoding, with a service whose ledger it can read
my $latin = in_utf8('Größe');
my $latin_tim = FakeTIM->new(identifier => $latin)->start;
$node->safe_psql('postgres',
	"CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
$node->safe_psql('latin',
	"SET client_encoding = 'UTF8'; CREATE EXTENSION timpush;"
	  . $latin_tim->create_server_sql('latin'));
$node->safe_psql(
	'latin', "SET client_encoding = 'UTF8';
	SELECT timpush_batch('administrator', ARRAY['$latin', 'nobody-$latin'], '$latin', '')"
);
settle($node, dbname => 'latin');
($got) = requests_with($latin_tim, 'Größe');
is($got->{title}, 'Größe', 'another encoding arrives as UTF-8');
is( $node->safe_psql(
		'latin',
		"SET client_encoding = 'UTF8'; SELECT account FROM push_error"),
	"nobody-$latin",
	'and what comes back is found again');
is(status($node, 1, dbname => 'latin')->{maybe_duplicate},
	0, 'at the first attempt');
(   my $usersig = $node->safe_psql(
		'latin',
		"SET client_encoding = 'UTF8'; SELECT timpush_usersig('$latin')")
) =~ tr{*\-_}{+/=};
is( JSON::PP->new->utf8->decode(uncompress(decode_base64($usersig)))
	  ->{'TLS.identifier'},
	'Größe', 'a UserSig is made for a name in UTF-8');

$tim->ok_ledger($node, 'tables and ledger agree');
$latin_tim->ok_ledger($node, 'also in the other encoding', dbname => 'latin');
$node->stop;
done_testing();
