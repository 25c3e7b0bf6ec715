"""The content that versions stand for: what a worker may fetch of it, and the cheapest way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from officegrid.core.errors import ForbiddenError, NotFoundError
from officegrid.core.fetchplan import MAX_STEPS, KnownDelta, plan_fetch
from officegrid.storage.api import Archive, Delta, Machine, Tx
from officegrid.wire.archives import ArchiveSpec, DeltaSpec
from officegrid.wire.catalogue import FetchWay

PRESENT_MOST = 100


def way(tx: Tx, digest: str, present: Sequence[str]) -> FetchWay:
    """How to get to archive `digest` from those that are `present`. Raises NotFoundError."""
    archive = _archive(tx, digest)
    deltas = {(one.old, one.new): one for one in _leading_to(tx, digest)}
    known = [KnownDelta(one.old, one.new, one.stored_bytes) for one in deltas.values()]
    plan = plan_fetch(digest, frozenset(present[:PRESENT_MOST]), known, archive.stored_bytes)
    steps = [deltas[step.old, step.new] for step in plan.deltas]
    return FetchWay(
        digest=digest,
        start=plan.start,
        deltas=[DeltaSpec.model_validate(one.spec) for one in steps],
        spec=ArchiveSpec.model_validate(archive.spec) if archive.spec else None,
        bytes=plan.bytes,
    )


def _archive(tx: Tx, digest: str) -> Archive:
    found = tx.archive(digest)
    if found is None:
        raise NotFoundError(
            f"There is no archive {digest[:12]}….",
            "It was never pushed, or it has been cleaned up since.",
            "Push it again.",
        )
    return found


def _leading_to(tx: Tx, digest: str) -> list[Delta]:
    """All deltas of chains that end in `digest`."""
    found: list[Delta] = []
    ends, seen = [digest], {digest}
    for _ in range(MAX_STEPS):
        deltas = [delta for end in ends for delta in tx.deltas_to(end)]
        found += deltas
        ends = [one for one in dict.fromkeys(delta.old for delta in deltas) if one not in seen]
        seen.update(ends)
        if not ends:
            break
    return found


def check_object(tx: Tx, digest: str, sha256: str) -> None:
    """Is the object a part of that archive, or of a delta on a way to it? Raises NotFoundError."""
    archive = _archive(tx, digest)
    names = set(_names(archive.spec.get("pieces", ())))
    for delta in _leading_to(tx, digest):
        names.update(_names(delta.spec["pieces"]))
    if sha256 not in names:
        raise NotFoundError(f"Object {sha256[:12]}… is no part of archive {digest[:12]}….")


def _names(pieces: Iterable[dict[str, str]]) -> list[str]:
    return [piece["sha256"] for piece in pieces]


def check_use(tx: Tx, machine: Machine, digest: str) -> None:
    """A worker may fetch only what a unit that it holds needs. Raises ForbiddenError."""
    if not tx.lease_may_use(machine.id, digest):
        raise ForbiddenError(
            "This archive does not belong to any unit that this machine works on now.",
            fix="Ask for a new unit.",
        )
