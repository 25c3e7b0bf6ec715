"""A job's output: its parts in record order, with retried records put into their gaps.

Nothing is rewritten to merge: the output *is* the ordered list of block slices. A part that
quarantined a record remembers where that record's output would have gone (a gap); when a later
part supplies it, the slice is cut in two there and the later part comes between.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import pairwise

from officegrid.core.errors import InternalError
from officegrid.core.model import SpanState
from officegrid.storage.api import Dataset, Gap, Job, Part, PlacedBlock, Tx
from officegrid.wire.data import BlockSlice, Layout

PAGE_PARTS = 200


def finished_prefix(tx: Tx, job: Job) -> int:
    """Records before this one are all done or quarantined."""
    at = 0
    for start, end, state, _ in tx.spans(job.id):
        if state not in (SpanState.DONE, SpanState.QUARANTINED):
            return start
        at = end
    return at


def slices(
    tx: Tx, job: Job, *, start: int, stop: int, generations: range | None = None
) -> Iterator[tuple[int, list[BlockSlice]]]:
    """The output from record `start` up to `stop`, in steps: (record after the last one covered,
    slices). `start` is 0 or a record that an earlier step ended with. With `generations` only
    what was committed in those: the rest is as if it were not there (yet)."""
    chain: list[Part] = []  # parts that overlap one another, retried records reach over borders
    end = start
    for part in parts_from(tx, job.id, start):
        if generations is not None and part.generation not in generations:
            continue
        if part.start >= end and chain:
            yield end, _merge(chain)
            chain = []
        if part.start >= stop:
            return
        chain.append(part)
        end = max(end, part.end)
    if chain:
        yield end, _merge(chain)


def parts_from(tx: Tx, job_id: str, start: int) -> Iterator[Part]:
    """All parts that begin at record `start` or later, by (start, generation)."""
    following: int | None = start
    while following is not None:
        page, following = page_of_parts(tx, job_id, following, PAGE_PARTS)
        yield from page


def page_of_parts(tx: Tx, job_id: str, start: int, most: int) -> tuple[list[Part], int | None]:
    """(about `most` of them, where the next page begins; None: nowhere)."""
    page = tx.parts(job_id, from_start=start, limit=most)
    if len(page) < most:
        return page, None
    last = page[-1].start  # parts with one start are not torn apart
    page = [part for part in page if part.start < last] or page
    return page, page[-1].start + 1


def _merge(chain: list[Part]) -> list[BlockSlice]:
    """Slices of overlapping parts in record order. Where several parts cover a record, the newest
    one has it: the others have a gap there."""
    waiting = deque(chain)
    covering: list[tuple[int, int, Part]] = []  # a heap: the newest generation first
    runs: list[tuple[Part, int, int]] = []
    for here, there in pairwise(sorted({p.start for p in chain} | {p.end for p in chain})):
        while waiting and waiting[0].start == here:
            part = waiting.popleft()
            heappush(covering, (-part.generation, part.start, part))
        while covering[0][2].end <= here:
            heappop(covering)
        newest = covering[0][2]
        if runs and runs[-1][0] is newest:
            here = runs.pop()[1]
        runs.append((newest, here, there))
    return [
        piece
        for part, here, there in runs
        for piece in _between(part, _place(part, here), _place(part, there))
    ]


_Place = tuple[int, int, int]  # block, raw byte offset in it, output records before that


def _place(part: Part, record: int) -> _Place:
    """Where the output of `record` begins: an end of the part, or beside one of its gaps."""
    if record == part.start:
        return 0, 0, 0
    if record == part.end:
        return len(part.blocks), 0, 0
    near = bisect_left(part.gaps, record - 1, key=lambda gap: gap.record)
    if near < len(part.gaps) and part.gaps[near].record <= record:
        gap = part.gaps[near]
        return gap.block, gap.offset, gap.rows_before
    raise InternalError(f"Part {part.start} to {part.end - 1} was not cut at record {record}.")


def _between(part: Part, begin: _Place, end: _Place) -> Iterator[BlockSlice]:
    for number in range(begin[0], min(end[0] + 1, len(part.blocks))):
        _, start, rows_start = begin if number == begin[0] else (0, 0, 0)
        last = number == end[0]
        yield from _cut(
            part.blocks[number], start, end[1] if last else None,
            rows_start, end[2] if last else None,
        )  # fmt: skip


def _cut(
    block: BlockSlice, start: int, end: int | None, rows_start: int, rows_end: int | None
) -> Iterator[BlockSlice]:
    """The slice `[start, end)` of a block's raw bytes; nothing when it is empty."""
    stop = block.length if end is None else end
    rows = (block.records if rows_end is None else rows_end) - rows_start
    if stop > start:
        yield block.model_copy(
            update={"offset": block.offset + start, "length": stop - start, "records": rows}
        )


def empty_part(job: Job, record: int, lease_id: str, machine: str, now: float) -> Part:
    """A part for a record that the coordinator itself set aside: no output, one gap."""
    return Part(
        job=job.id,
        start=record,
        end=record + 1,
        generation=job.generation,
        lease_id=f"killer-{lease_id}",
        machine=machine,
        digest="",
        bundle=job.bundle,
        blocks=(),
        gaps=(Gap(record, 0, 0, 0),),
        records_out=0,
        compute_s=0.0,
        committed_at=now,
    )


def columns_of(tx: Tx, job: Job) -> list[str] | None:
    """The output's CSV columns: as the job file states them, else the union in record order;
    None when there are none (another format, no header, nothing committed)."""
    output = job.spec["output"]
    if output["format"] != "csv":
        return None
    if output.get("columns"):
        return list(output["columns"])
    seen = sorted(json.loads(tx.setting(f"columns:{job.id}") or "[]"))
    union: dict[str, None] = {}
    for _, columns in seen:
        union.update(dict.fromkeys(columns))
    return list(union) or None


def layout_of(tx: Tx, job: Job) -> Layout:
    return Layout(format=job.spec["output"]["format"], columns=columns_of(tx, job))


def as_dataset(tx: Tx, job: Job, now: float) -> str:
    """Make a finished job's output a dataset for the next job; its id depends on content only."""
    placed: list[PlacedBlock] = []
    at = 0
    digest = hashlib.sha256()
    layout = layout_of(tx, job)
    digest.update(layout.model_dump_json().encode())
    for _, part_slices in slices(tx, job, start=0, stop=job.total):
        for one in part_slices:
            placed.append(PlacedBlock(at, one))
            at += one.records
            digest.update(one.model_dump_json().encode())
    dataset = Dataset(
        id=digest.hexdigest(),
        layout=layout,
        records=at,
        raw_bytes=sum(block.slice.length for block in placed),
        blocks=len(placed),
        source=f"output of {job.name} ({job.id})",
        created_at=now,
    )
    tx.add_dataset(dataset, placed)
    return dataset.id
