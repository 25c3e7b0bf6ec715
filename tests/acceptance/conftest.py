"""Grids for the acceptance tests. A failing test shows the ends of all logs of its grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.grid import Grid

MakeGrid = Callable[..., Grid]


@pytest.fixture
def make_grid(tmp_path: Path) -> Iterator[MakeGrid]:
    """Make a grid that is not started yet; all are closed after the test."""
    made: list[Grid] = []

    def make(name: str = "grid", **options: Any) -> Grid:
        made.append(Grid(tmp_path / name, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def grid(make_grid: MakeGrid) -> Grid:
    """A grid of this test alone, its coordinator running."""
    made = make_grid()
    made.start()
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One grid for all tests of a module: a coordinator, and one worker with two slots."""
    made = Grid(tmp_path_factory.mktemp("shared") / "grid")
    try:
        made.start()
        made.join("me", "submitter")
        made.worker("w1", "--slots", "2")
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call" and report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Grid):
                report.sections.append((f"logs of {name}", value.tails()))
    return report
