"""A worker without a VM: native processes, paused, continued and ended as a whole.

driver.py   the verbs of `agent.drivers.base.Driver`, and the options
keeper.py   what an operating system must be able to do, and the note that finds a worker again
posix.py    Linux and macOS: control groups (cgroups.py) or signals; launch.py becomes the worker
windows.py  job objects
"""

from __future__ import annotations

from officegrid.agent.drivers.base import Driver, VmSettings


def make(settings: VmSettings) -> Driver:
    """The driver for this worker. Raises UsageError for an option that is wrong or unknown."""
    from officegrid.agent.drivers.process.driver import ProcessDriver

    return ProcessDriver(settings)
