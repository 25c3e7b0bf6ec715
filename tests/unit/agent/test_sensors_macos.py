"""macOS: the parsers on text in the documented formats, and the rule. No Mac was asked."""

from __future__ import annotations

import os
import plistlib
import pty
import sys
import time
from typing import Any

import pytest

from officegrid.agent.channel.hub import Hub, Peer
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.macos import (
    ASSERTIONS_COMMAND,
    IDLE_COMMAND,
    LOOK_EVERY_S,
    USERS_COMMAND,
    ConsoleUser,
    MacDesktop,
    MacSessions,
    parse_idle_s,
    parse_presenting,
    parse_users,
)
from officegrid.core.desk import Session

IOREG = """\
+-o IOHIDSystem  <class IOHIDSystem, id 0x1000004d2, registered, matched, active, busy 0 (1 ms)>
    {
      "IOClass" = "IOHIDSystem"
      "HIDIdleTimeDelta" = 77
      "HIDIdleTime" = 4500000000
      "HIDParameters" = {"HIDPointerAcceleration"=45056,"HIDClickTime"=500000000}
    }
"""
PMSET = """\
2026-03-02 10:11:12 +0100
Assertion status system-wide:
   BackgroundTask                 1
   ApplePushServiceTask           0
   UserIsActive                   1
   PreventUserIdleDisplaySleep    {display}
   PreventSystemSleep             0
   PreventUserIdleSystemSleep     1
   NetworkClientActive            0
Listed by owning process:
   pid 345(player): [0x0001] 00:03:04 PreventUserIdleSystemSleep named: "Playing 1"
"""


def _user(uid: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "kCGSSessionUserIDKey": uid, "kCGSSessionUserNameKey": name,
        "kCGSSessionOnConsoleKey": True, "kCGSessionLoginDoneKey": True, **more,
    }  # fmt: skip


def _plist(*users: dict[str, Any]) -> bytes:
    root = {"IORegistryEntryName": "Root", "IOConsoleLocked": False}
    return plistlib.dumps({**root, "IOConsoleUsers": list(users)} if users else root)


def test_the_idle_time_is_in_nanoseconds_and_the_smallest_counts() -> None:
    assert parse_idle_s(IOREG) == 4.5
    assert parse_idle_s(IOREG + IOREG.replace("4500000000", "21858429")) == 0.021858429
    with pytest.raises(SensorError):
        parse_idle_s(IOREG.replace('"HIDIdleTime" =', '"Other" ='))


def test_console_users() -> None:
    locked = _user(502, "bert", CGSSessionScreenIsLocked=True, kCGSSessionOnConsoleKey=False)
    login = {"kCGSSessionOnConsoleKey": True, "kCGSSessionUserIDKey": 0}
    assert parse_users(_plist(_user(501, "anna"), locked, login)) == [
        ConsoleUser(uid=501, name="anna", on_console=True, locked=False),
        ConsoleUser(uid=502, name="bert", on_console=False, locked=True),
    ]
    assert parse_users(_plist()) == []
    for nonsense in (b"", b"<plist>", plistlib.dumps({}), plistlib.dumps([])):
        with pytest.raises(SensorError):
            parse_users(nonsense)


def test_display_assertions() -> None:
    assert parse_presenting(PMSET.format(display=0)) is False
    assert parse_presenting(PMSET.format(display=1)) is True
    with pytest.raises(SensorError):
        parse_presenting("")


class Mac:
    """The three commands."""

    def __init__(self) -> None:
        self.idle, self.display, self.users = IOREG, 0, [_user(501, "anna")]
        self.calls = 0
        self.now_s = 100.0
        self.hub = Hub(
            clock=lambda: self.now_s, status=dict, pause=lambda *_: None, unpause=lambda *_: None
        )
        self.logins: list[tuple[str, str]] = []
        self.sensor = MacSessions(
            self.hub, self._run, lambda: self.logins, clock=lambda: self.now_s
        )

    def _run(self, command: tuple[str, ...]) -> bytes:
        self.calls += 1
        return {
            IDLE_COMMAND: self.idle.encode(),
            USERS_COMMAND: _plist(*self.users),
            ASSERTIONS_COMMAND: PMSET.format(display=self.display).encode(),
        }[command]

    def read(self) -> list[Session]:
        self.now_s += LOOK_EVERY_S
        return self.sensor.read()

    def report(self, uid: int, idle_s: float) -> None:
        peer = Peer(user=str(uid), session="", admin=False, pid=1)
        self.hub.handle(peer, {"do": "session", "session": {"idle_s": idle_s, "presenting": False}})


def test_the_smaller_of_the_devices_and_the_helper_counts() -> None:
    mac = Mac()
    (anna,) = mac.read()
    assert (anna.id, anna.user, anna.idle_s, anna.locked) == ("user:501", "anna", 4.5, None)
    mac.report(501, 0.5)
    assert mac.read()[0].idle_s == 0.5
    mac.report(501, 900.0)
    assert mac.read()[0].idle_s == 4.5
    mac.display = 1
    assert mac.read()[0].presenting is True
    mac.report(777, 3.0)  # nobody at the console, yet somebody with a desktop
    assert {session.id for session in mac.read()} == {"user:501", "user:777"}


def test_background_and_locked_users_and_nobody() -> None:
    mac = Mac()
    mac.users = [
        _user(501, "anna", CGSSessionScreenIsLocked=True),
        _user(502, "bert", kCGSSessionOnConsoleKey=False),
    ]
    anna, bert = mac.read()
    assert (anna.locked, anna.idle_s) == (True, 4.5)
    assert (bert.locked, bert.idle_s) == (True, None)
    mac.users = []
    assert mac.read() == []


def test_logins_over_the_network_are_remote_sessions() -> None:
    master, slave = pty.openpty()
    try:
        mac = Mac()
        mac.users = []
        mac.logins = [("anna", os.ttyname(slave).removeprefix("/dev/")), ("bert", "ttys999")]
        anna, bert = mac.read()
        assert (anna.user, anna.remote, anna.idle_s) == ("anna", True, 0.0)
        assert (bert.user, bert.remote, bert.idle_s) == ("bert", True, None)
    finally:
        os.close(master)
        os.close(slave)


def test_commands_run_once_a_second_and_their_failure_is_no_idle_time() -> None:
    mac = Mac()
    mac.read()
    calls = mac.calls
    mac.sensor.read()
    assert mac.calls == calls
    mac.idle = "nothing"
    with pytest.raises(SensorError, match="HIDIdleTime"):
        mac.read()
    with pytest.raises(SensorError):
        mac.sensor.read()
    mac.idle = IOREG
    assert mac.read()
    calls = mac.calls
    mac.now_s += 60
    assert "no input for 4 s" in mac.sensor.explain()[0]
    assert mac.calls == calls  # who looks at the status asks the system nothing


def test_who_is_at_the_console_may_end_a_pause() -> None:
    mac = Mac()
    mac.read()
    anna, bert = (Peer(user, "", admin=False) for user in ("501", "502"))
    assert mac.hub.handle(anna, {"do": "unpause"})["ok"] is True
    assert mac.hub.handle(bert, {"do": "unpause"})["ok"] is False
    mac.idle = "nothing"
    with pytest.raises(SensorError):
        mac.read()
    assert mac.hub.handle(anna, {"do": "unpause"})["ok"] is False


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_elsewhere_a_sentence() -> None:
    with pytest.raises(SensorError, match="ApplicationServices"):
        MacDesktop()
    hub = Hub(clock=time.monotonic, status=dict, pause=lambda *_: None, unpause=lambda *_: None)
    mac = MacSessions(hub)
    with pytest.raises(SensorError, match="ioreg"):
        mac.read()
    assert "ioreg" in mac.explain()[0]
