"""Which release a worker runs: each row of the table, and what holds whatever happens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.updatelife import (
    MOST_FAILED,
    MOST_STARTS,
    NEVER_HEARD,
    TABLE,
    Ended,
    Event,
    Failure,
    Fetched,
    GoHome,
    Heard,
    Held,
    Life,
    Lost,
    Starting,
    Stopped,
    step,
)


def held(name: str, number: int = 1) -> Held:
    return Held(name * 64, f"0.{ord(name) - 96}.0", number)


A, B, C = held("a"), held("b", 2), held("c", 3)
FAILED_B = {B.digest: Failure(B.version, B.number, "It broke.")}
ON_TRIAL = Life(current=A, trial=B)

ROWS = [
    (Life(), Fetched(A), Life(trial=A)),
    (Life(current=A), Fetched(B), ON_TRIAL),
    (Life(current=A), Fetched(A), Life(current=A)),
    (replace(ON_TRIAL, starts=1), Fetched(B), replace(ON_TRIAL, starts=1)),
    (replace(ON_TRIAL, starts=1), Fetched(C), Life(current=A, trial=C)),
    (replace(ON_TRIAL, starts=1), Fetched(A), Life(current=A)),
    (Life(failed=FAILED_B), Fetched(B), Life(failed=FAILED_B)),
    (Life(failed=FAILED_B), Fetched(held("b", 5)), Life(trial=held("b", 5), failed=FAILED_B)),
    (ON_TRIAL, Starting(), replace(ON_TRIAL, starts=1)),
    (replace(ON_TRIAL, starts=1), Stopped(B.digest), ON_TRIAL),
    (replace(ON_TRIAL, starts=1), Stopped(A.digest), replace(ON_TRIAL, starts=1)),
    (
        replace(ON_TRIAL, starts=MOST_STARTS), Starting(),
        Life(current=A, failed={B.digest: Failure(B.version, B.number, NEVER_HEARD)}),
    ),
    (Life(current=A), Starting(), Life(current=A)),
    (Life(), Starting(), Life()),
    (replace(ON_TRIAL, starts=2), Heard(B.digest), Life(current=B, previous=A)),
    (ON_TRIAL, Heard(A.digest), ON_TRIAL),
    (Life(trial=B, failed=FAILED_B), Heard(B.digest), Life(current=B)),
    (ON_TRIAL, Ended(B.digest, "It broke."), Life(current=A, failed=FAILED_B)),
    (
        Life(current=B, previous=A), Ended(B.digest, "It broke."),
        Life(current=A, failed=FAILED_B),
    ),
    (ON_TRIAL, Ended(C.digest, "x"), ON_TRIAL),
    (Life(current=B, previous=A), GoHome(), Life(previous=B)),
    (ON_TRIAL, GoHome(), Life(previous=A)),
    (ON_TRIAL, Lost(B.digest), Life(current=A)),
    (Life(current=B, previous=A), Lost(B.digest), Life(current=A)),
    (Life(current=B, previous=A), Lost(A.digest), Life(current=B)),
    (Life(current=A), Lost(C.digest), Life(current=A)),
]  # fmt: skip


@pytest.mark.parametrize(("before", "event", "after"), ROWS)
def test_each_row(before: Life, event: Event, after: Life) -> None:
    assert step(before, event) == after


def test_every_row_of_the_table_is_tried() -> None:
    taken = set()
    for before, event, _ in ROWS:
        for row in TABLE[type(event)]:
            if row.guard(before, event):
                taken.add((type(event), row))
                break
    assert taken == {(kind, row) for kind, rows in TABLE.items() for row in rows}


releases = st.builds(held, st.sampled_from("abcde"), st.integers(1, 6))
digests = st.sampled_from([name * 64 for name in "abcde"])
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Fetched, releases), st.builds(Heard, digests), st.builds(GoHome),
    st.builds(Ended, digests, st.just("It broke.")), st.builds(Lost, digests),
    st.builds(Stopped, digests), st.builds(Starting),
)  # fmt: skip


@given(st.lists(events, max_size=40))
def test_whatever_happens(history: list[Event]) -> None:
    life = Life()
    for event in history:
        before, life = life, step(life, event)
        assert 0 <= life.starts <= MOST_STARTS
        assert life.trial is not None or life.starts == 0
        assert len(life.failed) <= MOST_FAILED
        if life.trial is not None:
            assert life.trial.digest != (life.current and life.current.digest)
            if life.trial != before.trial:
                assert life.may_try(life.trial.digest, life.trial.number) or isinstance(
                    event, Fetched
                )
        if life.current is not None and life.current != before.current:
            # Only what the coordinator has answered becomes current.
            assert isinstance(event, Heard) or life.current == before.previous


@given(st.lists(events, max_size=20))
def test_a_trial_that_is_never_heard_ends(history: list[Event]) -> None:
    life = Life()
    for event in history:
        life = step(life, event)
    for _ in range(MOST_STARTS + 1):
        life = step(life, Starting())
    assert life.trial is None
    assert life.wanted == life.current


def test_only_so_many_failures_are_remembered() -> None:
    life = Life()
    for number in range(MOST_FAILED + 5):
        one = Held(f"{number:064x}", "1.0", number + 1)
        life = step(step(life, Fetched(one)), Ended(one.digest, "x"))
    assert len(life.failed) == MOST_FAILED
    assert f"{MOST_FAILED + 4:064x}" in life.failed


def test_an_installed_program_that_was_made_newer_is_used() -> None:
    release = Held("a" * 64, "0.3.0", 1, installed="0.2.0")
    for life in (Life(current=release), Life(trial=release)):
        assert not life.is_outgrown("0.2.0")
        assert not life.is_outgrown("0.2.5"), "newer than before, not newer than the release"
        assert life.is_outgrown("0.4.0")
    down = Held("a" * 64, "0.3.0", 1, installed="0.5.0")
    assert not Life(current=down).is_outgrown("0.5.0"), "it was ordered because 0.5.0 is withdrawn"
    assert not Life().is_outgrown("9.0")
