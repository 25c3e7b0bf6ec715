"""Rows of a running MySQL query, straight from its packets.

PyMySQL turns one packet at a time into one row, calling several functions for each field: about a
third of this module's speed. Here a buffer of many packets is cut in one loop; see docs/sql.md for
the figures. The format is the text protocol's: a packet is 3 bytes of length, 1 of sequence and the
payload; a row is one length-encoded text per column, 0xFB for NULL; 0xFE ends the rows, 0xFF is an
error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pymysql

from officegrid.data.sql.reader import too_long

Column = list[bytes | None]

_READ_BYTES = 256 * 1024
_WHOLE_PACKET = 0xFFFFFF  # a packet of this length goes on in the next one
_NULL, _END, _ERROR = 0xFB, 0xFE, 0xFF


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that came together, column by column."""

    records: int
    columns: list[Column]


class PacketRows:
    """`file` is the connection's buffered socket, right behind the column definitions."""

    def __init__(self, file: Any, columns: int, chunk_bytes: int, max_record_bytes: int) -> None:
        self._file = file
        self._width = columns
        self._chunk_bytes = chunk_bytes
        self._limit = max_record_bytes
        self._buffer = b""
        self._at = 0
        self._before = 0  # records of groups that are out

    def groups(self) -> Iterator[Group]:
        """Rows in groups of about `chunk_bytes`. Raises pymysql.Error, OSError, InputError."""
        columns: list[Column] = [[] for _ in range(self._width)]
        size = 0
        while True:
            ended, taken = self._cut(columns, self._chunk_bytes - size)
            size += taken
            if not ended and size < self._chunk_bytes:
                size += self._fill(columns)
            records = len(columns[0])
            if records and (ended or size >= self._chunk_bytes):
                self._before += records
                yield Group(records, columns)
                columns, size = [[] for _ in range(self._width)], 0
            if ended:
                return

    def _cut(self, columns: list[Column], most_bytes: int) -> tuple[bool, int]:
        """Move the fields of whole packets of the buffer into `columns`.

        Returns whether the end of the rows has been seen, and how many bytes were taken.
        """
        buffer, begun = self._buffer, self._at
        at, last = begun, len(buffer)
        stop = min(begun + most_bytes, last - 4)
        limit = self._limit
        adds = [column.append for column in columns]
        ended = False
        while at <= stop:
            length = buffer[at] | buffer[at + 1] << 8 | buffer[at + 2] << 16
            begin = at + 4
            end = begin + length
            if end > last or length > limit or length == _WHOLE_PACKET:
                break
            if buffer[begin] >= _END and self._ends(buffer[begin:end]):
                ended = True
                break
            for add in adds:
                size = buffer[begin]
                begin += 1
                if size == _NULL:
                    add(None)
                    continue
                if size > _NULL:
                    size, begin = _long(buffer, begin, size)
                stopped = begin + size
                add(buffer[begin:stopped])
                begin = stopped
            at = end
        self._at = at
        return ended, at - begun

    @staticmethod
    def _ends(payload: bytes) -> bool:
        if payload[0] == _ERROR:
            pymysql.err.raise_mysql_exception(payload)
        return len(payload) < 9  # longer ones are rows whose first field is very long

    def _fill(self, columns: list[Column]) -> int:
        """Read on. A packet that is far larger than the buffer becomes a row at once.

        Returns the bytes that were taken for that.
        """
        rest = self._buffer[self._at :]
        self._at = 0
        length = int.from_bytes(rest[:3], "little") if len(rest) >= 4 else 0
        if length <= min(_READ_BYTES, self._limit):
            more = self._file.read1(_READ_BYTES)
            if not more:
                raise _lost()
            self._buffer = rest + more
            return 0
        payload, self._buffer = self._large(rest, self._before + len(columns[0]) + 1)
        at = 0
        for column in columns:
            size, at = payload[at], at + 1
            if size == _NULL:
                column.append(None)
                continue
            if size > _NULL:
                size, at = _long(payload, at, size)
            column.append(payload[at : at + size])
            at += size
        return len(payload)

    def _large(self, rest: bytes, record: int) -> tuple[bytes, bytes]:
        """The payload of the packet that `rest` begins, and of those that continue it.

        Also the bytes behind it.
        """
        parts: list[bytes] = []
        size = 0
        length = _WHOLE_PACKET
        while length == _WHOLE_PACKET:
            rest = self._have(rest, 4)
            length = int.from_bytes(rest[:3], "little")
            size += length
            if size > self._limit:
                raise too_long(record, self._limit)
            rest = self._have(rest, 4 + length)
            parts.append(rest[4 : 4 + length])
            rest = rest[4 + length :]
        return b"".join(parts), rest

    def _have(self, rest: bytes, size: int) -> bytes:
        missing = size - len(rest)
        if missing <= 0:
            return rest
        more = self._file.read(missing)
        if more is None or len(more) < missing:
            raise _lost()
        return rest + bytes(more)


def _long(data: bytes, at: int, first: int) -> tuple[int, int]:
    """A length that takes 2, 3 or 8 bytes, and where the field begins."""
    width = (2, 3, 8)[first - 0xFC]
    return int.from_bytes(data[at : at + width], "little"), at + width


def _lost() -> pymysql.OperationalError:
    return pymysql.OperationalError(2013, "Lost connection to MySQL server during query")
