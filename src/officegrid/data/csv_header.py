"""The header of CSV files: reading it, and refusing those that cannot name columns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from officegrid.core.errors import InputError
from officegrid.data.cutter import Cutter
from officegrid.data.files import ByteReader
from officegrid.data.options import ReadOptions
from officegrid.data.records import RecordError
from officegrid.data.rows import parse_rows
from officegrid.wire.data import Layout


def read_columns(path: Path, layout: Layout, options: ReadOptions) -> list[str] | None:
    """The column names of one file; without a header, "c1", "c2", ... as wide as record 1.

    None if the file has no header and no record. Raises InputError for a header that is
    missing, not text, or has empty or repeated names.
    """
    with ByteReader(path, options.encoding) as reader:
        record = Cutter(reader, layout, options).first_record()
    if not layout.header:
        if not record:
            return None
        return [f"c{i + 1}" for i in range(max(len(_parse(path, record, layout)), 1))]
    if not record:
        raise InputError(
            f"{path} is empty: not even a header line.",
            "A CSV file begins with a line that names its columns.",
            "Export the file again, or leave it out of the input.",
        )
    names = _parse(path, record, layout)
    _check_names(path, names)
    return names


def _parse(path: Path, record: bytes, layout: Layout) -> list[str]:
    what = "header" if layout.header else "first record"
    try:
        return parse_rows(record, layout)[0]
    except RecordError as error:
        raise InputError(
            f"{path}: the {what} cannot be read: {error.what}", error.why, error.fix
        ) from None


def _check_names(path: Path, names: list[str]) -> None:
    if not names:
        raise InputError(
            f"{path} begins with an empty line where its header should be.",
            "The first line of a CSV file names its columns.",
            "Remove the empty line, or set header = false if the file has no header.",
        )
    empty = [str(i + 1) for i, name in enumerate(names) if not name.strip()]
    if empty:
        raise InputError(
            f"{path}: the header has no name for column {', '.join(empty)}.",
            f"It reads: {_shown(names)}.",
            "Name every column, or set header = false if the first line is a record.",
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{path}: the header names more than one column {_shown(twice)}.",
            "Programs get records by column name, so names must differ.",
            "Rename the columns, or set header = false to have them called c1, c2, ...",
        )


def check_same(first: Path, names: list[str], other: Path, others: list[str]) -> None:
    """Raises InputError unless both files have the same columns in the same order."""
    if names == others:
        return
    missing = [name for name in names if name not in others]
    extra = [name for name in others if name not in names]
    if missing or extra:
        parts = [f"{other.name} lacks {_shown(missing)}"] if missing else []
        parts += [f"{other.name} has {_shown(extra)} besides"] if extra else []
        why = " and ".join(parts) + "."
    else:
        why = f"The order differs: {_shown(names)} and {_shown(others)}."
    raise InputError(
        f"{first} and {other} have different columns.",
        why,
        "Files read as one dataset need the same header; submit the others as a job of their own.",
    )


def delimiter_warning(path: Path, names: list[str], layout: Layout) -> str | None:
    """A hint if the header looks as if it were written with another delimiter."""
    if len(names) != 1:
        return None
    for candidate in (",", ";", "\t", "|"):
        if candidate != layout.delimiter and candidate in names[0]:
            return (
                f"{path}: the header is one column, {_shown(names)}, and contains {candidate!r}; "
                f"perhaps the file needs delimiter = {candidate!r}."
            )
    return None


def _shown(names: list[str]) -> str:
    shown = ", ".join(f'"{name[:80]}"' for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
