"""Which versions of code and data stay, and which may be cleaned up.

A version stays while its content does. Content stays for any version of it that is among the
newest of its name or that a job names exactly, and for any job that ran it and may need it again.
Numbers are many, content is one: going back to version 3 makes a version 9 of the same content.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from officegrid.core.jobs import ENDED, JobState

DAY_S = 86400.0


class Reason(StrEnum):
    """Why a version stays. The first that holds is told."""

    NEWEST = "among the newest of its name"
    NAMED = "named by a job or schedule"
    RUNS = "of a job that has not ended"
    QUARANTINE = "of a job with quarantined records"
    RECENT = "of a job that ended lately"
    SHARED = "same content as another that stays"


@dataclass(frozen=True, slots=True)
class Keep:
    """`versions`: how many of each name, the newest; `days`: since a job that ran it ended."""

    versions: int
    days: float


@dataclass(frozen=True, slots=True)
class VersionFacts:
    kind: str
    name: str
    n: int
    digest: str

    @property
    def key(self) -> tuple[str, str, int]:
        return self.kind, self.name, self.n


@dataclass(frozen=True, slots=True)
class JobFacts:
    """`uses`: digests of the content it was ever given; `names`: exact versions, as (kind, name,
    number), that it would be given at its start."""

    state: JobState
    ended_at: float | None
    quarantined: int
    uses: frozenset[str] = frozenset()
    names: frozenset[tuple[str, str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`stay`: the reason of each version that stays, by its key. `digests`: content that stays,
    with or without a version of it."""

    go: tuple[VersionFacts, ...]
    stay: dict[tuple[str, str, int], Reason]
    digests: frozenset[str]


def need_of(
    state: JobState, ended_at: float | None, quarantined: int, *, days: float, now: float
) -> Reason | None:
    """Why the content that such a job ran is still needed; None: it is not."""
    if state not in ENDED:
        return Reason.RUNS
    if quarantined:
        return Reason.QUARANTINE
    # An end in the future is that of a clock that was set back since.
    if ended_at is None or now - ended_at <= days * DAY_S:
        return Reason.RECENT
    return None


def may_remove(
    state: JobState, ended_at: float | None, *, older_than_s: float | None, now: float
) -> bool:
    """May a job go as a whole, with its output? None: jobs are kept for ever."""
    return (
        older_than_s is not None
        and state in ENDED
        and ended_at is not None
        and now - ended_at > older_than_s
    )


def sort_out(
    versions: Iterable[VersionFacts], jobs: Iterable[JobFacts], keep: Keep, now: float
) -> Verdict:
    """`versions`: those whose content is not gone. All versions of a name must be given, or all
    but older ones; and all versions of each content."""
    known = sorted(versions, key=lambda one: (one.kind, one.name, -one.n))
    reasons: dict[tuple[str, str, int], Reason] = {}
    content: dict[str, Reason] = {}
    named: set[tuple[str, str, int]] = set()
    for job in jobs:
        need = need_of(job.state, job.ended_at, job.quarantined, days=keep.days, now=now)
        if job.state not in ENDED:
            named |= job.names
        if need is not None:
            for digest in job.uses:
                content[digest] = _first(content.get(digest), need)
    seen: dict[tuple[str, str], int] = {}
    for one in known:
        place = seen[one.kind, one.name] = seen.get((one.kind, one.name), 0) + 1
        if place <= keep.versions:
            reasons[one.key] = Reason.NEWEST
        elif one.key in named:
            reasons[one.key] = Reason.NAMED
    by_version = {one.digest for one in known if one.key in reasons}
    for one in known:
        if one.key not in reasons and (one.digest in content or one.digest in by_version):
            reasons[one.key] = content.get(one.digest, Reason.SHARED)
    return Verdict(
        tuple(one for one in known if one.key not in reasons),
        reasons,
        frozenset(by_version | content.keys()),
    )


_ORDER = list(Reason)


def _first(a: Reason | None, b: Reason) -> Reason:
    return b if a is None or _ORDER.index(b) < _ORDER.index(a) else a
