"""The rules of the ledger, one sentence each."""

from __future__ import annotations

import pytest

from officegrid.core import ledger
from officegrid.core.errors import InternalError
from officegrid.core.model import CommitOutcome, Lease, LeaseState, Span, SpanState
from officegrid.core.tiling import MemoryLedger

P, L, D, Q = SpanState.PENDING, SpanState.LEASED, SpanState.DONE, SpanState.QUARANTINED
ATTEMPTS = 3


def _claim(
    book: MemoryLedger, lease_id: str, size: int, machine: str = "m1", now: float = 0.0,
    continue_at: int | None = None, expected_s: float = 10.0,
) -> Lease:  # fmt: skip
    got = ledger.claim(
        book, machine=machine, lease_id=lease_id, now=now, lease_s=30.0, size=size,
        continue_at=continue_at, expected_s=expected_s,
    )  # fmt: skip
    assert got is not None
    book.apply(got[1])
    book.check()
    return got[0]


def _commit(
    book: MemoryLedger, lease: Lease, bad: tuple[int, ...] = (), digest: str = "d",
    known: str | None = None,
) -> CommitOutcome:  # fmt: skip
    result = ledger.commit(
        book, lease_id=lease.id, start=lease.start, end=lease.end, quarantined=bad,
        digest=digest, committed_digest=known,
    )  # fmt: skip
    book.apply(result.edit)
    book.check()
    return result.outcome


def _end(
    book: MemoryLedger, lease_id: str, *, fault: bool, attempts: int = ATTEMPTS,
    ended: LeaseState = LeaseState.EXPIRED,
) -> None:  # fmt: skip
    edit = ledger.release(book, lease_id=lease_id, fault=fault, attempts=attempts, ended=ended)
    assert edit is not None
    book.apply(edit)
    book.check()


def _duplicate(
    book: MemoryLedger, machine: str, now: float, speed: float | None = 1.0
) -> Lease | None:
    got = ledger.duplicate(
        book, machine=machine, lease_id=f"twin-{machine}", now=now, lease_s=30.0, silent_s=20.0,
        records_per_s=speed,
    )  # fmt: skip
    if got is None:
        return None
    book.apply(got[1])
    book.check()
    return got[0]


def test_nothing_is_cut_in_advance() -> None:
    assert MemoryLedger(10**9).spans() == [Span(0, 10**9, P)]
    assert MemoryLedger(0).spans() == []


def test_a_claim_carves_a_unit_off_a_pending_span() -> None:
    book = MemoryLedger(100)
    lease = _claim(book, "a", 16)
    assert (lease.start, lease.end, lease.deadline) == (0, 16, 30.0)
    assert book.spans() == [Span(0, 16, L), Span(16, 100, P)]


def test_a_claim_of_more_than_there_is_gets_what_there_is() -> None:
    assert _claim(MemoryLedger(10), "a", 16).length == 10


def test_a_claim_when_nothing_is_pending_gets_nothing() -> None:
    book = MemoryLedger(10)
    _claim(book, "a", 10)
    got = ledger.claim(book, machine="m2", lease_id="b", now=0.0, lease_s=1.0, size=1)
    assert got is None


def test_a_worker_prefers_the_span_that_continues_its_last_one() -> None:
    book = MemoryLedger(100)
    first = _claim(book, "a", 10)
    _claim(book, "b", 10, machine="m2")
    _commit(book, first)
    assert _claim(book, "c", 5, continue_at=10).start == 10


def test_continuing_where_nothing_is_pending_takes_the_largest_span() -> None:
    book = MemoryLedger(100)
    _claim(book, "a", 10)
    assert _claim(book, "b", 5, continue_at=3).start == 10
    assert _claim(book, "c", 5, continue_at=100).start == 15


def test_a_newcomer_cuts_the_largest_span_in_the_middle() -> None:
    book = MemoryLedger(110)
    _claim(book, "a", 10)
    newcomer = _claim(book, "b", 10, machine="m2")
    assert newcomer.start == 60
    assert book.spans() == [Span(0, 10, L), Span(10, 60, P), Span(60, 70, L), Span(70, 110, P)]


def test_a_newcomer_leaves_a_small_rest_whole() -> None:
    book = MemoryLedger(29)
    _claim(book, "a", 10)
    assert _claim(book, "b", 10, machine="m2").start == 10


def test_a_commit_makes_its_records_done_and_the_bad_ones_quarantined() -> None:
    book = MemoryLedger(10)
    assert _commit(book, _claim(book, "a", 6), bad=(0, 3, 5)) is CommitOutcome.COMMITTED
    assert book.spans() == [
        Span(0, 1, Q), Span(1, 3, D), Span(3, 4, Q), Span(4, 5, D), Span(5, 6, Q), Span(6, 10, P),
    ]  # fmt: skip


def test_adjacent_done_spans_are_compacted() -> None:
    book = MemoryLedger(30)
    leases = [_claim(book, name, 10) for name in ("a", "b", "c")]
    for lease in (leases[0], leases[2], leases[1]):
        _commit(book, lease)
    assert book.spans() == [Span(0, 30, D)]


@pytest.mark.parametrize("bad", [(7,), (3, 3), (4, 2), (-1,)])
def test_quarantined_records_must_be_ascending_and_inside_the_unit(bad: tuple[int, ...]) -> None:
    book = MemoryLedger(10)
    with pytest.raises(InternalError):
        _commit(book, _claim(book, "a", 6), bad=bad)


def test_a_commit_for_another_range_is_refused() -> None:
    book = MemoryLedger(10)
    _claim(book, "a", 6)
    for start, end in ((0, 5), (0, 7), (1, 6)):
        result = ledger.commit(
            book, lease_id="a", start=start, end=end, quarantined=(), digest="d",
            committed_digest=None,
        )  # fmt: skip
        assert result.outcome is CommitOutcome.REFUSED
        assert "records 0 to 5" in result.reason


def test_a_repeated_commit_with_the_same_digest_is_answered_like_the_first() -> None:
    book = MemoryLedger(10)
    lease = _claim(book, "a", 6)
    _commit(book, lease, digest="d")
    before = book.spans()
    assert _commit(book, lease, digest="d", known="d") is CommitOutcome.REPEATED
    assert _commit(book, lease, digest="e", known="d") is CommitOutcome.REFUSED
    assert book.spans() == before


@pytest.mark.parametrize("ended", [LeaseState.EXPIRED, LeaseState.RELEASED])
def test_a_late_commit_counts_while_its_records_are_free(ended: LeaseState) -> None:
    book = MemoryLedger(30)
    lease = _claim(book, "a", 10)
    _end(book, "a", fault=ended is LeaseState.EXPIRED, ended=ended)
    assert _commit(book, lease) is CommitOutcome.COMMITTED
    assert book.span_at(0) == Span(0, 10, D)


def test_a_late_commit_is_refused_once_a_single_record_went_to_another_worker() -> None:
    book = MemoryLedger(10)
    late = _claim(book, "a", 10)
    _end(book, "a", fault=False, ended=LeaseState.RELEASED)
    other = _claim(book, "b", 1, machine="m2")
    assert _commit(book, late) is CommitOutcome.REFUSED
    _commit(book, other)
    assert _commit(book, late) is CommitOutcome.REFUSED


def test_a_clean_release_lets_pending_spans_grow_together_again() -> None:
    book = MemoryLedger(30)
    for name in ("a", "b", "c"):
        _claim(book, name, 10)
    for name in ("a", "c", "b"):
        _end(book, name, fault=False, ended=LeaseState.RELEASED)
    assert book.spans() == [Span(0, 30, P)]


def test_a_fault_counts_a_death_and_keeps_the_suspects_apart() -> None:
    book = MemoryLedger(30)
    _claim(book, "a", 10)
    _end(book, "a", fault=True)
    assert book.spans() == [Span(0, 10, P, 1), Span(10, 30, P)]


def test_releasing_what_is_not_live_changes_nothing() -> None:
    book = MemoryLedger(10)
    lease = _claim(book, "a", 10)
    _commit(book, lease)
    for lease_id in ("a", "unknown"):
        edit = ledger.release(
            book, lease_id=lease_id, fault=True, attempts=3, ended=LeaseState.EXPIRED
        )
        assert edit is None


def test_after_enough_deaths_a_span_is_bisected() -> None:
    book = MemoryLedger(10)
    for number in range(ATTEMPTS):
        _claim(book, f"a{number}", 10)
        _end(book, f"a{number}", fault=True)
    assert [(s.start, s.end, s.state) for s in book.spans()] == [(0, 5, P), (5, 10, P)]


def test_one_more_death_splits_a_half_at_once() -> None:
    book = MemoryLedger(8, [Span(0, 8, P, ATTEMPTS)])
    for size, ends in ((8, [4, 8]), (4, [2, 4, 8]), (2, [1, 2, 4, 8])):
        _claim(book, f"a{size}", size, continue_at=0)
        _end(book, f"a{size}", fault=True)
        assert [span.end for span in book.spans()] == ends


def test_a_cornered_record_gets_all_its_attempts_then_it_is_quarantined() -> None:
    book = MemoryLedger(1, [Span(0, 1, P, ATTEMPTS)])
    for number in range(ATTEMPTS):
        assert book.span_at(0).state is P
        _claim(book, f"a{number}", 1)
        _end(book, f"a{number}", fault=True)
    assert book.span_at(0) == Span(0, 1, Q)


def test_a_record_that_was_always_alone_is_quarantined_after_its_attempts() -> None:
    book = MemoryLedger(1)
    for number in range(ATTEMPTS):
        assert book.span_at(0).state is P
        _claim(book, f"a{number}", 1)
        _end(book, f"a{number}", fault=True)
    assert book.span_at(0) == Span(0, 1, Q)


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_giving_a_half_back_unharmed_does_not_undo_the_search(attempts: int) -> None:
    book = MemoryLedger(4, [Span(0, 4, P, attempts)])
    _claim(book, "a", 4)
    _end(book, "a", fault=True, attempts=attempts)
    halves = book.spans()
    assert len(halves) == 2
    for number, half in enumerate(halves):
        _claim(book, f"b{number}", half.length, continue_at=half.start)
        _end(book, f"b{number}", fault=False, attempts=attempts, ended=LeaseState.RELEASED)
    assert book.spans() == halves


def test_a_polite_release_never_quarantines() -> None:
    book = MemoryLedger(1, [Span(0, 1, P, 50)])
    _claim(book, "a", 1)
    _end(book, "a", fault=False, ended=LeaseState.RELEASED)
    assert book.span_at(0).state is P


def test_with_deaths_below_a_suspicious_span_is_not_given_out() -> None:
    book = MemoryLedger(5, [Span(0, 5, P, 2)])
    asked = {"machine": "m1", "lease_id": "a", "now": 0.0, "lease_s": 1.0, "size": 5}
    assert ledger.claim(book, **asked, deaths_below=2) is None  # type: ignore[arg-type]
    assert ledger.claim(book, **asked, deaths_below=3) is not None  # type: ignore[arg-type]


def test_a_frozen_worker_revives_its_lease_while_its_records_are_free() -> None:
    book = MemoryLedger(20)
    lease = _claim(book, "a", 10)
    _end(book, "a", fault=True)
    edit = ledger.revive(book, lease_id="a", now=100.0, lease_s=30.0)
    assert edit is not None
    book.apply(edit)
    book.check()
    alive = book.lease("a")
    assert alive is not None
    assert (alive.state, alive.deadline) == (LeaseState.LIVE, 130.0)
    assert _commit(book, lease) is CommitOutcome.COMMITTED


def test_a_released_or_overtaken_lease_is_not_revived() -> None:
    book = MemoryLedger(20)
    _claim(book, "a", 10)
    _end(book, "a", fault=False, ended=LeaseState.RELEASED)
    assert ledger.revive(book, lease_id="a", now=1.0, lease_s=30.0) is None
    _claim(book, "b", 10)
    _end(book, "b", fault=True)
    _claim(book, "c", 3, machine="m2", continue_at=0)
    assert ledger.revive(book, lease_id="b", now=1.0, lease_s=30.0) is None


def test_a_silent_span_gets_a_second_lease_and_the_first_commit_wins() -> None:
    book = MemoryLedger(10)
    first = _claim(book, "a", 10, now=0.0)
    assert _duplicate(book, "m2", now=10.0, speed=None) is None, "not silent yet"
    twin = _duplicate(book, "m2", now=21.0)
    assert twin is not None
    assert (twin.start, twin.end) == (0, 10)
    assert _duplicate(book, "m3", now=50.0) is None, "no third lease"
    assert _commit(book, twin) is CommitOutcome.COMMITTED
    loser = book.lease("a")
    assert loser is not None
    assert loser.state is LeaseState.SUPERSEDED
    assert _commit(book, first) is CommitOutcome.REFUSED


def test_a_machine_never_duplicates_its_own_unit() -> None:
    book = MemoryLedger(10)
    _claim(book, "a", 10)
    assert _duplicate(book, "m1", now=100.0) is None


def test_a_late_but_live_unit_is_duplicated_only_where_that_is_quicker() -> None:
    for speed, is_worth_it in ((10.0, True), (0.1, False), (None, False)):
        book = MemoryLedger(10)
        lease = _claim(book, "a", 10, now=0.0, expected_s=4.0)
        assert lease.expected_s == 4.0
        got = ledger.duplicate(
            book, machine="m2", lease_id="t", now=9.0, lease_s=30.0, silent_s=20.0,
            records_per_s=speed,
        )  # fmt: skip
        assert (got is not None) == is_worth_it, speed


def test_when_one_of_two_holders_dies_the_other_goes_on() -> None:
    book = MemoryLedger(10)
    first = _claim(book, "a", 10)
    assert _duplicate(book, "m2", now=50.0) is not None
    _end(book, "twin-m2", fault=True)
    assert book.span_at(0) == Span(0, 10, L, 1)
    assert _commit(book, first) is CommitOutcome.COMMITTED


def test_recall_ends_every_lease_for_good() -> None:
    book = MemoryLedger(30)
    first = _claim(book, "a", 10)
    _claim(book, "b", 10, machine="m2")
    assert _duplicate(book, "m2", now=50.0) is not None
    book.apply(ledger.recall(book))
    book.check()
    assert book.counters()[P] == 30
    assert _commit(book, first) is CommitOutcome.REFUSED
    assert ledger.revive(book, lease_id="a", now=1.0, lease_s=30.0) is None


def test_retry_makes_quarantined_records_pending_and_joins_them() -> None:
    book = MemoryLedger(10)
    _commit(book, _claim(book, "a", 10), bad=(2, 3, 7))
    book.apply(ledger.retry([s for s in book.spans() if s.state is Q]))
    assert [s for s in book.spans() if s.state is P] == [Span(2, 4, P), Span(7, 8, P)]


def test_only_quarantined_records_can_be_retried() -> None:
    with pytest.raises(InternalError):
        ledger.retry([Span(0, 3, D)])


def test_a_unit_of_no_records_is_a_mistake() -> None:
    with pytest.raises(InternalError):
        ledger.claim(MemoryLedger(5), machine="m", lease_id="a", now=0.0, lease_s=1.0, size=0)
