"""Rows as dataclasses: what `storage.api` takes and gives.

Times are seconds since the epoch; ranges of records are half open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from officegrid.core.jobs import JobState
from officegrid.wire.data import BlockSlice, Layout


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the job table. `spec` is the submitted job as JSON (wire.jobs.JobSpec)."""

    id: str
    name: str
    state: JobState
    spec: dict[str, Any]
    dataset: str | None  # None while the job waits for another job's output
    bundle: str | None
    priority: int
    total: int
    submitter: str
    created_at: float
    pending: int = 0
    leased: int = 0
    done: int = 0
    quarantined: int = 0
    live_leases: int = 0
    records_out: int = 0
    units: int = 0  # commits accepted
    generation: int = 0  # retry rounds
    reason: str = ""  # why it is held, waiting, cancelled
    started_at: float | None = None
    ended_at: float | None = None
    template: str | None = None  # the scheduled job that started this run


@dataclass(frozen=True, slots=True)
class Dataset:
    id: str
    layout: Layout
    records: int
    raw_bytes: int
    blocks: int
    source: str
    created_at: float


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A block slice and the number of its first record in the dataset."""

    start: int
    slice: BlockSlice


@dataclass(frozen=True, slots=True)
class Gap:
    """Where a quarantined record's output would go inside its part."""

    record: int
    block: int
    offset: int
    rows_before: int


@dataclass(frozen=True, slots=True)
class Part:
    """The committed output of one unit. `digest` identifies the commit's content."""

    job: str
    start: int
    end: int
    generation: int
    lease_id: str
    machine: str
    digest: str
    bundle: str | None
    blocks: tuple[BlockSlice, ...]
    gaps: tuple[Gap, ...]
    records_out: int
    compute_s: float
    committed_at: float


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One quarantined record; `raw` is its bytes (at most 64 KiB are kept)."""

    job: str
    record: int
    error: str
    attempts: int
    raw: bytes
    raw_cut: bool
    machine: str
    at: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer or a person's client, as the coordinator knows it. The token is kept hashed."""

    id: str
    name: str
    role: str
    token_hash: str
    created_at: float
    facts: dict[str, Any] = field(default_factory=dict)
    session: str = ""
    last_seen: float = 0.0
    state: str = "new"
    revoked: bool = False
    host: str | None = None
    """Of a worker in a desktop's VM: the machine id of that desktop's agent."""
    status: dict[str, Any] = field(default_factory=dict)
    """Of an agent: its last report and what makes reports count once; see the service."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Of an agent: `core.deskstats.to_plain`."""
    drain: bool = False
    """The admin takes it out of service."""
    cloned_from: str | None = None
    """Of a worker that woke up as a copy: the machine it is a copy of."""


@dataclass(frozen=True, slots=True)
class JoinCode:
    code_hash: str
    role: str
    uses_left: int
    expires_at: float
    created_at: float
    host: str | None = None
    """The agent whose worker joins with this code."""


@dataclass(frozen=True, slots=True)
class Image:
    """A pushed worker image. `spec` is its wire.images.ImageSpec as JSON, `rollout` what
    `core.rollout` remembers of it."""

    id: str
    version: int
    name: str
    state: str
    spec: dict[str, Any]
    created_at: float
    pushed_by: str
    rollout: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageUse:
    """What one desktop last said about one image."""

    image: str
    machine: str
    state: str
    at: float
    text: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """Version `n` (from 1) of a program folder ("code") or reference data ("data") of that name.

    `digest` names its archive; of code it is the bundle. Versions are never changed; going back
    makes a new one with an old digest. `gone`: its content was cleaned up."""

    kind: str
    name: str
    n: int
    digest: str
    created_at: float
    pushed_by: str
    origin: str = ""
    """Where it came from, for people: a folder, a commit, a query."""
    file_name: str = ""
    """Of data that is one file: what programs see it as."""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Archive:
    """Content that versions stand for. `spec` is its wire.archives.ArchiveSpec as JSON."""

    digest: str
    kind: str
    raw_bytes: int
    stored_bytes: int
    spec: dict[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class Delta:
    """The way from archive `old` to `new`. `spec` is its wire.archives.DeltaSpec as JSON."""

    new: str
    old: str
    spec: dict[str, Any]
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class PinnedData:
    """One entry of a job's [data]: version `n` of `name`, as archive `digest`."""

    name: str
    n: int
    digest: str
    file_name: str = ""
    load: str = ""
    """"mariadb": a dump that workers load into their local server."""


@dataclass(frozen=True, slots=True)
class JobPin:
    """What a job runs from `at` on: pin 0 when it starts, a higher one after each switch.

    `data` is by the key that the job file gives it."""

    job: str
    pin: int
    bundle: str | None
    code_version: int | None
    data: dict[str, PinnedData]
    at: float
    why: str


@dataclass(frozen=True, slots=True)
class JobMark:
    """What the clean-up has to know of every job: little, because they are many."""

    id: str
    state: JobState
    ended_at: float | None
    quarantined: int
    dataset: str | None
    bundle: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """The output of one generation of a job on its way into a table."""

    job: str
    generation: int
    state: str
    attempts: int = 0
    rows: int = 0
    text: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Measured speed of one machine on one job; `last_end` is where its last unit ended."""

    machine: str
    job: str
    records_per_s: float
    last_size: int
    last_end: int


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a story. `subject` is a job or machine id; `n` orders events."""

    n: int
    at: float
    subject: str
    kind: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
