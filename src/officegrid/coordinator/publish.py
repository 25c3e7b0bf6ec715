"""Bringing a new version in: its delta first, so that no worker fetches more than it has to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from officegrid.coordinator.service import pins, versions
from officegrid.storage.api import Archive, Delta, Tx, Version
from officegrid.wire.archives import ArchiveSpec

if TYPE_CHECKING:
    from officegrid.coordinator.state import Coordinator  # which knows who publishes


@dataclass(frozen=True, slots=True)
class Published:
    """`switched`: ids of the running jobs that follow the name."""

    version: Version
    new: bool
    switched: list[str]


async def add_data(
    here: Coordinator, name: str, spec: ArchiveSpec, *, by: str, origin: str, file_name: str
) -> Published:
    """A new version of a data set, whose pieces are in the store."""
    archive = Archive(
        spec.digest, spec.kind, spec.raw_bytes, spec.stored_bytes, spec.model_dump(mode="json"),
        here.clock(),
    )  # fmt: skip
    return await _add(here, "data", name, archive, by=by, origin=origin, file_name=file_name)


async def add_code(here: Coordinator, name: str, bundle: str, *, by: str, origin: str) -> Published:
    """A new version of a program, whose bundle is in the store."""
    known = await _bundle_archive(here, bundle)
    return await _add(here, "code", name, known, by=by, origin=origin, file_name="")


async def prepare_code(here: Coordinator, name: str, bundle: str) -> tuple[Archive, Delta | None]:
    """What `keep` is to write down beside a version that is made of this bundle."""
    archive = await _bundle_archive(here, bundle)
    return archive, await make_delta(here, "code", name, archive)


async def _bundle_archive(here: Coordinator, bundle: str) -> Archive:
    known = await here.read(lambda tx: tx.archive(bundle))
    if known is not None:
        return known
    return await run_in_threadpool(here.deltas.bundle_archive, bundle, here.clock())


async def _add(
    here: Coordinator, kind: str, name: str, archive: Archive, *, by: str, origin: str,
    file_name: str,
) -> Published:  # fmt: skip
    delta = await make_delta(here, kind, name, archive)

    def write(tx: Tx) -> Published:
        now = here.clock()
        keep(tx, archive, delta)
        version, new = versions.push(
            tx, kind, name, archive.digest, by=by, origin=origin, now=now, file_name=file_name
        )
        return Published(version, new, pins.switch_followers(here.grid, tx, kind, name, now))

    return await here.write(write)


async def make_delta(here: Coordinator, kind: str, name: str, archive: Archive) -> Delta | None:
    """From the newest version of that name, unless there is one already."""

    def look(tx: Tx) -> Archive | None:
        newest = tx.version(kind, name)
        if newest is None or newest.digest == archive.digest:
            return None
        if any(one.old == newest.digest for one in tx.deltas_to(archive.digest)):
            return None
        return tx.archive(newest.digest)

    old = await here.read(look)
    if old is None or old.kind != archive.kind:
        return None
    return await run_in_threadpool(here.deltas.make, old, archive)


def keep(tx: Tx, archive: Archive, delta: Delta | None) -> None:
    """Write down the content of a version. What is known of it stays as it is: workers may have
    begun to fetch it, cut in another way by another release."""
    if tx.archive(archive.digest) is None:
        tx.put_archive(archive)
    if delta is not None and tx.archive(delta.old) is not None:
        tx.put_delta(delta)
