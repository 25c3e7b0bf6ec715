"""Messages about records: datasets, blocks, programs' input and output.

A *block* is an object in the store: one zstd frame holding whole records, named by the
SHA-256 of the compressed bytes. A dataset is an ordered list of block slices; that list is
its sparse record→byte index. Text in blocks is always UTF-8 as far as the source was; CSV
blocks hold rows only, the header lives in `columns`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Format = Literal["csv", "ndjson", "lines"]
FileFormat = Literal["csv", "ndjson", "lines", "parquet"]


class Message(BaseModel):
    """Base of everything on the wire: unknown keys are ignored so that releases can overlap."""

    model_config = ConfigDict(extra="ignore")


class BlockSlice(Message):
    """`length` raw bytes from `offset` of one block, holding `records` whole records."""

    sha256: Sha256
    stored_bytes: int = Field(ge=0)
    raw_bytes: int = Field(ge=0, description="size of the whole block when decompressed")
    offset: int = Field(default=0, ge=0)
    length: int = Field(ge=0)
    records: int = Field(ge=0)
    columns: list[str] | None = Field(default=None, description="CSV only: names of the columns")


class Layout(Message):
    """How the records inside the blocks are written."""

    format: Format = "csv"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    quote: str = Field(default='"', min_length=1, max_length=1)
    header: bool = True
    columns: list[str] | None = None


class DatasetSpec(Message):
    """A dataset as the client uploads it; its id is the SHA-256 of its canonical JSON."""

    layout: Layout
    records: int = Field(ge=0)
    source: str = Field(default="", description="where it came from, for people")
    blocks: list[BlockSlice]
