"""The ledger's operations: each maps a tiling of `[0, N)` to a tiling of `[0, N)`.

Every function takes a `LedgerView` (what may be looked at) and returns an `Edit` (what changes);
nothing is changed here. The caller stores the edit in the transaction in which it read the view.
Why it is safe against frozen, thawed, cloned and late workers: the only way to `DONE` is
`commit`, and `commit` accepts a range only while every record of it is still open to that lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from officegrid.core.errors import InternalError
from officegrid.core.ledger_view import LedgerView
from officegrid.core.model import (
    CommitOutcome,
    CommitResult,
    Edit,
    Lease,
    LeaseState,
    Span,
    SpanState,
)

_REVIVABLE = frozenset({LeaseState.EXPIRED, LeaseState.RELEASED})


def claim(
    view: LedgerView,
    *,
    machine: str,
    lease_id: str,
    now: float,
    lease_s: float,
    size: int,
    continue_at: int | None = None,
    expected_s: float = 0.0,
    deaths_below: int | None = None,
) -> tuple[Lease, Edit] | None:
    """Lease up to `size` pending records to `machine`; None when nothing is pending.

    `continue_at` is where this machine's last unit ended: carrying on there keeps its input
    sequential and the finished spans few. With `deaths_below`, also None when as many machines
    have died on the records that come next: they go to a machine that has nothing else to lose.
    """
    if size < 1:
        raise InternalError(f"A unit of {size} records was asked for.")
    place = _place(view, machine, size, continue_at)
    if place is None:
        return None
    span, start = place
    if deaths_below is not None and span.attempts >= deaths_below:
        return None
    end = min(start + size, span.end)
    lease = Lease(lease_id, start, end, machine, now + lease_s, now, now, expected_s)
    leased = Span(start, end, SpanState.LEASED, span.attempts)
    rest = [
        Span(a, b, SpanState.PENDING, span.attempts)
        for a, b in ((span.start, start), (end, span.end))
        if a < b
    ]
    pieces = tuple(sorted([*rest, leased]))
    return lease, Edit(remove=(span,), insert=pieces, leases=(lease,))


def _place(
    view: LedgerView, machine: str, size: int, continue_at: int | None
) -> tuple[Span, int] | None:
    if continue_at is not None and continue_at < view.total:
        here = view.span_at(continue_at)
        if here.state is SpanState.PENDING and here.start == continue_at:
            return here, continue_at
    span = view.largest_pending()
    if span is None:
        return None
    # Another machine works right before this span and will want to carry on into it: leave it
    # the front half and start in the middle.
    before = view.live_leases_over(span.start - 1, span.start) if span.start > 0 else []
    followed = any(lease.machine != machine for lease in before)
    if followed and span.length >= 2 * size:
        return span, span.start + span.length // 2
    return span, span.start


def commit(
    view: LedgerView,
    *,
    lease_id: str,
    start: int,
    end: int,
    quarantined: Sequence[int],
    digest: str,
    committed_digest: str | None,
) -> CommitResult:
    """Turn a leased range into done and quarantined records, once.

    `quarantined`: ascending record numbers inside `[start, end)`. `digest` identifies the content
    of this commit, `committed_digest` that of the commit already stored for this lease, if any.
    A commit under an expired or released lease still counts while its whole range is pending.
    """
    lease = view.lease(lease_id)
    if lease is None:
        return _refused("this lease was never given for this job")
    if (lease.start, lease.end) != (start, end):
        return _refused(f"the lease is for records {lease.start} to {lease.end - 1}")
    if lease.state is LeaseState.COMMITTED:
        if committed_digest == digest:
            return CommitResult(CommitOutcome.REPEATED)
        return _refused("this lease has already committed different content")
    if lease.state is LeaseState.SUPERSEDED:
        return _refused("another worker committed these records first, or the job was stopped")
    _check_ascending(quarantined, start, end)

    spans = view.spans_over(start, end)
    if lease.state in _REVIVABLE and any(s.state is not SpanState.PENDING for s in spans):
        return _refused("the lease had ended and the records went to another worker")
    if lease.state is LeaseState.LIVE:
        _check_exactly_leased(spans, lease)
    losers = [
        replace(other, state=LeaseState.SUPERSEDED)
        for other in view.live_leases_over(start, end)
        if other.id != lease_id
    ]
    leases = (replace(lease, state=LeaseState.COMMITTED), *losers)
    edit = _settle(view, spans, start, end, quarantined)
    return CommitResult(CommitOutcome.COMMITTED, replace(edit, leases=leases))


def _settle(
    view: LedgerView, spans: list[Span], start: int, end: int, quarantined: Sequence[int]
) -> Edit:
    """Replace `[start, end)`, covered by `spans`, by done and quarantined pieces."""
    remove = list(spans)
    pieces: list[Span] = []
    at = start
    for record in quarantined:
        if at < record:
            pieces.append(Span(at, record, SpanState.DONE))
        pieces.append(Span(record, record + 1, SpanState.QUARANTINED))
        at = record + 1
    if at < end:
        pieces.append(Span(at, end, SpanState.DONE))

    first, last = spans[0], spans[-1]
    insert: list[Span] = []
    if first.start < start:
        insert.append(replace(first, end=start))
    elif pieces[0].state is SpanState.DONE and start > 0:
        before = view.span_at(start - 1)
        if before.state is SpanState.DONE:
            remove.insert(0, before)
            pieces[0] = replace(pieces[0], start=before.start)
    if last.end > end:
        tail = [replace(last, start=end)]
    else:
        tail = []
        if pieces[-1].state is SpanState.DONE and end < view.total:
            after = view.span_at(end)
            if after.state is SpanState.DONE:
                remove.append(after)
                pieces[-1] = replace(pieces[-1], end=after.end)
    return Edit(remove=tuple(remove), insert=(*insert, *pieces, *tail))


def release(
    view: LedgerView, *, lease_id: str, fault: bool, attempts: int, ended: LeaseState
) -> Edit | None:
    """End a live lease without a result; None when it is not live.

    `ended` is RELEASED or EXPIRED. With `fault` the machine is to blame: the records count one
    more dead machine, and after `attempts` of them the span is bisected, down to the single
    record that kills machines, which is quarantined (the caller writes down why).
    """
    lease = view.lease(lease_id)
    if lease is None or lease.state is not LeaseState.LIVE:
        return None
    span = view.span_at(lease.start)
    _check_exactly_leased([span], lease)
    over = (replace(lease, state=ended),)
    deaths = span.attempts + (1 if fault else 0)
    if any(other.id != lease_id for other in view.live_leases_over(span.start, span.end)):
        kept = replace(span, attempts=deaths)
        return Edit(remove=(span,), insert=(kept,), leases=over)
    if fault and span.length > 1 and deaths >= attempts:
        return Edit((span,), _halves(span, attempts), over)
    if fault and span.length == 1 and deaths >= _patience(span, attempts):
        return Edit((span,), (Span(span.start, span.end, SpanState.QUARANTINED),), over)
    return replace(_give_back(view, span, deaths), leases=over)


def _halves(span: Span, attempts: int) -> tuple[Span, Span]:
    # Halves keep a count of `attempts`: one more death splits a half again at once, so a killer
    # among N records is cornered after `attempts` + log2(N) deaths; and whoever gives a half back
    # unharmed does not make it grow together with its neighbours, which would undo the search.
    middle = span.start + span.length // 2
    return (
        Span(span.start, middle, SpanState.PENDING, attempts),
        Span(middle, span.end, SpanState.PENDING, attempts),
    )


def _patience(span: Span, attempts: int) -> int:
    """How many deaths a single record may have caused. One that a search has cornered gets all
    its attempts anew, so that a machine lost by chance does not condemn an innocent record."""
    return 2 * attempts if span.attempts >= attempts else attempts


def _give_back(view: LedgerView, span: Span, deaths: int) -> Edit:
    back = Span(span.start, span.end, SpanState.PENDING, deaths)
    remove = [span]
    if deaths == 0:  # suspicious spans stay apart, clean ones grow together again
        if span.start > 0:
            before = view.span_at(span.start - 1)
            if before.state is SpanState.PENDING and before.attempts == 0:
                remove.insert(0, before)
                back = replace(back, start=before.start)
        if span.end < view.total:
            after = view.span_at(span.end)
            if after.state is SpanState.PENDING and after.attempts == 0:
                remove.append(after)
                back = replace(back, end=after.end)
    return Edit(remove=tuple(remove), insert=(back,))


def revive(view: LedgerView, *, lease_id: str, now: float, lease_s: float) -> Edit | None:
    """Make an expired lease live again while its whole range is still pending, else None.

    This is what a worker that was frozen asks for before it goes on. A lease that the worker gave
    back itself stays ended: a renewal of it was under way when it did.
    """
    lease = view.lease(lease_id)
    if lease is None or lease.state is not LeaseState.EXPIRED:
        return None
    spans = view.spans_over(lease.start, lease.end)
    if any(s.state is not SpanState.PENDING for s in spans):
        return None
    insert = [Span(lease.start, lease.end, SpanState.LEASED, max(s.attempts for s in spans))]
    if spans[0].start < lease.start:
        insert.insert(0, replace(spans[0], end=lease.start))
    if spans[-1].end > lease.end:
        insert.append(replace(spans[-1], start=lease.end))
    live = replace(lease, state=LeaseState.LIVE, deadline=now + lease_s, renewed_at=now)
    return Edit(remove=tuple(spans), insert=tuple(insert), leases=(live,))


def duplicate(
    view: LedgerView,
    *,
    machine: str,
    lease_id: str,
    now: float,
    lease_s: float,
    silent_s: float,
    records_per_s: float | None,
) -> tuple[Lease, Edit] | None:
    """A second lease on the slowest or silent span, or None if none is worth it.

    Worth it means: nothing else holds that span twice, another machine holds it, and it is
    either silent (no renewal for `silent_s`) or so late that starting over here at
    `records_per_s` should still be quicker than waiting for it.
    """
    slow = [
        lease
        for lease in late_leases(view, now=now, silent_s=silent_s)
        if lease.machine != machine and _is_worth_it(lease, now, silent_s, records_per_s)
    ]
    if not slow:
        return None
    worst = min(slow, key=lambda lease: (lease.claimed_at + lease.expected_s, lease.start))
    expected_s = worst.length / records_per_s if records_per_s else worst.expected_s
    twin = Lease(lease_id, worst.start, worst.end, machine, now + lease_s, now, now, expected_s)
    return twin, Edit(leases=(twin,))


def late_leases(view: LedgerView, *, now: float, silent_s: float) -> list[Lease]:
    """Live leases that nobody shares and that are silent or well over their expected time."""
    return [
        lease
        for lease in view.live_leases()
        if (
            now - lease.renewed_at > silent_s
            or (lease.expected_s > 0 and now - lease.claimed_at > 1.5 * lease.expected_s + 2.0)
        )
        and len(view.live_leases_over(lease.start, lease.end)) == 1
    ]


def _is_worth_it(lease: Lease, now: float, silent_s: float, records_per_s: float | None) -> bool:
    if now - lease.renewed_at > silent_s:
        return True
    # Late, but alive: start over only if that takes less time than it has already had.
    return bool(records_per_s) and now - lease.claimed_at > lease.length / (records_per_s or 1.0)


def recall(view: LedgerView) -> Edit:
    """End every lease of the job for good (it was cancelled): late commits are refused."""
    leases = view.live_leases()
    spans = {view.span_at(lease.start) for lease in leases}
    return Edit(
        remove=tuple(sorted(spans)),
        insert=tuple(replace(s, state=SpanState.PENDING) for s in sorted(spans)),
        leases=tuple(replace(lease, state=LeaseState.SUPERSEDED) for lease in leases),
    )


def retry(spans: Sequence[Span]) -> Edit:
    """Make quarantined spans pending again. `spans`: adjacent ones are joined into one."""
    joined: list[Span] = []
    for span in spans:
        if span.state is not SpanState.QUARANTINED:
            raise InternalError(f"Only quarantined records can be retried, not {span}.")
        if joined and joined[-1].end == span.start:
            joined[-1] = replace(joined[-1], end=span.end)
        else:
            joined.append(Span(span.start, span.end, SpanState.PENDING))
    return Edit(remove=tuple(spans), insert=tuple(joined))


def _refused(reason: str) -> CommitResult:
    return CommitResult(CommitOutcome.REFUSED, reason=reason)


def _check_ascending(records: Sequence[int], start: int, end: int) -> None:
    last = start - 1
    for record in records:
        if not last < record < end:
            raise InternalError(
                f"Quarantined record {record} is out of order or outside {start} to {end - 1}."
            )
        last = record


def _check_exactly_leased(spans: Sequence[Span], lease: Lease) -> None:
    exact = len(spans) == 1 and (spans[0].start, spans[0].end) == (lease.start, lease.end)
    if not exact or spans[0].state is not SpanState.LEASED:
        raise InternalError(f"The live lease {lease} does not match its spans {list(spans)}.")
