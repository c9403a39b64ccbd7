# SPDX-License-Identifier: MIT
# A shell doing arithmetic, string work, functions and many small programs.
n=0 text=
add() { n=$((n + $1 * 3 % 7)); }
for i in {1..4000}; do
	add "$i"
	case $i in *7) text=${text#??}$i ;; *) text=$text. ;; esac
done
for i in {1..15}; do
	m=$(echo "$i" | /usr/bin/sed 's/1/one/')
	text=$text$m
done
echo "$n ${#text}"
