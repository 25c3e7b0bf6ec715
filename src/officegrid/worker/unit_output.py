"""A unit's results on their way out: packed into blocks and uploaded while the program runs."""

from __future__ import annotations

import base64
import queue
import threading

from officegrid.core.errors import OfficeGridError
from officegrid.data.blocks import BlockWriter, PackedBlock
from officegrid.wire.data import BlockSlice
from officegrid.wire.work import QuarantinedRecord
from officegrid.worker.link import GaveUp, Link
from officegrid.worker.runner import BadRecord, ChunkResult

AHEAD = 1  # results waiting to be packed before the program has to wait
RAW_KEPT_BYTES = 64 * 1024
RAW_TOTAL_BYTES = 16 * 1024 * 1024
ERROR_KEPT_CHARS = 2000


class UnitOutput:
    """Feed it `ChunkResult`s in order; `finish()` returns what to commit."""

    def __init__(self, link: Link, lease_id: str) -> None:
        self._link = link
        self._lease_id = lease_id
        self._writer = BlockWriter()
        self._blocks: list[BlockSlice] = []
        self._bad: list[QuarantinedRecord] = []
        self._raw_bytes = 0
        self._queue: queue.Queue[ChunkResult | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._drain, name="upload", daemon=True)
        self._thread.start()

    def add(self, result: ChunkResult) -> None:
        """Hand over the next result. Raises what went wrong while uploading earlier ones."""
        self._hand_over(result)

    def finish(self) -> tuple[list[BlockSlice], list[QuarantinedRecord]]:
        """Wait until everything is uploaded. Raises what went wrong."""
        self._hand_over(None)
        self._thread.join()
        self._raise_error()
        if self._closed.is_set():
            raise GaveUp
        return self._blocks, self._bad

    def close(self) -> None:
        """Give up: nothing more is uploaded."""
        self._closed.set()

    def _hand_over(self, item: ChunkResult | None) -> None:
        while not self._closed.is_set():
            self._raise_error()
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
        raise GaveUp

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _drain(self) -> None:
        try:
            while not self._closed.is_set():
                try:
                    result = self._queue.get(timeout=0.2)
                except queue.Empty:
                    continue
                if result is None:
                    self._upload(self._writer.finish())
                    return
                self._pack(result)
        except (GaveUp, OfficeGridError) as error:
            self._error = error
        except BaseException as error:
            self._error = error
            raise

    def _pack(self, result: ChunkResult) -> None:
        for piece in result.pieces:
            if isinstance(piece, BadRecord):
                self._bad.append(self._quarantined(piece))
            else:
                self._upload(self._writer.append(piece.data, piece.rows, piece.columns))

    def _upload(self, blocks: list[PackedBlock]) -> None:
        for block in blocks:
            self._link.for_unit(
                self._lease_id,
                lambda block=block: self._link.upload(  # type: ignore[misc]
                    block.slice.sha256, block.payload
                ),
                lambda: not self._closed.is_set(),
            )
            self._blocks.append(block.slice)

    def _quarantined(self, bad: BadRecord) -> QuarantinedRecord:
        # Many bad records of great size must not make a commit that nobody can swallow.
        left = RAW_TOTAL_BYTES - self._raw_bytes
        scarce = left < RAW_KEPT_BYTES
        raw = bad.raw[: 64 if scarce else RAW_KEPT_BYTES]
        # Text of a program may hold anything, lone surrogates too.
        error = bad.error[: 120 if scarce else ERROR_KEPT_CHARS]
        error = error.encode("utf-8", "backslashreplace").decode()
        self._raw_bytes += len(raw) + len(error)
        place = self._writer.position
        return QuarantinedRecord(
            record=bad.record,
            error=error,
            attempts=bad.attempts,
            raw=base64.b64encode(raw).decode(),
            raw_cut=len(raw) < len(bad.raw),
            block=place.block,
            offset=place.offset,
            rows_before=place.rows,
        )
