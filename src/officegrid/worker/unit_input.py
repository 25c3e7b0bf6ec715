"""A unit's records, fetched ahead of the program that eats them."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator

from officegrid.core.errors import InputError
from officegrid.data.blocks import unpack_block
from officegrid.data.records import skip_take
from officegrid.wire.data import BlockSlice
from officegrid.wire.work import Unit
from officegrid.worker.link import GaveUp, Link
from officegrid.worker.runner import InputChunk

AHEAD = 1  # chunks waiting for the program, beside the one that is being fetched
CACHED_BYTES = 2 * 1024 * 1024


class BlockCache:
    """The blocks fetched last, compressed: neighbouring small units share blocks."""

    def __init__(self, most_bytes: int = CACHED_BYTES) -> None:
        self._most_bytes = most_bytes
        self._blocks: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, link: Link, block: BlockSlice) -> bytes:
        with self._lock:
            payload = self._blocks.get(block.sha256)
            if payload is not None:
                self._blocks.move_to_end(block.sha256)
                return payload
        payload = link.download(block.sha256, block.stored_bytes)
        with self._lock:
            if block.sha256 not in self._blocks:
                self._blocks[block.sha256] = payload
                self._bytes += len(payload)
            while self._bytes > self._most_bytes and len(self._blocks) > 1:
                self._bytes -= len(self._blocks.popitem(last=False)[1])
        return payload


class UnitInput:
    """Iterate over a unit's `InputChunk`s; fetching starts at once, in a thread of its own."""

    def __init__(self, unit: Unit, link: Link, cache: BlockCache) -> None:
        self._unit = unit
        self._link = link
        self._cache = cache
        self._queue: queue.Queue[InputChunk | BaseException | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="fetch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop fetching; whoever iterates gets GaveUp."""
        self._closed.set()

    def __iter__(self) -> Iterator[InputChunk]:
        while True:
            item = self._take()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _take(self) -> InputChunk | BaseException | None:
        while not self._closed.is_set():
            try:
                return self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
        raise GaveUp

    def _put(self, item: InputChunk | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
        raise GaveUp

    def _fill(self) -> None:
        try:
            for chunk in self._chunks():
                self._put(chunk)
            self._put(None)
        except GaveUp:
            return
        except BaseException as error:
            try:
                self._put(error)
            except GaveUp:
                return

    def _chunks(self) -> Iterator[InputChunk]:
        unit = self._unit
        at, skip = unit.start, unit.skip_records
        for block in unit.input:
            take = min(block.records - skip, unit.end - at)
            if take <= 0:
                continue
            yield self._chunk(block, at, skip, take)
            at, skip = at + take, 0
        if at != unit.end:
            raise InputError(
                f"The input of records {unit.start} to {unit.end - 1} ends at record {at}."
            )

    def _chunk(self, block: BlockSlice, first: int, skip: int, take: int) -> InputChunk:
        layout = self._unit.layout
        payload = self._link.for_unit(
            self._unit.lease_id,
            lambda: self._cache.get(self._link, block),
            lambda: not self._closed.is_set(),
        )
        data = unpack_block(payload, block)
        if skip or take < block.records:
            data = skip_take(data, layout, skip, take)
        have, want = block.columns, layout.columns
        if layout.format == "csv" and have is not None and want is not None and have != want:
            from officegrid.data.convert import recolumn  # few jobs need it

            data = recolumn(data, have, want, layout)
        return InputChunk(first, take, data, want if layout.format == "csv" else None)
