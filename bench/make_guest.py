#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tree that the benchmark's programs live in, and an initrd of it.

    bench/make_guest.py OUT     OUT has work, agent, nothing; gets root/ and initrd

The guest's programs are this machine's own, with the libraries they load here, so that a
native run and a guest's run execute the same bytes. Data is generated, the same everywhere.
"""

import glob
import gzip
import bz2
import lzma
import os
import random
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = ("perl", "python3", "gawk", "sed", "grep", "sort", "sha256sum", "gzip", "bzip2", "xz", "sqlite3", "bash",
            "fmt", "wc", "make", "sh", "rm", "as", "ar")
PATH = "/usr/bin:/bin"


def install(root, path):
    """The file at its own path, with what it links to."""
    target = root + path
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    real = os.path.realpath(path)
    shutil.copy2(real, target)


def install_program(root, path):
    install(root, path)
    out = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout.decode()
    for library in re.findall(r"(/\S+) \(0x", out):
        install(root, library)


def python_files():
    """What a run of our program imports."""
    code = ("import sys, runpy, io; o = sys.stdout; sys.stdout = io.StringIO();"
            "runpy.run_path('programs/mixed.py'); sys.stdout = o;"
            "[print(m.__file__) for m in list(sys.modules.values()) if getattr(m, '__file__', None)];"
            "import os, encodings; print(os.__file__)")
    out = subprocess.run(["/usr/bin/python3", "-S", "-c", code], stdout=subprocess.PIPE, check=True).stdout.decode()
    return [f for f in out.split() if os.path.isabs(f)]


def perl_files():
    code = "do './programs/words.pl'; print STDERR qq($_\\n) for values %INC"
    out = subprocess.run(["/usr/bin/perl", "-e", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         check=True).stderr.decode()
    return [f for f in out.split() if os.path.isabs(f)]


def make_text(size):
    """Lines of words with the frequencies of a language, more or less, and some numbers."""
    rng = random.Random(1)
    ends = ("", "", "", "", "ing", "ation", "ed", "s", "ly", "tion of", "ion")
    words = ["".join(rng.choice("aeioutnshrdlcmwfgypbvk") for _ in range(rng.randint(1, 8))) + rng.choice(ends)
             for _ in range(4000)] + ["the", "of", "and", "the end"] * 40
    lines, length = [], 0
    while length < size:
        line = [words[int(len(words) * rng.random() ** 3)] for _ in range(rng.randint(3, 14))]
        if rng.random() < 0.3:
            line.append("%.2f" % (rng.random() * 1000))
        lines.append(" ".join(line))
        length += len(lines[-1]) + 1
    return lines


def make_data(bench):
    lines = make_text(3 << 20)
    text = ("\n".join(lines) + "\n").encode()
    other = [line for i, line in enumerate(lines) if i % 97] + ["more"]
    files = {
        "text": text,
        "part": text[:768 << 10],
        "other": ("\n".join(other) + "\n").encode(),
        "text.gz": gzip.compress(text * 3, 6, mtime=0),
        "text.bz2": bz2.compress(text[:2 << 20]),
        "text.xz": lzma.compress(text, preset=1),
    }
    for name, content in files.items():
        with open(os.path.join(bench, name), "wb") as f:
            f.write(content)


def make_root(out):
    root = os.path.join(out, "root")
    bench = root + "/bench"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bench", "proc", "sys", "dev", "tmp", "modules", "usr/bin", "usr/lib", "usr/lib64"):
        os.makedirs(os.path.join(root, name))
    for name in ("bin", "lib", "lib64"):
        os.symlink("usr/" + name, os.path.join(root, name))
    for name in ("work", "agent", "nothing"):
        shutil.copy2(os.path.join(out, name), bench)
    shutil.copytree(os.path.join(HERE, "programs"), bench + "/programs")
    make_data(bench)
    os.chdir(bench)
    for name in PROGRAMS:
        path = shutil.which(name, path=PATH)
        if not path:
            sys.exit("%s: no %s here (tools/install-deps.sh bench)" % (sys.argv[0], name))
        install_program(root, path)
    cc1 = subprocess.run(["gcc", "-print-prog-name=cc1"], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    install_program(root, cc1)
    os.symlink(cc1, bench + "/cc1")
    os.mkdir(bench + "/out")
    for unit in ("compress", "hash", "sort", "text"):
        with open(bench + "/%s.i" % unit, "wb") as f:
            f.write(subprocess.run(["gcc", "-E", "-P", "-D_GNU_SOURCE", os.path.join(HERE, "workloads", unit + ".c")],
                                   stdout=subprocess.PIPE, check=True).stdout)
    modules = python_files()
    os.makedirs(root + os.path.dirname(modules[-1]) + "/lib-dynload", exist_ok=True)
    for path in modules + perl_files():
        if path.endswith(".so"):
            install_program(root, path)
        else:
            install(root, path)
        cached = glob.glob(os.path.dirname(path) + "/__pycache__/" + os.path.basename(path)[:-3] + ".*.pyc")
        for p in cached if path.endswith(".py") else ():
            install(root, p)
    return root


def main():
    out = os.path.abspath(sys.argv[1])
    root = make_root(out)
    subprocess.run("find . | cpio --quiet -o -H newc >%s.new && mv %s.new %s" % ((os.path.join(out, "initrd"),) * 3),
                   shell=True, cwd=root, check=True)
    size = os.path.getsize(os.path.join(out, "initrd"))
    print("%s/initrd: %d MB" % (out, size >> 20))


if __name__ == "__main__":
    main()
