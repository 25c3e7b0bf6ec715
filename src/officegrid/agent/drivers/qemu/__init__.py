"""The QEMU driver: one QEMU process, one folder, no service and no registry.

    driver.py        the verbs of `agent.drivers.base.Driver`
    options.py       `[vm.options]` of agent.toml
    acceleration.py  which accelerator works here: a real probe, and what was learnt from failures
    arguments.py     QEMU's command line
    process.py       start, find again after a restart of the agent, end; never a stranger
    priority.py      lowest priority while it works, none in the way when it must stop
    monitor.py       QMP, QEMU's control protocol
    disk.py          the read-only image and the throw-away overlay over it
    saved.py         the saved state: memory in one file, and the stamp that says it is whole
    files.py         what lies where in the VM's folder

Linux and macOS. QEMU on Windows is not supported: its control socket would have to be a TCP
port, open to every program on that PC.
"""

from __future__ import annotations

from officegrid.agent.drivers.base import Driver, VmSettings


def make(settings: VmSettings) -> Driver:
    """The driver for this VM. Raises UsageError for an option that is wrong or unknown."""
    from officegrid.agent.drivers.qemu.driver import QemuDriver

    return QemuDriver(settings)
