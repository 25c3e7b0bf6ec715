"""The repair ladder: what to do when no normal verb helps, mildest first, each step logged.

Found on a real 7.1.8: a VM whose process got SIGTERM while it was paused says "stopping" for
ever, refuses every command with 0x80004005, and only ending VBoxSVC gets it out. Ending VBoxSVC
takes down every VM of its registry, so it is done only when no other VM runs there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from officegrid.agent.drivers.virtualbox import importing, parse, processes, stopping
from officegrid.agent.drivers.virtualbox.vm import RESTING, Sight, Vm
from officegrid.agent.log import get_logger
from officegrid.core.vm import DriverError, RepairStep, Trouble, VmState

log = get_logger("virtualbox")

_SETTLE_S = 10.0
RESTORE_AGAIN_S = 24 * 3600.0
"""After a restore, so long a repair imports the whole image."""


def repair(vm: Vm, step: RepairStep) -> None:
    """One rung. Raises DriverError if it did not help; logs what it does and why."""
    rungs: dict[RepairStep, tuple[str, Callable[[Vm], None]]] = {
        RepairStep.RETRY: ("some states pass by themselves", _retry),
        RepairStep.EMERGENCY_STOP: ("the VM's process answers no more", _emergency_stop),
        RepairStep.RESTART_SERVICE: ("VBoxSVC keeps a wrong state of the VM", _restart_service),
        RepairStep.DISCARD: ("the saved state cannot be used", stopping.discard),
        RepairStep.REIMPORT: ("nothing milder has helped", _reimport),
    }
    reason, rung = rungs[step]
    seen = _seen(vm)
    log.warning("repair", step=step, reason=reason, seen=seen)
    try:
        rung(vm)
    except DriverError as error:
        log.warning("repair_did_not_help", step=step, what=error.what, why=error.why)
        raise
    log.info("repair_done", step=step, seen=_seen(vm))


def _seen(vm: Vm) -> str:
    try:
        return repr(vm.look().word or "no such VM")
    except DriverError as error:
        return f"nothing ({error.what})"


def _settled(sight: Sight) -> bool:
    return sight.state in (*RESTING, VmState.RUNNING, VmState.PAUSED)


def _retry(vm: Vm) -> None:
    sight = vm.wait(_settled, min(_SETTLE_S, vm.options.stuck_after_s))
    if not _settled(sight):
        raise stopping.stuck("Waiting did not help.", sight)


def _emergency_stop(vm: Vm) -> None:
    if vm.machine is None or vm.look().state in RESTING:
        return
    # The hypervisor's own way first: it knows a session that has no process.
    with contextlib.suppress(DriverError):
        vm.manage.call(
            "startvm", vm.uuid, "--type", "emergencystop", timeout_s=vm.options.stop_timeout_s
        )
    sight = vm.wait(lambda now: now.state in RESTING, 2.0)
    if sight.state not in RESTING:
        ended = vm.kill()
        log.warning("process_ended", processes=ended)
        sight = vm.wait(lambda now: now.state in RESTING, 5.0 if ended else 0.5)
    if sight.state not in RESTING:
        raise stopping.stuck("Ending the VM's process did not help.", sight)
    vm.wait_for_process_end(_SETTLE_S)


def _restart_service(vm: Vm) -> None:
    uuid = vm.machine.uuid if vm.machine is not None else ""
    others = processes.other_vms(uuid, vm.environment)
    if not others:
        others = _listed_others(vm, uuid)
    if others:
        raise DriverError(
            Trouble.CONFLICT,
            "VBoxSVC was not ended, because another VM runs under it and would die.",
            f"Running: {', '.join(others)}.",
            "Shut that VM down, or run the agent as an account of its own.",
        )
    if uuid:
        vm.kill()
    services = processes.service_processes(vm.environment)
    ended = processes.end_services(services)
    log.warning("vboxsvc_ended", processes=ended, of=services)
    sight = vm.wait(_settled, _SETTLE_S)
    if not _settled(sight):
        raise stopping.stuck("Ending VBoxSVC did not help.", sight)


def _listed_others(vm: Vm, uuid: str) -> list[str]:
    """What VBoxSVC itself says, if it still answers: it also knows VMs with a window."""
    try:
        reply = vm.manage.call("list", "runningvms", timeout_s=vm.options.poll_timeout_s)
    except DriverError:
        return []
    return [
        f"{name} ({other})"
        for other, name in parse.listed_vms(reply.stdout).items()
        if other != uuid
    ]


def _reimport(vm: Vm) -> None:
    """Back to the first snapshot, in seconds; by a whole import where that was done lately and has
    not helped: the fault may lie in the disk below the snapshot or in VirtualBox's own files."""
    restored_s = vm.machine.restored_s if vm.machine is not None else ""
    if restored_s.isdigit() and abs(time.time() - int(restored_s)) < RESTORE_AGAIN_S:
        log.info("reimport_in_full", why="a restored snapshot has not helped")
        importing.delete(vm)
    else:
        importing.reset(vm)
    importing.import_image(vm)
