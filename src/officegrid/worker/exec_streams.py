"""What an executable reads on stdin and prints on stdout, and how that becomes output records.

CSV on stdin and stdout is written with the delimiter and quote of the job's CSV input, so that a
script which reads and writes such files works unchanged; output is stored with the standard ones.
"""

from __future__ import annotations

import csv
import io

from officegrid.data.convert import convert
from officegrid.data.records import RecordError, with_line_ending
from officegrid.data.rows import parse_rows, render_rows
from officegrid.wire.data import Format, Layout
from officegrid.wire.work import OutputSpec, Program
from officegrid.worker.rowcheck import Malformed, Shape, boundaries, first_end, read, read_one
from officegrid.worker.runner import OutputPiece


class UnfitOutput(Exception):  # noqa: N818
    """What a program printed cannot be taken as output. It becomes the text of bad records.

    `row` is the index of the output record at fault, if one is; `final` says that the fault lies
    with the program as a whole and not with any input record.
    """

    def __init__(self, error: str, row: int | None = None, final: bool = False) -> None:
        super().__init__(error)
        self.row = row
        self.final = final


class Printed:
    """Output of one batch in its stored form: `rows` records, CSV without a header."""

    def __init__(self, data: bytes, rows: int, columns: list[str] | None, form: Format) -> None:
        self._data = data
        self.rows = rows
        self._columns = columns
        self._form = form
        self._offsets: list[int] | None = None

    def piece(self, start: int = 0, end: int | None = None) -> OutputPiece:
        """Output records `[start, end)`; all of them if `end` is None."""
        if end is None or (start, end) == (0, self.rows):
            return OutputPiece(self._data, self.rows, self._columns)
        if self._offsets is None:
            self._offsets = boundaries(self._data, Shape(self._form))
        data = self._data[self._offsets[start] : self._offsets[end]]
        return OutputPiece(data, end - start, self._columns)


class Streams:
    """Turns stored records into stdin, and stdout into stored records, for one job."""

    def __init__(self, program: Program, layout: Layout, output: OutputSpec) -> None:
        self._layout = layout
        self._stdin: Format = program.stdin or layout.format
        self._stdout: Format = program.stdout or output.format
        self._header = program.header
        self._output = output
        self._stdout_layout = Layout(format=self._stdout)
        if layout.format == "csv":
            marks = {"delimiter": layout.delimiter, "quote": layout.quote}
            self._stdout_layout = self._stdout_layout.model_copy(update=marks)

    def stdin(self, data: bytes, columns: tuple[str, ...] | None) -> list[bytes]:
        """The bytes for a batch of well-formed records, the CSV header first where one is wanted.

        Raises RecordError, which names the record by its index in `data`, for a record that
        cannot be written in the format the program reads.
        """
        header = self._stdin == "csv" and self._header
        if self._stdin != self._layout.format:
            names = list(columns) if columns is not None else None
            return [convert(data, names, self._layout, self._stdin, header=header)]
        if not data.endswith(b"\n"):
            data += b"\n"
        if header and columns is not None:
            return [render_rows([columns], self._layout), data]
        return [data]

    def stdout(self, data: bytes) -> Printed:
        """The output records in what a program printed. Raises UnfitOutput."""
        if data and not data.endswith(b"\n"):
            data += b"\n"
        columns: list[str] | None = None
        if self._stdout == "csv":
            if self._header and data:
                columns, data = self._split_header(data)
            else:
                columns = self._output.columns
        rows = self._check(data, columns)
        data = with_line_ending(data, self._stdout_layout, b"\n")
        if self._stdout != self._output.format or self._foreign_csv():
            columns, data = self._converted(data, columns)
        self._check_columns(columns)
        return Printed(data, rows, columns, self._output.format)

    def _split_header(self, data: bytes) -> tuple[list[str], bytes]:
        shape = self._shape(None)
        end = first_end(data, shape)
        names = read_one(data[:end], shape)
        if isinstance(names, Malformed):
            raise UnfitOutput(
                f"the program printed a header that cannot be used: {names.error}", final=True
            )
        if len(set(names)) < len(names):
            raise UnfitOutput("the program printed a header with repeated columns", final=True)
        return names, data[end:]

    def _check(self, data: bytes, columns: list[str] | None) -> int:
        """The number of records; every one of them must be well formed."""
        rows = 0
        for rows, value in enumerate(read(data, self._shape(columns)), 1):
            if value.__class__ is Malformed:
                raise UnfitOutput(
                    f"the program printed a record that cannot be used: {value.error}", rows - 1
                )
        return rows

    def _check_columns(self, columns: list[str] | None) -> None:
        allowed = self._output.columns
        if columns is None or allowed is None:
            return
        for name in columns:
            if name not in allowed:
                raise UnfitOutput(f"column {name!r} is not in [output] columns", final=True)

    def _foreign_csv(self) -> bool:
        standard = (self._stdout_layout.delimiter, self._stdout_layout.quote) == (",", '"')
        return self._output.format == "csv" and not standard

    def _converted(self, data: bytes, columns: list[str] | None) -> tuple[list[str] | None, bytes]:
        target = self._output.format
        try:
            if target != "csv":
                return None, convert(data, columns, self._stdout_layout, target)
            if self._stdout == "csv":
                return columns, render_rows(parse_rows(data, self._stdout_layout), Layout())
            data = convert(data, None, self._stdout_layout, "csv", header=True)
        except RecordError as error:
            reason = f"{error.what} {error.why}".strip()
            raise UnfitOutput(
                f"the program printed a record that cannot be used: {reason}", error.record
            ) from error
        names, _, body = data.partition(b"\n")
        return next(csv.reader(io.StringIO(names.decode()))), body

    def _shape(self, columns: list[str] | None) -> Shape:
        layout = self._stdout_layout
        names = None if columns is None else tuple(columns)
        return Shape(self._stdout, layout.delimiter, layout.quote, names)
