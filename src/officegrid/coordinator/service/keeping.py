"""What the database says about what may be cleaned up, and dropping it: rows first, files later.

Every step decides again inside its own transaction: what was free to go when the plan was made may
be in use by then.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from officegrid.coordinator.service import lifecycle
from officegrid.coordinator.service.units import spec_of
from officegrid.coordinator.service.versions import WORDS
from officegrid.core.jobs import ENDED, JobState
from officegrid.core.keeping import (
    JobFacts,
    Keep,
    Verdict,
    VersionFacts,
    may_remove,
    need_of,
    sort_out,
)
from officegrid.storage.api import Job, Tx, Version

ALL = 1_000_000_000
ACTIVE = tuple(state for state in JobState if state not in ENDED)
_DIGEST = re.compile(r"(?<![0-9a-fA-F])[0-9a-f]{64}(?![0-9a-fA-F])")


@dataclass(frozen=True, slots=True)
class Leaving:
    """What a dry run takes as gone already: content and datasets."""

    digests: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()


REMOVING = "removing_jobs"
"""The setting with the ids of dropped jobs of which rows are left."""


def old_jobs(tx: Tx, older_than_s: float | None, now: float) -> list[str]:
    """Ids of those that may go as a whole. What a live job waits for, or reads the output of,
    stays, and so does what has not arrived in a table yet."""
    if older_than_s is None:
        return []
    return [
        mark.id
        for mark in tx.job_marks()
        if may_remove(mark.state, mark.ended_at, older_than_s=older_than_s, now=now)
        and not _is_waited_for(tx, mark.id)
    ]


def _is_waited_for(tx: Tx, job_id: str) -> bool:
    job = tx.job(job_id)
    if job is None or _on_its_way(tx, job):
        return True
    if lifecycle.newest(tx, job.name) != job_id:
        return False
    live = tx.jobs(states=ACTIVE, limit=ALL)
    return any(job.name in lifecycle.waits_for(spec_of(one)) for one in live)


def _on_its_way(tx: Tx, job: Job) -> bool:
    found = [tx.delivery(job.id, generation) for generation in range(job.generation + 1)]
    return any(one is not None and one.state != "done" for one in found)


def drop_job(tx: Tx, job_id: str, older_than_s: float, now: float) -> bool:
    """Forget the job, unless it is needed by now. The rest of its rows goes by `drop_rest`."""
    job = tx.job(job_id)
    if job is None or _is_waited_for(tx, job_id):
        return False
    if not may_remove(job.state, job.ended_at, older_than_s=older_than_s, now=now):
        return False
    tx.drop_job(job_id)
    removing = json.loads(tx.setting(REMOVING) or "[]")
    tx.put_setting(REMOVING, json.dumps([*removing, job_id]))
    text = f"{job.name} ({job_id}) was removed with its output: it ended long ago"
    for subject in {job_id, job.template or job_id}:
        tx.add_event(now, subject, "removed", text)
    return True


def left_over_jobs(tx: Tx) -> list[str]:
    """Ids of jobs that `drop_job` forgot and of which rows are left."""
    return list(json.loads(tx.setting(REMOVING) or "[]"))


def drop_rest(tx: Tx, job_id: str, rows: int) -> bool:
    """At most so many rows of a job that was dropped; is anything left?"""
    if tx.drop_left_over_of_job(job_id, rows):
        return True
    left = [one for one in left_over_jobs(tx) if one != job_id]
    tx.put_setting(REMOVING, json.dumps(left))
    return False


def verdict(tx: Tx, keep: Keep, now: float) -> Verdict:
    """On all versions that are not gone."""
    versions = [_facts(one) for kind in WORDS for one in tx.versions(kind, limit=ALL)]
    uses: defaultdict[str, set[str]] = defaultdict(set)
    for job, archive in tx.jobs_archives():
        uses[job].add(archive)
    named = {job.id: names_of(job) for job in tx.jobs(states=ACTIVE, limit=ALL)}
    jobs = [
        JobFacts(
            mark.state, mark.ended_at, mark.quarantined,
            frozenset(uses[mark.id] | ({mark.bundle} if mark.bundle else set())),
            named.get(mark.id, frozenset()),
        )
        for mark in tx.job_marks()
    ]  # fmt: skip
    return sort_out([one for one in versions if one is not None], jobs, keep, now)


def _facts(version: Version) -> VersionFacts | None:
    if version.gone:
        return None
    return VersionFacts(version.kind, version.name, version.n, version.digest)


def names_of(job: Job) -> frozenset[tuple[str, str, int]]:
    """The exact versions that the job file names."""
    spec = spec_of(job)
    refs = [("data", ref.name, ref.n) for ref in spec.data.values()]
    if spec.code is not None:
        refs.append(("code", spec.code.name, spec.code.n))
    return frozenset((kind, name, n) for kind, name, n in refs if n is not None)


def stays(tx: Tx, digests: Iterable[str], keep: Keep, now: float) -> frozenset[str]:
    """Those of `digests` whose content is needed: `verdict` for a few of them."""
    wanted = list(digests)
    holders = [one for digest in wanted for one in tx.versions_with(digest)]
    names = {(one.kind, one.name) for one in holders}
    known = [one for kind, name in sorted(names) for one in tx.versions(kind, name=name, limit=ALL)]
    jobs = [
        JobFacts(mark.state, mark.ended_at, mark.quarantined, frozenset([digest]))
        for digest in wanted
        for mark in tx.job_marks(using=digest)
    ]
    for job in tx.jobs(states=ACTIVE, limit=ALL):
        uses = frozenset([job.bundle] if job.bundle else [])
        jobs.append(JobFacts(job.state, job.ended_at, job.quarantined, uses, names_of(job)))
    facts = {one.key: one for version in known if (one := _facts(version)) is not None}
    found = sort_out(facts.values(), jobs, keep, now)
    return found.digests & frozenset(wanted)


def drop_versions(tx: Tx, digests: Iterable[str], keep: Keep, now: float) -> list[Version]:
    """The content of these is gone, unless it is needed by now. Its files are left over."""
    wanted = sorted(digests)
    gone = []
    for digest in sorted(set(wanted) - stays(tx, wanted, keep, now)):
        for version in tx.versions_with(digest):
            if version.gone:
                continue
            tx.set_version_gone(version.kind, version.name, version.n)
            text = f"{WORDS[version.kind]} {version.name}: version {version.n} was cleaned up"
            facts = {"kind": version.kind, "n": version.n, "digest": digest}
            tx.add_event(now, version.name, "cleaned", text, facts)
            gone.append(version)
        tx.drop_archive(digest)
    return gone


def stray_archives(tx: Tx, before: float) -> list[str]:
    """Digests of archives from before that time that no version stands for."""
    return [
        one.digest
        for one in tx.archives()
        if one.created_at < before and all(v.gone for v in tx.versions_with(one.digest))
    ]


def drop_stray_archive(tx: Tx, digest: str, before: float, keep: Keep, now: float) -> bool:
    archive = tx.archive(digest)
    if archive is None or archive.created_at >= before:
        return False
    if any(not one.gone for one in tx.versions_with(digest)) or stays(tx, [digest], keep, now):
        return False
    tx.drop_archive(digest)
    return True


def lone_deltas(tx: Tx) -> list[str]:
    """Digests that deltas lead from or to and that are no archive (any more): made while that was
    cleaned up. Their files may be gone, so they must not be met when the content comes back."""
    known = {one.digest for one in tx.archives()}
    return sorted({end for delta in tx.deltas() for end in (delta.new, delta.old)} - known)


def drop_lone_deltas(tx: Tx, digest: str) -> None:
    if tx.archive(digest) is None:
        tx.drop_archive(digest)


def content_objects(tx: Tx, keep: Keep, now: float, leaving: Leaving) -> set[str]:
    """Names of all objects that code and data need: bundles, pieces of archives, deltas."""
    standing = {
        one.digest for kind in WORDS for one in tx.versions(kind, limit=ALL) if not one.gone
    }
    found = standing - leaving.digests
    marks = tx.job_marks()
    needing = {
        mark.id
        for mark in marks
        if need_of(mark.state, mark.ended_at, mark.quarantined, days=keep.days, now=now)
    }
    found |= {one.bundle for one in marks if one.bundle and one.id in needing}
    given = tx.jobs_archives()
    found |= {archive for job, archive in given if job in needing}
    # A bundle that never had a version is of a job from before there were any: it stays with the
    # job, since nothing would say that it is gone.
    found |= {one for one in {archive for _, archive in given} if not tx.versions_with(one)}
    archives = {one.digest: one for one in tx.archives() if one.digest not in leaving.digests}
    for one in archives.values():
        found.update(digests_in(one.spec))
    for delta in tx.deltas():
        if delta.new in archives and delta.old in archives:
            found.update(digests_in(delta.spec))
    return found


def settings_objects(tx: Tx) -> set[str]:
    """Names of objects that settings refer to, like releases of the worker."""
    return {digest for _, value in tx.settings() for digest in _DIGEST.findall(value)}


def digests_in(value: Any) -> Iterator[str]:
    """Everything in JSON that could be the name of an object, at any depth."""
    if isinstance(value, str):
        yield from _DIGEST.findall(value)
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from digests_in(key)
            yield from digests_in(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from digests_in(below)
