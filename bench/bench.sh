#!/bin/bash
# SPDX-License-Identifier: MIT
# Both engines of SoftKVM beside QEMU TCG, the same QEMU, kernel and guest, in alternating runs:
# guest instructions per second by kind of code, and the time from QEMU's start to init.
# ROUNDS (default 3) runs of each; medians. Only ratios carry over to other machines.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
rounds=${ROUNDS:-3}
out=$build/bench
rm -rf "$out"
mkdir -p "$out"

run() { # engine log: tcg, softkvm (the interpreter) or softkvm-dbt
	local engine=$1 log=$2
	local cmd=(qemu-system-x86_64 -accel tcg -cpu max)
	case $engine in
	softkvm) cmd=(env SOFTKVM_ENGINE=interp "$build/softkvm" qemu-system-x86_64 -accel kvm -cpu host) ;;
	softkvm-dbt) cmd=(env SOFTKVM_ENGINE=dbt "$build/softkvm" qemu-system-x86_64 -accel kvm -cpu host) ;;
	esac
	local start now
	start=$(date +%s.%N)
	timeout 600 "${cmd[@]}" -m 512 -nographic -no-reboot -kernel "$build/guest/vmlinuz" \
		-initrd "$build/guest/initrd.gz" -append "console=ttyS0 quiet softkvm.do=bench" \
		</dev/null 2>&1 | while IFS= read -r line; do
		now=$(date +%s.%N)
		case $line in
		*"init is running"*) echo "seconds-to-init $(echo "$now - $start" | bc)" ;;
		mips*) echo "mips-${line#mips }" ;;
		esac
	done | tr -d '\r' >>"$log"
}

native() {
	"${CC:-gcc}" -O2 -static -D_GNU_SOURCE -o "$out/guest-tool" tests/boot/guest-tool.c
	"$out/guest-tool" mips | sed 's/^mips /mips-/' >>"$1"
}

median() { # log key
	awk -v k="$2" '$1 == k { print $2 }' "$1" | sort -n | awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : "-" }'
}

for i in $(seq "$rounds"); do
	echo "round $i of $rounds" >&2
	native "$out/native.log"
	run tcg "$out/tcg.log"
	run softkvm "$out/softkvm.log"
	run softkvm-dbt "$out/softkvm-dbt.log"
done

ratio() {
	awk -v a="$1" -v b="$2" 'BEGIN { if (a + 0 && b + 0) printf "%.3f", a / b; else print "-" }'
}

printf '%-18s %10s %10s %10s %12s %12s %12s\n' "" native tcg softkvm softkvm-dbt softkvm/tcg dbt/tcg
for key in mips-alu mips-memory mips-calls mips-vector mips-all seconds-to-init; do
	n=$(median "$out/native.log" $key) t=$(median "$out/tcg.log" $key)
	s=$(median "$out/softkvm.log" $key) d=$(median "$out/softkvm-dbt.log" $key)
	printf '%-18s %10s %10s %10s %12s %12s %12s\n' "$key" "$n" "$t" "$s" "$d" "$(ratio "$s" "$t")" "$(ratio "$d" "$t")"
done | tee "$out/table.txt"
echo "mips: millions of guest instructions per second (higher is better); seconds: lower is better"
