"""Who is named to whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.peers import (
    HOLDERS_EACH,
    MOST_NAMED,
    Holders,
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
HELD = st.dictionaries(st.sampled_from([f"m{n}" for n in range(15)]), st.frozensets(OBJECTS))


def holders_of(held: dict[str, frozenset[str]]) -> Holders:
    made = Holders()
    for machine, objects in held.items():
        made.set(machine, objects)
    return made


@given(HELD, st.lists(OBJECTS, unique=True), st.integers(0, 1000))
def test_each_object_has_up_to_two_holders_and_nobody_is_named_in_vain(
    held: dict[str, frozenset[str]], wanted: list[str], turn: int
) -> None:
    found = holders_of(held).choose(wanted, "m0", turn)
    assert len(found) <= MOST_NAMED
    assert "m0" not in found
    for machine, has in found.items():
        assert has
        assert set(has) <= held[machine] & set(wanted)
    for one in wanted:
        named = sum(one in has for has in found.values())
        holders = sum(one in objects for machine, objects in held.items() if machine != "m0")
        assert named <= HOLDERS_EACH
        if len(found) < MOST_NAMED:
            assert named == min(holders, HOLDERS_EACH)


def all_named(holders: Holders, one: str) -> set[str]:
    return {machine for turn in range(3) for machine in holders.choose([one], "", turn)}


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.frozensets(OBJECTS))))
def test_the_last_word_counts(said: list[tuple[str, frozenset[str]]]) -> None:
    changed, last = Holders(), dict(said)
    for machine, objects in said:
        changed.set(machine, objects)
    plain = holders_of(last)
    assert len(changed) == len(plain) == sum(bool(objects) for objects in last.values())
    for one in {each for objects in last.values() for each in objects}:
        assert all_named(changed, one) == all_named(plain, one)
    for machine in last:
        assert changed.of(machine) == last[machine]


def test_all_who_have_it_are_named_in_turn() -> None:
    holders = holders_of({f"m{n}": frozenset({"x"}) for n in range(10)})
    named = {machine for turn in range(10) for machine in holders.choose(["x"], "", turn)}
    assert len(named) == 10
