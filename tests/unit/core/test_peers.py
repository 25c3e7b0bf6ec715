"""Who is named to whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.peers import (
    HOLDERS_EACH,
    MOST_NAMED,
    Sharer,
    choose,
    network_of,
    parse_network,
    plain_address,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("FE80::1%eth0", "fe80::1"),
        (" 2001:DB8::0:1 ", "2001:db8::1"),
        ("", ""),
        ("pc-7", ""),
        ("10.0.0.256", ""),
    ],
)
def test_addresses_have_one_spelling(text: str, plain: str) -> None:
    assert plain_address(text) == plain


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.0.0/16"),
        ("10.1.9.3", "10.1.9.0/24"),  # the smaller one of two
        ("10.2.2.3", "10.2.2.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"),
        ("2001:db8:ffff:2::3", "2001:db8:ffff::/48"),
    ],
)
def test_a_network_is_one_that_was_named_or_the_usual_one(address: str, network: str) -> None:
    named = ["10.1.0.0/16", "10.1.9.0/24", "2001:db8:ffff::/48"]
    assert network_of(address, map(parse_network, named)) == network


OBJECTS = st.sampled_from([f"object-{n}" for n in range(12)])
SHARERS = st.lists(st.frozensets(OBJECTS), max_size=20).map(
    lambda held: [Sharer(f"m{n}", "10.0.0.1", 1, holds) for n, holds in enumerate(held)]
)


@given(SHARERS, st.lists(OBJECTS, unique=True), st.integers(0, 1000))
def test_each_object_has_up_to_two_holders_and_nobody_is_named_in_vain(
    sharers: list[Sharer], wanted: list[str], turn: int
) -> None:
    found = choose(sharers, wanted, turn)
    assert len(found) <= MOST_NAMED
    assert len({sharer.id for sharer, _ in found}) == len(found)
    for sharer, has in found:
        assert has
        assert has <= sharer.holds & set(wanted)
    for one in wanted:
        named = sum(one in has for _, has in found)
        holders = sum(one in sharer.holds for sharer in sharers)
        assert named <= HOLDERS_EACH
        if len(found) < MOST_NAMED:
            assert named == min(holders, HOLDERS_EACH)


def test_all_who_have_it_are_named_in_turn() -> None:
    sharers = [Sharer(f"m{n}", "10.0.0.1", 1, frozenset({"x"})) for n in range(10)]
    named = {sharer.id for turn in range(10) for sharer, _ in choose(sharers, ["x"], turn)}
    assert len(named) == 10
