"""The units a worker holds, and which of them are still its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from officegrid.wire.work import LeaseProgress, Unit
from officegrid.worker.runner import Runner
from officegrid.worker.unit_input import UnitInput
from officegrid.worker.unit_output import UnitOutput


@dataclass(eq=False)
class Holding:
    """One unit in this worker's hands, from claim to commit."""

    unit: Unit
    records_done: int = 0  # in finished chunks
    lost: bool = False  # the lease is gone: stop, and throw the work away
    runner: Runner | None = None  # while a slot works on it
    input: UnitInput | None = None
    output: UnitOutput | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def attach(self, runner: Runner, unit_input: UnitInput, output: UnitOutput) -> None:
        with self._lock:
            self.runner, self.input, self.output = runner, unit_input, output
            if self.lost:
                self._stop()

    def detach(self) -> None:
        with self._lock:
            self.runner = None

    def lose(self) -> None:
        """The lease ended: kill what runs for it. Any thread."""
        with self._lock:
            self.lost = True
            self._stop()

    def _stop(self) -> None:
        if self.input is not None:
            self.input.close()
        if self.output is not None:
            self.output.close()
        if self.runner is not None:
            self.runner.stop()

    def progress(self) -> LeaseProgress:
        with self._lock:
            running = self.runner.records_done if self.runner is not None else 0
            done = min(self.records_done + running, self.unit.end - self.unit.start)
        return LeaseProgress(lease_id=self.unit.lease_id, records_done=done)


class Holdings:
    """All units held, by lease. Thread-safe; `changed` is notified when there are fewer."""

    def __init__(self) -> None:
        self._held: dict[str, Holding] = {}
        self.changed = threading.Condition()

    def add(self, unit: Unit) -> Holding:
        holding = Holding(unit)
        with self.changed:
            self._held[unit.lease_id] = holding
        return holding

    def drop(self, holding: Holding) -> None:
        with self.changed:
            self._held.pop(holding.unit.lease_id, None)
            self.changed.notify_all()

    def get(self, lease_id: str) -> Holding | None:
        with self.changed:
            return self._held.get(lease_id)

    def all(self) -> list[Holding]:
        with self.changed:
            return list(self._held.values())

    def ids(self) -> list[str]:
        with self.changed:
            return list(self._held)

    def __len__(self) -> int:
        with self.changed:
            return len(self._held)
