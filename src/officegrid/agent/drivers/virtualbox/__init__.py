"""The VirtualBox driver: `make(settings)`; see driver.py, and docs/drivers/virtualbox.md."""

from __future__ import annotations

from officegrid.agent.drivers.base import Driver, VmSettings
from officegrid.agent.drivers.virtualbox.driver import VirtualBoxDriver


def make(settings: VmSettings) -> Driver:
    """A driver for the VM that `settings` name. Raises UsageError for wrong options."""
    return VirtualBoxDriver(settings)
