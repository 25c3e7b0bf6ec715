"""Reads all sensors on a thread of its own, so that a sensor that hangs delays nothing else: the
loop sees the last sample grow old, and old means busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from officegrid.agent.log import get_logger
from officegrid.agent.sensors.base import HostReading, HostSensor
from officegrid.core.desk import Sample, Session

log = get_logger("sampler")

FAST_S = 0.1
"""Between samples while a VM may be in memory."""
SLOW_S = 2.0
"""Between samples while waiting."""
HOST_EVERY_S = 1.0
WARM_UP_S = 3.0
"""CPU use is a difference of two readings. The first sample waits so long for the second: without
it a VM found running would be paused because its first reading says nothing."""
WARM_UP_STEP_S = 0.3
_NOT_KNOWN = HostReading(None, None, None)


class Sessions(Protocol):
    """All session sensors of this machine as one: `sensors.combine.Sensors`."""

    trouble: str

    def read(self) -> tuple[Session, ...] | None: ...

    def explain(self) -> list[str]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Wishes:
    """What people want, apart from sitting at the desk."""

    pause_until_s: float | None = None
    drain: bool = False


class Sampler:
    """`latest` is the newest sample; `wake` is called after each."""

    def __init__(
        self,
        sessions: Sessions,
        host: HostSensor,
        wake: Callable[[], None],
        wishes: Callable[[], Wishes] = Wishes,
    ) -> None:
        self._sessions = sessions
        self._host = host
        self._wake = wake
        self._wishes = wishes
        self.period_s = SLOW_S
        self.latest: Sample | None = None
        self.trouble = ""
        """Why sessions are not known, as the sensor says."""
        self._own_pids: tuple[int, ...] = ()
        self._freeze_host = False
        self._host_read = (float("-inf"), _NOT_KNOWN)
        self._hurry = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def set_pace(self, period_s: float) -> None:
        faster = period_s < self.period_s
        self.period_s = period_s
        if faster:
            self._hurry.set()

    def own(self, pids: tuple[int, ...], *, known: bool) -> None:
        """Which processes are ours. While our VM starts they are not `known` yet: then the last
        readings of CPU and memory stand, or its boot would count as somebody else's work."""
        self._own_pids = pids
        self._freeze_host = not known

    def close(self, within_s: float = 2.0) -> None:
        self._stopping = True
        self._hurry.set()
        self._thread.join(within_s)
        if not self._thread.is_alive():
            self._sessions.close()

    def _run(self) -> None:
        self._warm_up()
        while not self._stopping:
            self._hurry.clear()
            began_s = time.monotonic()
            try:
                self.latest = self._sample()
            except Exception as error:  # the sample grows old, which means busy
                log.error("failed", why=f"{type(error).__name__}: {error}")
            self._wake()
            self._hurry.wait(max(0.01, self.period_s - (time.monotonic() - began_s)))

    def _warm_up(self) -> None:
        until_s = time.monotonic() + WARM_UP_S
        while time.monotonic() < until_s and not self._stopping:
            if self._host.read(self._own_pids).foreign_cpu is not None:
                return
            time.sleep(WARM_UP_STEP_S)

    def _sample(self) -> Sample:
        sessions = self._read_sessions()
        host = self._read_host()
        wishes = self._wishes()
        wall_s = time.time()
        local = time.localtime(wall_s)
        return Sample(
            at_s=time.monotonic(),
            wall_s=wall_s,
            weekday=local.tm_wday,
            minute=local.tm_hour * 60 + local.tm_min,
            sessions=sessions,
            foreign_cpu=host.foreign_cpu,
            on_battery=host.on_battery,
            memory_free_mb=host.memory_free_mb,
            pause_until_s=wishes.pause_until_s,
            drain=wishes.drain,
        )

    def _read_sessions(self) -> tuple[Session, ...] | None:
        sessions = self._sessions.read()
        trouble = self._sessions.trouble if sessions is None else ""
        if trouble != self.trouble:
            log.info("sensors", trouble=trouble or "none any more")
            self.trouble = trouble
        return sessions

    def _read_host(self) -> HostReading:
        read_s, kept = self._host_read
        now_s = time.monotonic()
        if now_s - read_s < HOST_EVERY_S:
            return kept
        reading = self._host.read(self._own_pids)
        if self._freeze_host and kept is not _NOT_KNOWN:
            cpu, memory = kept.foreign_cpu, kept.memory_free_mb
            reading = replace(reading, foreign_cpu=cpu, memory_free_mb=memory)
        self._host_read = (now_s, reading)
        return reading
