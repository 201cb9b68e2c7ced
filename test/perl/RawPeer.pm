
=pod

=head1 NAME

RawPeer - one connection of a TLS peer that says whatever a test wants

=head1 SYNOPSIS

  use RawPeer;

  my $peer = RawPeer->listen($tim, $port);	# HTTP/2
  my $stream = $peer->next_request;
  like($peer->body($stream), qr/alice/);
  $peer->frame(RawPeer::RST_STREAM, 0, $stream, pack('N', 7));
  $peer->answer($peer->next_request, '{"ErrorCode":0}');
  $peer->kill;

A web server does not break the rules on command, nor in a given order.  This
is openssl's server with its ends in our hands: the test reads the frames of
HTTP/2 that come and writes those that go.  It serves one connection, and hands
the port on as soon as it has it; listen() again for the next one.  With C<alpn>
of http/1.1 use read_http1() and write() instead.

=cut

package RawPeer;

use strict;
use warnings;

use Carp;
use IPC::Open2;
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

=head2 RawPeer->listen($tim, $port, %options)

Waits for a connection to $port with the certificate of the stand-in $tim.
Options: alpn (by default h2), settings, a hash of what the first frame tells.

=cut

sub listen
{
	my ($class, $tim, $port, %options) = @_;
	my $self = bless {
		buffer => '',
		body => {},
		done => [],
		settings => $options{settings} // {}
	}, $class;

	$self->{pid} = open2(
		$self->{out}, $self->{in}, 'openssl', 's_server',
		'-quiet', '-accept', $port, '-naccept',
		1, '-alpn', $options{alpn} // 'h2', '-cert',
		$tim->dir . '/server.crt', '-key', $tim->dir . '/server.key');
	$running{ $self->{pid} } = 1;
	binmode $self->{$_} foreach qw(in out);
	my $deadline = time + 30;
	until (_listening($port))
	{
		croak "nobody listens on port $port" if time > $deadline;
		sleep 0.01;
	}
	return $self;
}

# To connect would be to take the place of the one that is waited for.
sub _listening
{
	my ($port) = @_;
	my $hex = sprintf ':%04X', $port;

	foreach my $file (qw(/proc/net/tcp /proc/net/tcp6))
	{
		open my $fh, '<', $file or next;
		return 1 if grep { /^\s*\d+: \w+$hex \w+:0000 0A / } <$fh>;
	}
	return 0;
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
	return unless delete $running{ $self->{pid} };
	local $?;
	CORE::kill 'KILL', $self->{pid};
	close $self->{$_} foreach qw(in out);
	waitpid $self->{pid}, 0;
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
