"""`rowcheck.Place` always tells the bytes of the record read last, in every format and mess."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from officegrid.worker.rowcheck import Place, Shape, boundaries, read

PIECES = st.sampled_from(
    [
        b"a",
        b"b,c",
        b",",
        b'"',
        b'""',
        b"\n",
        b"\r\n",
        b'"x\ny"',
        b"\xff",
        b"long " * 40,
        b"\xc3\xa9",
    ]
)
SHAPES = [
    Shape("csv", ",", '"', ("one", "two")),
    Shape("csv", ",", '"', None),
    Shape("ndjson", ",", '"', None),
    Shape("lines", ",", '"', None),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=60).map(b"".join), st.sampled_from(SHAPES), st.data())
def test_place_agrees_with_the_boundaries(data: bytes, shape: Shape, choice: st.DataObject) -> None:
    if data and not data.endswith(b"\n"):
        data += b"\n"
    offsets = boundaries(data, shape)
    place = Place(data)
    asked = choice.draw(st.sets(st.integers(0, max(0, len(offsets) - 2))))
    count = 0
    for index, _ in enumerate(read(data, shape, place)):
        if index in asked:
            assert place.span() == (offsets[index], offsets[index + 1])
        count += 1
    assert count == len(offsets) - 1
