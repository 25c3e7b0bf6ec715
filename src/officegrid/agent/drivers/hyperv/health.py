"""Can Hyper-V work on this machine? Looks and changes nothing."""

from __future__ import annotations

from typing import Any

from officegrid.agent.drivers.hyperv import scripts
from officegrid.agent.drivers.hyperv.powershell import ScriptError, ShellProblem, items
from officegrid.agent.drivers.hyperv.troubles import ENABLE_FIX, GROUP_FIX, failure
from officegrid.agent.drivers.hyperv.vm import Vm
from officegrid.core.vm import DriverError, Health, HealthLevel

_FEATURE = "Hyper-V is not enabled on this PC, or its PowerShell module is missing."
_SERVICE_FIX = "Start the service vmms (Hyper-V Virtual Machine Management), start type automatic."
_OFF_FIX = (
    "Enable VT-x or AMD-V in the firmware setup, run 'bcdedit /set hypervisorlaunchtype auto', "
    "and restart the PC."
)


def examine(vm: Vm) -> Health:
    """Raises DriverError if PowerShell is not there."""
    shell = vm.shell(for_looking=True)
    try:
        outputs = shell.run(
            scripts.examine(vm.options.switch), timeout_s=vm.options.change_timeout_s
        )
    except (ScriptError, ShellProblem) as error:
        return unusable(failure("Hyper-V cannot be examined.", error))
    if len(outputs) != 1 or not isinstance(outputs[0], dict):
        return _no("PowerShell's answer about Hyper-V cannot be read.", "Repair PowerShell.", "")
    return _judged(outputs[0], vm.options.switch)


def _judged(facts: dict[str, Any], switch: str) -> Health:
    version = str(facts.get("windows") or "")
    if not facts.get("module"):
        return _no(_FEATURE, ENABLE_FIX, version)
    service = [str(one) for one in items(facts.get("service"))]
    if not service:
        return _no("Hyper-V's service vmms is not installed.", ENABLE_FIX, version)
    # 5.1 as text: [string] of the enumeration gives the name; 4 is its number for Running.
    if service[0] not in ("Running", "4"):
        return _no(f"Hyper-V's service vmms is {service[0].lower()}.", _SERVICE_FIX, version)
    if not facts.get("hypervisor"):
        return _no("Hyper-V is installed, but its hypervisor is not running.", _OFF_FIX, version)
    if not facts.get("may"):
        return _no("The agent's account may not manage Hyper-V's VMs.", GROUP_FIX, version)
    if not facts.get("network"):
        return _no(
            f"Hyper-V has no virtual switch named {switch!r}.",
            "Create it, or name another as switch under [vm.options] in agent.toml.",
            version,
        )
    return Health(
        HealthLevel.GOOD,
        f"Hyper-V of Windows {version} can be used, through PowerShell {facts.get('shell')}.",
        version=version,
    )


def _no(sentence: str, fix: str, version: str) -> Health:
    return Health(HealthLevel.UNUSABLE, sentence, fix, version)


def unusable(error: DriverError) -> Health:
    sentence = f"{error.what} {error.why}".strip()
    ended = sentence if sentence.endswith(".") else sentence + "."
    return Health(HealthLevel.UNUSABLE, ended, error.fix)
