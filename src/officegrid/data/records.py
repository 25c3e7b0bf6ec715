"""Where records begin and end inside a run of bytes.

This module alone decides it; reading, cutting, counting and converting all ask here, so they
cannot disagree. For CSV the rule is that of Python's `csv.reader` (not strict, doubled quotes):
a quote opens only as the first byte of a field, a doubled quote inside stays inside, text after
a closing quote goes on unquoted, and a record ends at the first LF outside quotes. A CR is part
of the record's bytes. An empty line is a record. Bytes after the last record end, and bytes
behind a quote that is never closed, count as one more record.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate, pairwise

from officegrid.core.errors import InputError, InternalError, UsageError
from officegrid.wire.data import Layout

_HIDE_NEWLINES = bytes.maketrans(b"\n", b"\0")


class RecordError(InputError):
    """One record that cannot be read; `record` is its index in the bytes that were given."""

    code = "record"

    def __init__(
        self, what: str, why: str = "", fix: str = "", *, code: str | None = None, record: int = 0
    ) -> None:
        super().__init__(what, why, fix, code=code)
        self.record = record


def one_byte(character: str, role: str) -> bytes:
    """`character` as its single byte. Raises UsageError if it is not one ASCII character."""
    if len(character) != 1 or not character.isascii() or character in "\r\n\0":
        raise UsageError(
            f"The CSV {role} {character!r} cannot be used.",
            f"A {role} is exactly one ASCII character, and never a line break or NUL.",
            f"Set {role} to one character such as ',' ';' '|' or a tab.",
        )
    return character.encode()


@lru_cache(maxsize=32)
def _quoted_piece(delimiter: str, quote: str) -> re.Pattern[bytes]:
    """Matches a quoted stretch, from an opening quote to its closing quote or the end.

    The pattern starts with the literal quote, which lets the engine jump from quote to quote;
    possessive repeats keep it linear and free of backtracking memory.
    """
    d, q = re.escape(one_byte(delimiter, "delimiter")), re.escape(one_byte(quote, "quote"))
    opens = rb"(?:(?<=[" + d + rb"\n]" + q + rb")|(?<=\A" + q + rb"))"
    body = rb"[^" + q + rb"]*+(?:" + q + q + rb"[^" + q + rb"]*+)*+"
    return re.compile(rb"(" + q + opens + body + rb"(?:" + q + rb"|\Z))")


def _pieces(data: bytes, layout: Layout) -> list[bytes]:
    """`data` as alternating stretches: outside quotes, quoted, outside, ..., outside."""
    if layout.format != "csv" or layout.quote.encode() not in data:
        return [data]
    return _quoted_piece(layout.delimiter, layout.quote).split(data)


def _masked(data: bytes, layout: Layout) -> bytes:
    """`data` with the same length, where LF is left only where it ends a record."""
    pieces = _pieces(data, layout)
    if len(pieces) == 1:
        return data
    pieces[1::2] = [p.translate(_HIDE_NEWLINES) if b"\n" in p else p for p in pieces[1::2]]
    return b"".join(pieces)


def complete_records(data: bytes, layout: Layout) -> tuple[int, int]:
    """(number of complete records, byte length they take); the rest is a record not yet ended.

    `data` must begin at the beginning of a record.
    """
    pieces = _pieces(data, layout)
    if len(pieces) == 1:
        return data.count(b"\n"), data.rfind(b"\n") + 1
    records = b"".join(pieces[::2]).count(b"\n")
    if records == 0:
        return 0, 0
    end = len(data)
    for index in range(len(pieces) - 1, -1, -1):
        end -= len(pieces[index])
        if index % 2 == 0 and (at := pieces[index].rfind(b"\n")) >= 0:
            return records, end + at + 1
    raise InternalError("A line break that was counted could not be found again.")


def count_records(data: bytes, layout: Layout) -> int:
    """Number of records in `data`, an unfinished last one included."""
    records, length = complete_records(data, layout)
    return records + (length < len(data))


def ends_inside_quotes(data: bytes, layout: Layout) -> bool:
    """True if a quote that opens in the last record of `data` is never closed."""
    pieces = _pieces(data, layout)
    if len(pieces) < 3 or pieces[-1]:
        return False
    # One quote opens, pairs stand for quotes inside, one closes: odd means that it is missing.
    return pieces[-2].count(layout.quote.encode()) % 2 == 1


def record_offsets(data: bytes, layout: Layout) -> list[int]:
    """Byte offset of the start of every record, then the end of the last: `records + 1` numbers.

    Empty data gives `[0]`.
    """
    lines = _masked(data, layout).split(b"\n")
    offsets = [0, *accumulate(len(line) + 1 for line in lines)]
    offsets.pop()  # what follows the last LF is handled below: it may be no record at all
    if lines[-1]:
        offsets.append(len(data))
    return offsets


def split_records(data: bytes, layout: Layout) -> list[bytes]:
    """Every record's bytes, its line ending included."""
    offsets = record_offsets(data, layout)
    return [data[a:b] for a, b in pairwise(offsets)]


def _offset_of(mask: bytes, record: int) -> int:
    """Byte offset where `record` starts; len(mask) if there are not that many."""
    if record <= 0:
        return 0
    low, high, before = 0, len(mask), 0
    # Halve the range that holds the wanted LF: each byte is counted about twice in all.
    while high - low > 4096:
        middle = (low + high) // 2
        in_lower = mask.count(b"\n", low, middle)
        if before + in_lower >= record:
            high = middle
        else:
            low, before = middle, before + in_lower
    at = low - 1
    for _ in range(record - before):
        at = mask.find(b"\n", at + 1)
        if at < 0:
            return len(mask)
    return at + 1


def skip_take(data: bytes, layout: Layout, skip: int, take: int) -> bytes:
    """The bytes of records `[skip, skip + take)`; fewer if `data` holds fewer."""
    if take <= 0:
        return b""
    mask = _masked(data, layout)
    start = _offset_of(mask, skip)
    end = _offset_of(mask, skip + take)
    return data[start:end]


def raw_record(data: bytes, layout: Layout, index: int) -> bytes:
    """The bytes of record `index`, line ending included. Raises RecordError if there is none."""
    found = skip_take(data, layout, index, 1) if index >= 0 else b""
    if not found:
        raise RecordError(
            f"There is no record {index} here.",
            f"These bytes hold {count_records(data, layout)} records, numbered from 0.",
            record=index,
        )
    return found


def with_line_ending(data: bytes, layout: Layout, ending: bytes) -> bytes:
    """`data` with every record ended by `ending` (b"\\n" or b"\\r\\n"), the last one too.

    Line breaks inside quoted fields stay as they are.
    """
    if data and not data.endswith(b"\n"):
        data += b"\n"
    has_crlf = b"\r\n" in data
    if ending == b"\n" and not has_crlf:
        return data
    pieces = _pieces(data, layout)
    changed = [p.replace(b"\r\n", b"\n") for p in pieces[::2]]
    if ending != b"\n":
        changed = [p.replace(b"\n", ending) for p in changed]
    pieces[::2] = changed
    return b"".join(pieces)
