#!/bin/bash
# SPDX-License-Identifier: MIT
# The stress programs of the kernel's KVM selftests, and API tests of ours, on a library built with the thread
# sanitizer (MODE=tsan). A run fails when it fails, and when anything was reported.
#	tests/selftests/tsan.sh [WORD...]	(only the rows that have such a word)
# BUILD: that build. SELFTESTS: directory of the kernel's programs (default: as tests/selftests/build.sh leaves them).
#
# The clients are not instrumented, the library is, but for src/shim and the signal broker (Makefile): they run
# before the sanitizer's own start and in signal handlers. Its run time has to be the first object preloaded.
#
# Seen to report: KVM_RESET_DIRTY_RINGS without slots_lock (dirty_ring, 6 reports), replace_slot() without its
# vm_sync_vcpus() (memslot_perf_test, 7).
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=$(cd "${BUILD:-build-tsan}" && pwd) || exit 1
CC=${CC:-gcc}
library=$BUILD/libsoftkvm-preload.so
programs=${SELFTESTS:-$BUILD/selftests/bin}
logs=$BUILD/tests/tsan
passed=0 failed=0 skipped=0

runtime=$("$CC" -print-file-name=libtsan.so)
if [ "$runtime" = libtsan.so ]; then
	echo "skip: $CC has no shared libtsan"
	echo "0 passed, 0 failed, 1 skipped"
	exit 4
fi
runtime=$(realpath "$runtime")
if ! nm -D "$library" | grep -q ' U __tsan_init'; then
	echo "$library is not built with MODE=tsan" >&2
	exit 1
fi
if [ -z "${SELFTESTS:-}" ] && ! tests/selftests/build.sh "$BUILD/selftests"; then
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
fi
mkdir -p "$logs"
for v in $(compgen -e SOFTKVM); do unset "$v"; done
unset LD_PRELOAD

# Faults are the library's to handle. The random part of the address space must be small for the shadow's sake.
export TSAN_OPTIONS="exitcode=66 allocator_may_return_null=1 handle_segv=0 handle_sigbus=0 handle_sigfpe=0 handle_sigill=0 handle_abort=0 \
second_deadlock_stack=1 suppressions=$PWD/tests/selftests/tsan.supp"
under=(env)
[ "$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28)" -gt 28 ] && under=(setarch -R env)

wanted() { # WORD... : of a row
	local want word
	[ ${#only[@]} = 0 ] && return 0
	for want in "${only[@]}"; do
		for word; do
			[ "$want" = "$word" ] && return 0
		done
	done
	return 1
}
only=("$@")

# row ENGINE LIMIT PROGRAM [ARGUMENT]...
row() {
	local engine=$1 limit=$2 status=0 reports log start
	shift 2
	wanted "$engine" "$(basename "$1")" || return 0
	log=$logs/$engine-$(basename "$1")$(printf '%s' "${@:2}" | tr -d '/ ').log
	start=$(date +%s)
	# The sanitizer's start-up takes the preloaded objects for `timeout` as well: it comes outside.
	timeout -k 10 "$limit" "${under[@]}" SOFTKVM_ENGINE="$engine" LD_PRELOAD="$runtime:$library" "$@" \
		>"$log" 2>&1 </dev/null || status=$?
	reports=$(grep -c 'WARNING: ThreadSanitizer' "$log")
	if [ "$reports" != 0 ] || { [ $status != 0 ] && [ $status != 4 ]; }; then
		failed=$((failed + 1))
		echo "FAIL $engine $(basename "$1") ${*:2}: status $status, $reports reports; $log:"
		grep -A 24 -m 1 'WARNING: ThreadSanitizer' "$log" || tail -n 12 "$log"
	elif [ $status = 4 ]; then
		skipped=$((skipped + 1))
		echo "skip $engine $(basename "$1") ${*:2}"
	else
		passed=$((passed + 1))
		echo "ok   $engine $(basename "$1") ${*:2} $(($(date +%s) - start)) s"
	fi
}

# The sanitizer is there at all.
if TSAN_OPTIONS="$TSAN_OPTIONS verbosity=1" "${under[@]}" LD_PRELOAD="$runtime:$library" /bin/true 2>&1 |
	grep -q 'ThreadSanitizer'; then
	passed=$((passed + 1))
else
	failed=$((failed + 1))
	echo "FAIL: the sanitizer does not start"
fi

for engine in interp dbt; do
	for test in dirty_ring memslots guest_memfd irq many; do
		row $engine 600 "$BUILD/tests/api/$test"
	done
	for mode in dirty-log clear-log dirty-ring; do
		row $engine 120 "$programs/dirty_log_test" -M $mode -i 3 -I 5
	done
	row $engine 120 "$programs/memslot_modification_stress_test"
	row $engine 300 "$programs/set_memory_region_test"
	row $engine 120 "$programs/memslot_perf_test" -s 512 -l 1
	row $engine 120 "$programs/demand_paging_test"
	row $engine 120 "$programs/demand_paging_test" -u MISSING -v 2 -b 32M
	row $engine 120 "$programs/dirty_log_perf_test" -v 2 -b 32M -i 2
	row $engine 120 "$programs/x86_64/xapic_ipi_test"
	row $engine 120 "$programs/x86_64/recalc_apic_map_test"
done
echo "thread sanitizer: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $passed -gt 0 ]
