"""The service's plan and life, apart from Windows; Wine runs the rest."""

from __future__ import annotations

import queue
import shlex
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.agent.channel import pipe
from officegrid.agent.windows import api, service
from officegrid.agent.windows.pipe_calls import CLIENT_ACCESS
from officegrid.agent.windows.service import PowerEvent, ServiceLife, SessionEvent
from officegrid.agent.windows.service_plan import RunKeyPlan, ServicePlan, command_line
from officegrid.agent.windows.translate import SessionChange

PYTHON = r"C:\Program Files\OfficeGrid\python.exe"


def test_the_program_is_always_quoted() -> None:
    plan = ServicePlan((PYTHON, "-m", "officegrid", "agent", "run"))
    assert plan.image_path == f'"{PYTHON}" -m officegrid agent run'
    assert command_line([r"C:\x.exe"]) == r'"C:\x.exe"'


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("plain", "plain"), ("", '""'), ("two words", '"two words"'),
        ("C:\\a b\\", '"C:\\a b\\\\"'), ('say "x"', '"say \\"x\\""'),
        ("C:\\plain\\", "C:\\plain\\"), ('\\"', '"\\\\\\""'),
    ],
)  # fmt: skip
def test_arguments_are_quoted_by_the_rules_of_windows(argument: str, quoted: str) -> None:
    assert command_line(["x.exe", argument]) == f'"x.exe" {quoted}'


def parsed(line: str) -> list[str]:
    """CommandLineToArgvW's rules for what follows the program, from Microsoft's description."""
    arguments, current, inside, started, at = [], "", False, False, 0
    while at < len(line):
        count = 0
        while at < len(line) and line[at] == "\\":
            count, at = count + 1, at + 1
        if at < len(line) and line[at] == '"':
            current += "\\" * (count // 2)
            if count % 2:
                current += '"'
            else:
                inside = not inside
            started, at = True, at + 1
            continue
        current += "\\" * count
        started = started or count > 0
        if at == len(line):
            break
        if line[at] in " \t" and not inside:
            if started:
                arguments.append(current)
            current, started = "", False
        else:
            current, started = current + line[at], True
        at += 1
    return [*arguments, current] if started else arguments


@given(st.lists(st.text(alphabet='ab \\"\t', max_size=8), max_size=4))
def test_windows_reads_back_what_was_meant(arguments: list[str]) -> None:
    line = command_line(["x.exe", *arguments])
    assert parsed(line.removeprefix('"x.exe"')) == arguments


@pytest.mark.parametrize(
    ("account", "password"),
    [
        ("LocalSystem", False), (".\\gridagent", True), ("OFFICE\\grid", True),
        ("OFFICE\\grid$", False), ("NT SERVICE\\OfficeGridAgent", False),
        ("NT AUTHORITY\\LocalService", False),
    ],
)  # fmt: skip
def test_who_needs_a_password_is_told_about_the_right_to_log_on(
    account: str, password: bool
) -> None:
    plan = ServicePlan((PYTHON,), account=account)
    assert plan.needs_password is password
    assert any("SeServiceLogonRight" in line for line in plan.lines()) is password
    assert ("password= *" in plan.commands()[0]) is password


def test_the_plan_says_what_it_does() -> None:
    plan = ServicePlan((PYTHON, "-m", "officegrid"), preshutdown_s=45)
    said = "\n".join(plan.lines())
    for part in ("OfficeGridAgent", "LocalSystem", "5 s, 60 s, 300 s", "45 s", PYTHON, "delayed"):
        assert part in said
    create = shlex.split(plan.commands()[0])  # \" inside "…" means the same there
    assert create[create.index("binPath=") + 1] == plan.image_path.replace("\\\\", "\\")
    assert "restart/5000/restart/60000/restart/300000" in plan.commands()[2]
    key = RunKeyPlan((PYTHON, "agent", "session"))
    assert key.value in key.lines()[1]


class Manager:
    """The service manager's side: what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, int]] = []
        self.heard: queue.SimpleQueue[SessionEvent | PowerEvent] = queue.SimpleQueue()
        self.life = ServiceLife(self._tell, self.heard.put)

    def _tell(self, status: service.ServiceStatus) -> None:
        self.told.append((status.state, status.accepted, status.own_exit_code))

    def states(self) -> list[int]:
        return [state for state, _, _ in self.told]


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def live(manager: Manager, run: service.Run) -> threading.Thread:
    thread = threading.Thread(target=manager.life.live, args=(run,))
    thread.start()
    until(lambda: service.STATE_RUNNING in manager.states())
    return thread


@pytest.mark.parametrize(
    ("control", "down"),
    [(service.CONTROL_STOP, False), (service.CONTROL_PRESHUTDOWN, True),
     (service.CONTROL_SHUTDOWN, True)],
)  # fmt: skip
def test_stop_and_shutdown_reach_the_agent(control: int, down: bool) -> None:
    manager, seen = Manager(), []

    def run(stop: threading.Event, shutting_down: threading.Event) -> int:
        assert stop.wait(10)
        seen.append(shutting_down.is_set())
        return 0

    thread = live(manager, run)
    assert manager.told[-1][1] == service.ACCEPTED
    assert service.ACCEPTED & service.ACCEPT_PRESHUTDOWN
    assert manager.life.control(control, 0, 0) == service.NO_ERROR
    thread.join(10)
    assert seen == [down]
    assert manager.states() == [
        service.STATE_START_PENDING, service.STATE_RUNNING, service.STATE_STOP_PENDING,
        service.STATE_STOPPED,
    ]  # fmt: skip
    assert manager.told[-1][1:] == (0, 0)


def test_a_slow_end_shows_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CHECKPOINT_EVERY_S", 0.01)
    manager, release = Manager(), threading.Event()

    def run(stop: threading.Event, shutting_down: threading.Event) -> int:
        stop.wait(10)
        release.wait(10)
        return 0

    thread = live(manager, run)
    manager.life.control(service.CONTROL_STOP, 0, 0)
    until(lambda: manager.states().count(service.STATE_STOP_PENDING) > 5)
    release.set()
    thread.join(10)
    assert manager.states()[-1] == service.STATE_STOPPED


def test_an_exit_code_and_an_exception_are_told_as_failures() -> None:
    manager = Manager()
    assert manager.life.live(lambda stop, shutting_down: 3) == 3
    assert manager.told[-1] == (service.STATE_STOPPED, 0, 3)

    def run(stop: threading.Event, shutting_down: threading.Event) -> int:
        raise RuntimeError("broken")

    manager = Manager()
    with pytest.raises(RuntimeError):
        manager.life.live(run)
    assert manager.told[-1] == (service.STATE_STOPPED, 0, 1)


def test_a_stop_before_the_start_is_over_wins() -> None:
    manager = Manager()
    manager.life.control(service.CONTROL_STOP, 0, 0)
    assert manager.life.live(lambda stop, shutting_down: 0 if stop.is_set() else 1) == 0
    assert service.STATE_RUNNING not in manager.states()
    assert manager.states()[-1] == service.STATE_STOPPED


def test_session_and_power_events_are_passed_on_in_order() -> None:
    manager = Manager()
    thread = live(manager, lambda stop, shutting_down: 0 if stop.wait(10) else 1)
    control = manager.life.control
    assert control(service.CONTROL_SESSIONCHANGE, SessionChange.UNLOCK, 2) == service.NO_ERROR
    assert control(service.CONTROL_SESSIONCHANGE, 77, 2) == service.NO_ERROR
    assert control(service.CONTROL_POWEREVENT, service.POWER_SUSPEND, 0) == service.NO_ERROR
    assert control(service.CONTROL_POWEREVENT, 10, 0) == service.NO_ERROR
    control(service.CONTROL_POWEREVENT, service.POWER_RESUME_AUTOMATIC, 0)
    control(service.CONTROL_SESSIONCHANGE, SessionChange.LOGOFF, 3)
    assert control(200, 0, 0) == service.NOT_IMPLEMENTED
    heard = [manager.heard.get(timeout=10) for _ in range(4)]
    assert heard == [
        SessionEvent(SessionChange.UNLOCK, "2"), PowerEvent(suspend=True),
        PowerEvent(suspend=False), SessionEvent(SessionChange.LOGOFF, "3"),
    ]  # fmt: skip
    assert control(service.CONTROL_INTERROGATE, 0, 0) == service.NO_ERROR
    assert manager.states()[-1] == service.STATE_RUNNING
    control(service.CONTROL_STOP, 0, 0)
    thread.join(10)


def test_the_pipe_is_closed_to_the_network_and_to_other_servers() -> None:
    text = pipe.descriptor("S-1-5-21-1-2-3-1004")
    assert text.startswith("O:S-1-5-21-1-2-3-1004D:P(D;;GA;;;NU)")  # denials come first
    assert text.endswith(f"(A;;0x{CLIENT_ACCESS:x};;;IU)")
    assert not CLIENT_ACCESS & 0x4  # FILE_CREATE_PIPE_INSTANCE
    assert CLIENT_ACCESS & 0x2  # FILE_WRITE_DATA
    assert "WD" not in text  # nobody means everybody


def test_without_windows_a_call_fails_and_an_import_does_not() -> None:
    with pytest.raises(OSError, match="Windows only"):
        api.Function("kernel32", "GetTickCount", api.DWORD)()
