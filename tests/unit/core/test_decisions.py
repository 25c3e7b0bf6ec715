"""Sizes, turns, moves, freezes: the small pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core import fairness, sizing
from officegrid.core.errors import ConflictError
from officegrid.core.freeze import FreezeDetector
from officegrid.core.jobs import ENDED, MOVES, JobState, move

# --- sizing


def _size(**changes: object) -> int:
    asked: dict[str, object] = {
        "records_per_s": None, "last_size": None, "others_records_per_s": [],
        "pending": 10**6, "slots": 1, "unit_s": 30.0,
    }  # fmt: skip
    return sizing.unit_size(**{**asked, **changes})  # type: ignore[arg-type]


def test_an_unknown_machine_on_an_unknown_job_gets_a_probe() -> None:
    assert _size() == sizing.PROBE_RECORDS


def test_an_unknown_machine_gets_a_tenth_of_what_the_others_would() -> None:
    assert _size(others_records_per_s=[90.0, 100.0, 5000.0]) == 300


def test_slow_others_still_mean_a_probe() -> None:
    assert _size(others_records_per_s=[1.0]) == sizing.PROBE_RECORDS


def test_a_probe_is_not_longer_than_a_unit_where_others_have_shown_how_slow_records_are() -> None:
    assert _size(others_records_per_s=[0.1]) == 3
    assert _size(others_records_per_s=[1 / 3600]) == 1


def test_sizes_follow_the_rate_but_grow_by_a_limited_factor() -> None:
    assert _size(records_per_s=1000.0, last_size=16) == 16 * sizing.GROWTH
    assert _size(records_per_s=1000.0, last_size=5000) == 30_000


def test_a_machine_at_a_steady_rate_soon_gets_units_of_unit_seconds() -> None:
    rate, size = None, None
    for _ in range(6):
        size = _size(records_per_s=rate, last_size=size, pending=10**8)
        rate = sizing.updated_rate(rate, size, compute_s=size / 400.0)
    assert size == 400 * 30


def test_near_the_end_units_shrink_to_a_share_of_what_is_left() -> None:
    assert _size(records_per_s=100.0, last_size=3000, pending=4000, slots=4) == 500


def test_the_taper_stops_at_a_second_of_work() -> None:
    assert _size(records_per_s=100.0, last_size=3000, pending=400, slots=100) == 100


def test_a_record_longer_than_a_unit_is_a_unit_of_one() -> None:
    assert _size(records_per_s=1 / 3600, last_size=1) == 1


@given(
    records_per_s=st.none() | st.floats(1e-6, 1e9),
    last_size=st.none() | st.integers(1, 10**8),
    others=st.lists(st.floats(1e-6, 1e9), max_size=4),
    pending=st.integers(1, 10**12),
    slots=st.integers(0, 5000),
    unit_s=st.floats(0.01, 86400.0),
)
def test_a_size_is_never_zero_and_never_more_than_there_is(
    records_per_s: float | None, last_size: int | None, others: list[float], pending: int,
    slots: int, unit_s: float,
) -> None:  # fmt: skip
    size = _size(
        records_per_s=records_per_s, last_size=last_size, others_records_per_s=others,
        pending=pending, slots=slots, unit_s=unit_s,
    )  # fmt: skip
    assert 1 <= size <= pending
    if records_per_s is not None and last_size is not None:
        assert size <= max(last_size * sizing.GROWTH, records_per_s + 1)


@given(before=st.floats(0.1, 1e6), records=st.integers(1, 10**6), compute_s=st.floats(0.0, 1e5))
def test_a_new_rate_lies_between_the_old_one_and_the_measured_one(
    before: float, records: int, compute_s: float
) -> None:
    measured = records / max(compute_s, 1e-4)
    after = sizing.updated_rate(before, records, compute_s)
    assert min(before, measured) * 0.999 <= after <= max(before, measured) * 1.001


def test_the_first_measurement_is_taken_as_it_is() -> None:
    assert sizing.updated_rate(None, 100, 4.0) == 25.0


# --- fairness


def _candidate(job: str, priority: int = 0, live: int = 0, at: float = 0.0) -> fairness.Candidate:
    return fairness.Candidate(job, priority, live, at)


def test_higher_priority_comes_first_whatever_it_holds_already() -> None:
    turn = fairness.order([_candidate("low"), _candidate("high", 5, live=99)], {"high": 1e9})
    assert turn == ["high", "low"]


def test_with_one_slot_equal_jobs_alternate() -> None:
    served: dict[str, float] = {}
    turns = []
    for moment in range(9):
        first = fairness.order([_candidate(j) for j in ("a", "b", "c")], served)[0]
        served[first] = float(moment + 1)
        turns.append(first)
    assert turns == list("abc") * 3


def test_slots_spread_evenly_over_equal_jobs() -> None:
    live = dict.fromkeys("abcd", 0)
    served: dict[str, float] = {}
    for moment in range(42):
        turn = fairness.order([_candidate(j, live=n) for j, n in live.items()], served)
        live[turn[0]] += 1
        served[turn[0]] = float(moment)
    assert max(live.values()) - min(live.values()) <= 1


def test_the_older_of_two_jobs_never_served_comes_first() -> None:
    assert fairness.order([_candidate("b", at=1.0), _candidate("a", at=2.0)], {}) == ["b", "a"]


# --- the life of a job


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize(
    "verb", ["start", "hold", "release", "await", "cancel", "finish", "retry", "nonsense"]
)
def test_a_move_is_in_the_table_or_refused_with_advice(state: JobState, verb: str) -> None:
    if (state, verb) in MOVES:
        assert move(state, verb) is MOVES[(state, verb)]
        return
    with pytest.raises(ConflictError) as caught:
        move(state, verb, "j7")
    assert "j7" in caught.value.what
    assert str(state) in caught.value.what
    assert caught.value.fix


def test_a_cancelled_job_stays_cancelled_and_a_finished_one_can_only_be_retried() -> None:
    leaving = {(state, verb) for state, verb in MOVES if state in ENDED}
    assert leaving == {(JobState.FINISHED, "retry")}


def test_every_state_but_the_last_two_can_be_cancelled() -> None:
    cancellable = {state for state, verb in MOVES if verb == "cancel"}
    assert cancellable == set(JobState) - ENDED


# --- freezes


@pytest.mark.parametrize(
    ("wall", "monotonic", "jump"),
    [
        (100.5, 10.5, None),
        (104.0, 14.0, None),
        (3700.0, 3610.0, 3600.0),  # suspended: both clocks went on
        (3700.0, 10.5, 3600.0),  # a restored VM: only the wall clock, once it was set right
        (100.5, 70.0, 60.0),  # suspended, and the wall clock not yet set
        (40.0, 10.5, 60.0),  # the clock was set back
        (97.0, 10.5, None),  # set back by less than is worth a question
    ],
)
def test_a_jump_of_either_clock_is_noticed(
    wall: float, monotonic: float, jump: float | None
) -> None:
    detector = FreezeDetector(tick_s=0.5)
    assert detector.tick(100.0, 10.0) is None
    found = detector.tick(wall, monotonic)
    assert found == (pytest.approx(jump) if jump is not None else None)


def test_one_jump_is_told_once() -> None:
    detector = FreezeDetector(tick_s=1.0)
    detector.tick(0.0, 0.0)
    assert detector.tick(100.0, 100.0) == 100.0
    assert detector.tick(101.0, 101.0) is None
