"""For all tests: the files that boot computers come first, so that three processes end together."""

from __future__ import annotations

from pathlib import Path

import pytest

from databases import mariadb, postgresql  # noqa: F401  (fixtures for every test)

LONGEST = ("image", "vm", "wine", "acceptance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay whole and in order; `--no-loadscope-reorder` keeps xdist from sorting again."""
    folders = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(folders).parts[0]
        return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)

    items.sort(key=place)
