"""The service manager and the Run key, on Windows: registered, started, stopped, removed."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import officegrid
from officegrid.agent.windows import control, helpers, readings, runkey, service
from officegrid.agent.windows.service_plan import RunKeyPlan, ServicePlan
from officegrid.agent.windows.translate import SessionChange, SessionState
from officegrid.core.errors import ConflictError, NotFoundError, UnavailableError, UsageError

SCRIPT = """
import pathlib, sys
sys.path.insert(0, {source!r})  # services do not get our environment
from officegrid.agent.windows import readings, service

said = pathlib.Path(sys.argv[1])

def run(stop, shutting_down):
    (said / "running").write_text(str(readings.own_session_id()))
    if len(sys.argv) > 2:
        return int(sys.argv[2])
    stop.wait(60)
    (said / "stopped").write_text(str(shutting_down.is_set()))
    return 0

code = service.host(run, name=sys.argv[1].rpartition("\\\\")[2])
(said / "code").write_text(str(code))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its name is that of the service; it has a blank, as C:\\Program Files has."""
    folder = tmp_path / f"Grid Test {os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    source = str(Path(officegrid.__file__).parents[1])
    script = SCRIPT.replace("{source!r}", repr(source))
    (folder / "service.py").write_text(script, encoding="utf-8")
    return folder


@pytest.fixture
def name(folder: Path) -> Iterator[str]:
    yield folder.name
    if control.look(folder.name) is not None:
        control.stop(folder.name)
        control.uninstall(folder.name)


def plan(folder: Path, *arguments: str) -> ServicePlan:
    command = (sys.executable, str(folder / "service.py"), str(folder), *arguments)
    return ServicePlan(command, name=folder.name, display_name=folder.name)


def written(path: Path) -> str:
    deadline_s = time.monotonic() + 20
    while not path.exists() or not path.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline_s, f"{path.name} was never written"
        time.sleep(0.05)
    return path.read_text(encoding="utf-8")


def test_a_service_lives_from_start_to_stop(folder: Path, name: str) -> None:
    assert control.look(name) is None
    missing = control.install(plan(folder))
    assert "its description" not in missing
    registered = control.look(name)
    assert registered is not None
    assert (registered.state, registered.automatic) == ("stopped", True)
    assert registered.account == "LocalSystem"
    assert registered.image_path == plan(folder).image_path
    assert registered.image_path.startswith(f'"{sys.executable}" "')

    control.start(name)
    assert written(folder / "running")
    running = control.look(name)
    assert running is not None
    assert running.state == "running"
    assert running.pid not in (0, os.getpid())
    control.start(name)  # what runs already is no error

    control.stop(name)
    assert written(folder / "stopped") == "False"
    assert written(folder / "code") == "0"
    control.stop(name)
    stopped = control.look(name)
    assert stopped is not None
    assert (stopped.state, stopped.exit_code) == ("stopped", 0)
    control.uninstall(name)
    assert control.look(name) is None


def test_installing_again_brings_it_in_line(folder: Path, name: str) -> None:
    control.install(plan(folder))
    control.install(plan(folder, "7"))
    facts = control.look(name)
    assert facts is not None
    assert facts.image_path.endswith(" 7")


def test_an_agent_that_fails_is_seen_to_fail(folder: Path, name: str) -> None:
    control.install(plan(folder, "7"))
    with contextlib.suppress(UnavailableError):  # when it is gone before we look
        control.start(name)
    assert written(folder / "code") == "7"
    deadline_s = time.monotonic() + 20
    while (facts := control.look(name)) is not None and facts.state != "stopped":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert facts is not None
    assert facts.exit_code == 7


def test_a_program_that_is_no_service_is_reported(folder: Path, name: str) -> None:
    command = (sys.executable, "-c", "raise SystemExit(0)")
    control.install(ServicePlan(command, name=name, display_name=name))
    with pytest.raises(UnavailableError, match="did not say that it runs"):
        control.start(name, timeout_s=5)


def test_a_service_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match="no service"):
        control.start("OfficeGridNotThere")
    with pytest.raises(NotFoundError):
        control.uninstall("OfficeGridNotThere")
    assert control.look("OfficeGridNotThere") is None


def test_the_service_form_needs_the_service_manager() -> None:
    with pytest.raises(UsageError, match="did not start this process"):
        service.host(lambda stop, shutting_down: 0, name="OfficeGridNotThere")


def test_the_run_key_is_written_and_removed() -> None:
    made = RunKeyPlan(
        (r"C:\Program Files\OfficeGrid\pythonw.exe", "-m", "officegrid", "agent", "session"),
        value_name=f"OfficeGridTest-{os.getpid()}",
    )
    assert runkey.read(made.value_name) is None
    runkey.write(made)
    assert runkey.read(made.value_name) == made.value
    assert made.value.startswith('"C:\\Program Files\\OfficeGrid\\pythonw.exe" -m')
    assert runkey.remove(made.value_name) is True
    assert runkey.remove(made.value_name) is False


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[tuple[Sequence[str], Path]]:
    """A program that notes each start and runs until the test is over; where it notes."""
    said, end = tmp_path / "said", tmp_path / "end"
    said.mkdir()
    code = (
        "import pathlib, sys, time, uuid; "
        "said, end = map(pathlib.Path, sys.argv[1:]); (said / uuid.uuid4().hex).touch()\n"
        "while not end.exists(): time.sleep(0.05)"
    )
    yield (sys.executable, "-c", code, str(said), str(end)), said
    end.touch()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_helper_is_started_in_a_session_once(helper: tuple[Sequence[str], Path]) -> None:
    command, said = helper
    kept = helpers.SessionHelpers(command)
    session = readings.own_session_id()
    kept.attend([session])
    until(lambda: bool(list(said.iterdir())))
    for _ in range(5):
        kept.attend([session])
    assert len(list(said.iterdir())) == 1
    (process,) = kept._running.values()
    assert helpers.is_running(process)
    (said.parent / "end").touch()
    until(lambda: not helpers.is_running(process))
    kept.attend([])
    assert not kept._running
    kept.close()


def test_a_logon_gets_its_helper_at_once(helper: tuple[Sequence[str], Path]) -> None:
    command, said = helper
    session = readings.own_session_id()
    listed = [readings.ListedSession(session, SessionState.CONNECTED, "")]  # the login screen
    keeper = helpers.HelperKeeper(command, listed=lambda: list(listed))
    try:
        listed[:] = [readings.ListedSession(session, SessionState.ACTIVE, "kim")]
        keeper.listen(service.SessionEvent(SessionChange.LOGON, str(session)))
        until(lambda: len(list(said.iterdir())) == 1)
    finally:
        keeper.close()


def test_a_display_name_that_is_taken_is_explained(folder: Path, name: str) -> None:
    control.install(plan(folder))
    twin = replace(plan(folder), name=f"{name}-2")
    with pytest.raises(ConflictError, match="shown by the same name"):
        control.install(twin)
