"""Hyper-V's VM states, as names and as numbers, in our words.

Source: the enumeration Microsoft.HyperV.PowerShell.VMState, whose numbers are EnabledState of
Msvm_ComputerSystem (root\\virtualization\\v2) where that has one. Windows PowerShell 5.1 gives
an enumeration as a number in JSON, PowerShell 7 can give its name; both are accepted here.
"""

from __future__ import annotations

from officegrid.core.vm import VmState

NUMBERS = {
    1: "Other", 2: "Running", 3: "Off", 4: "Stopping", 6: "Saved", 9: "Paused", 10: "Starting",
    11: "Reset", 32773: "Saving", 32776: "Pausing", 32777: "Resuming", 32779: "FastSaved",
    32780: "FastSaving", 32781: "ForceShutdown", 32782: "ForceReboot",
    32783: "RunningCritical", 32784: "OffCritical", 32785: "StoppingCritical",
    32786: "SavedCritical", 32787: "PausedCritical", 32788: "StartingCritical",
    32789: "ResetCritical", 32790: "SavingCritical", 32791: "PausingCritical",
    32792: "ResumingCritical", 32793: "FastSavedCritical", 32794: "FastSavingCritical",
}  # fmt: skip

_STATES = {
    "Running": VmState.RUNNING,
    "Off": VmState.OFF,
    "Stopping": VmState.STOPPING,
    "ForceShutdown": VmState.STOPPING,
    "Saved": VmState.SAVED,
    "FastSaved": VmState.SAVED,
    "Paused": VmState.PAUSED,
    "Starting": VmState.STARTING,
    "Reset": VmState.STARTING,
    "ForceReboot": VmState.STARTING,
    "Resuming": VmState.STARTING,
    # On its way to paused, but its CPUs may still run: not yet PAUSED.
    "Pausing": VmState.RUNNING,
    "Saving": VmState.SAVING,
    "FastSaving": VmState.SAVING,
}  # fmt: skip

_CRITICAL = {
    "OffCritical": "its configuration or disk cannot be read (files moved, deleted or damaged)",
    "SavedCritical": "the files of its saved state or its disk cannot be read",
    "FastSavedCritical": "the files of its saved state or its disk cannot be read",
    "PausedCritical": "Hyper-V paused it because its disk is full or cannot be reached",
    "RunningCritical": "its disk cannot be reached, or the disk that holds it is nearly full",
}


def name_of(value: object) -> str:
    """The state's name, from its name or number. What is unknown comes back as text."""
    text = str(value).strip()
    if text.isdigit():
        return NUMBERS.get(int(text), text)
    return text


def state_of(name: str) -> VmState:
    """UNKNOWN for a state that this module does not know: never taken for off."""
    if name.endswith("Critical"):
        return VmState.BROKEN
    return _STATES.get(name, VmState.UNKNOWN)


def sentence_of(name: str) -> str:
    """What an admin is told beside the state."""
    if name.endswith("Critical"):
        reason = _CRITICAL.get(name, "its files on the disk cannot be reached")
        return f"Hyper-V calls the VM {name}: {reason}."
    if name in _STATES:
        return name
    return f"Hyper-V calls the VM {name!r}, a state that this driver does not know."
