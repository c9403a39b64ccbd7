# SPDX-License-Identifier: MIT
# Hashes, regular expressions, sorting, string building.
use strict;
use warnings;
my (%count, %by_length, @long);
open my $text, '<', 'text' or die;
while (<$text>) {
	last if $. > 6000;
	for my $w (split) {
		$count{$w}++;
		push @{$by_length{length $w}}, $w if $w =~ /^([a-z])\w*\1$/;
		push @long, uc $w if $w =~ s/(ing|tion)$/<$1>/;
	}
}
print "$_ $count{$_}\n" for (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 99];
print "$_ ", scalar @{$by_length{$_}}, "\n" for sort { $a <=> $b } keys %by_length;
print join(',', (sort @long)[0 .. 99]), "\n";
my $x = 1;
$x = ($x * 16807 + $_) % 2147483647 for 1 .. 100000;
print "$x\n";
