#!/bin/bash
# SPDX-License-Identifier: MIT
# The example VMM, both ways: under the command, and linked to the library.
# Where a KVM of the hardware's own works, the same binary runs there too.
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
want=$'hello from the guest\nsum of 1..1000000 modulo 2^32: 1784293664'
passed=0 failed=0 skipped=0

expect() {
	local what=$1 got
	shift
	got=$(timeout 60 "$@" 2>&1)
	if [ "$got" = "$want" ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAIL: $what: $got"
	fi
}

expect "under softkvm" "$build/softkvm" "$build/minivm"
expect "with run --" "$build/softkvm" run -- "$build/minivm"
expect "linked to the library" "$build/minivm-linked"
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
# Only where nobody may look into this tree at all.
if [ "$(id -u)" = 0 ] && "${nobody[@]}" test -r "$PWD/$build/libsoftkvm.so" 2>/dev/null; then
	expect "unprivileged" "${nobody[@]}" "$build/softkvm" "$build/minivm"
else
	skipped=$((skipped + 1))
fi
if unshare -m true 2>/dev/null; then
	# A container without /dev/kvm and without /sys/module.
	expect "no /dev/kvm" unshare -m sh -c 'mount -t tmpfs none /sys && mount --bind /dev/null /dev/kvm 2>/dev/null; exec "$@"' sh "$build/softkvm" "$build/minivm"
else
	skipped=$((skipped + 1))
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
