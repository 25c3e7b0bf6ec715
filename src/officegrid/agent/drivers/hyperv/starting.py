"""Starting, with all the ways a start fails.

Start-VM returns when the VM runs, restore included. What counts is the state afterwards. Killing
PowerShell does not end what Hyper-V has begun, so a start that is given up is undone by hand, but
never while a saved state is being restored: that is waited for, and then the VM has started.
"""

from __future__ import annotations

import threading
import time

from officegrid.agent.drivers.hyperv import importing, scripts
from officegrid.agent.drivers.hyperv.powershell import (
    ScriptError,
    ShellCancelled,
    ShellProblem,
    ShellTimeout,
)
from officegrid.agent.drivers.hyperv.stopping import RESTING, power_off, settle, stuck
from officegrid.agent.drivers.hyperv.troubles import failure, gone, trouble_of, words
from officegrid.agent.drivers.hyperv.vm import Sight, Vm
from officegrid.core.vm import DriverError, Trouble, VmState

WHAT = "The VM could not be started."
_SETTLE_S = 10.0
_CANCEL_GRACE_S = 1.0
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
_NOT_THE_STATES_FAULT = frozenset({
    Trouble.MEMORY, Trouble.DISK_FULL, Trouble.PERMISSION, Trouble.NO_VIRTUALIZATION,
    Trouble.MISSING, Trouble.LOCKED, Trouble.IMAGE,
})  # fmt: skip


def start(vm: Vm, cancel: threading.Event) -> None:
    """From OFF, SAVED or PAUSED until the guest's CPUs run; raises what the interface says."""
    before = vm.look(pids=False)
    if before.state not in (*RESTING, VmState.PAUSED, VmState.RUNNING):
        before = settle(vm, _SETTLE_S, *RESTING, VmState.PAUSED, VmState.RUNNING)
    if before.state is VmState.ABSENT:
        raise gone(vm.settings.name)
    if before.state is VmState.RUNNING:
        return
    if before.state not in (VmState.OFF, VmState.SAVED, VmState.PAUSED):
        raise stuck(WHAT, before)
    if cancel.is_set():
        raise _cancelled()
    if before.state is not VmState.PAUSED:
        vm.require_disk("start")
    _launch(vm, before, cancel)


def _launch(vm: Vm, before: Sight, cancel: threading.Event) -> None:
    fit = importing.fit_script(vm) if before.state is VmState.OFF else ""
    body = scripts.start(vm.id, fit)
    deadline_s = time.monotonic() + vm.options.start_timeout_s
    for delay_s in (*_BACKOFF_S, 0.0):
        problem: ScriptError | ShellProblem | None = None
        try:
            vm.try_to(body, max(1.0, deadline_s - time.monotonic()), cancel)
        except ShellCancelled:
            return _give_up(vm, before, deadline_s)
        except (ScriptError, ShellProblem) as error:
            problem = error
        after = settle(vm, _SETTLE_S, *RESTING, VmState.RUNNING)
        if after.state is VmState.RUNNING:
            if fit:
                importing.fitted(vm)
            return None
        busy = isinstance(problem, ScriptError) and trouble_of(problem) is Trouble.LOCKED
        if not busy or after.state not in (VmState.OFF, VmState.SAVED) or not delay_s:
            raise _failure(vm, before, after, problem)
        if cancel.wait(delay_s):
            raise _cancelled()
    return None


def _failure(
    vm: Vm, before: Sight, after: Sight, problem: ScriptError | ShellProblem | None
) -> DriverError:
    if after.state is VmState.ABSENT:
        return gone(vm.settings.name)
    if isinstance(problem, ShellTimeout) or after.state not in RESTING:
        if problem is None:
            return stuck(WHAT, after)
        return failure(WHAT, problem)
    if (
        before.state is VmState.SAVED
        and isinstance(problem, ScriptError)
        and trouble_of(problem) not in _NOT_THE_STATES_FAULT
    ):
        return DriverError(
            Trouble.SAVED_STATE,
            "The saved VM could not be restored.",
            f"Hyper-V says: {words(problem)}",
            "Discard the saved state; the next start boots the VM cold.",
        )
    if problem is None:
        return DriverError(
            Trouble.FAILED,
            "The VM ended as soon as it had started.",
            f"Hyper-V says {after.word!r}.",
            "See the event log Hyper-V-Worker on this PC.",
        )
    return failure(WHAT, problem)


def _cancelled() -> DriverError:
    return DriverError(
        Trouble.CANCELLED, "The start of the VM was given up.", "It was not wanted any more."
    )


def _give_up(vm: Vm, before: Sight, deadline_s: float) -> None:
    """Returns if the start has succeeded; else raises CANCELLED, with nothing lost."""
    # The script may not have reached Hyper-V, or the VM may not have begun to start: a short
    # time in which it stays at rest tells the two from a start under way.
    quiet_s = time.monotonic() + _CANCEL_GRACE_S
    while time.monotonic() < deadline_s:
        sight = vm.look()
        if sight.state is VmState.RUNNING:
            return
        if sight.state in RESTING and time.monotonic() >= quiet_s:
            raise _cancelled()
        if sight.state is VmState.STARTING and before.state is VmState.OFF:
            power_off(vm)
            quiet_s = time.monotonic()
        time.sleep(0.05)
    raise stuck("The start of the VM could not be given up.", vm.look())
