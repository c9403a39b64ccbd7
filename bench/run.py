#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The benchmark: workloads.def natively, under QEMU's TCG and under SoftKVM, in the same QEMU.

Every round boots fresh guests side by side and gives each workload to native, TCG and SoftKVM in
turn. Medians over the rounds; CPU time, so that a busy machine disturbs little (bench/README.md).
A workload whose result differs between any two of them fails.
"""

import argparse
import fnmatch
import json
import math
import os
import statistics
import sys
import time

import chart
from machines import BENCH, ENGINES, Failed, Guest, Native, boot_to_init

HERE = os.path.dirname(os.path.abspath(__file__))
GROUPS = {"small": "small programs", "large": "large programs", "kernel": "kernel services", "boot": "boot"}


def read_workloads(options):
    rows = []
    with open(os.path.join(HERE, "workloads.def"), encoding="utf-8") as f:
        for line in f:
            words = line.split("#")[0].split()
            if not words:
                continue
            quick = words[-1] == "quick"
            group, name, command = words[0], words[1], " ".join(words[2:len(words) - quick])
            rows.append({"group": group, "name": name, "command": command, "quick": quick})
    rows += [{"group": "boot", "name": "boot-to-init", "command": "", "quick": True}]
    wanted = options.only.split(",") if options.only else []
    rows = [r for r in rows if not wanted or any(fnmatch.fnmatch(r["name"], w) or r["group"] == w for w in wanted)]
    return [r for r in rows if r["quick"] or not options.quick]


class Suite:
    """All samples: samples[workload][engine] is a list."""

    def __init__(self, options):
        self.options = options
        self.rows = read_workloads(options)
        self.engines = options.engines.split(",")
        self.samples = {r["name"]: {e: [] for e in self.engines} for r in self.rows}
        self.failures = []
        self.machines = {}

    def machine(self, engine):
        if engine not in self.machines:
            self.machines[engine] = Native() if engine == "native" else Guest(engine)
        return self.machines[engine]

    def drop(self, engine):
        machine = self.machines.pop(engine, None)
        if machine:
            machine.close()

    def sample(self, row, engine):
        try:
            if row["group"] == "boot":
                if engine != "native":
                    self.samples[row["name"]][engine].append(boot_to_init(engine))
                return
            if self.options.warm:
                self.machine(engine).run(row["command"], self.options.limit)
            self.samples[row["name"]][engine].append(self.machine(engine).run(row["command"], self.options.limit))
        except Failed as e:
            self.failures.append("%s: %s" % (row["name"], e))
            if self.machines.get(engine):
                self.machines[engine].process.kill()
            self.drop(engine)

    def round(self, number):
        for row in self.rows:
            for k in range(len(self.engines)):
                engine = self.engines[(k + number) % len(self.engines)]
                self.sample(row, engine)
            if self.options.verbose:
                print(row["name"], *("%s %.3f" % (e, s[-1][self.options.clock])
                                     for e, s in self.samples[row["name"]].items() if s), file=sys.stderr, flush=True)
        for engine in self.engines:
            self.drop(engine)

    def run(self):
        start = time.monotonic()
        try:
            for i in range(self.options.rounds):
                if i and time.monotonic() - start > self.options.budget * i / (i + 1):
                    break # another round would not fit
                print("round %d of %d (%.0f s)" % (i + 1, self.options.rounds, time.monotonic() - start),
                      file=sys.stderr, flush=True)
                self.round(i)
        finally:
            for engine in list(self.machines):
                self.machines[engine].process.kill()
                self.drop(engine)
        self.compare_sums()

    def compare_sums(self):
        for name, by_engine in self.samples.items():
            sums = {s["sum"] for samples in by_engine.values() for s in samples}
            if len(sums) > 1:
                self.failures.append("%s: results differ: %s" %
                                     (name, {e: sorted({s["sum"] for s in v}) for e, v in by_engine.items()}))


# ---- figures

def value(samples, clock):
    """Median seconds for one operation (or for all, if it is one)."""
    return statistics.median(s[clock] / s["ops"] for s in samples) if samples else None


def per_operation(row):
    return row["group"] == "kernel"


def figures(suite, base):
    """One dictionary a row: medians by engine in seconds."""
    out = []
    clock = suite.options.clock
    for row in suite.rows:
        samples = suite.samples[row["name"]]
        which = "wall" if row["group"] == "boot" else clock
        seconds = {e: value(samples.get(e), which) for e in ["native"] + list(ENGINES)}
        old = (base or {}).get(row["name"], {})
        seconds = {e: s if s is not None else old.get(e) for e, s in seconds.items()}
        if not per_operation(row) and row["group"] != "boot":
            for e, s in samples.items():
                if s:
                    seconds[e] = value([dict(x, ops=1) for x in s], which)
        out.append({"group": row["group"], "name": row["name"], "seconds": seconds, "before": old.get("softkvm")})
    return out


def geomean(numbers):
    numbers = [n for n in numbers if n]
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else None


def ratio(row, a, b):
    s = row["seconds"]
    return s[a] / s[b] if s.get(a) and s.get(b) else None


def show_time(seconds):
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return "%.3g %s" % (seconds / scale, unit) if seconds / scale < 999.5 else "%.0f %s" % (seconds / scale, unit)
    return "%.3g ns" % (seconds / 1e-9)


def show(number):
    return "-" if number is None else "%.2f" % number


def columns(rows):
    """(title, engine above, engine below) of the columns with ratios."""
    have = {e for r in rows for e, s in r["seconds"].items() if s}
    out = [("%s/native" % e, e, "native") for e in ENGINES if e in have and "native" in have]
    out += [("tcg/%s" % e, "tcg", e) for e in ENGINES if e != "tcg" and e in have and "tcg" in have]
    return out


def table(rows):
    cols = columns(rows)
    before = any(r["before"] for r in rows)
    engines = [e for e in ["native"] + list(ENGINES) if any(r["seconds"].get(e) for r in rows)]
    lines = []

    def put(name, times, ratios):
        lines.append("%-18s" % name + "".join("%11s" % t for t in times) + "".join("%16s" % r for r in ratios))

    put("", engines, [c[0] for c in cols] + (["before/softkvm"] if before else []))
    for group, title in GROUPS.items():
        members = [r for r in rows if r["group"] == group]
        if not members:
            continue
        lines.append(title)
        for r in members:
            put("  " + r["name"], [show_time(r["seconds"].get(e)) for e in engines],
                [show(ratio(r, a, b)) for _, a, b in cols] +
                ([show(r["before"] / r["seconds"]["softkvm"] if r["before"] and r["seconds"].get("softkvm") else None)]
                 if before else []))
        put("  geometric mean", [""] * len(engines), [show(geomean([ratio(r, a, b) for r in members])) for _, a, b in cols] +
            ([show(geomean([r["before"] / r["seconds"]["softkvm"] for r in members
                            if r["before"] and r["seconds"].get("softkvm")]))] if before else []))
    put("all but boot", [""] * len(engines),
        [show(geomean([ratio(r, a, b) for r in rows if r["group"] != "boot"])) for _, a, b in cols])
    return "\n".join(lines) + "\n"


def describe_machine():
    model = ""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
    return {"cpu": model, "cpus": os.cpu_count(), "load": os.getloadavg(), "kernel": os.uname().release,
            "time": time.strftime("%Y-%m-%d %H:%M:%S")}


def load_base(path):
    if not path:
        return None
    with open(path, encoding="utf-8") as f:
        return {r["name"]: r["seconds"] for r in json.load(f)["figures"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer workloads, two rounds")
    parser.add_argument("--engines", default="native,tcg,softkvm", help="of native,tcg,softkvm,interp")
    parser.add_argument("--only", help="names, patterns or groups, with commas")
    parser.add_argument("--clock", choices=("host", "guest", "wall"), default="host",
                        help="CPU time as the host sees it (default) or as the guest does, or time that passed")
    parser.add_argument("--base", help="results.json of an earlier run: fills in the engines not run now, "
                        "and a column compares SoftKVM then and now")
    parser.add_argument("--warm", action="store_true", help="measure the second run in a row: code is translated by then")
    parser.add_argument("--budget", type=float, default=1e9, help="start no round that would end after so many seconds")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one run of a workload")
    parser.add_argument("--out", default=BENCH, help="directory of results.json, table.txt, chart.svg")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds = min(options.rounds, 2)
    base = load_base(options.base)
    suite = Suite(options)
    begin = describe_machine()
    suite.run()
    rows = figures(suite, base)
    os.makedirs(options.out, exist_ok=True)
    text = table(rows)
    with open(os.path.join(options.out, "table.txt"), "w", encoding="utf-8") as f:
        f.write(text)
    with open(os.path.join(options.out, "results.json"), "w", encoding="utf-8") as f:
        json.dump({"machine": begin, "load_after": os.getloadavg(), "clock": options.clock, "figures": rows,
                   "failures": suite.failures, "samples": suite.samples}, f, indent=1)
    chart.write(os.path.join(options.out, "chart.svg"), rows, GROUPS)
    print(text + "Times are medians of CPU time (boot: of time that passed); kernel services: one operation.\n"
          "load %.1f before, %.1f after; %s" % (begin["load"][0], os.getloadavg()[0], begin["cpu"]))
    for line in suite.failures:
        print("FAIL: " + line)
    sys.exit(bool(suite.failures))


if __name__ == "__main__":
    main()
