#!/usr/bin/perl
#
# What no schema says of META.json: that it agrees with the rest of the tree,
# in which this is called.

use strict;
use warnings;
use JSON::PP;

my $wrong = 0;

sub slurp
{
	my ($path) = @_;

	open(my $file, '<', $path) or die "$path: $!\n";
	local $/ = undef;
	return scalar <$file>;
}

sub agree
{
	my ($what, $is, $should) = @_;

	return if $is eq $should;
	print "$what is \"$is\", but should be \"$should\"\n";
	$wrong = 1;
}

my $meta = decode_json(slurp('META.json'));
my ($extension) =
  slurp('timpush.control') =~ /^default_version = '([\d.]+)'$/m;
my ($debian) = slurp('debian/changelog') =~ /^timpush \((.*)-\d+\)/;
my $provided = $meta->{provides}{timpush};

# PGXN wants three numbers, and CREATE EXTENSION shows what is needed.
my $version = $extension . '.0' x (2 - ($extension =~ tr/././));

agree('the version in META.json', $meta->{version}, $version);
agree('the version that META.json provides', $provided->{version}, $version);
agree('the version in debian/changelog', $debian, $version);
agree('the file that META.json provides',
	$provided->{file}, "sql/timpush--$extension.sql");
foreach my $path ($provided->{file}, $provided->{docfile})
{
	agree($path, -f $path ? 'a file' : 'missing', 'a file');
}
exit $wrong;
