#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Live migration between two QEMU processes over loopback TCP, the guest writing memory as fast as it can all the
while: once with the dirty bitmap, once with dirty rings. All of RAM is compared, by hash, before the guest goes on.
    tests/boot/check-migrate.py [bitmap|ring ...]
SOFTKVM_ENGINE picks the engine, as ever. Seen to fail (memory differs, in either kind) with memslot_mark_dirty() that
leaves out every 64th page."""
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

BUILD = os.environ.get("BUILD", "build")
LOGS = os.path.join(BUILD, "tests", "logs")
ACCEL = {"bitmap": "kvm", "ring": "kvm,dirty-ring-size=4096"}
MEMORY = 256
BOOT_LIMIT, MIGRATE_LIMIT = 240, 240
# Rewrites 6 MiB of a file in RAM for ever, each page with other bytes than before, and counts aloud. Nothing but
# the kernel's copying goes on between two writes.
SCRIPT = ("cd /tmp;head -c1048576 /dev/urandom>r;for n in 1 2 3 4 5 6 7 8;do cat r;done>a;i=0;while :;do i=$((i+1));"
          "echo tick-$i;dd if=a of=b bs=64k skip=$((i%15+1)) count=96 conv=notrunc 2>/dev/null;done\n")
LINE = r"^tick-(\d+)\r?\n" # all of it: another may be on its way to the log
passed = failed = 0


def check(what, ok):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAIL:", what)


def drain(s):
    try:
        while s.recv(4096):
            pass
    except OSError:
        pass


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
        s.settimeout(None)
        # Nobody reading means a full socket after some hundred characters, and a guest that waits for its UART.
        threading.Thread(target=drain, args=[s], daemon=True).start()
        s.sendall(text.encode())
        return s

    def output(self):
        with open(self.log, "rb") as f:
            return f.read().decode(errors="replace")

    def last_tick(self):
        ticks = re.findall(LINE, self.output(), re.M)
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


def hash_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def differing_bytes(path_a, path_b):
    found = []
    with open(path_a, "rb") as f, open(path_b, "rb") as g:
        for base in range(0, MEMORY << 20, 4096):
            a, b = f.read(4096), g.read(4096)
            if a != b:
                found += [base + i for i in range(len(a)) if a[i] != b[i]]
    return found


def copy_bytes(to, source, start, length):
    with open(source, "rb") as f, open(to, "r+b") as g:
        f.seek(start)
        g.seek(start)
        g.write(f.read(length))


def compare_memory(kind, source, target, directory):
    """Restoring MSR_KVM_WALL_CLOCK writes its record of 12 bytes, in KVM as here: they are left out of the hash.
    Nothing else may differ."""
    paths = [os.path.join(directory, name) for name in ("source.ram", "target.ram")]
    source.dump(paths[0])
    target.dump(paths[1])
    found = differing_bytes(*paths)
    if found and found[-1] - (found[0] & ~3) < 12:
        copy_bytes(paths[1], paths[0], found[0] & ~3, 12)
    hashes = [hash_file(path) for path in paths]
    print("memory of %s: sha256 %s in the source, %s in the target, %d bytes of wall clock left out" % (
        kind, hashes[0][:16], hashes[1][:16], len(found) if found and hashes[0] == hashes[1] else 0))
    check("%s: memory is equal, but for bytes %s" % (kind, " ".join("%x" % i for i in found[:20])),
          hashes[0] == hashes[1] and os.path.getsize(paths[0]) == os.path.getsize(paths[1]) == MEMORY << 20)
    for path in paths:
        os.unlink(path)


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
        ram = info["ram"]
        print("migrate %s: %d ms, downtime %d ms, %d pages sent, %d rounds, throttled %d%%" % (
            kind, info["total-time"], info["downtime"], ram["normal"], ram["dirty-sync-count"],
            info.get("cpu-throttle-percentage", 0)))
        check(kind + ": it is live: pages were sent again", ram["normal"] + ram["duplicate"] > (MEMORY << 20) // 4096 and
              ram["dirty-sync-count"] > 1)
        target.wait(lambda: target.command("query-status")["status"] != "inmigrate", 30)
        compare_memory(kind, source, target, directory)
        before = source.last_tick()
        target.command("cont")
        check(kind + ": guest goes on", target.wait(lambda: target.last_tick() > before + 3, 120))
        ticks = [int(t) for t in re.findall(LINE, target.output(), re.M)]
        check(kind + ": and counts on", ticks == list(range(ticks[0], ticks[0] + len(ticks))) if ticks else False)
        check(kind + ": QEMU has nothing to say", os.path.getsize(target.log + ".err") == 0 and
              os.path.getsize(source.log + ".err") == 0)
        keyboard.shutdown(socket.SHUT_RDWR)
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
