#!/bin/bash
# SPDX-License-Identifier: MIT
# What a reader would stumble over: warnings of the second compiler, headers that do not
# stand alone, missing licence lines, stray white space, shell and manual page mistakes.
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "$*"; }

flags=(-std=gnu11 -Wall -Wextra -Wno-unused-parameter -fno-strict-aliasing -fPIC -D_GNU_SOURCE
	-DSOFTKVM_VERSION='"x"' -DSOFTKVM_LIBDIR='"x"' -mno-red-zone -Isrc -Iinclude -fsyntax-only)
for f in $(git ls-files 'src/*.c'); do
	if out=$(clang "${flags[@]}" -O2 "$f" 2>&1) && [ -z "$out" ]; then ok; else bad "clang: $f: $out"; fi
done
for f in $(git ls-files 'src/*.h' include/softkvm.h); do
	if out=$(gcc "${flags[@]}" -x c -include "$f" /dev/null 2>&1) && [ -z "$out" ]; then ok; else bad "alone: $f: $out"; fi
done
for f in $(git ls-files '*.c' '*.h' '*.S' '*.sh' '*.mk' Makefile); do
	if head -3 "$f" | grep -q SPDX-License-Identifier; then ok; else bad "no licence line: $f"; fi
	if grep -nE '[[:blank:]]+$' "$f"; then bad "trailing white space: $f"; else ok; fi
done
for f in $(git ls-files | xargs -r grep -lE '^#!/bin/(ba)?sh'); do
	if out=$(shellcheck -S warning "$f"); then ok; else bad "shellcheck: $f"; echo "$out" | head -20; fi
done
for f in man/*.1; do
	if out=$(mandoc -Tlint -W warning "$f"); then ok; else bad "mandoc: $f: $out"; fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
