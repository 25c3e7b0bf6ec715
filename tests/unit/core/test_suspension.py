"""Which leases outlast a suspension: long single records that run, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core import ledger
from officegrid.core.model import Edit, Lease, LeaseState
from officegrid.core.suspension import Holding, is_suspended, kept, suspended
from officegrid.core.tiling import MemoryLedger

NOW = 10_000.0
LEASE_S = 30.0


def held(
    name: str, *, length: int = 1, age_s: float = 3600.0, expected_s: float = 0.0,
    unit_s: float = 30.0, suspended_s: float = 7200.0,
) -> Holding:  # fmt: skip
    lease = Lease(name, 0, length, "m", NOW + 20, NOW - age_s, NOW - 10, expected_s)
    return Holding("j", lease, unit_s, suspended_s)


@pytest.mark.parametrize(
    ("holding", "stays"),
    [
        (held("a"), True),
        (held("a", age_s=29.0), False),
        (held("a", age_s=31.0), True),
        (held("a", age_s=1.0, expected_s=31.0), True),
        (held("a", age_s=1.0, expected_s=30.0), False),
        (held("a", length=2), False),
        (held("a", length=2, expected_s=9999.0), False),
        (held("a", unit_s=7200.0), False),
        (held("a", suspended_s=0.0), False),
    ],
)
def test_a_single_record_that_takes_longer_than_a_unit_stays(holding: Holding, stays: bool) -> None:
    assert kept([holding], slots=1, now=NOW) == ([holding] if stays else [])


def test_what_waits_behind_the_running_records_goes_back() -> None:
    first, second, third = (
        held(name, age_s=age) for name, age in (("c", 99), ("a", 98), ("b", 97))
    )
    assert kept([third, second, first], slots=1, now=NOW) == [first]
    assert kept([third, second, first], slots=2, now=NOW) == [first, second]
    long_unit = held("z", length=50, age_s=100)
    assert kept([third, second, first, long_unit], slots=1, now=NOW) == []


_holdings = st.lists(
    st.builds(
        held,
        st.uuids().map(str),
        length=st.integers(1, 3),
        age_s=st.floats(-100, 1e5),
        expected_s=st.floats(0, 1e5),
        unit_s=st.floats(0.1, 1e5),
        suspended_s=st.floats(0, 1e5),
    ),
    max_size=8,
)


@given(_holdings, st.integers(1, 4))
def test_never_more_than_the_slots_and_only_long_single_records(
    holdings: list[Holding], slots: int
) -> None:
    found = kept(holdings, slots=slots, now=NOW)
    assert len(found) <= slots
    for one in found:
        age_s = NOW - one.lease.claimed_at
        assert one.lease.length == 1
        assert age_s > one.unit_s or one.lease.expected_s > one.unit_s
        older = [x for x in holdings if x.lease.claimed_at < one.lease.claimed_at]
        assert len(older) < slots, "it waited behind others"


@given(st.floats(1, 1e6), st.floats(0, 1e6), st.floats(0, 1e5))
def test_a_suspension_never_shortens_a_lease_and_a_renewal_ends_it(
    suspended_s: float, wait_s: float, later_s: float
) -> None:
    lease = replace(held("a").lease, renewed_at=NOW, deadline=NOW + LEASE_S)
    assert not is_suspended(lease, lease_s=LEASE_S)
    asleep = suspended(lease, at=NOW + min(wait_s, LEASE_S), suspended_s=suspended_s)
    assert asleep.deadline >= lease.deadline
    assert replace(asleep, deadline=lease.deadline) == lease, "nothing else changes"
    twice = suspended(asleep, at=NOW + min(wait_s, LEASE_S), suspended_s=suspended_s)
    assert twice == asleep
    if suspended_s > LEASE_S + 2:
        assert is_suspended(asleep, lease_s=LEASE_S)
    at = NOW + later_s
    awake = replace(asleep, renewed_at=at, deadline=at + LEASE_S)
    assert not is_suspended(awake, lease_s=LEASE_S)


def test_a_suspended_lease_is_live_in_the_ledger_and_its_commit_counts() -> None:
    book = MemoryLedger(3)
    claimed = ledger.claim(
        book, machine="m", lease_id="a", now=0.0, lease_s=LEASE_S, size=1, expected_s=3600.0
    )
    assert claimed is not None
    book.apply(claimed[1])
    asleep = suspended(claimed[0], at=100.0, suspended_s=7200.0)
    book.apply(Edit(leases=(asleep,)))
    book.check()
    assert [lease.id for lease in book.live_leases()] == ["a"]
    result = ledger.commit(
        book, lease_id="a", start=0, end=1, quarantined=[], digest="d", committed_digest=None
    )
    book.apply(result.edit)
    found = book.lease("a")
    assert found is not None
    assert found.state is LeaseState.COMMITTED
