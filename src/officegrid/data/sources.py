"""Input files as one dataset: `open_source` gives chunks of whole records in order.

CSV rows come without the header (it is in `layout.columns`), every chunk ends with LF, and
empty lines at the end of a file are dropped; everywhere else they are records.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from officegrid.core.errors import InputError, UsageError
from officegrid.data.csv_header import check_same, delimiter_warning, read_columns
from officegrid.data.cutter import Chunk, Cutter
from officegrid.data.files import ByteReader, find_files
from officegrid.data.options import ReadOptions, delimiter_of, format_of
from officegrid.wire.data import FileFormat, Layout

__all__ = ["Chunk", "ReadOptions", "Source", "open_source"]


class Source(ABC):
    """Records of some files. `records`, `raw_bytes` and `warnings` are complete once drained.

    `total_bytes` is the size of the files as stored and `bytes_read` how far reading is, in
    the same measure, for progress bars.
    """

    def __init__(self, files: Sequence[Path], layout: Layout) -> None:
        self.files = list(files)
        self.layout = layout
        self.total_bytes = sum(os.path.getsize(file) for file in files)
        self.bytes_read = 0
        self.records = 0
        self.raw_bytes = 0
        self.warnings: list[str] = []

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """All records from the first file on, afresh at each call. Raises InputError."""

    def _restart(self) -> None:
        self.bytes_read = self.records = self.raw_bytes = 0
        self.warnings = []

    def _count(self, chunk: Chunk) -> Chunk:
        self.records += chunk.records
        self.raw_bytes += len(chunk.data)
        return chunk


class TextSource(Source):
    """CSV, NDJSON and lines files, compressed or not."""

    def __init__(self, files: Sequence[Path], layout: Layout, options: ReadOptions) -> None:
        super().__init__(files, layout)
        self._options = options
        self._columns_warning: str | None = None
        if layout.format == "csv":
            self._read_headers()
        self._restart()

    def _read_headers(self) -> None:
        """All headers are read before the first record, so that a wrong file is known at once."""
        first: Path | None = None
        columns: list[str] = []
        for file in self.files:
            found = read_columns(file, self.layout, self._options)
            if found is None:
                continue
            if first is None:
                first, columns = file, found
            elif self.layout.header:
                check_same(first, columns, file, found)
        self.layout = self.layout.model_copy(update={"columns": columns})
        if first is not None:
            self._columns_warning = delimiter_warning(first, columns, self.layout)

    def _restart(self) -> None:
        super()._restart()
        if self._columns_warning:
            self.warnings.append(self._columns_warning)

    def chunks(self) -> Iterator[Chunk]:
        self._restart()
        finished = 0
        for number, file in enumerate(self.files):
            with ByteReader(file, self._options.encoding) as reader:
                cutter = Cutter(reader, self.layout, self._options)
                if self.layout.format == "csv" and self.layout.header:
                    cutter.first_record()
                for chunk in cutter.chunks():
                    self.bytes_read = finished + reader.stored_position
                    yield self._count(chunk)
                finished += reader.stored_position
                self.bytes_read = finished
            if cutter.ends_inside_quotes and number + 1 < len(self.files):
                raise _open_quote_between(file, self.files[number + 1], cutter.warnings[-1])
            self.warnings += cutter.warnings


def _open_quote_between(file: Path, following: Path, detail: str) -> InputError:
    return InputError(
        f"{file} ends inside a quoted field, and {following.name} follows it.",
        f"{detail} The records of the next file would become part of it.",
        "Correct the quote; the file may also be cut short.",
    )


def open_source(paths: Sequence[str | Path], options: ReadOptions | None = None) -> Source:
    """The files that `paths` (names or globs) stand for, as one dataset.

    Raises InputError for files that are missing, empty or do not fit together, and UsageError
    for formats, delimiters or encodings that are unknown or contradict one another.
    """
    options = options or ReadOptions()
    files = find_files(paths)
    file_format = _common_format(files, options)
    if file_format == "parquet":
        from officegrid.data.parquet import ParquetSource

        return ParquetSource(files, options)
    layout = Layout(format=file_format, quote=options.quote, header=options.header)
    if file_format == "csv":
        layout = layout.model_copy(update={"delimiter": _common_delimiter(files, options)})
    return TextSource(files, layout, options)


def _common_format(files: Sequence[Path], options: ReadOptions) -> FileFormat:
    if options.format is not None:
        return options.format
    first = format_of(files[0])
    for file in files[1:]:
        if format_of(file) != first:
            raise InputError(
                f"{files[0]} is {first} and {file} is {format_of(file)}.",
                "Files of one input are read as one dataset, so they must be of one kind.",
                "Name only one kind of file, or set [input] format if the extension misleads.",
            )
    return first


def _common_delimiter(files: Sequence[Path], options: ReadOptions) -> str:
    if options.delimiter is not None:
        return options.delimiter
    found = {delimiter_of(file) for file in files}
    if len(found) > 1:
        raise InputError(
            f"{files[0]} and the other files mix .csv and .tsv.",
            "One is split at commas and the other at tabs.",
            "Submit them as two jobs, or set [input] delimiter if it is the same in all.",
        )
    delimiter = found.pop()
    if delimiter == options.quote:
        raise UsageError(
            "The CSV delimiter and quote are the same character.",
            f"Both are {delimiter!r}.",
            "Give them different values.",
        )
    return delimiter
