"""From what PowerShell and Hyper-V say to a DriverError: by code, never by localised text.

Three things in an error are the same in every language: the first part of the
FullyQualifiedErrorId (`OutOfMemory,Microsoft…`), the category, and HRESULT codes, which Hyper-V
also puts into its texts ("… (0x8007000E)"). Not all cmdlets of Hyper-V fill all three: a VM that
is not there is InvalidArgument/InvalidParameter to Get-VM, and a start for which memory is
missing can be NotSpecified/Unspecified with the code in the text alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from officegrid.agent.drivers.hyperv.powershell import (
    ScriptError,
    ShellCancelled,
    ShellMissing,
    ShellProblem,
    ShellRestricted,
    ShellTimeout,
)
from officegrid.core.vm import DriverError, Trouble

GROUP_FIX = (
    "Add the agent's account to the local group Hyper-V Administrators (S-1-5-32-578) and restart "
    "the agent's service."
)
ENABLE_FIX = (
    "Turn on the Windows feature Hyper-V with its PowerShell module (Windows Pro, Enterprise or "
    "Education) and restart the PC."
)


@dataclass(frozen=True, slots=True)
class _Meaning:
    trouble: Trouble
    why: str
    fix: str


_MEMORY = _Meaning(
    Trouble.MEMORY,
    "Windows does not have enough free memory for the VM.",
    "Lower memory_mb in agent.toml; the agent tries again later.",
)
_DISK = _Meaning(
    Trouble.DISK_FULL, "The disk is full.", "Free some space on the disk that holds the VM."
)
_PERMISSION = _Meaning(
    Trouble.PERMISSION, "The agent's account may not manage Hyper-V's VMs.", GROUP_FIX
)
_FILE_PERMISSION = _Meaning(
    Trouble.PERMISSION,
    "Access to a file was denied: to the agent's account, or to the VM, which opens its disks "
    "itself as a member of NT VIRTUAL MACHINE\\Virtual Machines.",
    "Let that group read the image and the seed disk, and the agent's account its own folder.",
)
_OFF = _Meaning(
    Trouble.NO_VIRTUALIZATION,
    "Windows' hypervisor is not running.",
    "Enable virtualization (VT-x, AMD-V) in the firmware setup, set 'bcdedit /set "
    "hypervisorlaunchtype auto', and restart the PC.",
)
_FILE = _Meaning(
    Trouble.IMAGE,
    "A file that the VM needs is missing or unfit: its disk, the image below it, or its seed disk.",
    "Correct image under [vm] in agent.toml, or fetch the image again; then the VM is made anew.",
)
_BUSY = _Meaning(
    Trouble.LOCKED, "The VM or a file of it is busy.", "The agent tries again in a moment."
)
_CODES = {
    0x8007000E: _MEMORY,  # E_OUTOFMEMORY
    0x800705AA: _MEMORY,  # ERROR_NO_SYSTEM_RESOURCES
    0x800705AF: _MEMORY,  # ERROR_COMMITMENT_LIMIT
    0x80070070: _DISK,  # ERROR_DISK_FULL
    0x80070027: _DISK,  # ERROR_HANDLE_DISK_FULL
    0x80070005: _FILE_PERMISSION,  # E_ACCESSDENIED
    0x80070020: _BUSY,  # ERROR_SHARING_VIOLATION
    0x80070002: _FILE,  # ERROR_FILE_NOT_FOUND
    0x80070003: _FILE,  # ERROR_PATH_NOT_FOUND
    0xC03A0001: _FILE,  # ERROR_VHD_DRIVE_FOOTER_MISSING
    0xC03A0005: _FILE,  # ERROR_VHD_FORMAT_UNKNOWN
    0xC03A000D: _FILE,  # ERROR_VHD_PARENT_VHD_NOT_FOUND
    0xC03A000E: _FILE,  # ERROR_VHD_CHILD_PARENT_ID_MISMATCH: the image was changed
    0xC03A000F: _FILE,  # ERROR_VHD_CHILD_PARENT_TIMESTAMP_MISMATCH
    0x80370102: _OFF,  # HCS_E_HYPERV_NOT_INSTALLED
    0xC0351000: _OFF,  # HV_E_HYPERVISOR_NOT_PRESENT
}
_IDS = {
    "OutOfMemory": _MEMORY,
    "OutOfDiskSpace": _DISK,
    "AccessDenied": _PERMISSION,
    "CommandNotFoundException": _Meaning(
        Trouble.MISSING, "The PowerShell module Hyper-V is not installed.", ENABLE_FIX
    ),
    "CouldNotAutoLoadModule": _Meaning(
        Trouble.MISSING, "The PowerShell module Hyper-V cannot be loaded.", ENABLE_FIX
    ),
    "ObjectNotFound": _Meaning(
        Trouble.GONE, "Something that the VM needs is not there.", "The agent makes the VM anew."
    ),
    "InvalidState": _Meaning(
        Trouble.LOCKED, "The VM is in a state that does not allow it.", "The agent tries again."
    ),
    "ObjectInUse": _BUSY,
}
_CATEGORIES = {
    "PermissionDenied": _PERMISSION,
    "ObjectNotFound": _IDS["ObjectNotFound"],
    "ResourceBusy": _BUSY,
}
_HEX = re.compile(r"\b0x([0-9A-Fa-f]{8})\b")


def trouble_of(error: ScriptError) -> Trouble:
    return _meaning(error).trouble


def _meaning(error: ScriptError) -> _Meaning:
    """Codes first: they are the most exact; and of those in the text the first that is known."""
    for code in codes(error):
        if code in _CODES:
            return _CODES[code]
    known = _IDS.get(error.error_id.partition(",")[0])
    if known is None:
        known = _CATEGORIES.get(error.category)
    return known or _Meaning(Trouble.FAILED, "", "")


def codes(error: ScriptError) -> list[int]:
    """All HRESULTs in it: its own, and those that its text quotes."""
    return [error.hresult, *(int(match, 16) for match in _HEX.findall(error.message))]


def failure(what: str, error: ScriptError | ShellProblem) -> DriverError:
    """The DriverError for this, with Hyper-V's own words at the end of `why`."""
    if isinstance(error, ScriptError):
        meaning = _meaning(error)
        why = f"{meaning.why} Hyper-V says: {words(error)}".strip()
        return DriverError(meaning.trouble, what, why, meaning.fix)
    if isinstance(error, ShellMissing):
        return DriverError(
            Trouble.MISSING, what, f"PowerShell is missing: {error}", "Repair Windows PowerShell."
        )
    if isinstance(error, ShellRestricted):
        return DriverError(
            Trouble.PERMISSION,
            what,
            "A policy (AppLocker, Device Guard) restricts PowerShell to constrained language.",
            "Allow the agent's account full language mode, or use another hypervisor.",
        )
    if isinstance(error, ShellTimeout):
        return DriverError(
            Trouble.TIMEOUT, what, str(error), "Is the service vmms (Hyper-V) running?"
        )
    if isinstance(error, ShellCancelled):
        return DriverError(Trouble.CANCELLED, what, str(error))
    return DriverError(Trouble.FAILED, what, str(error))


def words(error: ScriptError) -> str:
    """What Hyper-V said, short enough for a sentence, with what can be looked up."""
    text = " ".join(error.message.split())[:400].rstrip(". ")
    known = error.error_id.partition(",")[0] or error.category
    return f"{text} ({known})." if text else f"{known or 'nothing'}."


def gone(name: str) -> DriverError:
    return DriverError(
        Trouble.GONE,
        f"The VM {name!r} does not exist.",
        "It was deleted, or never made.",
        "The agent makes it anew from the image.",
    )
