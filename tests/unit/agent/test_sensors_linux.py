"""Who sits at a Linux PC: the rule as a table, then the whole sensor on real parts."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from desktops import call_mock, message_bus, mock_service, wait_until, x_server
from officegrid.agent.channel.hub import Hub, Peer
from officegrid.agent.sensors import linux
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import Bus
from officegrid.agent.sensors.combine import Sensors
from officegrid.agent.sensors.desktop import Desktop
from officegrid.agent.sensors.evdev import Evdev
from officegrid.agent.sensors.linux import LinuxSessions, Sources
from officegrid.agent.sensors.linux_rule import Evidence, judge
from officegrid.agent.sensors.logind import PATH, SERVICE, Logind, Logon
from officegrid.agent.sensors.tty import Terminals
from officegrid.core.desk import Session

DESK = Logon(
    id="3", uid=1000, user="anna", seat="seat0", kind="wayland", group="user", remote=False,
    locked=False, active=True, state="active", tty="tty2",
)  # fmt: skip
SSH = replace(DESK, id="9", seat="", kind="tty", remote=True, tty="pts/4")
CONSOLE = replace(DESK, id="5", kind="tty", tty="tty3")
XRDP = replace(DESK, id="11", seat="", kind="x11", remote=True, tty="")


def _report(session_id: str = "3", **more: Any) -> Session:
    values = {"id": session_id, "age_s": 0.5, "idle_s": 60.0, "presenting": False, "user": "1000"}
    return Session(**{**values, **more})


def _judge(
    *logons: Logon,
    reports: tuple[Session, ...] = (),
    devices: float | None = None,
    terminals: dict[str, float] | None = None,
) -> tuple[list[Session], list[str], str]:
    def idle(logon: Logon) -> float | None:
        return (terminals or {}).get(logon.tty)

    findings, ended = judge(Evidence(tuple(logons), reports, devices, idle))
    text = "\n".join(finding.sentence for finding in findings)
    return [finding.session for finding in findings], ended, text


def _one(*logons: Logon, **evidence: Any) -> Session:
    sessions, _, _ = _judge(*logons, **evidence)
    assert len(sessions) == 1
    return sessions[0]


@pytest.mark.parametrize(
    "logon",
    [
        replace(DESK, group="greeter", user="gdm"),
        replace(DESK, group="lock-screen"),
        replace(DESK, group="background", seat="", kind="unspecified", tty=""),
        replace(DESK, group="manager", seat=""),
        replace(DESK, state="closing"),
        replace(DESK, seat="", kind="unspecified", tty=""),  # a service's login
    ],
    ids=lambda logon: f"{logon.group} {logon.state} {logon.seat}",
)
def test_login_screens_cron_jobs_and_ending_sessions_are_nobody(logon: Logon) -> None:
    assert _judge(logon) == ([], [], "")


def test_nobody_logged_on_is_an_empty_room() -> None:
    assert _judge() == ([], [], "")


def test_a_desktop_without_any_source_is_unknown_and_says_what_to_do() -> None:
    sessions, _, text = _judge(DESK)
    assert sessions == [Session(id="3", age_s=0.0, idle_s=None, presenting=None, user="anna")]
    assert "officegrid agent session" in text


@pytest.mark.parametrize("group", ["user", "user-early", "user-incomplete"])
def test_the_helper_tells_by_session_or_by_user(group: str) -> None:
    logon = replace(DESK, group=group)
    for session_id in ("3", "user:1000"):
        found = _one(logon, reports=(_report(session_id, age_s=2.0, presenting=True),))
        assert (found.id, found.user) == ("3", "anna")
        assert (found.idle_s, found.age_s, found.presenting) == (60.0, 2.0, True)


def test_a_silent_helper_grows_old_and_stays() -> None:
    found = _one(DESK, reports=(_report(age_s=500.0),))
    assert (found.idle_s, found.age_s) == (60.0, 500.0)
    # Devices that are heard tell the idle time, but not whether somebody watches.
    found = _one(DESK, reports=(_report(age_s=500.0),), devices=40.0)
    assert (found.idle_s, found.age_s, found.presenting) == (40.0, 0.0, None)


def test_input_devices_count_where_they_are_shorter() -> None:
    assert _one(DESK, reports=(_report(),), devices=0.2).idle_s == 0.2
    assert _one(DESK, reports=(_report(),), devices=600.0).idle_s == 60.0
    assert _one(DESK, reports=(_report(idle_s=None),), devices=600.0).idle_s == 600.0
    assert _one(DESK, reports=(_report(idle_s=None),)).idle_s is None
    assert _one(DESK, devices=7.0).presenting is None
    # Whoever sits elsewhere does not use the keyboard here.
    assert _one(XRDP, reports=(_report("11"),), devices=31.0).idle_s == 60.0


def test_a_lock_is_believed_and_its_absence_proves_nothing() -> None:
    locked = replace(DESK, locked=True)
    assert _one(locked).locked is True
    assert _one(locked, reports=(_report(locked=False),)).locked is True
    assert _one(DESK, reports=(_report(locked=True),)).locked is True
    assert _one(DESK, reports=(_report(),)).locked is None


def test_a_lock_that_a_silent_helper_once_told_is_no_lock() -> None:
    stale = _report(age_s=500.0, locked=True)
    assert _one(DESK, reports=(stale,)).locked is None
    assert _one(DESK, reports=(stale,), devices=0.1).locked is None
    assert _one(replace(DESK, locked=True), reports=(stale,), devices=0.1).locked is True
    assert _one(DESK, reports=(_report(age_s=14.0, locked=True),)).locked is True


def test_a_silent_helper_in_the_background_tells_no_idle_time() -> None:
    behind = replace(DESK, active=False)
    assert _one(behind, reports=(_report(idle_s=0.5, age_s=500.0),)).idle_s is None
    assert _one(behind, reports=(_report(idle_s=0.5),)).idle_s == 0.5


def test_fast_user_switching_only_the_one_in_front_counts() -> None:
    behind = replace(DESK, id="2", uid=1001, user="bert", active=False)
    reports = (_report(idle_s=4.0), _report("2", idle_s=900.0, user="1001"))
    sessions, ended, _ = _judge(DESK, behind, reports=reports, devices=4.0)
    anna, bert = sessions
    assert (anna.idle_s, anna.locked) == (4.0, None)
    assert (bert.idle_s, bert.locked) == (900.0, True)
    assert ended == []
    assert _one(behind).locked is True


def test_ssh_is_a_remote_user_of_the_machine() -> None:
    found = _one(SSH, terminals={"pts/4": 33.0}, devices=31.0)
    assert (found.remote, found.idle_s, found.presenting) == (True, 33.0, False)
    assert _one(replace(SSH, kind="unspecified", tty="")).idle_s is None


def test_a_text_console_by_its_terminal_and_the_keyboard() -> None:
    assert _one(CONSOLE, terminals={"tty3": 33.0}).idle_s == 33.0
    assert _one(CONSOLE, terminals={"tty3": 33.0}, devices=2.0).idle_s == 2.0
    assert _one(CONSOLE).idle_s is None


def test_two_desktops_of_one_user_and_one_report_that_could_be_either() -> None:
    other = replace(XRDP, id="12")
    sessions, ended, _ = _judge(DESK, other, reports=(_report("user:1000", idle_s=2.0),))
    assert {s.id: s.idle_s for s in sessions} == {"3": None, "12": None, "user:1000": 2.0}
    assert ended == []
    # Nor does it end by falling silent: its session may be either, and both go on.
    silent = _report("user:1000", age_s=100.0)
    sessions, ended, _ = _judge(DESK, other, reports=(silent,))
    assert ended == []
    assert silent in sessions
    # With one of them reported by itself, the other report can only mean the other one.
    reports = (_report("user:1000", idle_s=2.0), _report("3"))
    sessions, _, _ = _judge(DESK, other, reports=reports)
    assert {s.id: s.idle_s for s in sessions} == {"3": 60.0, "12": 2.0}


def test_reports_end_with_their_session_never_by_silence() -> None:
    closing = replace(DESK, state="closing")
    assert _judge(closing, reports=(_report(),))[1] == ["3"]
    assert _judge(reports=(_report(age_s=100.0),))[1] == ["3"]
    assert _judge(reports=(_report("user:1000", age_s=100.0),))[1] == ["user:1000"]
    sessions, ended, _ = _judge(reports=(_report("user:1000"),))
    assert [s.id for s in sessions] == ["user:1000"]  # a desktop that logind knows nothing of
    assert ended == []


def test_somebody_at_the_login_screen() -> None:
    greeter = replace(DESK, id="1", group="greeter")
    found = _one(greeter, devices=3.0)
    assert (found.idle_s, found.locked) == (3.0, None)
    assert _judge(greeter, devices=31.0)[0] == []
    away = replace(DESK, active=False)
    assert [s.id for s in _judge(away, greeter, devices=3.0)[0]] == ["3", "login screen"]


class Rig:
    """The whole sensor with sources of its own."""

    def __init__(self, folder: Path, bus: Bus, desktop: Desktop | None = None) -> None:
        self.now_s = 1000.0
        self.hub = Hub(
            clock=lambda: self.now_s, status=dict, pause=lambda *_: None, unpause=lambda *_: None
        )
        for name in ("input", "dev/pts", "x", "run", "systemd"):
            (folder / name).mkdir(parents=True)
        self.folder = folder
        self.sources = Sources(
            logind=Logind(bus, clock=lambda: self.now_s),
            devices=Evdev(folder / "input", folder / "sys", clock=lambda: self.now_s),
            terminals=Terminals(folder / "dev"),
            desktop=desktop, x_sockets=folder / "x", runtime_folders=folder / "run",
            systemd=folder / "systemd",
        )  # fmt: skip
        self.sensor = LinuxSessions(self.hub, self.sources, clock=lambda: self.now_s)
        self.sensors = Sensors(self.sensor)

    def report(self, uid: int, session: str = "", pid: int = 0, **reading: Any) -> dict[str, Any]:
        values = {"idle_s": 60.0, "presenting": False, "locked": None, **reading}
        peer = Peer(user=str(uid), session=session, admin=False, pid=pid or os.getpid())
        return self.hub.handle(peer, {"do": "session", "session": values})


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Rig]:
    """A PC without a message bus, so without logind."""
    rig = Rig(tmp_path / "rig", Bus(f"unix:path={tmp_path}/none"))
    yield rig
    rig.sensors.close()


def test_without_logind_nobody_and_then_a_report(alone: Rig) -> None:
    assert alone.sensors.read() == ()
    alone.report(os.geteuid())
    (found,) = alone.sensors.read() or ()
    assert (found.id, found.idle_s) == (f"user:{os.geteuid()}", 60.0)


def test_without_logind_a_silent_helper_stays_while_its_user_has_processes(alone: Rig) -> None:
    alone.report(os.geteuid())
    alone.report(4_000_000_000)
    alone.now_s += 3600
    (found,) = alone.sensors.read() or ()
    assert found.user == str(os.geteuid())
    assert found.age_s == 3600
    assert [session.user for session in alone.hub.sessions()] == [str(os.geteuid())]


def test_a_logind_that_is_there_but_mute_is_no_empty_room(alone: Rig) -> None:
    (alone.folder / "systemd" / "seats").mkdir()
    assert alone.sensors.read() is None
    assert "no message bus" in alone.sensors.trouble
    assert any("sessions: not known" in line for line in alone.sensors.explain())


def test_without_logind_a_terminal_is_a_session(alone: Rig) -> None:
    master, slave = pty.openpty()
    try:
        terminal = Path(os.ttyname(slave))
        (alone.folder / "dev" / "pts").rmdir()
        (alone.folder / "dev" / "pts").symlink_to("/dev/pts")
        long_ago = time.time() - 300
        os.utime(terminal, (long_ago, long_ago))
        found = {session.id: session for session in alone.sensors.read() or ()}
        name = f"pts/{terminal.name}"
        assert found[name].idle_s == pytest.approx(292, abs=5)
        assert found[name].remote
        alone.report(os.geteuid())  # then it is a window of that user's desktop
        assert name not in {session.id for session in alone.sensors.read() or ()}
    finally:
        os.close(master)
        os.close(slave)


def test_without_logind_a_display_that_nobody_reports_is_unknown(alone: Rig) -> None:
    with x_server() as x:
        number = x.display[1:]
        (alone.folder / "x" / f"X{number}").symlink_to(f"/tmp/.X11-unix/X{number}")
        (alone.folder / "x" / "X9999").touch()  # left behind
        (found,) = alone.sensors.read() or ()
        assert (found.idle_s, found.presenting) == (None, None)
        assert any("no helper reports" in line for line in alone.sensors.explain())
        alone.report(os.geteuid())
        (found,) = alone.sensors.read() or ()
        assert found.idle_s == 60.0
    alone.hub.forget(found.id)
    alone.now_s += linux.DISPLAYS_EVERY_S
    assert alone.sensors.read() == ()


def test_an_agent_inside_a_desktop_reads_it_itself(tmp_path: Path) -> None:
    with x_server() as x:
        rig = Rig(
            tmp_path / "rig", Bus(f"unix:path={tmp_path}/none"), Desktop({"DISPLAY": x.display})
        )
        wait_until(lambda: ((rig.sensors.read() or ())[0].idle_s or 0) > 0.3)
        x.do("key", "a")
        (found,) = rig.sensors.read() or ()
        assert found.idle_s is not None
        assert found.idle_s < 0.3
        assert found.presenting is False
        assert any("own desktop (X11)" in line for line in rig.sensors.explain())
        x.kill()
        (found,) = rig.sensors.read() or ()
        assert found.idle_s is None
        assert any("X server" in line for line in rig.sensors.explain())
        rig.sensors.close()


def test_with_logind_on_a_bus(tmp_path: Path) -> None:
    with (
        message_bus(tmp_path) as address,
        mock_service(address, "--template", "logind", system=True),
    ):
        control = Bus(address)
        call_mock(control, SERVICE, PATH, "AddSession", "ssusb", "3", "seat0", 1000, "anna", True)
        rig = Rig(tmp_path / "rig", Bus(address))
        (found,) = rig.sensors.read() or ()
        assert (found.id, found.idle_s, found.user) == ("3", None, "anna")
        assert any("session 3 of anna: no helper" in line for line in rig.sensors.explain())
        # Logind's list says who may end a pause, whatever else calls itself a session.
        rig.report(1001)
        unpause = {"do": "unpause"}
        assert rig.hub.handle(Peer("1000", "", admin=False), unpause)["ok"] is True
        assert rig.hub.handle(Peer("1001", "", admin=False), unpause)["ok"] is False
        rig.hub.forget("user:1001")
        rig.report(1000, idle_s=7.0, why="something is odd")
        (found,) = rig.sensors.read() or ()
        assert (found.id, found.idle_s) == ("3", 7.0)
        assert "helper of user:1000: something is odd" in rig.sensors.explain()
        began_s = time.process_time()
        for _ in range(200):
            assert rig.sensors.read() == (found,)
        # Nothing changed, so logind is not asked again: that would take more than twice as long.
        assert (time.process_time() - began_s) / 200 < 0.0002
        control.close()
        rig.sensors.close()
    # And without an answer nobody can tell, though the last list is still known.
    rig.now_s += 60
    (tmp_path / "rig" / "systemd" / "system").mkdir()
    assert rig.sensors.read() is None


def test_a_fault_in_a_sensor_is_no_empty_room() -> None:
    class Faulty:
        name = "faulty"

        def read(self) -> list[Session]:
            raise ZeroDivisionError("oops")

        def close(self) -> None: ...

    sensors = Sensors(Faulty())
    assert sensors.read() is None
    assert sensors.trouble == "faulty: ZeroDivisionError: oops"
    assert sensors.explain() == ["faulty: faulty: ZeroDivisionError: oops"]


def test_explaining_neither_asks_nor_waits() -> None:
    """A status that is asked for while a sensor hangs is answered, and delays no reading."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow:
        name = "slow"
        calls = 0

        def read(self) -> list[Session]:
            self.calls += 1
            if self.calls > 1:
                reading.set()
                assert go_on.wait(20)
            return [Session("1", 0.0, 5.0, presenting=False)]

        def close(self) -> None: ...

    source = Slow()
    sensors = Sensors(source)
    assert sensors.explain() == ["slow: not read yet"]
    sensors.read()
    thread = threading.Thread(target=sensors.read)
    thread.start()
    try:
        assert reading.wait(20)
        lines: list[str] = []
        asker = threading.Thread(target=lambda: lines.extend(sensors.explain()))
        asker.start()
        asker.join(10)
        assert lines == ["slow: session 1: idle 5 s, 0 s ago"]
        assert source.calls == 2
    finally:
        go_on.set()
        thread.join(20)


def test_the_explanation_of_a_linux_pc_leaves_its_sources_alone(alone: Rig) -> None:
    alone.sensors.read()
    told = alone.sensors.explain()
    alone.sources.logind.read = alone.sources.devices.idle_s = None  # type: ignore[assignment, method-assign]
    assert alone.sensors.explain() == told
    assert any(line.startswith("input devices:") for line in told)


def test_desktops_need_an_environment() -> None:
    with pytest.raises(SensorError, match="not in a desktop"):
        Desktop({})


def test_a_wayland_desktop_is_never_judged_by_its_xwayland() -> None:
    with x_server() as x:
        inside = Desktop({"DISPLAY": x.display})
        assert inside.read().idle_s is not None
        env = {"DISPLAY": x.display, "XDG_SESSION_TYPE": "wayland", "WAYLAND_DISPLAY": "/none"}
        wayland = Desktop(env)
        seen = wayland.read()
        assert (seen.idle_s, seen.presenting) == (None, None)
        assert "Wayland" in seen.why
        inside.close()
        wayland.close()


def test_two_helpers_of_one_user_are_both_heard(alone: Rig) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        alone.report(1000, idle_s=900.0)
        alone.report(1000, pid=other.pid, idle_s=3.0)
        alone.report(1000, idle_s=901.0)
        assert [s.idle_s for s in alone.hub.sessions()] == [3.0]
        alone.report(1000, pid=other.pid, idle_s=None)
        assert [s.idle_s for s in alone.hub.sessions()] == [None]
    finally:
        other.kill()
        other.wait()
    alone.report(1000, idle_s=902.0)  # the other was its predecessor, or has ended
    assert [s.idle_s for s in alone.hub.sessions()] == [902.0]
