"""The way down: powering off, discarding a saved state, and the error for a VM that is stuck."""

from __future__ import annotations

from officegrid.agent.drivers.virtualbox.manage import failure
from officegrid.agent.drivers.virtualbox.vm import RESTING, Sight, Vm
from officegrid.agent.log import get_logger
from officegrid.core.vm import DriverError, Trouble

log = get_logger("virtualbox")

_SETTLE_S = 10.0


def stuck(what: str, sight: Sight, words: str = "") -> DriverError:
    return DriverError(
        Trouble.STUCK,
        what,
        f"VirtualBox keeps it in the state {sight.word!r}. {words}".strip(),
        "The agent's repairs end the VM's process, then VBoxSVC.",
    )


def power_off(vm: Vm) -> None:
    """Nothing is kept. A poweroff that hangs ends in killing the VM's process. Raises STUCK."""
    sight = vm.look()
    if sight.state in RESTING:
        return
    try:
        reply = vm.manage.call(
            "controlvm", vm.uuid, "poweroff", timeout_s=vm.options.stop_timeout_s
        )
        words = reply.words
    except DriverError as error:
        if error.trouble is not Trouble.TIMEOUT:
            raise
        words = error.what
    sight = vm.wait(lambda now: now.state in RESTING, 0.0 if words else _SETTLE_S)
    if sight.state not in RESTING:
        log.warning("power_off_did_not_work", words=words, then="the VM's process is ended")
        settle_s = _SETTLE_S if vm.kill() else 1.0
        sight = vm.wait(lambda now: now.state in RESTING, settle_s)
    if sight.state not in RESTING:
        raise stuck("The VM could not be powered off.", sight, words)
    if not vm.wait_for_process_end(_SETTLE_S):
        vm.kill()


def discard(vm: Vm) -> None:
    """Drop the saved state. `discardstate` exits 0 even when it failed: VMState decides."""
    sight = vm.look()
    if not sight.has_saved_state:
        return
    reply = vm.manage.call_patiently(
        "discardstate", vm.uuid, timeout_s=vm.options.change_timeout_s,
        done=lambda: not vm.look().has_saved_state,
    )  # fmt: skip
    sight = vm.look()
    if sight.has_saved_state:
        what = "The saved state of the VM could not be discarded."
        if reply.ok:
            raise stuck(what, sight, "discardstate reported success.")
        raise failure(what, reply)
    vm.remember_also(saved_by="")
