"""The sensor interfaces: who is at this PC, and how busy is it.

Sensors look; they decide nothing (`core.idle` does) and remember only what a reading needs.
A sensor that cannot tell raises SensorError: the sample then says None, which means busy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from officegrid.core.desk import Session


class SensorError(Exception):
    """A sensor cannot tell. The text is for the log and for `officegrid agent status`."""


@dataclass(frozen=True, slots=True)
class HostReading:
    """None: not known."""

    foreign_cpu: float | None
    on_battery: bool | None
    memory_free_mb: int | None


class SessionSensor(Protocol):
    """Tells about sessions; called up to ten times a second, so a reading must cost little."""

    name: str

    def read(self) -> list[Session]:
        """Every session it knows. Raises SensorError when it cannot tell."""

    def close(self) -> None: ...


class HostSensor(Protocol):
    """Tells about the machine as a whole."""

    def read(self, own_pids: Iterable[int]) -> HostReading:
        """`own_pids` are the processes of our VM: their CPU is not foreign, their memory counts
        as free. Never raises."""
