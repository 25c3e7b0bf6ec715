"""The nouns of the ledger: spans, leases, edits. Frozen data, no behaviour beyond arithmetic.

Record numbers start at 0; every range is half open: `[start, end)`.
Times are seconds since the epoch as the caller's clock sees them (`now` is always an argument).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class SpanState(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    QUARANTINED = "quarantined"


class LeaseState(StrEnum):
    LIVE = "live"
    EXPIRED = "expired"  # ran out of time, or the desktop yielded; may live again or be committed
    RELEASED = "released"  # given back by the worker; a commit may still count
    COMMITTED = "committed"
    SUPERSEDED = "superseded"  # somebody else committed the span, or the job ended


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A run of records in one state. `attempts` counts the machines that died on it."""

    start: int
    end: int
    state: SpanState
    attempts: int = 0

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to commit exactly `[start, end)`; `id` is the fencing token."""

    id: str
    start: int
    end: int
    machine: str
    deadline: float
    claimed_at: float
    renewed_at: float
    expected_s: float = 0.0  # how long the unit should take at this machine's measured rate
    state: LeaseState = LeaseState.LIVE

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Edit:
    """What one ledger operation changes: a tiling goes in, a tiling comes out.

    `remove` and `insert` cover exactly the same records (checked by `invariants.check_edit`).
    `leases` are new or changed leases, to be stored by id.
    """

    remove: tuple[Span, ...] = ()
    insert: tuple[Span, ...] = ()
    leases: tuple[Lease, ...] = ()

    def delta(self) -> dict[SpanState, int]:
        """Records gained (+) or lost (-) by each state."""
        totals = dict.fromkeys(SpanState, 0)
        for span in self.insert:
            totals[span.state] += span.length
        for span in self.remove:
            totals[span.state] -= span.length
        return totals


class CommitOutcome(StrEnum):
    COMMITTED = "committed"  # the first commit of this span: it counts
    REPEATED = "repeated"  # the same commit again (its acknowledgement was lost): answered alike
    REFUSED = "refused"  # the span is done or leased otherwise: the work is discarded


@dataclass(frozen=True, slots=True)
class CommitResult:
    outcome: CommitOutcome
    edit: Edit = field(default_factory=Edit)
    reason: str = ""
