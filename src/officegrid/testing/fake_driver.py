"""A driver without a hypervisor: a state machine on disk, on real or virtual time, with faults.

    world = tmp_path / "world"                       # what a hypervisor would remember
    driver = FakeDriver(settings, plan=plan, clock=VirtualClock(), times=FakeTimes(save_s=4.0))

The VM lives in `<world>/<name>.vm.json`, its saved state in `<name>.saved.json`: a new object with
the same settings finds it as it is, as it would a real one. `power_cut`, `delete_by_hand`,
`corrupt_saved_state` and `progress` are what tests do to it from outside. Nothing runs: `pids` are
what `options["pids"]` says.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from officegrid.agent.drivers.base import VmSettings
from officegrid.core.vm import (
    HOLDS_MEMORY,
    Capabilities,
    DriverError,
    Health,
    HealthLevel,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)
from officegrid.testing.fake_plan import Clock, Fault, FaultKind, Plan, RealClock

ALL_REPAIRS = frozenset(RepairStep)
LADDER = tuple(RepairStep)
_FILES = threading.RLock()
"""Guards the files of all fakes in this process: a reader never sees a half-made change."""


@dataclass(frozen=True, slots=True)
class FakeTimes:
    """How long each verb takes, and the guest needs after a cold boot until it is ready."""

    import_s: float = 0.0
    start_s: float = 0.0
    restore_s: float = 0.0
    pause_s: float = 0.0
    resume_s: float = 0.0
    save_s: float = 0.0
    stop_s: float = 0.0
    ready_s: float = 0.0


@dataclass(slots=True)
class _Record:
    """The VM as the world remembers it."""

    owner: str
    state: str = VmState.OFF
    progress_s: float = 0.0
    """CPU time of the guest since its cold boot, without the present run."""
    running_since_s: float | None = None
    boots: int = 0
    cured_by: str | None = None


class FakeDriver:
    """See the module. All verbs of `agent.drivers.base.Driver`, and their promises."""

    name = "fake"

    def __init__(
        self,
        settings: VmSettings,
        plan: Plan | None = None,
        *,
        clock: Clock | None = None,
        times: FakeTimes | None = None,
        world: Path | None = None,
        capabilities: Capabilities | None = None,
        health: Health | None = None,
    ) -> None:
        self.settings = settings
        self.plan = plan or Plan()
        self.clock: Clock = clock or RealClock()
        self.times = times or FakeTimes()
        self.calls: list[tuple[float, str]] = []
        """Each verb this object was asked for, with the time; `state` and `detect` are left out."""
        self._world = world or settings.folder / "world"
        self._file = self._world / f"{settings.name}.vm.json"
        self._saved_file = self._world / f"{settings.name}.saved.json"
        self._capabilities = capabilities or Capabilities(
            saves=True, imports=True, cpu_cap=True, repairs=ALL_REPAIRS
        )
        self._health = health or Health(HealthLevel.GOOD, "The fake driver works.", version="1")
        self._released = threading.Event()

    # -- the interface ------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def detect(self) -> Health:
        return self._health

    def state(self) -> VmStatus:
        fault = self.plan.next("state")
        if fault is not None and fault.kind is FaultKind.LIE and fault.state is not None:
            return VmStatus(fault.state, "the fake lies")
        record = self._load()
        if record is None:
            return VmStatus(VmState.ABSENT)
        state = VmState(record.state)
        pids = tuple(self.settings.options.get("pids", ())) if state in HOLDS_MEMORY else ()
        ready = self._progress(record) >= self.times.ready_s if state is VmState.RUNNING else None
        return VmStatus(state, "fake", pids, ready)

    def import_image(self) -> None:
        fault = self._begin("import_image")
        record = self._load(any_owner=True)
        if record is not None:
            if record.owner != str(self.settings.folder):
                raise _error(Trouble.NAME_TAKEN, self.settings.name)
            return
        if self.settings.image is None or not self.settings.image.is_file():
            raise _error(Trouble.IMAGE, self.settings.name)
        if not self._spend(fault, self.times.import_s, VmState.ABSENT):
            return
        self._world.mkdir(parents=True, exist_ok=True)
        self._store(_Record(owner=str(self.settings.folder)))

    def start(self, cancel: threading.Event) -> None:
        fault = self._begin("start")
        record = self._need()
        state = VmState(record.state)
        if state in (VmState.RUNNING, VmState.STARTING):
            return
        if state is VmState.PAUSED:
            self._run(record)
            return
        self._from(record, VmState.OFF, VmState.SAVED)
        saved = self._read_saved() if state is VmState.SAVED else None
        seconds = self.times.start_s if saved is None else self.times.restore_s
        self._set(VmState.STARTING)
        # What is left if it goes wrong is what was there before: OFF, or SAVED with its file.
        if not self._spend(fault, seconds, state, cancel, dies_to=state):
            return
        record.progress_s = saved if saved is not None else 0.0
        record.boots += saved is None
        self._run(record)
        self._saved_file.unlink(missing_ok=True)

    def pause(self) -> None:
        fault = self._begin("pause")
        record = self._need()
        if record.state == VmState.PAUSED:
            return
        self._from(record, VmState.RUNNING, VmState.STARTING)
        if self._spend(fault, self.times.pause_s, VmState(record.state)):
            self._halt(record, VmState.PAUSED)

    def resume(self) -> None:
        fault = self._begin("resume")
        record = self._need()
        if record.state == VmState.RUNNING:
            return
        self._from(record, VmState.PAUSED)
        if self._spend(fault, self.times.resume_s, VmState.PAUSED):
            self._run(record)

    def save(self) -> None:
        fault = self._begin("save")
        if not self._capabilities.saves:
            raise _error(Trouble.UNSUPPORTED, self.settings.name)
        record = self._need()
        if record.state == VmState.SAVED:
            return
        before = VmState(record.state)
        self._from(record, VmState.RUNNING, VmState.PAUSED)
        self._halt(record, VmState.SAVING)
        if not self._spend(fault, self.times.save_s, before):
            return
        if fault is None or fault.kind is not FaultKind.LOSE_SAVED:
            _write(self._saved_file, {"progress_s": record.progress_s})
        self._halt(record, VmState.SAVED if self._saved_file.exists() else VmState.OFF)

    def stop(self) -> None:
        fault = self._begin("stop")
        record = self._need()
        if record.state == VmState.OFF:
            return
        before = VmState(record.state)
        if before is not VmState.SAVED:
            self._from(record, *HOLDS_MEMORY)
            self._set(VmState.STOPPING)
        if self._spend(fault, self.times.stop_s, before):
            self._saved_file.unlink(missing_ok=True)
            self._halt(record, VmState.OFF)

    def discard(self) -> None:
        fault = self._begin("discard")
        record = self._need()
        if record.state == VmState.SAVED and self._spend(fault, 0.0, VmState.SAVED):
            self._saved_file.unlink(missing_ok=True)
            self._halt(record, VmState.OFF)

    def delete(self) -> None:
        fault = self._begin("delete")
        record = self._load()
        if record is not None and self._spend(fault, 0.0, VmState(record.state)):
            self.delete_by_hand()

    def repair(self, step: RepairStep) -> None:
        self.calls.append((self.clock.now(), f"repair:{step}"))
        if step not in self._capabilities.repairs:
            raise _error(Trouble.UNSUPPORTED, self.settings.name)
        record = self._load()
        if step is RepairStep.REIMPORT:
            if record is not None:
                self.delete_by_hand()
            self.import_image()
            return
        record = record or self._need()
        if record.cured_by is not None and LADDER.index(step) < LADDER.index(
            RepairStep(record.cured_by)
        ):
            raise _error(Trouble.STUCK, self.settings.name)
        record.cured_by = None
        if step is RepairStep.DISCARD:
            self._saved_file.unlink(missing_ok=True)
        if step is not RepairStep.RETRY:
            self._halt(record, VmState.SAVED if self._saved_file.exists() else VmState.OFF)

    # -- what happens to it from outside ------------------------------------------------------

    def power_cut(self) -> None:
        """The VM's process is killed: OFF, or SAVED if it had not used its saved state up."""
        record = self._need()
        if record.state in HOLDS_MEMORY:
            self._halt(record, VmState.SAVED if self._saved_file.exists() else VmState.OFF)

    def delete_by_hand(self) -> None:
        """Somebody deletes the VM in the hypervisor's own window."""
        with _FILES:
            self._file.unlink(missing_ok=True)
            self._saved_file.unlink(missing_ok=True)

    def corrupt_saved_state(self) -> None:
        self._saved_file.write_bytes(b"\x00 not a saved state")

    def release(self) -> None:
        """Let verbs that hang by plan go on to their TIMEOUT now."""
        self._released.set()

    def progress(self) -> int:
        """Milliseconds of CPU time that the guest has had since its cold boot."""
        record = self._load()
        return 0 if record is None else int(self._progress(record) * 1000)

    @property
    def boots(self) -> int:
        """Cold boots so far."""
        record = self._load()
        return 0 if record is None else record.boots

    # -- parts --------------------------------------------------------------------------------

    def _begin(self, verb: str) -> Fault | None:
        self.calls.append((self.clock.now(), verb))
        fault = self.plan.next(verb)
        if fault is not None and fault.kind is FaultKind.RAISE:
            record = self._load()
            if record is not None and fault.state is not None:
                record.cured_by = fault.cured_by
                self._halt(record, fault.state)
            raise _error(fault.trouble, self.settings.name)
        return fault

    def _spend(
        self,
        fault: Fault | None,
        seconds: float,
        before: VmState,
        cancel: threading.Event | None = None,
        *,
        dies_to: VmState = VmState.OFF,
    ) -> bool:
        """Let the verb's time pass with its fault. False: it is to have no effect."""
        kind = fault.kind if fault else None
        seconds += fault.seconds if fault and kind is FaultKind.SLOW else 0.0
        if fault and kind is FaultKind.HANG:
            self._hang(fault.seconds, before, cancel)
        if kind is FaultKind.DIE:
            self.clock.wait(seconds / 2)
            self._set(dies_to)
            raise _error(Trouble.FAILED, self.settings.name, "Its process ended unexpectedly.")
        present = self._load()
        if (cancel is not None and cancel.is_set()) or self._pass(seconds, cancel):
            self._cancelled(before)
        if present is not None and self._need().state != present.state:
            raise _error(Trouble.FAILED, self.settings.name, "Its process ended unexpectedly.")
        if kind is FaultKind.NO_EFFECT:
            self._set(before)
        return kind is not FaultKind.NO_EFFECT

    def _pass(self, seconds: float, cancel: threading.Event | None) -> bool:
        return seconds > 0 and self.clock.wait(seconds, cancel)

    def _hang(self, seconds: float, before: VmState, cancel: threading.Event | None) -> NoReturn:
        until = self.clock.now() + seconds
        while self.clock.now() < until and not self._released.is_set():
            if self.clock.wait(min(0.05, seconds), cancel):
                self._cancelled(before)
        self._set(before)
        raise _error(Trouble.TIMEOUT, self.settings.name)

    def _cancelled(self, before: VmState) -> NoReturn:
        self._set(before)
        raise _error(Trouble.CANCELLED, self.settings.name)

    def _need(self) -> _Record:
        record = self._load()
        if record is None:
            raise _error(Trouble.GONE, self.settings.name)
        return record

    def _from(self, record: _Record, *states: VmState) -> None:
        if record.state in states:
            return
        trouble = Trouble.STUCK if record.state == VmState.BROKEN else Trouble.FAILED
        raise _error(trouble, self.settings.name, f"It is {record.state}.")

    def _progress(self, record: _Record) -> float:
        since = record.running_since_s
        return record.progress_s + (0.0 if since is None else max(0.0, self.clock.now() - since))

    def _run(self, record: _Record) -> None:
        record.state, record.running_since_s = VmState.RUNNING, self.clock.now()
        self._store(record)

    def _halt(self, record: _Record, state: VmState) -> None:
        record.progress_s = self._progress(record)
        record.state, record.running_since_s = state, None
        if state is VmState.RUNNING:
            record.running_since_s = self.clock.now()
        self._store(record)

    def _set(self, state: VmState) -> None:
        record = self._load()
        if record is not None:
            self._halt(record, state)

    def _read_saved(self) -> float:
        try:
            return float(json.loads(self._saved_file.read_bytes())["progress_s"])
        except (OSError, ValueError, KeyError, TypeError):
            raise _error(Trouble.SAVED_STATE, self.settings.name) from None

    def _load(self, *, any_owner: bool = False) -> _Record | None:
        with _FILES:
            try:
                fields: dict[str, Any] = json.loads(self._file.read_bytes())
            except FileNotFoundError:
                return None
        record = _Record(**fields)
        return record if any_owner or record.owner == str(self.settings.folder) else None

    def _store(self, record: _Record) -> None:
        fields = {name: getattr(record, name) for name in _Record.__slots__}
        _write(self._file, fields)


def _write(path: Path, fields: dict[str, Any]) -> None:
    with _FILES:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(fields), encoding="utf-8")
        with suppress(FileNotFoundError):  # the world itself was deleted
            os.replace(new, path)


def _error(trouble: Trouble, name: str, why: str = "") -> DriverError:
    return DriverError(
        trouble,
        f"The fake VM {name} had trouble: {trouble}.",
        why or "The plan of the test says so.",
    )
