"""Worker VMs by libvirt, through `virsh`; see driver.py, and docs/drivers/libvirt.md."""

from __future__ import annotations

from officegrid.agent.drivers.base import Driver, VmSettings


def make(settings: VmSettings) -> Driver:
    """The driver for this VM. Raises UsageError for an option that is wrong or unknown."""
    from officegrid.agent.drivers.libvirt.driver import LibvirtDriver

    return LibvirtDriver(settings)
