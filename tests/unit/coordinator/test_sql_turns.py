"""Input from databases and output into them: one that is bad or silent stops no other."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from officegrid.coordinator import delivering, ingest
from officegrid.coordinator.app import open_coordinator
from officegrid.coordinator.config import CoordinatorConfig
from officegrid.coordinator.log import configure_logging
from officegrid.coordinator.service import lifecycle
from officegrid.coordinator.state import Coordinator
from officegrid.core.jobs import JobState
from officegrid.storage.api import Delivery, Job
from officegrid.wire.jobs import JobSpec
from officegrid.wire.sql import QueryInput, TableOutput
from officegrid.wire.work import Program


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def here(tmp_path: Path, silent: int) -> Iterator[Coordinator]:
    with sqlite3.connect(tmp_path / "x.sqlite") as base:
        base.execute("CREATE TABLE t (a INT)")
        base.execute("INSERT INTO t VALUES (1)")
    base.close()
    config = CoordinatorConfig.model_validate(
        {
            "sources": {
                "bad": {"url": "mysql://u:s3cret@db..example.com/x", "write": True},
                "silent": {"url": f"mysql://u:s3cret@127.0.0.1:{silent}/x", "write": True},
                "good": {"url": f"sqlite:///{tmp_path}/x.sqlite", "write": True},
            }
        }
    )
    before = structlog.get_config()
    configure_logging(json_lines=True)
    made = open_coordinator(tmp_path / "grid", names=["localhost"], config=config)
    yield made
    structlog.configure(**before)
    made.writer.stop()
    made.storage.close()


def _spec(source: str, **more: object) -> JobSpec:
    return JobSpec(
        name=source, program=Program(python="m:f"), query=QueryInput(source=source, table="t"),
        **more,
    )  # type: ignore[arg-type]  # fmt: skip


def _create(here: Coordinator, spec: JobSpec) -> Job:
    return here.storage.write(lambda tx: lifecycle.create(here.grid, tx, spec, "me", 1.0))


def _job(here: Coordinator, job: Job) -> Job:
    found = here.storage.read(lambda tx: tx.job(job.id))
    assert found is not None
    return found


async def _until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.02)


async def _stop(here: Coordinator, task: asyncio.Task[None]) -> None:
    """As the application does: what does not end by itself is cancelled."""
    here.stopping.set()
    _, late = await asyncio.wait([task], timeout=0.2)
    assert late, "it waits for the silent server"
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([task])


def test_a_bad_and_a_silent_database_hold_up_nobody_elses_input(here: Coordinator) -> None:
    bad, silent = _create(here, _spec("bad")), _create(here, _spec("silent"))
    good = _create(here, _spec("good"))

    async def go() -> None:
        task = asyncio.create_task(ingest.run(here))
        await _until(lambda: _job(here, good).state is JobState.RUNNING)
        await _until(lambda: _job(here, bad).state is JobState.HELD)
        await _stop(here, task)

    asyncio.run(go())
    assert "its input cannot be read: " in _job(here, bad).reason
    assert "s3cret" not in _job(here, bad).reason
    still = _job(here, silent)
    assert (still.state, still.reason) == (JobState.WAITING, "its input is read from silent"), (
        "no attempt"
    )


def test_a_silent_database_holds_up_no_other_delivery(here: Coordinator, tmp_path: Path) -> None:
    jobs = []
    for source in ("silent", "good"):
        spec = _spec("good", table=TableOutput(source=source, table="out", mode="create"))
        job = _create(here, spec)
        jobs.append(job)
        here.storage.write(lambda tx, job=job: tx.put_delivery(Delivery(job.id, 0, "pending")))

    def state(job: Job) -> Delivery:
        found = here.storage.read(lambda tx: tx.delivery(job.id, 0))
        assert found is not None
        return found

    async def go() -> None:
        task = asyncio.create_task(delivering.run(here))
        await _until(lambda: state(jobs[1]).state != "pending")
        await _stop(here, task)

    asyncio.run(go())
    assert (state(jobs[0]).state, state(jobs[0]).attempts) == ("pending", 0)
