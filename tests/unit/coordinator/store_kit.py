"""A data folder in use: jobs, versions, inputs and outputs over a real database and object store.

`check` is the promise of the clean-up, found the long way round, from single rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from officegrid.coordinator.cleaning import Cleaner
from officegrid.coordinator.config import KeepConfig
from officegrid.coordinator.objects import ObjectStore
from officegrid.coordinator.service import lifecycle, lineage, pins, versions
from officegrid.coordinator.service.context import Grid
from officegrid.coordinator.service.units import spec_of
from officegrid.coordinator.writer import Writer
from officegrid.core.errors import ConflictError, OfficeGridError
from officegrid.core.jobs import ENDED, JobState
from officegrid.core.model import SpanState
from officegrid.storage.api import (
    Archive,
    Dataset,
    Delta,
    Image,
    Job,
    Part,
    PlacedBlock,
    Quarantined,
    Tx,
)
from officegrid.storage.sqlite import SqliteStorage
from officegrid.testing import storage_edits as edits
from officegrid.wire.catalogue import CodeRef, DataRef
from officegrid.wire.data import BlockSlice, Layout
from officegrid.wire.jobs import JobPolicy, JobSpec, RetryRequest
from officegrid.wire.work import Program

T = TypeVar("T")
DAY_S = 86400.0
RECORDS = 10


class Store:
    """`seed` decides the random steps; time passes by making everything older."""

    def __init__(self, folder: Path, seed: int = 0, **keep: Any) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.storage = SqliteStorage(folder / "grid.db")
        self.objects = ObjectStore(folder)
        self.writer = Writer(self.storage)
        self.grid = Grid(new_id=lambda: f"{self.random.getrandbits(64):x}", read_object=_none)
        self.config = KeepConfig.model_validate({"versions": 2, "days": 30, **keep})
        self.in_flight: list[str] = []
        self._contents = 0

    def cleaner(self, is_stopping: Callable[[], bool] = lambda: False) -> Cleaner:
        return Cleaner(self.storage, self.writer, self.objects, self.config, time.time, is_stopping)

    def close(self) -> None:
        self.writer.stop()
        self.storage.close()

    def write(self, operation: Callable[[Tx], T]) -> T:
        return self.writer.submit(operation).result()

    # --- what people and workers do

    def put(self, text: str | None = None) -> str:
        """Upload, as a client does: ask first, send what is missing."""
        self._contents += 1
        content = (text or f"content {self._contents}").encode()
        digest = hashlib.sha256(content).hexdigest()
        if self.objects.missing([digest]):
            self.objects.put(digest, [content], max_bytes=1000)
        return digest

    def block(self) -> BlockSlice:
        return BlockSlice(
            sha256=self.put(), stored_bytes=1, raw_bytes=1, length=1, records=RECORDS // 2
        )

    def dataset(self, now: float) -> str:
        blocks = [PlacedBlock(n * RECORDS // 2, self.block()) for n in (0, 1)]
        digest = hashlib.sha256(repr(blocks).encode()).hexdigest()
        dataset = Dataset(digest, Layout(columns=["a"]), RECORDS, 2, 2, "", now)
        self.write(lambda tx: tx.add_dataset(dataset, blocks))
        return digest

    def push(self, kind: str, name: str, text: str | None = None) -> None:
        now = time.time()
        digest = self.put(text)
        pieces = [self.put(f"piece {n}") for n in self.random.sample(range(12), 3)]
        delta = self.put()

        def register(tx: Tx) -> None:
            before = tx.version(kind, name)
            if kind == "data":
                spec = {"kind": "file", "pieces": [{"sha256": one, "bytes": 1} for one in pieces]}
                tx.put_archive(Archive(digest, "file", 3, 3, spec, now))
                if before is not None and before.digest != digest:
                    tx.put_delta(Delta(digest, before.digest, {"object": delta}, 1))
            versions.push(tx, kind, name, digest, by="ann", origin="", now=now)
            pins.switch_followers(self.grid, tx, kind, name, now)

        self.write(register)

    def submit(self, **changes: Any) -> Job:
        now = time.time()
        dataset = self.dataset(now)
        spec = JobSpec(name="job", program=Program(python="m:f"), dataset=dataset)
        spec = spec.model_copy(update=changes)
        return self.write(lambda tx: lifecycle.create(self.grid, tx, spec, "ann", now))

    def commit(self, job: Job, *, bad: bool = False) -> None:
        """All of a running job at once; with `bad`, its first record is quarantined."""
        block, now = self.block(), time.time()

        def commit(tx: Tx) -> None:
            lease = edits.new_lease(f"{self.random.getrandbits(64):x}-0.{job.generation}", 0, 0)
            spans = list(tx.spans(job.id))
            found = next(s for s in spans if s[2] == SpanState.PENDING)
            span = edits.Span(found[0], found[1], SpanState.PENDING, found[3])
            lease = edits.new_lease(lease.id, span.start, span.end)
            tx.apply(job.id, edits.claim(span, lease))
            tx.apply(job.id, edits.commit(tx.ledger(job.id), lease, [span.start] if bad else []))
            tx.add_part(
                Part(job.id, span.start, span.end, job.generation, lease.id, "m", lease.id,
                     job.bundle, (block,), (), 1, 1.0, now)
            )  # fmt: skip
            if bad:
                row = Quarantined(job.id, span.start, "bad", 1, b"", False, "m", now)
                tx.put_quarantined([row])
            lifecycle.after_progress(self.grid, tx, job.id, now)

        self.write(commit)

    def retry(self, job: Job) -> None:
        request = RetryRequest(bundle=self.put() if self.random.random() < 0.3 else None)
        self.write(lambda tx: lifecycle.retry(self.grid, tx, job, request, time.time()))

    def image(self) -> None:
        number, chunks = self._contents + 1, [self.put(), self.put()]
        image = Image(str(number), number, f"i{number}", "rolling", {}, 1.0, "ann")
        self.write(lambda tx: tx.put_image(image, chunks))

    def release(self) -> None:
        digest = self.put()
        self.write(lambda tx: tx.put_setting("worker_release", f'{{"wheel": "{digest}"}}'))

    def pass_time(self, seconds: float) -> None:
        """Everything gets older, on disk and in the database."""
        for name, _, changed_at in list(self.objects.all()):
            os.utime(self.objects.path(name), (changed_at - seconds, changed_at - seconds))
        columns = ("jobs.ended_at", "datasets.created_at", "archives.created_at")
        with sqlite3.connect(self.folder / "grid.db", timeout=30) as connection:
            for table, column in (one.split(".") for one in columns):
                connection.execute(f"UPDATE {table} SET {column} = {column} - ?", (seconds,))
        connection.close()
        self.in_flight = []

    # --- random steps

    def begin(self) -> None:
        """What later steps need: two versions of each name, and a job."""
        for kind, name in itertools.product(("code", "data"), "aabb"):
            self.push(kind, name)
        self.submit(bundle=self.put())

    def step(self) -> None:
        pick = self.random.choice
        jobs = self.storage.read(lambda tx: tx.jobs())
        bad = [job for job in jobs if job.quarantined]
        running = [job for job in jobs if job.state is JobState.RUNNING]
        steps: list[Callable[[], object]] = [
            lambda: self.push(pick(["code", "data"]), pick("ab"), pick([None, "one", "two"])),
            lambda: self.push(pick(["code", "data"]), pick("ab")),
            self._random_submit, self._random_submit, self._random_submit,
            lambda: self.commit(pick(running), bad=True),
            lambda: self.commit(pick(running)),
            lambda: self.retry(pick(bad)),
            lambda: self.write(
                lambda tx: lifecycle.cancel(self.grid, tx, pick(jobs), time.time())
            ),
            lambda: self.write(
                lambda tx: lineage.rerun(self.grid, tx, pick(jobs), "ann", time.time())
            ),
            lambda: self._roll_back(pick(["code", "data"]), pick("ab")),
            lambda: self.in_flight.append(self.put()),
            lambda: self.dataset(time.time()),
            self.image, self.release,
            lambda: self.pass_time(self.random.choice([3600.0, 2 * DAY_S, 40 * DAY_S])),
        ]  # fmt: skip
        with contextlib.suppress(OfficeGridError, IndexError):  # it does not fit the state
            pick(steps)()

    def _random_submit(self) -> None:
        pick = self.random.choice
        code = pick([None, CodeRef(name=pick("ab"), n=pick([None, 1, 2, 3]))])
        refs = {"x": DataRef(name=pick("ab"), n=pick([None, 1, 2]))}
        policy = JobPolicy(
            follow_latest=pick([True, False]), quarantine_limit="100%",
            schedule=pick([None, None, "0 19 * * *"]),
        )  # fmt: skip
        changes: dict[str, Any] = {"code": code, "data": pick([{}, refs]), "policy": policy}
        if code is None:
            changes["bundle"] = self.put()
        waiting = {"dataset": None, "input_job": "job"}
        self.submit(name=pick(["job", "other"]), **changes, **pick([{}, {}, {}, waiting]))

    def _roll_back(self, kind: str, name: str) -> None:
        to = self.random.choice([None, 1, 2, 3])

        def back(tx: Tx) -> None:
            versions.roll_back(tx, kind, name, to, by="ann", now=time.time())
            pins.switch_followers(self.grid, tx, kind, name, time.time())

        self.write(back)

    # --- the promise

    def needed(self, tx: Tx) -> Iterator[tuple[str, str]]:
        """(object, who needs it): what must be there, whatever was cleaned up."""
        for digest in self.in_flight:
            yield digest, "an upload"
        for job in tx.jobs(limit=10**6):
            yield from self._of_job(tx, job)
        for kind in ("code", "data"):
            for version in tx.versions(kind):
                if not version.gone:
                    yield from self._of_content(tx, version.digest, f"{kind} {version.n}")

    def _of_job(self, tx: Tx, job: Job) -> Iterator[tuple[str, str]]:
        for part in tx.parts(job.id):
            yield from ((block.sha256, f"output of {job.id}") for block in part.blocks)
        if job.dataset is not None:
            dataset = tx.dataset(job.dataset)
            assert dataset is not None, job
            blocks = tx.blocks_over(job.dataset, 0, dataset.records)
            assert sum(block.slice.records for block in blocks) == dataset.records, job
            yield from ((block.slice.sha256, f"input of {job.id}") for block in blocks)
        recent = job.ended_at is None or time.time() - job.ended_at < self.config.days * DAY_S
        if job.state in ENDED and not recent and not job.quarantined:
            return
        for pin in tx.pins(job.id):
            for digest in [pin.bundle, *(one.digest for one in pin.data.values())]:
                if digest is not None:
                    yield from self._of_content(tx, digest, f"pin of {job.id}")
        if job.state in (JobState.WAITING, JobState.SCHEDULED):
            resolved = pins.resolve(tx, spec_of(job))
            for digest in [resolved.bundle, *(one.digest for one in resolved.data.values())]:
                if digest is not None:
                    yield from self._of_content(tx, digest, f"start of {job.id}")

    def _of_content(self, tx: Tx, digest: str, who: str) -> Iterator[tuple[str, str]]:
        yield digest, who
        archive = tx.archive(digest)
        if any(one.kind == "data" for one in tx.versions_with(digest)):
            assert archive is not None, who
        if archive is not None:
            yield from ((piece["sha256"], who) for piece in archive.spec["pieces"])
        for delta in tx.deltas_to(digest):
            yield delta.spec["object"], who

    def check(self) -> set[str]:
        """Everything that is needed is there. Returns the names of all that is needed."""

        def look(tx: Tx) -> set[str]:
            needed = set()
            for digest, who in self.needed(tx):
                assert self.objects.size(digest) is not None, f"{who} lost {digest}"
                needed.add(digest)
            return needed

        return self.storage.read(look)

    def present(self) -> set[str]:
        return {name for name, _, _ in self.objects.all()}

    def rows_of_no_job(self) -> dict[str, int]:
        """Tables with rows of jobs that are not there (any more), and how many."""
        tables = ("spans", "leases", "parts", "quarantine", "job_pins", "job_archives", "rates")
        found = {}
        with contextlib.closing(sqlite3.connect(self.folder / "grid.db")) as connection:
            for table in tables:
                sql = f"SELECT count(*) FROM {table} WHERE job NOT IN (SELECT id FROM jobs)"
                [found[table]] = connection.execute(sql).fetchone()
            sql = (
                "SELECT count(*) FROM events WHERE subject GLOB 'j[0-9]*' "
                "AND kind <> 'removed' AND subject NOT IN (SELECT id FROM jobs)"
            )
            [found["events"]] = connection.execute(sql).fetchone()
            sql = "SELECT count(*) FROM settings WHERE key = 'removing_jobs' AND value <> '[]'"
            [found["settings"]] = connection.execute(sql).fetchone()
        return {table: count for table, count in found.items() if count}

    def start_scheduled(self) -> None:
        """A run of each schedule, as at its time."""
        for template in self.storage.read(lambda tx: tx.jobs(states=[JobState.SCHEDULED])):
            self.write(lambda tx, t=template: tx.put_setting(f"schedule:{t.id}", "0"))  # type: ignore[misc]
        self.write(lambda tx: lifecycle.start_scheduled(self.grid, tx, time.time()))


def _none(_: BlockSlice) -> bytes:
    raise ConflictError("No block is read here.")
