#!/bin/sh
# SPDX-License-Identifier: MIT
# Build the kernel's own KVM selftests, unmodified, from Debian's kernel source.
#	tests/selftests/build.sh [OUTDIR]	(default build/selftests)
# The programs end up in OUTDIR/bin (architecture's own in OUTDIR/bin/x86_64, as upstream
# names them). The source package is downloaded and unpacked, not installed.
# Does nothing when they are there. SELFTESTS_TARBALL names a linux-source-6.12.tar.xz to use.
set -eu

package=linux-source-6.12
out=${1:-${BUILD:-build}/selftests}
stamp=$out/built

[ -e "$stamp" ] && exit 0

say() { echo "selftests: $*"; }

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"
	elif command -v sudo >/dev/null; then sudo "$@"
	else
		say "only root can do: $*" >&2
		return 1
	fi
}

missing=
for p in gcc make libc6-dev binutils xz-utils; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
	say "installing$missing"
	as_root apt-get update -qq
	# shellcheck disable=SC2086 # word splitting is the point
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

mkdir -p "$out"
out=$(cd "$out" && pwd)
stamp=$out/built
log=$out/build.log
src=$out/linux
: >"$log"

# What `make headers` and tools/testing/selftests/kvm read, and nothing else: the tarball
# is xz, so reading it all takes half the time of this script.
unpack() {
	rm -rf "$src" "$src.part"
	mkdir -p "$src.part"
	tar -x -J -C "$src.part" --strip-components=1 --wildcards --no-wildcards-match-slash \
		--exclude='*/tools/testing/selftests/bpf' \
		'linux-source-*/Makefile' 'linux-source-*/Kbuild' 'linux-source-*/Kconfig' \
		'linux-source-*/scripts' 'linux-source-*/include' 'linux-source-*/usr' \
		'linux-source-*/arch/x86' 'linux-source-*/tools/arch' 'linux-source-*/tools/build' \
		'linux-source-*/tools/include' 'linux-source-*/tools/lib' 'linux-source-*/tools/scripts' \
		'linux-source-*/tools/testing/selftests/lib.mk' \
		'linux-source-*/tools/testing/selftests/Makefile' \
		'linux-source-*/tools/testing/selftests/kselftest*' \
		'linux-source-*/tools/testing/selftests/rseq' \
		'linux-source-*/tools/testing/selftests/kvm'
	mv "$src.part" "$src"
}

if [ ! -d "$src" ]; then
	tarball=${SELFTESTS_TARBALL:-/usr/src/$package.tar.xz}
	if [ -r "$tarball" ]; then
		say "unpacking $tarball"
		unpack <"$tarball"
	else
		say "downloading $package"
		mkdir -p "$out/deb"
		if ! (cd "$out/deb" && apt-get download -qq "$package") >>"$log" 2>&1; then
			as_root apt-get update -qq
			(cd "$out/deb" && apt-get download -qq "$package") >>"$log" 2>&1
		fi
		say "unpacking"
		dpkg-deb --fsys-tarfile "$out/deb/$package"_*.deb |
			tar -x -O --wildcards "./usr/src/$package.tar.xz" | unpack
		rm -rf "$out/deb"
	fi
fi

# Our own make's settings are not the kernel's.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL CC CFLAGS CPPFLAGS LDFLAGS LDLIBS ARCH CROSS_COMPILE O V

cpus=$(nproc)
say "compiling"
if ! {
	make -C "$src" -j"$cpus" ARCH=x86 headers &&
	make -C "$src/tools/testing/selftests/kvm" -j"$cpus" ARCH=x86 OUTPUT="$out/bin"
} >>"$log" 2>&1; then
	tail -n 30 "$log"
	say "failed, the rest is in $log" >&2
	exit 1
fi
date >"$stamp"
say "$(find "$out/bin" -type f -perm -100 ! -name '*.so*' | wc -l) programs in $out/bin"
