"""Output files: pieces of records, in order, to one CSV, NDJSON, lines or Parquet file.

The bytes of the file depend on the records only, not on how they were cut into pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from officegrid.core.errors import InputError, UsageError
from officegrid.data.atomic import FileWriter, real_target, replacing, spool_beside, written
from officegrid.data.convert import LINE_COLUMN, convert, key_union, recolumn, text_lines
from officegrid.data.json_text import parse_object
from officegrid.data.options import bare_suffix, compression_of
from officegrid.data.records import (
    RecordError,
    count_records,
    ends_inside_quotes,
    with_line_ending,
)
from officegrid.data.rows import parse_rows, render_rows
from officegrid.wire.data import FileFormat, Layout


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """Whole records as stored; `columns` (CSV only) if they are not those of the layout.

    `checked_records` is their number when whoever stored them has parsed every record and ended
    it with LF, as workers do: such a piece is copied as it is wherever nothing has to change.
    """

    data: bytes
    columns: list[str] | None = None
    checked_records: int | None = None


@dataclass(frozen=True, slots=True)
class WrittenOutput:
    """The finished file. `records` counts records without the header."""

    path: Path
    records: int | None
    bytes: int
    sha256: str


def write_output(
    path: Path,
    pieces: Iterable[OutputPiece],
    stored: Layout,
    file_format: FileFormat,
    columns: list[str] | None,
    *,
    line_ending: Literal["\n", "\r\n"] = "\n",
) -> WrittenOutput:
    """Write all pieces to `path`, which is replaced as a whole and durably, or not at all.

    `columns` are those of the file (CSV, Parquet from CSV): pieces that have others are brought
    to them. None takes those of `stored`, else of the first piece, and for NDJSON to CSV every
    key there is. A CSV file has a header if `stored.header`; a name ending in .tsv means tabs;
    .gz and .zst compress. Records end in `line_ending`, whatever they ended in before.
    Parquet from CSV or lines has text columns only; from NDJSON it has the types of the values,
    strings always being text.

    Raises InputError (RecordError) for records that do not fit, UnavailableError if the disk is
    full or refuses, UsageError for a path that cannot be a file.
    """
    target = real_target(path)
    with replacing(target) as temporary, spool_beside(temporary) as spool:
        if file_format == "parquet":
            from officegrid.data.parquet_sink import write_parquet

            _refuse_compression(path)
            typed = stored.format == "ndjson"
            batches = json_pieces(pieces, stored, columns)
            records = write_parquet(temporary, spool, batches, columns, typed=typed)
            size, digest = _measure(temporary)
            return WrittenOutput(path, records, size, digest)
        out = _Out(path, stored, file_format, columns, line_ending)
        if stored.format == "ndjson" and file_format == "csv" and columns is None:
            pieces, out.columns = _spooled(spool, pieces, stored)
        with written(temporary, compression_of(path)) as writer:
            out.write_all(writer, pieces)
        return WrittenOutput(path, out.records, writer.bytes, writer.sha256)


def _refuse_compression(path: Path) -> None:
    if compression_of(path):
        raise UsageError(
            f"{path.name}: Parquet files are not compressed once more.",
            "Parquet is compressed inside.",
            f"Name the output {path.stem}.",
        )


class _Out:
    """One text file being written."""

    def __init__(
        self,
        path: Path,
        stored: Layout,
        file_format: FileFormat,
        columns: list[str] | None,
        line_ending: str,
    ) -> None:
        self._stored = stored
        self._format = file_format
        self._ending = line_ending.encode()
        self.columns = columns if columns is not None else stored.columns
        if stored.format == "lines" and self.columns is None:
            self.columns = [LINE_COLUMN]
        delimiter = "\t" if bare_suffix(path) == ".tsv" else stored.delimiter
        wanted: Literal["csv", "ndjson", "lines"] = (
            file_format if file_format != "parquet" else "ndjson"
        )
        self._target = stored.model_copy(update={"format": wanted, "delimiter": delimiter})
        self.records = 0

    def write_all(self, writer: FileWriter, pieces: Iterable[OutputPiece]) -> None:
        header_due = self._format == "csv" and self._stored.header
        for piece in pieces:
            if self.columns is None and self._format == "csv":
                self.columns = piece.columns
            if header_due and self.columns:
                writer.write(self._header())
                header_due = False
            self._write_piece(writer, piece)
        if header_due and self.columns:
            writer.write(self._header())

    def _header(self) -> bytes:
        line = render_rows([self.columns or []], self._target)
        return with_line_ending(line, self._target, self._ending)

    def _write_piece(self, writer: FileWriter, piece: OutputPiece) -> None:
        if piece.checked_records is not None and self._fits(piece):
            self.records += piece.checked_records
            writer.write(piece.data)
            return
        if self._stored.format == "csv" and ends_inside_quotes(piece.data, self._stored):
            last = self.records + count_records(piece.data, self._stored)
            raise InputError(
                f"Output record {last} has a quote that is never closed.",
                "The records after it would become part of it.",
                "Correct how the program quotes its fields.",
            )
        try:
            data = self._converted(piece)
        except RecordError as error:
            number = self.records + error.record + 1
            raise RecordError(
                f"Output record {number} cannot be written as {self._format}: {error.what}",
                error.why,
                error.fix,
                record=number - 1,
            ) from None
        data = with_line_ending(data, self._target, self._ending)
        self.records += count_records(data, self._target)
        writer.write(data)

    def _fits(self, piece: OutputPiece) -> bool:
        stored, target = self._stored, self._target
        if self._ending != b"\n" or stored.format != target.format:
            return False
        if stored.format != "csv":
            return True
        same_marks = (stored.delimiter, stored.quote) == (target.delimiter, target.quote)
        return same_marks and (piece.columns or stored.columns) == self.columns

    def _converted(self, piece: OutputPiece) -> bytes:
        stored = self._stored
        have = piece.columns or stored.columns or self.columns or []
        if stored.format != "csv" or self._target.format != "csv":
            # What is written as CSV takes its delimiter from the file's name.
            source = self._target.model_copy(update={"format": stored.format})
            source = stored if stored.format == "csv" else source
            return convert(piece.data, have, source, self._target.format, self.columns)
        lost = [name for name in have if name not in (self.columns or have)]
        if lost:
            raise InputError(
                f"The output has a column {lost[0]!r} that the file has not.",
                f"The file's columns are {', '.join(self.columns or [])}.",
                "Name all columns in [output] columns.",
            )
        data = recolumn(piece.data, have, self.columns or have, stored)
        if self._target.delimiter != stored.delimiter:
            data = render_rows(parse_rows(data, stored), self._target)
        return data


def json_pieces(
    pieces: Iterable[OutputPiece], stored: Layout, columns: list[str] | None
) -> Iterator[tuple[bytes, list[str]]]:
    """Each piece as NDJSON with its columns (none named for records that are NDJSON already)."""
    for piece in pieces:
        if stored.format == "ndjson":
            yield with_line_ending(piece.data, stored, b"\n"), []
            continue
        have = piece.columns or stored.columns or columns or []
        if stored.format == "lines":
            have = [LINE_COLUMN]
        yield convert(piece.data, have, stored, "ndjson"), have


def _spooled(
    spool: Path, pieces: Iterable[OutputPiece], stored: Layout
) -> tuple[Iterator[OutputPiece], list[str]]:
    """Pieces put on disk once to learn all their keys before the header is written."""
    keys: dict[str, None] = {}
    lengths: list[int] = []
    with spool.open("xb") as file:
        for piece in pieces:
            lines = text_lines(piece.data, stored)
            found = (parse_object(line, index) for index, line in enumerate(lines))
            keys.update(dict.fromkeys(key_union(found)))
            lengths.append(file.write(piece.data))
    return _unspooled(spool, lengths), list(keys)


def _unspooled(spool: Path, lengths: list[int]) -> Iterator[OutputPiece]:
    with spool.open("rb") as file:
        for length in lengths:
            yield OutputPiece(file.read(length))


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()
