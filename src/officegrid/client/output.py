"""Fetch a job's output: blocks in record order, merged into one file, put in place at once.

While a job still runs, `OutputSpool.follow` fetches the part that is already final, so that
little is left to do when the job ends.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from officegrid.core.errors import ConflictError, OfficeGridError, UnavailableError
from officegrid.data.blocks import unpack_block
from officegrid.data.sinks import OutputPiece, WrittenOutput, write_output
from officegrid.transport.http import Connection
from officegrid.wire.data import BlockSlice, FileFormat
from officegrid.wire.jobs import OutputHead, OutputPage

FETCHERS = 2
AHEAD = 8
FOLLOW_EVERY_S = 1.0
FEW_SLICES = 100  # a page with fewer means that little is left to fetch of the prefix

OnRecords = Callable[[int], None]


class OutputSpool:
    """Blocks of one job's output on this machine's disk, in a folder that goes away with it."""

    def __init__(self, connection: Connection, job_id: str, near: Path) -> None:
        self._connection = connection
        self._job_id = job_id
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=".officegrid-", dir=near))
        except OSError as error:
            raise UnavailableError(
                f"{near} cannot be written.",
                f"The system says: {error.strerror or error}.",
                f"Check its permissions, then `officegrid output {job_id} -o FILE`.",
            ) from None
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None

    def __enter__(self) -> OutputSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._follower is not None:
            self._follower.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- ahead of time

    def follow(self) -> None:
        """Start to fetch what is final already, in the background, until `write` is called."""
        self._follower = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._follower.start()

    def _follow(self) -> None:
        at = 0
        while not self._stop.wait(FOLLOW_EVERY_S):
            # Fetching ahead is a courtesy: what fails now is fetched, or reported, at the end.
            with contextlib.suppress(OfficeGridError):
                page = self._page(at)
                self._fetch_ahead(page.slices)
                at = page.next_record
                if page.end or self._stop.is_set():
                    return
                if len(page.slices) < FEW_SLICES:  # the prefix is fetched: go on behind it
                    self._fetch_ahead(self._page(at, gaps=True).slices)

    def _fetch_ahead(self, slices: list[BlockSlice]) -> None:
        for one in slices:
            if self._stop.is_set():
                return
            if not (self._folder / one.sha256).exists():
                self._payload(one)

    # --- the output itself

    def write(
        self, path: Path, file_format: FileFormat | None = None, on_records: OnRecords | None = None
    ) -> WrittenOutput:
        """Merge everything into `path`, atomically. Raises ConflictError if the job still runs."""
        self._stop.set()
        if self._follower is not None:
            self._follower.join()
        head = self._head()
        if not head.complete:
            raise ConflictError(
                f"Job {self._job_id} is {head.state}: its output is not complete yet.",
                fix=f"Wait for it with `officegrid watch {self._job_id}`.",
            )
        return write_output(
            path,
            self._pieces(head, on_records),
            head.layout,
            file_format or head.file_format,
            head.columns,
        )

    def _pieces(self, head: OutputHead, on_records: OnRecords | None) -> Iterator[OutputPiece]:
        done = 0
        waiting: queue.SimpleQueue[tuple[BlockSlice, Future[bytes]]] = queue.SimpleQueue()

        def next_piece() -> OutputPiece:
            nonlocal done
            one, payload = waiting.get()
            data = unpack_block(payload.result(), one)
            done += one.records
            if on_records is not None:
                on_records(done)
            return OutputPiece(data, one.columns, checked_records=one.records)

        for one in self._slices():
            waiting.put((one, self._pool.submit(self._payload, one)))
            if waiting.qsize() > AHEAD:
                yield next_piece()
        while not waiting.empty():
            yield next_piece()
        if self._head().generation != head.generation:
            raise self._retried()

    def _retried(self) -> ConflictError:
        return ConflictError(
            f"Job {self._job_id} was retried while its output was fetched.",
            "What was fetched is partly from before and partly from after.",
            f"Fetch it again when it has ended: `officegrid output {self._job_id} -o FILE`.",
        )

    def _head(self) -> OutputHead:
        return self._connection.call("GET", f"/v1/jobs/{self._job_id}/output", reply=OutputHead)

    def _slices(self) -> Iterator[BlockSlice]:
        at = 0
        while True:
            page = self._page(at)
            yield from page.slices
            if page.end:
                return
            if page.next_record == at:
                raise self._retried()
            at = page.next_record

    def _page(self, at: int, *, gaps: bool = False) -> OutputPage:
        return self._connection.call(
            "GET",
            f"/v1/jobs/{self._job_id}/output/slices",
            params={"from_record": at, "gaps": gaps},
            reply=OutputPage,
        )

    def _payload(self, one: BlockSlice) -> bytes:
        path = self._folder / one.sha256
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        payload = self._connection.download(f"/v1/objects/{one.sha256}", max_bytes=one.stored_bytes)
        draft = path.with_suffix(f".{threading.get_ident()}")
        try:
            draft.write_bytes(payload)
            draft.replace(path)
        except OSError as error:
            raise UnavailableError(
                f"The output cannot be written to {self._folder.parent}.",
                error.strerror or str(error),
                "Free some space or choose another folder; nothing is lost.",
            ) from None
        return payload


def fetch_output(
    connection: Connection,
    job_id: str,
    path: Path,
    file_format: FileFormat | None = None,
    on_records: OnRecords | None = None,
) -> WrittenOutput:
    """The whole output of an ended job as one file."""
    near = path.resolve().parent
    if not near.is_dir():
        raise UnavailableError(f"There is no folder {near} for the output.", fix="Create it first.")
    with OutputSpool(connection, job_id, near) as spool:
        return spool.write(path, file_format, on_records)
