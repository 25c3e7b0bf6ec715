"""Desktops by real processes: agents' reports over TLS, real workers in their place, commands."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from acceptance.grid import Grid, Running, answered, wait_for
from acceptance.projects import double_job, expected_output
from officegrid.core.errors import AuthError, ForbiddenError
from officegrid.transport.http import Connection
from officegrid.wire.agent import (
    AgentOrders,
    AgentReport,
    DeskEvent,
    DeskRules,
    DeskStatus,
    WorkerCodeReply,
)
from officegrid.wire.work import ClaimRequest

HERE = {
    "decision": "yield", "rule": "input", "sentence": "Somebody used this PC 2 s ago.",
    "change": "Starts in 4 min 58 s if nobody touches it.",
}  # fmt: skip
AWAY = {
    "decision": "run", "rule": "away", "sentence": "Nobody has used this PC for 20 min.",
    "change": "Yields at once when somebody uses this PC.", "vm": "running", "driver": "qemu",
    "health": "good", "health_sentence": "QEMU 7.2 works.",
}  # fmt: skip


class Desk:
    """A desktop: its agent is this test, the VM is a real worker process."""

    def __init__(self, grid: Grid, name: str) -> None:
        self.grid = grid
        self.name = name
        self.vm = f"{name}-vm"
        grid.join(name, "agent")
        self.connection: Connection = grid.connection_of(name)
        self.run_id = "run-1"
        self._numbers = count(1)

    def code(self) -> str:
        path = "/v1/machine/worker-code"
        return self.connection.call("POST", path, reply=WorkerCodeReply, retry=False).code

    def join_vm(self) -> None:
        """What the VM does at its first boot, or after it was made anew."""
        self.grid.ok("join", self.grid.url, "--code", self.code(), home=self.vm)

    def start_vm(self) -> Running:
        made = self.grid.begin(self.vm, "worker", home=self.vm)
        made.wait_text("worker.started")
        return made

    def report(self, status: dict[str, Any], *kinds: str, **more: Any) -> AgentOrders:
        events = [
            DeskEvent.model_validate({"number": next(self._numbers), "kind": kind, **more})
            for kind in kinds
        ]
        request = AgentReport(
            run_id=self.run_id, status=DeskStatus.model_validate(status), events=events
        )
        return self.connection.call("POST", "/v1/machine/report", body=request, reply=AgentOrders)


@pytest.fixture
def lone(grid: Grid) -> Iterator[Desk]:
    """A desktop on a grid of its own, whose worker is the only one."""
    made = Desk(grid, "pc-7")
    yield made
    made.connection.close()


_desks = count(1)


@pytest.fixture
def desk(shared: Grid) -> Iterator[Desk]:
    """One more desktop on the grid of this module."""
    made = Desk(shared, f"pc-{next(_desks)}")
    yield made
    made.connection.close()


def test_a_desktop_pauses_and_goes_on_and_the_output_is_exact(lone: Desk, tmp_path: Path) -> None:
    grid = lone.grid
    job_file = double_job(tmp_path / "p", records=900, pause_s=0.004, bad_every=90)
    expected = expected_output(job_file)
    job_id = grid.submit(job_file)
    assert not lone.report(HERE, "idle").worker_joined
    lone.join_vm()
    vm = lone.start_vm()
    orders = lone.report(AWAY, "starting", "running")
    assert orders.worker_joined
    grid.wait_done(job_id, 40)
    wait_for(lambda: grid.machine("pc-7/vm").units_running > 0, "the VM holds a unit")
    vm.send(signal.SIGSTOP)
    orders = lone.report({**HERE, "vm": "paused"}, "user_back", "paused", cpu_back_ms=95)
    assert orders.units_released > 0
    assert grid.job(job_id).leased == 0, "its units are free at once"
    assert grid.machine("pc-7").desk is not None
    vm.send(signal.SIGCONT)
    lone.report(AWAY, "running")
    assert grid.wait_job(job_id).done == 890
    assert grid.output(job_id, tmp_path / "out.csv") == expected.output
    story = grid.story(job_id)
    assert not [line for line in story if "come back" in line], "counted as a death"
    seen = grid.machine("pc-7").desk
    assert seen is not None
    assert (seen.interruptions, seen.starts, seen.state) == (1, 1, "working")
    assert vm.stop() == 0


def test_a_short_pause_loses_no_work(lone: Desk, tmp_path: Path) -> None:
    """The VM wakes up before anybody took its units: it goes on with the very same ones."""
    grid = lone.grid
    job_file = double_job(tmp_path / "p", records=160, pause_s=0.05, unit_seconds=30)
    job_id = grid.submit(job_file)
    lone.join_vm()
    vm = lone.start_vm()
    wait_for(lambda: grid.job(job_id).leased > 30, "long units run")
    vm.send(signal.SIGSTOP)
    assert lone.report(HERE, "user_back").units_released > 0
    assert grid.job(job_id).leased == 0
    vm.send(signal.SIGCONT)
    wait_for(lambda: grid.job(job_id).leased > 30, "its leases live again", 15)
    view = grid.wait_job(job_id)
    assert view.done == 160
    assert "lease_lost" not in vm.text()
    assert "commit_refused" not in vm.text()
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output


def test_a_vm_made_anew_replaces_the_old_one(lone: Desk, tmp_path: Path) -> None:
    grid = lone.grid
    job_id = grid.submit(double_job(tmp_path / "p", records=400, pause_s=0.01))
    lone.join_vm()
    first = lone.start_vm()
    grid.wait_done(job_id, 16)
    before = grid.machine("pc-7/vm")
    old = grid.connection_of(lone.vm)
    first.kill()
    (grid.home(lone.vm) / "profile.json").unlink()
    lone.join_vm()
    after = grid.machine("pc-7/vm")
    assert after.id == before.id
    assert after.units_running == 0, "what the old VM held is free"
    claim = ClaimRequest(session_id="s")
    assert isinstance(answered(lambda: old.call("POST", "/v1/claim", body=claim)), AuthError)
    old.close()
    lone.start_vm()
    assert grid.wait_job(job_id).done == 400
    assert len([m for m in grid.read("machines") if m["host"]]) == 1


def test_roles_are_kept_apart(desk: Desk) -> None:
    grid = desk.grid
    desk.join_vm()
    worker = grid.connection_of(desk.vm)
    status = DeskStatus.model_validate(AWAY)
    report = AgentReport(run_id="r", status=status)
    for ask in (
        lambda: worker.call("POST", "/v1/machine/report", body=report),
        lambda: worker.call("POST", "/v1/machine/worker-code"),
        lambda: worker.call("GET", "/v1/desk-rules", reply=DeskRules),
        lambda: desk.connection.call("GET", "/v1/machines"),
        lambda: desk.connection.call("GET", "/v1/jobs"),
        lambda: desk.connection.call("GET", f"/v1/why/{desk.name}"),
        lambda: desk.connection.call("GET", "/v1/desk-rules", reply=DeskRules),
        lambda: desk.connection.call("PUT", "/v1/desk-rules", body=DeskRules(idle_s=0)),
        lambda: desk.connection.call("GET", f"/v1/objects/{'0' * 64}"),
    ):
        assert isinstance(answered(ask), ForbiddenError)
    worker.close()


def test_a_worker_code_opens_no_other_door(desk: Desk) -> None:
    grid = desk.grid
    code = desk.code()
    grid.ok("join", grid.url, "--code", code, home="thief")
    assert grid.machine(f"{desk.name}/vm").role == "worker", (
        "whatever it is called, it is this desktop's"
    )
    again = grid.run("join", grid.url, "--code", code, home="late")
    assert again.returncode == 1
    assert "not valid" in again.stderr


def test_revoking_the_desktop_stops_its_worker(desk: Desk) -> None:
    grid = desk.grid
    desk.join_vm()
    worker = grid.connection_of(desk.vm)
    grid.ok("revoke", desk.name)
    assert isinstance(answered(lambda: desk.report(AWAY)), AuthError)
    claim = ClaimRequest(session_id="s")
    assert isinstance(answered(lambda: worker.call("POST", "/v1/claim", body=claim)), AuthError)
    worker.close()
    assert grid.machine(f"{desk.name}/vm").revoked


# --- commands


def test_machines_shows_a_desktop_and_its_worker_in_one_row(desk: Desk) -> None:
    grid = desk.grid
    desk.join_vm()
    grid.join("w1", "worker")
    desk.report(AWAY, "starting", "running")
    desk.report({**HERE, "vm": "saved"}, "user_back", "saved", ran_s=5400, memory_back_ms=3200)
    text = grid.ok("machines")
    row = next(line for line in text.splitlines() if f" {desk.name} " in line)
    assert f"{desk.name}/vm" not in text
    assert "w1" in text
    for words in ("agent", "yes", "user here", "3.0 h", "1"):
        assert words in row, row
    listed = {machine["name"]: machine for machine in grid.read("machines")}
    assert listed[f"{desk.name}/vm"]["host"] == listed[desk.name]["id"]
    assert listed[desk.name]["desk"]["interruptions"] == 1
    assert listed["w1"]["desk"] is None


def test_machine_and_why_tell_the_decision_and_what_would_change_it(desk: Desk) -> None:
    grid = desk.grid
    desk.join_vm()
    status = {**HERE, "vm": "paused", "vm_detail": "by user_back", "numbers": {"idle_s": 2.0}}
    desk.report(status | {"driver": "qemu", "health": "good"}, "running")
    desk.report(status, "user_back", cpu_back_ms=80)
    desk.report(status, "paused", cpu_back_ms=1200, memory_back_ms=4100)
    text = grid.ok("machine", desk.name)
    for words in (
        "paused: user here", "yield (rule input)", "Somebody used this PC 2 s ago.",
        "Starts in 4 min 58 s", "idle_s 2.0", "paused: by user_back", "offline, 0 units running",
        "half within 80 ms, 99 % within 1.2 s, longest 1.2 s (last 2)", "longest 4.1 s (last 1)",
    ):  # fmt: skip
        assert words in text, f"{words!r} is not in\n{text}"
    for subject in (desk.name, f"{desk.name}/vm"):
        sentences = grid.ok("why", subject)
        assert "Somebody used this PC 2 s ago." in sentences
        assert "Starts in 4 min 58 s if nobody touches it." in sentences
    assert "runs in the VM there" in grid.ok("machine", f"{desk.name}/vm")
    assert grid.read("machine", desk.name)["desk"]["status"]["rule"] == "input"
    assert "Given back" in grid.ok("story", desk.name)


def test_policy_shows_sets_and_resets_the_central_rules(desk: Desk, tmp_path: Path) -> None:
    grid = desk.grid
    before = grid.read("policy")
    assert before["set"] == {}
    assert before["in_force"]["idle_s"] == 300
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[rules]\nidle = "10m"\ncpu_busy_share = "40%"\n'
        'quiet_hours = ["mon-fri 08:00-18:00"]\nsave_delay_s = 20\n'
    )
    shown = grid.ok("policy", "--set", str(rules))
    lines = {line.split()[0]: line for line in shown.splitlines()[2:]}
    assert "10 min" in lines["idle_s"]
    assert "default" not in lines["idle_s"]
    assert "40 %" in lines["cpu_busy_share"]
    assert "mon-fri 08:00-18:00" in lines["quiet_hours"]
    assert "default" in lines["settle_s"]
    orders = desk.report(AWAY)
    assert orders.rules == DeskRules(
        idle_s=600, cpu_busy_share=0.4, quiet_hours=["mon-fri 08:00-18:00"], save_delay_s=20
    )
    rules.write_text("never = true\n")
    grid.ok("policy", "--set", str(rules))
    assert grid.read("policy")["set"] == {"never": True}, "the rules are replaced, not added to"
    grid.ok("policy", "--reset")
    assert grid.read("policy") == before
    assert desk.report(AWAY).rules == DeskRules()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('idel = "10m"', "idel"),
        ('[rules]\nidle = "soon"', "idle"),
        ("idle = 600", "unit"),
        ("idle_s = -1", "idle_s"),
        ("cpu_busy_share = 1.5", "cpu_busy_share"),
        ('quiet_hours = ["mon-fri 8-18"]', "quiet_hours"),
        ("never = 3", "never"),
        ("[rules]\nnever = true\n[extra]\nx = 1", "extra"),
        ("idle_s = ", "TOML"),
    ],
)
def test_a_wrong_rule_is_named_and_nothing_changes(
    shared: Grid, tmp_path: Path, text: str, words: str
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(text)
    done = shared.run("policy", "--set", str(rules))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert shared.read("policy")["set"] == {}


def test_wrong_ways_to_set_rules_are_refused(shared: Grid, tmp_path: Path) -> None:
    assert shared.run("policy", "--set", str(tmp_path / "none.toml")).returncode == 2
    rules = tmp_path / "rules.toml"
    rules.write_text("never = true")
    assert shared.run("policy", "--set", str(rules), "--reset").returncode == 2
    shared.join("viewer", "viewer")
    assert shared.run("policy", home="viewer").returncode == 0, "everybody may look"
    refused = shared.run("policy", "--set", str(rules), home="viewer")
    assert refused.returncode == 1
    assert "manage" in refused.stderr
    with shared.browser("admin") as browser:
        wrong = browser.put("/v1/desk-rules", json={"run_hours": ["always"]})
        assert wrong.status_code == 422
        assert json.loads(wrong.content)["error"]["code"] == "usage"


def test_drain_and_back(lone: Desk, tmp_path: Path) -> None:
    grid = lone.grid
    lone.join_vm()
    lone.start_vm()
    assert "taken out of service" in grid.ok("drain", "pc-7")
    assert lone.report(AWAY).drain
    job_id = grid.submit(double_job(tmp_path / "p", records=100))
    assert "drained" in grid.ok("machines")
    assert "officegrid drain pc-7 --off" in grid.ok("why", "pc-7/vm")
    assert grid.job(job_id).units == 0
    assert grid.read("drain", "pc-7", "--off")["drain"] is False
    assert not lone.report(AWAY).drain
    assert grid.wait_job(job_id).done == 100
    refused = grid.run("drain", "me")
    assert refused.returncode == 1
    assert "does not work" in refused.stderr


def test_metrics_count_desktops(lone: Desk) -> None:
    lone.report(AWAY, "starting", "running")
    lone.report(HERE, "user_back", ran_s=3600, cpu_back_ms=250, memory_back_ms=4000)
    with lone.grid.browser("admin") as browser:
        lines = browser.get("/metrics").text.splitlines()
    for line in (
        'officegrid_desks{state="user here"} 1.0',
        'officegrid_desks{state="working"} 0.0',
        "officegrid_desk_interruptions_total 1.0",
        "officegrid_desk_harvested_seconds_total 3600.0",
        'officegrid_desk_yield_seconds{quantile="0.99",what="cpu"} 0.25',
        'officegrid_desk_yield_seconds{quantile="0.5",what="memory"} 4.0',
        "officegrid_workers_online 0.0",
    ):
        assert line in lines, "\n".join(lines)
