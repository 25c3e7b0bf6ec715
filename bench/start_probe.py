"""`python -m bench.start_probe …`: `officegrid …` that also says what CPU it has taken so far.

A line of JSON on stderr at each step: {"start_step", "cpu_ms", "children_ms"}. The first is the
CPU time of this process with all its threads, the second that of the program it has started.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.start_steps import CLAIMED, CLAIMING, COMMITTED, STARTED

_told: set[str] = set()


def main() -> None:
    # Loaded here and not at the top, so that nothing is counted that the command does not load.
    from officegrid.cli.main import main as officegrid
    from officegrid.worker import main as worker_main
    from officegrid.worker.link import Link

    _around(worker_main, "run_worker", STARTED, None)
    _around(Link, "claim", CLAIMING, CLAIMED)
    _around(Link, "commit", None, COMMITTED)
    officegrid()


def _around(owner: Any, name: str, before: str | None, after: str | None) -> None:
    real: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(real)
    def told(*arguments: Any, **options: Any) -> Any:
        _tell(before)
        result = real(*arguments, **options)
        _tell(after)
        return result

    setattr(owner, name, told)


def _tell(step: str | None) -> None:
    if step is None or step in _told:
        return
    _told.add(step)
    figures = {
        "start_step": step,
        "cpu_ms": 1000 * time.process_time(),
        "children_ms": sum(map(_cpu_ms, _descendants(os.getpid()))),
    }
    sys.stderr.write(json.dumps(figures) + "\n")
    sys.stderr.flush()


def _descendants(pid: int) -> list[int]:
    """The kernel's own list; see proc_pid_children(5)."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _cpu_ms(pid: int) -> float:
    """Of all threads that live; the first number of /proc/PID/task/TID/schedstat counts ns."""
    return (
        sum(
            int(path.read_text().split()[0])
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )
        / 1e6
    )


if __name__ == "__main__":
    main()
