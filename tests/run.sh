#!/bin/bash
# SPDX-License-Identifier: MIT
# Run tests one after the other and sum them up.
#	tests/run.sh LOGDIR TEST...
# A test is an executable. It reports by a last line "N passed, N failed, N skipped",
# or as cmocka does, or by its exit status alone (4 or 77: skipped). A test may
# take TEST_TIMEOUT seconds (default 600). The translator's blocks are verified. The last line printed here is the sum.
set -u

export SOFTKVM_DBT_VERIFY=${SOFTKVM_DBT_VERIFY:-1}
logdir=${1:?usage: $0 LOGDIR TEST...}
shift
mkdir -p "$logdir"
passed=0 failed=0 skipped=0

summary() { # log status -> "passed failed skipped"
	awk -v status="$2" '
	/^[0-9]+ passed, [0-9]+ failed/ { p = $1; f = $3; s = $5 + 0; plain = 1 }
	/^\[  PASSED  \]/ && !plain { cp = $4; cmocka = 1 }
	/^\[  FAILED  \] [0-9]+ test/ && !plain { cf = $4; cmocka = 1 }
	/^\[  SKIPPED \] [0-9]+ test/ && !plain { cs = $4 }
	END {
		if (!plain && cmocka) { p = cp - cs; f = cf + 0; s = cs + 0 }
		else if (!plain && (status == 4 || status == 77)) s = 1
		else if (!plain) { p = status == 0; f = status != 0 }
		if (status != 0 && status != 4 && status != 77 && f == 0) f = 1
		print p + 0, f + 0, s + 0
	}' "$1"
}

for test; do
	name=$(basename "$test")
	log=$logdir/$name.log
	start=$(date +%s)
	timeout -k 10 "${TEST_TIMEOUT:-600}" "$test" >"$log" 2>&1 </dev/null
	status=$?
	read -r p f s <<<"$(summary "$log" $status)"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	printf '%-40s %4d passed %3d failed %3d skipped  %4d s\n' "$name" "$p" "$f" "$s" $(($(date +%s) - start))
	if [ "$f" != 0 ]; then
		echo "--- $name: exit status $status, the end of $log:"
		tail -n 30 "$log" | sed 's/^/    /'
	fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
