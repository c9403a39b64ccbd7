# SPDX-License-Identifier: MIT
# Fixture archives for the tests: public-inbox v2 epochs made with git
# fast-import, with fixed names and dates, so that every id is always the same.
package Fixture;
use strict;
use warnings;
use Exporter 'import';
our @EXPORT = qw(epoch_new letter ok is_eq like_ok skip_all done run run_ok run_peak slurp spew tmp digest);
use File::Temp 'tempdir';
use File::Path 'make_path';
use POSIX 'WNOHANG';
use Cwd 'abs_path';

# Nothing of the user's git takes part.
$ENV{GIT_CONFIG_GLOBAL} = '/dev/null';
$ENV{GIT_CONFIG_NOSYSTEM} = 1;
$ENV{LC_ALL} = 'C';
$ENV{TZ} = 'UTC';
delete @ENV{qw(GIT_DIR GIT_WORK_TREE GIT_OBJECT_DIRECTORY)};

my ($passed, $failed, $skipped) = (0, 0, 0);
my $main_pid = $$;
$| = 1;
my $tmp = tempdir('kvm-list-digest.XXXXXX', TMPDIR => 1, CLEANUP => 1);
sub tmp { return $tmp }

sub ok($$) {
	my ($good, $name) = @_;
	$good ? $passed++ : $failed++;
	print(($good ? 'ok   ' : 'FAIL ') . "$name\n");
	return $good;
}

sub is_eq($$$) {
	my ($got, $want, $name) = @_;
	return 1 if ok($got eq $want, $name);
	my ($g, $w) = ("$tmp/got", "$tmp/want");
	spew($g, $got);
	spew($w, $want);
	print "     $_" for (split /^/, `diff -u $w $g | head -40`);
	return 0;
}

sub like_ok($$$) {
	my ($got, $re, $name) = @_;
	return 1 if ok($got =~ $re, $name);
	print '     got: ' . substr($got, 0, 600) . "\n";
	return 0;
}

sub skip_all {
	my ($n, $why) = @_;
	$skipped += $n;
	print "skip $why\n";
}

my $ended = 0;
# A script that dies on the way reports that too.
END {
	if (!$ended && $$ == $main_pid) {
		$failed++;
		print "$passed passed, $failed failed, $skipped skipped\n";
		$? ||= 1;
	}
}

sub done {
	$ended = 1;
	print "$passed passed, $failed failed, $skipped skipped\n";
	exit($failed ? 1 : 0);
}

sub slurp { my ($f) = @_; local $/; open(my $h, '<:raw', $f) or die "$f: $!"; my $s = <$h>; return $s // '' }
sub spew { my ($f, $s) = @_; open(my $h, '>:raw', $f) or die "$f: $!"; print $h $s; close $h or die "$f: $!" }

# (exit status, stdout, stderr); a signal is 128 + its number.
sub run {
	my @cmd = @_;
	my $pid = fork() // die "fork: $!";
	if (!$pid) {
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', "$tmp/stdout") or die;
		open(STDERR, '>', "$tmp/stderr") or die;
		exec @cmd or die "exec $cmd[0]: $!";
	}
	waitpid($pid, 0);
	my $rc = $? & 127 ? 128 + ($? & 127) : $? >> 8;
	return ($rc, slurp("$tmp/stdout"), slurp("$tmp/stderr"));
}

# (exit status, highest resident KiB); the output goes nowhere.
sub run_peak {
	my @cmd = @_;
	my $pid = fork() // die "fork: $!";
	my $peak = 0;
	if (!$pid) {
		open(STDOUT, '>', '/dev/null') or die;
		exec @cmd or die "exec $cmd[0]: $!";
	}
	while (waitpid($pid, WNOHANG) == 0) {
		# Before exec the child is still this script.
		my $exe = readlink("/proc/$pid/exe") // '';
		if ($exe eq abs_path($cmd[0]) && open(my $h, '<', "/proc/$pid/status")) {
			while (<$h>) {
				$peak = $1 if /^VmHWM:\s+(\d+)/ && $1 > $peak;
			}
		}
		select(undef, undef, undef, 0.01);
	}
	return ($? >> 8 || $? & 127, $peak);
}

sub run_ok {
	my ($rc, $out, $err) = run(@_);
	die "@_: exit $rc: $err" if $rc;
	return $out;
}

sub digest {
	my $build = $ENV{BUILD} // 'build';
	my $asan = shift;
	my $p = $asan ? "$build/asan/kvm-list-digest" : "$build/kvm-list-digest";
	die "$p is not built\n" unless -x $p;
	return $p;
}

# ---- mails ----

my $serial = 0;

# letter(subject => ..., from => ..., body => ..., id =>, reply =>, refs =>, time =>, head => [...])
sub letter {
	my %m = @_;
	my @day = qw(Sun Mon Tue Wed Thu Fri Sat);
	my @mon = qw(Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec);
	my $t = $m{time} // 1747400000 + 60 * $serial;
	my @g = gmtime($t);
	my $id = $m{id} // 'fixture-' . $serial . '@example.org';
	$serial++;
	my $s = "Received: from somewhere\n\tby elsewhere\n";
	$s .= sprintf("Date: %s, %d %s %d %02d:%02d:%02d +0000\n", $day[$g[6]], $g[3], $mon[$g[4]],
		$g[5] + 1900, @g[2, 1, 0]);
	$s .= "In-Reply-To: <$m{reply}>\n" if $m{reply};
	$s .= "References: " . join(' ', map { "<$_>" } @{$m{refs}}) . "\n" if $m{refs};
	$s .= "Message-ID: <$id>\n" if length $id;
	$s .= "Subject: $m{subject}\n" if defined $m{subject};
	$s .= "From: $m{from}\n" if defined $m{from};
	$s .= "$_\n" for @{$m{head} // []};
	return "$s\n$m{body}";
}

# ---- epochs ----

sub epoch_new {
	my ($path) = @_;
	make_path($path);
	system('git', 'init', '-q', '--bare', '-b', 'master', $path) == 0 or die 'git init';
	return bless { path => $path, n => 0, stream => '', parents => [] }, __PACKAGE__;
}

# One commit whose tree is exactly %files (name => bytes).
sub commit {
	my ($r, $files, %o) = @_;
	$r->{n}++;
	my $t = $o{time} // 1747400000 + 60 * $r->{n};
	my $msg = "commit $r->{n}";
	$r->{stream} .= "commit refs/heads/master\nmark :$r->{n}\n" .
		"author A <a\@example.org> $t +0000\ncommitter inbox <inbox\@example.org> $t +0000\n" .
		'data ' . length($msg) . "\n$msg\n";
	$r->{stream} .= "merge $o{merge}\n" if $o{merge};
	$r->{stream} .= "deleteall\n";
	for my $f (sort keys %$files) {
		$r->{stream} .= "M 100644 inline $f\ndata " . length($files->{$f}) . "\n$files->{$f}\n";
	}
	return $r->{n};
}

sub mail { my ($r, $raw, %o) = @_; return $r->commit({ m => $raw }, %o) }
sub removal { my ($r, $raw, %o) = @_; return $r->commit({ d => $raw }, %o) }

# Writes what was collected; returns the ids of all commits, oldest first.
sub write {
	my ($r) = @_;
	my $marks = "$r->{path}/marks";
	my @import = -e $marks ? ("--import-marks=$marks") : ();
	my $stream = $r->{stream};
	if (@import) {		# go on where the last write ended
		$stream =~ s/^(commit refs\/heads\/master\nmark :(\d+)\n.*?\ndata \d+\n[^\n]*\n)/$1 . 'from :' . ($2 - 1) . "\n"/es;
	}
	open(my $h, '|-:raw', 'git', "--git-dir=$r->{path}", 'fast-import', '--quiet', '--force',
		@import, "--export-marks=$marks") or die "fast-import: $!";
	print $h $stream;
	close $h or die "fast-import failed\n";
	$r->{stream} = '';
	my %id = map { /^:(\d+) (\w+)/ ? ($1, $2) : () } split /\n/, slurp($marks);
	return map { $id{$_} } 1 .. $r->{n};
}

1;
