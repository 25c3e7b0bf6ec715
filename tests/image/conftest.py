"""What the tests of the golden image share: one image, and a grid for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.grid import Grid
from image.built_image import built_image
from image.golden import FLIGHTS, airports_script
from vm.guest import HOST


@pytest.fixture(scope="module")
def airports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return airports_script(tmp_path_factory.mktemp("example"), FLIGHTS)


@pytest.fixture(scope="module")
def image(airports: tuple[Path, Path]) -> Path:
    return built_image(scripts=[airports[0]]) / "golden.qcow2"


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    made = Grid(tmp_path / "grid", names=[HOST], lease_s=10)
    try:
        made.start()
        yield made
    finally:
        print(made.tails())
        made.close()
