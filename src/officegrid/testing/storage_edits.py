"""Ledger edits for the storage conformance suite: plain ones, made without `core`'s policies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from officegrid.core.jobs import JobState
from officegrid.core.ledger_view import LedgerView
from officegrid.core.model import Edit, Lease, LeaseState, Span, SpanState
from officegrid.storage.api import Job, Part
from officegrid.wire.data import BlockSlice


def new_job(job_id: str, total: int, **changes: object) -> Job:
    """A running job without a dataset."""
    job = Job(job_id, "job", JobState.RUNNING, {"k": ["v"]}, None, None, 0, total, "ann", 1.0)
    return replace(job, **changes)  # type: ignore[arg-type]


def new_lease(lease_id: str, start: int, end: int, machine: str = "m1", at: float = 10.0) -> Lease:
    """A live lease of 60 s."""
    return Lease(lease_id, start, end, machine, at + 60.0, at, at, 30.0)


def claim(span: Span, lease: Lease) -> Edit:
    """Carve the lease's records off a pending span."""
    pieces = [
        Span(span.start, lease.start, SpanState.PENDING, span.attempts),
        Span(lease.start, lease.end, SpanState.LEASED, span.attempts),
        Span(lease.end, span.end, SpanState.PENDING, span.attempts),
    ]
    return Edit((span,), tuple(piece for piece in pieces if piece.length > 0), (lease,))


def commit(view: LedgerView, lease: Lease, bad: Collection[int] = ()) -> Edit:
    """The lease's records become done, those in `bad` quarantined; done neighbours are joined."""
    around = view.spans_over(max(0, lease.start - 1), min(view.total, lease.end + 1))
    own = next(span for span in around if span.start == lease.start)
    remove = [own]
    pieces: list[Span] = []
    for record in range(own.start, own.end):
        state = SpanState.QUARANTINED if record in bad else SpanState.DONE
        if pieces and pieces[-1].state == state:
            pieces[-1] = replace(pieces[-1], end=record + 1)
        else:
            pieces.append(Span(record, record + 1, state))
    for span in around:
        if span.state == SpanState.DONE == pieces[0].state and span.end == own.start:
            pieces[0] = replace(pieces[0], start=span.start)
            remove.insert(0, span)
        if span.state == SpanState.DONE == pieces[-1].state and span.start == own.end:
            pieces[-1] = replace(pieces[-1], end=span.end)
            remove.append(span)
    ended = [
        replace(x, state=LeaseState.COMMITTED if x.id == lease.id else LeaseState.SUPERSEDED)
        for x in view.live_leases_over(lease.start, lease.end)
    ]
    return Edit(tuple(remove), tuple(pieces), tuple(ended))


def release(view: LedgerView, lease: Lease, state: LeaseState, fault: int) -> Edit:
    """End a lease; its records are pending again once no other live lease covers them."""
    ended = replace(lease, state=state)
    if len(view.live_leases_over(lease.start, lease.end)) > 1:
        return Edit(leases=(ended,))
    span = view.span_at(lease.start)
    back = replace(span, state=SpanState.PENDING, attempts=span.attempts + fault)
    return Edit((span,), (back,), (ended,))


def retry(span: Span) -> Edit:
    """Quarantined records become pending again."""
    return Edit((span,), (Span(span.start, span.end, SpanState.PENDING),))


def new_block(number: int, records: int = 10, columns: list[str] | None = None) -> BlockSlice:
    """A block slice whose name is derived from `number`."""
    return BlockSlice(
        sha256=f"{number:064x}",
        stored_bytes=number + 1,
        raw_bytes=number + 2,
        offset=3,
        length=number + 4,
        records=records,
        columns=columns,
    )


def new_part(job: str, start: int, end: int, lease_id: str, generation: int = 0) -> Part:
    """A part with one block, one output record per input record."""
    blocks = (new_block(start, end - start, ["a", "b"]),)
    rest = (blocks, (), end - start, 1.5, 20.0)
    return Part(job, start, end, generation, lease_id, "m1", f"digest-{lease_id}", None, *rest)
