"""The clean-up: versions nobody needs, inputs nobody uses, then files that nothing refers to.

0. Jobs that ended long ago, if `[keep] jobs` says so.
1. Rows are dropped in small transactions beside all others; each decides again what is free to go.
2. Files older than `[keep] objects` are listed; whatever any row refers to is taken off the list.
3. The rest is deleted, each after one more look at its age.

Why nothing is lost that is needed: rows are only ever dropped here. A reference that is new since
step 2 was copied from a row that step 2 has seen, or is to an object that was uploaded or asked for
since: that makes the file young, and step 3 leaves it. A crash leaves rows that are whole and at
most files that the next clean-up finds again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from typing import Any, TypeVar

from officegrid.coordinator.config import KeepConfig
from officegrid.coordinator.objects import ObjectStore
from officegrid.coordinator.service import keeping
from officegrid.coordinator.service.keeping import Leaving
from officegrid.coordinator.writer import Writer
from officegrid.core.errors import ConflictError, UnavailableError
from officegrid.core.keeping import Keep
from officegrid.storage.api import Storage, Tx
from officegrid.wire.keeping import CleanedVersion, CleanReply, Stays

T = TypeVar("T")
Page = Callable[[Tx, tuple[Any, ...]], tuple[list[str], tuple[Any, ...] | None]]
"""From where the last page ended: the objects of the next one, and where that ends."""

VERSIONS_A_STEP = 10
ROWS_A_STEP = 1000
PAGE_ROWS = 2000


@dataclass
class Cleaner:
    """Blocks: call `run` on a thread of its own. One run at a time."""

    storage: Storage
    writer: Writer
    objects: ObjectStore
    config: KeepConfig
    clock: Callable[[], float]
    is_stopping: Callable[[], bool] = lambda: False
    _running: threading.Lock = field(default_factory=threading.Lock)

    def run(self, *, dry_run: bool = False) -> CleanReply:
        """Raises ConflictError when one is under way, UnavailableError when the disk fails or the
        coordinator stops; what was done till then stands."""
        if not self._running.acquire(blocking=False):
            raise ConflictError(
                "A clean-up is under way.", fix="Wait for it to end; its result is in the log."
            )
        try:
            return self._run(dry_run)
        finally:
            self._running.release()

    def _run(self, dry_run: bool) -> CleanReply:
        started = time.monotonic()
        now = self.clock()
        before = now - self.config.objects
        keep = Keep(self.config.versions, self.config.days)
        reply = CleanReply(dry_run=dry_run)
        self._drop_jobs(reply, now)
        digests = self._drop_versions(reply, keep, before, now)
        leaving = Leaving(digests, self._drop_datasets(reply, before))
        self._sweep(reply, keep, before, now, leaving if dry_run else Leaving())
        reply.took_s = round(time.monotonic() - started, 3)
        return reply

    # --- rows

    def _drop_jobs(self, reply: CleanReply, now: float) -> None:
        older_than_s = self.config.jobs
        old = self.storage.read(lambda tx: keeping.old_jobs(tx, older_than_s, now))
        if reply.dry_run or older_than_s is None:
            reply.jobs = old
        else:
            drop = partial(keeping.drop_job, older_than_s=older_than_s, now=now)
            reply.jobs = [one for one in old if self._write(partial(drop, job_id=one))]
        if reply.dry_run:
            return
        left_over = self.storage.read(keeping.left_over_jobs)
        # Leases have no index by job: they are looked for beside the writer, before the list of
        # dropped jobs gets shorter.
        leases = self.storage.read(lambda tx: tx.lone_leases()) if left_over else []
        for at in range(0, len(leases), ROWS_A_STEP):
            self._write(methodcaller("drop_leases", leases[at : at + ROWS_A_STEP]))
        for job in left_over:
            while self._write(partial(keeping.drop_rest, job_id=job, rows=ROWS_A_STEP)):
                pass

    def _drop_versions(
        self, reply: CleanReply, keep: Keep, before: float, now: float
    ) -> frozenset[str]:
        """Digests of what went, or would go."""
        found = self.storage.read(lambda tx: keeping.verdict(tx, keep, now))
        counts: dict[str, int] = {}
        for reason in found.stay.values():
            counts[reason] = counts.get(reason, 0) + 1
        reply.stay += [Stays(what="versions", reason=r, count=n) for r, n in counts.items()]
        digests = sorted({one.digest for one in found.go})
        gone: list[Any] = list(found.go)
        if not reply.dry_run:
            gone = []
            for at in range(0, len(digests), VERSIONS_A_STEP):
                step = digests[at : at + VERSIONS_A_STEP]
                drop = partial(keeping.drop_versions, digests=step, keep=keep, now=now)
                gone += self._write(drop)
        reply.versions = [
            CleanedVersion(kind=one.kind, name=one.name, n=one.n, digest=one.digest) for one in gone
        ]
        stray = self.storage.read(lambda tx: keeping.stray_archives(tx, before))
        for digest in [] if reply.dry_run else stray:
            self._write(
                partial(
                    keeping.drop_stray_archive, digest=digest, before=before, keep=keep, now=now
                )
            )
        for digest in [] if reply.dry_run else self.storage.read(keeping.lone_deltas):
            self._write(partial(keeping.drop_lone_deltas, digest=digest))
        return frozenset(digests) | (frozenset(stray) - found.digests)

    def _drop_datasets(self, reply: CleanReply, before: float) -> frozenset[str]:
        unused = self.storage.read(lambda tx: tx.unused_datasets(before))
        if reply.dry_run:
            reply.datasets = len(unused)
            return frozenset(unused)
        for dataset in unused:
            reply.datasets += self._write(methodcaller("drop_dataset", dataset, before))
        # Those that an interrupted clean-up left, too.
        for dataset in self.storage.read(lambda tx: tx.left_over_datasets()):
            while self._write(methodcaller("drop_left_over_blocks", dataset, ROWS_A_STEP)):
                pass
        return frozenset()

    def _write(self, operation: Callable[[Tx], T]) -> T:
        self._look_up()
        return self.writer.submit(operation).result()

    # --- files

    def _sweep(
        self, reply: CleanReply, keep: Keep, before: float, now: float, leaving: Leaving
    ) -> None:
        unclaimed: dict[str, int] = {}
        young = Stays(what="objects", reason="younger than [keep] objects", count=0)
        for name, size, changed_at in self.objects.all():
            if changed_at < before:
                unclaimed[name] = size
            else:
                young.count += 1
                young.bytes += size
        stay = [young]
        for reason, pages in self._referenced(keep, now, leaving):
            claimed = Stays(what="objects", reason=reason, count=0)
            for page in pages:
                self._look_up()
                for name in page:
                    taken = unclaimed.pop(name, None)
                    if taken is not None:
                        claimed.count += 1
                        claimed.bytes += taken
            stay.append(claimed)
        reply.stay += [one for one in stay if one.count]
        for name, size in unclaimed.items():
            if reply.dry_run:
                taken = size
            else:
                self._look_up()
                taken = self.objects.delete_unless_young(name, before)
            if taken is not None:
                reply.objects += 1
                reply.bytes += taken

    def _referenced(
        self, keep: Keep, now: float, leaving: Leaving
    ) -> Iterator[tuple[str, Iterable[Iterable[str]]]]:
        read = self.storage.read
        yield (
            "input of a job",
            self._pages(
                lambda tx, after: tx.objects_of_datasets(after, PAGE_ROWS, leaving.datasets)
            ),
        )
        yield (
            "output of a job",
            self._pages(lambda tx, after: tx.objects_of_parts(after, PAGE_ROWS)),
        )
        yield (
            "part of an image",
            self._pages(lambda tx, after: tx.objects_of_images(after, PAGE_ROWS)),
        )
        yield (
            "code or data that stays",
            [read(lambda tx: keeping.content_objects(tx, keep, now, leaving))],
        )
        yield "named by a setting", [read(keeping.settings_objects)]

    def _pages(self, page: Page) -> Iterator[list[str]]:
        """Each in a read of its own: a long one would keep the database's log from being merged."""
        after: tuple[Any, ...] | None = ()
        while after is not None:
            found, after = self._page(page, after)
            yield found

    def _page(self, page: Page, after: tuple[Any, ...]) -> tuple[list[str], tuple[Any, ...] | None]:
        return self.storage.read(lambda tx: page(tx, after))

    def _look_up(self) -> None:
        if self.is_stopping():
            raise UnavailableError(
                "The clean-up was interrupted.", "The coordinator is stopping.",
                "It begins again by itself.",
            )  # fmt: skip
