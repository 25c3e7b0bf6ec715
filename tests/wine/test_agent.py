"""The agent on Windows, in a terminal and as a service, asked over its pipe."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from officegrid.coordinator.pki import ensure_pki
from officegrid.transport.profile import Profile, save_profile
from wine.conftest import ROOT, Rig, windows_path

# What the installation registers, with the settings that a test needs: services do not get ours.
# Wine lists no sessions, so somebody is logged on here; the helper only leaves a sign of itself.
SERVICE = """
import os, sys
sys.path.insert(0, {source!r})
os.environ.update({environment!r})
from officegrid.agent.install import windows_host
from officegrid.agent.windows import helpers, readings
from officegrid.agent.windows.translate import SessionState

here = readings.ListedSession(readings.own_session_id(), SessionState.ACTIVE, "kim")
helpers.HelperKeeper.__init__.__kwdefaults__["listed"] = lambda: [here]
sign = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
windows_host.helper_command = lambda python: (python, "-c", sign, {home!r} + r"\\helper")
sys.exit(windows_host.main([{home!r}]))
"""
CONTROL = """
import sys
from officegrid.agent.windows import control
from officegrid.agent.windows.service_plan import ServicePlan

name, script = sys.argv[2:]
if sys.argv[1] == "up":
    control.install(ServicePlan((sys.executable, script), name=name, display_name=name))
    control.start(name)
else:
    control.stop(name)
    print("exit code", control.look(name).exit_code)
    control.uninstall(name)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A PC that has joined a grid whose coordinator is away at the moment."""
    pki = ensure_pki(tmp_path / "pki", ["127.0.0.1"], time.time())
    profile = Profile(
        url="https://127.0.0.1:9", ca_pem=pki.ca_pem, token="t" * 40, machine_id="m-1",
        role="agent", name="desk",
    )  # fmt: skip
    save_profile(profile, tmp_path / "home")
    return tmp_path / "home"


def settings(home: Path, pipe: str) -> dict[str, str]:
    return {"OFFICEGRID_HOME": windows_path(home), "OFFICEGRID_AGENT_SOCKET": pipe}


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def status(rig: Rig, env: dict[str, str]) -> dict[str, Any]:
    """Ask until the agent answers."""
    deadline_s = time.monotonic() + 60
    while True:
        code, output = rig.run("-m", "officegrid", "agent", "status", "--json", **env)
        if code == 0:
            found: dict[str, Any] = json.loads(output[output.index("{") :])
            return found
        assert time.monotonic() < deadline_s, output
        time.sleep(0.2)


@pytest.mark.timeout(180)
def test_an_agent_in_a_terminal_answers_and_is_paused(rig: Rig, home: Path) -> None:
    env = settings(home, "officegrid-test-agent")
    agent = rig.start("-m", "officegrid", "agent", "run", "--log-file",
                      windows_path(home / "agent.log"), **env)  # fmt: skip
    try:
        before = status(rig, env)
        assert "user_pause" not in json.dumps(before)
        paused, output = rig.run("-m", "officegrid", "agent", "pause", "--for", "1h", **env)
        assert paused == 0, output
        assert "stays off this PC" in output
        assert agent.poll() is None
    finally:
        agent.kill()
        agent.communicate(timeout=20)
    said = (home / "agent.log").read_text(encoding="utf-8")
    assert "agent.started" in said
    assert "agent.user_pause" in said
    assert "by=S-1-5-21-" in said  # who asked, from the token of the caller


@pytest.mark.timeout(180)
def test_the_agent_as_a_service_answers_and_stops_in_order(rig: Rig, home: Path) -> None:
    env = settings(home, "officegrid-test-service")
    script, control, name = home / "service.py", home / "control.py", "OfficeGridTestAgent"
    source = windows_path(ROOT / "src")
    script.write_text(
        SERVICE.format(source=source, environment=env, home=windows_path(home)), encoding="utf-8"
    )
    control.write_text(CONTROL, encoding="utf-8")
    code, output = rig.run(windows_path(control), "up", name, windows_path(script))
    assert code == 0, output
    try:
        assert status(rig, env)
        wait_for((home / "helper").exists, "the session of kim has its helper")
    finally:
        code, output = rig.run(windows_path(control), "down", name, "-")
    assert code == 0, output
    assert "exit code 0" in output
    said = (home / "agent.log").read_text(encoding="utf-8")
    assert "agent.stopping shutdown=False" in said
    assert "agent.ended" in said
