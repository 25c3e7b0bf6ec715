"""Tells the coordinator what happens at this desk, in order, and brings back its orders.

On a thread of its own with a bounded queue: the loop only appends. While the coordinator is away
events wait here; when there are too many, older ones of a kind are merged into the next of that
kind, so that the last of each kind and the sum of hours survive.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from officegrid.agent.log import get_logger
from officegrid.core.backoff import delay_s
from officegrid.core.errors import OfficeGridError
from officegrid.wire.agent import AgentOrders, AgentReport, DeskEvent, DeskEventKind, DeskStatus
from officegrid.wire.images import ImageReport

log = get_logger("reporter")

REPORT_PATH = "/v1/machine/report"
MOST_WAITING = 500
MOST_SENT_AT_ONCE = 200
BACKOFF_BASE_S = 2.0
BACKOFF_CAP_S = 60.0
SEND_TIMEOUT_S = 15.0
MOST_TEXT_CHARS = 1024


class Line(Protocol):
    """A way to the coordinator: `transport.http.Connection`, opened with retry_s=0."""

    def call(
        self, method: str, path: str, *, body: AgentReport, reply: type[AgentOrders],
        timeout_s: float, retry: bool,
    ) -> AgentOrders: ...  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `at_s` is monotonic."""

    number: int
    kind: DeskEventKind
    at_s: float
    text: str = ""
    ran_s: float = 0.0
    cpu_back_ms: float | None = None
    memory_back_ms: float | None = None

    def message(self, now_s: float) -> DeskEvent:
        return DeskEvent(
            number=self.number, kind=self.kind, ago_s=max(0.0, now_s - self.at_s),
            text=self.text[:MOST_TEXT_CHARS], ran_s=self.ran_s, cpu_back_ms=self.cpu_back_ms,
            memory_back_ms=self.memory_back_ms,
        )  # fmt: skip


class Waiting:
    """The events not yet acknowledged, oldest first. Thread-safe."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._number = 0
        self._in_flight = 0

    def __len__(self) -> int:
        return len(self._events)

    def add(self, kind: DeskEventKind, at_s: float, **told: object) -> Event:
        with self._lock:
            self._number += 1
            event = Event(self._number, kind, at_s, **told)  # type: ignore[arg-type]
            self._events.append(event)
            if len(self._events) > self._most:
                self._merge_one()
            return event

    def first(self, most: int) -> list[Event]:
        with self._lock:
            batch = self._events[:most]
            self._in_flight = batch[-1].number if batch else self._in_flight
            return batch

    def acknowledge(self, number: int) -> None:
        """All up to this number have arrived."""
        with self._lock:
            self._events = [event for event in self._events if event.number > number]

    def _merge_one(self) -> None:
        """Drop the oldest event that has a successor of its kind; its hours go to that one."""
        for index, event in enumerate(self._events):
            if event.number <= self._in_flight:
                continue  # may have arrived: its hours must not be sent a second time
            for later in range(index + 1, len(self._events)):
                heir = self._events[later]
                if heir.kind == event.kind:
                    self._events[later] = replace(heir, ran_s=heir.ran_s + event.ran_s)
                    del self._events[index]
                    return
        del self._events[0]


class Reporter:
    """`add` events, `hurry` when the status changed; `orders` is called with each answer."""

    def __init__(
        self,
        line: Line,
        run_id: str,
        status: Callable[[], DeskStatus],
        orders: Callable[[AgentOrders], None],
        *,
        version: str = "",
        image: Callable[[], ImageReport | None] = lambda: None,
    ) -> None:
        self._line = line
        self._run_id = run_id
        self._status = status
        self._orders = orders
        self._version = version
        self._image = image
        self.waiting = Waiting()
        self.trouble = ""
        """Why the coordinator cannot be reached; empty while it can."""
        self.reached_s: float | None = None
        self._in_touch_since_s: float | None = None
        self._every_s = 30.0
        self._failures = 0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, kind: DeskEventKind, at_s: float | None = None, **told: object) -> Event:
        """Queue an event; returns at once."""
        event = self.waiting.add(kind, time.monotonic() if at_s is None else at_s, **told)
        self._wake.set()
        return event

    @property
    def in_touch_since_s(self) -> float | None:
        """Since when every report has been answered (monotonic); None: the last one was not, or
        it is too long ago."""
        reached_s, since_s = self.reached_s, self._in_touch_since_s
        if self.trouble or reached_s is None or since_s is None:
            return None
        return since_s if time.monotonic() - reached_s <= self._longest_gap_s() else None

    def _longest_gap_s(self) -> float:
        return 2 * self._every_s + BACKOFF_CAP_S

    def hurry(self) -> None:
        """The status changed: report soon."""
        self._wake.set()

    def close(self, within_s: float) -> None:
        """Send what waits, as far as this time allows, and end."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(within_s)

    def _run(self) -> None:
        rest_until_s = 0.0
        while True:
            # Trouble is not hurried: a coordinator that is away is not to be hammered.
            self._stop.wait(max(0.0, rest_until_s - time.monotonic()))
            stopping = self._stop.is_set()
            self._wake.clear()
            sent = self._send()
            if stopping:
                return
            if not sent:
                rest_until_s = time.monotonic() + self._backoff_s()
                continue
            rest_until_s = 0.0
            if not len(self.waiting) and not self._stop.is_set():
                self._wake.wait(self._every_s)

    def _backoff_s(self) -> float:
        self._failures += 1
        return 0.5 + delay_s(
            self._failures, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_CAP_S, random01=random.random()
        )

    def _send(self) -> bool:
        try:
            now_s = time.monotonic()
            events = self.waiting.first(MOST_SENT_AT_ONCE)
            report = AgentReport(
                run_id=self._run_id, status=self._status(), version=self._version,
                events=[event.message(now_s) for event in events], image=self._image(),
            )  # fmt: skip
            answer = self._line.call(
                "POST", REPORT_PATH, body=report, reply=AgentOrders,
                timeout_s=SEND_TIMEOUT_S, retry=False,
            )  # fmt: skip
        except OfficeGridError as error:
            if self.trouble != error.what:
                log.warning("coordinator_away", what=error.what, why=error.why)
            self.trouble = error.what
            return False
        except Exception as error:  # never let a fault end the reports
            log.error("failed", why=f"{type(error).__name__}: {error}")
            self.trouble = "The agent made a mistake while reporting; see its log."
            return False
        if events:
            self.waiting.acknowledge(events[-1].number)
        if self.trouble:
            log.info("coordinator_back", waiting=len(self.waiting))
        now_s = time.monotonic()
        if self.in_touch_since_s is None:
            self._in_touch_since_s = now_s
        self.trouble, self._failures, self.reached_s = "", 0, now_s
        self._every_s = answer.report_every_s
        self._orders(answer)
        return True
