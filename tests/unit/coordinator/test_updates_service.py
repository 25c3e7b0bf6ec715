"""The floor and the releases as the coordinator serves them, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from test_desks_service import Office

from officegrid.coordinator.api.metrics import _collect_updates
from officegrid.coordinator.api.updates import _list
from officegrid.coordinator.service import claims, desks, images, updates
from officegrid.core.errors import ConflictError, NotFoundError, UsageError
from officegrid.core.floor import Floor
from officegrid.storage.api import Machine
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.agent import AgentOrders, AgentReport, DeskStatus
from officegrid.wire.images import ImageFile, ImageReport, ImageSpec
from officegrid.wire.updates import FloorSettings
from officegrid.wire.work import ClaimReply, ClaimRequest, UpdateFailure

DIGEST = "e" * 64
STATUS = DeskStatus(decision="run", rule="away", sentence="Nobody is here.", vm="running")


class Depot(Office):
    """A grid whose programs grow old."""

    def floor(self, **floors: Any) -> Floor:
        asked = FloorSettings(**floors)
        return self.do(lambda grid, tx: updates.set_floor(grid, tx, asked, "ann", self.now)).floor

    def push(self, version: str, digest: str = DIGEST) -> None:
        self.do(
            lambda grid, tx: updates.push(
                grid, tx, digest=digest, version=version, size=9, by="ann", now=self.now
            )
        )

    def ask(self, machine: Machine, version: str = "", **said: Any) -> ClaimReply:
        request = ClaimRequest(session_id="s", units=1, version=version, **said)
        return self.do(
            lambda grid, tx: claims.claim(grid, tx, self.look(machine), request, self.now)
        )

    def says(self, agent: Machine, version: str, image: ImageReport | None = None) -> AgentOrders:
        request = AgentReport(run_id="r", status=STATUS, version=version, image=image)
        return self.do(lambda grid, tx: desks.report(grid, tx, self.look(agent), request, self.now))

    def image(self, name: str) -> str:
        file = ImageFile(name="x.qcow2", size=9, sha256=DIGEST, chunks=[DIGEST])
        spec = ImageSpec(name=name, files={"qcow2": file})
        return self.do(lambda grid, tx: images.push(grid, tx, spec, "ann", self.now)).id

    def facts(self, machine: Machine) -> dict[str, Any]:
        return self.look(machine).facts


@pytest.fixture
def depot(tmp_path: Path) -> Iterator[Depot]:
    storage = SqliteStorage(tmp_path / "grid.db")
    yield Depot(storage)
    storage.close()


def test_a_worker_of_before_all_this_works_until_there_is_a_floor(depot: Depot) -> None:
    worker = depot.machine("desk")
    depot.submit()
    reply = depot.ask(worker)
    assert reply.units
    assert reply.update is None
    depot.push("0.2.0")
    assert depot.ask(worker).update is None, "it would not understand an order"
    depot.floor(worker="0.1.0")
    reply = depot.ask(worker, held_leases=[unit.lease_id for unit in reply.units])
    assert reply.units == []
    assert reply.idle is False, "it still works on what it has"
    assert reply.update is not None
    assert "does not say which officegrid it runs" in reply.update.text
    assert reply.update.digest is None
    assert "does not say which officegrid" in depot.why(worker)
    assert depot.floor(worker="") == Floor()
    assert depot.ask(worker).units


def test_below_the_floor_a_worker_is_told_where_to_go_and_what_it_says_is_kept(
    depot: Depot,
) -> None:
    worker = depot.machine("desk")
    depot.submit()
    depot.floor(worker="0.2.0")
    reply = depot.ask(worker, "0.1.0")
    assert reply.units == []
    assert reply.idle, "with --drain it ends: waiting would not help"
    assert "install one there" in depot.why(worker)
    depot.push("0.2.0")
    reply = depot.ask(worker, "0.1.0")
    assert reply.units == []
    assert not reply.idle, "with --drain it updates first"
    assert reply.update is not None
    assert (reply.update.digest, reply.update.version) == (DIGEST, "0.2.0")
    assert "told to update itself to 0.2.0" in depot.why(worker)
    failed = UpdateFailure(
        digest=DIGEST, version="0.2.0", number=reply.update.number, why="It broke."
    )
    reply = depot.ask(worker, "0.1.0", update_failed=failed)
    assert reply.update is not None
    assert reply.update.digest is None, "it is not ordered what has failed there"
    assert reply.idle
    assert "did not work there: It broke." in depot.why(worker)
    assert "update_failed: desk: the update to 0.2.0 did not work: It broke." in depot.story(worker)
    depot.ask(worker, "0.1.0", update_failed=failed)
    assert len([line for line in depot.story(worker) if "did not work" in line]) == 1
    depot.do(lambda grid, tx: updates.retry(grid, tx, "ann", depot.now))
    reply = depot.ask(worker, "0.1.0", update_failed=failed)
    assert reply.update is not None
    assert reply.update.digest == DIGEST
    assert depot.ask(worker, "0.2.0", release=DIGEST).units
    facts = depot.facts(worker)
    assert (facts["version"], facts["release"]) == ("0.2.0", DIGEST)
    assert "update_failed" not in facts
    assert facts["slots"] == 1
    assert "updated: desk now runs 0.2.0" in depot.story(worker)
    assert depot.view(worker).below_floor is None


@pytest.mark.parametrize("version", ["nonsense", "0.2.0rc1", "0.1.99"])
def test_what_is_no_version_counts_as_too_old(depot: Depot, version: str) -> None:
    worker = depot.machine("desk")
    depot.submit()
    depot.floor(worker="0.2.0")
    assert depot.ask(worker, version).units == []
    assert depot.view(worker).below_floor == f"worker {version} is below the floor 0.2.0"


def test_a_floor_that_is_no_version_changes_nothing(depot: Depot) -> None:
    depot.floor(worker="0.1.0")
    with pytest.raises(UsageError, match="is not a version"):
        depot.floor(worker="0.2.0", agent="soon")
    with pytest.raises(NotFoundError, match="There is no image version 1"):
        depot.floor(worker="0.2.0", image=1)
    assert depot.storage.read(updates.policy).floor == Floor("0.1.0")
    told = depot.storage.read(lambda tx: tx.events(updates.SUBJECT))
    assert [event.text for event in told] == ["ann: the floor is worker 0.1.0"]


def test_an_old_agent_keeps_its_worker_from_units_and_is_told(depot: Depot) -> None:
    agent, worker = depot.desktop()
    depot.submit()
    assert depot.says(agent, "0.1.0").below_floor == ""
    depot.floor(agent="0.2.0")
    said = depot.says(agent, "0.1.0").below_floor
    assert said == (
        "The desktop's agent runs officegrid 0.1.0, which is below the floor 0.2.0, so this "
        "machine gets no units until it is updated."
    )
    assert depot.ask(worker, "9.0").units == []
    for one in (agent, worker):
        why = depot.why(one)
        assert why.count("which is below the floor 0.2.0") == 1
        assert "officegrid agent install" in why
        assert "should ask for a unit" not in why
        assert depot.view(one).below_floor == "agent 0.1.0 is below the floor 0.2.0"
    assert depot.says(agent, "0.2.0").below_floor == ""
    assert depot.ask(worker, "9.0").units


def test_an_old_image_keeps_its_worker_from_units(depot: Depot) -> None:
    agent, worker = depot.desktop()
    depot.submit()
    first, second = depot.image("one"), depot.image("two")
    depot.floor(image=2)

    def runs(image: str | None, file_format: str = "qcow2") -> str:
        report = ImageReport.model_validate({"format": file_format, "running": image})
        return depot.says(agent, "0.1.0", report).below_floor

    assert "image version 1, which is below the floor 2" in runs(first)
    assert depot.ask(worker, "0.1.0").units == []
    assert "officegrid image list" in depot.why(agent)
    assert "made from an image that was never pushed" in runs(None)
    assert depot.ask(worker, "0.1.0").units == []
    assert runs(None, "") == "", "without a VM there is no image"
    assert runs(second) == ""
    assert depot.ask(worker, "0.1.0").units


def test_workers_leave_what_was_withdrawn(depot: Depot) -> None:
    worker = depot.machine("desk")
    depot.push("0.2.0")
    depot.do(lambda grid, tx: updates.roll_back(grid, tx, "ann", depot.now))
    reply = depot.ask(worker, "0.2.0", release=DIGEST)
    assert reply.update is not None
    assert reply.update.home
    assert depot.ask(worker, "0.1.0").update is None
    with pytest.raises(ConflictError, match="There is no release"):
        depot.do(lambda grid, tx: updates.roll_back(grid, tx, "ann", depot.now))
    # The clean-up keeps what any setting names.
    assert depot.storage.read(lambda tx: DIGEST in (tx.setting(updates.SETTING) or ""))


def test_waiting_workers_are_woken_by_a_push_and_by_a_floor(depot: Depot) -> None:
    before = depot.grid.work_version
    depot.push("0.2.0")
    assert depot.grid.work_version == before + 1
    depot.floor(worker="0.2.0")
    assert depot.grid.work_version == before + 2
    depot.floor(worker="0.2.0")
    assert depot.grid.work_version == before + 2, "nothing has changed"


def test_a_job_says_that_all_workers_are_too_old(depot: Depot) -> None:
    worker = depot.machine("desk")
    depot.ask(worker, "0.1.0")
    job = depot.submit()
    depot.floor(worker="0.2.0")
    _, sentences = depot.storage.read(lambda tx: _why(depot, tx, job.id))
    assert "The only worker online is below the floor and gets no units" in " ".join(sentences)


def _why(depot: Depot, tx: Any, subject: str) -> tuple[str, list[str]]:
    from officegrid.coordinator.service import views

    return views.why(depot.grid, tx, subject, depot.now)


def test_who_has_a_release_installed_runs_it_too(depot: Depot) -> None:
    fetched, installed, old = (depot.machine(name) for name in ("a", "b", "c"))
    depot.push("0.2.0")
    depot.push("0.3.0", "f" * 64)
    depot.ask(fetched, "0.3.0", release="f" * 64)
    depot.ask(installed, "0.3.0")
    depot.ask(old, "0.1.0")
    rows = depot.storage.read(_list).releases
    assert [(one.version, one.running, one.installed) for one in rows] == [
        ("0.3.0", 2, 1), ("0.2.0", 0, 0),
    ]  # fmt: skip
    registry = CollectorRegistry()
    depot.storage.read(lambda tx: _collect_updates(tx, tx.machines(), registry))
    counted = {
        state: registry.get_sample_value("officegrid_update_workers", {"state": state})
        for state in ("running", "failed", "other")
    }
    assert counted == {"running": 2, "failed": 0, "other": 1}
    depot.ask(old, "0.2.0", release=DIGEST)
    assert [one.running for one in depot.storage.read(_list).releases] == [2, 1]
