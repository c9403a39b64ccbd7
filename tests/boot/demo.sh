#!/bin/bash
# SPDX-License-Identifier: MIT
# Boot Debian's cloud kernel in an unmodified QEMU on SoftKVM, show what it says, power off.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${BUILD:-build}
cat <<EOT
Booting $(basename "$(ls -d "$build"/guest/kernel/boot/vmlinuz-*)") with

    softkvm qemu-system-x86_64 -accel kvm -cpu host -m 512 -nographic ...

EOT
start=$(date +%s)
timeout 170 "$build/softkvm" qemu-system-x86_64 -accel kvm -cpu host -m 512 -nographic -no-reboot \
	-kernel "$build/guest/vmlinuz" -initrd "$build/guest/initrd.gz" \
	-append "console=ttyS0 ${DEMO_APPEND:-}" </dev/null
status=$?
echo
if [ $status = 0 ]; then
	echo "The guest powered itself off after $(($(date +%s) - start)) s."
else
	echo "QEMU ended with status $status."
fi
exit $status
