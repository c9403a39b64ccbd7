#!/bin/bash
# SPDX-License-Identifier: MIT
# What memory costs (bench/memory.c): the interpreter, the translator, and the machine's own KVM where there is a
# usable one, as a table and in BUILD/bench/memory.json. BUILD: the build directory. ROUNDS: runs of each (3); the
# best counts. REAL_LIMIT: seconds the machine's own KVM gets (120); what it did not get to is a dash.
set -u
cd "$(dirname "$0")/.." || exit 1
BUILD=$(cd "${BUILD:-build}" && pwd) || exit 1
ROUNDS=${ROUNDS:-3} REAL_LIMIT=${REAL_LIMIT:-120}
client=$BUILD/bench/memory
out=$BUILD/bench/memory
for v in $(compgen -e SOFTKVM); do unset "$v"; done
unset LD_PRELOAD

rm -f "$out".{interp,dbt,real}.txt
for ((round = 0; round < ROUNDS; round++)); do
	for engine in interp dbt; do
		SOFTKVM_ENGINE=$engine timeout 300 "$BUILD/softkvm" "$client" >>"$out.$engine.txt" || exit 1
	done
done
real=no
: >"$out.real.txt"
if "$BUILD/softkvm" doctor | grep -q "^This machine's own KVM works"; then
	real=yes
	timeout "$REAL_LIMIT" "$client" >>"$out.real.txt" 2>&1 ||
		echo "(the machine's own KVM did not finish within $REAL_LIMIT s)"
fi

awk -v real=$real -v json="$out.json" -v cpu="$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)" '
	FNR == 1 { column = FILENAME; sub(/\.txt$/, "", column); sub(/.*\./, "", column) }
	NF == 3 && $2 ~ /^[0-9.]+$/ {
		if (!($1 in unit)) { unit[$1] = $3; order[++n] = $1 }
		if (!((column, $1) in v) || $2 + 0 < v[column, $1] + 0) v[column, $1] = $2
	}
	function cell(c, name) { return (c, name) in v ? v[c, name] : "-" }
	function ratio(a, b) { return a == "-" || b == "-" || b + 0 == 0 ? "-" : sprintf("%.2f", a / b) }
	function number(x) { return x == "-" ? "null" : x }
	function overhead(c, name, base) { return ratio(cell(c, name), cell(c, base)) }
	END {
		printf "%-24s %12s %12s %12s %12s %12s  %s\n", "", "interp", "dbt", "real KVM", "interp/real", "dbt/real", "unit"
		for (i = 1; i <= n; i++) {
			name = order[i]; a = cell("interp", name); b = cell("dbt", name); r = cell("real", name)
			printf "%-24s %12s %12s %12s %12s %12s  %s\n", name, a, b, r, ratio(a, r), ratio(b, r), unit[name]
			rows = rows sprintf("%s\n  {\"name\": \"%s\", \"unit\": \"%s\", \"interp\": %s, \"dbt\": %s, \"real\": %s}",
				i > 1 ? "," : "", name, unit[name], number(a), number(b), number(r))
		}
		print "\nThe same loop with tracking, as a multiple of the loop without:"
		split("sparse dense", loops); split("bitmap_left bitmap ring", kinds)
		for (l = 1; l <= 2; l++)
			for (k = 1; k <= 3; k++) {
				name = loops[l] "_" kinds[k]; base = loops[l] "_off"
				printf "%-24s %12s %12s %12s\n", name, overhead("interp", name, base), overhead("dbt", name, base),
					overhead("real", name, base)
				ratios = ratios sprintf("%s\n  {\"name\": \"%s\", \"interp\": %s, \"dbt\": %s, \"real\": %s}",
					l + k > 2 ? "," : "", name, number(overhead("interp", name, base)),
					number(overhead("dbt", name, base)), number(overhead("real", name, base)))
			}
		gsub(/["\\]/, "", cpu)
		printf "{\"cpu\": \"%s\", \"real_kvm\": %s, \"results\": [%s\n], \"tracking\": [%s\n]}\n", cpu,
			real == "yes" ? "true" : "false", rows, ratios >json
	}' "$out".interp.txt "$out".dbt.txt "$out".real.txt
echo "written: $out.json"
