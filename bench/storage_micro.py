"""How many commit-and-claim pairs a second the embedded database makes durable.

Each operation is what one worker's request costs: look the commit up, read the ledger, carry the
edit out (joining it with done neighbours), add the part, store the rate; then claim the next unit.
The baseline, measured in the same run, is the same operations one transaction each.

    python bench/storage_micro.py [--seconds 3] [--group 50] [--workers 64] [--folder DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from operator import methodcaller
from pathlib import Path

from officegrid.core.jobs import JobState
from officegrid.core.ledger_view import LedgerView
from officegrid.core.model import Edit, Lease, LeaseState, Span, SpanState
from officegrid.storage.api import Dataset, Job, Part, PlacedBlock, Rate, Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.data import BlockSlice, Layout

JOB = "job-0123456789abcdef"
TOTAL = 10_000_000_000
UNIT = 1_000


@dataclass
class Worker:
    """One simulated machine and the lease it holds."""

    machine: str
    lease: Lease | None = None
    units: int = 0
    # A real request is parsed before its operation is queued; so is this one.
    block: BlockSlice = field(
        default_factory=lambda: BlockSlice(
            sha256="ab" * 32, stored_bytes=9_000, raw_bytes=60_000, length=60_000, records=UNIT
        )
    )


def claim(tx: Tx, worker: Worker, now: float) -> None:
    """Continue after the last unit where that is free, else cut the largest pending span."""
    view = tx.ledger(JOB)
    start = worker.lease.end if worker.lease else 0
    span: Span | None = view.span_at(start)
    if span is None or span.state != SpanState.PENDING:
        span = view.largest_pending()
        assert span is not None
        start = span.start + span.length // 2 if span.start else 0
    end = min(start + UNIT, span.end)
    worker.units += 1
    lease_id = f"{worker.units:08d}-{worker.machine}"
    lease = Lease(lease_id, start, end, worker.machine, now + 120, now, now, 30.0)
    insert = [Span(start, end, SpanState.LEASED, span.attempts)]
    if span.start < start:
        insert.insert(0, Span(span.start, start, SpanState.PENDING, span.attempts))
    if end < span.end:
        insert.append(Span(end, span.end, SpanState.PENDING, span.attempts))
    tx.apply(JOB, Edit((span,), tuple(insert), (lease,)))
    worker.lease = lease


def commit_edit(view: LedgerView, lease: Lease) -> Edit:
    """Leased becomes done, in one span with the done spans it touches."""
    around = view.spans_over(max(0, lease.start - 1), min(view.total, lease.end + 1))
    own = next(span for span in around if span.start == lease.start)
    remove = [span for span in around if span is own or span.state == SpanState.DONE]
    joined = Span(remove[0].start, remove[-1].end, SpanState.DONE)
    closed = tuple(
        replace(x, state=LeaseState.COMMITTED if x.id == lease.id else LeaseState.SUPERSEDED)
        for x in view.live_leases_over(lease.start, lease.end)
    )
    return Edit(tuple(remove), (joined,), closed)


def commit(tx: Tx, worker: Worker, now: float) -> None:
    """Commit the worker's unit with one block of output."""
    held = worker.lease
    assert held is not None
    if tx.part_of_lease(held.id) is not None:
        raise AssertionError("committed twice")
    view = tx.ledger(JOB)
    lease = view.lease(held.id)
    assert lease is not None
    tx.apply(JOB, commit_edit(view, lease))
    block, digest = worker.block, worker.block.sha256
    end, machine = lease.end, lease.machine
    tx.add_part(
        Part(
            JOB, lease.start, end, 0, lease.id, machine, digest, None, (block,), (), UNIT, 30.0, now
        )
    )
    tx.put_rate(Rate(machine, JOB, 33.0, UNIT, end))


def pair(worker: Worker, now: float) -> Callable[[Tx], None]:
    """One request: commit, then claim the next unit."""

    def operation(tx: Tx) -> None:
        commit(tx, worker, now)
        claim(tx, worker, now)

    return operation


def measure(storage: SqliteStorage, workers: list[Worker], group: int, seconds: float) -> float:
    """Pairs per second in groups of `group`, for about `seconds`."""
    made, at = 0, 0
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        chosen = [workers[(at + i) % len(workers)] for i in range(group)]
        at += group
        now = time.time()
        for done in storage.write_many([pair(worker, now) for worker in chosen]):
            if done.error is not None:
                raise done.error
        made += group
    return made / spent


def measure_blocks(storage: SqliteStorage, blocks: int) -> tuple[float, float]:
    """Milliseconds to read all blocks of a dataset, and to look one range up."""
    names = [f"column_{i}" for i in range(20)]
    placed = [
        PlacedBlock(
            i * UNIT,
            BlockSlice(
                sha256=hashlib.sha256(str(i).encode()).hexdigest(),
                stored_bytes=1,
                raw_bytes=2,
                length=2,
                records=UNIT,
                columns=names,
            ),
        )
        for i in range(blocks)
    ]
    dataset = Dataset("d", Layout(columns=names), blocks * UNIT, 2 * blocks, blocks, "", 0.0)
    storage.write(lambda tx: tx.add_dataset(dataset, placed))
    begun = time.perf_counter()
    assert storage.read(lambda tx: tx.blocks_over("d", 0, blocks * UNIT)) == placed
    whole = time.perf_counter() - begun
    begun = time.perf_counter()
    for i in range(200):
        start = (i * 7919) % blocks * UNIT
        storage.read(methodcaller("blocks_over", "d", start + 1, start + UNIT))
    return whole * 1e3, (time.perf_counter() - begun) / 200 * 1e3


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--group", type=int, default=50)
    options.add_argument("--workers", type=int, default=64)
    options.add_argument("--folder", type=Path, default=None)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        storage = SqliteStorage(Path(folder) / "bench.sqlite")
        job = Job(JOB, "bench", JobState.RUNNING, {}, None, None, 0, TOTAL, "bench", 0.0)
        storage.write(lambda tx: tx.add_job(job))
        workers = [Worker(f"machine-{i:04d}") for i in range(chosen.workers)]
        for worker in workers:
            storage.write(partial(claim, worker=worker, now=time.time()))
        single = measure(storage, workers, 1, chosen.seconds / 3)
        grouped = measure(storage, workers, chosen.group, chosen.seconds)
        print(f"one pair per transaction:      {single:9.0f} pairs/s")
        print(f"{chosen.group:3d} pairs per transaction:     {grouped:9.0f} pairs/s", end="")
        print(f"   ({grouped / single:.1f} x)")
        whole, one = measure_blocks(storage, 5_000)
        print(f"5000 dataset blocks:           {whole:9.1f} ms for all, {one:.3f} ms for one")
        spans = sum(1 for _ in storage.read(lambda tx: list(tx.spans(JOB))))
        print(f"spans in the ledger at the end: {spans}")
        storage.close()


if __name__ == "__main__":
    main()
