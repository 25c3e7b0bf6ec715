"""One job's ledger in memory: the reference that storage modules are compared with.

It favours being obviously right over being quick: `largest_pending` looks at every span.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable

from officegrid.core.invariants import (
    TilingReport,
    broken,
    check_edit,
    check_leases,
    check_tiling,
)
from officegrid.core.model import Edit, Lease, LeaseState, Span, SpanState


class MemoryLedger:
    """A tiling of `[0, total)` and its leases; implements `core.ledger_view.LedgerView`.

    Without `spans` it starts as one pending span. Raises InternalError if `spans` do not tile
    `[0, total)`.
    """

    def __init__(
        self, total: int, spans: Iterable[Span] | None = None, leases: Iterable[Lease] = ()
    ) -> None:
        if spans is None:
            spans = [Span(0, total, SpanState.PENDING)] if total > 0 else []
        ordered = list(spans)
        check_tiling(ordered, total)
        self._total = total
        self._starts = [span.start for span in ordered]
        self._spans = {span.start: span for span in ordered}
        self._leases = {lease.id: lease for lease in leases}

    @property
    def total(self) -> int:
        """Number of records."""
        return self._total

    def span_at(self, record: int) -> Span:
        """The span that holds `record`. Raises InternalError outside `[0, total)`."""
        if not 0 <= record < self._total:
            raise broken(f"Record {record} is outside the ledger of {self._total} records.")
        return self._spans[self._starts[bisect_right(self._starts, record) - 1]]

    def spans_over(self, start: int, end: int) -> list[Span]:
        """All spans that overlap `[start, end)`, in order."""
        if start >= end:
            return []
        first = max(0, bisect_right(self._starts, start) - 1)
        found = (self._spans[at] for at in self._starts[first:] if at < end)
        return [span for span in found if span.end > start]

    def largest_pending(self) -> Span | None:
        """The longest pending span; the lowest start among equals."""
        pending = [s for s in self.spans() if s.state == SpanState.PENDING]
        return max(pending, key=lambda span: (span.length, -span.start), default=None)

    def lease(self, lease_id: str) -> Lease | None:
        """Any lease ever given, live or not."""
        return self._leases.get(lease_id)

    def live_leases(self) -> list[Lease]:
        """All live leases, by (start, id)."""
        live = [lease for lease in self._leases.values() if lease.state == LeaseState.LIVE]
        return sorted(live, key=lambda lease: (lease.start, lease.id))

    def live_leases_over(self, start: int, end: int) -> list[Lease]:
        """Live leases that overlap `[start, end)`, by (start, id)."""
        if start >= end:
            return []
        return [lease for lease in self.live_leases() if lease.start < end and lease.end > start]

    def spans(self) -> list[Span]:
        """The whole tiling in order."""
        return [self._spans[start] for start in self._starts]

    def counters(self) -> dict[SpanState, int]:
        """Records in each state."""
        totals = dict.fromkeys(SpanState, 0)
        for span in self._spans.values():
            totals[span.state] += span.length
        return totals

    def apply(self, edit: Edit) -> None:
        """Carry out an edit. Raises InternalError, changing nothing, if it is not a valid edit
        of this tiling (`check_edit`, and every removed span present exactly as stated)."""
        check_edit(edit)
        for span in edit.remove:
            present = self._spans.get(span.start)
            if present != span:
                raise broken(
                    "The ledger is not as the operation assumed.",
                    f"It expected {span} and found {present}.",
                )
        for span in edit.remove:
            del self._spans[span.start]
            del self._starts[bisect_right(self._starts, span.start) - 1]
        for span in edit.insert:
            self._spans[span.start] = span
            insort(self._starts, span.start)
        self._leases.update((lease.id, lease) for lease in edit.leases)

    def check(self) -> TilingReport:
        """Verify the tiling and the leases. Raises InternalError when an invariant is broken."""
        report = check_tiling(self.spans(), self._total)
        check_leases(self.spans(), self._leases.values())
        return report
