"""The way to a version: never dearer than the whole, never one that does not lead there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.fetchplan import FetchPlan, KnownDelta, plan_fetch

AB, BC, CD = KnownDelta("a", "b", 10), KnownDelta("b", "c", 20), KnownDelta("c", "d", 30)
AD, CA = KnownDelta("a", "d", 55), KnownDelta("c", "a", 1)
ALL = [AB, BC, CD, CA]


@pytest.mark.parametrize(
    ("target", "present", "deltas", "full", "wanted"),
    [
        ("d", "", ALL, 100, FetchPlan(None, (), 100)),
        ("d", "d", ALL, 100, FetchPlan("d", (), 0)),
        ("d", "c", ALL, 100, FetchPlan("c", (CD,), 30)),
        ("d", "a", ALL, 100, FetchPlan("a", (AB, BC, CD), 60)),
        ("d", "ac", ALL, 100, FetchPlan("c", (CD,), 30)),
        ("d", "a", [*ALL, AD], 100, FetchPlan("a", (AD,), 55)),
        ("d", "a", ALL, 60, FetchPlan(None, (), 60)),
        ("d", "a", ALL, 61, FetchPlan("a", (AB, BC, CD), 60)),
        ("b", "cd", ALL, 100, FetchPlan("c", (CA, AB), 11)),
        ("d", "x", ALL, 100, FetchPlan(None, (), 100)),
        ("z", "abcd", ALL, 100, FetchPlan(None, (), 100)),
        ("d", "a", [], 0, FetchPlan(None, (), 0)),
    ],
)
def test_the_cheapest_way(
    target: str, present: str, deltas: list[KnownDelta], full: int, wanted: FetchPlan
) -> None:
    assert plan_fetch(target, set(present), deltas, full) == wanted
    assert plan_fetch(target, list(present)[::-1], deltas[::-1], full) == wanted


def test_chains_have_a_longest_length() -> None:
    chain = [KnownDelta(f"v{i:02}", f"v{i + 1:02}", 1) for i in range(20)]
    assert plan_fetch("v20", {"v12"}, chain, 1000).start == "v12"
    assert plan_fetch("v20", {"v11"}, chain, 1000).start is None
    assert plan_fetch("v20", {"v11"}, chain, 1000, max_steps=9).start == "v11"


def test_of_equal_ways_the_shorter_one() -> None:
    assert plan_fetch("d", {"a"}, [*ALL, KnownDelta("a", "d", 60)], 100).deltas == (
        KnownDelta("a", "d", 60),
    )


def test_a_negative_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        plan_fetch("b", {"a"}, [KnownDelta("a", "b", -1)], 10)


def _chains(
    target: str, present: set[str], deltas: set[KnownDelta], steps: int
) -> Iterator[tuple[KnownDelta, ...]]:
    """Every chain there is, by trying all."""
    for delta in deltas:
        if delta.new == target:
            if delta.old in present:
                yield (delta,)
            if steps > 1:
                yield from (
                    (*chain, delta) for chain in _chains(delta.old, present, deltas, steps - 1)
                )


versions = st.sampled_from("abcde")


@given(
    versions,
    st.sets(versions, max_size=3),
    st.sets(st.builds(KnownDelta, versions, versions, st.integers(0, 40)), max_size=9),
    st.integers(0, 60),
    st.integers(0, 4),
)
def test_no_way_is_cheaper(
    target: str, present: set[str], deltas: set[KnownDelta], full: int, steps: int
) -> None:
    plan = plan_fetch(target, present, deltas, full, max_steps=steps)
    if target in present:
        assert plan == FetchPlan(target, (), 0)
        return
    costs = [sum(one.bytes for one in chain) for chain in _chains(target, present, deltas, steps)]
    assert plan.bytes == min([full, *(costs if steps else [])])
    if plan.start is None:
        assert not plan.deltas
        return
    at = plan.start
    assert at in present
    assert 0 < len(plan.deltas) <= steps
    for delta in plan.deltas:
        assert delta in deltas
        assert delta.old == at
        at = delta.new
    assert at == target
    assert sum(delta.bytes for delta in plan.deltas) == plan.bytes
