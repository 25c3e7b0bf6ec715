"""The storage interface: what the coordinator asks of a database.

One module per database implements it (`sqlite`; PostgreSQL later); one conformance suite
(`officegrid.testing.storage_conformance`) is the contract, with `core` as the oracle.
No method here exposes SQL. All writes happen inside a transaction (`Tx`); when
`Storage.write_many` returns, what succeeded is on disk (fsync), what raised left no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from officegrid.core.jobs import JobState
from officegrid.core.ledger_view import LedgerView
from officegrid.core.model import Edit, Lease
from officegrid.storage.model import (
    Archive,
    Dataset,
    Delivery,
    Delta,
    Event,
    Gap,
    Image,
    ImageUse,
    Job,
    JobMark,
    JobPin,
    JoinCode,
    Machine,
    Part,
    PinnedData,
    PlacedBlock,
    Quarantined,
    Rate,
    Version,
)

__all__ = [
    "Archive",
    "Dataset",
    "Delivery",
    "Delta",
    "Done",
    "Event",
    "Gap",
    "Image",
    "ImageUse",
    "Job",
    "JobMark",
    "JobPin",
    "JoinCode",
    "Machine",
    "Part",
    "PinnedData",
    "PlacedBlock",
    "Quarantined",
    "Rate",
    "Storage",
    "Tx",
    "Version",
]

T = TypeVar("T")


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

    # versions of code and data, and what jobs pinned
    def add_version(self, version: Version) -> None:
        """Raises ConflictError if the number is taken."""

    def version(self, kind: str, name: str, n: int | None = None) -> Version | None:
        """Version `n`, else the newest that is not gone."""

    def versions(self, kind: str, *, name: str | None = None, limit: int = 1000) -> list[Version]:
        """By name, newest first; those that are gone too."""

    def versions_with(self, digest: str) -> list[Version]:
        """All that stand for this content, by kind, name and number."""

    def set_version_gone(self, kind: str, name: str, n: int) -> None: ...

    def put_archive(self, archive: Archive) -> None:
        """Insert or replace by digest."""

    def archive(self, digest: str) -> Archive | None: ...
    def archives(self) -> list[Archive]:
        """By digest."""

    def drop_archive(self, digest: str) -> None:
        """With all deltas from and to it."""

    def put_delta(self, delta: Delta) -> None:
        """Insert or replace by (new, old)."""

    def deltas_to(self, new: str) -> list[Delta]:
        """The deltas that lead to this archive, by old digest."""

    def deltas(self) -> list[Delta]: ...

    def add_pin(self, pin: JobPin) -> None:
        """Raises ConflictError if the job has a pin of that number. Its archives are the job's
        from now on."""

    def pin(self, job_id: str, number: int | None = None) -> JobPin | None:
        """Pin `number` of the job, else its newest."""

    def pins(self, job_id: str) -> list[JobPin]:
        """In order."""

    def jobs_with_archive(self, digest: str) -> list[str]:
        """Ids of the jobs that any pin of theirs names it."""

    def lease_may_use(self, machine: str, archive: str) -> bool:
        """Does a job pin this archive that `machine` holds a live lease of?"""

    # output on its way into tables
    def put_delivery(self, delivery: Delivery) -> None:
        """Insert or replace by (job, generation)."""

    def delivery(self, job_id: str, generation: int) -> Delivery | None: ...
    def deliveries(self, states: Iterable[str]) -> list[Delivery]:
        """In these states, oldest first."""

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
    def settings(self) -> list[tuple[str, str]]:
        """All (key, value), by key."""

    # what refers to what, for the clean-up
    def job_marks(self, using: str | None = None) -> list[JobMark]:
        """Of all jobs, by id; or of those that any pin of theirs names the archive `using`."""

    def jobs_archives(self) -> list[tuple[str, str]]:
        """(job id, digest) of everything that any pin of any job names."""

    def objects_of_parts(
        self, after: tuple[Any, ...], limit: int
    ) -> tuple[list[str], tuple[Any, ...] | None]:
        """(digests in the next `limit` parts, where the page after that begins; None: nowhere).
        `after` is `()` at first, then what the last page gave."""

    def objects_of_datasets(
        self, after: tuple[Any, ...], limit: int, leaving: Collection[str] = ()
    ) -> tuple[list[str], tuple[Any, ...] | None]:
        """Likewise, in `limit` blocks of datasets, but for those of the datasets `leaving`."""

    def objects_of_images(
        self, after: tuple[Any, ...], limit: int
    ) -> tuple[list[str], tuple[Any, ...] | None]:
        """Likewise, in `limit` chunks of images."""

    def unused_datasets(self, before: float) -> list[str]:
        """Ids of those registered before that time that are no job's input."""

    def touch_dataset(self, dataset_id: str, at: float) -> None:
        """Somebody is about to use it: it counts as registered at `at`, if that is later."""

    def drop_dataset(self, dataset_id: str, before: float) -> bool:
        """Forget a dataset if it is among `unused_datasets(before)`. Its blocks are left over."""

    def drop_job(self, job_id: str) -> None:
        """Forget an ended job. Its ledger, output, quarantine, story and leases are left over."""

    def drop_left_over_of_job(self, job_id: str, limit: int) -> int:
        """Forget at most `limit` rows of a job that was dropped, but for its leases, and for
        events of the kind "removed". Returns how many; 0: nothing is left."""

    def lone_leases(self) -> list[str]:
        """Ids of the leases of jobs that were dropped."""

    def drop_leases(self, lease_ids: Sequence[str]) -> None:
        """Forget those of these leases whose job was dropped."""

    def left_over_datasets(self) -> list[str]:
        """Ids of datasets that were dropped and have blocks left."""

    def drop_left_over_blocks(self, dataset_id: str, limit: int) -> int:
        """Forget at most `limit` blocks of a dataset that was dropped. Returns how many."""


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
