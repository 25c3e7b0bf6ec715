"""The storage interface: what the coordinator asks of a database.

One module per database implements it (`sqlite`; PostgreSQL later); one conformance suite
(`officegrid.testing.storage_conformance`) is the contract, with `core` as the oracle.
No method here exposes SQL. All writes happen inside a transaction (`Tx`); when
`Storage.write_many` returns, what succeeded is on disk (fsync), what raised left no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from officegrid.core.jobs import JobState
from officegrid.core.ledger_view import LedgerView
from officegrid.core.model import Edit, Lease
from officegrid.wire.data import BlockSlice, Layout

T = TypeVar("T")


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


class Tx(Protocol):
    """One transaction. Reads see its own writes."""

    # jobs and their ledgers
    def add_job(self, job: Job) -> None:
        """Insert the job; when `total` > 0, its ledger starts as one pending span `[0, total)`."""

    def job(self, job_id: str) -> Job | None: ...
    def jobs(
        self,
        *,
        states: Iterable[JobState] | None = None,
        name: str | None = None,
        limit: int = 1000,
    ) -> list[Job]:
        """Newest first."""

    def update_job(self, job_id: str, **changes: Any) -> None:
        """Set columns of one job: `state`, `reason`, `dataset`, `bundle`, `spec`, times and so on
        (never the counters that `apply` keeps). Setting `total` on a job whose ledger is empty
        starts its ledger."""

    def ledger(self, job_id: str) -> LedgerView: ...
    def apply(self, job_id: str, edit: Edit) -> None:
        """Carry out an edit: spans, leases (upsert by id), and the job's counters pending, leased,
        done, quarantined, live_leases. Raises InternalError, leaving no trace, if a span in
        `edit.remove` is not there exactly as stated."""

    def spans(self, job_id: str) -> Iterator[tuple[int, int, str, int]]:
        """(start, end, state, attempts) of all spans in order; for checks and displays."""

    def claimable_jobs(self) -> list[Job]:
        """Running jobs with pending > 0 or live leases."""

    # leases across jobs
    def lease_owner(self, lease_id: str) -> tuple[str, Lease] | None:
        """(job id, lease) for any lease ever given."""

    def expired_leases(self, now: float, limit: int = 500) -> list[tuple[str, Lease]]:
        """Live leases whose deadline is before `now`, oldest deadline first, with their job ids."""

    def live_leases_of(self, machine: str) -> list[tuple[str, Lease]]: ...
    def touch_leases(
        self, lease_ids: Sequence[str], machine: str, now: float, deadline: float
    ) -> list[str]:
        """Renew: of these, the live ones that belong to `machine` get the new deadline and
        `renewed_at = now`; returns their ids, in the order asked."""

    # parts and quarantine
    def add_part(self, part: Part) -> None:
        """Also adds to the job's `records_out` and `units`."""

    def part_of_lease(self, lease_id: str) -> Part | None: ...
    def parts(self, job_id: str, *, from_start: int = 0, limit: int = 500) -> list[Part]:
        """Parts that start at `from_start` or later, by (start, generation)."""

    def retried_parts(self, job_id: str, start: int, end: int) -> list[Part]:
        """Parts of generation > 0 that start in `[start, end)`, by (start, generation)."""

    def machines_of_job(self, job_id: str) -> list[tuple[str, int, int]]:
        """(machine id, units, records covered) of the job's parts."""

    def put_quarantined(self, rows: Sequence[Quarantined]) -> None:
        """Insert or replace by (job, record)."""

    def drop_quarantined(self, job_id: str, start: int, end: int) -> None: ...
    def quarantined(
        self, job_id: str, *, from_record: int = 0, limit: int = 500
    ) -> list[Quarantined]: ...

    # datasets
    def add_dataset(self, dataset: Dataset, blocks: Iterable[PlacedBlock]) -> None:
        """Idempotent by id."""

    def dataset(self, dataset_id: str) -> Dataset | None: ...
    def blocks_over(self, dataset_id: str, start: int, end: int) -> list[PlacedBlock]:
        """Blocks holding any of the records `[start, end)`, in order (empty blocks left out)."""

    def lease_may_read(self, machine: str, sha256: str) -> bool:
        """Is this object the bundle, or an input block, of a live lease of `machine`?"""

    # machines, codes, rates
    def put_machine(self, machine: Machine) -> None:
        """Insert or replace by id."""

    def machine(self, machine_id: str) -> Machine | None: ...
    def machine_by_token(self, token_hash: str) -> Machine | None: ...
    def machines(self) -> list[Machine]: ...
    def machines_on(self, host: str) -> list[Machine]:
        """The workers of the desktop whose agent is `host`, revoked or not, by id."""

    def touch_machine(self, machine_id: str, **changes: Any) -> None:
        """Set `session`, `last_seen`, `state`, `facts`, `name`, `revoked`, `status`, `stats`,
        `drain` or `cloned_from` of one machine."""

    def add_join_code(self, code: JoinCode) -> None: ...
    def use_join_code(self, code_hash: str, now: float) -> JoinCode | None:
        """Take one use of a valid code; None if unknown, used up or expired."""

    def drop_join_codes(self, host: str) -> None:
        """Forget all codes for the worker of this agent."""

    # images
    def put_image(self, image: Image, chunks: Iterable[str] = ()) -> None:
        """Insert or replace by id; `chunks` (digests) are added to those it has."""

    def image(self, image_id: str) -> Image | None: ...
    def images(self, *, limit: int = 100) -> list[Image]:
        """Newest version first."""

    def is_image_chunk(self, sha256: str) -> bool:
        """Is this object a piece of any image?"""

    def put_image_use(self, use: ImageUse) -> None:
        """Insert or replace by (image, machine)."""

    def image_uses(self, image_id: str) -> list[ImageUse]:
        """By machine."""

    def rate(self, machine: str, job: str) -> Rate | None: ...
    def put_rate(self, rate: Rate) -> None: ...
    def rates_of_job(self, job: str) -> list[Rate]: ...

    # story and settings
    def add_event(
        self, at: float, subject: str, kind: str, text: str, facts: dict[str, Any] | None = None
    ) -> None: ...
    def events(
        self, subject: str | None, *, after: int = 0, limit: int = 500, newest: bool = False
    ) -> list[Event]:
        """Oldest first from `n > after`; with `newest`, the last `limit` ones, oldest first.
        `subject=None` means all subjects."""

    def setting(self, key: str) -> str | None: ...
    def put_setting(self, key: str, value: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Done:
    """The result of one operation of a group commit: a value, or the error it raised."""

    value: Any = None
    error: BaseException | None = None


class Storage(Protocol):
    """A database. `write` and `write_many` must be called from one thread only: the writer's."""

    warnings: list[str]
    """What an admin should know about this database, in sentences."""

    def write(self, operation: Callable[[Tx], T]) -> T:
        """Run one operation in a transaction of its own, durable on return."""

    def write_many(self, operations: Sequence[Callable[[Tx], Any]]) -> list[Done]:
        """Run operations in order in ONE transaction and commit once. An operation that raises is
        rolled back alone (savepoint); the others stand. If the commit itself fails (disk full),
        every result is an UnavailableError and nothing was changed."""

    def read(self, operation: Callable[[Tx], T]) -> T:
        """Run read-only verbs on a consistent snapshot; any thread, beside the writer."""

    def close(self) -> None: ...
