"""Fetches the ordered image on a thread of its own: slowly, in pieces, and sure of each.

The file grows as `<sha256>.part`. Each chunk is verified as it comes; after a restart the part is
read again chunk by chunk and goes on after the last good one. The whole file is verified once more
from the disk before it gets its name. The network is used at a steady rate, which depends on
whether somebody uses the PC; the thread has the lowest CPU and disk priority (Linux; elsewhere
the rate alone keeps it modest).
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

import httpx2

from officegrid.agent.drivers.command import yield_to_others
from officegrid.agent.images.store import Store, digest
from officegrid.agent.log import get_logger
from officegrid.core.backoff import delay_s
from officegrid.core.errors import (
    LimitError,
    NotFoundError,
    OfficeGridError,
    UnavailableError,
)
from officegrid.core.imageevents import Held, Order
from officegrid.core.quantities import duration_text
from officegrid.transport.http import Connection
from officegrid.wire.images import CHUNK_BYTES, ImageFile, ImageSpec

log = get_logger("images")

BACKOFF_BASE_S = 2.0
BACKOFF_CAP_S = 120.0
NO_ROOM_S = 300.0
"""So long until the disk is looked at again."""
IDLE_S = 60.0
SPEC_TIMEOUT_S = 30.0
BURST_S = 0.05
MB = 10**6


class Line(Protocol):
    """A way to the coordinator: `PacedConnection`."""

    def call(
        self, method: str, path: str, *, reply: type[ImageSpec], timeout_s: float, retry: bool
    ) -> ImageSpec: ...

    def download(self, path: str, *, max_bytes: int, retry: bool) -> bytes: ...

    def close(self) -> None: ...


class Pace:
    """A steady rate. `rate_bytes_s` is asked for each piece, so that a change counts at once."""

    def __init__(
        self, rate_bytes_s: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._clock = clock
        self._due_s = float("-inf")
        self.stop = threading.Event()

    def spend(self, count: int) -> None:
        """Wait until so many bytes more may have been received."""
        now_s = self._clock()
        self._due_s = max(self._due_s, now_s - BURST_S) + count / self._rate_bytes_s()
        if self._due_s > now_s:
            self.stop.wait(self._due_s - now_s)


class PacedConnection(Connection):
    """A connection that receives no faster than its pace: what is not read waits with the
    coordinator, by TCP's own means."""

    def __init__(self, url: str, ca_pem: str, token: str | None, pace: Pace) -> None:
        super().__init__(url, ca_pem, token, retry_s=0.0)
        self._pace = pace

    def _chunks(self, response: httpx2.Response) -> Iterator[bytes]:
        for piece in super()._chunks(response):
            self._pace.spend(len(piece))
            yield piece


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one image has come. `trouble` says why it does not get on just now; `hopeless`:
    it will not until something changes on the coordinator."""

    id: str
    name: str
    sha256: str = ""
    """Of its file; empty: not known yet."""
    done_bytes: int = 0
    total_bytes: int = 0
    left_s: float | None = None
    trouble: str = ""
    hopeless: bool = False

    @property
    def text(self) -> str:
        """A sentence for people."""
        if self.hopeless:
            return self.trouble
        share = 100 * self.done_bytes // self.total_bytes if self.total_bytes else 0
        left = "" if self.left_s is None else f", {duration_text(self.left_s)} left"
        said = f"The worker image {self.name} is being fetched: {share} %{left}."
        return f"{said} {self.trouble}".strip()


class NoFileError(NotFoundError):
    """The image was not built for the hypervisor of this PC."""


class _SupersededError(Exception):
    """Another image is wanted, or the agent ends."""


class Fetcher:
    """`wake` it when `wanted` may have changed; `fetched` is called on its thread, and says
    whether what has come could be put down."""

    def __init__(
        self,
        line: Line,
        store: Store,
        pace: Pace,
        *,
        wanted: Callable[[], tuple[Order, str] | None],
        fetched: Callable[[Held], bool],
        told: Callable[[str], None],
        vm_bytes: Callable[[int, str], int],
    ) -> None:
        """`wanted`: the order and the format of its file. `told`: trouble for the admin.
        `vm_bytes`: what a VM made from a file of this size and format will need."""
        self._line, self._store, self._pace = line, store, pace
        self._wanted, self._fetched, self._told = wanted, fetched, told
        self._vm_bytes = vm_bytes
        self._random = random.Random()
        self._wake = threading.Event()
        self._progress: Progress | None = None
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)

    @property
    def progress(self) -> Progress | None:
        """None: nothing is being fetched."""
        return self._progress

    @property
    def trouble(self) -> str:
        return self._progress.trouble if self._progress is not None else ""

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def close(self, within_s: float = 2.0) -> None:
        """End; what has come stays for the next run."""
        self._pace.stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(within_s / 2)
        # Breaks off what still hangs; the thread closes what it may have opened meanwhile.
        self._line.close()
        if self._thread.is_alive():
            self._thread.join(within_s / 2)

    # --- the thread

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._line.close()

    def _work(self) -> None:
        if sys.platform.startswith("linux"):
            yield_to_others(threading.get_native_id())
        failures = 0
        while not self._pace.stop.is_set():
            self._wake.clear()
            wanted = self._wanted()
            rest_s = IDLE_S
            if wanted is None:
                self._progress, failures = None, 0
            else:
                try:
                    held = self._fetch(*wanted)
                except _SupersededError:
                    continue
                except OfficeGridError as error:
                    failures += 1
                    rest_s = self._failed(error, failures)
                except Exception as error:  # a fault here must not end the fetching for good
                    log.error("fault", why=f"{type(error).__name__}: {error}")
                    failures, rest_s = failures + 1, BACKOFF_CAP_S
                else:
                    failures = 0
                    if self._fetched(held):
                        self._progress = None
                        continue
                    rest_s = NO_ROOM_S
                    self._note(trouble="It has come; that cannot be written down.", left_s=None)
            self._wake.wait(rest_s)

    def _failed(self, error: OfficeGridError, failures: int) -> float:
        """Say so; how long to rest."""
        said = f"{error.what} {error.why}".strip()
        log.warning("not_fetched", what=error.what, why=error.why)
        hopeless = isinstance(error, NoFileError)
        self._note(trouble=said, left_s=None, hopeless=hopeless)
        if isinstance(error, LimitError) or hopeless:
            self._told(f"{said} {error.fix}".strip())
            return NO_ROOM_S
        return self._backoff_s(failures)

    def _backoff_s(self, failures: int) -> float:
        return 0.2 * BACKOFF_BASE_S + delay_s(
            failures, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_CAP_S, random01=self._random.random()
        )

    def _note(self, **news: object) -> None:
        if self._progress is not None:
            self._progress = replace(self._progress, **news)  # type: ignore[arg-type]

    # --- one image

    def _fetch(self, order: Order, ext: str) -> Held:
        before = self._progress
        if before is None or before.id != order.id:
            self._progress = Progress(order.id, order.name)
        file = self._file(order, ext)
        self._note(sha256=file.sha256)
        held = Held(order.id, order.version, order.name, file.sha256, ext, file.size)
        if self._store.holds(held):
            if self._store.is_whole(held):
                log.info("there_already", image=order.name, sha256=held.sha256)
                return held
            self._store.drop(held)
        with self._store.open_part(file.sha256) as part:
            try:
                self._fill(part, order, ext, file)
                part.flush()
                os.fsync(part.fileno())
                part.seek(0)
                whole = digest(part) == file.sha256
                if not whole:
                    part.truncate(0)
            except OSError as error:
                raise _cannot_write(order.name, error) from None
        if not whole:
            self._told(f"The worker image {order.name} came damaged; it is fetched again.")
            raise UnavailableError(
                f"The worker image {order.name} is not what its name says.",
                "Its chunks are right, their sum is not.",
                "Push the image again.",
            )
        self._store.finish(held)
        log.info("fetched", image=order.name, bytes=file.size, sha256=file.sha256)
        return held

    def _file(self, order: Order, ext: str) -> ImageFile:
        spec = self._line.call(
            "GET", f"/v1/images/{order.id}/spec", reply=ImageSpec, timeout_s=SPEC_TIMEOUT_S,
            retry=False,
        )  # fmt: skip
        file = next((file for kind, file in spec.files.items() if kind == ext), None)
        if file is None:
            raise NoFileError(
                f"The worker image {order.name} has no file for this PC.",
                f"The hypervisor here takes {ext}; the image has {', '.join(sorted(spec.files))}.",
                "Build it in that format too, and push it.",
            )
        if len(file.chunks) != -(-file.size // CHUNK_BYTES):
            raise UnavailableError(
                f"The worker image {order.name} cannot be understood.",
                f"{file.size} bytes are not {len(file.chunks)} chunks.",
                "Push it again with the same release of officegrid as the coordinator's.",
            )
        return file

    def _fill(self, part: BinaryIO, order: Order, ext: str, file: ImageFile) -> None:
        """Bring the part to the whole file's size, verified chunk by chunk."""
        self._note(done_bytes=0, total_bytes=file.size, hopeless=False)
        begun = self._resume(part, order, ext, file)
        part.truncate()
        done_bytes = part.tell()
        vm_bytes = self._vm_bytes(file.size, ext)
        self._store.need_room(order.name, file.size - done_bytes, vm_bytes)
        log.info("fetching", image=order.name, bytes=file.size, there=done_bytes)
        began_s, began_bytes = time.monotonic(), done_bytes
        for number in range(begun, len(file.chunks)):
            data = self._chunk(number, order, ext, file)
            # Others fill the disk meanwhile: what is to stay free does.
            self._store.need_room(order.name, file.size - done_bytes, 0)
            part.write(data)
            done_bytes += len(data)
            rate = (done_bytes - began_bytes) / max(1e-3, time.monotonic() - began_s)
            self._note(
                done_bytes=done_bytes, left_s=(file.size - done_bytes) / rate, trouble=""
            )  # fmt: skip

    def _resume(self, part: BinaryIO, order: Order, ext: str, file: ImageFile) -> int:
        """How many chunks are there and good; the part is positioned after the last of them."""
        part.seek(0)
        for number, sha256 in enumerate(file.chunks):
            self._still_wanted(order, ext)
            at = part.tell()
            data = part.read(CHUNK_BYTES)
            if len(data) != _chunk_bytes(file, number) or _sha256(data) != sha256:
                part.seek(at)
                return number
            self._note(done_bytes=part.tell())
        return len(file.chunks)

    def _chunk(self, number: int, order: Order, ext: str, file: ImageFile) -> bytes:
        """One chunk, verified; tried again for as long as it is wanted."""
        sha256, failures = file.chunks[number], 0
        while True:
            self._still_wanted(order, ext)
            try:
                data = self._line.download(
                    f"/v1/image-chunks/{sha256}", max_bytes=CHUNK_BYTES, retry=False
                )
                if _sha256(data) == sha256 and len(data) == _chunk_bytes(file, number):
                    return data
                trouble = (
                    f"Chunk {number + 1} of {len(file.chunks)} of the worker image {order.name} "
                    "came damaged; it is fetched again."
                )
                self._told(trouble)
            except OfficeGridError as error:
                trouble = f"{error.what} {error.why}".strip()
            log.warning("chunk", number=number, why=trouble)
            failures += 1
            self._note(trouble=trouble, left_s=None)
            self._pace.stop.wait(self._backoff_s(failures))

    def _still_wanted(self, order: Order, ext: str) -> None:
        wanted = None if self._pace.stop.is_set() else self._wanted()
        if wanted is None or (wanted[0].id, wanted[1]) != (order.id, ext):
            raise _SupersededError


def _chunk_bytes(file: ImageFile, number: int) -> int:
    return min(CHUNK_BYTES, file.size - number * CHUNK_BYTES)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _cannot_write(name: str, error: OSError) -> OfficeGridError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LimitError(
            f"The disk became full while the worker image {name} was fetched.",
            error.strerror or "",
            "Free some space on this PC; the agent goes on by itself.",
        )
    return UnavailableError(
        f"The worker image {name} cannot be written.",
        error.strerror or str(error),
        "Check the disk of this PC.",
    )
