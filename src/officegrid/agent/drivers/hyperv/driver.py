"""The driver object: every verb of `agent.drivers.base.Driver` for Hyper-V.

Hyper-V's own service does the work and keeps the state of all VMs of the PC, whatever account
asks; so this driver holds little: which VM is ours, two PowerShell processes while the VM is up
(one for verbs, one for looking), and the last reading. Never run on a real Hyper-V so far: see
docs/drivers/hyperv.md.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv import health, importing, scripts, starting, stopping
from officegrid.agent.drivers.hyperv.options import read_options
from officegrid.agent.drivers.hyperv.powershell import (
    ScriptError,
    ShellProblem,
    ShellTimeout,
)
from officegrid.agent.drivers.hyperv.states import name_of
from officegrid.agent.drivers.hyperv.stopping import RESTING, settle
from officegrid.agent.drivers.hyperv.troubles import failure, gone, trouble_of
from officegrid.agent.drivers.hyperv.vm import Sight, Vm, worker_pids
from officegrid.core.vm import (
    Capabilities,
    DriverError,
    Health,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)

_REPAIRS = frozenset({
    RepairStep.RETRY, RepairStep.EMERGENCY_STOP, RepairStep.DISCARD, RepairStep.REIMPORT,
})  # fmt: skip
_FRESH_S = {VmState.ABSENT: 600.0, VmState.OFF: 600.0, VmState.SAVED: 600.0,
            VmState.RUNNING: 8.0, VmState.PAUSED: 8.0}  # fmt: skip
"""How long a reading may be used again while Hyper-V's worker processes and the VM's own files
are the same: starting PowerShell for a look costs more than a second of CPU."""
_REST_S = 30.0
_QUICK_PAUSE_S = 3.0
"""A kept PowerShell that takes longer to pause is given up for a fresh one."""
_RETRY_S = 10.0
WHAT_PAUSE = "The VM could not be paused."


class HyperVDriver:
    """See the module. Made by `make`."""

    name = "hyperv"

    def __init__(self, settings: VmSettings) -> None:
        self._vm = Vm(settings, read_options(settings.options))
        self._verb = threading.RLock()
        self._poll = threading.Lock()
        self._reading: tuple[float, object, Sight] | None = None
        self._changes = 0
        self._at_work = False
        self._config = ""

    def capabilities(self) -> Capabilities:
        return Capabilities(
            saves=True, imports=True, pauses=True, cpu_cap=True, repairs=_REPAIRS,
            image_format="vhdx",
        )  # fmt: skip

    def detect(self) -> Health:
        try:
            return health.examine(self._vm)
        except DriverError as error:
            return health.unusable(error)
        except OSError as error:
            return health.unusable(
                DriverError(Trouble.FAILED, "Hyper-V cannot be examined.", str(error))
            )
        finally:
            self._let_go()

    def close(self) -> None:
        """End the PowerShell processes now; without it they end with this process."""
        self._vm.close()

    # -- state --------------------------------------------------------------------------------

    def state(self) -> VmStatus:
        asked = self._changes, time.monotonic()
        with self._poll:
            try:
                sight = self._read(*asked)
            except DriverError as error:
                return VmStatus(VmState.UNKNOWN, f"{error.what} {error.why}".strip())
            except (OSError, ValueError, KeyError, TypeError) as error:
                return VmStatus(VmState.UNKNOWN, f"Hyper-V's answer cannot be used: {error}")
            finally:
                self._let_go()
        pids = () if sight.state in RESTING else sight.pids
        return VmStatus(sight.state, sight.sentence, pids)

    def _read(self, changes: int, asked_s: float) -> Sight:
        kept = self._reading
        if kept is not None and changes == self._changes:
            read_s, marks, sight = kept
            if read_s >= asked_s:  # somebody else read it while we waited for our turn
                return sight
            fresh = asked_s - read_s < _FRESH_S.get(sight.state, 0.0)
            if fresh and not self._at_work and marks == _marks(sight.config):
                return sight
        started_s, changes = time.monotonic(), self._changes
        # Before the look: what changes while we look must be noticed at the next.
        config = self._config
        marks = _marks(config)
        sight = self._vm.look()
        if changes == self._changes:
            self._reading = (started_s, marks if sight.config == config else None, sight)
            self._config = sight.config
        return sight

    def _let_go(self) -> None:
        """While the VM runs, PowerShell is open for the next pause. While it is down, none is
        kept: it holds more memory than the agent."""
        kept = self._reading
        if kept is None or kept[2].state in RESTING:
            self._vm.rest(_REST_S)
        elif kept[2].state is VmState.RUNNING and self._vm.options.keep_session:
            # The agent was restarted while the VM ran, or PowerShell died.
            with contextlib.suppress(DriverError):
                self._vm.keep_warm()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Vm]:
        with self._verb:
            self._at_work = True
            try:
                yield self._vm
            finally:
                self._changes += 1
                self._at_work = False
                self._reading = None

    # -- verbs --------------------------------------------------------------------------------

    def import_image(self) -> None:
        with self._changing() as vm:
            importing.import_image(vm)

    def start(self, cancel: threading.Event) -> None:
        with self._changing() as vm:
            starting.start(vm, cancel)

    def pause(self) -> None:
        with self._changing() as vm:
            self._pause(vm)

    def _pause(self, vm: Vm) -> None:
        """Call first, ask later: somebody sits at the PC."""
        if vm.machine is None:
            self._existing(vm)
        body = scripts.pause(vm.id)
        deadline_s = time.monotonic() + vm.options.pause_timeout_s
        limit_s = min(_QUICK_PAUSE_S, vm.options.pause_timeout_s)
        while True:
            problem: ScriptError | ShellProblem | None = None
            try:
                if _says(vm.try_to(body, limit_s), "Paused"):
                    return
            except (ScriptError, ShellProblem) as error:
                problem = error
            limit_s = deadline_s - time.monotonic()
            if not isinstance(problem, ShellTimeout):
                sight = self._existing(vm)
                if sight.state in (VmState.PAUSED, VmState.OFF, VmState.SAVED):
                    return
                if not _may_yet_pause(sight, problem):
                    raise failure(WHAT_PAUSE, problem or ShellProblem(sight.sentence))
                if limit_s <= 0.1:
                    raise stopping.stuck(WHAT_PAUSE, sight)
            if limit_s <= 0.1:
                raise failure(WHAT_PAUSE, problem or ShellProblem("Time is over."))
            time.sleep(0.05)

    def resume(self) -> None:
        with self._changing() as vm:
            timeout_s = vm.options.change_timeout_s
            sight = self._existing(vm)
            if sight.state is VmState.RUNNING:
                return
            if sight.state is not VmState.PAUSED:
                raise DriverError(
                    Trouble.FAILED, "The VM cannot go on: it is not paused.",
                    f"Hyper-V says {sight.word!r}.",
                )  # fmt: skip
            what = "The paused VM could not go on."
            if not _says(vm.run(what, scripts.resume(vm.id), timeout_s), "Running"):
                after = settle(vm, _RETRY_S, VmState.RUNNING, *RESTING)
                if after.state is not VmState.RUNNING:
                    raise stopping.stuck(what, after)

    def save(self) -> None:
        with self._changing() as vm:
            self._save(vm)

    def _save(self, vm: Vm) -> None:
        before = self._existing(vm)
        if before.state is VmState.SAVED:
            return
        if before.state not in (VmState.RUNNING, VmState.PAUSED, VmState.SAVING):
            raise DriverError(
                Trouble.FAILED, "There is nothing to save.", f"Hyper-V says {before.word!r}."
            )
        vm.require_disk("save")
        what = "The VM could not be saved."
        problem: ScriptError | ShellProblem | None = None
        deadline_s = time.monotonic() + vm.options.save_timeout_s
        if before.state is not VmState.SAVING:
            try:
                vm.try_to(scripts.save(vm.id), vm.options.save_timeout_s)
            except (ScriptError, ShellProblem) as error:
                problem = error
        left_s = max(1.0, deadline_s - time.monotonic())
        after = settle(vm, left_s, *RESTING, VmState.RUNNING, VmState.PAUSED, VmState.BROKEN)
        if after.state is not VmState.SAVED:
            raise _not_saved(what, after, problem)
        if not vm.wait_for_process_end(before.pids, 10.0):
            raise DriverError(
                Trouble.STUCK, "The VM is saved, but its process has not ended.",
                f"vmwp.exe {before.pids} still holds memory.", "The agent ends it.",
            )  # fmt: skip

    def stop(self) -> None:
        with self._changing() as vm:
            stopping.power_off(vm)
            stopping.discard(vm)

    def discard(self) -> None:
        with self._changing() as vm:
            stopping.discard(vm)

    def delete(self) -> None:
        with self._changing() as vm:
            importing.delete(vm)

    def sweep(self, keep_name: str) -> list[str]:
        """See `drivers.base.Sweeper`."""
        with self._changing() as vm:
            return importing.sweep(vm, keep_name)

    def repair(self, step: RepairStep) -> None:
        with self._changing() as vm:
            if step is RepairStep.RETRY:
                _retry(vm)
            elif step is RepairStep.EMERGENCY_STOP:
                stopping.emergency_stop(vm)
            elif step is RepairStep.DISCARD:
                stopping.power_off(vm)
                stopping.discard(vm)
            elif step is RepairStep.REIMPORT:
                importing.delete(vm)
                importing.import_image(vm)
            else:
                raise DriverError(
                    Trouble.UNSUPPORTED,
                    f"The Hyper-V driver does not know the repair {step.value!r}.",
                    "Its service vmms serves all VMs of the PC, not only ours.",
                )

    def _existing(self, vm: Vm) -> Sight:
        sight = vm.look()
        if sight.state is VmState.ABSENT:
            raise gone(vm.settings.name)
        return sight


def _says(outputs: list[Any], state: str) -> bool:
    return bool(outputs) and name_of(outputs[-1]) == state


def _may_yet_pause(sight: Sight, problem: ScriptError | ShellProblem | None) -> bool:
    """On its way, busy for a moment, or running on although Suspend-VM reported success."""
    if sight.state in (VmState.STARTING, VmState.SAVING) or problem is None:
        return True
    return isinstance(problem, ScriptError) and trouble_of(problem) is Trouble.LOCKED


def _marks(config: str) -> object:
    """What changes whenever somebody starts, stops or deletes the VM behind our back."""
    stamp: tuple[int, int] | None = None
    if config:
        try:
            facts = Path(config).stat()
            stamp = facts.st_mtime_ns, facts.st_size
        except OSError:
            stamp = None
    return worker_pids(), stamp


def _not_saved(what: str, after: Sight, problem: ScriptError | ShellProblem | None) -> DriverError:
    if after.state in (VmState.OFF, VmState.ABSENT):
        return DriverError(
            Trouble.FAILED,
            "The VM ended while it was being saved; its work since the last start is lost.",
            f"Hyper-V says {after.word!r}. {problem or ''}".strip(),
        )
    if problem is None:
        return stopping.stuck(what, after)
    return failure(what, problem)


def _retry(vm: Vm) -> None:
    """Wait a moment: whatever is on its way may have arrived."""
    settled = (*RESTING, VmState.RUNNING, VmState.PAUSED)
    sight = settle(vm, _RETRY_S, *settled)
    if sight.state not in settled:
        raise stopping.stuck("The VM has not left its state by itself.", sight)
