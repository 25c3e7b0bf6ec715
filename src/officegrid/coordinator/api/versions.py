"""Routes about versions of code and data, and where a job's output comes from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool

from officegrid.coordinator.api.common import ERRORS, Here, Reader, Submitter, fresh
from officegrid.coordinator.publish import add_code, is_lost
from officegrid.coordinator.refresh import known
from officegrid.coordinator.service import gitcode, lineage, pins, versions, views
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import InputError
from officegrid.storage.api import Tx, Version
from officegrid.wire.catalogue import (
    MOST_NAME_CHARS,
    NAME_PATTERN,
    Kind,
    Lineage,
    LineageUnits,
    RollBack,
    SourceView,
    VersionList,
    VersionPush,
    VersionView,
)
from officegrid.wire.gitref import GitAddress
from officegrid.wire.jobs import JobView

router = APIRouter(prefix="/v1", tags=["versions"], responses=ERRORS)

Name = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MOST_NAME_CHARS)]


@router.get("/versions/{kind}")
async def list_versions(
    here: Here, caller: Reader, kind: Kind,
    name: Annotated[str | None, Query(max_length=200)] = None,
) -> VersionList:  # fmt: skip
    """Of one name all, newest first; else the newest of each name. With data, what has a source
    that has given nothing yet."""

    def read(tx: Tx) -> VersionList:
        known = tx.versions(kind, name=name, limit=10_000)
        newest: dict[str, int] = {}
        for one in known:
            if not one.gone:
                newest.setdefault(one.name, one.n)
        if name is None:
            known = [one for one in known if newest.get(one.name) == one.n]
        sources = _without_version(here, tx, name, newest) if kind == "data" else []
        if name is not None and not known and not sources:
            raise versions.unknown(tx, kind, name)
        found = [version_view(tx, one, newest=newest.get(one.name) == one.n) for one in known]
        for view in found:
            if name is not None and kind == "data" and view.newest:
                view.lost = is_lost(here, view.digest, tx)
        return VersionList(versions=found, sources=sources)

    return await here.read(read)


def _without_version(
    here: Coordinator, tx: Tx, name: str | None, newest: Collection[str]
) -> list[SourceView]:
    """Sources in the settings, or that of `name`, that have given nothing so far."""
    found = []
    for one in sorted(here.config.data):
        if one not in newest and name in (None, one):
            last = known(tx, one)
            looked_at = last.looked_at or None
            found.append(SourceView(name=one, looked_at=looked_at, trouble=last.trouble))
    return found


def version_view(tx: Tx, version: Version, *, newest: bool) -> VersionView:
    archive = tx.archive(version.digest)
    trouble = known(tx, version.name).trouble if version.kind == "data" and newest else ""
    return VersionView(
        kind="code" if version.kind == "code" else "data", name=version.name,
        n=version.n, digest=version.digest,
        created_at=version.created_at, pushed_by=version.pushed_by, origin=version.origin,
        file_name=version.file_name,
        gone=version.gone, newest=newest, trouble=trouble,
        raw_bytes=None if archive is None else archive.raw_bytes,
        stored_bytes=None if archive is None else archive.stored_bytes,
    )  # fmt: skip


@router.post("/versions/code/{name}", status_code=201)
async def push_code(here: Here, caller: Submitter, name: Name, request: VersionPush) -> VersionView:
    """A new version of a program folder, whose bundle is uploaded already. Jobs that follow the
    name switch to it. The newest version's content again changes nothing."""
    await run_in_threadpool(_check_stored, here, request.digest)
    await here.read(lambda tx: gitcode.check_free(tx, name))
    by = (await here.read(lambda tx: fresh(tx, caller))).name
    pushed = await add_code(here, name, request.digest, by=by, origin=request.origin)

    def read(tx: Tx) -> VersionView:
        view = version_view(tx, pushed.version, newest=True)
        view.new, view.switched_jobs = pushed.new, pushed.switched
        return view

    return await here.read(read)


@router.post("/code/git", status_code=201)
async def push_git(here: Here, caller: Submitter, address: GitAddress) -> VersionView:
    """The newest version of the code at an address in git: resolved to a commit, fetched if that
    is new. Jobs that name the version's name without a number get what is fetched later, too."""
    version, new, switched = await here.git.push(address, caller.name)
    view = await here.read(lambda tx: version_view(tx, version, newest=True))
    view.new, view.switched_jobs = new, switched
    return view


def _check_stored(here: Coordinator, digest: str) -> None:
    # `missing` also makes it young again, so that no clean-up takes it before it has a version.
    if here.objects.missing([digest]):
        raise InputError(
            f"The bundle {digest[:12]}… is not in the store.",
            fix="Upload it first: `officegrid push NAME DIR` does both.",
            code="missing_block",
        )


@router.post("/versions/{kind}/{name}/roll-back", status_code=201)
async def roll_back(
    here: Here, caller: Submitter, kind: Kind, name: Name, request: RollBack
) -> VersionView:
    """The content of an earlier version becomes the newest again, under a new number."""

    def write(tx: Tx) -> VersionView:
        by, now = fresh(tx, caller).name, here.clock()
        version = versions.roll_back(tx, kind, name, request.to, by=by, now=now)
        view = version_view(tx, version, newest=True)
        view.switched_jobs = pins.switch_followers(here.grid, tx, kind, name, now)
        return view

    return await here.write(write)


@router.get("/jobs/{job_id}/lineage")
async def job_lineage(here: Here, caller: Reader, job_id: str) -> Lineage:
    """Which code, data and input made this job's output, and on which machines."""
    return await here.read(lambda tx: lineage.lineage(tx, views.find_job(tx, job_id)))


@router.get("/jobs/{job_id}/lineage/units")
async def lineage_units(
    here: Here, caller: Reader, job_id: str,
    from_record: Annotated[int, Query(ge=0, le=2**62)] = 0,
) -> LineageUnits:  # fmt: skip
    """Each committed unit: its records, version, machine and lease."""
    return await here.read(lambda tx: lineage.units(tx, views.find_job(tx, job_id), from_record))


@router.post("/jobs/{job_id}/rerun", status_code=201)
async def rerun(here: Here, caller: Submitter, job_id: str) -> JobView:
    """A new job with the same input and the very versions that this one ran last."""

    def write(tx: Tx) -> JobView:
        found = views.find_job(tx, job_id)
        by = fresh(tx, caller).name
        made = lineage.rerun(here.grid, tx, found, by, here.clock())
        return views.job_view(here.grid, tx, made)

    return await here.write(write)
