"""Units as the coordinator hands them out and takes them back, with a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from officegrid.coordinator.service import (
    claims,
    commits,
    lifecycle,
    machines,
    returns,
    troubles,
    views,
)
from officegrid.coordinator.service.context import Grid
from officegrid.coordinator.state import WorkSignal
from officegrid.core.errors import ConflictError, InputError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Dataset, Job, Machine, PlacedBlock
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.data import BlockSlice, Layout
from officegrid.wire.jobs import JobSpec, RetryRequest
from officegrid.wire.work import (
    ClaimReply,
    ClaimRequest,
    CommitReply,
    CommitRequest,
    FailRequest,
    Limits,
    Program,
    QuarantinedRecord,
    ReleaseRequest,
    Unit,
)

RECORDS = 100
DIGEST = "d" * 64


class Service:
    def __init__(self, storage: SqliteStorage) -> None:
        self.storage = storage
        self.now = 1000.0
        self._ids = 0
        self.grid = Grid(new_id=self._new_id, read_object=self._damaged)
        block = BlockSlice(sha256=DIGEST, stored_bytes=1, raw_bytes=9, length=9, records=RECORDS)
        dataset = Dataset(DIGEST, Layout(columns=["id"]), RECORDS, 9, 1, "", self.now)
        storage.write(lambda tx: tx.add_dataset(dataset, [PlacedBlock(0, block)]))

    def _new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids}"

    @staticmethod
    def _damaged(_: BlockSlice) -> bytes:
        raise InputError("The block is damaged.")

    def machine(self, name: str) -> Machine:
        return self.storage.write(
            lambda tx: machines.add_machine(
                tx, role="worker", name=name, token_hash=name, facts={}, now=self.now
            )
        )

    def submit(self, name: str = "job", bundle: str | None = None, **limits: int) -> Job:
        spec = JobSpec(
            name=name,
            bundle=bundle,
            program=Program(python="m:f"),
            dataset=DIGEST,
            limits=Limits.model_validate(limits),
        )
        return self.storage.write(
            lambda tx: lifecycle.create(self.grid, tx, spec, "tester", self.now)
        )

    def job(self, job: Job) -> Job:
        found = self.storage.read(lambda tx: tx.job(job.id))
        assert found is not None
        return found

    def claim(self, machine: Machine, session: str = "s", held: list[str] | None = None,
              units: int = 1) -> ClaimReply:  # fmt: skip
        request = ClaimRequest(session_id=session, units=units, held_leases=held or [])

        def run(tx):  # type: ignore[no-untyped-def]
            return claims.claim(self.grid, tx, tx.machine(machine.id), request, self.now)

        reply: ClaimReply = self.storage.write(run)
        return reply

    def commit(
        self, machine: Machine, unit: Unit, bad: list[int] | None = None, bundle: str | None = None
    ) -> CommitReply:
        quarantined = [
            QuarantinedRecord(
                record=n, error="bad", attempts=1, raw="", block=0, offset=0, rows_before=0
            )
            for n in bad or []
        ]
        request = CommitRequest(
            session_id="s", lease_id=unit.lease_id, job_id=unit.job_id, start=unit.start,
            end=unit.end, quarantined=quarantined, compute_s=1.0, bundle=bundle,
        )  # fmt: skip

        def run(tx):  # type: ignore[no-untyped-def]
            return commits.commit(self.grid, tx, tx.machine(machine.id), request, self.now)

        reply: CommitReply = self.storage.write(run)
        return reply


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    storage = SqliteStorage(tmp_path / "grid.db")
    yield Service(storage)
    storage.close()


def test_a_request_of_a_replaced_worker_takes_nothing_and_ends_nothing(service: Service) -> None:
    machine = service.machine("desk")
    job = service.submit()
    service.claim(machine, "old")
    unit = service.claim(machine, "new").units[0]
    with pytest.raises(ConflictError, match="taken this machine's place"):
        service.claim(machine, "old")
    assert service.commit(machine, unit).outcome == "committed"
    assert service.job(job).quarantined == 0


def test_a_commit_of_another_bundle_than_the_units_is_refused(service: Service) -> None:
    machine = service.machine("desk")
    right, wrong = "a" * 64, "b" * 64
    job = service.submit(bundle=right)
    unit = service.claim(machine).units[0]
    reply = service.commit(machine, unit, bundle=wrong)
    assert reply.outcome == "refused"
    assert reply.reason == f"bundle {wrong[:12]}… ran, and this unit was for bundle {right[:12]}…"
    assert service.job(job).done == 0
    assert service.commit(machine, unit, bundle=right).outcome == "committed"
    following = service.claim(machine).units[0]
    assert service.commit(machine, following).outcome == "committed", "an old worker does not say"


def test_a_killer_in_a_damaged_block_is_set_aside_without_its_text(service: Service) -> None:
    machine = service.machine("desk")
    job = service.submit(attempts=1)
    for attempt in range(1000):
        if service.job(job).quarantined:
            break
        service.claim(machine, f"session-{attempt}")  # each new session: the last one died
    rows = service.storage.read(lambda tx: tx.quarantined(job.id))
    assert rows
    assert rows[0].raw == b""
    assert "died or went silent" in rows[0].error


def test_records_that_must_run_alone_find_a_machine_on_a_busy_grid(service: Service) -> None:
    machine, other = service.machine("desk"), service.machine("other")
    suspicious = service.submit("suspicious", attempts=2)
    unit = service.claim(other, "1").units[0]
    service.claim(other, "2")  # session 1 died with its unit
    service.claim(other, "3")
    service.submit("plenty")
    seen: list[str] = []
    held: list[Unit] = []
    for _ in range(30):
        reply = service.claim(machine, "s", [one.lease_id for one in held], units=2)
        held += reply.units
        seen += [one.job_id for one in reply.units]
        if suspicious.id in seen:
            break
        if held:
            service.commit(machine, held.pop(0))
    assert suspicious.id in seen
    assert unit.job_id == suspicious.id


def test_a_late_word_that_the_old_code_fails_does_not_hold_the_mended_job(
    service: Service,
) -> None:
    machine, slow = service.machine("desk"), service.machine("slow")
    job = service.submit()
    late = service.claim(slow, "s").units[0]
    unit = service.claim(machine, "s").units[0]
    service.commit(machine, unit, bad=[unit.start])
    program = Program(python="m:mended")
    service.storage.write(
        lambda tx: lifecycle.retry(
            service.grid, tx, service.job(job), RetryRequest(program=program), service.now
        )
    )
    assert service.commit(slow, late).outcome == "refused", "it ran the old code"
    request = FailRequest(session_id="s", lease_id=late.lease_id, error="no module named old")
    service.storage.write(lambda tx: returns.fail(service.grid, tx, slow, request, service.now))
    assert service.job(job).state is JobState.RUNNING


def test_why_a_unit_was_given_back_is_in_the_story(service: Service) -> None:
    machine = service.machine("desk")
    job = service.submit()
    unit = service.claim(machine).units[0]
    request = ReleaseRequest(session_id="s", leases=[unit.lease_id], reason="The disk is full.")
    service.storage.write(
        lambda tx: returns.release(service.grid, tx, machine, request, service.now)
    )
    texts = [event.text for event in service.storage.read(lambda tx: tx.events(job.id))]
    assert "desk gave a unit back: The disk is full." in texts


def test_work_that_appears_between_looking_and_waiting_wakes_at_once() -> None:
    async def scenario() -> bool:
        signal = WorkSignal()
        signal.check(5)  # somebody submitted after we looked at version 4
        return await signal.wait(0.01, since=4)

    assert asyncio.run(scenario())


def test_why_names_the_machine_that_lacks_something_until_it_commits(service: Service) -> None:
    machine, other = service.machine("w1"), service.machine("w2")
    job, second = service.submit("places"), service.submit("second")

    def why(subject: str) -> str:
        return " ".join(
            service.storage.read(lambda tx: views.why(service.grid, tx, subject, service.now))[1]
        )

    for each in (machine, other):
        unit = service.claim(each).units[0]
        assert unit.job_id == job.id
        back = ReleaseRequest(
            session_id="s", leases=[unit.lease_id], reason="It has no MariaDB.", rest_s=30.0
        )
        service.storage.write(
            lambda tx, each=each, back=back: returns.release(
                service.grid, tx, each, back, service.now
            )
        )
        service.grid.last_served.clear()
    service.now += 10
    assert "All 2 workers online could not run it" in why(job.id)
    assert "w1, w2: It has no MariaDB. They take no units for 20 s" in why(job.id)
    assert f"w1 could not run places ({job.id}): It has no MariaDB." in why("w1")
    assert "w1 takes no units for 20 s" in why("w1")
    assert "should ask for a unit" not in why("w1") + why(job.id) + why(second.id)
    assert f"w1, w2 could not run places ({job.id})" in why(second.id)
    service.now += 25  # it tries again, and says nothing new yet
    assert "w1, w2: It has no MariaDB." in why(job.id)
    assert "MariaDB" not in why(second.id)
    late = service.claim(machine).units[0]
    service.now += 1
    troubles.note(
        service.grid, machine, job.id, rest_s=1.0, reason="It has no MariaDB.", now=service.now
    )
    assert service.commit(machine, late).outcome == "committed"
    assert "w1, w2: It has no MariaDB." in why(job.id)  # it had got that unit before
    service.now += 2
    service.grid.last_served.clear()
    unit = service.claim(machine).units[0]
    assert "being worked on. All 2 workers online could not run it" in why(job.id)
    assert service.commit(machine, unit).outcome == "committed"
    assert "1 of the 2 workers online could not run it when it last tried. w2: It" in why(job.id)
    assert "MariaDB" not in why("w1")
    service.now += troubles.KEPT_S
    assert "MariaDB" not in why(job.id) + why("w2")


def test_little_is_remembered_of_each_machine(service: Service) -> None:
    machine = service.machine("w1")
    for number in range(200):
        troubles.note(
            service.grid, machine, f"j{number}", rest_s=30.0, reason="full", now=service.now
        )
    assert list(service.grid.troubles[machine.id])[-1] == "j199"
    assert len(service.grid.troubles[machine.id]) == troubles.MOST_EACH
    service.now += 30.0 + troubles.KEPT_S
    troubles.note(service.grid, machine, "j", rest_s=30.0, reason="full", now=service.now)
    assert list(service.grid.troubles[machine.id]) == ["j"]
