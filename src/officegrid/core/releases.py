"""The releases that workers are told to run: pushed, taken back, tried again. Pure.

One version is one content: a version that was pushed can not be pushed with other bytes. One
release at most is in force. Workers go to it when they are older, or run what was withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from officegrid.core.errors import ConflictError
from officegrid.core.versions import is_older, key

MOST_KEPT = 20
"""So many releases are remembered; the oldest that are not in force are forgotten."""


class ReleaseState(StrEnum):
    IN_FORCE = "in force"
    BEFORE = "before"
    """A newer one took its place."""
    WITHDRAWN = "withdrawn"
    """Nobody is to run it."""


@dataclass(frozen=True, slots=True)
class Release:
    """`digest`: SHA-256 of the wheel, which has `size` bytes. `number`: of the last order to run
    it; a worker on which it failed tries it again when that has grown."""

    digest: str
    version: str
    size: int
    number: int
    state: ReleaseState
    pushed_at: float
    pushed_by: str


@dataclass(frozen=True, slots=True)
class Releases:
    """All that were pushed, oldest push first. `number` counts orders."""

    number: int = 0
    all: tuple[Release, ...] = ()

    @property
    def in_force(self) -> Release | None:
        return next((one for one in self.all if one.state is ReleaseState.IN_FORCE), None)

    def find(self, digest: str) -> Release | None:
        return next((one for one in self.all if one.digest == digest), None)


def _put_in_force(known: Releases, digest: str, others: ReleaseState) -> Releases:
    number = known.number + 1
    changed = []
    for one in known.all:
        if one.digest == digest:
            one = replace(one, state=ReleaseState.IN_FORCE, number=number)
        elif one.state is ReleaseState.IN_FORCE:
            one = replace(one, state=others)
        changed.append(one)
    return Releases(number, tuple(changed))


def pushed(
    known: Releases, *, digest: str, version: str, size: int, by: str, now: float
) -> Releases:
    """The release is in force. Raises ConflictError for a version that has other content already,
    and for one that is older than what is in force."""
    for one in known.all:
        if one.digest != digest and key(one.version) == key(version):
            raise ConflictError(
                f"Version {version} was pushed before, with other content.",
                f"That was {one.digest[:12]}…, and this is {digest[:12]}….",
                "Give the new release a version of its own.",
            )
    current = known.in_force
    if current is not None and is_older(version, current.version):
        raise ConflictError(
            f"Release {version} is older than {current.version}, which is in force.",
            "Workers only go to a newer release.",
            "`officegrid update roll-back` takes the one in force back.",
        )
    if known.find(digest) is None:
        new = Release(digest, version, size, 0, ReleaseState.BEFORE, now, by)
        kept = [one for one in known.all if one.state is ReleaseState.IN_FORCE]
        rest = [one for one in known.all if one.state is not ReleaseState.IN_FORCE]
        kept = [*rest[-(MOST_KEPT - 1 - len(kept)) :], *kept]
        known = replace(known, all=(*sorted(kept, key=known.all.index), new))
    return _put_in_force(known, digest, ReleaseState.BEFORE)


def rolled_back(known: Releases) -> Releases:
    """What is in force is withdrawn; the newest before that was not is in force again, if there is
    one. Raises ConflictError when nothing is in force."""
    current = known.in_force
    if current is None:
        raise _none("taken back")
    before = [one for one in known.all if one.state is ReleaseState.BEFORE]
    if before:
        newest = max(before, key=lambda one: key(one.version) or ())
        return _put_in_force(known, newest.digest, ReleaseState.WITHDRAWN)
    changed = [
        replace(one, state=ReleaseState.WITHDRAWN) if one is current else one for one in known.all
    ]
    return Releases(known.number + 1, tuple(changed))


def retried(known: Releases) -> Releases:
    """Workers on which the release in force failed try it again. Raises ConflictError."""
    current = known.in_force
    if current is None:
        raise _none("tried again")
    return _put_in_force(known, current.digest, ReleaseState.BEFORE)


def _none(verb: str) -> ConflictError:
    return ConflictError(
        f"There is no release that could be {verb}.",
        "None was pushed, or the last one was taken back.",
        "Push one: `officegrid update push`.",
    )


@dataclass(frozen=True, slots=True)
class Runs:
    """What a worker says about itself. `digest` "": the program that is installed there. `version`
    "": it did not say. `failed`: digest and order of the release that did not work there."""

    version: str = ""
    digest: str = ""
    failed: tuple[str, int] = ("", 0)


def is_running(release: Release, runs: Runs) -> bool:
    """Does this worker run the release, fetched or as it is installed there? One version is one
    content."""
    if runs.digest:
        return runs.digest == release.digest
    known = key(runs.version)
    return known is not None and known == key(release.version)


@dataclass(frozen=True, slots=True)
class Go:
    """Where a worker is to go; `release` None: back to the program that is installed there."""

    release: Release | None
    number: int


def order_for(known: Releases, runs: Runs) -> Go | None:
    """What this worker is told to run instead; None: it may stay as it is."""
    current = known.in_force
    if current is not None and runs.digest == current.digest:
        return None
    withdrawn = [one for one in known.all if one.state is ReleaseState.WITHDRAWN]
    runs_withdrawn = any(
        one.digest == runs.digest or (bool(runs.version) and key(one.version) == key(runs.version))
        for one in withdrawn
    )
    if current is None:
        return Go(None, known.number) if runs_withdrawn and runs.digest else None
    if not runs_withdrawn and not is_older(runs.version, current.version):
        return None
    digest, number = runs.failed
    if digest == current.digest and number >= current.number:
        return None
    return Go(current, current.number)


def to_plain(known: Releases) -> dict[str, object]:
    """As JSON values; see `from_plain`."""
    names = Release.__slots__
    return {
        "number": known.number,
        "all": [{name: getattr(one, name) for name in names} for one in known.all],
    }


def from_plain(plain: dict[str, object]) -> Releases:
    """The inverse of `to_plain`."""
    rows = plain.get("all", [])
    assert isinstance(rows, list)
    number = plain.get("number", 0)
    assert isinstance(number, int)
    return Releases(
        number, tuple(Release(**{**row, "state": ReleaseState(row["state"])}) for row in rows)
    )
