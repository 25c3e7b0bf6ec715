"""Messages about databases: a query as input, a table as output."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from officegrid.wire.catalogue import VersionName
from officegrid.wire.data import Message

MOST_SQL_CHARS = 100_000


class QueryInput(Message):
    """What the coordinator reads when the job starts: exactly one of `sql` and `table`."""

    source: VersionName
    sql: str | None = Field(default=None, min_length=1, max_length=MOST_SQL_CHARS)
    table: str | None = Field(default=None, min_length=1, max_length=300)
    format: Literal["csv", "ndjson"] = "csv"
    null: str = Field(default="", max_length=100, description="text of NULL in CSV")
    schema_change: Literal["hold", "accept"] = Field(
        default="hold", description="what to do when the columns are not those of the last run"
    )
    max_record_bytes: int = Field(default=64 * 1024 * 1024, ge=1)


class TableOutput(Message):
    """Where the coordinator puts the output when the job has finished."""

    source: VersionName
    table: str = Field(min_length=1, max_length=300)
    mode: Literal["create", "append", "upsert", "replace"] = "create"
    key: list[str] = Field(default_factory=list, max_length=64)
    null: str = Field(default="", max_length=100)
    types: dict[str, str] = Field(default_factory=dict, max_length=1000)


class DeliveryView(Message):
    """The output on its way into its table."""

    state: Literal["pending", "done", "failed"]
    source: str
    table: str
    mode: str
    rows: int = 0
    attempts: int = 0
    text: str = Field(default="", description="what went wrong last")
    at: float = 0.0
