
# What an administrator is told when something is missing: the library, the
# extension, connections, rights of the owner, a user mapping.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FakeTIM;
use TimpushTest;

my $tim = FakeTIM->new->start;
my $node = start_node(
	'main',
	shared_preload_libraries => '',
	'timpush.idle_exit' => '1s');
my $enqueue =
  q(SELECT timpush_batch('administrator', '{%s}', 'title', 'text') > 0);

# What psql says to a statement, with SQLSTATE
sub complaint
{
	my ($sql, $dbname) = @_;
	my $err = '';

	$node->psql(
		$dbname // 'postgres', $sql,
		stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	$err =~ s/^psql:\S+ |^LOCATION:.*\n?//mg;
	chomp $err;
	return $err;
}

sub enqueue
{
	my ($account, $dbname) = @_;
	return complaint(sprintf($enqueue, $account), $dbname);
}

#
# Not preloaded
#
$node->safe_psql('postgres', $tim->create_server_sql('chat'));
is( enqueue('early'),
	qq(WARNING:  55000: push is enqueued, but nothing sends it, because timpush is not preloaded\n)
	  . 'HINT:  Add timpush to shared_preload_libraries and restart the server.',
	'not preloaded: a warning');
is($node->safe_psql('postgres', 'SELECT state FROM push_status'),
	'waiting', 'and the push waits');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'timpush'");
$node->restart;
settle($node);
is($node->safe_psql('postgres', 'SELECT state FROM push_status'),
	'sent', 'until it is preloaded');

#
# Preloaded, but not created
#
$node->safe_psql('postgres', 'CREATE DATABASE empty');
like(
	enqueue('u1', 'empty'),
	qr/ERROR:  42883: function timpush_batch\(.*\) does not exist/,
	'not created: the function is not there');
is( complaint(
		q(CREATE SERVER chat FOREIGN DATA WRAPPER timpush OPTIONS (sdkappid '1', region 'china')),
		'empty'),
	'ERROR:  42704: foreign-data wrapper "timpush" does not exist',
	'nor the wrapper');
is(scalar log_lines($node, qr/timpush: .*"empty"/),
	0, 'and the log has nothing of it');

#
# A database that takes no connections, but still has one
#
$node->safe_psql('postgres', 'CREATE DATABASE closed');
$node->safe_psql('closed',
	'CREATE EXTENSION timpush; ' . $tim->create_server_sql('chat'));
$node->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'closed'");
my $session = $node->background_psql('closed', on_error_stop => 1);
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS false');
$session->query_safe(sprintf $enqueue, 'closed');
wait_until(
	sub {
		log_lines($node,
			qr/LOG:  timpush: database "closed" does not allow connections, so nothing is sent/
		);
	},
	'the log to say so');
is(enqueue('meanwhile'), '', 'other databases are not affected');
settle($node);
is($session->query_safe('SELECT state FROM push_status'),
	'waiting', 'a push waits where no worker can connect');
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS true');
settle($node, dbname => 'closed');
pass('and is sent when one can');
is(scalar log_lines($node, qr/FATAL:  database "closed" is not/),
	0, 'which is not tried before');
$session->quit;

#
# The role that created the extension
#
$node->safe_psql('postgres', 'CREATE ROLE founder LOGIN SUPERUSER');
$node->safe_psql('postgres', 'CREATE DATABASE founded');
$node->safe_psql('founded',
		'SET ROLE founder; CREATE EXTENSION timpush; '
	  . $tim->create_server_sql('chat')
	  . 'RESET ROLE; ALTER ROLE founder NOSUPERUSER NOLOGIN');
is(enqueue('demoted', 'founded'), '', 'an owner is demoted');
settle($node, dbname => 'founded');
is($node->safe_psql('founded', 'SELECT state FROM push_status'),
	'sent', 'his extension goes on');
like(
	complaint('DROP ROLE founder', 'founded'),
	qr/ERROR:  2BP01: role "founder" cannot be dropped because some objects depend on it\nDETAIL:  .*owner of extension timpush/s,
	'he cannot be dropped');
$node->safe_psql('founded', 'ALTER SERVER chat OWNER TO CURRENT_USER');
like(
	complaint('DROP OWNED BY founder', 'founded'),
	qr/ERROR:  2BP01: cannot drop/,
	'nor what he owns, while there are servers of others');
like(
	complaint(
		'CREATE ROLE heir; REASSIGN OWNED BY founder TO heir', 'founded'),
	qr/ERROR:  42501: permission denied to change owner of foreign-data wrapper "timpush"\nHINT:  The owner of a foreign-data wrapper must be a superuser./,
	'only a superuser inherits all of it');
is( complaint(
		'ALTER ROLE heir SUPERUSER; REASSIGN OWNED BY founder TO heir; DROP ROLE founder',
		'founded'),
	'',
	'who then does');
is(enqueue('inherited', 'founded'), '', 'the extension of the heir');
settle($node, dbname => 'founded');
is( $node->safe_psql(
		'founded',
		'SELECT string_agg(DISTINCT state, \' \') FROM push_status'),
	'sent', 'sends');

# One table alone is given away.
$node->safe_psql('founded',
	'CREATE ROLE other; ALTER ROLE heir NOSUPERUSER; ALTER TABLE push_request OWNER TO other'
);
is(enqueue('refused', 'founded'), '', 'a push by owners that differ');
wait_until(
	sub { log_lines($node, qr/permission denied for table push_request/) },
	'the worker to say what is wrong');
is($node->safe_psql('founded', 'SELECT count(*) FROM push_outbox'),
	1, 'it waits, and the log says what is wrong');
$node->safe_psql('founded', 'ALTER TABLE push_request OWNER TO heir');
settle($node, dbname => 'founded');
pass('and is sent when that is put right');

#
# No user mapping, or not the right one
#
$node->safe_psql('postgres',
	'DROP USER MAPPING FOR PUBLIC SERVER chat; CREATE USER MAPPING FOR CURRENT_USER SERVER chat OPTIONS (identifier \'a\', secret_key \'k\')'
);
is(enqueue('unmapped'), '', 'no mapping FOR PUBLIC');
$node->poll_query_until('postgres',
	"SELECT state = 'suspended' FROM push_server WHERE server = 'chat'");
is( $node->safe_psql(
		'postgres', 'SELECT error_info FROM push_status WHERE waiting > 0'),
	'server "chat" has no user mapping for PUBLIC',
	'the push says so');
is( complaint(q(SELECT timpush_usersig('u1'))),
	qq(ERROR:  HV00M: cannot make a UserSig: server "chat" has no user mapping for PUBLIC\n)
	  . 'HINT:  Set secret_key_file or secret_key in the user mapping FOR PUBLIC of the server.',
	'and so does who wants to sign');
$node->safe_psql('postgres',
	"CREATE USER MAPPING FOR PUBLIC SERVER chat OPTIONS (identifier 'administrator', secret_key '"
	  . $tim->key
	  . "')");
settle($node);
pass('with one it is sent');

is(scalar log_lines($node, qr/terminated by signal/), 0, 'nothing crashed');
$tim->ok_ledger(
	$node,
	'tables and ledger agree',
	dbname => [qw(postgres closed founded)]);
$node->stop;
done_testing();
