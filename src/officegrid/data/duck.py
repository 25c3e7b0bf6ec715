"""DuckDB, the optional part that reads and writes Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from officegrid.core.errors import UsageError

if TYPE_CHECKING:
    import duckdb

_MEMORY_MB = 512


def connect() -> duckdb.DuckDBPyConnection:
    """A private in-memory connection with bounded memory. Raises UsageError without duckdb."""
    try:
        import duckdb
    except ImportError:
        raise UsageError(
            "Parquet files need DuckDB, which is not installed.",
            "It is left out of the basic installation because of its size.",
            "Install it with `pip install officegrid[parquet]`.",
        ) from None
    connection = duckdb.connect(
        config={"threads": 2, "memory_limit": f"{_MEMORY_MB}MB", "preserve_insertion_order": True}
    )
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def name(identifier: str) -> str:
    """An SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """An SQL string."""
    return "'" + value.replace("'", "''") + "'"
