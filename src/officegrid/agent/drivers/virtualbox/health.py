"""Can VirtualBox work on this machine? Looks and changes nothing.

Only `VBoxManage --version` is called unless our registry exists already: any other call would
start VBoxSVC and make one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from officegrid.agent.drivers.virtualbox import parse
from officegrid.agent.drivers.virtualbox.manage import Manage
from officegrid.agent.drivers.virtualbox.versions import (
    Judgement,
    judge,
    parse_version,
    warns_of_driver,
)
from officegrid.agent.drivers.virtualbox.vm import Vm
from officegrid.agent.drivers.virtualbox.vmlog import slow_mode_reason
from officegrid.core.vm import DriverError, Health, HealthLevel, VmState

_SLOW_FIX = (
    "Turn Hyper-V, memory integrity and virtualization-based security off if your rules allow it, "
    "or use the Hyper-V driver."
)
_PACK = "An Extension Pack is installed ({}): not needed here, and companies have to pay for it."


def unusable(error: DriverError) -> Health:
    sentence = f"{error.what} {error.why}".strip()
    return Health(HealthLevel.UNUSABLE, _ended(sentence), error.fix)


def judged(vm: Vm, *, slow_mode: bool) -> Judgement:
    return judge(
        vm.version(),
        platform=sys.platform,
        slow_mode=slow_mode,
        allowed=vm.options.allow_versions,
        denied=vm.options.deny_versions,
    )


def examine(vm: Vm) -> Health:
    """Raises DriverError if VBoxManage is not there or does not answer."""
    manage = vm.manage
    reply = manage.call("--version", timeout_s=vm.options.poll_timeout_s)
    version = parse_version(reply.stdout)
    number = str(version) if version else ""
    if warns_of_driver(reply.stdout + reply.stderr):
        return Health(
            HealthLevel.UNUSABLE,
            "VirtualBox is installed, but its kernel driver vboxdrv is not loaded.",
            "Run 'sudo /sbin/vboxconfig'; with Secure Boot the driver must be signed.",
            number,
        )
    if version is None:
        return Health(
            HealthLevel.UNUSABLE,
            _ended(f"VBoxManage does not say which version it is: {reply.words}"),
            "Repair or reinstall VirtualBox.",
        )
    registered = _registry_exists(vm)
    slow = _slow_mode(vm) if registered else None
    judgement = judged(vm, slow_mode=slow is not None)
    if judgement.level is HealthLevel.UNUSABLE:
        return Health(judgement.level, judgement.sentence, judgement.fix, number)
    missing = _no_virtualization(vm, manage, registered)
    if missing is not None:
        return missing
    packs = _extension_packs(vm, manage, registered)
    notes = [_PACK.format(", ".join(packs))] if packs else []
    if slow is not None:
        sentence = (
            f"VirtualBox {version} runs in slow mode on top of another hypervisor ({slow}); "
            "guests are clearly slower there and may stall."
        )
        if judgement.level is HealthLevel.DEGRADED:
            notes.insert(0, judgement.sentence)
        return Health(HealthLevel.DEGRADED, " ".join([sentence, *notes]), _SLOW_FIX, number)
    return Health(judgement.level, " ".join([judgement.sentence, *notes]), judgement.fix, number)


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(".") else sentence + "."


def _registry_exists(vm: Vm) -> bool:
    home = vm.environment.get("VBOX_USER_HOME")
    return home is None or (Path(home) / "VirtualBox.xml").exists()


def _slow_mode(vm: Vm) -> str | None:
    if vm.machine is None:
        return None
    sight = vm.look()
    return None if sight.state is VmState.ABSENT else slow_mode_reason(vm.log(sight).head)


def _no_virtualization(vm: Vm, manage: Manage, registered: bool) -> Health | None:
    """On Windows VirtualBox says "no" whenever Hyper-V is active, and can run nevertheless."""
    if sys.platform != "linux":
        return None
    if registered:
        host = manage.call("list", "hostinfo", timeout_s=vm.options.poll_timeout_s)
        answer = parse.colon_fields(host.stdout).get("Processor supports HW virtualization")
    else:
        answer = _answer_of_cpuinfo()
    if answer != "no":
        return None
    return Health(
        HealthLevel.UNUSABLE,
        "VirtualBox is installed, but the processor offers no hardware virtualization.",
        "Enable VT-x or AMD-V in the firmware setup; in a VM, allow nested virtualization.",
        str(vm.version()),
    )


def _answer_of_cpuinfo() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if re.search(r"(?m)^flags\s*:", text) is None:
        return None
    return "yes" if re.search(r"(?m)^flags\s*:.*\b(vmx|svm)\b", text) else "no"


def _extension_packs(vm: Vm, manage: Manage, registered: bool) -> list[str]:
    if not registered:
        return []
    reply = manage.call("list", "extpacks", timeout_s=vm.options.poll_timeout_s)
    return parse.extension_packs(reply.stdout)
