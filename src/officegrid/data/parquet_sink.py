"""NDJSON records to a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from officegrid.core.errors import InputError, UnavailableError, UsageError
from officegrid.data.duck import connect, name, text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_LEAST_OBJECT_BYTES = 16 * 1024 * 1024
# Formats that no text has: without them DuckDB would make dates of strings that look like some.
_INFER = (
    "sample_size = -1, map_inference_threshold = -1, "
    "dateformat = 'never %Y', timestampformat = 'never %Y'"
)


def write_parquet(
    target: Path,
    spool: Path,
    batches: Iterable[tuple[bytes, list[str]]],
    columns: list[str] | None,
    *,
    typed: bool,
) -> int:
    """Write batches of (NDJSON, names of its columns) to `target`; returns the number of rows.

    `typed` takes the types of the JSON values, strings staying text; otherwise all columns are
    text. `columns=None` means every column there is. `spool` is a free name for the records
    while they are gathered. Raises UsageError without DuckDB or for names Parquet cannot hold,
    InputError for records that DuckDB cannot read.
    """
    connection = connect()
    try:
        named, longest = _gather(spool, batches)
        wanted = list(named) if columns is None and not typed else columns
        _check_names(wanted)
        limit = max(longest + 1024, _LEAST_OBJECT_BYTES)
        if typed and longest:
            select = _typed_select(connection, spool, limit, wanted)
        elif wanted:
            types = ", ".join(f"{text(column)}: 'VARCHAR'" for column in wanted)
            select = f"SELECT * FROM {_rows(spool, limit, f'columns = {{{types}}}')}"
        else:
            raise InputError(
                "There are no records, so the columns of the Parquet file are not known.",
                "A Parquet file has at least one column.",
                "Name the columns in [output] columns, or write NDJSON.",
            )
        return _copy(connection, select, target)
    finally:
        connection.close()


def _gather(spool: Path, batches: Iterable[tuple[bytes, list[str]]]) -> tuple[dict[str, None], int]:
    """Puts all records on disk; returns their columns in order and the longest record's bytes."""
    named: dict[str, None] = {}
    longest = 0
    with spool.open("xb") as file:
        for data, columns in batches:
            named.update(dict.fromkeys(columns))
            longest = max(longest, max(map(len, data.split(b"\n"))))
            file.write(data)
    return named, longest


def _check_names(columns: list[str] | None) -> None:
    seen: dict[str, str] = {}
    for column in columns or []:
        other = seen.setdefault(column.casefold(), column)
        if other != column:
            raise UsageError(
                f"Parquet output cannot have both columns {other!r} and {column!r}.",
                "DuckDB, which writes it, takes names that differ only in case for the same.",
                "Rename one of them, or write CSV or NDJSON.",
            )


def _rows(spool: Path, limit_bytes: int, reading: str) -> str:
    return (
        f"read_json({text(str(spool))}, format = 'newline_delimited', "
        f"compression = 'none', maximum_object_size = {limit_bytes}, {reading})"
    )


def _typed_select(
    connection: DuckDBPyConnection, spool: Path, limit_bytes: int, wanted: list[str] | None
) -> str:
    rows = _rows(spool, limit_bytes, _INFER)
    if wanted is None:
        return f"SELECT * FROM {rows}"
    found = connection.sql(f"SELECT * FROM {rows}").columns
    picks = (
        name(column) if column in found else f"NULL::VARCHAR AS {name(column)}" for column in wanted
    )
    return f"SELECT {', '.join(picks)} FROM {rows}"


def _copy(connection: DuckDBPyConnection, select: str, target: Path) -> int:
    import duckdb

    try:
        done = connection.execute(
            f"COPY ({select}) TO {text(str(target))} (FORMAT parquet, COMPRESSION zstd)"
        ).fetchone()
    except duckdb.IOException as error:
        raise UnavailableError(
            "The Parquet file cannot be written.",
            str(error).splitlines()[0],
            "Check the space and the permissions of the output's disk, then run it again.",
        ) from error
    except duckdb.Error as error:
        raise InputError(
            "The records cannot be written as Parquet.",
            str(error).splitlines()[0],
            "Give every record the same keys and types, or write NDJSON.",
        ) from error
    return int(done[0]) if done else 0
