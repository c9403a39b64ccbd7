# SPDX-License-Identifier: MIT
# Hashes, strings, patterns, floating point.
my (%h, $x);
for my $i (1 .. 60000) {
	my $k = sprintf "%x", $i * 2654435761 % 65536;
	$h{$k} .= $i % 10;
	$x += sqrt($i) * sin($i);
}
my $n = grep { $h{$_} =~ /(\d)\1/ } sort keys %h;
my $s = join ",", map { $_ ** 2 } 1 .. 20000;
$s =~ s/(\d+),(\d+)/$2-$1/g;
printf "perl: %d %.6f %d\n", $n, $x, length $s;
