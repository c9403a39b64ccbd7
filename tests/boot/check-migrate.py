#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Live migration between two QEMU processes over loopback TCP, the guest writing memory all the while:
once with the dirty bitmap, once with dirty rings. All of RAM is compared before the guest goes on.
    tests/boot/check-migrate.py [bitmap|ring ...]"""
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

BUILD = os.environ.get("BUILD", "build")
LOGS = os.path.join(BUILD, "tests", "logs")
ACCEL = {"bitmap": "kvm", "ring": "kvm,dirty-ring-size=4096"}
MEMORY = 256
BOOT_LIMIT, MIGRATE_LIMIT = 240, 240
# Rewrites files in RAM for ever and counts aloud.
SCRIPT = ("i=0; while :; do i=$((i+1)); echo tick-$i; dd if=/dev/urandom of=/tmp/a bs=64k count=8 2>/dev/null; "
          "dd if=/tmp/a of=/tmp/b$((i%8)) bs=64k 2>/dev/null; done\n")
passed = failed = 0


def check(what, ok):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAIL:", what)


class Qemu:
    def __init__(self, name, accel, directory, extra):
        self.log = os.path.join(LOGS, "migrate-%s.log" % name)
        self.qmp_path = os.path.join(directory, name + ".qmp")
        open(self.log, "wb").close()
        self.stderr = open(self.log + ".err", "wb")
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "softkvm"), "qemu-system-x86_64", "-accel", accel, "-cpu", "host",
             "-m", str(MEMORY), "-display", "none", "-nodefaults", "-no-reboot",
             "-chardev", "socket,id=s,path=%s,server=on,wait=off,logfile=%s" % (
                 os.path.join(directory, name + ".serial"), self.log),
             "-serial", "chardev:s", "-qmp", "unix:%s,server=on,wait=off" % self.qmp_path,
             "-kernel", os.path.join(BUILD, "guest", "vmlinuz"),
             "-initrd", os.path.join(BUILD, "guest", "initrd.gz"),
             "-append", "console=ttyS0 quiet softkvm.do=shell"] + extra,
            stdin=subprocess.DEVNULL, stdout=self.stderr, stderr=self.stderr)
        self.qmp = self.connect(self.qmp_path).makefile("rw")
        self.qmp.readline()
        self.command("qmp_capabilities")

    def connect(self, path):
        for _ in range(200):
            try:
                s = socket.socket(socket.AF_UNIX)
                s.connect(path)
                s.settimeout(60)
                return s
            except OSError:
                s.close()
                time.sleep(0.05)
        raise RuntimeError("QEMU did not start: see " + self.log + ".err")

    def command(self, name, **arguments):
        self.qmp.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.qmp.flush()
        while True:
            answer = json.loads(self.qmp.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError("%s: %s" % (name, answer["error"]["desc"]))

    def type(self, text):
        s = self.connect(self.qmp_path.replace(".qmp", ".serial"))
        s.sendall(text.encode())
        return s

    def output(self):
        with open(self.log, "rb") as f:
            return f.read().decode(errors="replace")

    def last_tick(self):
        ticks = re.findall(r"^tick-(\d+)", self.output(), re.M)
        return int(ticks[-1]) if ticks else 0

    def wait(self, condition, limit):
        end = time.time() + limit
        while time.time() < end and self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.1)
        return False

    def dump(self, path):
        self.command("pmemsave", val=0, size=MEMORY << 20, filename=path)

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stderr.close()


def differences(source, target, directory):
    paths = [os.path.join(directory, name) for name in ("source.ram", "target.ram")]
    source.dump(paths[0])
    target.dump(paths[1])
    found, digest = [], hashlib.sha256()
    with open(paths[0], "rb") as f, open(paths[1], "rb") as g:
        for base in range(0, MEMORY << 20, 4096):
            a, b = f.read(4096), g.read(4096)
            digest.update(a)
            if a != b:
                found += [base + i for i in range(len(a)) if a[i] != b[i]]
    print("source memory sha256 %s, %d bytes differ" % (digest.hexdigest()[:16], len(found)))
    for path in paths:
        os.unlink(path)
    return found


def is_wall_clock(differing):
    """Restoring MSR_KVM_WALL_CLOCK writes its record of 12 bytes, in KVM as here. Nothing else may differ."""
    return not differing or differing[-1] - (differing[0] & ~3) < 12


def migrate(kind, directory):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    source = Qemu(kind + "-source", ACCEL[kind], directory, [])
    target = None
    try:
        check(kind + ": boots", source.wait(lambda: "init is running" in source.output(), BOOT_LIMIT))
        time.sleep(1)
        keyboard = source.type(SCRIPT)
        check(kind + ": guest is busy", source.wait(lambda: source.last_tick() > 3, BOOT_LIMIT))
        target = Qemu(kind + "-target", ACCEL[kind], directory, ["-S", "-incoming", "tcp:127.0.0.1:%d" % port])
        source.command("migrate-set-capabilities", capabilities=[{"capability": "auto-converge", "state": True}])
        source.command("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "downtime-limit": 2000})
        source.command("migrate", uri="tcp:127.0.0.1:%d" % port)
        source.wait(lambda: source.command("query-migrate").get("status") in ("completed", "failed"), MIGRATE_LIMIT)
        info = source.command("query-migrate")
        check(kind + ": migration completes (%s)" % info.get("status"), info.get("status") == "completed")
        if info.get("status") != "completed":
            return
        print("migrate %s: %d ms, downtime %d ms, %d pages sent, %d rounds" % (
            kind, info["total-time"], info["downtime"], info["ram"]["normal"], info["ram"]["dirty-sync-count"]))
        target.wait(lambda: target.command("query-status")["status"] != "inmigrate", 30)
        differing = differences(source, target, directory)
        check("%s: memory is equal, but for bytes %s" % (kind, " ".join("%x" % i for i in differing[:20])),
              is_wall_clock(differing))
        before = source.last_tick()
        target.command("cont")
        check(kind + ": guest goes on", target.wait(lambda: target.last_tick() > before + 3, 120))
        ticks = [int(t) for t in re.findall(r"^tick-(\d+)", target.output(), re.M)]
        check(kind + ": and counts on", ticks == list(range(ticks[0], ticks[0] + len(ticks))) if ticks else False)
        check(kind + ": QEMU has nothing to say", os.path.getsize(target.log + ".err") == 0 and
              os.path.getsize(source.log + ".err") == 0)
        keyboard.close()
    finally:
        source.end()
        if target:
            target.end()


os.makedirs(LOGS, exist_ok=True)
with tempfile.TemporaryDirectory() as tmp:
    for kind in sys.argv[1:] or ["bitmap", "ring"]:
        try:
            migrate(kind, tmp)
        except (RuntimeError, OSError, ValueError) as e:
            check("%s: %s" % (kind, e), False)
print("%d passed, %d failed" % (passed, failed))
sys.exit(1 if failed else 0)
