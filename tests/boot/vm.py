# SPDX-License-Identifier: MIT
"""QEMU under SoftKVM for the machine tests: serial console, QMP, checks.

BUILD names the build directory (default build), RUNNER the command that QEMU runs
under (default $BUILD/softkvm; empty: this machine's own KVM). Logs go to
$BUILD/tests/logs/machine-NAME.log (serial console) and .err (QEMU's own words).
"""

import codecs
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

BUILD = os.path.abspath(os.environ.get("BUILD") or "build")
RUNNER = os.environ.get("RUNNER", os.path.join(BUILD, "softkvm")).split()
GUEST = os.path.join(BUILD, "guest")
LOGS = os.path.join(BUILD, "tests", "logs")
SCRATCH = tempfile.mkdtemp(prefix="softkvm-machine-")

KERNEL = ["-kernel", GUEST + "/vmlinuz", "-initrd", GUEST + "/initrd.gz"]


def append(*words):
    return ["-append", " ".join(("console=ttyS0", "quiet") + words)]


class Failed(Exception):
    """An expectation of one check was not met."""


class Checks:
    """Named checks; the sum is the last line, in the form tests/run.sh reads."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def run(self, name, function, *args, **kwargs):
        start = time.time()
        try:
            note = function(*args, **kwargs)
        except (Failed, OSError, subprocess.SubprocessError, ValueError) as e:
            self.failed += 1
            print("FAIL: %s: %s" % (name, e))
        else:
            self.passed += 1
            print("ok: %s (%.0f s%s)" % (name, time.time() - start, ", " + note if note else ""))
        sys.stdout.flush()

    def skip(self, name, why):
        self.skipped += 1
        print("skipped: %s: %s" % (name, why))

    def finish(self):
        shutil.rmtree(SCRATCH, ignore_errors=True)
        print("%d passed, %d failed, %d skipped" % (self.passed, self.failed, self.skipped))
        sys.exit(self.failed != 0)


class Console:
    """The serial console of a guest that somebody runs. Users connect `serial` and say whose errors() go with it."""

    def __init__(self, name, limit):
        os.makedirs(LOGS, exist_ok=True)
        self.name, self.deadline = name, time.time() + limit
        self.text = ""
        self.seen = 0
        self.serial = None
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.log = open(os.path.join(LOGS, "machine-%s.log" % name), "w", encoding="utf-8")

    def left(self):
        return max(0.0, self.deadline - time.time())

    def errors(self):
        raise NotImplementedError

    def pump(self, timeout):
        """Take what the console has to say. False at its end."""
        self.serial.settimeout(timeout)
        try:
            data = self.serial.recv(65536)
        except (TimeoutError, socket.timeout):
            return True
        except OSError:
            return False
        text = self.decoder.decode(data)
        self.text += text
        self.log.write(text)
        self.log.flush()
        return bool(data)

    def wait(self, pattern, limit=None):
        """The match of pattern in what the console said since the last match."""
        end = min(self.deadline, time.time() + (limit or 1e9))
        alive = True
        while True:
            match = re.search(pattern, self.text[self.seen:])
            if match:
                self.seen += match.end()
                return match
            if not alive or time.time() >= end:
                raise Failed("no %r on the console; its last words: %r; QEMU: %r" %
                             (pattern, self.text[-200:], self.errors()[-200:]))
            alive = self.pump(0.2)

    def send(self, text):
        self.serial.settimeout(10)
        self.serial.sendall(text.encode())

    def clean(self):
        """The guest found nothing wrong in its kernel log, QEMU and SoftKVM had nothing to complain of."""
        bad = re.search("kernel log not clean|Kernel panic|smp error.*|self-detected stall|detected stalls|soft lockup|"
                        "hard LOCKUP|nobody cared|Call Trace|blocked for more than", self.text)
        if bad:
            raise Failed(bad.group(0))
        bad = re.search("softkvm: cannot emulate.*|KVM internal error|error: kvm run failed.*", self.errors())
        if bad:
            raise Failed(bad.group(0))


class Machine(Console):
    """One QEMU. As a context manager it is gone at the end, whatever happened."""

    def __init__(self, name, *args, limit=240, prefix=(), accel="kvm", incoming=None, display=("-nographic",)):
        super().__init__(name, limit)
        base = os.path.join(SCRATCH, name)
        self.qmp_path, self.serial_path = base + ".qmp", base + ".serial"
        for path in (self.qmp_path, self.serial_path):
            if os.path.exists(path):
                os.unlink(path)
        self.err = os.path.join(LOGS, "machine-%s.err" % name)
        command = list(prefix) + RUNNER + ["qemu-system-x86_64", "-accel", accel, "-monitor", "none"]
        command += list(display)
        command += ["-chardev", "socket,id=ser,server=on,wait=on,path=" + self.serial_path,
                    "-serial", "chardev:ser", "-qmp", "unix:%s,server=on,wait=off" % self.qmp_path]
        if incoming:
            command += ["-incoming", incoming]
        with open(self.err, "w", encoding="utf-8") as err:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(command + list(args), stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        self.serial = self.connect(self.serial_path)
        self.monitor = None
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        self.pump(0.2)
        self.serial.close()
        if self.monitor:
            self.monitor.close()
        self.log.close()

    def errors(self):
        with open(self.err, encoding="utf-8", errors="replace") as f:
            return f.read()

    def connect(self, path):
        while self.left():
            if self.process.poll() is not None:
                raise Failed("QEMU ended with status %d: %s" % (self.process.returncode, self.errors()[-300:]))
            try:
                s = socket.socket(socket.AF_UNIX)
                s.connect(path)
                return s
            except OSError:
                s.close()
                time.sleep(0.05)
        raise Failed("QEMU did not open " + path)

    def finish(self, status=0):
        """QEMU ends by itself, with this status."""
        while self.pump(0.2) and self.left():
            pass
        try:
            got = self.process.wait(timeout=max(1, self.left()))
        except subprocess.TimeoutExpired:
            raise Failed("QEMU does not end; the console's last words: %r" % self.text[-200:]) from None
        if got != status:
            raise Failed("QEMU ended with status %d: %s" % (got, self.errors()[-300:]))

    # ---- QMP

    def read_message(self):
        while b"\n" not in self.buffer:
            self.monitor.settimeout(max(1, self.left()))
            data = self.monitor.recv(65536)
            if not data:
                raise Failed("QEMU closed its monitor: " + self.errors()[-300:])
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def qmp(self, command, **arguments):
        if not self.monitor:
            self.monitor = self.connect(self.qmp_path)
            self.read_message()
            self.qmp("qmp_capabilities")
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self.monitor.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self.read_message()
            if "error" in message:
                raise Failed("%s: %s" % (command, message["error"].get("desc")))
            if "return" in message:
                return message["return"]

    def hmp(self, line):
        return self.qmp("human-monitor-command", **{"command-line": line})

    def type(self, text):
        """Keys on the emulated keyboard. The console is read meanwhile: QEMU drops what it cannot write."""
        names = {" ": "spc", "\n": "ret", "=": "equal", "/": "slash", "-": "minus", ".": "dot", ",": "comma",
                 "(": "shift-9", ")": "shift-0", "_": "shift-minus"}
        for c in text:
            self.hmp("sendkey " + names.get(c, c))
            end = time.time() + 0.15
            while time.time() < end and self.pump(0.05):
                pass

    def migrate_done(self):
        while self.left():
            status = self.qmp("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise Failed("migration " + status)
            self.pump(0.2)
        raise Failed("migration does not end")
