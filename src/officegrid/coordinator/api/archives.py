"""Routes about the content of versions: push data, and fetch what a unit needs the cheapest way."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from officegrid.bundles.archive import DEFAULT_MAX_BYTES
from officegrid.coordinator import refresh
from officegrid.coordinator.api.common import ERRORS, Here, Submitter, either, fresh
from officegrid.coordinator.api.objects import Digest
from officegrid.coordinator.api.versions import Name, version_view
from officegrid.coordinator.publish import add_data
from officegrid.coordinator.service import archives, versions
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import (
    ConflictError,
    InputError,
    LimitError,
    NotFoundError,
)
from officegrid.core.roles import Permission, allows
from officegrid.storage.api import Machine, Tx
from officegrid.wire.archives import ArchiveSpec
from officegrid.wire.catalogue import DataPush, FetchWay, VersionView

router = APIRouter(prefix="/v1", tags=["versions"], responses=ERRORS)


Fetcher = Annotated[Machine, Depends(either(Permission.WORK, Permission.READ_OUTPUT))]
Archive = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


@router.post("/versions/data/{name}", status_code=201)
async def push_data(here: Here, caller: Submitter, name: Name, request: DataPush) -> VersionView:
    """A new version of a data set, whose pieces are uploaded already. Jobs that follow the name
    switch to it. The newest version's content again changes nothing."""
    await run_in_threadpool(_check_pieces, here, request.spec)
    if name in here.config.data:
        raise ConflictError(
            f"The coordinator itself keeps {name} fresh.",
            "What is pushed would be replaced at its next look at the source.",
            f"Change the source ([data.{name}] in coordinator.toml), or push under another name.",
        )
    by = (await here.read(lambda tx: fresh(tx, caller))).name
    pushed = await add_data(
        here, name, request.spec, by=by, origin=request.origin, file_name=request.file_name
    )

    def read(tx: Tx) -> VersionView:
        view = version_view(tx, pushed.version, newest=True)
        view.new, view.switched_jobs = pushed.new, pushed.switched
        return view

    return await here.read(read)


@router.post("/data/{name}/refresh", status_code=200)
async def refresh_data(here: Here, caller: Submitter, name: Name) -> VersionView:
    """Look at the data set's source now, as the settings name it; the newest version after that."""
    pushed = await refresh.refresh(here, name)

    def read(tx: Tx) -> VersionView:
        view = version_view(tx, versions.find(tx, "data", name), newest=True)
        view.new = pushed is not None
        view.switched_jobs = [] if pushed is None else pushed.switched
        return view

    return await here.read(read)


def _check_pieces(here: Coordinator, spec: ArchiveSpec) -> None:
    """Raises InputError unless all pieces are in the store with the size that is stated, LimitError
    for more than any worker unpacks."""
    if spec.raw_bytes > DEFAULT_MAX_BYTES:
        raise LimitError(
            "The data set is too large.",
            f"It has {spec.raw_bytes:,} bytes; the limit is {DEFAULT_MAX_BYTES:,}.",
            "Push less: leave out what the program does not need.",
        )
    absent = here.objects.missing([piece.sha256 for piece in spec.pieces])
    wrong = [p for p in spec.pieces if here.objects.size(p.sha256) not in (None, p.stored_bytes)]
    if absent or wrong:
        raise InputError(
            f"{len(absent) + len(wrong)} pieces of this data set are not in the store.",
            fix="Upload them first: `officegrid data push NAME PATH` does both.",
            code="missing_block",
        )


@router.get("/archives/{archive}/way")
async def way(
    here: Here, caller: Fetcher, archive: Archive,
    have: Annotated[list[str] | None, Query(max_length=archives.PRESENT_MOST)] = None,
) -> FetchWay:  # fmt: skip
    """The cheapest way to this archive for who has those named by `have`."""

    def read(tx: Tx) -> FetchWay:
        _check(tx, caller, archive)
        return archives.way(tx, archive, have or [])

    return await here.read(read)


@router.get("/archives/{archive}/objects/{sha256}", response_class=Response)
async def get_object(here: Here, caller: Fetcher, archive: Archive, sha256: Digest) -> Response:
    """The bytes of a piece of this archive, or of a delta that leads to it."""

    def read(tx: Tx) -> None:
        _check(tx, caller, archive)
        archives.check_object(tx, archive, sha256)

    await here.read(read)
    if here.objects.size(sha256) is None:
        raise NotFoundError(
            f"The store has lost object {sha256[:12]}….", fix="Push the data set again."
        )
    content = await run_in_threadpool(here.read_cache.get, sha256)
    return Response(content, media_type="application/octet-stream")


def _check(tx: Tx, caller: Machine, archive: str) -> None:
    if not allows(caller.role, Permission.READ_OUTPUT):
        archives.check_use(tx, caller, archive)
