"""A job's output: its parts in record order, with retried records put into their gaps.

Nothing is rewritten to merge: the output *is* the ordered list of block slices. A part that
quarantined a record remembers where that record's output would have gone (a gap); when a later
part supplies it, the slice is cut in two there and the later part comes between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

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


def slices(tx: Tx, job: Job, *, start: int, stop: int) -> Iterator[tuple[int, list[BlockSlice]]]:
    """The output from record `start` up to `stop`, in steps of one part: (record after the last
    one covered, slices)."""
    covered = start
    while covered < stop:
        page = tx.parts(job.id, from_start=covered, limit=PAGE_PARTS)
        if not page:
            return
        for part in page:
            if part.start >= stop:
                return
            if part.start < covered:  # lies in a gap of the part before: already emitted
                continue
            end, merged = _emit(tx, part)
            yield end, merged
            covered = end


def _emit(tx: Tx, part: Part) -> tuple[int, list[BlockSlice]]:
    """(record after the last one covered, slices): the part with its gaps filled.

    A part that fills a gap at the very end may reach over the end of the part it belongs to.
    """
    end = part.end
    merged: list[BlockSlice] = []
    block_no, offset, rows = 0, 0, 0
    for gap, child in _children(tx, part):
        while block_no < gap.block:
            merged += _cut(part.blocks[block_no], offset, None, rows, None)
            block_no, offset, rows = block_no + 1, 0, 0
        if block_no < len(part.blocks) and gap.offset > offset:
            merged += _cut(part.blocks[block_no], offset, gap.offset, rows, gap.rows_before)
            offset, rows = gap.offset, gap.rows_before
        child_end, slices_of_child = _emit(tx, child)
        merged += slices_of_child
        end = max(end, child_end)
    for block in part.blocks[block_no:]:
        merged += _cut(block, offset, None, rows, None)
        offset, rows = 0, 0
    return end, merged


def _children(tx: Tx, part: Part) -> list[tuple[Gap, Part]]:
    """The later parts that fill this part's gaps, each with the gap where it starts."""
    if not part.gaps:
        return []
    later = [
        other
        for other in tx.retried_parts(part.job, part.start, part.end)
        if other.generation > part.generation
    ]
    if not later:
        return []
    by_start: dict[int, Part] = {}
    for other in later:  # ordered by (start, generation): the first one is the direct child
        by_start.setdefault(other.start, other)
    found: list[tuple[Gap, Part]] = []
    covered = part.start  # a child covers the gaps of all its records
    for gap in part.gaps:
        child = by_start.get(gap.record)
        if gap.record >= covered and child is not None:
            found.append((gap, child))
            covered = child.end
    return found


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
