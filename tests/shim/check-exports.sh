#!/bin/sh
# SPDX-License-Identifier: MIT
# What leaves the preload object is exactly src/shim/exports.list.
BUILD=${BUILD:-build}
list=$(dirname "$0")/../../src/shim/exports.list
if diff=$(nm -D --defined-only "$BUILD/libsoftkvm-preload.so" | awk '{ print $3 }' | LC_ALL=C sort |
	diff "$list" -); then
	echo "ok: exports"
else
	echo "FAIL: exports differ from exports.list (< list, > object)"
	echo "$diff"
	exit 1
fi
