"""What must hold of every edit, every tiling and every set of leases. Pure checks.

Each function raises InternalError with the spans concerned: a broken invariant is a bug of ours,
never of the caller's data, and the operation that caused it must not reach the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from officegrid.core.errors import InternalError
from officegrid.core.model import Edit, Lease, LeaseState, Span, SpanState

_REPORT = "Please report this with the text above; the operation was undone."
_by_start = attrgetter("start")


@dataclass(frozen=True, slots=True)
class TilingReport:
    """What a correct tiling looks like: span and record counts, and joins not yet compacted.

    `uncompacted_done` counts places where a done span touches the next done span,
    `uncompacted_pending` the same for pending spans with equal attempts. Both are allowed.
    """

    spans: int
    records: dict[SpanState, int]
    uncompacted_done: int
    uncompacted_pending: int


def broken(what: str, why: str = "") -> InternalError:
    """The error for a broken ledger invariant, ready to raise."""
    return InternalError(what, why, _REPORT)


def check_edit(edit: Edit) -> None:
    """`remove` and `insert` must cover exactly the same records, neither overlapping itself.

    Raises InternalError with the ranges of both sides.
    """
    if _replaces_one_span(edit):
        return
    removed = _covered(edit.remove, "removed")
    inserted = _covered(edit.insert, "inserted")
    if removed != inserted:
        raise broken(
            "A ledger edit would lose or invent records.",
            f"It removes {_ranges(removed)} and inserts {_ranges(inserted)}.",
        )


def _replaces_one_span(edit: Edit) -> bool:
    """Quick yes for nearly all edits: one span becomes a row of spans, or nothing changes."""
    if len(edit.remove) != 1:
        return not edit.remove and not edit.insert
    old = edit.remove[0]
    position = old.start
    if position < 0 or old.attempts < 0:
        return False
    for span in edit.insert:
        if span.start != position or span.end <= position or span.attempts < 0:
            return False
        position = span.end
    return position == old.end and position > old.start


def _covered(spans: Sequence[Span], side: str) -> list[tuple[int, int]]:
    """The records under `spans` as maximal ranges."""
    merged: list[tuple[int, int]] = []
    for span in sorted(spans, key=_by_start) if len(spans) > 1 else spans:
        start, end = span.start, span.end
        if start < 0 or end <= start or span.attempts < 0:
            raise broken("A ledger edit holds an impossible span.", f"{side}: {span}.")
        if not merged or start > merged[-1][1]:
            merged.append((start, end))
        elif start == merged[-1][1]:
            merged[-1] = (merged[-1][0], end)
        else:
            raise broken(
                "A ledger edit holds overlapping spans.",
                f"{side}: {span} begins before record {merged[-1][1]}.",
            )
    return merged


def _ranges(covered: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"[{start}, {end})" for start, end in covered) or "nothing"


def check_tiling(spans: Iterable[Span], total: int) -> TilingReport:
    """The spans, in order, must cover `[0, total)` with no gap and no overlap.

    Raises InternalError naming the first span that does not fit.
    """
    records = dict.fromkeys(SpanState, 0)
    count = joined_done = joined_pending = position = 0
    before: Span | None = None
    for span in spans:
        if span.start != position:
            kind = "gap" if span.start > position else "overlap"
            raise broken(
                f"The ledger has a {kind} at record {min(span.start, position)}.",
                f"The span before ends at {position}, then comes {span}.",
            )
        if span.end <= span.start or span.attempts < 0:
            raise broken("The ledger holds an impossible span.", f"It is {span}.")
        if before is not None and before.state == span.state:
            joined_done += span.state == SpanState.DONE
            joined_pending += span.state == SpanState.PENDING and before.attempts == span.attempts
        records[span.state] += span.length
        count += 1
        position, before = span.end, span
    if position != total:
        raise broken(
            f"The ledger ends at record {position} instead of {total}.", f"Last span: {before}."
        )
    return TilingReport(count, records, joined_done, joined_pending)


def check_leases(spans: Iterable[Span], leases: Iterable[Lease]) -> None:
    """Each live lease covers exactly one leased span; each leased span has a live lease.

    Leases that are not live are ignored. Raises InternalError naming the odd one out.
    """
    leased = {(s.start, s.end) for s in spans if s.state == SpanState.LEASED}
    held: set[tuple[int, int]] = set()
    for lease in leases:
        if lease.state != LeaseState.LIVE:
            continue
        if (lease.start, lease.end) not in leased:
            raise broken("A live lease does not cover a leased span.", f"It is {lease}.")
        held.add((lease.start, lease.end))
    orphans = sorted(leased - held)
    if orphans:
        raise broken("Leased records belong to no live lease.", f"They are {_ranges(orphans)}.")
