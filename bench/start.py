"""`python -m bench start`: CPU from the start of a worker to its first claim and first commit.

A real coordinator, and a worker that has nothing but its identity: no bundle and no compiled
program of an earlier run. What counts is CPU time and not seconds, because a guest's processor
may be emulated; hence also the ratio to a Python that does nothing.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from bench.report import Figure, heading, show
from bench.start_steps import CLAIMING, COMMITTED, STEPS

ROOT = Path(__file__).resolve().parents[1]
RECORDS = 20
WITHIN_S = 120.0


def run(folder: Path, rounds: int) -> None:
    """Print the median of `rounds` starts (the first one, which fills caches, is left out)."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    from acceptance.grid import Grid

    heading(f"Start of a worker, CPU; median of {rounds}")
    grid = Grid(folder / "start")
    try:
        grid.start()
        found = [_first_unit(grid, folder, number) for number in range(rounds + 1)][1:]
        bare_ms = statistics.median(_bare_ms() for _ in range(rounds + 1))
    finally:
        grid.close()
    show(Figure("python -c pass", f"{bare_ms:.0f} ms"))
    for step in STEPS:
        own = statistics.median(one[step][0] for one in found)
        children = statistics.median(one[step][1] for one in found)
        bar = {CLAIMING: "aim <= 25 times bare", COMMITTED: "aim <= 35 times bare"}.get(step, "")
        ratio = f"{(own + children) / bare_ms:.1f} times bare"
        parts = f" ({own:.0f} worker + {children:.0f} program)" if children else ""
        show(Figure(step, f"{own + children:.0f} ms, {ratio}{parts}", bar))


def _first_unit(grid, folder: Path, number: int) -> dict[str, tuple[float, float]]:  # type: ignore[no-untyped-def]
    """CPU of the worker and of its program in ms, by step."""
    from acceptance.grid import wait_for
    from acceptance.projects import double_job

    job = double_job(folder / f"start-job-{number}", records=RECORDS, name=f"start-{number}")
    # Another program each time: its bundle must come over the network.
    program = job.parent / "program.py"
    program.write_text(f"{program.read_text()}\n# {number}\n")
    grid.submit(job)
    name = f"start-{number}"
    home = grid.join(name, "worker")
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "bench.start_probe", "worker"],
            cwd=ROOT, env=grid.environment(home), stdin=subprocess.DEVNULL, stderr=file,
        )  # fmt: skip
    try:
        wait_for(lambda: COMMITTED in log.read_text(), COMMITTED, WITHIN_S)
    finally:
        worker.terminate()
        worker.wait()
    told = [json.loads(line) for line in log.read_text().splitlines() if '"start_step"' in line]
    return {one["start_step"]: (one["cpu_ms"], one["children_ms"]) for one in told}


def _bare_ms() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "pass"], check=True, env=dict(os.environ))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
