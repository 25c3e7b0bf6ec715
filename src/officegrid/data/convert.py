"""Records from one format to another, e.g. to feed a program that wants NDJSON from CSV.

    from \\ to   csv                    ndjson                      lines
    csv         the wanted columns     objects of strings          the same bytes
    ndjson      named fields, as text  the same bytes              the same bytes
    lines       one column, "line"     {"line": "..."}             the same bytes

Every function keeps the number and the order of records, and raises RecordError, which names
the record by its index, for one that cannot be read or does not fit the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from officegrid.core.errors import InternalError
from officegrid.data.json_text import field_text, parse_object, strings_object
from officegrid.data.records import RecordError, split_records
from officegrid.data.rows import check_width, decode_records, parse_rows, render_rows
from officegrid.wire.data import Format, Layout

LINE_COLUMN = "line"


def convert(
    data: bytes,
    columns: Sequence[str] | None,
    source: Layout,
    target_format: Format,
    target_columns: Sequence[str] | None = None,
    *,
    header: bool = False,
) -> bytes:
    """`data`, written as `source` says with `columns` (CSV only), in `target_format`.

    `target_columns` picks and orders the columns of a CSV target; None means all: those of the
    source, or for NDJSON every key in the order first seen. `header` puts a CSV header first.
    CSV is written with the delimiter and quote of `source`.
    """
    if target_format == "csv":
        return _to_csv(data, columns, source, target_columns, header)
    if source.format == target_format or target_format == "lines":
        return _as_lines(data, source)
    if source.format == "csv":
        names = list(columns if columns is not None else source.columns or [])
        texts = []
        for index, row in enumerate(parse_rows(data, source)):
            check_width(row, names, index)
            texts.append(strings_object(names, row))
    else:
        texts = [strings_object([LINE_COLUMN], [text]) for text in text_lines(data, source)]
    return "".join([text + "\n" for text in texts]).encode()


def _to_csv(
    data: bytes,
    columns: Sequence[str] | None,
    source: Layout,
    target_columns: Sequence[str] | None,
    header: bool,
) -> bytes:
    csv_layout = source.model_copy(update={"format": "csv"})
    if source.format == "csv":
        have = list(columns if columns is not None else source.columns or [])
        want = have if target_columns is None else list(target_columns)
        body = recolumn(data, have, want, source)
    elif source.format == "lines":
        want = [LINE_COLUMN] if target_columns is None else list(target_columns)
        rows = [
            [text if name == LINE_COLUMN else "" for name in want]
            for text in text_lines(data, source)
        ]
        body = render_rows(rows, csv_layout)
    else:
        objects = [parse_object(t, i) for i, t in enumerate(text_lines(data, source))]
        want = key_union(objects) if target_columns is None else list(target_columns)
        body = render_rows(
            [[field_text(found.get(name)) for name in want] for found in objects], csv_layout
        )
    return (render_rows([want], csv_layout) if header else b"") + body


def key_union(objects: Iterable[dict[str, object]]) -> list[str]:
    """All keys of the objects, in the order first seen."""
    return list(dict.fromkeys(key for found in objects for key in found))


def text_lines(data: bytes, layout: Layout) -> list[str]:
    """NDJSON or lines records as text without their line ending (LF or CR LF)."""
    if layout.format == "csv":
        raise InternalError("CSV records are not lines of text.")
    lines = decode_records(data, layout).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _as_lines(data: bytes, source: Layout) -> bytes:
    if data and not data.endswith(b"\n"):
        data += b"\n"
    if source.format == "csv" and source.quote.encode() in data:
        for index, record in enumerate(split_records(data, source)):
            if record.count(b"\n") > 1:
                raise RecordError(
                    "The record spans several lines.",
                    "A quoted field holds a line break, so the record is not one line of text.",
                    'Have the program read csv or ndjson (stdin = "ndjson") instead of lines.',
                    record=index,
                )
    return data


def recolumn(data: bytes, have: Sequence[str], want: Sequence[str], layout: Layout) -> bytes:
    """CSV rows with columns `have` as rows with columns `want`; columns not in `have` are empty.

    Equal columns give the same bytes back, unread. Raises RecordError for a row that does not
    have one field per column.
    """
    if list(have) == list(want):
        return data
    place = {name: index for index, name in enumerate(have)}
    picks = [place.get(name, -1) for name in want]
    rows = parse_rows(data, layout)
    for index, row in enumerate(rows):
        check_width(row, have, index)
    return render_rows([[row[pick] if pick >= 0 else "" for pick in picks] for row in rows], layout)
