# SPDX-License-Identifier: MIT
"""A Debian root made with debootstrap, with systemd, for the machine tests: directory, disk image, initrd, jobs.

The root is kept in $BUILD/distro; making it needs root and a Debian mirror.
"""

import os
import random
import shutil
import subprocess
import tempfile

from vm import BUILD, GUEST, SCRATCH, Failed

DISTRO = os.path.join(BUILD, "distro")
ROOT = os.path.join(DISTRO, "root")
PACKAGES = "systemd-sysv,udev,perl,python3,xz-utils,bzip2,gzip,gcc,libc6-dev"
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk")
APPEND = "console=ttyS0 root=/dev/vda rw systemd.show_status=1"
# A busy host must not exhaust systemd's patience: without the device there is no login on it.
PATIENCE = "[Manager]\nDefaultTimeoutStartSec=900\nDefaultDeviceTimeoutSec=900\n"
INIT = """#!/bin/sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do busybox insmod "$module"; done
busybox mount /dev/vda /root && exec busybox switch_root /root /sbin/init
"""
JOBS = """cd /root
sha256sum data
gzip -6 -c data | sha256sum
gzip -6 -c data | gzip -d | sha256sum
xz -1 -T1 -c data | sha256sum
bzip2 -1 -c data | sha256sum
bzip2 -1 -c data | bzip2 -d | sha256sum
perl -e 'open F, "data"; local $/; $_ = <F>; $h{$_}++ for split //; printf "%s ", $h{chr $_} for 0..255; print sqrt(2) ** 7.5, "\\n"'
python3 -c 'import zlib, json, math; d = open("data", "rb").read(); print(zlib.crc32(d), math.fsum(math.sin(i) for i in range(20000)), len(json.dumps(list(d[:65536]))), 3 ** 2000 % 1000007)'
dpkg-query -W | sha256sum
dpkg --verify | wc -l
gcc -O2 -Wall -c -o job.o job.c && sha256sum job.o
gcc -o job job.o -lm && sha256sum job
./job data
"""


def make_root():
    """Once per build directory and list of packages."""
    stamp = os.path.join(DISTRO, "packages")
    if os.path.exists(stamp):
        with open(stamp, encoding="ascii") as f:
            if f.read() == PACKAGES:
                return
    shutil.rmtree(DISTRO, ignore_errors=True)
    os.makedirs(DISTRO)
    with open(os.path.join(DISTRO, "debootstrap.log"), "w", encoding="utf-8") as log:
        subprocess.run(["debootstrap", "--variant=minbase", "--include=" + PACKAGES, "bookworm", ROOT],
                       check=True, stdout=log, stderr=log, timeout=900)
    with open(stamp, "w", encoding="ascii") as f:
        f.write(PACKAGES)


def prepare_root():
    rng = random.Random(1)
    words = [bytes(rng.getrandbits(8) for _ in range(rng.randint(2, 12))) for _ in range(3000)]
    data = bytearray()
    while len(data) < 4 << 20:
        data += rng.choice(words)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "distro-job.c"), "rb") as f:
        program = f.read()
    files = {"data": bytes(data[:4 << 20]), "jobs": JOBS.encode(), "job.c": program}
    for name, content in files.items():
        with open(os.path.join(ROOT, "root", name), "wb") as f:
            f.write(content)
    with open(ROOT + "/etc/fstab", "w", encoding="ascii") as f:
        f.write("/dev/vda / ext4 defaults 0 1\n")
    os.makedirs(ROOT + "/etc/systemd/system.conf.d", exist_ok=True)
    with open(ROOT + "/etc/systemd/system.conf.d/patience.conf", "w", encoding="ascii") as f:
        f.write(PATIENCE)
    with open(ROOT + "/etc/hostname", "w", encoding="ascii") as f:
        f.write("softkvm-guest\n")
    subprocess.run(["chroot", ROOT, "passwd", "-q", "-d", "root"], check=True)


def make_image(image):
    subprocess.run(["truncate", "-s", "1G", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", ROOT, image], check=True)


def make_initrd(initrd):
    tree = tempfile.mkdtemp(dir=SCRATCH)
    for name in ("bin", "proc", "dev", "root", "modules"):
        os.mkdir(os.path.join(tree, name))
    shutil.copy(shutil.which("busybox"), tree + "/bin/busybox")
    os.symlink("busybox", tree + "/bin/sh")
    found = {f[:-3]: os.path.join(d, f) for d, _, files in os.walk(os.path.realpath(GUEST + "/kernel"))
             for f in files if f.endswith(".ko")}
    for i, name in enumerate(MODULES):
        shutil.copy(found[name], "%s/modules/%d-%s.ko" % (tree, i, name))
    with open(tree + "/init", "w", encoding="ascii") as f:
        f.write(INIT)
    os.chmod(tree + "/init", 0o755)
    subprocess.run("find . | cpio --quiet -o -H newc | gzip -1 >" + initrd, shell=True, cwd=tree, check=True)


def native():
    """The lines that the jobs print in a chroot of the root."""
    out = subprocess.run(["chroot", ROOT, "env", "-i", "LC_ALL=C", "PATH=/usr/bin:/usr/sbin", "sh", "/root/jobs"],
                         check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300)
    lines = out.stdout.decode().split("\n")[:-1]
    if len(lines) != JOBS.count("\n") - 1 or "" in lines:
        raise Failed("the native jobs: %r" % lines)
    return lines
