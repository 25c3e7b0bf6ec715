"""Which records each delivery into a table brings: all of them, each once, in the right order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from office_kit import RECORDS, Office

from officegrid.coordinator.service import deliveries
from officegrid.core.errors import ConflictError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Delivery, Job
from officegrid.wire.sql import TableOutput

BAD = [30, 60]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.storage.close()


def _table(mode: str) -> TableOutput:
    key = ["id"] if mode == "upsert" else []
    return TableOutput.model_validate({"source": "crm", "table": "t", "mode": mode, "key": key})


def _rows(office: Office, job: Job, delivery: Delivery) -> int:
    return office.storage.read(
        lambda tx: sum(
            one.records for one in deliveries.slices_to_deliver(tx, office.job(job), delivery)
        )
    )


def _pending(office: Office) -> list[Delivery]:
    return office.storage.read(deliveries.pending)


def _mode(office: Office, job: Job, delivery: Delivery) -> str:
    return office.storage.read(lambda tx: deliveries.mode_of(tx, office.job(job), delivery))


def _deliver_all(office: Office, job: Job) -> list[tuple[str, int]]:
    """Make whatever is pending, in turn: (mode, records) of each."""
    made = []
    while waiting := _pending(office):
        rows = _rows(office, job, waiting[0])
        made.append((_mode(office, job, waiting[0]), rows))
        office.do(
            lambda grid, tx, one=waiting[0], rows=rows: deliveries.delivered(  # type: ignore[misc]
                tx, office.job(job), one, rows, office.now
            )
        )
    return made


@pytest.mark.parametrize("mode", ["create", "append"])
def test_a_job_that_was_retried_before_it_ever_finished_delivers_everything(
    office: Office, mode: str
) -> None:
    job = office.submit(table=_table(mode), limit="0")
    assert office.work(job, BAD).state is JobState.HELD
    office.retry(job)
    assert office.work(job).state is JobState.FINISHED
    assert _deliver_all(office, job) == [(mode, RECORDS)]


@pytest.mark.parametrize("mode", ["create", "append"])
def test_a_retry_adds_what_was_missing(office: Office, mode: str) -> None:
    job = office.submit(table=_table(mode))
    office.work(job, BAD)
    assert _deliver_all(office, job) == [(mode, RECORDS - 2)]
    office.retry(job)
    office.work(job, BAD[:1])
    assert _deliver_all(office, job) == [("append", 1)]
    office.retry(job)
    office.work(job)
    assert _deliver_all(office, job) == [("append", 1)]


@pytest.mark.parametrize("mode", ["replace", "upsert"])
def test_a_retry_brings_the_whole_output_where_rows_are_exchanged(
    office: Office, mode: str
) -> None:
    job = office.submit(table=_table(mode))
    office.work(job, BAD)
    assert _deliver_all(office, job) == [(mode, RECORDS - 2)]
    office.retry(job)
    office.work(job)
    assert _deliver_all(office, job) == [(mode, RECORDS)]


def test_a_delivery_that_waits_brings_what_there_was_and_the_next_one_the_rest(
    office: Office,
) -> None:
    job = office.submit(table=_table("create"))
    office.work(job, BAD)
    [first] = _pending(office)
    office.do(
        lambda grid, tx: deliveries.failed(tx, office.job(job), first, "down", 5e9, final=False)
    )
    office.retry(job)
    office.work(job)
    assert [one.generation for one in _pending(office)] == [0], "in order"
    assert _deliver_all(office, job) == [("create", RECORDS - 2), ("append", 2)]


def test_one_that_failed_for_good_holds_back_those_behind_it_until_it_is_made(
    office: Office,
) -> None:
    job = office.submit(table=_table("append"))
    office.work(job, BAD)
    [first] = _pending(office)
    office.do(
        lambda grid, tx: deliveries.failed(tx, office.job(job), first, "no", office.now, final=True)
    )
    office.retry(job)
    office.work(job)
    assert _pending(office) == []
    shown = office.storage.read(lambda tx: deliveries.view(tx, office.job(job)))
    assert shown is not None
    assert (shown.state, shown.text) == ("failed", "no")
    office.do(lambda grid, tx: deliveries.again(tx, office.job(job), office.now))
    assert [one.attempts for one in _pending(office)] == [0]
    assert _deliver_all(office, job) == [("append", RECORDS - 2), ("append", 2)]
    shown = office.storage.read(lambda tx: deliveries.view(tx, office.job(job)))
    assert shown is not None
    assert (shown.state, shown.rows) == ("done", RECORDS)
    with pytest.raises(ConflictError, match="no failed delivery"):
        office.do(lambda grid, tx: deliveries.again(tx, office.job(job), office.now))


def test_a_job_without_a_table_delivers_nothing(office: Office) -> None:
    job = office.submit()
    office.work(job)
    assert _pending(office) == []
    assert office.storage.read(lambda tx: deliveries.view(tx, office.job(job))) is None
