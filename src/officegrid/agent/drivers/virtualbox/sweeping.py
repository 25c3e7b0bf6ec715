"""VMs of ours in VirtualBox that are not the agent's VM any more, after a rename for example.

A VM is ours if it carries the agent's mark for this very VM (`vm.OWNER_KEY`); one whose mark names
no VM, if it lies in the agent's own folder. A copy made by somebody else names the original.
Formats: VBoxManage manual, `list vms` and `unregistervm --delete`.
"""

from __future__ import annotations

from officegrid.agent.drivers.virtualbox import parse
from officegrid.agent.drivers.virtualbox.manage import failure
from officegrid.agent.drivers.virtualbox.processes import end_vm_processes, vm_processes
from officegrid.agent.drivers.virtualbox.vm import RESTING, Vm
from officegrid.core.vm import VmState

_STOP_S = 5.0


def sweep(vm: Vm, keep_name: str) -> list[str]:
    """Remove all of ours but one; a sentence for each. Raises DriverError."""
    kept = vm.machine.uuid if vm.machine is not None else ""
    reply = vm.manage.call_patiently("list", "vms", timeout_s=vm.options.poll_timeout_s)
    if not reply.ok:
        raise failure("VirtualBox does not list its VMs.", reply)
    told = []
    for uuid, name in parse.listed_vms(reply.stdout).items():
        if uuid == kept or (not kept and name == keep_name):
            continue
        sight = vm.sight_of(uuid)
        if sight.state is VmState.ABSENT or not vm.is_ours(uuid, sight):
            continue
        if sight.state not in RESTING:
            vm.manage.call("controlvm", uuid, "poweroff", timeout_s=_STOP_S)
            end_vm_processes(uuid, vm_processes(uuid))
        vm.change(
            f"The leftover VM {name!r} cannot be removed from VirtualBox.",
            "unregistervm", uuid, "--delete",
        )  # fmt: skip
        told.append(f"The leftover VM {name!r} was removed from VirtualBox.")
    return told
