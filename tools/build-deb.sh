#!/bin/sh
# SPDX-License-Identifier: MIT
# Build the Debian packages from a copy of the tree.
#	tools/build-deb.sh OUTDIR	-> OUTDIR/*.deb
set -eu
out=${1:?usage: $0 OUTDIR}
cd "$(dirname "$0")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -rf "$out/softkvm" "$out"/*.deb "$out"/*.changes "$out"/*.buildinfo
mkdir "$out/softkvm"
tar -c --exclude='./build' --exclude='./build-*' --exclude=./.git . | tar -x -C "$out/softkvm"
cd "$out/softkvm"
dpkg-buildpackage -b -us -uc >"$out/build.log" 2>&1 || { tail -n 40 "$out/build.log"; exit 1; }
rm -rf "$out/softkvm"
ls "$out"/*.deb
