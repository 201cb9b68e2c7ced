
# Pushes that live for a while: sent before their end, or never.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(time);

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node('main');

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub in_seconds
{
	return scalar(gmtime(time + $_[0])) . ' UTC';
}

sub seen
{
	return scalar requests_with($tim, $_[0]);
}

sub state_of
{
	return status($node, $_[0])->{state};
}

sql(    $tim->create_server_sql('chat')
	  . $tim->create_server_sql('doubt')
	  . $tim->create_server_sql('slow', requests_per_second => 2)
	  . "SELECT timpush_pause('doubt')");

# A call is in doubt although it arrived.  One of its pushes expires before it
# goes again; the other one is refused from then on, until it expires as well.
$tim->rules(
	[
		{ kind => 'reset-after', account => 'doubt', count => 1 },
		{ kind => 'code', arg => 91000, account => 'doubt' },
	]);
my ($soon, $later) = map {
	push_id(
		$node, "doubt-$_",
		server => 'doubt',
		title => 'doubt',
		expires_at => in_seconds($_))
} 4, 12;
my $doubt_began = time;
sql("SELECT timpush_resume('doubt')");

# On a slow server some expire in the queue and some do not.
my @ids = map {
	push_id(
		$node, "queue-$_",
		server => 'slow',
		title => "queue $_",
		expires_at => in_seconds(4))
} 1 .. 14;
settle($node, where => "server = 'slow'");
my %state = map { $_ => state_of($ids[ $_ - 1 ]) } 1 .. 14;
my @sent = grep { $state{$_} eq 'sent' } 1 .. 14;
my @expired = grep { $state{$_} eq 'expired' } 1 .. 14;
is(@sent + @expired, 14, 'each is sent or expires');
cmp_ok(scalar @sent, '>=', 2, 'some are sent');
cmp_ok(scalar @expired, '>=', 2, 'some expire');
is_deeply([ grep { seen("queue-$_") != 1 } @sent ],
	[], 'what is sent was sent once');
is_deeply([ grep { seen("queue-$_") } @expired ],
	[], 'what has expired was not');
my %expiry = map { $_->{push_id} => $_->{expiry} } rows($node,
	'SELECT DISTINCT push_id, extract(epoch FROM expires_at) AS expiry FROM push_result'
);
is_deeply(
	[
		grep {
			(requests_with($tim, "queue-$_"))[0]{time} / 1e6 >
			  $expiry{ $ids[ $_ - 1 ] } + 0.5
		} @sent
	],
	[],
	'nothing was sent after its time');
ok( $node->poll_query_until(
		'postgres',
		"SELECT bool_and(finished_at >= expires_at AND finished_at < expires_at + interval '30 s')
		 FROM push_result WHERE state = 'expired'"),
	'the outcome is there when the time is over');

# The life of a push that names no end begins when it may be sent.
sub ttl
{
	my ($ttl, $account, %options) = @_;
	my $send_at = $options{send_at} ? ", send_at => '$options{send_at}'" : '';
	return sql(
		"SET timpush.default_ttl = '$ttl'; SELECT timpush_batch('administrator', '{$account}',
		   '$account', 'text', server => 'chat'$send_at)");
}

sql("SELECT timpush_pause('chat')");
my $short = ttl('1s', 'short');
my $for_ever = ttl(0, 'for-ever');
my $scheduled = ttl('3s', 'scheduled', send_at => in_seconds(5));
is(sql("SELECT expires_at IS NULL FROM push_outbox WHERE id = $for_ever"),
	't', 'without a default a push lives for ever');
settle($node, where => "push_id = $short");
is(state_of($short), 'expired', 'the default counts from now');
sql("SELECT timpush_resume('chat')");
settle($node, where => "server = 'chat'");
is(state_of($for_ever), 'sent', 'what lives longer is sent');
is(state_of($scheduled), 'sent', 'the default counts from the time to send');
is(seen('short'), 0, 'what has expired was not sent');

settle($node);
$tim->clear_rules;
is(state_of($soon), 'unknown', 'what expires in doubt ends in doubt');
is(state_of($later), 'unknown',
	'and so does what was in doubt before it was refused');
cmp_ok(seen('doubt-12'), '>=', 2, 'although it went again');
is(seen('doubt-4'), 1, 'without the one that had expired');
is( sql("SELECT finished_at < enqueued_at + interval '5 s' FROM push_status WHERE push_id = $soon"
	),
	't',
	'which ended in its time') if time - $doubt_began < 60;

$tim->ok_ledger($node, 'tables and ledger agree');
$node->stop;
done_testing();
