"""Messages about versions of program folders and reference data, and which of them jobs ran."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from officegrid.wire.archives import ArchiveSpec, DeltaSpec
from officegrid.wire.data import Message, Sha256

Kind = Literal["code", "data"]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
MOST_NAME_CHARS = 200
VersionName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=MOST_NAME_CHARS)
]


def is_name(text: str) -> bool:
    """Is it written like a name, however long? No line break may follow it either."""
    return re.fullmatch(NAME_PATTERN, text) is not None


DataKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=60)]
"""What a job calls an entry of its data; in capitals a part of an environment variable."""


def colliding(keys: Iterable[str]) -> str:
    """Two of the keys that are one in capitals, in words; empty if there are none."""
    seen: dict[str, str] = {}
    for key in keys:
        if key.upper() in seen:
            return f"{seen[key.upper()]!r} and {key!r} are the same in capitals"
        seen[key.upper()] = key
    return ""


class CodeRef(Message):
    """Whose code a job runs: of version `n`, or of the newest one when the job starts."""

    name: VersionName
    n: int | None = Field(default=None, ge=1)


class DataRef(Message):
    """Reference data of a job, likewise. `load`: what workers do with it beside keeping it."""

    name: VersionName
    n: int | None = Field(default=None, ge=1)
    load: Literal["", "mariadb"] = ""


class VersionPush(Message):
    """A new version, whose content is in the store already."""

    digest: Sha256
    origin: str = Field(default="", max_length=1000, description="where it came from, for people")


FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]{0,200}$")]


class DataPush(Message):
    """A new version of a data set, whose pieces are in the store already."""

    spec: ArchiveSpec
    origin: str = Field(default="", max_length=1000)
    file_name: FileName = Field(default="", description="of a file: what programs see it as")


class FetchWay(Message):
    """The cheapest way to an archive: apply `deltas` in turn to `start`, which the asker has; with
    neither, fetch it whole. `spec` is None for a bundle, which is one object of its own name."""

    digest: Sha256
    start: Sha256 | None = None
    deltas: list[DeltaSpec] = Field(default_factory=list)
    spec: ArchiveSpec | None = None
    bytes: int = Field(description="what travels")


class RollBack(Message):
    """Make an earlier version the newest again: `to`, else the one before."""

    to: int | None = Field(default=None, ge=1)


class VersionView(Message):
    kind: Kind
    name: str
    n: int
    digest: Sha256
    created_at: float
    pushed_by: str
    origin: str = ""
    file_name: str = ""
    gone: bool = Field(default=False, description="its content was cleaned up")
    newest: bool = Field(default=False, description="what a job that starts now would get")
    lost: bool = Field(
        default=False,
        description="of the newest data of one name: the store lacks a part; push it again",
    )
    trouble: str = Field(default="", description="why its source could not be looked at last time")
    raw_bytes: int | None = None
    stored_bytes: int | None = None
    new: bool = Field(default=True, description="of a push: False if it was the newest already")
    switched_jobs: list[str] = Field(
        default_factory=list, description="of a push: running jobs that follow this name"
    )


class SourceView(Message):
    """A data set that the coordinator gets from a source, and of which it has no version yet."""

    name: str
    looked_at: float | None = Field(default=None, description="null: not looked at so far")
    trouble: str = Field(default="", description="why the source gave nothing")


class VersionList(Message):
    versions: list[VersionView]
    sources: list[SourceView] = Field(
        default_factory=list, description="of data: what has a source and no version"
    )


class PinnedDataView(Message):
    name: str
    n: int
    digest: Sha256
    load: str = ""


class PinView(Message):
    """What a job ran from one moment on, and for which records."""

    pin: int
    at: float
    why: str
    bundle: Sha256 | None = None
    code_name: str | None = None
    code_version: int | None = None
    data: dict[str, PinnedDataView] = Field(default_factory=dict)
    records: int = 0
    ranges: list[tuple[int, int]] = Field(
        default_factory=list, description="half open, in order; at most 1,000 are listed"
    )


class LineageMachine(Message):
    id: str
    name: str
    units: int
    records: int


class LineageUnit(Message):
    start: int
    end: int
    generation: int
    pin: int
    lease: str
    machine: str
    digest: str
    committed_at: float


class Lineage(Message):
    """Where the output of a job comes from."""

    job: str
    name: str
    state: str
    submitter: str
    created_at: float
    ended_at: float | None = None
    input_digest: str | None = None
    input_source: str = ""
    input_job: str | None = None
    records: int
    records_out: int
    quarantined: int
    program: str
    pins: list[PinView]
    machines: list[LineageMachine]
    rerun_of: str | None = None


class LineageUnits(Message):
    units: list[LineageUnit]
    next_record: int | None = None
