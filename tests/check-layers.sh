#!/bin/bash
# SPDX-License-Identifier: MIT
# Dependencies point downwards only: base < host < kvm < x86 < api < shim, cli.
# kvm may name the guest architecture's state (x86/vcpu_arch.h) in kvm_host.h alone.
cd "$(dirname "$0")/.." || exit 1
rank() {
	case $1 in
	base) echo 0 ;; host) echo 1 ;; kvm) echo 2 ;; x86) echo 3 ;; api) echo 4 ;; *) echo 5 ;;
	esac
}
checked=0 bad=0
while IFS=: read -r file include; do
	from=${file#src/}; from=${from%%/*}
	to=${include#*\"}; to=${to%%/*}
	checked=$((checked + 1))
	[ "$file $include" = 'src/kvm/kvm_host.h #include "x86/vcpu_arch.h" /* struct vcpu_arch, struct vm_arch: chosen by the guest arch */' ] && continue
	if [ "$(rank "$to")" -gt "$(rank "$from")" ]; then
		echo "$file must not include $to: $include"
		bad=$((bad + 1))
	fi
done < <(grep -rE '^#include "(base|host|kvm|x86|api|shim|cli)/' src --include=*.[ch])
# One engine never reaches into the other, and devices reach neither.
if grep -rlE '#include "x86/(interp|dbt)/' src/x86/irqchip src/x86/mmu src/kvm 2>/dev/null; then
	bad=$((bad + 1))
fi
echo "$((checked - bad)) passed, $bad failed"
[ $bad = 0 ]
