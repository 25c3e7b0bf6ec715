"""Can QEMU work on this machine, and how well? For `detect`, in sentences."""

from __future__ import annotations

import shutil
import sys

from officegrid.agent.drivers.qemu.boot import Boot, read_version
from officegrid.agent.drivers.qemu.options import QemuOptions
from officegrid.agent.drivers.qemu.priority import CpuCap
from officegrid.core.vm import DriverError, Health, HealthLevel

OLDEST = (6, 0)
"""Older releases may work; nobody tried."""


def look_around(options: QemuOptions, boot: Boot, cap: CpuCap) -> Health:
    """Looks, changes nothing, never raises."""
    if sys.platform == "win32":
        return Health(
            HealthLevel.UNUSABLE,
            "QEMU on Windows is not supported by this driver.",
            "Use VirtualBox or Hyper-V.",
        )
    try:
        version = read_version(options.binary)
        number = ".".join(str(part) for part in version.numbers)
        if shutil.which(options.image_tool) is None:
            return Health(
                HealthLevel.UNUSABLE, f"{options.image_tool} is not installed.",
                "Install it (Debian: apt-get install qemu-utils).", number,
            )  # fmt: skip
        boot.need_tap()
        accelerator = boot.accelerator(version)
    except DriverError as error:
        sentence = " ".join(filter(None, (error.what, error.why)))
        return Health(HealthLevel.UNUSABLE, sentence, error.fix)
    complaints: list[tuple[str, str]] = []
    if version.numbers[:2] < OLDEST:
        complaints.append((f"QEMU {number} is older than what was tried.", "Install a newer one."))
    if not accelerator.hardware:
        fix = "Switch virtualisation on in the firmware, or let the agent's user use /dev/kvm."
        if options.accelerator == "tcg":
            fix = 'Set accelerator = "auto" if this PC can do better.'
        complaints.append((accelerator.sentence, fix))
    if cap.wanted and (reason := cap.obstacle()):
        complaints.append((reason, "Remove cpu_cap_percent, or run the agent as root."))
    if not complaints:
        return Health(
            HealthLevel.GOOD, f"QEMU {number} works. {accelerator.sentence}", version=number
        )
    return Health(
        HealthLevel.DEGRADED,
        f"QEMU {number} works. " + " ".join(sentence for sentence, _ in complaints),
        " ".join(fix for _, fix in complaints),
        number,
    )
