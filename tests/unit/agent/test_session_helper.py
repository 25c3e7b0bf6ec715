"""The session helper's loop: when it looks, when it reports, how it waits for the agent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from officegrid.agent import session_helper
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.session_helper import SessionHelper, news
from officegrid.core.errors import UnavailableError


class Desk:
    """A sensor, a clock and an agent."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.idle_s: float | None = 10.0
        self.locked: bool | None = None
        self.fails = ""
        self.away = False
        self.fast = False
        self.got: list[dict[str, Any]] = []
        self.tries = 0
        self.helper = SessionHelper(self.read, self, clock=lambda: self.now_s)

    def read(self) -> dict[str, Any]:
        if self.fails:
            raise SensorError(self.fails)
        return {
            "idle_s": self.idle_s, "locked": self.locked, "remote": False, "presenting": False
        }  # fmt: skip

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert message["do"] == "session"
        self.tries += 1
        if self.away:
            raise UnavailableError("No agent answers on this PC.")
        self.got.append(message["session"])
        return {"ok": True, "fast": self.fast}

    def close(self) -> None:
        pass

    def look(self, after_s: float, idle_s: float | None) -> int:
        """How many reports a look makes."""
        before = len(self.got)
        self.now_s += after_s
        self.idle_s = idle_s
        self.helper.look()
        return len(self.got) - before


def test_it_reports_every_second_and_not_more_often() -> None:
    desk = Desk()
    assert desk.look(0, 10) == 1
    assert [desk.look(0.25, 10 + 0.25 * i) for i in range(1, 9)] == [0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("before", "now", "urgent"),
    [
        ({"idle_s": 300.0}, {"idle_s": 0.1}, True),
        ({"idle_s": 300.0}, {"idle_s": 300.3}, False),
        ({"idle_s": 0.9}, {"idle_s": 0.1}, False),  # was busy, is busy
        ({"idle_s": None}, {"idle_s": 3.0}, True),
        ({"idle_s": 3.0}, {"idle_s": None}, True),
        ({"idle_s": None}, {"idle_s": None}, False),
        ({"idle_s": 9.0, "locked": False}, {"idle_s": 9.2, "locked": True}, True),
        ({"idle_s": 9.0, "presenting": False}, {"idle_s": 9.2, "presenting": True}, True),
        ({"idle_s": 9.0, "remote": False}, {"idle_s": 9.2, "remote": True}, True),
        (None, {"idle_s": 9.0}, True),
    ],
)
def test_what_cannot_wait(before: dict[str, Any] | None, now: dict[str, Any], urgent: bool) -> None:
    assert news(before, now) is urgent


def test_input_is_reported_at_once() -> None:
    desk = Desk()
    desk.look(0, 400)
    assert desk.look(0.25, 0.05) == 1
    assert desk.got[-1]["idle_s"] == 0.05


def test_a_sensor_that_cannot_tell_says_so() -> None:
    desk = Desk()
    desk.look(0, 400)
    desk.fails = "the display is gone"
    assert desk.look(0.25, 400) == 1
    assert desk.got[-1] == {"idle_s": None, "presenting": None, "why": "the display is gone"}


def test_the_lock_notification_fills_in_for_the_sensor_and_never_overrules_it() -> None:
    desk = Desk()
    desk.helper.locked = True
    desk.look(0, 10)
    assert desk.got[-1]["locked"] is True
    desk.locked = False
    desk.look(1, 10)
    assert desk.got[-1]["locked"] is False


def test_a_missing_agent_is_asked_ever_more_rarely_and_found_again() -> None:
    desk = Desk()
    desk.away = True
    for _ in range(80):
        desk.look(0.25, 10)  # 20 s
    assert 4 <= desk.tries <= 8
    desk.away = False
    looks = 0
    while not desk.got:
        desk.look(0.25, 10)
        looks += 1
        assert looks <= 20  # 5 s
    assert desk.look(1, 11) == 1


def started(desk: Desk) -> threading.Thread:
    desk.helper = SessionHelper(desk.read, desk, clock=time.monotonic)
    thread = threading.Thread(target=desk.helper.run)
    thread.start()
    return thread


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_woken_it_looks_at_once_and_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_helper, "LOOK_S", 3600.0)
    desk = Desk()
    thread = started(desk)
    until(lambda: len(desk.got) == 1)
    desk.helper.wake.set()
    until(lambda: len(desk.got) == 2)
    desk.helper.end.set()
    desk.helper.wake.set()
    thread.join(5)
    assert not thread.is_alive()


def test_while_a_vm_runs_it_looks_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_helper, "LOOK_S", 3600.0)
    monkeypatch.setattr(session_helper, "FAST_LOOK_S", 0.01)
    desk = Desk()
    desk.fast = True
    desk.idle_s = 100.0
    thread = started(desk)
    until(lambda: len(desk.got) == 1)
    desk.idle_s = 0.0
    until(lambda: desk.got[-1]["idle_s"] == 0.0)
    desk.helper.end.set()
    desk.helper.wake.set()
    thread.join(5)
