#!/bin/bash
# SPDX-License-Identifier: MIT
# How late interrupts are (bench/latency.c): the interpreter, the translator, and the machine's own KVM where there is a
# usable one, as a table and in BUILD/bench/latency.json. BUILD: the build directory. SAMPLES: of each kind (1000).
# REAL_LIMIT: seconds the machine's own KVM gets (120).
set -u
cd "$(dirname "$0")/.." || exit 1
BUILD=$(cd "${BUILD:-build}" && pwd) || exit 1
SAMPLES=${SAMPLES:-1000} REAL_LIMIT=${REAL_LIMIT:-120}
client=$BUILD/bench/latency
out=$BUILD/bench/latency
for v in $(compgen -e SOFTKVM); do unset "$v"; done
unset LD_PRELOAD

for engine in interp dbt; do
	SOFTKVM_ENGINE=$engine timeout 600 "$BUILD/softkvm" "$client" "$SAMPLES" >"$out.$engine.txt" || exit 1
done
real=no
: >"$out.real.txt"
if "$BUILD/softkvm" doctor | grep -q "^This machine's own KVM works"; then
	real=yes
	timeout "$REAL_LIMIT" "$client" "$SAMPLES" >"$out.real.txt" 2>&1 ||
		echo "(the machine's own KVM did not finish within $REAL_LIMIT s)"
fi

awk -v real=$real -v json="$out.json" -v cpu="$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)" \
	-v cpus="$(nproc)" -v loadavg="$(cut -d' ' -f1 /proc/loadavg)" '
	BEGIN {
		printf "%-7s %-20s %40s   %40s\n", "", "us", "all samples", "undisturbed"
		printf "%-7s %-20s %8s %7s %7s %7s %7s   %8s %7s %7s %7s %7s\n", "", "",
			"n", "min", "median", "p99", "max", "n", "min", "median", "p99", "max"
	}
	function number(x) { return x == "-" ? "null" : x }
	function five(at) {
		return sprintf("{\"samples\": %s, \"min\": %s, \"median\": %s, \"p99\": %s, \"max\": %s}", $at, number($(at + 1)),
			number($(at + 2)), number($(at + 3)), number($(at + 4)))
	}
	NF == 11 {
		engine = FILENAME; sub(/\.txt$/, "", engine); sub(/.*\./, "", engine)
		printf "%-7s %-20s %8s %7s %7s %7s %7s   %8s %7s %7s %7s %7s\n", engine, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11
		rows = rows sprintf("%s\n  {\"engine\": \"%s\", \"name\": \"%s\", \"all\": %s, \"undisturbed\": %s}",
			rows == "" ? "" : ",", engine, $1, five(2), five(7))
	}
	END {
		gsub(/["\\]/, "", cpu)
		printf "{\"cpu\": \"%s\", \"cpus\": %d, \"load\": %s, \"real_kvm\": %s, \"unit\": \"us\", \"results\": [%s\n]}\n", cpu,
			cpus, loadavg, real == "yes" ? "true" : "false", rows >json
	}' "$out".interp.txt "$out".dbt.txt "$out".real.txt
echo "written: $out.json"
