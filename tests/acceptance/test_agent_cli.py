"""`officegrid agent run | status | pause` as real processes, with a real coordinator and a real
worker (driver `process`), and presence data from a file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, Running, wait_for
from officegrid.wire.agent import DeskRules

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets of POSIX")

EAGER = DeskRules(
    idle_s=1, cpu_busy_share=1, cpu_idle_share=1, cpu_idle_s=0, settle_s=0, memory_free_mb=16,
    on_battery=True,
)  # fmt: skip
SETTINGS = """
[vm]
driver = "process"
memory_mb = 128
cpus = 1
[vm.options]
control_groups = false
[sensors]
kind = "file"
file = "{presence}"
{more}
"""


class Desk:
    """One PC of a grid: its home, who sits there, and its agent."""

    def __init__(self, grid: Grid, name: str) -> None:
        self.grid, self.name = grid, name
        self.home = grid.home(name)
        self.presence = grid.folder / f"{name}.presence.json"
        # Not below the grid's folder: the path of a socket must be short.
        self.door = Path(tempfile.mkdtemp(prefix="og-"))
        self.env = {"OFFICEGRID_AGENT_SOCKET": str(self.door / "agent.sock")}
        self._idle_since_s = time.time() - 1000
        self._present = threading.Event()
        self._over = threading.Event()
        grid.ok("join", grid.url, "--code", grid.code("agent"), "--name", name, home=name)
        self.settle()
        self._write()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    def settle(self, more: str = "") -> None:
        text = SETTINGS.format(presence=self.presence, more=more)
        (self.home / "agent.toml").write_text(text)

    def leaves(self) -> None:
        self._idle_since_s = time.time() - 1000
        self._present.clear()

    def types(self) -> None:
        self._present.set()
        self._write()

    def _keep_writing(self) -> None:
        while not self._over.wait(0.2):
            self._write()

    def _write(self) -> None:
        now_s = time.time()
        idle_s = 0.0 if self._present.is_set() else now_s - self._idle_since_s
        draft = self.presence.with_suffix(f".{threading.get_ident()}")
        draft.write_text(json.dumps({"at": now_s, "idle_s": idle_s, "locked": False}))
        draft.replace(self.presence)

    def run(self, log: str = "agent") -> Running:
        return self.grid.begin(f"{self.name}-{log}", "agent", "run", home=self.name, env=self.env)

    def agent(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.grid.run("agent", *arguments, home=self.name, env=self.env)

    def ok(self, *arguments: str) -> str:
        done = self.agent(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("status", "--json"))
        return found

    def saved_status(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.home / "agent/status.json").read_text())
            return found
        return {}

    def workers(self) -> list[psutil.Process]:
        """The processes of this desk's worker, wherever they hang in the process tree."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.home / "agent" / "vm") in process.environ().get("OFFICEGRID_HOME", ""):
                    found.append(process)
        return found

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.door)


@pytest.fixture
def desk(make_grid: MakeGrid) -> Iterator[Desk]:
    grid = make_grid()
    grid.start()
    grid.connection().call("PUT", "/v1/desk-rules", body=EAGER, reply=DeskRules)
    made = Desk(grid, "desk1")
    yield made
    made.close()


def begin(desk: Desk, log: str = "agent") -> Running:
    """An agent whose worker runs and has been heard by the coordinator."""
    agent = desk.run(log)
    agent.wait_text("desk.running", 60)
    return agent


def test_a_desk_works_while_its_user_is_away_and_is_theirs_at_once(desk: Desk) -> None:
    agent = begin(desk)
    wait_for(lambda: desk.workers(), "a worker process")
    status = wait_for(
        lambda: s if (s := desk.status())["vm"] == "running" else None, "status says running"
    )
    assert status["decision"] == "run"
    assert status["driver"] == "process"
    assert status["rules"]["idle_s"] == {"value": 1.0, "from": "central"}
    wait_for(
        lambda: any(m["role"] == "worker" for m in desk.grid.read("machines")),
        "the worker has joined",
    )
    text = desk.ok("status")
    assert text.startswith("The grid may use this PC. Nobody has used this PC for")
    desk.types()
    agent.wait_text("desk.paused")
    agent.wait_text("desk.stopped")
    wait_for(lambda: not desk.workers(), "no process of the worker is left")
    status = desk.status()
    assert status["decision"] == "yield"
    assert status["rule"] == "input"
    assert status["change"]
    assert 0 < status["today"]["cpu_back_ms_worst"] < 1500
    line = next(m for m in desk.grid.read("machines") if m["name"] == desk.name)
    assert line["online"]
    desk.leaves()
    wait_for(lambda: agent.text().count("desk.running") == 2, "it works again", 60)
    # The worker has joined already: no second code was asked for.
    assert agent.text().count("worker_code") == 1
    assert agent.stop(30) == 0
    assert not desk.workers()


def test_no_secret_is_ever_logged_or_readable(desk: Desk) -> None:
    agent = begin(desk)
    seed = json.loads((desk.home / "agent/seed/officegrid.json").read_text())
    token = json.loads((desk.home / "profile.json").read_text())["token"]
    assert seed["code"] not in agent.text()
    assert token not in agent.text()
    for path in (desk.home / "agent").rglob("*"):
        ours = "vm" not in path.relative_to(desk.home / "agent").parts
        if ours and path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path
    assert seed["code"] not in json.dumps(desk.status())
    assert agent.stop(30) == 0


def test_a_killed_agent_leaves_its_worker_and_the_next_one_watches_it(desk: Desk) -> None:
    first = begin(desk)
    pids = {process.pid for process in wait_for(desk.workers, "a worker process")}
    first.kill()
    assert {process.pid for process in desk.workers()} >= pids
    second = desk.run("second")
    second.wait_text("found running")
    wait_for(lambda: desk.status()["decision"] == "run", "it goes on")
    assert {process.pid for process in desk.workers()} >= pids
    assert "verb=start" not in second.text()
    desk.types()
    second.wait_text("desk.stopped")
    wait_for(lambda: not desk.workers(), "no process of the worker is left")
    assert second.stop(30) == 0


def test_a_second_agent_is_refused(desk: Desk) -> None:
    desk.types()
    agent = desk.run()
    agent.wait_text("agent.driver ")
    refused = desk.agent("run")
    assert refused.returncode == 1
    assert "An agent is already running on this machine." in refused.stderr
    assert str(agent.pid) in refused.stderr
    assert agent.running
    assert agent.stop(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_gives_everything_back_and_ends_well(desk: Desk, number: signal.Signals) -> None:
    agent = begin(desk)
    agent.send(number)
    assert agent.wait(30) == 0
    assert not desk.workers()
    assert "agent.ended" in agent.text()
    looked = desk.agent("status")
    assert looked.returncode == 1
    assert "No agent runs on this PC." in looked.stderr


def test_without_its_door_the_status_comes_from_a_file_and_says_how_old_it_is(desk: Desk) -> None:
    desk.types()
    desk.env = {"OFFICEGRID_AGENT_SOCKET": str(desk.door / ("x" * 200))}
    agent = desk.run()
    agent.wait_text("no_door")
    wait_for(desk.saved_status, "a status file")
    assert desk.status()["rule"] in ("input", "sensor_silent")
    kept = desk.home / "agent/status.json"
    wait_for(lambda: time.time() - json.loads(kept.read_text())["at"] > 6, "it has grown old")
    assert "The agent does not answer; this is" in desk.ok("status")
    assert agent.stop(30) == 0


def test_a_pause_is_obeyed_at_once_and_outlives_the_agent(desk: Desk) -> None:
    agent = begin(desk)
    said = desk.ok("pause", "--for", "1h")
    assert "The grid stays off this PC until" in said
    agent.wait_text("desk.stopped")
    wait_for(lambda: desk.status()["rule"] == "user_pause", "the pause rules")
    assert agent.stop(30) == 0
    again = desk.run("again")
    again.wait_text("agent.driver ")
    wait_for(lambda: desk.status()["rule"] == "user_pause", "the pause still rules")
    assert not desk.workers()
    desk.ok("pause", "--off")
    again.wait_text("desk.running", 60)
    assert again.stop(30) == 0


def test_a_pause_without_an_answering_agent_is_written_for_the_next(desk: Desk) -> None:
    nothing = desk.agent("pause", "--ever")
    assert nothing.returncode == 1
    assert "No agent runs on this PC." in nothing.stderr
    desk.types()
    agent = desk.run()
    agent.wait_text("agent.driver ")
    wait_for(desk.saved_status, "a status file")
    assert agent.stop(30) == 0
    assert "until `officegrid agent pause --off`" in desk.ok("pause", "--ever")
    again = desk.run("again")
    again.wait_text("agent.driver ")
    wait_for(lambda: desk.status()["rule"] == "user_pause", "the pause rules")
    assert again.stop(30) == 0


@pytest.mark.parametrize("wrong", [("--for", "soon"), ("--for", "0"), ("--ever", "--off")])
def test_a_wrong_pause_is_a_usage_error(desk: Desk, wrong: tuple[str, ...]) -> None:
    assert desk.agent("pause", *wrong).returncode == 2


def test_new_settings_are_taken_over_and_wrong_ones_are_not(desk: Desk) -> None:
    agent = begin(desk)
    pids = {process.pid for process in desk.workers()}
    desk.settle('[rules]\nquiet_hours = ["nonsense"]')
    agent.send(signal.SIGHUP)
    agent.wait_text("reload_refused")
    assert {process.pid for process in desk.workers()} == pids
    desk.settle("[rules]\nsaves_per_hour = 1")
    agent.send(signal.SIGHUP)
    agent.wait_text("agent.reloaded")
    wait_for(
        lambda: desk.status()["rules"]["saves_per_hour"] == {"value": 1, "from": "local"},
        "the new rule holds",
    )
    wait_for(lambda: desk.status()["decision"] == "run", "it goes on")
    assert {process.pid for process in desk.workers()} == pids
    desk.settle("[rules]\nnever = true")
    agent.send(signal.SIGHUP)
    agent.wait_text("desk.stopped")
    wait_for(lambda: not desk.workers(), "no process of the worker is left")
    assert agent.stop(30) == 0


@pytest.mark.parametrize("wrong", [
    SETTINGS.replace("control_groups", "contrl_groups"),
    SETTINGS.replace('file = "{presence}"', ""),
    SETTINGS.replace('"process"', '"qemu"').replace("control_groups", "acceleratr"),
])  # fmt: skip
def test_settings_that_cannot_work_leave_the_running_worker_watched(desk: Desk, wrong: str) -> None:
    agent = begin(desk)
    pids = {process.pid for process in desk.workers()}
    (desk.home / "agent.toml").write_text(wrong.format(presence=desk.presence, more=""))
    agent.send(signal.SIGHUP)
    agent.wait_text("reload_refused")
    assert "settings" in desk.ok("status")
    assert desk.status()["settings_trouble"].endswith("The settings stay as they were.")
    assert not any("settings" in text for text in desk.grid.story(desk.name))
    assert {process.pid for process in desk.workers()} == pids
    # The same at a start: the worker that is found running is watched, by the settings before.
    agent.kill()
    again = desk.run("again")
    again.wait_text("settings_refused")
    wait_for(lambda: desk.status()["vm"] == "running", "the worker is watched")
    assert {process.pid for process in desk.workers()} == pids
    desk.types()
    again.wait_text("desk.stopped")
    wait_for(lambda: not desk.workers(), "no process of the worker is left")
    assert again.stop(30) == 0


def test_a_restart_with_another_vm_gives_the_old_one_back_first(desk: Desk) -> None:
    agent = begin(desk)
    pids = {process.pid for process in desk.workers()}
    agent.kill()
    assert {process.pid for process in desk.workers()} == pids
    text = SETTINGS.replace("memory_mb = 128", 'memory_mb = 160\nname = "Other"')
    (desk.home / "agent.toml").write_text(text.format(presence=desk.presence, more=""))
    again = desk.run("again")
    again.wait_text("agent.giving_back")
    again.wait_text("desk.stopped")
    again.wait_text("desk.running", 60)
    wait_for(lambda: desk.workers(), "the new worker runs")
    assert not pids & {process.pid for process in desk.workers()}
    assert json.loads((desk.home / "agent/driver.json").read_text()) == {"driver": "process"}
    assert again.stop(30) == 0


def test_a_pause_beyond_every_calendar_can_be_shown(desk: Desk) -> None:
    desk.types()
    agent = desk.run()
    agent.wait_text("agent.driver ")
    (desk.home / "agent/pause.json").write_text('{"until_s": 1e300, "by": "anna"}')
    wait_for(lambda: desk.status()["paused"], "the pause holds")
    assert "until the end of time" in desk.ok("status")
    assert agent.stop(30) == 0


def test_rules_outlive_the_coordinator_and_an_outage_changes_nothing(desk: Desk) -> None:
    never = EAGER.model_copy(update={"never": True})
    desk.grid.connection().call("PUT", "/v1/desk-rules", body=never, reply=DeskRules)
    agent = desk.run()
    wait_for(lambda: desk.saved_status().get("rule") == "never", "the rule has come")
    assert agent.stop(30) == 0
    desk.grid.coordinator().kill()
    again = desk.run("again")
    again.wait_text("coordinator_away")
    wait_for(lambda: desk.status()["rule"] == "never", "the rule still holds")
    assert "cannot be reached" in desk.status()["coordinator_trouble"]
    assert not desk.workers()
    assert again.stop(30) == 0


def test_work_goes_on_while_the_coordinator_is_away(desk: Desk) -> None:
    agent = begin(desk)
    wait_for(lambda: any(m["role"] == "worker" for m in desk.grid.read("machines")), "joined")
    desk.grid.coordinator().kill()
    desk.types()
    agent.wait_text("desk.stopped")
    agent.wait_text("coordinator_away")
    desk.grid.start()
    agent.wait_text("coordinator_back", 90)
    wait_for(
        lambda: any(m["name"] == desk.name and m["online"] for m in desk.grid.read("machines")),
        "the desk is known to be there",
    )
    assert agent.stop(30) == 0


def test_only_a_desk_may_run_an_agent(make_grid: MakeGrid) -> None:
    grid = make_grid()
    grid.start()
    stranger = grid.run("agent", "run", home="nobody")
    assert stranger.returncode == 1
    assert "has not joined" in stranger.stderr
    grid.join("w1", "worker")
    refused = grid.run("agent", "run", home="w1")
    assert refused.returncode == 1
    assert "joined as worker, not as an agent" in refused.stderr


@pytest.mark.parametrize(("settings", "said"), [
    ('[vm]\ndriver = "parallels"', "wrong at 'vm.driver'"),
    ("[vm\n", "not TOML"),
    ('[rules]\nquiet_hours = ["always"]', "quiet_hours"),
])  # fmt: skip
def test_wrong_settings_are_named(desk: Desk, settings: str, said: str) -> None:
    (desk.home / "agent.toml").write_text(settings)
    refused = desk.agent("run")
    assert refused.returncode == 2
    assert said in refused.stderr


def test_settings_broken_later_leave_the_pc_watched_by_the_last_good_ones(desk: Desk) -> None:
    desk.types()
    first = desk.run()
    first.wait_text("agent.driver ")
    wait_for(lambda: (desk.home / "agent/settings.json").exists(), "the settings are kept")
    assert first.stop(30) == 0
    (desk.home / "agent.toml").write_text("[vm")
    again = desk.run()
    again.wait_text("agent.settings_refused")
    wait_for(lambda: desk.status()["rule"] == "input", "it sees the typing")
    assert any("last good settings" in text for text in desk.grid.story(desk.name))
    assert again.stop(30) == 0


def test_a_waiting_agent_is_small(desk: Desk) -> None:
    desk.types()
    agent = desk.run()
    agent.wait_text("agent.driver ")
    wait_for(desk.saved_status, "a status file")
    process = psutil.Process(agent.pid)
    began_s, began = time.monotonic(), process.cpu_times()
    wait_for(lambda: time.monotonic() - began_s > 5, "five seconds have passed")
    used = process.cpu_times()
    share = (used.user + used.system - began.user - began.system) / (time.monotonic() - began_s)
    memory_mb = process.memory_info().rss / 2**20
    assert share < 0.02, f"{share:.2%} of a core"  # ten times the budget: other tests run too
    assert memory_mb < 75, f"{memory_mb:.0f} MB"
    assert os.path.exists(desk.home / "agent/status.json")
    assert agent.stop(30) == 0
