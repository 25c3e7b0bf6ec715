"""The databases that `coordinator.toml` names, as something to read from and write to."""

from __future__ import annotations

from collections.abc import Sequence

from officegrid.coordinator.config import CoordinatorConfig
from officegrid.core.errors import ForbiddenError, UsageError
from officegrid.data.sql.source import SqlSource, parse_source
from officegrid.data.sql.target import Mode, Target, check_target
from officegrid.wire.sql import TableOutput

LOOK_EVERY_S = 0.5
"""How often it is looked whether input is to be read, or output to be put into a table."""
AT_ONCE = 4
"""Of each; one for each source."""
RETRIES_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 300.0)
"""Pauses before a source that is away is asked again; then people are needed."""


def check_source(config: CoordinatorConfig, name: str, *, writing: bool = False) -> None:
    """Is there such a source, and may jobs write to it? Raises UsageError, ForbiddenError."""
    found = config.sources.get(name)
    if found is None:
        known = ", ".join(config.sources) or "none"
        raise UsageError(
            f"The coordinator knows no source {name!r}.",
            f"Known ones: {known}.",
            f"Ask the grid admin for [sources.{name}] in coordinator.toml.",
        )
    if writing and not found.write:
        raise ForbiddenError(
            f"Jobs may not write to source {name!r}.",
            "Its settings do not allow it.",
            f"Ask the grid admin for write = true in [sources.{name}].",
        )


def check_table(config: CoordinatorConfig, table: TableOutput) -> None:
    """Could output ever be put there, whatever the database holds? Nobody is asked. Raises
    UsageError, ForbiddenError."""
    check_source(config, table.source, writing=True)
    target = target_of(table, table.mode, None)
    check_target(target, source_of(config, table.source).dialect, "any")


def target_of(table: TableOutput, mode: Mode, columns: Sequence[str] | None) -> Target:
    """The table as something to deliver to; `columns` are those of the records, if known."""
    return Target(
        table=table.table, mode=mode, key=tuple(table.key), null=table.null,
        columns=None if columns is None else tuple(columns), types=table.types,
    )  # fmt: skip


def check_all(config: CoordinatorConfig) -> None:
    """Can all sources be understood? Nobody is asked. Raises UsageError."""
    for name in config.sources:
        source_of(config, name)


def source_of(config: CoordinatorConfig, name: str) -> SqlSource:
    """Raises UsageError for a name or URL that is wrong; the URL is never part of the text."""
    check_source(config, name)
    found = config.sources[name]
    return parse_source(
        name, found.url, password_file=found.password_file, password_env=found.password_env
    )
