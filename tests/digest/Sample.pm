# SPDX-License-Identifier: MIT
# The archive that the sample was made from, as far as the sample shows it:
# its 15 mails with their bodies, 33 stub patches with the authors its
# shortlogs name, two patches nobody sees (they account for the two counts that
# the visible series do not explain), five replies, one mail taken back.
package Sample;
use strict;
use warnings;
use Exporter 'import';
our @EXPORT = qw(sample_epoch sample_mails);
use Fixture;

my $diffstat = "---\n a.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n\ndiff --git a/a.c b/a.c\n" .
	"--- a/a.c\n+++ b/a.c\n\@\@ -1 +1 \@\@\n-x\n+y\n-- \n2.49.0\n";

# What the old script cut off because it looks at one line of the header only.
my %tail = (
	'Verify KVM is loaded when getting a KVM' => ' module param',
	"Dynamically allocate shadow MMU's hashed" => ' page list',
	'Bound the number of dirty ring entries in a' => ' single reset at INT_MAX',
	'Refactor to provide function that allocates' => ' a secure anonymous inode',
);

my %inbody = (
	'[PATCH v2 1/8]' => 'Zheyun Shen <szy0127@sjtu.edu.cn>',
	'[RFC PATCH v2 01/13]' => 'David Hildenbrand <david@redhat.com>',
);

my %address = (
	'Kevin Loughlin' => 'kevinloughlin@google.com',
	'Zheyun Shen' => 'szy0127@sjtu.edu.cn',
	'Ackerley Tng' => 'ackerleytng@google.com',
	'Sean Christopherson' => 'seanjc@google.com',
	'David Hildenbrand' => 'david@redhat.com',
	'Alexandre Ghiti' => 'alexghiti@rivosinc.com',
);

# The mails of the sample, newest first, as { subject, author, body }.
sub sample_mails {
	my ($file) = @_;
	my $text = slurp($file);
	my @mails;

	$text =~ s/.*?===== Patch Commit Messages ====\n\n//s;
	for my $part (split /\n-{70}\n\n/, $text) {
		$part =~ /\ANew: [^\n]*\n([^\n]+)\nAuthor: ([^\n]+)\n\n(.*)\z/s or die "sample: $part";
		my ($subject, $author, $body) = ($1, $2, $3);
		$subject =~ /^(\[[^\]]*\])/;
		push @mails, { subject => $subject, tag => $1, author => $author, body => $body };
	}
	return @mails;
}

sub raw_mail {
	my ($m) = @_;
	my $subject = $m->{subject};
	my $body = $m->{body};
	my @head;

	for my $t (keys %tail) {
		$subject .= "\n$tail{$t}" if $subject =~ /\Q$t\E$/;
	}
	if ($inbody{$m->{tag}}) {
		die "sample: no empty line after the author\n" unless $body =~ /\A\n/;
		$body = "From: $inbody{$m->{tag}}\n$body";
	}
	push @head, 'Content-Transfer-Encoding: quoted-printable' if $m->{tag} eq '[RFC PATCH v2 00/13]';
	push @head, 'Content-Type: text/plain; charset=UTF-8';
	$body .= " create mode 100644 some/new/file.c\n" if $m->{tag} eq '[RFC PATCH v2 00/13]';
	$body .= "\nbase-commit: 45eb29140e68ffe8e93a5471006858a018480a45\n-- \n2.49.0.1112.g889b7c5bd8-goog\n\n";
	return letter(subject => $subject, from => $m->{author}, body => $body, head => \@head);
}

# [title, author] of each patch of a cover, in order of the shortlog.
sub shortlog {
	my ($body) = @_;
	my (@list, $who);

	for (split /\n/, $body) {
		if (/^(\S.*) \(\d+\):$/) {
			$who = $1;
		} elsif ($who && /^  (\S.*)/) {
			push @list, [$1, $who];
		} elsif ($who && /^    (\S.*)/) {
			$list[-1][0] .= " $1";
		}
	}
	return @list;
}

# A stub for every patch of the shortlog but the one that the sample shows.
sub stubs {
	my ($cover, $shown) = @_;
	my ($pre, $n) = $cover->{tag} =~ /^\[(.*?)\s*0+\/(\d+)\]$/ or die $cover->{tag};
	my $title = $shown->{subject} =~ s/^\[[^\]]*\]\s*//r;
	my @rest = grep { index($_->[0], $title) != 0 } shortlog($cover->{body});
	my $i = 1;

	die "$cover->{subject}: " . @rest . ' of ' . ($n - 1) . " stubs\n" unless @rest == $n - 1;
	return map {
		my ($t, $who) = @$_;
		my $full = "$who <$address{$who}>";
		my $body = "Text.\n\n$diffstat";
		$body = "From: $full\n\n$body" unless $full eq $cover->{author};
		$i++;
		letter(subject => sprintf('[%s %0*d/%d] %s', $pre, length $n, $i, $n, $t),
			from => $cover->{author}, body => $body);
	} @rest;
}

# Returns (A, B). With hidden => 0 the two unseen patches are left out.
sub sample_epoch {
	my ($path, $file, %o) = @_;
	my $r = epoch_new($path);
	my @mails = reverse sample_mails($file);	# by arrival
	my ($nstubs, $nreplies, $cover, $first) = (0, 0);
	my $spam = letter(subject => '[PATCH 0/1] Buy now', from => 'Spam <spam@example.com>',
		body => "Buy.\n\n a | 1 +\n 1 file changed, 1 insertion(+)\n");

	$r->mail(letter(subject => '[PATCH 0/2] before the range', from => 'X <x@example.com>', body => "x\n"));
	$r->mail($spam);
	for my $m (@mails) {
		$r->mail(raw_mail($m));
		if ($m->{tag} =~ m{\b0+/\d+\]}) { $cover = $m }
		if ($m->{tag} =~ m{\b0*1/\d+\]}) { $first = $m }
		next unless $cover && $first;
		for my $s (stubs($cover, $first)) {
			$r->mail($s);
			$nstubs++;
		}
		$r->mail(letter(subject => "Re: $cover->{subject}", from => 'Reply <reply@example.com>',
			body => "> From: Nobody <n\@example.com>\n\nLooks good.\n")) if $nreplies++ < 5;
		($cover, $first) = ();
	}
	die "$nstubs stubs, not 33\n" unless $nstubs == 33;
	if ($o{hidden} // 1) {
		$r->mail(letter(subject => '[PATCH v2] RISC-V: KVM: something on its own',
			from => 'Atish Patra <atishp@rivosinc.com>', body => "Text.\n\n$diffstat"));
		$r->mail(letter(subject => '[PATCH v2 7/9] KVM: guest_memfd: a late one',
			from => 'Ackerley Tng <ackerleytng@google.com>', body => "Text.\n\n$diffstat"));
	}
	$r->removal($spam);
	my @id = $r->write;
	return ($id[0], $id[-1]);
}

1;
