"""Cuts the bytes of one text file (CSV, NDJSON, lines) into chunks of whole records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from officegrid.core.errors import InputError
from officegrid.data.files import ByteReader
from officegrid.data.options import ReadOptions, codec_name
from officegrid.data.records import (
    complete_records,
    count_records,
    ends_inside_quotes,
    record_offsets,
    skip_take,
)
from officegrid.wire.data import Layout

_FIRST_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """`records` whole records; header and BOM are removed, the last byte is LF."""

    data: bytes
    records: int


class Cutter:
    """The chunks of one file. `warnings` grows while they are drained."""

    def __init__(self, reader: ByteReader, layout: Layout, options: ReadOptions) -> None:
        self._reader = reader
        self._layout = layout
        self._limit = options.max_record_bytes
        self._chunk_bytes = min(options.chunk_bytes, options.max_record_bytes)
        self._check_utf8 = codec_name(options.encoding) == "utf-8"
        self._rest = b""  # always begins at the beginning of a record
        self._at_end = False
        self.records = 0
        self._line = 1  # of the file, where `_rest` begins
        self.warnings: list[str] = []
        self.ends_inside_quotes = False

    def first_record(self) -> bytes:
        """Takes the first record off, e.g. the header; b"" if the file is empty."""
        while not self._at_end and complete_records(self._rest, self._layout)[0] == 0:
            self._grow(_FIRST_READ_BYTES)
            if len(self._rest) > self._limit:
                break
        record = skip_take(self._rest, self._layout, 0, 1)
        if len(record) > self._limit:
            raise self._too_long("the first line")
        self._rest = self._rest[len(record) :]
        self._line += record.count(b"\n")
        return record

    def chunks(self) -> Iterator[Chunk]:
        """All (remaining) records. Raises InputError for a record over the size limit."""
        while True:
            if not self._at_end:
                self._grow(self._chunk_bytes)
                self._check_sizes()
            if self._at_end:
                data = self._finish()
                records = count_records(data, self._layout)
            else:
                records, length = complete_records(self._rest, self._layout)
                data = self._rest[:length]
            if not self.ends_inside_quotes:
                keep, blank = _blank_tail(data)
                data, records = data[:keep], records - blank
            if data:
                yield self._take(data, records)
            if self._at_end:
                return
            if len(self._rest) > 2 * self._limit:
                raise self._too_many_blank_lines()

    def _grow(self, least: int) -> None:
        # Doubling keeps a long record linear: its bytes are looked at about twice in all.
        wanted = max(least, min(len(self._rest), self._limit + 1 - len(self._rest)))
        block = self._reader.read(wanted)
        self._at_end = not block
        self._rest += block

    def _finish(self) -> bytes:
        data = self._rest
        if data and not data.endswith(b"\n"):
            data += b"\n"
        self.ends_inside_quotes = ends_inside_quotes(data, self._layout)
        if self.ends_inside_quotes:
            start = record_offsets(data, self._layout)[-2]
            line = self._line + data.count(b"\n", 0, start)
            self.warnings.append(
                f"{self._reader.path}: a quote opened in the record at line {line} is never "
                f"closed; everything from there to the end is one record "
                f"({data.count(bytes([10]), start)} lines)."
            )
        return data

    def _take(self, data: bytes, records: int) -> Chunk:
        if self._check_utf8 and not data.isascii():
            self._note_undecodable(data)
        self._rest = self._rest[len(data) :]
        self._line += data.count(b"\n")
        self.records += records
        return Chunk(data, records)

    def _note_undecodable(self, data: bytes) -> None:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            self._check_utf8 = False  # one warning a file is enough
            line = self._line + data.count(b"\n", 0, error.start)
            self.warnings.append(
                f"{self._reader.path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); "
                'such records end in quarantine. Perhaps the file needs encoding = "cp1252" '
                'or "latin-1".'
            )

    def _check_sizes(self) -> None:
        if len(self._rest) <= self._limit:
            return
        for index, (start, end) in enumerate(pairwise(record_offsets(self._rest, self._layout))):
            if end - start > self._limit:
                line = self._line + self._rest.count(b"\n", 0, start)
                raise self._too_long(f"record {self.records + index + 1}, starting at line {line},")

    def _too_long(self, which: str) -> InputError:
        return InputError(
            f"{self._reader.path}: {which} is longer than {size_text(self._limit)}.",
            self._long_record_cause(),
            "Look at that line; if the record is right, raise max_record_bytes.",
        )

    def _long_record_cause(self) -> str:
        if self._layout.format == "csv":
            return "Probably a quote that is never closed."
        return "No line break was found for that long; probably the file is not of this format."

    def _too_many_blank_lines(self) -> InputError:
        return InputError(
            f"{self._reader.path}: more than {size_text(self._limit)} of empty lines follow "
            f"record {self.records}.",
            "They are neither records nor the end of the file.",
            "Remove the empty lines.",
        )


def _blank_tail(data: bytes) -> tuple[int, int]:
    """(bytes before the trailing blank lines, number of those lines); data ends outside quotes."""
    if len(data) >= 3 and data[-2] not in b"\r\n":
        return len(data), 0
    text = len(data.rstrip(b"\r\n"))
    breaks = data.count(b"\n", text)
    if text == 0:
        return 0, breaks
    return data.index(b"\n", text) + 1, breaks - 1


def size_text(size_bytes: int) -> str:
    """A size for people, in units of 1024."""
    size = float(size_bytes)
    for unit in ("bytes", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"
