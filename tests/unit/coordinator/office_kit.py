"""A grid's services on a real database, without processes: jobs, commits, versions, deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from officegrid.coordinator.service import claims, commits, lifecycle, machines
from officegrid.coordinator.service.context import Grid
from officegrid.core.errors import InputError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Dataset, Job, Machine, PlacedBlock, Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.data import BlockSlice, Layout
from officegrid.wire.jobs import JobPolicy, JobSpec, RetryRequest
from officegrid.wire.work import (
    ClaimRequest,
    CommitRequest,
    Program,
    QuarantinedRecord,
    Unit,
)

T = TypeVar("T")
RECORDS = 100
INPUT = "d" * 64


class Office:
    """One worker and as many jobs over `RECORDS` records as a test submits."""

    def __init__(self, folder: Path) -> None:
        self.storage = SqliteStorage(folder / "grid.db")
        self.now = 1000.0
        self._ids = 0
        self.grid = Grid(new_id=self._new_id, read_object=self._damaged)
        block = BlockSlice(sha256=INPUT, stored_bytes=1, raw_bytes=9, length=9, records=RECORDS)
        dataset = Dataset(INPUT, Layout(columns=["id"]), RECORDS, 9, 1, "", self.now)
        self.storage.write(lambda tx: tx.add_dataset(dataset, [PlacedBlock(0, block)]))
        self.worker: Machine = self.storage.write(
            lambda tx: machines.add_machine(
                tx, role="worker", name="desk", token_hash="desk", facts={}, now=self.now
            )
        )

    def _new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids}"

    @staticmethod
    def _damaged(_: BlockSlice) -> bytes:
        raise InputError("The block is damaged.")

    def do(self, act: Callable[[Grid, Tx], T]) -> T:
        self.now += 1
        done: T = self.storage.write(lambda tx: act(self.grid, tx))
        return done

    def job(self, job: Job) -> Job:
        found = self.storage.read(lambda tx: tx.job(job.id))
        assert found is not None
        return found

    def submit(
        self, name: str = "job", *, limit: str = "50%", follow: bool = False, **spec: object
    ) -> Job:  # fmt: skip
        policy = JobPolicy(quarantine_limit=limit, follow_latest=follow)
        plain = {"dataset": INPUT, **spec}
        wanted = JobSpec.model_validate(
            {"name": name, "program": Program(python="m:f"), "policy": policy, **plain}
        )
        return self.do(lambda grid, tx: lifecycle.create(grid, tx, wanted, "tester", self.now))

    def retry(self, job: Job, bundle: str | None = None) -> None:
        self.do(
            lambda grid, tx: lifecycle.retry(
                grid, tx, self.job(job), RetryRequest(bundle=bundle), self.now
            )
        )

    def claim(self) -> list[Unit]:
        request = ClaimRequest(session_id="s", units=1, version="1")
        reply = self.do(
            lambda grid, tx: claims.claim(
                grid, tx, tx.machine(self.worker.id) or self.worker, request, self.now
            )
        )
        return reply.units

    def commit(self, unit: Unit, bad: Sequence[int] = ()) -> str:
        """Ten bytes for each record that is not bad."""
        aside = [record for record in bad if unit.start <= record < unit.end]
        good = unit.end - unit.start - len(aside)
        block = BlockSlice(
            sha256=f"{unit.start:032x}{unit.generation:032x}", stored_bytes=1,
            raw_bytes=10 * good, length=10 * good, records=good,
        )  # fmt: skip
        quarantined = [
            QuarantinedRecord(
                record=record, error="bad", attempts=1, raw="", block=0,
                offset=10 * (record - unit.start - n), rows_before=record - unit.start - n,
            )
            for n, record in enumerate(aside)
        ]  # fmt: skip
        request = CommitRequest(
            session_id="s", lease_id=unit.lease_id, job_id=unit.job_id, start=unit.start,
            end=unit.end, quarantined=quarantined, blocks=[block] if good else [], compute_s=1.0,
        )  # fmt: skip
        return self.do(
            lambda grid, tx: commits.commit(
                grid, tx, tx.machine(self.worker.id) or self.worker, request, self.now
            )
        ).outcome

    def work(self, job: Job, bad: Sequence[int] = ()) -> Job:
        """Until the job runs no more."""
        while self.job(job).state is JobState.RUNNING and (units := self.claim()):
            assert self.commit(units[0], bad) == "committed"
        return self.job(job)
