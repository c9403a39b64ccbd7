#!/bin/sh
# SPDX-License-Identifier: MIT
# First process of the guest whose engines are compared: compression and interpreters.
mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
cd /tmp || exit 1
echo "softkvm-guest: init is running"

head -c "${1:-3000000}" /bin/busybox >data
md5sum data
for z in gzip bzip2; do
	$z -c <data >"data.$z" && $z -dc <"data.$z" | cmp - data && echo "softkvm-guest: $z is right"
done
awk 'BEGIN { for (i = 0; i < 200000; i++) { s += i * i % 7; t = t substr("abcdefg", i % 7 + 1, 1); if (length(t) > 99) t = "" }
	print s, t }'
seq 1 40000 | sort -r | md5sum
find /bin | sed 's/b/c/g' | tr a-z A-Z | wc -c
[ -x /usr/bin/perl ] && perl /job/work.pl
guest-tool mips | head -3
echo "softkvm-guest: work is done"
poweroff -f
