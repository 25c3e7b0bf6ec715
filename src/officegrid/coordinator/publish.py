"""Bringing a new version in: its delta first, so that no worker fetches more than it has to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from officegrid.coordinator.service import pins, versions
from officegrid.storage.api import Archive, Delta, Tx, Version
from officegrid.wire.archives import ArchiveSpec

if TYPE_CHECKING:
    from officegrid.coordinator.state import Coordinator  # which knows who publishes

DELTA_PATIENCE_S = 2.0  # of who submits a job


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
    archive = _archive_of(spec, here.clock())
    await repair(here, spec)
    return await _add(here, "data", name, archive, by=by, origin=origin, file_name=file_name)


def is_lost(here: Coordinator, digest: str, tx: Tx) -> bool:
    """Is this data known, and the store lacks a piece of it or of a delta that leads to it?"""
    archive = tx.archive(digest)
    if archive is None:
        return False
    pieces = [*archive.spec.get("pieces", ())]
    for delta in tx.deltas_to(digest):
        pieces += delta.spec["pieces"]
    return any(here.objects.size(piece["sha256"]) is None for piece in pieces)


async def repair(here: Coordinator, spec: ArchiveSpec) -> None:
    """`spec` is in the store. Where what is known of that content is not, it takes its place: the
    content may have been cut in another way. Deltas that lead to it are forgotten."""
    if not await here.read(partial(is_lost, here, spec.digest)):
        return

    def write(tx: Tx) -> None:
        tx.drop_archive(spec.digest)
        tx.put_archive(_archive_of(spec, here.clock()))

    await here.write(write)


def _archive_of(spec: ArchiveSpec, now: float) -> Archive:
    return Archive(
        spec.digest, spec.kind, spec.raw_bytes, spec.stored_bytes, spec.model_dump(mode="json"), now
    )


async def add_code(here: Coordinator, name: str, bundle: str, *, by: str, origin: str) -> Published:
    """A new version of a program, whose bundle is in the store."""
    known = await _bundle_archive(here, bundle)
    return await _add(here, "code", name, known, by=by, origin=origin, file_name="")


@dataclass(frozen=True, slots=True)
class Prepared:
    """The content of a version to come, and the delta to it: made already, or still `making`."""

    archive: Archive
    delta: Delta | None = None
    making: asyncio.Task[Delta | None] | None = None


async def prepare_code(here: Coordinator, name: str, bundle: str) -> Prepared:
    """What `keep` is to write down beside a version that is made of this bundle. It takes seconds
    whatever else goes on: a delta that takes longer comes later, see `keep_later`."""
    archive = await _bundle_archive(here, bundle)
    making = asyncio.create_task(make_delta(here, "code", name, archive))
    done, _ = await asyncio.wait([making], timeout=DELTA_PATIENCE_S)
    return Prepared(archive, making.result()) if done else Prepared(archive, making=making)


def keep_later(here: Coordinator, prepared: Prepared | None) -> None:
    """The version is there. Its delta is written down when it is made, in the background."""
    if prepared is None or prepared.making is None:
        return
    making = prepared.making

    async def wait() -> None:
        delta = await making
        if delta is not None:
            await here.write(lambda tx: _keep_delta(tx, delta))

    here.tasks.start(wait())


async def _bundle_archive(here: Coordinator, bundle: str) -> Archive:
    known = await here.read(lambda tx: tx.archive(bundle))
    if known is not None:
        return known
    now = here.clock()
    return await here.deltas.inflating.run(lambda: here.deltas.bundle_archive(bundle, now))


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
    return await here.deltas.turn.run(lambda: here.deltas.make(old, archive))


def keep(tx: Tx, archive: Archive, delta: Delta | None) -> None:
    """Write down the content of a version. What is known of it stays as it is: workers may have
    begun to fetch it, cut in another way by another release."""
    if tx.archive(archive.digest) is None:
        tx.put_archive(archive)
    if delta is not None:
        _keep_delta(tx, delta)


def _keep_delta(tx: Tx, delta: Delta) -> None:
    """Unless one of its ends has been cleaned up meanwhile."""
    if tx.archive(delta.old) is not None and tx.archive(delta.new) is not None:
        tx.put_delta(delta)
