#!/bin/bash
# SPDX-License-Identifier: MIT
# `make bench-trace`: nanoseconds of an exit to userspace and back, the least and the median of eleven runs, in turns.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
runs=11
declare -A times

one() { # key command...
	local key=$1
	shift
	times[$key]+="$("$@" | awk '{ print $1 }') "
}

for _ in $(seq $runs); do
	one without "$build/no-trace/softkvm" "$build/tests/trace/spin" 300000
	one off "$build/softkvm" "$build/tests/trace/spin" 300000
	SOFTKVM_TRACE=exit SOFTKVM_TRACE_FORMAT=binary SOFTKVM_TRACE_FILE=/dev/null \
		one on-binary "$build/softkvm" "$build/tests/trace/spin" 300000
	SOFTKVM_TRACE=exit SOFTKVM_TRACE_FILE=/dev/null one on-text "$build/softkvm" "$build/tests/trace/spin" 300000
done
for key in without off on-binary on-text; do
	tr ' ' '\n' <<<"${times[$key]}" | grep . | sort -n |
		awk -v key="$key" '{ v[NR] = $1 } END { printf "%-12s %6d ns, median %6d ns\n", key, v[1], v[int((NR + 1) / 2)] }'
done
