"""What a ledger operation may look at. Storage modules and the in-memory tiling implement it."""

from __future__ import annotations

from typing import Protocol

from officegrid.core.model import Lease, Span


class LedgerView(Protocol):
    """Read access to one job's tiling of `[0, total)` and its leases."""

    @property
    def total(self) -> int:
        """Number of records N."""

    def span_at(self, record: int) -> Span:
        """The span that holds `record` (0 <= record < total)."""

    def spans_over(self, start: int, end: int) -> list[Span]:
        """All spans that overlap `[start, end)`, in order."""

    def largest_pending(self) -> Span | None:
        """The longest pending span; the lowest start among equals."""

    def lease(self, lease_id: str) -> Lease | None:
        """Any lease ever given for this job, live or not."""

    def live_leases_over(self, start: int, end: int) -> list[Lease]:
        """Live leases that overlap `[start, end)`, by (start, id)."""

    def live_leases(self) -> list[Lease]:
        """All live leases of the job, by (start, id)."""
