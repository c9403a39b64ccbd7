#!/bin/sh
# SPDX-License-Identifier: MIT
# Install the Debian packages that building, testing or the demo need.
#	tools/install-deps.sh build|test|demo|bench|machines|deb
# Does nothing (and needs no root) when everything is there.
set -eu

build="gcc make pkg-config libc6-dev libzydis-dev libzycore-dev libgit2-dev libgmime-3.0-dev"
demo="$build bc qemu-system-x86 seabios busybox-static cpio gzip"
test="$demo clang libcmocka-dev libclang-rt-14-dev git python3 shellcheck mandoc procps util-linux"
bench="$demo python3 perl gawk sed grep coreutils gzip bzip2 xz-utils sqlite3 bash zlib1g-dev libsqlite3-dev \
liblua5.4-dev libpcre2-dev libssl-dev"
machines="$test e2fsprogs qemu-utils gdb grub-common grub-pc-bin grub-rescue-pc debootstrap
	libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"

case "${1:-build}" in
build) packages=$build ;;
demo) packages=$demo ;;
bench) packages=$bench ;;
machines) packages=$machines ;;
deb) packages="$demo debhelper dpkg-dev lintian man-db python3" ;;
test) packages=$test ;;
*) echo "usage: $0 build|test|demo|bench|machines|deb" >&2; exit 2 ;;
esac

missing=
for p in $packages; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	as_root=
elif command -v sudo >/dev/null; then
	as_root=sudo
else
	echo "$0: these packages are missing and only root can install them:$missing" >&2
	exit 1
fi
echo "installing:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086 # word splitting is the point
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
