# SPDX-License-Identifier: MIT
# Count words, lengths and sums; print what is most frequent.
{
	for (i = 1; i <= NF; i++) {
		count[$i]++
		length_of[length($i)]++
		if ($i ~ /^[0-9.]+$/)
			sum += $i
	}
	gsub(/[aeiou]/, "_")
	chars += length($0)
}
END {
	for (w in count)
		if (count[w] > 20)
			n++
	for (l = 1; l < 20; l++)
		printf "%d %d\n", l, length_of[l]
	print n, sum, chars
}
