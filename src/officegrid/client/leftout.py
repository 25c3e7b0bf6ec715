"""What was packed without: telling it, to people and to scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from officegrid.bundles.ignore_file import LeftOut

PROGRAM = "program folder"

OnLeftOut = Callable[[str, LeftOut], None]
"""Told once for each folder that is packed: what the folder is, and what was left out of it."""


def silent(_: str, __: LeftOut) -> None:
    return


class LeftOuts:
    """Gathers what was left out of the folders of one command."""

    def __init__(self) -> None:
        self._found: list[tuple[str, LeftOut]] = []

    def __call__(self, what: str, left_out: LeftOut) -> None:
        if left_out:
            self._found.append((what, left_out))

    def tell(self) -> None:
        """A line on stderr for each folder whose ignore file left something out. What is always
        left out is no news of a program; of data it is."""
        for what, one in self._found:
            parts = []
            if one.files:
                files = "1 file" if one.files == 1 else f"{one.files:,} files"
                files = f"at least {files}" if one.more else files
                parts.append(f"{files}, because of {one.ignore_file}")
            if one.always and what != PROGRAM:
                parts.append(f"what always is: {', '.join(sorted(one.always))}")
            if parts:
                click.echo(f"Left out of the {what}: {'; '.join(parts)}.", err=True)

    def plain(self) -> list[dict[str, Any]]:
        """For --json."""
        return [
            {
                "what": what, "files": one.files, "more": one.more,
                "ignore_file": one.ignore_file if one.files else None,
                "always": sorted(one.always),
            }
            for what, one in self._found
        ]  # fmt: skip
