"""Between table rows and the dataclasses of `storage.api`; no SQL is run here.

Reading functions take a tuple in the order of `select_list(kind)`; writing functions give a
tuple in the same order. JSON is compact; lists of column names are kept once per part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

from officegrid.core.jobs import JobState
from officegrid.core.model import Lease, LeaseState, Span, SpanState
from officegrid.storage.api import (
    Dataset,
    Event,
    Gap,
    Job,
    Machine,
    Part,
    PlacedBlock,
    Quarantined,
)
from officegrid.wire.data import BlockSlice, Layout

Row = tuple[Any, ...]

# Enum calls and `.value` cost more than a dictionary look-up on the paths run per unit.
_SPAN_STATES = {state.value: state for state in SpanState}
_LEASE_STATES = {state.value: state for state in LeaseState}
_JOB_STATES = {state.value: state for state in JobState}

to_json = json.JSONEncoder(separators=(",", ":"), sort_keys=False).encode
from_json = json.JSONDecoder().decode


def column_names(kind: type[Any]) -> list[str]:
    """The columns that hold the fields of a dataclass, in field order."""
    return [f.name for f in fields(kind)]


def select_list(kind: type[Any], prefix: str = "") -> str:
    """`"id", "start", …` for a SELECT or INSERT; `prefix` is a table alias."""
    dot = f"{prefix}." if prefix else ""
    return ", ".join(f'{dot}"{name}"' for name in column_names(kind))


def insert_sql(table: str, names: Sequence[str], verb: str = "INSERT") -> str:
    """An INSERT of the named columns with one `?` each."""
    listed = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join("?" * len(names))
    return f"{verb} INTO {table} ({listed}) VALUES ({marks})"


def upsert_sql(table: str, names: Sequence[str], key: Sequence[str]) -> str:
    """An INSERT that overwrites every other column when `key` is already there."""
    changes = ", ".join(f'"{n}" = excluded."{n}"' for n in names if n not in key)
    target = ", ".join(f'"{n}"' for n in key)
    return f"{insert_sql(table, names)} ON CONFLICT ({target}) DO UPDATE SET {changes}"


# ledger ------------------------------------------------------------------------------------


def to_span(row: Row) -> Span:
    """From (start, end, state, attempts)."""
    return Span(row[0], row[1], _SPAN_STATES[row[2]], row[3])


def to_lease(row: Row) -> Lease:
    """From the fields of Lease in order."""
    a, b, c, d, e, f, g, h, state = row
    return Lease(a, b, c, d, e, f, g, h, _LEASE_STATES[state])


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """Specs and facts are read at every claim and hardly ever change: parsed once, never
    written to."""
    return from_json(text)


def to_job(row: Row) -> Job:
    """From the fields of Job in order."""
    return Job(row[0], row[1], _JOB_STATES[row[2]], _parsed(row[3]), *row[4:])


def from_job(job: Job) -> Row:
    """The fields of Job in order."""
    values = [getattr(job, name) for name in column_names(Job)]
    values[2], values[3] = job.state.value, to_json(job.spec)
    return tuple(values)


# parts and quarantine ------------------------------------------------------------------------


def pack_blocks(blocks: Iterable[BlockSlice]) -> str:
    """`[[columns, …], [[sha256, stored, raw, offset, length, records, columns no.], …]]`."""
    numbers = ColumnLists()
    # Numbers and hexadecimal need no escaping; this is several times quicker than an encoder.
    packed = ",".join(
        f'["{b.sha256}",{b.stored_bytes},{b.raw_bytes},{b.offset},{b.length},{b.records},'
        f"{'null' if b.columns is None else numbers.number(b.columns)}]"
        for b in blocks
    )
    return f"[{to_json(numbers.lists) if numbers.lists else '[]'},[{packed}]]"


def unpack_blocks(packed: str) -> tuple[BlockSlice, ...]:
    """The inverse of `pack_blocks`."""
    lists, blocks = from_json(packed)
    return tuple(to_slice(block, lists) for block in blocks)


def to_slice(row: Sequence[Any], lists: Sequence[list[str]]) -> BlockSlice:
    """From (sha256, stored_bytes, raw_bytes, offset, length, records, number of its columns)."""
    number = row[6]
    return BlockSlice(
        sha256=row[0],
        stored_bytes=row[1],
        raw_bytes=row[2],
        offset=row[3],
        length=row[4],
        records=row[5],
        columns=None if number is None else lists[number],
    )


class ColumnLists:
    """Numbers the distinct lists of column names in the order they are met."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self._numbers: dict[tuple[str, ...], int] = {}

    def number(self, columns: list[str] | None) -> int | None:
        """The number of this list; None for None."""
        if columns is None:
            return None
        known = self._numbers.setdefault(tuple(columns), len(self.lists))
        if known == len(self.lists):
            self.lists.append(columns)
        return known


def to_part(row: Row) -> Part:
    """From the fields of Part in order."""
    a, b, c, d, e, f, g, h, blocks, packed, k, m, n = row
    gaps = tuple(Gap(*gap) for gap in from_json(packed)) if packed != "[]" else ()
    return Part(a, b, c, d, e, f, g, h, unpack_blocks(blocks), gaps, k, m, n)


def from_part(part: Part) -> Row:
    """The fields of Part in order."""
    gaps = [(g.record, g.block, g.offset, g.rows_before) for g in part.gaps]
    return (
        part.job,
        part.start,
        part.end,
        part.generation,
        part.lease_id,
        part.machine,
        part.digest,
        part.bundle,
        pack_blocks(part.blocks),
        to_json(gaps) if gaps else "[]",
        part.records_out,
        part.compute_s,
        part.committed_at,
    )


def to_quarantined(row: Row) -> Quarantined:
    """From the fields of Quarantined in order."""
    a, b, c, d, e, cut, g, h = row
    return Quarantined(a, b, c, d, e, bool(cut), g, h)


# the rest ------------------------------------------------------------------------------------


def to_dataset(row: Row) -> Dataset:
    """From the fields of Dataset in order."""
    return Dataset(row[0], Layout.model_validate_json(row[1]), *row[2:])


def from_dataset(dataset: Dataset) -> Row:
    """The fields of Dataset in order."""
    values = [getattr(dataset, name) for name in column_names(Dataset)]
    values[1] = dataset.layout.model_dump_json()
    return tuple(values)


def from_placed(dataset_id: str, placed: PlacedBlock, columns: int | None) -> Row:
    """One row of dataset_blocks, in table order."""
    s = placed.slice
    where = (dataset_id, placed.start, s.sha256, s.stored_bytes)
    return (*where, s.raw_bytes, s.offset, s.length, s.records, columns)


def to_machine(row: Row) -> Machine:
    """From the fields of Machine in order."""
    a, b, c, d, e, facts, g, h, i, revoked, host, status, stats, drain, cloned_from = row
    # Status and stats change with every report: remembering them parsed would push out the specs.
    return Machine(
        a, b, c, d, e, _parsed(facts), g, h, i, bool(revoked), host,
        {} if status == "{}" else from_json(status), {} if stats == "{}" else from_json(stats),
        bool(drain), cloned_from,
    )  # fmt: skip


def from_machine(machine: Machine) -> Row:
    """The fields of Machine in order."""
    names = column_names(Machine)
    values = [getattr(machine, name) for name in names]
    for name in ("facts", "status", "stats"):
        values[names.index(name)] = to_json(getattr(machine, name))
    return tuple(values)


def to_event(row: Row) -> Event:
    """From the fields of Event in order."""
    a, b, c, d, e, facts = row
    return Event(a, b, c, d, e, from_json(facts))
