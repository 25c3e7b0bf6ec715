"""Programs that the process driver keeps in its tests: counters, forkers, runaways, gluttons."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Fixed width, one write: a reader, or a freeze, never meets half a number.
COUNT = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
n = 0
while True:
    n += 1
    os.pwrite(file, b"%012d" % n, 0)
    time.sleep(0.02)
"""

# Children in sessions of their own, one of them an orphan; each writes its pid, then counts.
FAMILY = """
import os, subprocess, sys, time
folder = sys.argv[1]
count = [sys.executable, "-c", COUNT]
for name in ("child", "grandchild"):
    subprocess.Popen([*count, f"{folder}/{name}.count"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    subprocess.Popen([*count, f"{folder}/orphan.count"], start_new_session=True)
    os._exit(0)
os.wait()
while True:
    time.sleep(0.1)
"""

# Forks all the time; every process writes a byte.
FORKER = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def child():
    os.write(file, b".")
    time.sleep(0.01)
    os.write(file, b".")
    os._exit(0)
while True:
    for _ in range(4):
        if os.fork() == 0:
            if os.fork() == 0:
                child()
            child()
    time.sleep(0.002)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""

# Takes as many MB as it is told, in one program, and says so.
GLUTTON = """
import sys, time
held = []
for mb in range(int(sys.argv[2])):
    held.append(b"x" * (1 << 20))
open(sys.argv[1], "w").write("full")
time.sleep(600)
"""

BURN = "while True: pass"


def counter(file: Path) -> list[str]:
    return [sys.executable, "-c", COUNT, str(file)]


def family(folder: Path) -> list[str]:
    return [sys.executable, "-c", f"COUNT = {COUNT!r}\n{FAMILY}", str(folder)]


def forker(file: Path) -> list[str]:
    return [sys.executable, "-c", FORKER, str(file)]


def glutton(file: Path, megabytes: int) -> list[str]:
    return [sys.executable, "-c", GLUTTON, str(file), str(megabytes)]


def burner() -> list[str]:
    return [sys.executable, "-c", BURN]


def count_in(file: Path) -> int:
    """What a counter has written; 0: nothing yet."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        return int(os.pread(handle, 12, 0) or b"0")
    finally:
        os.close(handle)
