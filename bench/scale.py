#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cost as the work grows, natively, under TCG and under SoftKVM: vCPUs, guest RAM, processes, code; and memory.

Writes $BUILD/bench/scale.txt and scale.json.
"""

import argparse
import json
import os
import re
import statistics
import sys

from machines import BENCH, ENGINES, Failed, Guest, Native, boot_to_init

MIB = 1 << 20


class Report:
    """Tables on the terminal and in files."""

    def __init__(self):
        self.lines, self.data, self.failures = [], {}, []

    def say(self, line=""):
        self.lines.append(line)
        print(line, flush=True)

    def row(self, title, key, values, form):
        self.data.setdefault(title, {})[str(key)] = values
        self.say("  %-26s" % key + "".join("%16s" % (form % values[e] if values.get(e) is not None else "-")
                                           for e in self.engines))

    def head(self, title, engines):
        self.engines = engines
        self.say()
        self.say(title)
        self.say("  %-26s" % "" + "".join("%16s" % e for e in engines))

    def write(self):
        with open(os.path.join(BENCH, "scale.txt"), "w", encoding="utf-8") as f:
            f.write("\n".join(self.lines) + "\n")
        with open(os.path.join(BENCH, "scale.json"), "w", encoding="utf-8") as f:
            json.dump({"tables": self.data, "failures": self.failures, "load": os.getloadavg()}, f, indent=1)


def machine(engine, **kwargs):
    return Native() if engine == "native" else Guest(engine, **kwargs)


def median(report, m, command, clock, rounds, limit=300):
    """Seconds for one operation, or None."""
    try:
        samples = [m.run(command, limit) for _ in range(rounds)]
    except Failed as e:
        report.failures.append(str(e))
        return None
    return statistics.median(s[clock] / s["ops"] for s in samples)


def vcpus(report, engines, rounds):
    """n copies on n vCPUs; on c cores the best is n / c times the time of one."""
    jobs = {"sha256": "./work sha256 110", "fork": "./work fork 300", "perl": "perl programs/words.pl"}
    titles = {"wall": "seconds that pass until n copies on n vCPUs are done", "host": "CPU seconds per copy"}
    tables = {c: {} for c in titles}
    for n in (1, 2, 4):
        for e in engines:
            m = machine(e, cpus=n)
            for name, command in jobs.items():
                try:
                    samples = [m.run("N %d %s" % (n, command)) for _ in range(rounds)]
                except Failed as failure:
                    report.failures.append("%d vCPUs: %s" % (n, failure))
                    m.process.kill()
                    break
                for clock, by_key in tables.items():
                    by_key.setdefault("%s, %d" % (name, n), {})[e] = statistics.median(
                        s[clock] / (s["ops"] if clock == "host" else 1) for s in samples)
            m.close()
    for clock, by_key in tables.items():
        report.head(titles[clock], engines)
        for key in sorted(by_key):
            report.row(titles[clock], key, by_key[key], "%.3f s")


def guest_ram(report, engines, rounds):
    guests = [e for e in engines if e != "native"]
    title = "boot to init with so much guest RAM: CPU seconds"
    report.head(title, guests)
    for mib in (256, 1024, 4096, 8192):
        values = {}
        for e in guests:
            try:
                values[e] = statistics.median(boot_to_init(e, mib)["host"] for _ in range(rounds))
            except Failed as failure:
                report.failures.append(str(failure))
        report.row(title, "%d MiB" % mib, values, "%.2f s")
    title = "random access to one byte in each page of so much memory"
    report.head(title, engines)
    machines = {e: machine(e, memory=8192) for e in engines}
    for mib in (16, 64, 256, 1024, 4096):
        report.row(title, "%d MiB" % mib,
                   {e: ns(median(report, m, "S ./work span %d" % mib, "host", rounds)) for e, m in machines.items()}, "%.1f ns")
    for m in machines.values():
        m.close()


def ns(seconds):
    return None if seconds is None else seconds * 1e9


def processes(report, engines, rounds):
    title = "a byte from process to process, in a ring of so many"
    report.head(title, engines)
    machines = {e: machine(e) for e in engines}
    for n in (10, 100, 1000):
        report.row(title, "%d processes" % n,
                   {e: ns(median(report, m, "S ./work ring %d" % n, "host", rounds)) for e, m in machines.items()}, "%.0f ns")
    for m in machines.values():
        m.close()


def code(report, engines, rounds):
    """How much host code that is, SoftKVM's own list of blocks tells (one machine of its own)."""
    sizes = (128, 512, 2048, 8192, 20480) # about ten times as much host code: 1 to 200 MiB
    for first, title in ((True, "a call of a function never called before, in so much guest code"),
                         (False, "a call of one called before")):
        report.head(title, engines)
        machines = {e: machine(e) for e in engines}
        for kib in sizes:
            command = "S ./work code_%s %d" % ("first" if first else "again", kib)
            report.row(title, "%d KiB" % kib,
                       {e: ns(median(report, m, command, "host", rounds)) for e, m in machines.items()}, "%.0f ns")
        for m in machines.values():
            m.close()
    if "softkvm" in engines:
        os.environ["SOFTKVM_PERF_MAP"] = BENCH
        m = Guest("softkvm")
        before = blocks_of(m)
        m.run("S ./work code_first 8192")
        after = blocks_of(m)
        m.close()
        del os.environ["SOFTKVM_PERF_MAP"]
        report.say("  8192 KiB of guest code became %.0f MiB of host code" % ((after - before) / MIB))
        report.data["host bytes for 8 MiB"] = after - before


def blocks_of(m):
    """Bytes of host code so far, and the file is gone when the machine is."""
    path = os.path.join(BENCH, "perf-%d.map" % m.process.pid)
    with open(path, encoding="ascii") as f:
        return sum(int(line.split()[1], 16) for line in f)


def resident(pid, ram_mib):
    """MiB of a process: guest RAM, the rest, and of that translated code."""
    ram = code_bytes = rest = 0
    with open("/proc/%d/smaps" % pid, encoding="utf-8") as f:
        for line in f:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)", line)
            if match:
                size, name = int(match.group(2), 16) - int(match.group(1), 16), match.group(3)
            elif line.startswith("Pss:"):
                pss = int(line.split()[1]) << 10
                if size >= ram_mib * MIB * 3 // 4:
                    ram += pss
                elif "softkvm-code" in name:
                    code_bytes += pss
                else:
                    rest += pss
    return {"ram": ram / MIB, "code": code_bytes / MIB, "rest": rest / MIB}


def memory(report, engines):
    """What a VM takes besides guest RAM: booted, and after every vCPU has run much code."""
    guests = [e for e in engines if e != "native"]
    for busy in (False, True):
        title = "MiB of QEMU's process besides guest RAM, %s" % ("after perl, python and gcc on every vCPU" if busy else "booted")
        report.head(title, guests)
        for n in (1, 2, 4, 8):
            values = {}
            for e in guests:
                m = Guest(e, cpus=n, memory=1536)
                try:
                    for program in ("perl programs/words.pl", "/usr/bin/python3 -S programs/mixed.py",
                                    "./cc1 -quiet -fpreprocessed -O2 sort.i -o -", "./work code_first 4096") if busy else ():
                        m.run("N %d %s" % (n, program), 300)
                    r = resident(m.process.pid, 1536)
                    values[e] = r["code"] + r["rest"]
                except Failed as failure:
                    report.failures.append(str(failure))
                m.close()
            report.row(title, "%d vCPUs" % n, values, "%.0f MiB")


PARTS = {"vcpus": vcpus, "ram": guest_ram, "processes": processes, "code": code, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="native,tcg,softkvm", help="of native," + ",".join(ENGINES))
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    report = Report()
    for part in options.only.split(","):
        if part == "memory":
            memory(report, options.engines.split(","))
        else:
            PARTS[part](report, options.engines.split(","), options.rounds)
    for line in report.failures:
        report.say("FAIL: " + line)
    report.write()
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
