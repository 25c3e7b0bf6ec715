"""Where records go: a table, how, and what is known about its columns before anything is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from officegrid.core.errors import InputError, UsageError
from officegrid.data.sql.columns import Kind
from officegrid.data.sql.render import check_null
from officegrid.data.sql.source import Dialect
from officegrid.data.sql.statement import quoted_table
from officegrid.data.sql.troubles import exists_already

Mode = Literal["create", "append", "upsert", "replace"]
MODES: tuple[Mode, ...] = ("create", "append", "upsert", "replace")
RECORD = "og_record"  # the column of a staging table that numbers the records from 0
DELIVERIES = "officegrid_deliveries"
LONGEST_DELIVERY_ID = 190

_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_ ]*(?:\(\d+(?:, ?\d+)?\)[A-Za-z0-9_ ]*)?(?:\[\])?")


@dataclass(frozen=True)
class Target:
    """`columns` are those of the records; None takes them from the records themselves.

    `types` gives SQL types to some columns of a table that is created; the others are text.
    """

    table: str
    mode: Mode
    key: tuple[str, ...] = ()
    null: str = ""
    columns: tuple[str, ...] | None = None
    types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """One column of a table that is there. `scale` counts digits behind the point (decimals)."""

    name: str
    kind: Kind
    declared: str
    nullable: bool = True
    has_default: bool = False
    generated: bool = False
    scale: int | None = None


@dataclass(frozen=True, slots=True)
class TargetTable:
    columns: tuple[TargetColumn, ...]
    unique: tuple[tuple[str, ...], ...]  # columns of each unique index over whole columns


def check_target(target: Target, dialect: Dialect, delivery_id: str) -> None:
    """What is wrong whatever the database holds. Raises UsageError."""
    if target.mode not in MODES:
        raise UsageError(
            f"There is no output mode {target.mode!r}.", fix=f"Use one of {', '.join(MODES)}."
        )
    quoted_table(target.table, dialect)
    check_null(target.null)
    if target.mode == "upsert" and not target.key:
        raise UsageError(
            'mode = "upsert" needs a key.',
            "Its columns tell which row of the table a record replaces.",
            'Set [output] key = ["id"].',
        )
    if target.mode != "upsert" and target.key:
        raise UsageError(f'mode = "{target.mode}" takes no key.', fix='Use mode = "upsert".')
    for name, declared in target.types.items():
        if not _TYPE.fullmatch(declared):
            raise UsageError(
                f"The type {declared!r} of column {name!r} cannot be used.",
                fix='Write an SQL type such as "BIGINT", "DECIMAL(10,2)" or "VARCHAR(40)".',
            )
    if not delivery_id or len(delivery_id) > LONGEST_DELIVERY_ID or not delivery_id.isprintable():
        raise UsageError(f"A delivery id has 1 to {LONGEST_DELIVERY_ID} printable characters.")


def staging_name(delivery_id: str, what: str = "stage") -> str:
    """`og_stage_…`, the same for the same delivery; short enough for every database."""
    return f"og_{what}_{hashlib.sha256(delivery_id.encode()).hexdigest()[:20]}"


def plan(
    target: Target, table: TargetTable | None, names: Sequence[str], dialect: Dialect
) -> list[str]:
    """The columns to fill, as the table spells them, one for each of `names`.

    Raises ConflictError and InputError for everything that can be known before loading.
    """
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise InputError(f"The records have two columns named {twice[0]!r}.")
    if table is None:
        if target.mode in ("append", "upsert"):
            raise InputError(
                f"There is no table {target.table}.",
                f'mode = "{target.mode}" adds to a table that is there.',
                'Create it, or use mode = "create".',
            )
        if not names:
            raise InputError(
                f"The table {target.table} cannot be created: its columns are not known.",
                "There is no record to take them from.",
                "Name them in [output] columns.",
            )
        return list(names)
    if target.mode == "create":
        raise exists_already(target.table)
    filled = [_find(target, table, name, dialect).name for name in names]
    _check_missing(target, table, filled)
    if target.mode == "upsert":
        _check_key(target, table, filled, dialect)
    return filled


def _find(target: Target, table: TargetTable, name: str, dialect: Dialect) -> TargetColumn:
    for column in table.columns:
        same = column.name == name or (
            dialect != "postgresql" and column.name.casefold() == name.casefold()
        )
        if same and column.generated:
            raise InputError(
                f"Column {name!r} of {target.table} is computed by the database.",
                "It cannot be filled.",
                "Leave it out of the output.",
            )
        if same:
            return column
    known = ", ".join(column.name for column in table.columns)
    raise InputError(
        f"The table {target.table} has no column {name!r}, which the output has.",
        f"Its columns are {known}.",
        "Leave the column out ([output] columns), or add it to the table.",
    )


def _check_missing(target: Target, table: TargetTable, filled: Sequence[str]) -> None:
    for column in table.columns:
        left_out = column.name not in filled and not column.generated
        if left_out and not column.nullable and not column.has_default:
            raise InputError(
                f"The output has no column {column.name!r}, which {target.table} needs.",
                "That column is NOT NULL and has no default.",
                "Give it in every record, or give it a default in the database.",
            )


def _check_key(target: Target, table: TargetTable, filled: Sequence[str], dialect: Dialect) -> None:
    key = [_find(target, table, name, dialect).name for name in target.key]
    for name in key:
        if name not in filled:
            raise InputError(f"The output has no column {name!r}, which is part of the key.")
    if not any(set(unique) == set(key) for unique in table.unique):
        known = "; ".join(", ".join(unique) for unique in table.unique) or "none"
        raise InputError(
            f"The table {target.table} has no unique index over exactly {', '.join(key)}.",
            f"Only such an index keeps one row per key. Its unique indexes: {known}.",
            "Create a unique index or a primary key over these columns, or name the right key.",
        )
