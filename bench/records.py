"""The records job against `multiprocessing.Pool(2)` over the same function and file.

Both read one CSV file, call the same function on every record and write one CSV file in input
order. Wall time and the CPU time of every process involved, as ratios. Ours runs on a grid that is
up already (as a pool's machine is); everything from the start of the upload to the output file in
its place counts, the submitter's own CPU included.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.report import Figure, heading, show
from officegrid.client.output import OutputSpool
from officegrid.client.submit import submit
from officegrid.client.watch import follow
from officegrid.demo.customers import write_customers
from officegrid.demo.local_grid import LocalGrid

PROGRAM = Path(__file__).parent / "program"
CHUNK = 20_000
COLUMNS = ["id", "name", "email", "domain", "phone", "born", "balance", "note", "key",
           "sounds_like", "checksum"]  # fmt: skip


def run(folder: Path, records: int, rounds: int) -> None:
    heading(f"Records job: {records:,} records, 2 workers, against multiprocessing.Pool(2)")
    source = folder / "customers.csv"
    if not source.exists():
        write_customers(source, records)
    sys.path.insert(0, str(PROGRAM))
    shutil.copytree(PROGRAM, folder / "program", dirs_exist_ok=True)
    walls, cpus = [], []
    with LocalGrid(folder / "grid", lease_s=30) as grid:
        workers = [grid.start_worker("w1"), grid.start_worker("w2")]
        for number in range(rounds):
            pool_wall, pool_cpu, pool_rows = _pool(source, folder / "pool-out.csv")
            wall, cpu, rows = _ours(grid, folder, number)
            if rows != pool_rows:
                raise SystemExit(f"{rows:,} records out, the pool made {pool_rows:,}")
            walls.append(wall / pool_wall)
            cpus.append(cpu / pool_cpu)
            show(
                Figure("pool", f"{pool_wall:.1f} s wall, {pool_cpu:.1f} s CPU"),
                Figure("ours", f"{wall:.1f} s wall, {cpu:.1f} s CPU, {rows / wall:,.0f} records/s"),
                Figure("ratio", f"wall {walls[-1]:.2f} x, CPU {cpus[-1]:.2f} x"),
            )
        rss = [psutil.Process(pid).memory_info().rss / 1e6 for pid in workers]
    show(
        Figure("wall, median", f"{statistics.median(walls):.2f} x", "must <= 1.15, aim 1.05"),
        Figure("CPU, median", f"{statistics.median(cpus):.2f} x", "must <= 1.25, aim 1.10"),
        Figure("worker memory", f"{max(rss):.0f} MB beside the program", "must < 60"),
    )


def _ours(grid: LocalGrid, folder: Path, number: int) -> tuple[float, float, int]:
    # Content the store has already would not travel again: each round brings its own file.
    source = folder / "program" / ".." / "customers.csv"
    _touch_first_row(source, number)
    output = folder / "customers-out.csv"
    before, started = _cpu_of_tree(), time.perf_counter()
    with grid.connection() as connection:
        view = submit(connection, folder / "program" / "job.toml")
        with OutputSpool(connection, view.id, folder) as spool:
            spool.follow()
            for now in follow(connection, view.id):
                view = now
                if view.state == "held":
                    raise SystemExit(view.reason)
            spool.write(output)
    return time.perf_counter() - started, _cpu_of_tree() - before, view.records_out


def _touch_first_row(source: Path, number: int) -> None:
    with source.open("r+b") as file:
        file.readline()
        file.write(str(number % 10).encode())


def _cpu_of_tree() -> float:
    """CPU seconds of this process and everything below it, ended children included."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


# --- the baseline ---------------------------------------------------------------------------


def _pool(source: Path, output: Path) -> tuple[float, float, int]:
    before, started = os.times(), time.perf_counter()
    rows = 0
    with (
        multiprocessing.Pool(2) as pool,
        source.open(encoding="utf-8", errors="surrogateescape", newline="") as file,
        output.open("w", encoding="utf-8", newline="") as target,
    ):
        reader = csv.reader(file)
        columns = next(reader)
        csv.writer(target, lineterminator="\n").writerow(COLUMNS)
        chunks = ((columns, chunk) for chunk in _chunks(reader))
        for count, text in pool.imap(_work, chunks):
            target.write(text)
            rows += count
        pool.close()
        pool.join()
    wall, after = time.perf_counter() - started, os.times()
    cpu = sum(after[i] - before[i] for i in range(4))
    return wall, cpu, rows


def _chunks(reader: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    chunk: list[list[str]] = []
    for row in reader:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _work(task: tuple[list[str], list[list[str]]]) -> tuple[int, str]:
    from normalise import record

    columns, rows = task
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    count = 0
    for row in rows:
        try:
            if len(row) != len(columns):
                raise ValueError("wrong number of fields")
            "".join(row).encode()
            writer.writerow(record(dict(zip(columns, row, strict=True))).values())
            count += 1
        except ValueError:
            continue
    return count, text.getvalue()
