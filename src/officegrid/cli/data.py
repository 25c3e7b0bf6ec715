"""`officegrid data …`: versions of reference data."""

from __future__ import annotations

from typing import ClassVar

import click

from officegrid.cli.lazy import LazyGroup


class DataGroup(LazyGroup):
    modules: ClassVar[dict[str, str]] = {
        "list": "dataset:list_data",
        "push": "dataset:push",
        "refresh": "dataset:refresh",
        "rollback": "dataset:rollback",
    }


@click.group(cls=DataGroup)
def data() -> None:
    """Reference data: push it, list its versions, go back."""
