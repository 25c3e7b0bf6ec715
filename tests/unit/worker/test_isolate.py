"""The search for the records that kill a program, against an oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.isolate import GivenUp, Isolation, Range

SIZE = 60


def run_search(
    search: Isolation, fails: dict[int, int], hint: object, most_runs: int
) -> tuple[list[object], int]:
    """Drive a search; record r makes its next `fails[r]` runs fail (a large number: always)."""
    outcome: list[object] = []
    left = dict(fails)
    for runs in range(most_runs):
        part = search.next()
        if part is None:
            return outcome, runs
        guilty = [r for r in range(part.start, part.end) if left.get(r, 0) > 0]
        if not guilty:
            search.succeeded(part)
            outcome += range(part.start, part.end)
            continue
        left[guilty[0]] -= 1
        culprit, width = hint(part, guilty[0]) if callable(hint) else (None, 1)
        gone = search.failed(part, f"because of {guilty[0]}", culprit, width)
        if gone is not None:
            outcome.append(gone)
    raise AssertionError(f"the search did not end within {most_runs} runs")


ALWAYS = 10**9
killers = st.sets(st.integers(0, SIZE - 1), max_size=12)


@given(
    size=st.integers(0, SIZE),
    killers=killers,
    attempts=st.integers(1, 4),
    step=st.none() | st.integers(1, SIZE),
    hints=st.lists(st.none() | st.tuples(st.integers(-5, SIZE + 5), st.integers(-2, SIZE))),
)
def test_exactly_the_killers_are_given_up_whatever_the_hints(
    size: int,
    killers: set[int],
    attempts: int,
    step: int | None,
    hints: list[tuple[int, int] | None],
) -> None:
    told = iter(hints)

    def hint(part: Range, guilty: int) -> tuple[int | None, int]:
        return next(told, None) or (None, 1)

    search = Isolation(0, size, attempts, step)
    outcome, _ = run_search(search, dict.fromkeys(killers, ALWAYS), hint, 20 * SIZE * attempts + 9)
    assert [o.record if isinstance(o, GivenUp) else o for o in outcome] == list(range(size))
    gone = {o.record: o for o in outcome if isinstance(o, GivenUp)}
    assert set(gone) == {r for r in killers if r < size}
    for record, entry in gone.items():
        assert entry.error == f"because of {record}"
        assert entry.attempts == attempts


@given(
    flaky=st.dictionaries(st.integers(0, SIZE - 1), st.integers(1, 3), max_size=8),
    hinted=st.booleans(),
)
def test_records_that_fail_less_often_than_attempts_survive(
    flaky: dict[int, int], hinted: bool
) -> None:
    def hint(part: Range, guilty: int) -> tuple[int | None, int]:
        return (guilty, 1) if hinted else (None, 1)

    outcome, _ = run_search(Isolation(0, SIZE, 4), flaky, hint, 5000)
    assert outcome == list(range(SIZE))


@given(killers=st.sets(st.integers(0, 9_999), max_size=5), attempts=st.integers(1, 3))
def test_good_hints_make_it_cheap(killers: set[int], attempts: int) -> None:
    def hint(part: Range, guilty: int) -> tuple[int | None, int]:
        return guilty, 1

    search = Isolation(0, 10_000, attempts)
    _, runs = run_search(search, dict.fromkeys(killers, ALWAYS), hint, 1000)
    assert runs <= 1 + len(killers) * (attempts + 3)


def test_an_innocent_suspect_is_never_given_up_without_a_trial_of_its_own() -> None:
    search = Isolation(0, 10, attempts=1)
    whole = search.next()
    assert whole == Range(0, 10)
    assert search.failed(whole, "died", culprit=4) is None
    seen = []
    while (part := search.next()) is not None:
        seen.append((part.start, part.end))
        search.succeeded(part)
    assert seen == [(0, 4), (4, 5), (5, 10)]


def test_step_cuts_the_work_from_the_left() -> None:
    search = Isolation(0, 10, attempts=1, step=4)
    seen = []
    while (part := search.next()) is not None:
        seen.append((part.start, part.end))
        search.succeeded(part)
    assert seen == [(0, 4), (4, 8), (8, 10)]


def test_give_up_ends_a_whole_range() -> None:
    search = Isolation(0, 5, attempts=3, step=2)
    part = search.next()
    assert part is not None
    assert search.give_up(part, "no") == [GivenUp(0, "no", 1), GivenUp(1, "no", 1)]
    assert search.next() == Range(2, 4)


def test_a_report_about_another_range_is_refused() -> None:
    search = Isolation(0, 5, attempts=1)
    with pytest.raises(ValueError, match="not the range"):
        search.succeeded(Range(0, 3))
