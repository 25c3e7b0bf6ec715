"""Powering off, discarding the saved state, and the emergency stop."""

from __future__ import annotations

import time

from officegrid.agent.drivers.hyperv import scripts
from officegrid.agent.drivers.hyperv.powershell import ScriptError, ShellProblem
from officegrid.agent.drivers.hyperv.troubles import failure, trouble_of
from officegrid.agent.drivers.hyperv.vm import Sight, Vm
from officegrid.core.vm import DriverError, Trouble, VmState

RESTING = frozenset({VmState.ABSENT, VmState.OFF, VmState.SAVED})
_DOWN_BUT_BROKEN = ("OffCritical", "SavedCritical", "FastSavedCritical")
_PROCESS_END_S = 10.0


def settle(vm: Vm, timeout_s: float, *states: VmState) -> Sight:
    """Look until the VM is in one of these states or the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        sight = vm.look()
        if sight.state in states or time.monotonic() >= deadline_s:
            return sight
        time.sleep(0.05)


def power_off(vm: Vm) -> None:
    """From any state to OFF or SAVED, at once; its process is gone then."""
    before = vm.look()
    if before.state in RESTING or before.word in _DOWN_BUT_BROKEN:
        return
    what = "The VM could not be powered off."
    refused: ScriptError | ShellProblem | None = None
    try:
        vm.try_to(scripts.turn_off(vm.id), vm.options.change_timeout_s)
    except (ScriptError, ShellProblem) as error:
        refused = error
    sight = settle(vm, _PROCESS_END_S, *RESTING)
    if sight.state not in RESTING:
        busy = isinstance(refused, ScriptError) and trouble_of(refused) is Trouble.LOCKED
        if refused is None or busy:  # and it has had its time
            raise stuck(what, sight)
        raise failure(what, refused)
    if not vm.wait_for_process_end(before.pids, _PROCESS_END_S):
        raise DriverError(
            Trouble.STUCK,
            "The VM is off, but its process has not ended.",
            f"vmwp.exe {before.pids} still holds memory.",
            "The agent ends it; if it stays, restart the PC.",
        )


def discard(vm: Vm) -> None:
    """Throw the saved state away, if there is one."""
    sight = vm.look(pids=False)
    if sight.state is not VmState.SAVED and "Saved" not in sight.word:
        return
    what = "The saved state could not be thrown away."
    vm.run(what, scripts.discard(vm.id), vm.options.change_timeout_s)
    after = vm.look(pids=False)
    if after.state is VmState.SAVED:
        raise stuck(what, after)


def emergency_stop(vm: Vm) -> None:
    """Power off if Hyper-V still can; else end the worker process."""
    try:
        power_off(vm)
    except DriverError as error:
        first = error
    else:
        return
    pids = vm.look().pids
    for pid in pids:
        vm.run(
            "The VM's worker process could not be ended.",
            scripts.end_worker(pid),
            vm.options.change_timeout_s,
        )
    sight = settle(vm, _PROCESS_END_S, *RESTING)
    if sight.state not in RESTING or not vm.wait_for_process_end(pids, _PROCESS_END_S):
        raise DriverError(
            Trouble.STUCK,
            "The VM could not be stopped by any means.",
            f"{first.why} Hyper-V says {sight.word!r}.",
            "Restart the service vmms, or the PC.",
        )


def stuck(what: str, sight: Sight) -> DriverError:
    return DriverError(
        Trouble.STUCK,
        what,
        f"Hyper-V keeps the VM in the state {sight.word or sight.state!r}.",
        "The agent ends the VM's process; if that does not help, restart the service vmms.",
    )
