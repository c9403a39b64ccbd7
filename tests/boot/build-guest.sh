#!/bin/sh
# SPDX-License-Identifier: MIT
# Fetch Debian's cloud kernel and make a busybox initramfs around tests/boot/init.
#	tests/boot/build-guest.sh OUTDIR	-> OUTDIR/vmlinuz OUTDIR/initrd.gz
# The kernel package is unpacked, not installed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: $0 OUTDIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ ! -s "$out/vmlinuz" ]; then
	package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		awk '/Depends: linux-image-/ { print $2; exit }')
	if [ -z "$package" ]; then
		apt-get update -qq
		package=$(apt-cache depends linux-image-cloud-amd64 |
			awk '/Depends: linux-image-/ { print $2; exit }')
	fi
	rm -rf "$out/kernel"
	mkdir -p "$out/kernel"
	(cd "$out/kernel" && apt-get download -qq "$package" && dpkg-deb -x ./*.deb .)
	cp "$out"/kernel/boot/vmlinuz-* "$out/vmlinuz"
	cp "$out"/kernel/boot/config-* "$out/config"
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount cat dmesg uname poweroff reboot sleep grep echo ls dd mknod head sha256sum seq; do
	ln -s busybox "$root/bin/$applet"
done
${CC:-gcc} -O2 -static -pthread -D_GNU_SOURCE -o "$root/bin/guest-tool" "$here/guest-tool.c"
# virtio-net in the order in which they need each other (softkvm.do=shell: see tests/boot/init).
mkdir -p "$root/modules"
n=0
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net; do
	file=$(find "$out/kernel/" -name "$module.ko")
	n=$((n + 1))
	cp "$file" "$root/modules/$n-$module.ko"
done
cp "$here/init" "$root/init"
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$out/initrd.gz.new"
mv "$out/initrd.gz.new" "$out/initrd.gz"
