
=pod

=head1 NAME

RawPeer - a TLS peer that says whatever a test wants

=head1 SYNOPSIS

  use RawPeer;

  my $port = RawPeer->new($tim);	# HTTP/2
  ... $port->port ...
  my $peer = $port->accept;
  my $stream = $peer->next_request;
  like($peer->body($stream), qr/alice/);
  $peer->frame(RawPeer::RST_STREAM, 0, $stream, pack('N', 7));
  $peer->answer($peer->next_request, '{"ErrorCode":0}');
  $peer->kill;

A web server does not break the rules on command, nor in a given order.  Behind
each connection here is openssl's server, with its ends in our hands: the test
reads the frames of HTTP/2 that come and writes those that go.  With C<alpn> of
http/1.1, read_http1() and write() are used instead.

=cut

package RawPeer;

use strict;
use warnings;

use Carp;
use IO::Select;
use IO::Socket::INET;
use IPC::Open2;
use POSIX ();
use PostgreSQL::Test::Cluster ();
use Time::HiRes qw(sleep time);

use constant {
	DATA => 0,
	HEADERS => 1,
	RST_STREAM => 3,
	SETTINGS => 4,
	PING => 6,
	GOAWAY => 7,
	END_STREAM => 1,
	END_HEADERS => 4,
	ACK => 1,
};

my $preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
my %running;

=head1 METHODS

=head2 RawPeer->new($tim, %options)

Listens on a port of its own, with the certificate of the stand-in $tim.
Options: alpn (by default h2).

=head2 $port->port

=cut

sub new
{
	my ($class, $tim, %options) = @_;
	my $socket = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		Listen => 16) or croak "could not listen: $!";

	return bless {
		tim => $tim,
		socket => $socket,
		alpn => $options{alpn} // 'h2'
	}, $class;
}

sub port { return $_[0]{socket}->sockport; }

=head2 $port->accept(%options)

The next connection.  Options: settings, a hash of what its first frame tells.

=cut

sub accept
{
	my ($port, %options) = @_;
	my $private = PostgreSQL::Test::Cluster::get_free_port();
	my $tim = $port->{tim};

	croak 'nobody connects'
	  unless IO::Select->new($port->{socket})->can_read(60);
	my $client = $port->{socket}->accept or croak "could not accept: $!";
	my $self = bless {
		buffer => '',
		body => {},
		settings => $options{settings} // {}
	  },
	  ref $port;

	my $server = open2(
		$self->{out}, $self->{in},
		'openssl', 's_server',
		'-quiet', '-accept',
		$private, '-naccept',
		1, '-alpn',
		$port->{alpn}, '-cert',
		$tim->dir . '/server.crt', '-key',
		$tim->dir . '/server.key');
	$self->{pids} = [$server];
	$running{$server} = 1;
	binmode $self->{$_} foreach qw(in out);
	my $deadline = time + 30;
	my $tls;

	until ($tls = IO::Socket::INET->new("127.0.0.1:$private"))
	{
		croak "nobody listens on port $private" if time > $deadline;
		sleep 0.01;
	}

	my $pump = fork // croak "could not fork: $!";
	_pump($client, $tls) unless $pump;
	unshift @{ $self->{pids} }, $pump;
	$running{$pump} = 1;
	return $self;
}

# Carries bytes both ways until one of the two is gone; never returns.
sub _pump
{
	my @ends = @_;
	my $select = IO::Select->new(@ends);

	$SIG{PIPE} = 'IGNORE';
	while (1)
	{
		foreach my $from ($select->can_read)
		{
			my $to = $ends[ $from == $ends[0] ? 1 : 0 ];

			sysread $from, my ($bytes), 65536 or POSIX::_exit(0);
			while (length $bytes)
			{
				my $n = syswrite $to, $bytes or POSIX::_exit(0);
				substr($bytes, 0, $n) = '';
			}
		}
	}
}

=head2 $peer->write($bytes), $peer->read($n)

=cut

sub write
{
	my ($self, $bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';

	while (length $bytes)
	{
		my $n = syswrite $self->{in}, $bytes or croak "could not write: $!";
		substr($bytes, 0, $n) = '';
	}
	return;
}

sub _fill
{
	my ($self) = @_;
	my $ready = '';

	vec($ready, fileno $self->{out}, 1) = 1;
	croak 'nothing comes' unless select $ready, undef, undef, 60;
	sysread $self->{out}, $self->{buffer}, 65536, length $self->{buffer}
	  or croak 'the client is gone';
	return;
}

sub read
{
	my ($self, $n) = @_;

	$self->_fill while length $self->{buffer} < $n;
	return substr $self->{buffer}, 0, $n, '';
}

=head2 $peer->read_http1

The first line and the body of the next request of HTTP/1.1.

=cut

sub read_http1
{
	my ($self) = @_;

	$self->_fill until $self->{buffer} =~ /\r\n\r\n/;
	my ($head) = $self->{buffer} =~ /^(.*?\r\n\r\n)/s;
	my ($length) = $head =~ /^content-length: (\d+)/mi;
	$self->read(length $head);
	return ($head =~ /^(.*?)\r\n/, $self->read($length));
}

=head2 $peer->frame($type, $flags, $stream, $payload)

Sends a frame.

=cut

sub frame
{
	my ($self, $type, $flags, $stream, $payload) = @_;
	my $length = pack 'N', length $payload;

	return $self->write(
		substr($length, 1) . pack('CCN', $type, $flags, $stream) . $payload);
}

# Settings before the first frame is taken: until then, there is nobody.
sub _begin
{
	my ($self) = @_;
	my %settings = %{ $self->{settings} };

	$self->{begun} = 1;
	croak 'this is no HTTP/2' if $self->read(length $preface) ne $preface;
	return $self->frame(SETTINGS, 0, 0, join '',
		map { pack 'nN', $_, $settings{$_} } sort keys %settings);
}

=head2 $peer->next_request

Reads frames until a request is complete, and returns its stream.

=cut

sub next_request
{
	my ($self) = @_;

	$self->_begin unless $self->{begun};
	while (1)
	{
		my ($high, $low, $type, $flags, $stream) = unpack 'CnCCN',
		  $self->read(9);
		my $payload = $self->read($high * 65536 + $low);

		$self->frame(SETTINGS, ACK, 0, '')
		  if $type == SETTINGS && !($flags & ACK);
		$self->{body}{$stream} .= $payload if $type == DATA;
		return $stream
		  if ($type == DATA || $type == HEADERS) && $flags & END_STREAM;
	}
}

=head2 $peer->body($stream)

=cut

sub body { return $_[0]{body}{ $_[1] }; }

=head2 $peer->headers($stream, $last, $status, %headers)

Begins to answer; $last says that there is no more.  $status is 200 or 103.

=cut

sub headers
{
	my ($self, $stream, $last, $status, @headers) = @_;

	# 200 stands in HPACK's static table, where 8 is also the name of any
	my $block = $status == 200 ? "\x88" : "\x08\x03$status";
	while (my ($name, $value) = splice @headers, 0, 2)
	{
		$block .= "\0" . join '', map { pack 'C/a*', $_ } $name, $value;
	}
	return $self->frame(HEADERS, END_HEADERS | ($last ? END_STREAM : 0),
		$stream, $block);
}

=head2 $peer->answer($stream, $body, %headers)

=cut

sub answer
{
	my ($self, $stream, $body, @headers) = @_;

	$self->headers($stream, 0, 200, @headers);
	return $self->frame(DATA, END_STREAM, $stream, $body);
}

=head2 $peer->goaway($last_stream, $words)

=cut

sub goaway
{
	my ($self, $last_stream, $words) = @_;
	return $self->frame(GOAWAY, 0, 0,
		pack('NN', $last_stream, 0) . ($words // ''));
}

=head2 $peer->sync

Returns when the client has read all that was sent.

=cut

sub sync
{
	my ($self) = @_;

	$self->frame(PING, 0, 0, 'timpush!');
	while (1)
	{
		my ($high, $low, $type, $flags) = unpack 'CnCCN', $self->read(9);
		my $payload = $self->read($high * 65536 + $low);
		return if $type == PING && $flags & ACK;
	}
}

=head2 $peer->kill

Ends the connection at once, without a word.

=cut

sub kill
{
	my ($self) = @_;
	local $?;

	foreach my $pid (@{ delete $self->{pids} // [] })
	{
		CORE::kill 'KILL', $pid;
		waitpid $pid, 0;
		delete $running{$pid};
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	$self->kill;
	return;
}

END
{
	CORE::kill 'KILL', keys %running;
}

1;
