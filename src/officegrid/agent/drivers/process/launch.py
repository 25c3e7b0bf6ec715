"""Started by the process driver on Linux and macOS: become the worker, apart from the agent.

A program of its own rather than code between fork and exec, because the agent has threads. It
reads what to do as JSON from stdin, forks, prepares the child (new session, control groups,
lowest priorities, limits, the driver's note) and replaces it by the worker. It ends when the
worker's own program runs: the worker is then nobody's child and outlives the agent.
Exit code 0: it runs. 1: it does not; the reason is on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from officegrid.agent.drivers.process.keeper import Root, born, store_note

assert sys.platform != "win32"  # there is no fork; see windows.py

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main() -> int:
    """Run as `python -m officegrid.agent.drivers.process.launch < order.json`."""
    order: dict[str, Any] = json.load(sys.stdin)
    told, tell = os.pipe()  # closed by a successful exec, so that silence means success
    child = os.fork()
    if child == 0:
        os.close(told)
        _become(order, tell)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    if reason:
        os.waitpid(child, 0)
        print(reason, file=sys.stderr)
    return 1 if reason else 0


def _become(order: dict[str, Any], tell: int) -> NoReturn:
    try:
        os.setsid()
        for tasks in order["groups"]:
            Path(tasks).write_text("0")  # "0" is the writer itself
        _lower_priority()
        _limit(order)
        _redirect(order["log"])
        pid = os.getpid()
        store_note(Path(order["folder"]), Root(pid, born(pid) or ""))
        os.execve(order["argv"][0], order["argv"], order["env"])
    except BaseException as error:
        os.write(tell, f"{type(error).__name__}: {error}".encode())
    os._exit(1)


def _lower_priority() -> None:
    """Nothing here is worth failing for: the machine only gets a little less polite."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    if sys.platform == "linux":
        import psutil

        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with suppress(psutil.Error, OSError):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
        with suppress(OSError):
            # When memory is short, the kernel ends the worker before anything of the desk user.
            Path("/proc/self/oom_score_adj").write_text("1000")


def _limit(order: dict[str, Any]) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if most := order.get("data_bytes"):
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if order.get("subreaper") and sys.platform == "linux":
        import ctypes

        # Orphans of the worker become its own children: they stay in the tree that is stopped
        # and killed. Survives exec (prctl(2)).
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _redirect(log: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    for descriptor in (null, out):
        if descriptor > 2:
            os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
