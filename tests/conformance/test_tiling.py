"""The invariants and the in-memory ledger that storage modules are compared with."""

from __future__ import annotations

import pytest

from officegrid.core.errors import InternalError
from officegrid.core.invariants import check_edit, check_leases, check_tiling
from officegrid.core.model import Edit, Span, SpanState
from officegrid.core.tiling import MemoryLedger
from officegrid.testing import storage_edits as edits

P, L, D, Q = SpanState.PENDING, SpanState.LEASED, SpanState.DONE, SpanState.QUARANTINED


@pytest.mark.parametrize(
    ("remove", "insert"),
    [
        ((), ()),
        ((Span(0, 10, P),), (Span(0, 4, D), Span(4, 10, P))),
        ((Span(0, 10, P),), (Span(4, 10, P), Span(0, 4, D))),
        ((Span(5, 10, P), Span(0, 5, D)), (Span(0, 10, D),)),
        ((Span(0, 2, P), Span(8, 9, P)), (Span(8, 9, D), Span(0, 2, D))),
    ],
)
def test_balanced_edits_pass(remove: tuple[Span, ...], insert: tuple[Span, ...]) -> None:
    check_edit(Edit(remove, insert))


@pytest.mark.parametrize(
    ("remove", "insert"),
    [
        ((Span(0, 10, P),), ()),
        ((), (Span(0, 10, P),)),
        ((Span(0, 10, P),), (Span(0, 9, D),)),
        ((Span(0, 10, P),), (Span(0, 4, D), Span(5, 10, P))),
        ((Span(0, 10, P),), (Span(0, 6, D), Span(5, 10, P))),
        ((Span(0, 10, P),), (Span(0, 11, D),)),
        ((Span(0, 10, P), Span(9, 12, P)), (Span(0, 12, D),)),
        ((Span(0, 0, P),), (Span(0, 0, D),)),
        ((Span(-1, 5, P),), (Span(-1, 5, D),)),
        ((Span(0, 5, P),), (Span(0, 5, P, -1),)),
        ((Span(0, 5, P),), (Span(0, 7, D), Span(7, 5, P))),
    ],
)
def test_unbalanced_edits_fail(remove: tuple[Span, ...], insert: tuple[Span, ...]) -> None:
    with pytest.raises(InternalError):
        check_edit(Edit(remove, insert))


def test_a_tiling_is_checked_and_counted() -> None:
    spans = [Span(0, 2, D), Span(2, 5, D), Span(5, 6, P), Span(6, 8, P), Span(8, 9, P, 1)]
    report = check_tiling([*spans, Span(9, 10, Q), Span(10, 12, L)], 12)
    assert (report.spans, report.uncompacted_done, report.uncompacted_pending) == (7, 1, 1)
    assert report.records == {P: 4, L: 2, D: 5, Q: 1}
    assert check_tiling([], 0).spans == 0


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([Span(0, 2, D), Span(3, 5, D)], "gap at record 2"),
        ([Span(0, 3, D), Span(2, 5, D)], "overlap at record 2"),
        ([Span(1, 5, D)], "gap at record 0"),
        ([Span(0, 4, D)], "ends at record 4"),
        ([Span(0, 6, D)], "ends at record 6"),
        ([Span(0, 0, D), Span(0, 5, D)], "impossible"),
    ],
)
def test_a_broken_tiling_fails(spans: list[Span], words: str) -> None:
    with pytest.raises(InternalError, match=words):
        check_tiling(spans, 5)


def test_leases_must_match_leased_spans() -> None:
    spans = [Span(0, 5, L), Span(5, 9, P)]
    twice = [edits.new_lease("a", 0, 5), edits.new_lease("b", 0, 5)]
    check_leases(spans, twice)
    with pytest.raises(InternalError, match="no live lease"):
        check_leases(spans, [])
    with pytest.raises(InternalError, match="does not cover"):
        check_leases(spans, [*twice, edits.new_lease("c", 5, 9)])
    with pytest.raises(InternalError, match="does not cover"):
        check_leases(spans, [edits.new_lease("a", 0, 4)])


def test_the_memory_ledger_is_all_or_nothing() -> None:
    ledger = MemoryLedger(10)
    lease = edits.new_lease("a", 2, 6)
    ledger.apply(edits.claim(ledger.span_at(0), lease))
    before = ledger.spans()
    assert before == [Span(0, 2, P), Span(2, 6, L), Span(6, 10, P)]
    stale = Edit((Span(0, 2, P), Span(2, 6, P)), (Span(0, 6, D),), (edits.new_lease("b", 0, 6),))
    with pytest.raises(InternalError, match="not as the operation assumed"):
        ledger.apply(stale)
    assert ledger.spans() == before
    assert ledger.lease("b") is None
    ledger.apply(edits.commit(ledger, lease, {3}))
    assert ledger.spans() == [
        Span(0, 2, P),
        Span(2, 3, D),
        Span(3, 4, Q),
        Span(4, 6, D),
        Span(6, 10, P),
    ]
    assert ledger.live_leases() == []
    assert ledger.largest_pending() == Span(6, 10, P)
    assert ledger.check().spans == 5
    for outside in (-1, 10):
        with pytest.raises(InternalError):
            ledger.span_at(outside)
