#!/bin/bash
# SPDX-License-Identifier: MIT
# The Debian packages: clean for lintian, installable, working, and gone without a trace.
# Needs root (dpkg). BUILD says where they and the boot test's guest are.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${BUILD:-build}
debs=$build/deb
passed=0 failed=0
check() { # what, command...
	local what=$1
	shift
	if "$@" >"$debs/check.log" 2>&1; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "not ok: $what"
		tail -n 20 "$debs/check.log" | sed 's/^/    /'
	fi
}

[ "$(id -u)" = 0 ] || { echo "skipped: installing packages needs root"; exit 77; }
if dpkg-query -W softkvm libsoftkvm0 libsoftkvm-dev kvm-list-digest >/dev/null 2>&1; then
	echo "skipped: the packages are installed already"
	exit 77
fi

packages=()
for p in softkvm libsoftkvm0 libsoftkvm-dev kvm-list-digest; do
	f=$(echo "$debs/${p}"_*_amd64.deb)
	[ -f "$f" ] || { echo "no $f: make deb first"; exit 1; }
	packages+=("$f")
done

lintian_is_silent() {
	local out
	out=$(lintian --allow-root --fail-on error,warning "${packages[@]}") && [ -z "$out" ] || { echo "$out"; return 1; }
}

links_and_runs() {
	# shellcheck disable=SC2046 # words are what pkg-config prints
	gcc -DWITH_SOFTKVM_H -o "$debs/minivm" examples/minivm.c $(pkg-config --cflags --libs softkvm) &&
		[ "$(pkg-config --variable=prefix softkvm)" = /usr ] && "$debs/minivm"
}

boots() {
	timeout 170 softkvm qemu-system-x86_64 -accel kvm -cpu host -m 512 -nographic -no-reboot \
		-kernel "$build/guest/vmlinuz" -initrd "$build/guest/initrd.gz" \
		-append "console=ttyS0" </dev/null
}

nothing_is_left() {
	local left
	left=$(find /usr -xdev '(' -name '*softkvm*' -o -name '*kvm-list-digest*' ')' -not -path '/usr/src/*' -not -path '/usr/local/*')
	[ -z "$left" ] || { echo "$left"; return 1; }
}

check "nothing of ours under /usr beforehand" nothing_is_left
check "lintian" lintian_is_silent
check "install" dpkg -i "${packages[@]}"
check "the command runs" softkvm --version
softkvm doctor >"$debs/doctor.log" 2>&1
check "doctor answers" grep -qi kvm "$debs/doctor.log"
check "the object is found where the package has it" softkvm sh -c 'echo "$LD_PRELOAD" | grep -q /usr/lib/softkvm/'
check "a client finds a KVM" softkvm python3 -c '
import fcntl, os
assert fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xae00) == 12'
check "a program links the library" links_and_runs
check "the digest runs" kvm-list-digest --help
check "manual pages" man -w softkvm kvm-list-digest
check "Debian's kernel boots" boots
check "remove" dpkg --purge softkvm kvm-list-digest libsoftkvm-dev libsoftkvm0
check "nothing of ours under /usr afterwards" nothing_is_left
echo "$passed passed, $failed failed"
[ $failed = 0 ]
