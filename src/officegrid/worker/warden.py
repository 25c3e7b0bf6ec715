"""Kills what a worker left running when the worker itself dies, even by `kill -9`.

A worker starts this script once and keeps the only writing end of its standard input. Lines
"+123" and "-123" name the process groups to guard. When the pipe closes, the worker is gone, and
every group still named is killed. Compared with a parent-death signal this reaches the children
of the program as well, does not depend on which thread started it, and costs nothing per start.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    guarded: set[int] = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        if line.startswith(b"+"):
            guarded.add(group)
        else:
            guarded.discard(group)
    for group in guarded:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
