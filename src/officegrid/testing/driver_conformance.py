"""The contract of `agent.drivers.base.Driver` as tests, for any driver.

Subclass `DriverConformance` in a test module and give it a `harness` fixture (see
`driver_harness.DriverHarness`), new for each case:

    class TestMyDriver(DriverConformance):
        @pytest.fixture
        def harness(self, tmp_path):
            harness = MyHarness(tmp_path)
            yield harness
            harness.close()

What a driver cannot do by its own `capabilities()` is skipped with a sentence; nothing else is.
"""

from __future__ import annotations

# ruff: noqa: E402 (pytest must be told first that these assertions are to be explained)
import sys

import pytest

_CASES = ("driver_harness", "driver_cases_life", "driver_cases_save", "driver_cases_image")
for _name in _CASES:
    if f"officegrid.testing.{_name}" not in sys.modules:
        pytest.register_assert_rewrite(f"officegrid.testing.{_name}")

from officegrid.agent.drivers.base import Driver
from officegrid.testing.driver_cases_image import ImageCases
from officegrid.testing.driver_cases_life import LifeCases
from officegrid.testing.driver_cases_save import SaveCases
from officegrid.testing.driver_harness import DriverHarness

__all__ = ["DriverConformance", "DriverHarness"]


class DriverConformance(LifeCases, SaveCases, ImageCases):
    """All cases. Each runs on a VM of its own."""

    @pytest.fixture
    def harness(self) -> DriverHarness:
        """Override: the VM of this case; close it afterwards."""
        raise NotImplementedError("give the subclass a harness fixture")

    @pytest.fixture
    def driver(self, harness: DriverHarness) -> Driver:
        """The driver with its VM made, off."""
        made = harness.make()
        if made.capabilities().imports:
            made.import_image()
        return made
