"""Guests for the tests with real virtual machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.qemu.driver import QemuDriver
from parts import need
from vm.guest import Guest, built_guest
from vm.ticker import make_image

# Before any test module imports them.
pytest.register_assert_rewrite(
    "officegrid.testing.driver_harness",
    "officegrid.testing.driver_cases_life",
    "officegrid.testing.driver_cases_save",
    "officegrid.testing.driver_cases_image",
)

MakeTicker = Callable[..., QemuDriver]


@pytest.fixture(scope="session")
def guest() -> Guest:
    """The Linux guest with the real worker."""
    return built_guest()


@pytest.fixture
def ticker(tmp_path: Path) -> Iterator[MakeTicker]:
    """Make a driver of a guest that only ticks; its VMs are deleted after the test.

    `ticker(folder=…, memory_mb=…, **options)`; the same arguments give a new driver object for
    the same VM. Under emulation unless `accelerator` says otherwise.
    """
    need("qemu-system-x86_64", "qemu-img")
    made: list[QemuDriver] = []
    image = make_image(tmp_path / "image.qcow2")

    def make(
        folder: Path | None = None, *, name: str = "GridMachine", memory_mb: int = 64,
        cpu_cap_percent: int = 100,
        find_obstacle: Callable[[str], str] | None = None, image: Path = image, **options: Any,
    ) -> QemuDriver:  # fmt: skip
        folder = folder or tmp_path / "vm"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = VmSettings(
            name, folder, image, memory_mb, 1, cpu_cap_percent,
            options={"accelerator": "tcg", "code_cache_mb": 32, **options},
        )  # fmt: skip
        extra = {} if find_obstacle is None else {"find_obstacle": find_obstacle}
        made.append(QemuDriver(settings, **extra))
        return made[-1]

    yield make
    for driver in made:
        driver.delete()
