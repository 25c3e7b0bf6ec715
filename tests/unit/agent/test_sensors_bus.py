"""GNOME, KDE and logind on a real message bus. Logind is the real one, and where a test needs what
it does not do here, python-dbusmock's; GNOME and KDE are python-dbusmock's."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from desktops import MOCK, call_mock, message_bus, mock_service, wait_until
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import RETRY_S, AbsentError, Bus, session_bus_address
from officegrid.agent.sensors.logind import PATH, REFRESH_S, SERVICE, Logind, Logon, logon_of
from officegrid.agent.sensors.mutter import SessionBusDesktop
from parts import need, without

IDLE = "org.gnome.Mutter.IdleMonitor"
IDLE_PATH = "/org/gnome/Mutter/IdleMonitor/Core"
MANAGER = "org.gnome.SessionManager"
KDE = "org.kde.Solid.PowerManagement.PolicyAgent"
KDE_PATH = "/org/kde/Solid/PowerManagement/PolicyAgent"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with message_bus(tmp_path) as found:
        yield found


@pytest.fixture
def bus(address: str, clock: Clock) -> Iterator[Bus]:
    found = Bus(address, clock=clock)
    yield found
    found.close()


def _method(bus: Bus, service: str, path: str, name: str, took: str, gave: str, code: str) -> None:
    call_mock(bus, service, path, "AddMethod", "sssss", service, name, took, gave, code)


def test_gnome_says_how_long_and_whether_something_inhibits(address: str, bus: Bus) -> None:
    desktop = SessionBusDesktop(bus)
    with pytest.raises(AbsentError):
        desktop.idle_s()
    with pytest.raises(AbsentError):
        desktop.presenting()
    with (
        mock_service(address, IDLE, IDLE_PATH, IDLE),
        mock_service(address, MANAGER, "/org/gnome/SessionManager", MANAGER),
    ):
        _method(bus, IDLE, IDLE_PATH, "GetIdletime", "", "t", "ret = 12345")
        assert desktop.idle_s() == 12.345
        inhibited = "ret = args[0] == 8 and os.path.exists(PATH)"
        code = f"import os; {inhibited.replace('PATH', repr(address[10:] + '.inhibit'))}"
        _method(bus, MANAGER, "/org/gnome/SessionManager", "IsInhibited", "u", "b", code)
        assert desktop.presenting() is False
        Path(address[10:] + ".inhibit").touch()
        assert desktop.presenting() is True
        _method(bus, IDLE, IDLE_PATH, "GetIdletime", "", "s", "ret = 'soon'")
        with pytest.raises(SensorError, match="is no time"):
            desktop.idle_s()


def test_kde_is_asked_where_there_is_no_gnome(address: str, bus: Bus) -> None:
    with mock_service(address, KDE, KDE_PATH, KDE):
        _method(bus, KDE, KDE_PATH, "HasInhibition", "u", "b", "ret = args[0] == 4")
        desktop = SessionBusDesktop(bus)
        assert desktop.presenting() is True
        with pytest.raises(AbsentError):
            desktop.idle_s()


def test_a_service_that_hangs_costs_a_second(
    address: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mock_service(address, IDLE, IDLE_PATH, IDLE):
        _method(bus, IDLE, IDLE_PATH, "GetIdletime", "", "t", "import time; time.sleep(5); ret = 1")
        monkeypatch.setattr("officegrid.agent.sensors.bus.ANSWER_S", 0.3)
        with pytest.raises(SensorError, match="does not answer"):
            SessionBusDesktop(bus).idle_s()


def test_no_bus_a_dead_bus_and_a_new_one(tmp_path: Path, clock: Clock) -> None:
    bus = Bus(f"unix:path={tmp_path}/bus", clock=clock)
    with pytest.raises(AbsentError, match="no message bus"):
        bus.signalled()
    for _ in range(2):
        with message_bus(tmp_path):
            with pytest.raises(AbsentError):
                bus.signalled()  # not tried again so soon
            clock.now_s += RETRY_S
            assert bus.signalled() is False
        with pytest.raises(SensorError, match="gone"):
            bus.signalled()
        (tmp_path / "bus").unlink(missing_ok=True)
        clock.now_s += RETRY_S
        with pytest.raises(AbsentError, match="no message bus"):
            bus.signalled()
    bus.close()


def test_the_session_bus_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/x")
    assert session_bus_address() == "unix:path=/x"


def _session(bus: Bus, session_id: str, uid: int, user: str) -> str:
    call_mock(bus, SERVICE, PATH, "AddSession", "ssusb", session_id, "seat0", uid, user, True)
    return f"{PATH}/session/{session_id}"


def _set(bus: Bus, path: str, **values: tuple[str, object]) -> None:
    call_mock(bus, SERVICE, path, "UpdateProperties", "sa{sv}", f"{SERVICE}.Session", values)


def test_logind_sessions_come_change_and_go(address: str, bus: Bus, clock: Clock) -> None:
    """The clock stands still: every change is seen through logind's signals."""
    logind = Logind(Bus(address, clock=clock), clock=clock)
    with pytest.raises(AbsentError):
        logind.read()
    clock.now_s += RETRY_S
    with mock_service(address, "--template", "logind", system=True):
        path = _session(bus, "3", 1000, "anna")
        clock.now_s += REFRESH_S
        (anna,) = logind.read()
        assert (anna.id, anna.uid, anna.user, anna.seat) == ("3", 1000, "anna", "seat0")
        assert (anna.remote, anna.locked, anna.active) == (False, False, True)
        _set(bus, path, Type=("s", "wayland"), LockedHint=("b", True), Active=("b", False))
        wait_until(lambda: logind.read()[0].locked)
        assert logind.read()[0].kind == "wayland"
        assert not logind.read()[0].active
        # python-dbusmock does not announce new sessions as logind does, so announce it for it.
        _session(bus, "c5", 1001, "berta")
        call_mock(bus, SERVICE, PATH, "EmitSignal", "sssav", f"{SERVICE}.Manager", "SessionNew",
                  "so", [("s", "c5"), ("o", f"{PATH}/session/c5")])  # fmt: skip
        wait_until(lambda: [logon.id for logon in logind.read()] == ["3", "c5"])
        bus.call(SERVICE, PATH, MOCK, "RemoveObject", "s", (path,))
        call_mock(bus, SERVICE, PATH, "EmitSignal", "sssav", f"{SERVICE}.Manager", "SessionRemoved",
                  "so", [("s", "3"), ("o", path)])  # fmt: skip
        wait_until(lambda: [logon.id for logon in logind.read()] == ["c5"])
    clock.now_s += REFRESH_S
    with pytest.raises(SensorError):
        logind.read()
    logind.close()


KEPT_SESSION = """
UID=0
USER=root
ACTIVE=1
STATE=active
REMOTE={remote}
LEADER={leader}
TYPE={kind}
CLASS=user
SCOPE=session-{id}.scope
TTY={tty}
REALTIME=1
MONOTONIC=1
"""


@contextlib.contextmanager
def _real_logind(address: str, **sessions: str) -> Iterator[None]:
    """Systemd's own, in a /run of its own so that it touches nothing of this machine's. It takes
    up the sessions that it finds described there, as after a restart of itself."""
    program = Path("/lib/systemd/systemd-logind")
    if not program.exists() or os.geteuid() != 0:
        without("systemd-logind cannot be started here")
    need("unshare", "mount")
    script = (
        "mount -t tmpfs none /run && cd /run && mkdir -p systemd/sessions systemd/users"
        f" && printf 'NAME=root\\nSTATE=active\\nSESSIONS={' '.join(sessions)}\\n'"
        " > systemd/users/0"
    )
    for name, text in sessions.items():
        script += f" && cat > systemd/sessions/{name} <<'END'\n{text}\nEND\ntrue"
    env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address}
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"{script} && exec {program}"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as real:  # fmt: skip
        try:
            yield
        finally:
            real.kill()


def _when_it_answers(logind: Logind) -> list[Logon]:
    found: list[list[Logon]] = []

    def answers() -> bool:
        with contextlib.suppress(SensorError):
            found.append(logind.read())
        return bool(found)

    wait_until(answers, 30)
    return found[0]


def test_the_real_logind_when_nobody_is_logged_on(tmp_path: Path) -> None:
    with message_bus(tmp_path) as address, _real_logind(address):
        logind = Logind(Bus(address))
        assert _when_it_answers(logind) == []
        logind.close()


def test_the_real_logind_with_sessions(tmp_path: Path, clock: Clock) -> None:
    with subprocess.Popen(["sleep", "20"]) as leader:
        ssh = KEPT_SESSION.format(id="c7", remote=1, leader=leader.pid, kind="tty", tty="pts/0")
        desk = KEPT_SESSION.format(id="c8", remote=0, leader=leader.pid, kind="wayland", tty="")
        with message_bus(tmp_path) as address, _real_logind(address, c7=ssh, c8=desk):
            logind = Logind(Bus(address), clock=clock)
            found = {logon.id: logon for logon in _when_it_answers(logind)}
            assert set(found) == {"c7", "c8"}
            assert (found["c7"].remote, found["c7"].kind, found["c7"].tty) == (True, "tty", "pts/0")
            assert not found["c7"].graphical
            assert (found["c8"].remote, found["c8"].graphical, found["c8"].locked) == (
                False, True, False,
            )  # fmt: skip
            assert all(logon.user == "root" and logon.person for logon in found.values())
            # The clock stands still: changes are seen through signals.
            other = Bus(address)
            for locked in (True, False):
                other.call(SERVICE, f"{PATH}/session/c8", f"{SERVICE}.Session", "SetLockedHint",
                           "b", (locked,))  # fmt: skip
                expected = {"c7": False, "c8": locked}
                wait_until(lambda want=expected: {n.id: n.locked for n in logind.read()} == want)
            other.close()
            logind.close()
        leader.kill()


def test_properties_that_are_missing_have_safe_values() -> None:
    logon = logon_of("9", {})
    assert logon.person
    assert not logon.locked
    assert logon.active
