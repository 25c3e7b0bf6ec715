"""Jobs on a cron line: started when due, once for all missed times, never twice at once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from officegrid.coordinator.service import lifecycle
from officegrid.coordinator.service.context import Grid
from officegrid.core.jobs import JobState
from officegrid.storage.api import Dataset, Job, PlacedBlock
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.data import BlockSlice, Layout
from officegrid.wire.jobs import JobPolicy, JobSpec
from officegrid.wire.work import Program

DIGEST = "d" * 64
RECORDS = 7
# Cron lines are read in the coordinator's own time zone; so is this moment.
MONDAY_18 = datetime(2026, 3, 2, 18, 0).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class Office:
    """A coordinator's service with a clock that only the test moves."""

    def __init__(self, storage: SqliteStorage) -> None:
        self.storage = storage
        self.now = MONDAY_18
        self._ids = 0
        self.grid = Grid(new_id=self._new_id, read_object=lambda _: b"")
        block = BlockSlice(sha256=DIGEST, stored_bytes=1, raw_bytes=14, length=14, records=RECORDS)
        dataset = Dataset(DIGEST, Layout(columns=["id"]), RECORDS, 14, 1, "", self.now)
        storage.write(lambda tx: tx.add_dataset(dataset, [PlacedBlock(0, block)]))

    def _new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids}"

    def submit(self, schedule: str | None, name: str = "nightly", after: str = "") -> Job:
        spec = JobSpec(
            name=name,
            program=Program(python="m:f"),
            dataset=DIGEST,
            after=[after] if after else [],
            policy=JobPolicy(schedule=schedule),
        )
        return self.storage.write(
            lambda tx: lifecycle.create(self.grid, tx, spec, "tester", self.now)
        )

    def tick(self, passed_s: float) -> int:
        """Runs started after so much more time."""
        self.now += passed_s
        return self.storage.write(lambda tx: lifecycle.start_scheduled(self.grid, tx, self.now))

    def runs(self, template: Job) -> list[Job]:
        jobs = self.storage.read(lambda tx: tx.jobs(name=template.name))
        return [job for job in reversed(jobs) if job.template == template.id]

    def cancel(self, job: Job) -> None:
        self.storage.write(lambda tx: lifecycle.cancel(self.grid, tx, job, self.now))

    def state(self, job: Job) -> JobState:
        found = self.storage.read(lambda tx: tx.job(job.id))
        assert found is not None
        return found.state

    def next_start_at(self, job: Job) -> float | None:
        return self.storage.read(lambda tx: lifecycle.next_start_at(tx, job))

    def texts(self, job: Job) -> list[str]:
        return [event.text for event in self.storage.read(lambda tx: tx.events(job.id))]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    storage = SqliteStorage(tmp_path / "grid.db")
    yield Office(storage)
    storage.close()


def test_a_template_does_not_run_itself_and_knows_its_next_start(office: Office) -> None:
    template = office.submit("0 19 * * 1-5")
    assert template.state is JobState.SCHEDULED
    assert template.total == 0
    assert office.next_start_at(template) == MONDAY_18 + HOUR
    assert office.tick(0) == 0
    assert office.runs(template) == []


def test_a_run_starts_when_it_is_due_and_not_a_second_earlier(office: Office) -> None:
    template = office.submit("0 19 * * 1-5")
    assert office.tick(HOUR - 1) == 0
    assert office.tick(1) == 1
    (run,) = office.runs(template)
    assert run.state is JobState.RUNNING
    assert (run.total, run.pending) == (RECORDS, RECORDS)
    assert run.started_at == MONDAY_18 + HOUR
    assert office.state(template) is JobState.SCHEDULED
    assert office.tick(1) == 0, "the same time of day came twice"


def test_every_minute_gives_a_run_a_minute(office: Office) -> None:
    template = office.submit("* * * * *")
    for number in range(1, 6):
        assert office.tick(MINUTE) == 1
        assert len(office.runs(template)) == number
        office.cancel(office.runs(template)[-1])


def test_weekends_are_left_out(office: Office) -> None:
    template = office.submit("0 19 * * 1-5")
    started = []
    step_s = HOUR  # to seven on Monday evening, and from there from day to day
    for _ in range(14):
        if office.tick(step_s):
            started.append(datetime.fromtimestamp(office.now).strftime("%a"))
            office.cancel(office.runs(template)[-1])
        step_s = DAY
    assert started == 2 * ["Mon", "Tue", "Wed", "Thu", "Fri"]


def test_missed_times_count_once(office: Office) -> None:
    template = office.submit("* * * * *")
    assert office.tick(3 * HOUR) == 1, "the coordinator was off for three hours"
    office.cancel(office.runs(template)[0])
    assert office.tick(1) == 0
    assert office.tick(MINUTE) == 1
    assert len(office.runs(template)) == 2


def test_no_second_run_while_the_first_one_has_not_ended(office: Office) -> None:
    template = office.submit("* * * * *")
    assert office.tick(MINUTE) == 1
    (run,) = office.runs(template)
    assert office.tick(MINUTE) == 0
    assert f"a start was left out: {run.id} has not ended yet" in office.texts(template)
    office.cancel(run)
    assert office.tick(MINUTE) == 1


def test_a_cancelled_template_starts_nothing_more(office: Office) -> None:
    template = office.submit("* * * * *")
    office.cancel(template)
    assert office.tick(HOUR) == 0
    assert office.runs(template) == []


def test_a_run_waits_for_the_jobs_that_its_template_names(office: Office) -> None:
    first = office.submit(None, name="first")
    template = office.submit("* * * * *", after="first")
    assert office.tick(MINUTE) == 1
    (run,) = office.runs(template)
    assert run.state is JobState.WAITING
    finished = office.storage.read(lambda tx: tx.job(first.id))
    assert finished is not None
    office.storage.write(lambda tx: lifecycle.finish(office.grid, tx, finished, office.now))
    assert office.state(run) is JobState.RUNNING


def test_a_schedule_survives_a_restart_of_the_coordinator(tmp_path: Path) -> None:
    path = tmp_path / "grid.db"
    before = Office(SqliteStorage(path))
    template = before.submit("0 19 * * 1-5")
    before.storage.close()
    after = Office(SqliteStorage(path))
    try:
        assert after.tick(HOUR + 5) == 1
        assert after.runs(template)[0].state is JobState.RUNNING
    finally:
        after.storage.close()
