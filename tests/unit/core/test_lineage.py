"""Lease ids that carry their pin, and which records ran under which pin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from officegrid.core import leaseid
from officegrid.core.lineage import Covered, ranges_by_pin


@given(st.text("0123456789abcdef-", min_size=1), st.integers(0, 999), st.integers(0, 999))
def test_a_lease_id_tells_its_pin_and_its_generation(unique: str, pin: int, gen: int) -> None:
    text = leaseid.lease_id(unique, pin, gen)
    assert (leaseid.pin_of(text), leaseid.generation_of(text)) == (pin, str(gen))


def test_ids_of_before_pins_have_the_first_one() -> None:
    assert leaseid.pin_of("123456789012345678901234.7") == 0
    assert leaseid.generation_of("123456789012345678901234.7") == "7"
    assert leaseid.pin_of("killer-123456789012") == 0
    assert leaseid.generation_of("killer-123456789012") == ""


def test_neighbours_of_one_pin_are_one_range() -> None:
    parts = [Covered(0, 5, 0, 0), Covered(5, 9, 0, 0), Covered(9, 12, 0, 1), Covered(15, 20, 0, 1)]
    assert ranges_by_pin(parts) == {0: [(0, 9)], 1: [(9, 12), (15, 20)]}


@st.composite
def _tilings(draw: st.DrawFn) -> list[Covered]:
    """A tiling in generation 0 with gaps, and later generations over parts of it."""
    parts, at = [], 0
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.integers(0, 2))
        end = at + draw(st.integers(1, 6))
        parts.append(Covered(at, end, 0, draw(st.integers(0, 2))))
        at = end
    for generation in (1, 2):
        start = 0
        for _ in range(draw(st.integers(0, 4))):
            start += draw(st.integers(0, 5))
            end = start + draw(st.integers(1, 4))
            parts.append(Covered(start, end, generation, draw(st.integers(0, 3))))
            start = end
    return sorted(parts, key=lambda part: (part.start, part.generation))


@given(_tilings())
def test_each_record_has_the_pin_of_its_newest_part(parts: list[Covered]) -> None:
    expected: dict[int, int] = {}
    for part in sorted(parts, key=lambda part: part.generation):
        for record in range(part.start, part.end):
            expected[record] = part.pin
    found = {}
    for pin, ranges in ranges_by_pin(parts).items():
        before = -1
        for start, end in ranges:
            assert before < start < end, "ranges are in order, apart, and not empty"
            before = end
            for record in range(start, end):
                assert record not in found
                found[record] = pin
    assert found == expected
