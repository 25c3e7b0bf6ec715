"""What each database's reader does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from officegrid.core.errors import InputError
from officegrid.data.cutter import Chunk
from officegrid.data.sql.columns import Column


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read and how to write it; either `sql` or `table`."""

    sql: str | None = None
    table: str | None = None
    format: Literal["csv", "ndjson"] = "csv"
    null: str = ""
    chunk_bytes: int = 1024 * 1024
    max_record_bytes: int = 64 * 1024 * 1024


class Reader(ABC):
    """One open connection inside one snapshot, its query begun: columns are known.

    All methods raise OfficeGridError only.
    """

    columns: list[Column]
    warnings: list[str]

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """All records, once."""

    @abstractmethod
    def close(self) -> None:
        """At any moment; never raises."""


def too_long(record: int, limit_bytes: int) -> InputError:
    return InputError(
        f"Record {record} of the query is longer than {limit_bytes} bytes.",
        "Records are handled whole, so their size is limited.",
        "Leave large columns out of the query, or raise [input] max_record.",
    )
