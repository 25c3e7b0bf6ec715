"""Desktops as the coordinator serves them, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from test_units_service import Service

from officegrid.coordinator.api.common import fresh
from officegrid.coordinator.service import commits, desks, lifecycle, machines, returns
from officegrid.coordinator.service import views as view_service
from officegrid.coordinator.service.context import Grid
from officegrid.core.deskstats import DeskStats, from_plain
from officegrid.core.errors import AuthError, ConflictError, ForbiddenError
from officegrid.core.model import LeaseState
from officegrid.storage.api import Job, Machine, Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.agent import AgentOrders, AgentReport, DeskEvent, DeskRules, DeskStatus
from officegrid.wire.jobs import JobPolicy, JobSpec, MachineView
from officegrid.wire.work import (
    LeaseProgress,
    MachineEvent,
    Program,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    Unit,
)

T = TypeVar("T")
LEASE_S = 30.0
DIGEST = "d" * 64


class Office(Service):
    """One grid with desktops."""

    def do(self, operation: Callable[[Grid, Tx], T]) -> T:
        return self.storage.write(lambda tx: operation(self.grid, tx))

    def look(self, machine: Machine) -> Machine:
        found = self.storage.read(lambda tx: tx.machine(machine.id))
        assert found is not None
        return found

    def view(self, machine: Machine) -> MachineView:
        return self.storage.read(
            lambda tx: view_service.machine_view(self.grid, tx, self.look(machine), self.now)
        )

    def why(self, machine: Machine) -> str:
        _, sentences = self.storage.read(
            lambda tx: view_service.why(self.grid, tx, machine.id, self.now)
        )
        return " ".join(sentences)

    def desktop(self, name: str = "pc-1") -> tuple[Machine, Machine]:
        """An agent and the worker in its VM."""
        agent = self.do(
            lambda grid, tx: machines.add_machine(
                tx, role="agent", name=name, token_hash=f"agent-{name}", facts={}, now=self.now
            )
        )
        return agent, self.join_worker(agent, "first")

    def join_worker(self, agent: Machine, mark: str) -> Machine:
        code = f"{agent.id}-{mark}"
        self.do(lambda grid, tx: desks.worker_code(tx, self.look(agent), code, self.now))
        return self.join(code, f"token-{code}")

    def join(self, code: str, token: str) -> Machine:
        return self.do(
            lambda grid, tx: machines.join(
                grid, tx, code_hash=code, token_hash=token, name="localhost",
                facts={"cpus": 2}, now=self.now,
            )
        )  # fmt: skip

    def report(
        self, agent: Machine, *events: DeskEvent, run_id: str = "run-1", **status: Any
    ) -> AgentOrders:
        said: dict[str, Any] = {
            "decision": "yield", "rule": "input", "sentence": "Somebody used this PC 1 s ago.",
            "change": "Starts in 5 min.", **status,
        }  # fmt: skip
        request = AgentReport(
            run_id=run_id, status=DeskStatus.model_validate(said), events=list(events), version="1"
        )
        return self.do(lambda grid, tx: desks.report(grid, tx, self.look(agent), request, self.now))

    def renew(self, machine: Machine, *units: Unit) -> RenewReply:
        leases = [LeaseProgress(lease_id=unit.lease_id) for unit in units]
        request = RenewRequest(session_id="s", leases=leases)
        return self.do(
            lambda grid, tx: commits.renew(grid, tx, self.look(machine), request, self.now)
        )

    def expire(self) -> int:
        return self.do(lambda grid, tx: returns.expire(grid, tx, self.now))

    def story(self, machine: Machine) -> list[str]:
        events = self.storage.read(lambda tx: tx.events(machine.id))
        return [f"{event.kind}: {event.text}" for event in events]

    def stats(self, agent: Machine) -> DeskStats:
        return from_plain(self.look(agent).stats)

    def long_job(self, *, suspended_lease_s: float = 7200.0, attempts: int = 3) -> Job:
        """A job whose records take longer than a unit."""
        spec = JobSpec(
            name="long", program=Program(python="m:f"), dataset=DIGEST,
            policy=JobPolicy(unit_seconds=0.001, suspended_lease_s=suspended_lease_s),
        )  # fmt: skip
        spec.limits.attempts = attempts
        return self.do(lambda grid, tx: lifecycle.create(grid, tx, spec, "tester", self.now))

    def hold_long_record(self, worker: Machine, **policy: Any) -> tuple[Job, Unit]:
        """The worker has measured how slow it is, and works on a single record."""
        job = self.long_job(**policy)
        first = self.claim(worker).units[0]
        assert self.commit(worker, first).outcome == "committed"
        unit = self.claim(worker).units[0]
        assert unit.end - unit.start == 1
        self.now += 5.0
        return job, unit


def event(number: int, kind: str, **more: Any) -> DeskEvent:
    return DeskEvent.model_validate({"number": number, "kind": kind, **more})


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    storage = SqliteStorage(tmp_path / "grid.db")
    yield Office(storage)
    storage.close()


# --- events


@pytest.mark.parametrize("kind", ["paused", "saved", "user_back", "stopped", "trouble"])
def test_a_yield_gives_the_units_back_at_once_and_says_so(office: Office, kind: str) -> None:
    agent, worker = office.desktop()
    office.submit()
    unit = office.claim(worker).units[0]
    orders = office.report(agent, event(1, kind))
    assert orders.units_released == 1
    other = office.machine("other")
    assert office.claim(other).units[0].start == unit.start
    told = office.story(agent)[-1]
    assert told.startswith(f"{kind}: ")
    assert told.endswith("; 1 unit released.")
    assert office.stats(agent).units_released == 1


@pytest.mark.parametrize("kind", ["idle", "starting", "running"])
def test_other_events_give_nothing_back(office: Office, kind: str) -> None:
    agent, worker = office.desktop()
    office.submit()
    office.claim(worker)
    assert office.report(agent, event(1, kind)).units_released == 0
    assert office.view(worker).units_running == 1


def test_a_worker_under_the_agents_own_identity_yields_too(office: Office) -> None:
    agent, _ = office.desktop()
    office.submit()
    office.claim(agent)
    assert office.report(agent, event(1, "user_back")).units_released == 1


def test_a_repeated_report_counts_once(office: Office) -> None:
    agent, worker = office.desktop()
    office.submit()
    events = [event(1, "starting"), event(2, "running"), event(3, "user_back", cpu_back_ms=80)]
    office.report(agent, *events)
    before = office.stats(agent), office.story(agent)
    office.claim(worker)
    again = office.report(agent, *events)
    assert again.units_released == 0, "a repeated user_back released the units of a later run"
    assert (office.stats(agent), office.story(agent)) == before
    office.report(agent, *events[1:], event(4, "saved", ran_s=60.0))
    assert office.stats(agent).harvested_s == 60.0
    assert office.stats(agent).interruptions == 1
    assert len(office.story(agent)) == len(before[1]) + 1


def test_events_come_in_the_order_of_their_numbers(office: Office) -> None:
    agent, _ = office.desktop()
    office.report(agent, event(3, "user_back"), event(1, "starting"), event(2, "running"))
    assert [line.split(":")[0] for line in office.story(agent)[-3:]] == [
        "starting", "running", "user_back",
    ]  # fmt: skip
    assert office.stats(agent).interruptions == 1


def test_what_an_earlier_run_still_sends_is_ignored(office: Office) -> None:
    agent, worker = office.desktop()
    office.submit()
    office.report(agent, event(1, "starting"), run_id="one")
    office.report(agent, event(1, "running"), run_id="two", decision="run", rule="away")
    office.claim(worker)
    before = office.stats(agent)
    late = office.report(agent, event(2, "user_back"), run_id="one")
    assert late.replaced
    assert late.units_released == 0
    assert office.view(worker).units_running == 1
    assert office.stats(agent) == before
    desk = office.view(agent).desk
    assert desk is not None
    assert desk.status is not None
    assert desk.status.decision == "run", "the status of the present run stays"
    office.report(agent, event(3, "user_back"), run_id="one")
    told = [line for line in office.story(agent) if line.startswith("identity_alarm:")]
    assert len(told) == 1
    assert "two computers share one identity" in told[0]
    assert office.view(agent).alarm is not None
    assert not office.report(agent, event(2, "user_back"), run_id="two").replaced


def test_late_news_are_dated_right_and_release_only_what_they_are_about(office: Office) -> None:
    agent, worker = office.desktop()
    office.submit()
    unit, lost = office.claim(worker, units=2).units
    office.now += 300
    office.renew(worker, unit)
    office.now += 10
    orders = office.report(
        agent, event(1, "paused", ago_s=200), event(2, "running", ago_s=100)
    )  # while the coordinator was away, the VM slept and woke up
    assert orders.units_released == 1, "only what was not renewed since"
    assert office.renew(worker, unit).alive == [unit.lease_id]
    assert office.commit(worker, unit).outcome == "committed"
    assert office.commit(worker, lost).outcome == "committed", "nobody took it meanwhile"
    events = office.storage.read(lambda tx: tx.events(agent.id))[-2:]
    assert [round(office.now - one.at) for one in events] == [200, 100]


def test_no_event_is_dated_before_the_desktop_joined(office: Office) -> None:
    agent, _ = office.desktop()
    office.now += 5
    office.report(agent, event(1, "idle", ago_s=1e9))
    events = office.storage.read(lambda tx: tx.events(agent.id))
    assert events[-1].at == agent.created_at


# --- units of a desktop that yields


def test_a_worker_that_is_back_before_others_came_goes_on(office: Office) -> None:
    agent, worker = office.desktop()
    job = office.submit()
    unit, other_unit = office.claim(worker, units=2).units
    office.report(agent, event(1, "user_back"))
    taken = office.claim(office.machine("other")).units[0]
    assert taken.start in (unit.start, other_unit.start)
    mine = other_unit if taken.start == unit.start else unit
    office.now += 4
    reply = office.renew(worker, unit, other_unit)
    assert reply.alive == [mine.lease_id]
    assert office.view(worker).units_running == 1
    assert office.commit(worker, mine).outcome == "committed"
    assert office.job(job).done == mine.end - mine.start


def test_a_claim_after_the_thaw_does_not_take_its_own_records_anew(office: Office) -> None:
    agent, worker = office.desktop()
    job = office.submit()
    first, second = office.claim(worker, units=2).units
    office.report(agent, event(1, "user_back"))
    office.now += 60
    assert office.commit(worker, first).outcome == "committed"
    more = office.claim(worker, held=[second.lease_id]).units
    assert all(unit.start >= second.end for unit in more)
    assert office.commit(worker, second).outcome == "committed"
    assert office.job(job).done == second.end


def test_a_unit_that_its_worker_gave_back_itself_stays_back(office: Office) -> None:
    worker = office.machine("desk")
    office.submit()
    unit = office.claim(worker).units[0]
    request = ReleaseRequest(session_id="s", leases=[unit.lease_id])
    office.do(lambda grid, tx: returns.release(grid, tx, worker, request, office.now))
    assert office.renew(worker, unit).lost == [unit.lease_id], "a renewal was under way"


def test_a_renewal_under_way_at_a_yield_blames_no_record(office: Office) -> None:
    agent, worker = office.desktop()
    job = office.submit(attempts=1)
    unit = office.claim(worker).units[0]
    office.report(agent, event(1, "paused"))
    assert office.renew(worker, unit).alive == [unit.lease_id]
    office.report(agent, event(2, "saved"))
    office.now += 1
    assert office.renew(worker, unit).alive == [unit.lease_id]
    office.do(lambda grid, tx: tx.touch_machine(worker.id, state="paused"))
    office.now += LEASE_S + 1
    assert office.expire() == 1
    assert office.job(job).quarantined == 0
    spans = office.storage.read(lambda tx: list(tx.spans(job.id)))
    assert all(attempts == 0 for _, _, _, attempts in spans)


def test_a_machine_that_dies_without_a_word_is_still_blamed(office: Office) -> None:
    _, worker = office.desktop()
    job = office.submit(attempts=3)
    office.claim(worker)
    office.now += LEASE_S + 1
    assert office.expire() == 1
    assert office.look(worker).state == "silent"
    spans = office.storage.read(lambda tx: list(tx.spans(job.id)))
    assert any(attempts == 1 for _, _, _, attempts in spans)


@pytest.mark.parametrize("kind", ["paused", "saved", "user_back"])
def test_a_record_longer_than_a_unit_outlasts_the_suspension(office: Office, kind: str) -> None:
    agent, worker = office.desktop()
    job, unit = office.hold_long_record(worker)
    assert office.report(agent, event(1, kind)).units_released == 0
    office.now += 7000
    assert office.expire() == 0
    lease = office.storage.read(lambda tx: tx.ledger(job.id).live_leases())[0]
    assert lease.deadline == pytest.approx(office.now + 200)
    assert office.renew(worker, unit).alive == [unit.lease_id]
    lease = office.storage.read(lambda tx: tx.ledger(job.id).live_leases())[0]
    assert lease.deadline == pytest.approx(office.now + LEASE_S), "the ordinary deadline again"
    assert office.commit(worker, unit).outcome == "committed"


def test_power_off_gives_the_long_record_back(office: Office) -> None:
    agent, worker = office.desktop()
    _, unit = office.hold_long_record(worker)
    office.report(agent, event(1, "saved"))
    assert office.report(agent, event(2, "stopped")).units_released == 1
    assert office.view(worker).units_running == 0
    owner = office.storage.read(lambda tx: tx.lease_owner(unit.lease_id))
    assert owner is not None
    assert owner[1].state is LeaseState.EXPIRED


def test_a_job_may_forbid_that_its_records_are_kept(office: Office) -> None:
    agent, worker = office.desktop()
    office.hold_long_record(worker, suspended_lease_s=0.0)
    assert office.report(agent, event(1, "saved")).units_released == 1


def test_records_that_wait_behind_the_long_one_go_back(office: Office) -> None:
    agent, worker = office.desktop()
    _, unit = office.hold_long_record(worker)
    office.claim(worker, held=[unit.lease_id], units=2)
    assert office.view(worker).units_running == 3
    office.now += 60
    assert office.report(agent, event(1, "user_back")).units_released == 2
    assert office.view(worker).units_running == 1


@pytest.mark.parametrize("how", ["too long", "cold boot"])
def test_a_suspension_that_ends_badly_blames_no_record(office: Office, how: str) -> None:
    agent, worker = office.desktop()
    job, unit = office.hold_long_record(worker, suspended_lease_s=600.0, attempts=1)
    office.report(agent, event(1, "saved"))
    if how == "too long":
        office.now += 601
        assert office.expire() == 1
    else:
        office.now += 100
        office.claim(worker, session="after a cold boot")
    spans = office.storage.read(lambda tx: list(tx.spans(job.id)))
    assert all(state != "quarantined" and attempts == 0 for _, _, state, attempts in spans)
    lease = office.storage.read(lambda tx: tx.lease_owner(unit.lease_id))
    assert lease is not None
    assert lease[1].state is LeaseState.EXPIRED


def test_a_workers_own_events_follow_the_same_rules(office: Office) -> None:
    worker = office.machine("desk")
    office.hold_long_record(worker)
    office.claim(worker, held=[], units=0)

    def tell(kind: str, session: str) -> int:
        said = MachineEvent.model_validate({"kind": kind, "session_id": session})
        return office.do(
            lambda grid, tx: machines.note_event(grid, tx, office.look(worker), said, office.now)
        )

    assert tell("user_back", "s") == 0, "kept: it is long"
    assert tell("worker_stopped", "another session") == 0
    assert tell("worker_stopped", "s") == 1


# --- the worker of a desktop


def test_joining_again_is_the_same_machine_with_a_new_token(office: Office) -> None:
    agent, worker = office.desktop()
    assert (worker.name, worker.role, worker.host) == ("pc-1/vm", "worker", agent.id)
    assert office.report(agent).worker_joined
    office.submit()
    old_unit = office.claim(worker).units[0]
    again = office.join_worker(agent, "second")
    assert again.id == worker.id
    assert again.token_hash != worker.token_hash
    assert office.look(worker).session == ""
    assert office.view(worker).units_running == 0
    assert office.storage.read(lambda tx: tx.machine_by_token(worker.token_hash)) is None
    with pytest.raises(AuthError):  # what the old VM had under way when it lost its place
        office.storage.read(lambda tx: fresh(tx, worker))
    taken = office.claim(office.machine("other")).units[0]
    assert taken.start == old_unit.start
    assert len(office.storage.read(lambda tx: tx.machines_on(agent.id))) == 1


def test_a_code_works_once_only_the_newest_one_and_for_a_day(office: Office) -> None:
    agent, _ = office.desktop()
    make = lambda code: office.do(  # noqa: E731
        lambda grid, tx: desks.worker_code(tx, office.look(agent), code, office.now)
    )
    assert make("a") == office.now + 86400
    make("b")
    with pytest.raises(AuthError):
        office.join("a", "t1")
    office.join("b", "t2")
    with pytest.raises(AuthError):
        office.join("b", "t3")
    make("c")
    office.now += 86401
    with pytest.raises(AuthError):
        office.join("c", "t4")


def test_revoking_an_agent_takes_its_worker_and_its_codes_with_it(office: Office) -> None:
    agent, worker = office.desktop()
    office.submit()
    office.claim(worker)
    office.do(lambda grid, tx: desks.worker_code(tx, agent, "open", office.now))
    office.do(lambda grid, tx: machines.revoke(grid, tx, office.look(agent), office.now))
    assert office.look(worker).revoked
    assert office.view(worker).units_running == 0
    with pytest.raises(AuthError):
        office.join("open", "t")


def test_a_revoked_worker_does_not_come_back_through_its_agent(office: Office) -> None:
    agent, worker = office.desktop()
    office.do(lambda grid, tx: desks.worker_code(tx, agent, "open", office.now))
    office.do(lambda grid, tx: machines.revoke(grid, tx, office.look(worker), office.now))
    assert not office.report(agent).worker_joined
    with pytest.raises(ForbiddenError, match="was revoked"):
        office.do(lambda grid, tx: desks.worker_code(tx, agent, "new", office.now))
    with pytest.raises(AuthError):  # the code it had been given before
        office.join("open", "t")


# --- orders, rules, drain


def test_orders_say_what_the_agent_must_know(office: Office) -> None:
    agent, worker = office.desktop()
    orders = office.report(agent)
    assert orders.rules == DeskRules()
    assert (orders.drain, orders.worker_joined, orders.replaced) == (False, True, False)
    assert 27 <= orders.report_every_s <= 33
    office.do(lambda grid, tx: desks.set_rules(tx, DeskRules(idle_s=60, never=True)))
    office.submit()
    office.claim(worker)
    office.now += 12
    orders = office.report(agent)
    assert orders.rules == DeskRules(idle_s=60, never=True)
    assert orders.worker_seen_ago_s == pytest.approx(12)


def test_many_agents_report_less_often_and_not_all_at_once(office: Office) -> None:
    agent, _ = office.desktop()
    office.grid.desks_counted = (office.now, 2000)
    assert 90 <= office.report(agent).report_every_s <= 110
    other, _ = office.desktop("pc-2")
    office.grid.desks_counted = (office.now, 2000)
    assert office.report(other).report_every_s != office.report(agent).report_every_s
    office.now += 90
    assert office.view(agent).online, "it may be silent for as long as it was told"
    office.now += 3600
    assert office.report(agent).report_every_s < 34, "they are counted anew"


@pytest.mark.parametrize("which", ["the desktop", "the worker"])
def test_a_drained_machine_gets_no_units_until_it_is_put_back(office: Office, which: str) -> None:
    agent, worker = office.desktop()
    office.submit()
    unit = office.claim(worker).units[0]
    drained = agent if which == "the desktop" else worker

    def drain(drains: bool) -> None:
        office.do(
            lambda grid, tx: machines.drain(grid, tx, office.look(drained), drains, office.now)
        )

    drain(True)
    assert office.report(agent).drain == (drained is agent)
    reply = office.claim(worker, held=[unit.lease_id])
    assert reply.units == []
    assert not reply.idle, "it still holds one"
    assert office.commit(worker, unit).outcome == "committed", "what runs may end"
    assert office.claim(worker).idle, "a worker that drains for cron ends"
    assert "drained" in office.why(drained)
    assert f"officegrid drain {drained.name} --off" in office.why(worker)
    before = office.grid.work_version
    drain(False)
    assert office.grid.work_version > before, "waiting claims look again"
    assert office.claim(worker).units
    assert len([line for line in office.story(drained) if "service" in line]) == 2


def test_people_cannot_be_drained(office: Office) -> None:
    ann = office.do(
        lambda grid, tx: machines.add_machine(
            tx, role="viewer", name="ann", token_hash="ann", facts={}, now=office.now
        )
    )
    with pytest.raises(ConflictError, match="does not work"):
        office.do(lambda grid, tx: machines.drain(grid, tx, ann, True, office.now))


# --- views


def test_the_view_of_a_desktop_tells_all(office: Office) -> None:
    agent, worker = office.desktop()
    office.submit()
    office.claim(worker)
    events = [event(1, "starting"), event(2, "running")]
    for number in range(100):
        at = 3 + 2 * number
        events.append(event(at, "user_back", cpu_back_ms=number + 1, ran_s=36))
        events.append(event(at + 1, "running", memory_back_ms=1000 * (number + 1)))
    office.report(agent, *events[:2], decision="run", rule="away", vm="running", since_s=5)
    office.claim(worker)
    office.report(agent, *events, decision="run", rule="away", vm="running", since_s=5)
    desk = office.view(agent).desk
    assert desk is not None
    assert (desk.state, desk.worker, desk.worker_online) == ("working", worker.id, True)
    assert (desk.harvested_s, desk.interruptions, desk.starts) == (3600, 100, 1)
    assert desk.cpu_back is not None
    assert desk.memory_back is not None
    assert (desk.cpu_back.p50_ms, desk.cpu_back.p99_ms, desk.cpu_back.longest_ms) == (50, 99, 100)
    assert desk.memory_back.p99_ms == 99_000
    office.now += 10
    desk = office.view(agent).desk
    assert desk is not None
    assert desk.heard_ago_s == pytest.approx(10)
    assert desk.since_s == pytest.approx(15)
    assert office.view(worker).host == agent.id
    assert office.view(worker).desk is None


def test_why_a_desktop_and_its_worker_give_the_desktops_reason(office: Office) -> None:
    agent, worker = office.desktop()
    assert "has not reported yet" in office.why(agent)
    office.report(agent, event(1, "saved"))
    for one in (agent, worker):
        assert "Somebody used this PC 1 s ago. Starts in 5 min." in office.why(one)
    assert office.why(worker).startswith("pc-1/vm runs in a VM on pc-1.")
    said = {"decision": "run", "rule": "away", "sentence": "Nobody is here.", "vm": "running"}
    office.report(agent, event(2, "running"), **said)
    assert "no job has records pending" in office.why(agent)
    office.now += 3600
    assert "has not been heard of for 1 h" in office.why(agent)
    assert "has not been heard of for 1 h" in office.why(worker)
    view = office.view(agent)
    assert view.desk is not None
    assert (view.online, view.desk.state) == (False, "silent")


def test_trouble_is_told_until_the_vm_runs_again(office: Office) -> None:
    agent, _ = office.desktop()
    office.report(agent, event(1, "trouble", text="The disk is full."))
    office.report(agent)
    desk = office.view(agent).desk
    assert desk is not None
    assert desk.state == "trouble"
    assert "pc-1 is in trouble: The disk is full." in office.why(agent)
    office.report(agent, event(2, "running"), decision="run", rule="away", vm="running")
    assert "trouble" not in office.why(agent)


def test_a_reporting_agent_is_not_counted_as_a_second_worker(office: Office) -> None:
    agent, _ = office.desktop()
    job = office.submit()
    office.report(agent)
    _, sentences = office.storage.read(
        lambda tx: view_service.why(office.grid, tx, job.id, office.now)
    )
    assert "There is 1 desktop: 1 " in " ".join(sentences)
