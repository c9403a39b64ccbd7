#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run the kernel's KVM selftests under SoftKVM and compare with expect.txt.

usage: run.py [--quick | --full] [--list] [--times N] [NAME...]

--quick  only the rows of expect.txt marked quick (default), --full all of them;
names (with or without x86_64/) pick single tests whatever they are marked.
The programs are those of build.sh, which is called first. BUILD names the build
directory (default build), SELFTESTS the directory of the programs, RUNNER the
command they run under (default $BUILD/softkvm; empty: this machine's own KVM).
Logs and junit.xml are left in $BUILD/selftests/logs.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.abspath(os.environ.get("BUILD") or "build")
OUT = os.path.join(BUILD, "selftests")
PROGRAMS = os.environ.get("SELFTESTS") or os.path.join(OUT, "bin")
RUNNER = os.environ.get("RUNNER", os.path.join(BUILD, "softkvm")).split()
LOGS = os.path.join(OUT, "logs")
DEFAULT_LIMIT = 60
SKIP_STATUS = 4
EXPECTATIONS = ("pass", "skip", "xfail")


def first_line(path):
    try:
        with open(path) as f:
            return f.readline().strip()
    except OSError:
        return ""


def cpuinfo(key):
    with open("/proc/cpuinfo") as f:
        for line in f:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def host_features():
    """What expect.txt may ask of this machine in its third column."""
    vendor = {"GenuineIntel": "intel", "AuthenticAMD": "amd", "HygonGenuine": "hygon"}
    clock = first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    flags = cpuinfo("flags").split()
    yes = {False: "no", True: "yes"}
    return {
        "vendor": vendor.get(cpuinfo("vendor_id"), "other"),
        # sys_clocksource_is_based_on_tsc() of the selftests
        "tsc_clock": yes[clock in ("tsc", "hyperv_clocksource_tsc_page")],
        "page_idle": yes[os.access("/sys/kernel/mm/page_idle/bitmap", os.R_OK | os.W_OK)],
        "mwait": yes["monitor" in flags],
        "xsaves": yes["xsaves" in flags],
        "schedstat": yes[len(first_line("/proc/self/schedstat").split()) > 1],
        "root": yes[os.geteuid() == 0],
        "smp": yes[len(os.sched_getaffinity(0)) > 1],
    }


class Row:
    def __init__(self, where, fields, reason):
        self.name, self.expect, self.when, self.set, limit = fields
        self.reason = reason
        try:
            self.limit = DEFAULT_LIMIT if limit == "-" else int(limit)
        except ValueError:
            sys.exit(f"{where}: bad time limit {limit}")
        if self.expect not in EXPECTATIONS:
            sys.exit(f"{where}: {self.expect} is none of {', '.join(EXPECTATIONS)}")
        if self.set not in ("quick", "full"):
            sys.exit(f"{where}: {self.set} is neither quick nor full")
        if self.expect != "pass" and not reason:
            sys.exit(f"{where}: no reason given")
        self.conditions = []
        for condition in [] if self.when == "-" else self.when.split(","):
            match = re.fullmatch(r"(\w+)(!?=)(\w+)", condition)
            if not match:
                sys.exit(f"{where}: bad condition {condition}")
            self.conditions.append(match.groups())

    def holds(self, host, where):
        for key, relation, value in self.conditions:
            if key not in host:
                sys.exit(f"{where}: unknown host feature {key}")
            if (host[key] == value) != (relation == "="):
                return False
        return True


def read_expectations(path, host):
    """name -> the first row of that name whose conditions hold here."""
    rows, names = {}, set()
    with open(path) as f:
        for number, line in enumerate(f, 1):
            where = f"{path}:{number}"
            if not line.strip() or line.startswith("#"):
                continue
            fields = line.split(None, 5)
            if len(fields) < 5:
                sys.exit(f"{where}: too few columns")
            row = Row(where, fields[:5], fields[5].strip() if len(fields) > 5 else "")
            names.add(row.name)
            if row.holds(host, where) and row.name not in rows:
                rows[row.name] = row
    for name in sorted(names - set(rows)):
        sys.exit(f"{path}: no row of {name} applies to this machine")
    return rows


def programs():
    found = []
    for folder, _, files in os.walk(PROGRAMS):
        relative = os.path.relpath(folder, PROGRAMS)
        if relative.split(os.sep)[0] in ("lib",):
            continue
        for name in files:
            path = os.path.join(folder, name)
            if "." not in name and os.access(path, os.X_OK):
                found.append(os.path.normpath(os.path.join(relative, name)))
    return sorted(found)


def run_one(name, limit):
    """(pass|skip|fail|timeout, exit status, seconds, log path)"""
    log = os.path.join(LOGS, name.replace("/", ".") + ".log")
    path = os.path.join(PROGRAMS, name)
    start = time.monotonic()
    with open(log, "w") as out:
        process = subprocess.Popen(RUNNER + [path], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT, cwd=os.path.dirname(path),
                                   start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        # Some tests fork; what is left of them goes with the session's group.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    result = {None: "timeout", 0: "pass", SKIP_STATUS: "skip"}.get(status, "fail")
    return result, status, time.monotonic() - start, log


def judge(expect, result):
    """(passed|failed|skipped, remark) of a result where expect was expected."""
    if result in ("fail", "timeout"):
        return ("skipped", "expected") if expect == "xfail" else ("failed", "")
    if expect == "xfail":
        return "failed", f"unexpected {result}: update expect.txt"
    if result != expect:
        return "failed", f"unexpected {result}"
    return ("passed", "") if result == "pass" else ("skipped", "")


def tail(path, lines):
    with open(path, errors="replace") as f:
        return f.read().splitlines()[-lines:]


def junit(results, path):
    suite = ET.Element("testsuite", name="kvm-selftests", tests=str(len(results)),
                       failures=str(sum(r["verdict"] == "failed" for r in results)),
                       skipped=str(sum(r["verdict"] == "skipped" for r in results)),
                       time=f"{sum(r['seconds'] for r in results):.1f}")
    for r in results:
        case = ET.SubElement(suite, "testcase", classname="kvm", name=r["name"],
                             time=f"{r['seconds']:.2f}")
        if r["verdict"] == "failed":
            failure = ET.SubElement(case, "failure", message=r["result"] + " " + r["remark"])
            text = "\n".join(tail(r["log"], 40))
            failure.text = re.sub(r"[^\t\n\x20-\x7e]", "?", text)
        elif r["verdict"] == "skipped":
            ET.SubElement(case, "skipped", message=f"{r['result']}: {r['reason']}")
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def select(rows, args):
    if not args.names:
        return [r for r in rows.values() if args.full or r.set == "quick"]
    chosen = []
    for name in args.names:
        hits = [r for r in rows.values() if name in (r.name, os.path.basename(r.name))]
        if not hits:
            sys.exit(f"no test {name} in expect.txt")
        chosen += hits
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--full", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help="show what would run")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="run each N times")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()

    # The tests run in sessions of their own: a killed run.py has to take them along.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))

    host = host_features()
    rows = read_expectations(os.path.join(HERE, "expect.txt"), host)
    chosen = select(rows, args)
    if args.list:
        for row in chosen:
            print(f"{row.name:44} {row.expect:6} {row.set:6} {row.limit:4} s  {row.reason}")
        return 0

    if "SELFTESTS" not in os.environ:
        if subprocess.call([os.path.join(HERE, "build.sh"), OUT]):
            print("0 passed, 1 failed, 0 skipped")
            return 1
    os.makedirs(LOGS, exist_ok=True)
    print("host: " + " ".join(f"{k}={v}" for k, v in host.items()), flush=True)

    results = []
    present = programs()
    for name in sorted(set(present) - set(rows)):
        print(f"{name}: built, but not in expect.txt")
    for row in chosen * args.times:
        if row.name not in present:
            result, status, seconds, log = "fail", None, 0.0, os.devnull
            verdict, remark = "failed", "not built"
        else:
            result, status, seconds, log = run_one(row.name, row.limit)
            verdict, remark = judge(row.expect, result)
        results.append({"name": row.name, "result": result, "verdict": verdict, "log": log,
                        "remark": remark, "seconds": seconds, "reason": row.reason})
        mark = "FAIL" if verdict == "failed" else "ok"
        note = remark if verdict == "failed" else row.reason if result != "pass" else ""
        print(f"{mark:4} {row.name:44} {result:8}{seconds:7.1f} s  {note}".rstrip(), flush=True)
        if verdict == "failed" and result != "pass":
            if status:
                how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
                print(f"     {how}; the end of {os.path.relpath(log)}:")
            for line in tail(log, 12):
                print("     | " + line[:200])
    if not args.names:
        for name in sorted(set(present) - set(rows)):
            results.append({"name": name, "result": "unlisted", "verdict": "failed", "log": os.devnull,
                            "remark": "not in expect.txt", "seconds": 0.0, "reason": ""})

    junit(results, os.path.join(LOGS, "junit.xml"))
    count = {v: sum(r["verdict"] == v for r in results) for v in ("passed", "failed", "skipped")}
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
