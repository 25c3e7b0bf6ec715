"""The Hyper-V driver: `make(settings)`; see driver.py, and docs/drivers/hyperv.md."""

from __future__ import annotations

from officegrid.agent.drivers.base import Driver, VmSettings
from officegrid.agent.drivers.hyperv.driver import HyperVDriver


def make(settings: VmSettings) -> Driver:
    """A driver for the VM that `settings` name. Raises UsageError for wrong options."""
    return HyperVDriver(settings)
