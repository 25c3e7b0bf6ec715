"""The job's data and its program: what comes out depends on the input records alone.

One record may give no output line, one, or two, so that a lost, doubled or misplaced record
always shows in the bytes. The code's version is in every line: it tells which code ran.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from officegrid.wire.data import BlockSlice, Layout
from officegrid.wire.work import QuarantinedRecord

LAYOUT = Layout(format="lines")


@dataclass(slots=True)
class ObjectShelf:
    """The object store: what was put stays, whatever crashes."""

    objects: dict[str, bytes] = field(default_factory=dict)
    _lines: dict[tuple[str, int, int], list[bytes]] = field(default_factory=dict)

    def put(self, data: bytes, records: int) -> BlockSlice:
        name = hashlib.sha256(data).hexdigest()
        self.objects[name] = data
        size = len(data)
        return BlockSlice(
            sha256=name, stored_bytes=size, raw_bytes=size, length=size, records=records
        )

    def read(self, block: BlockSlice) -> bytes:
        return self.objects[block.sha256][block.offset : block.offset + block.length]

    def lines(self, block: BlockSlice) -> list[bytes]:
        """The records of a slice, line ends included."""
        key = (block.sha256, block.offset, block.length)
        if key not in self._lines:
            self._lines[key] = self.read(block).splitlines(keepends=True)
        return self._lines[key]


def input_line(job: str, record: int) -> bytes:
    return b"%s record %d\n" % (job.encode(), record)


def bundle_name(version: int) -> str:
    """The digest under which version `version` of the program is known."""
    return hashlib.sha256(b"bundle %d" % version).hexdigest()


BUNDLE_VERSIONS = {bundle_name(version): version for version in range(1000)}


def output_lines(line: bytes, version: int) -> list[bytes]:
    """What the program prints for one record."""
    check = zlib.crc32(line)
    made = b"v%d %08x %s" % (version, check, line)
    return [[], [made, b"+" + made]][check % 10] if check % 10 < 2 else [made]


@dataclass(frozen=True, slots=True)
class Result:
    """What a worker commits for one unit."""

    blocks: list[BlockSlice]
    quarantined: list[QuarantinedRecord]


def run_unit(
    shelf: ObjectShelf,
    lines: Sequence[bytes],
    start: int,
    bad: frozenset[int],
    version: int,
    block_records: int,
) -> Result:
    """Run the program over records `start` and following, given as `lines`."""
    blocks: list[BlockSlice] = []
    quarantined: list[QuarantinedRecord] = []
    made: list[bytes] = []
    size = 0
    for number, line in enumerate(lines, start):
        if number in bad:
            quarantined.append(
                QuarantinedRecord(
                    record=number, error="the program refused it", attempts=1,
                    raw=base64.b64encode(line).decode(), block=len(blocks), offset=size,
                    rows_before=len(made),
                )
            )  # fmt: skip
            continue
        printed = output_lines(line, version)
        made += printed
        size += sum(map(len, printed))
        if len(made) >= block_records:
            blocks.append(shelf.put(b"".join(made), len(made)))
            made, size = [], 0
    if made:
        blocks.append(shelf.put(b"".join(made), len(made)))
    return Result(blocks, quarantined)
