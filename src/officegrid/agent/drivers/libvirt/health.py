"""Can libvirt run our VM on this machine, and how fast?"""

from __future__ import annotations

import re

from officegrid.agent.drivers.libvirt.options import LibvirtOptions
from officegrid.agent.drivers.libvirt.virsh import Virsh, failure
from officegrid.agent.drivers.qemu.acceleration import kvm_obstacle
from officegrid.core.vm import DriverError, Health, HealthLevel, Trouble

VERSION_TIMEOUT_S = 60.0
"""The first call after an update of QEMU has libvirt try every QEMU binary: some 10 s."""
_HYPERVISOR = re.compile(r"^Running hypervisor:\s*(.+)$", re.MULTILINE)
_LIBRARY = re.compile(r"^Using library:\s*libvirt (\S+)$", re.MULTILINE)


def choose_accelerator(options: LibvirtOptions) -> tuple[str, str]:
    """kvm or tcg, and why not kvm. Raises NO_VIRTUALIZATION if kvm is demanded in vain."""
    if options.accelerator == "tcg":
        return "tcg", "The settings say so."
    obstacle = kvm_obstacle()
    if not obstacle:
        return "kvm", ""
    if options.accelerator == "kvm":
        raise DriverError(
            Trouble.NO_VIRTUALIZATION,
            "KVM cannot be used on this machine.",
            obstacle,
            'Set accelerator = "auto" or "tcg", or mend what is named here.',
        )
    return "tcg", obstacle


def look(virsh: Virsh, options: LibvirtOptions) -> Health:
    """Changes nothing, never raises."""
    try:
        finished = virsh.call("version", timeout_s=VERSION_TIMEOUT_S)
        if finished.exit_code:
            raise failure(f"libvirt does not answer at {virsh.uri}.", finished)
        accelerator, why = choose_accelerator(options)
    except DriverError as error:
        return Health(HealthLevel.UNUSABLE, f"{error.what} {error.why}", error.fix)
    found = _HYPERVISOR.search(finished.stdout)
    library = _LIBRARY.search(finished.stdout)
    if found is None:
        return Health(
            HealthLevel.UNUSABLE,
            f"libvirt at {virsh.uri} finds no QEMU.",
            "Install qemu-system-x86.",
        )
    version = f"libvirt {library[1] if library else '?'}, {found[1].strip()}"
    if accelerator == "tcg":
        return Health(
            HealthLevel.DEGRADED,
            f"libvirt works, but the VM is emulated, several times slower. {why}",
            "Enable virtualisation in the firmware, and let QEMU's user use /dev/kvm.",
            version,
        )
    return Health(HealthLevel.GOOD, "libvirt works, with KVM.", version=version)
