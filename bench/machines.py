# SPDX-License-Identifier: MIT
"""Where a workload can run: on the host, or in a guest of one QEMU under TCG or under SoftKVM.

A runner takes commands for bench/agent.c, and reads this host's clocks when the agent says that
what counts begins and ends. The CPU time of a guest's workload is that of its whole QEMU process
in between: no guest clock is believed, and time in which the host ran something else is not in it.
"""

import os
import select
import socket
import subprocess
import time

BUILD = os.path.abspath(os.environ.get("BUILD") or "build")
BENCH = os.path.join(BUILD, "bench")
GUEST = os.path.join(BUILD, "guest")
QEMU = os.environ.get("QEMU", "qemu-system-x86_64")

# name: (SOFTKVM_ENGINE or None for QEMU's own translator)
ENGINES = {"tcg": None, "softkvm": "dbt", "interp": "interp"}


class Failed(Exception):
    """A workload or a machine did not do what it should."""


def qemu(engine, *arguments):
    """Command and environment of one QEMU."""
    env = dict(os.environ)
    if ENGINES[engine] is None:
        command = [QEMU, "-accel", "tcg", "-cpu", "max"]
    else:
        env["SOFTKVM_ENGINE"] = ENGINES[engine]
        command = [os.path.join(BUILD, "softkvm"), QEMU, "-accel", "kvm", "-cpu", "host"]
    return command + ["-display", "none", "-no-reboot", "-nodefaults"] + list(arguments), env


def process_cpu(pid):
    """Seconds of CPU time a process has used, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)


class Runner:
    """An agent at the other end of a socket."""

    def __init__(self, name, command, env=None, cwd=None, limit=60):
        self.name, self.buffer = name, b""
        os.makedirs(os.path.join(BENCH, "logs"), exist_ok=True)
        self.errors = os.path.join(BENCH, "logs", name + ".err")
        self.channel, theirs = socket.socketpair()
        with open(self.errors, "ab") as err, theirs:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(command, env=env, cwd=cwd, stdin=theirs, stdout=theirs, stderr=err)
        try:
            self.expect("agent: ready", limit)
        except Failed:
            self.close()
            raise

    def line(self, limit):
        end = time.monotonic() + limit
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.channel], [], [], max(0, end - time.monotonic()))
            data = self.channel.recv(4096) if ready else b""
            if not data:
                raise Failed("%s: %s" % (self.name, "ended" if ready else "no answer in %d s" % limit))
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode(errors="replace").strip()

    def expect(self, word, limit):
        while True:
            line = self.line(limit)
            if line.startswith(word):
                return line
            if line.startswith("D "):
                raise Failed("%s: status %s" % (self.name, line[2:]))

    def say(self, line):
        try:
            self.channel.sendall(line.encode() + b"\n")
        except OSError as e:
            raise Failed("%s: %s" % (self.name, e)) from None

    def clock(self):
        return process_cpu(self.process.pid)

    def run(self, command, limit=120):
        """One workload: host is the CPU time we see, guest the one it sees; all in seconds."""
        self.say(command)
        self.expect("B", limit)
        wall, cpu = time.monotonic(), self.clock()
        self.say("")
        result = self.expect("E", limit).split()
        cpu, wall = self.clock() - cpu, time.monotonic() - wall
        self.say("")
        status = self.expect("D", limit)
        if status != "D 0":
            raise Failed("%s: %s: status %s" % (self.name, command, status))
        return {"host": cpu, "guest": int(result[1]) / 1e9, "wall": wall, "sum": result[2], "ops": int(result[3])}

    def close(self):
        try:
            self.say("Q")
            self.process.wait(10)
        except (Failed, subprocess.TimeoutExpired):
            self.process.kill()
        self.process.wait()
        self.channel.close()


class Native(Runner):
    """The host. Its workloads' own clocks are the host's."""

    def __init__(self, cpu=None):
        super().__init__("native", ["./agent"] + ([str(cpu)] if cpu is not None else []),
                         cwd=os.path.join(BENCH, "root", "bench"))

    def clock(self):
        return 0.0

    def run(self, command, limit=120):
        result = super().run(command, limit)
        result["host"] = result["guest"]
        return result


class Guest(Runner):
    """A guest with the benchmark's initrd."""

    def __init__(self, engine, *arguments, memory=1024, cpus=1, limit=180):
        log = os.path.join(BENCH, "logs", engine + ".console")
        command, env = qemu(engine, "-m", str(memory), "-smp", str(cpus), "-kernel", GUEST + "/vmlinuz",
                            "-initrd", BENCH + "/initrd", "-append", "console=ttyS0 quiet rdinit=/bench/agent panic=-1",
                            "-serial", "file:" + log, "-chardev", "stdio,id=agent,signal=off",
                            "-serial", "chardev:agent", *arguments)
        super().__init__(engine, command, env, limit=limit)


def boot_to(engine, arguments, word, console, limit=300):
    """Seconds from QEMU's start until word is on its console, and CPU seconds by then."""
    command, env = qemu(engine, *arguments, *console)
    before = time.monotonic()
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:
        text = b""
        try:
            while word not in text:
                left = before + limit - time.monotonic()
                ready, _, _ = select.select([process.stdout], [], [], max(0, left))
                data = os.read(process.stdout.fileno(), 65536) if ready else b""
                if not data:
                    raise Failed("%s: no %r on the console" % (engine, word))
                text += data
            wall, cpu = time.monotonic() - before, process_cpu(process.pid)
        finally:
            process.kill()
    return {"host": cpu, "guest": wall, "wall": wall, "sum": "", "ops": 1}


def boot_to_init(engine, memory=512):
    return boot_to(engine, ["-m", str(memory), "-kernel", GUEST + "/vmlinuz", "-initrd", GUEST + "/initrd.gz",
                            "-append", "console=ttyS0 quiet"], b"init is running", ["-serial", "stdio"])
