#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Debian with systemd, from QEMU's start to the login prompt: TCG and SoftKVM in turn.

The root is that of tests/boot/check-distro (made by debootstrap once; needs root and a mirror).
ROUNDS (default 3) boots each from the same image; every boot discards what it wrote.
"""

import argparse
import json
import os
import shutil
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "boot"))

import distro as debian
from machines import BENCH, GUEST, Failed, boot_to
from vm import SCRATCH


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default="tcg,softkvm")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 3))
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args()
    engines = options.engines.split(",")
    image, initrd = os.path.join(BENCH, "distro.img"), os.path.join(SCRATCH, "initrd")
    samples = {e: [] for e in engines}
    failures = []
    try:
        debian.make_root()
        debian.prepare_root()
        if not os.path.exists(image):
            debian.make_image(image)
        debian.make_initrd(initrd)
        for i in range(options.rounds):
            for k in range(len(engines)):
                engine = engines[(i + k) % len(engines)]
                try:
                    s = boot_to(engine, ["-m", "1024", "-smp", str(options.cpus), "-kernel", GUEST + "/vmlinuz",
                                         "-initrd", initrd, "-append", debian.APPEND, "-drive",
                                         "file=%s,format=raw,if=virtio,snapshot=on" % image],
                                b"login: ", ["-serial", "stdio"], limit=600)
                except Failed as e:
                    failures.append(str(e))
                    continue
                samples[engine].append(s)
                print("round %d %s: %.1f s, CPU %.1f s" % (i + 1, engine, s["wall"], s["host"]), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    median = {e: {c: statistics.median(x[c] for x in s) for c in ("wall", "host")} for e, s in samples.items() if s}
    with open(os.path.join(BENCH, "login.json"), "w", encoding="utf-8") as f:
        json.dump({"samples": samples, "median": median, "failures": failures, "load": os.getloadavg()}, f, indent=1)
    print("Debian to login, %d vCPUs, medians of %d:" % (options.cpus, options.rounds))
    for e, m in median.items():
        print("  %-10s %6.1f s   CPU %6.1f s" % (e, m["wall"], m["host"]))
    if "tcg" in median and "softkvm" in median:
        print("  tcg/softkvm %5.2f     CPU %6.2f" % tuple(median["tcg"][c] / median["softkvm"][c] for c in ("wall", "host")))
    for line in failures:
        print("FAIL: " + line)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
