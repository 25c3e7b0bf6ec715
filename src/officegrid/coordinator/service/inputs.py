"""Input that the coordinator reads from a database: when, and what its columns were last time.

A job with such an input waits until it is read. The columns of the last run of that name are kept
under `schema:<job name>`; when they change, the job is held unless its file says "accept", and
whoever releases it accepts them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from officegrid.coordinator.service import lifecycle, pins
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.units import spec_of
from officegrid.core.jobs import JobState
from officegrid.storage.api import Dataset, Job, PlacedBlock, Tx
from officegrid.wire.data import DatasetSpec

Columns = list[dict[str, str]]
"""name, kind and declared type of each."""


def to_read(tx: Tx) -> list[Job]:
    """Jobs that wait for nothing but their input, oldest first."""
    found = [
        job
        for job in tx.jobs(states=[JobState.WAITING], limit=pins.ALL)
        if job.dataset is None
        and spec_of(job).query is not None
        and not lifecycle.blockers(tx, spec_of(job))
    ]
    return found[::-1]


def dataset_of(spec: DatasetSpec, now: float) -> tuple[Dataset, list[PlacedBlock]]:
    """A dataset made of these blocks; its id is the digest of its content."""
    placed, at = [], 0
    for block in spec.blocks:
        placed.append(PlacedBlock(at, block))
        at += block.records
    content = spec.model_dump_json(exclude={"source"})
    dataset = Dataset(
        id=hashlib.sha256(content.encode()).hexdigest(),
        layout=spec.layout,
        records=spec.records,
        raw_bytes=sum(block.length for block in spec.blocks),
        blocks=len(placed),
        source=spec.source[:1024],
        created_at=now,
    )
    return dataset, placed


def last_columns(tx: Tx, job: Job) -> Columns | None:
    return _known(tx, job).get("columns")


def accepts(tx: Tx, job: Job, columns: Columns) -> bool:
    """Were these columns refused before, and the job released since?"""
    refused: dict[str, Columns] = _known(tx, job).get("refused", {})
    return refused.get(job.id) == columns


def _known(tx: Tx, job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tx.setting(f"schema:{job.name}") or "{}")
    return found


def refuse(tx: Tx, job: Job, columns: Columns, change: str, now: float) -> None:
    """Hold the job because its input has other columns than last time."""
    if (again := _waiting(tx, job)) is None:
        return
    # Of this job only: who cancels it and submits another one has accepted nothing.
    known = {**_known(tx, job), "refused": {job.id: columns}}
    tx.put_setting(f"schema:{job.name}", json.dumps(known))
    reason = (
        f"the columns of its input changed since the last run: {change}. `officegrid release` "
        "accepts that"
    )
    lifecycle.hold(tx, again, reason, now)


def arrived(
    grid: Grid, tx: Tx, job: Job, spec: DatasetSpec, columns: Columns,
    warnings: Sequence[str], now: float,
) -> None:  # fmt: skip
    """The input is in the store: the job starts on it."""
    if (again := _waiting(tx, job)) is None:
        return
    dataset, placed = dataset_of(spec, now)
    tx.add_dataset(dataset, placed)
    tx.put_setting(f"schema:{job.name}", json.dumps({"columns": columns}))
    tx.update_job(job.id, dataset=dataset.id, reason="")
    text = f"read {dataset.records:,} records from {dataset.source}"
    story(tx, now, again, "read", "; ".join([text, *warnings]))
    lifecycle.start_if_ready(grid, tx, tx.job(job.id) or again, now)


def failed(tx: Tx, job: Job, words: str, now: float, *, again_in_s: float | None) -> None:
    """The input cannot be read: tried again in so many seconds; None: held."""
    if (waiting := _waiting(tx, job)) is None:
        return
    if again_in_s is None:
        lifecycle.hold(tx, waiting, f"its input cannot be read: {words}", now)
    else:
        reason = f"cannot read its input yet: {words}; tried again in {again_in_s:.0f} s"
        tx.update_job(job.id, reason=reason)


def _waiting(tx: Tx, job: Job) -> Job | None:
    """The job as it is now, unless somebody has cancelled or held it meanwhile."""
    found = tx.job(job.id)
    return found if found is not None and found.state is JobState.WAITING else None
