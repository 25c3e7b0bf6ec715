"""What desktops give and cost is counted right, from events in any sensible order."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.deskstats import (
    YIELD_TIMES_KEPT,
    DeskStats,
    from_plain,
    noted,
    percentile,
    to_plain,
)

KINDS = ("idle", "starting", "running", "paused", "saved", "user_back", "stopped", "trouble")


def after(*kinds: str) -> DeskStats:
    stats = DeskStats()
    for kind in kinds:
        stats = noted(stats, kind)
    return stats


@pytest.mark.parametrize(
    ("kinds", "interruptions"),
    [
        (("starting", "running", "user_back", "paused", "saved"), 1),
        (("starting", "running", "paused", "user_back", "saved"), 1),  # told in the other order
        (("starting", "running", "user_back", "user_back", "paused", "user_back", "saved"), 1),
        (("running", "user_back", "paused", "running", "user_back", "paused", "saved"), 2),
        (("starting", "user_back", "stopped"), 1),  # while it booted
        (("user_back", "saved"), 1),  # the agent started anew beside a running VM
        (("running", "paused", "saved", "user_back"), 0),  # battery first, then the user
        (("idle", "user_back", "idle", "user_back"), 0),  # nothing ran yet
        (("running", "stopped", "user_back"), 0),
        ((), 0),
    ],
)
def test_an_interruption_counts_once_per_yield(kinds: tuple[str, ...], interruptions: int) -> None:
    assert after(*kinds).interruptions == interruptions


def test_hours_starts_units_and_yield_times_add_up() -> None:
    stats = noted(DeskStats(), "starting")
    stats = noted(stats, "user_back", cpu_back_ms=120.0, units_released=2)
    stats = noted(stats, "saved", ran_s=600.0, memory_back_ms=4000.0)
    stats = noted(stats, "starting")
    stats = noted(stats, "stopped", ran_s=30.5, units_released=1)
    assert stats == DeskStats(630.5, 1, 2, 3, (120.0,), (4000.0,), in_use=False)


def test_only_the_last_yield_times_are_kept() -> None:
    stats = DeskStats()
    for number in range(YIELD_TIMES_KEPT + 50):
        stats = noted(stats, "paused", cpu_back_ms=float(number))
    assert len(stats.cpu_back_ms) == YIELD_TIMES_KEPT
    assert stats.cpu_back_ms[0] == 50.0
    assert stats.memory_back_ms == ()


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None), ([7.0], 0.5, 7.0), ([7.0], 0.99, 7.0), ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0), (range(1, 101), 0.99, 99), (range(1, 101), 1.0, 100),
        (range(1, 101), 0.0, 1),
    ],
)  # fmt: skip
def test_percentiles_are_by_nearest_rank(
    values: list[float], share: float, expected: float | None
) -> None:
    assert percentile(values, share) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values)


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.floats(0, 1e9), st.none() | st.floats(0, 1e6)),
        max_size=30,
    )
)
def test_counters_only_grow_and_survive_storage(
    events: list[tuple[str, float, float | None]],
) -> None:
    stats = DeskStats()
    for kind, ran_s, back_ms in events:
        before = stats
        stats = noted(stats, kind, ran_s=ran_s, cpu_back_ms=back_ms)
        assert stats.interruptions - before.interruptions in (0, 1)
        assert stats.harvested_s >= before.harvested_s
    assert from_plain(json.loads(json.dumps(to_plain(stats)))) == stats


def test_rows_of_other_releases_are_read() -> None:
    assert from_plain({}) == DeskStats()
    assert from_plain({"starts": 4, "of_the_future": [1]}) == DeskStats(starts=4)
