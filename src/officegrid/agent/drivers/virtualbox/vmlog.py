"""What a VM's own log, VBox.log, tells: its process, why it did not start, slow mode, full disk.

VBoxManage says little more than "terminated unexpectedly"; the cause stands in the log. Names are
those of VirtualBox's include/VBox/err.h; header lines as in every release log ("Process ID: N").
The log of the present or last run is VBox.log, older ones are VBox.log.1 and so on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from officegrid.core.vm import Trouble

_HEAD_BYTES = 512 * 1024
_TAIL_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a VM does not run, in the admin's words."""

    trouble: Trouble
    status: str
    sentence: str
    fix: str


_FIRMWARE = "Enable virtualization (Intel VT-x, AMD-V/SVM) in the firmware setup of this PC."
_OTHER = (
    "Stop the other hypervisor, or let VirtualBox use it: on Windows enable the feature "
    "'Windows Hypervisor Platform'."
)
_DRIVER = "Run 'sudo /sbin/vboxconfig' (Linux) or repair the VirtualBox installation (Windows)."
_COLD = "Discard the saved state; the next start boots the VM cold."
_CAUSES = (
    ("VERR_VMX_MSR", Trouble.NO_VIRTUALIZATION, "VT-x is disabled in the firmware.", _FIRMWARE),
    ("VERR_SVM_DISABLED", Trouble.NO_VIRTUALIZATION, "AMD-V is disabled in the firmware.",
     _FIRMWARE),
    ("VERR_VMX_NO_VMX", Trouble.NO_VIRTUALIZATION, "VT-x is not available.", _FIRMWARE),
    ("VERR_SVM_NO_SVM", Trouble.NO_VIRTUALIZATION, "AMD-V is not available.", _FIRMWARE),
    ("VERR_VMX_IN_VMX_ROOT_MODE", Trouble.CONFLICT, "Another hypervisor uses VT-x.", _OTHER),
    ("VERR_SVM_IN_USE", Trouble.CONFLICT, "Another hypervisor uses AMD-V.", _OTHER),
    ("VERR_SUPDRV_NO_RAW_MODE_HYPER_V_ROOT", Trouble.CONFLICT, "Hyper-V is in the way.", _OTHER),
    ("VERR_NEM_NOT_AVAILABLE", Trouble.NO_VIRTUALIZATION,
     "The processor offers no virtualization.", _FIRMWARE),
    ("VERR_NEM_", Trouble.CONFLICT, "Hyper-V is active and did not take the VM over.", _OTHER),
    ("VERR_VM_DRIVER_NOT_INSTALLED", Trouble.MISSING, "Its kernel driver is not loaded.", _DRIVER),
    ("VERR_VM_DRIVER_NOT_ACCESSIBLE", Trouble.PERMISSION, "Its kernel driver may not be used.",
     "Put the agent's account into the group vboxusers (Linux)."),
    ("VERR_VM_DRIVER_VERSION_MISMATCH", Trouble.VERSION,
     "Its kernel driver is of another version.", _DRIVER),
    ("VERR_VMM_R0_VERSION_MISMATCH", Trouble.VERSION,
     "Its kernel module is of another version.", _DRIVER),
    ("VERR_SUPLIB_", Trouble.PERMISSION, "Its installation folder can be changed by others.",
     "Give VirtualBox's folder and those above it to root (Linux, macOS), or reinstall it."),
    ("VERR_EM_NO_MEMORY", Trouble.MEMORY, "This PC has too little free memory.",
     "Lower memory_mb in agent.toml."),
    ("VERR_NO_MEMORY", Trouble.MEMORY, "This PC has too little free memory.",
     "Lower memory_mb in agent.toml."),
    ("VERR_NO_LOW_MEMORY", Trouble.MEMORY, "This PC has too little free memory.",
     "Lower memory_mb in agent.toml."),
    ("VERR_DISK_FULL", Trouble.DISK_FULL, "The disk is full.", "Free some space."),
    ("VERR_SSM_LOAD_CPUID_MISMATCH", Trouble.SAVED_STATE,
     "The saved state was made on a processor with other features.", _COLD),
    ("VERR_SSM_LOAD_CONFIG_MISMATCH", Trouble.SAVED_STATE,
     "The saved state was made with other settings.", _COLD),
    ("VERR_SSM_UNSUPPORTED_DATA_UNIT_VERSION", Trouble.SAVED_STATE,
     "The saved state was made by another version of VirtualBox.", _COLD),
    ("VERR_SSM_", Trouble.SAVED_STATE, "The saved state is damaged.", _COLD),
)  # fmt: skip
"""By the beginning of the status name; the first that fits in this order counts."""


def cause_of(text: str) -> Cause | None:
    """The cause of a failed start named in a log or in VBoxManage's own words."""
    seen = list(dict.fromkeys(re.findall(r"\bVERR_[A-Z0-9_]+", text)))
    for prefix, trouble, sentence, fix in _CAUSES:
        for status in seen:
            if status.startswith(prefix):
                return Cause(trouble, status, sentence, fix)
    return None


def cause_in_log(log: VmLog) -> Cause | None:
    """As cause_of, with the lines that report an error before those that only mention one."""
    reporting = re.compile(r"Power up failed|VMSetError|ERROR \[COM\]|SetLoadError")
    lines = [line for line in log.text.splitlines() if reporting.search(line)]
    return cause_of("\n".join(lines)) or cause_of(log.text)


def process_id(head: str) -> int | None:
    match = re.search(r"(?m)^[0-9:.]+ Process ID: (\d+)\s*$", head)
    return int(match[1]) if match else None


def slow_mode_reason(head: str) -> str | None:
    """Why VirtualBox runs on another hypervisor (NEM) instead of the processor; None: it does not.

    `HM: HMR3Init: Attempting fall back to NEM: VT-x is not available`
    """
    match = re.search(r"Attempting fall back to NEM:?\s*(.*?)\s*$", head, re.MULTILINE)
    return (match[1] or "virtualization is taken") if match else None


def paused_for_full_disk(tail: str) -> bool:
    """Has VirtualBox itself paused the VM because the disk is full, and not gone on since?"""
    full = max(tail.rfind("DrvVD_DISKFULL"), tail.rfind("Host disk full"))
    return full > tail.rfind("changed to 'Running'") if full >= 0 else False


@dataclass(frozen=True, slots=True)
class VmLog:
    """The beginning and the end of a VBox.log; both empty if there is none."""

    head: str
    tail: str

    @property
    def text(self) -> str:
        return self.head + self.tail


def read_log(folder: str | None) -> VmLog:
    """Read `VBox.log` in the folder that showvminfo names LogFldr. Never raises."""
    if not folder:
        return VmLog("", "")
    try:
        with (Path(folder) / "VBox.log").open("rb") as file:
            head = file.read(_HEAD_BYTES)
            size = file.seek(0, 2)
            file.seek(max(len(head), size - _TAIL_BYTES))
            tail = file.read()
    except OSError:
        return VmLog("", "")
    # A log shorter than the head is wholly in it: its end is looked for there too.
    return VmLog(head.decode("utf-8", "replace"), (tail or head).decode("utf-8", "replace"))
