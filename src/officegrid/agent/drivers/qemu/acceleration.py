"""Which accelerator works on this machine: looked at, and learnt from what failed.

A device file proves nothing. `/dev/kvm` exists in containers without rights, in VMs without
nested virtualisation, and over software that only plays a processor, where a guest crawls for
minutes before its first line. So hardware virtualisation is used only when the device can be
used AND the processor says that it can (vmx or svm in /proc/cpuinfo), and when a guest started
with it does not come up, that is remembered for a week, or until QEMU changes.

Formats: /proc/cpuinfo (proc(5)); KVM_GET_API_VERSION (Linux, Documentation/virt/kvm/api.rst:
the stable version is 12); `sysctl kern.hv_support` (Apple, Hypervisor framework).
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from officegrid.agent.drivers.command import CommandProblem, run
from officegrid.agent.drivers.qemu.files import read_json, write_json
from officegrid.core.vm import DriverError, Trouble

KVM_DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
KVM_GET_API_VERSION = 0xAE00
KVM_STABLE_API = 12
FORGET_AFTER_S = 7 * 24 * 3600.0
HARDWARE = frozenset({"kvm", "hvf"})


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`name` is QEMU's; the sentence says why this one, for the grid admin."""

    name: str
    sentence: str

    @property
    def hardware(self) -> bool:
        return self.name in HARDWARE


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The flags of the first processor in the text of /proc/cpuinfo."""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def kvm_obstacle(
    device: Path = KVM_DEVICE, cpuinfo: Path = CPUINFO, *, api: Callable[[Path], int] | None = None
) -> str:
    """Why KVM cannot be used here, as a sentence; empty when it can."""
    if not device.exists():
        return f"There is no {device}: hardware virtualisation is off in the firmware, or the KVM "\
               "module is not loaded."  # fmt: skip
    if not os.access(device, os.R_OK | os.W_OK):
        return f"The agent's user may not use {device}; the group kvm may."
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    if not cpu_flags(text) & {"vmx", "svm"}:
        return (
            f"{device} exists, but the processor offers no hardware virtualisation (neither vmx "
            f"nor svm in {cpuinfo}): what stands behind the device would be too slow."
        )
    try:
        version = (api or kvm_api_version)(device)
    except OSError as error:
        return f"{device} cannot be used: {error.strerror or error}."
    if version != KVM_STABLE_API:
        return f"{device} speaks version {version} of its interface, not {KVM_STABLE_API}."
    return ""


def kvm_api_version(device: Path) -> int:
    """Ask the kernel. Raises OSError."""
    if sys.platform == "win32":
        raise OSError("no KVM on Windows")
    import fcntl

    descriptor = os.open(device, os.O_RDWR)
    try:
        return fcntl.ioctl(descriptor, KVM_GET_API_VERSION, 0)
    finally:
        os.close(descriptor)


def hvf_obstacle() -> str:
    """Why Apple's hypervisor cannot be used here; empty when it can."""
    if sys.platform != "darwin":
        return "hvf exists on macOS only."
    if platform.machine() != "x86_64":
        return "An x86-64 guest cannot use the processor of this Mac directly."
    try:
        asked = run(["sysctl", "-n", "kern.hv_support"], timeout_s=5)
    except CommandProblem as error:
        return f"sysctl does not answer: {error}"
    return "" if asked.stdout.strip() == "1" else "macOS says that this Mac has no hypervisor."


def obstacle(name: str) -> str:
    return kvm_obstacle() if name == "kvm" else hvf_obstacle()


def preferred() -> str:
    """The hardware accelerator of this operating system."""
    return "hvf" if sys.platform == "darwin" else "kvm"


def choose(
    wanted: str,
    qemu_version: str,
    learnt: Learnt,
    *,
    find_obstacle: Callable[[str], str] = obstacle,
) -> Accelerator:
    """Raises DriverError NO_VIRTUALIZATION when `wanted` names one that cannot be used."""
    if wanted == "tcg":
        return Accelerator("tcg", "Emulated by QEMU, because the settings say so.")
    if wanted in HARDWARE:
        if reason := find_obstacle(wanted):
            raise DriverError(
                Trouble.NO_VIRTUALIZATION,
                f"QEMU cannot use {wanted} on this machine.",
                reason,
                'Set accelerator = "auto" or "tcg", or mend what is named here.',
            )
        return Accelerator(wanted, f"Hardware virtualisation ({wanted}), as the settings say.")
    name = preferred()
    if failure := learnt.failure(name, qemu_version):
        return Accelerator("tcg", f"Emulated by QEMU, because {name} failed here before: {failure}")
    if reason := find_obstacle(name):
        return Accelerator("tcg", f"Emulated by QEMU, several times slower. {reason}")
    return Accelerator(name, f"Hardware virtualisation ({name}).")


class Learnt:
    """Accelerators that failed on this machine, kept in one small file.

    An entry counts for a week and for one version of QEMU; a clock set back forgets it, too."""

    def __init__(self, path: Path, wall_clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = wall_clock

    def failure(self, name: str, qemu_version: str) -> str:
        """The reason why this accelerator is not to be tried; empty: try it."""
        entry = (read_json(self._path) or {}).get(name)
        if not isinstance(entry, dict) or entry.get("qemu_version") != qemu_version:
            return ""
        at, reason = entry.get("at"), entry.get("reason")
        if not isinstance(at, int | float) or not isinstance(reason, str):
            return ""
        return reason if 0 <= self._now() - at < FORGET_AFTER_S else ""

    def remember(self, name: str, qemu_version: str, reason: str) -> None:
        """From now on `choose` avoids it. A disk that cannot be written costs only this memory."""
        known = read_json(self._path) or {}
        known[name] = {"reason": reason, "at": self._now(), "qemu_version": qemu_version}
        try:
            write_json(self._path, known)
        except OSError:
            return
