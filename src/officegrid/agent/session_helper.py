"""The session helper: reports the input of one logon session to the agent.

It runs as the person who is logged on, reads the sensor of its own session, and sends a reading
at least once a second and at once when something changed. While a VM runs (the agent says so in
its answers) it looks ten times a second. A missing agent is waited for in silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event
from typing import Any, Protocol

from officegrid.agent.log import get_logger
from officegrid.agent.sensors.base import SensorError
from officegrid.core.errors import OfficeGridError

LOOK_S = 1.0
FAST_LOOK_S = 0.1
"""While a VM is up: the desk user waits for this look."""
REPORT_EVERY_S = 1.0
ANSWER_TIMEOUT_S = 2.0
FRESH_INPUT_S = 1.5
"""An idle time that fell below this, from above it, is news that cannot wait."""

log = get_logger("session")


class Agent(Protocol):
    """A connection of `channel.unix_client` or `channel.pipe`."""

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]: ...

    def close(self) -> None: ...


class SessionHelper:
    """Set `wake` to have a look taken now, `end` and `wake` to make `run` return."""

    def __init__(
        self,
        read: Callable[[], dict[str, Any]],
        agent: Agent,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read` gives a reading as the hub takes it: idle_s, locked, remote, presenting, why.
        It may raise SensorError."""
        self._read, self._agent, self._clock = read, agent, clock
        self._reported: dict[str, Any] | None = None
        self._reported_s = float("-inf")
        self._retry_s = float("-inf")
        self._failures = 0
        self._fast = False
        self.wake = Event()
        self.end = Event()
        self.locked: bool | None = None
        """What the session's lock notifications said last; None: nothing. Used where the sensor
        cannot tell."""

    def run(self) -> None:
        """Look and report until `end`."""
        while not self.end.is_set():
            self.look()
            self.wake.wait(FAST_LOOK_S if self._fast else LOOK_S)
            urgent = self.wake.is_set()
            self.wake.clear()
            if urgent:
                self._reported = None

    def look(self) -> None:
        """Take one reading, and send it if it is due."""
        reading = self._reading()
        now = self._clock()
        due = now - self._reported_s >= REPORT_EVERY_S - 0.05 or news(self._reported, reading)
        if due and now >= self._retry_s:
            self._send(reading)

    def _reading(self) -> dict[str, Any]:
        try:
            reading = self._read()
        except SensorError as error:
            return {"idle_s": None, "presenting": None, "why": str(error)}
        if reading.get("locked") is None:
            reading = {**reading, "locked": self.locked}
        return reading

    def _send(self, reading: dict[str, Any]) -> None:
        try:
            answer = self._agent.request(
                {"do": "session", "session": reading}, timeout_s=ANSWER_TIMEOUT_S
            )
        except OfficeGridError as error:
            if self._failures == 0:
                log.info("waiting", why=error.what)
            self._failures += 1
            self._fast = False
            # An agent that restarts is back in seconds; one that is gone costs us next to nothing.
            self._retry_s = self._clock() + min(self._failures, 5) - 0.05
            return
        if not answer.get("ok") and self._failures == 0:
            log.warning("refused", answer=answer.get("error"))
        self._failures = 0 if answer.get("ok") else self._failures + 1
        self._reported, self._reported_s = reading, self._clock()
        self._fast = answer.get("fast") is True


def news(before: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """Should the agent hear of this reading at once?"""
    if before is None:
        return True
    if any(before.get(key) != now.get(key) for key in ("locked", "remote", "presenting")):
        return True
    was_s, is_s = before.get("idle_s"), now.get("idle_s")
    if was_s is None or is_s is None:
        return bool(was_s != is_s)
    return bool(is_s < was_s and is_s < FRESH_INPUT_S <= was_s)
