"""What a query gives: its columns, their kinds, and how to tell in words that they changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from officegrid.core.errors import InputError

Kind = Literal[
    "integer", "decimal", "float", "boolean", "text", "blob", "date", "time",
    "timestamp", "timestamptz", "json", "bit", "other",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """`kind` says how values are written; `declared` is the database's own type, for people."""

    name: str
    kind: Kind
    declared: str = ""


def check_names(columns: Sequence[Column]) -> None:
    """Raises InputError where two columns have one name, or there are none."""
    if not columns:
        raise InputError("The query gives no columns.", "A record needs at least one.")
    seen: set[str] = set()
    for column in columns:
        if column.name in seen:
            raise InputError(
                f"The query gives two columns named {column.name!r}.",
                "Fields of a record are found by their names.",
                f"Name one of them otherwise: SELECT … AS {column.name}2.",
            )
        seen.add(column.name)


def schema_digest(columns: Sequence[Column]) -> str:
    """SHA-256, as hex, of names, kinds and types in order: equal for equal schemas only."""
    plain = [[column.name, column.kind, column.declared] for column in columns]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()


def schema_change(old: Sequence[Column], new: Sequence[Column]) -> str:
    """What is different, in words; "" if nothing is."""
    before = {column.name: column for column in old}
    after = {column.name: column for column in new}
    said = [f"column {name} is gone" for name in before if name not in after]
    said += [f"column {name} ({_type(after[name])}) is new" for name in after if name not in before]
    for name in before:
        if name in after and before[name] != after[name]:
            said.append(f"column {name} was {_type(before[name])} and is {_type(after[name])}")
    both = [name for name in before if name in after]
    if not said and both != [name for name in after if name in before]:
        said.append(f"the columns are in another order: {', '.join(after)}")
    return "; ".join(said)


def _type(column: Column) -> str:
    return column.declared or column.kind
