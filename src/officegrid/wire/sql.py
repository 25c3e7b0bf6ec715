"""Messages about databases: a query as input, a table as output."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from officegrid.wire.catalogue import VersionName
from officegrid.wire.data import Message

SqlText = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
TableName = Annotated[str, StringConstraints(min_length=1, max_length=300)]
NullText = Annotated[str, StringConstraints(max_length=100)]
"""What stands for NULL in CSV."""
KeyColumns = Annotated[list[str], Field(max_length=64)]
ColumnTypes = Annotated[dict[str, str], Field(max_length=1000)]


class QueryInput(Message):
    """What the coordinator reads when the job starts: exactly one of `sql` and `table`."""

    source: VersionName
    sql: SqlText | None = None
    table: TableName | None = None
    format: Literal["csv", "ndjson"] = "csv"
    null: NullText = Field(default="", description="text of NULL in CSV")
    schema_change: Literal["hold", "accept"] = Field(
        default="hold", description="what to do when the columns are not those of the last run"
    )
    max_record_bytes: int = Field(default=64 * 1024 * 1024, ge=1)


class TableOutput(Message):
    """Where the coordinator puts the output when the job has finished."""

    source: VersionName
    table: TableName
    mode: Literal["create", "append", "upsert", "replace"] = "create"
    key: KeyColumns = Field(default_factory=list)
    null: NullText = ""
    types: ColumnTypes = Field(default_factory=dict)


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
