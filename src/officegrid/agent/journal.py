"""The story of this desk: what happens is logged, counted for today, and queued for the
coordinator. Called by the loop only; never blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from officegrid.agent.log import get_logger
from officegrid.wire.agent import DeskEventKind

log = get_logger("desk")
_REPEAT_S = 600.0


class Sink(Protocol):
    """Where events go: `reporter.Reporter`."""

    def add(self, kind: DeskEventKind, at_s: float | None = None, **told: object) -> object: ...


@dataclass(slots=True)
class Today:
    """Counters of one local day."""

    day: str = ""
    ran_s: float = 0.0
    starts: int = 0
    interruptions: int = 0
    saves: int = 0
    troubles: int = 0
    cpu_back_ms_worst: float = 0.0
    memory_back_ms_worst: float = 0.0


class Journal:
    """See the module. `today` and `unsent_s` may be handed over from an earlier life."""

    def __init__(
        self,
        sink: Sink,
        *,
        clock: Callable[[], float] = time.monotonic,
        day: Callable[[], str] = lambda: time.strftime("%Y-%m-%d"),
        today: dict[str, Any] | None = None,
        unsent_s: float = 0.0,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._day = day
        self._today = _restored(today)
        self._running_since_s: float | None = None
        self._run_s = max(0.0, unsent_s)
        self._told: dict[str, float] = {}

    def today(self) -> dict[str, Any]:
        """The counters, with the run that is under way."""
        self._turn_page()
        counted = asdict(self._today)
        if self._running_since_s is not None:
            counted["ran_s"] += max(0.0, self._clock() - self._running_since_s)
        counted["ran_s"] = round(counted["ran_s"], 1)
        return counted

    def unsent_s(self) -> float:
        """How long the VM has run without the coordinator having been told."""
        since_s = self._running_since_s
        return self._run_s + (0.0 if since_s is None else max(0.0, self._clock() - since_s))

    def event(self, kind: DeskEventKind, text: str = "", at_s: float | None = None) -> None:
        """Something without numbers: idle, user_back, starting."""
        log.info(kind, text=text)
        self._turn_page()
        self._today.starts += kind == "starting"
        self._sink.add(kind, at_s, text=text)

    def running(self, text: str, at_s: float) -> None:
        """The guest's CPUs run from now on."""
        self.halted(at_s)
        self._running_since_s = at_s
        self._log_and_add("running", text, at_s)

    def halted(self, at_s: float) -> None:
        """The guest's CPUs run no longer, for whatever reason."""
        if self._running_since_s is not None:
            ran_s = max(0.0, at_s - self._running_since_s)
            self._turn_page()
            self._today.ran_s += ran_s
            self._run_s += ran_s
            self._running_since_s = None

    def paused(self, at_s: float, cpu_back_ms: float | None, text: str = "") -> None:
        self.halted(at_s)
        self._turn_page()
        self._today.interruptions += 1
        self._worst(cpu_back_ms, None)
        self._log_and_add("paused", text, at_s, cpu_back_ms=cpu_back_ms)

    def gone(
        self,
        kind: DeskEventKind,
        at_s: float,
        text: str = "",
        cpu_back_ms: float | None = None,
        memory_back_ms: float | None = None,
    ) -> None:
        """The VM's process is gone: `saved` or `stopped`."""
        self.halted(at_s)
        ran_s, self._run_s = self._run_s, 0.0
        self._turn_page()
        self._today.saves += kind == "saved"
        self._worst(cpu_back_ms, memory_back_ms)
        told = {"cpu_back_ms": cpu_back_ms, "memory_back_ms": memory_back_ms}
        self._log_and_add(kind, text, at_s, ran_s=round(ran_s, 3), **told)

    def trouble(self, text: str, *, once: bool = False) -> None:
        """Something went wrong. With `once`, the same sentence is told every ten minutes only."""
        now_s = self._clock()
        if once and now_s - self._told.get(text, float("-inf")) < _REPEAT_S:
            return
        self._told = {t: s for t, s in self._told.items() if now_s - s < _REPEAT_S}
        self._told[text] = now_s
        log.warning("trouble", text=text)
        self._turn_page()
        self._today.troubles += 1
        self._sink.add("trouble", text=text)

    def _log_and_add(self, kind: DeskEventKind, text: str, at_s: float, **numbers: Any) -> None:
        told = {name: round(n, 1) for name, n in numbers.items() if n is not None}
        log.info(kind, text=text, **told)
        self._sink.add(kind, at_s, text=text, **numbers)

    def _worst(self, cpu_back_ms: float | None, memory_back_ms: float | None) -> None:
        today = self._today
        today.cpu_back_ms_worst = max(today.cpu_back_ms_worst, round(cpu_back_ms or 0.0, 1))
        worst_ms = max(today.memory_back_ms_worst, round(memory_back_ms or 0.0, 1))
        today.memory_back_ms_worst = worst_ms

    def _turn_page(self) -> None:
        day = self._day()
        if day != self._today.day:
            self._today = Today(day=day)


def _restored(kept: dict[str, Any] | None) -> Today:
    today = Today()
    for name, value in (kept or {}).items():
        if hasattr(today, name) and type(value) in (type(getattr(today, name)), int):
            setattr(today, name, value)
    return today
