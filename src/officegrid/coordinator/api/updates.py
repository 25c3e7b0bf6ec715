"""Routes about old programs: the floor, and the releases that workers update themselves to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path as FilePath

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from officegrid.bundles.wheel import WheelFacts, inspect_wheel
from officegrid.coordinator.api.common import ERRORS, Here, MachineReader, Manager, Worker, fresh
from officegrid.coordinator.api.objects import Digest
from officegrid.coordinator.service import updates, views
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import InputError, LimitError, NotFoundError
from officegrid.core.releases import ReleaseState, is_running
from officegrid.storage.api import Machine, Tx
from officegrid.wire.updates import (
    MAX_WHEEL_BYTES,
    FloorSettings,
    FloorView,
    ReleaseFailure,
    ReleasePush,
    ReleaseView,
    StaleMachine,
    UpdateList,
)

router = APIRouter(prefix="/v1", tags=["updates"], responses=ERRORS)


@router.get("/floor")
async def floor(here: Here, caller: MachineReader) -> FloorView:
    """The oldest programs that still get work, and who is below that."""
    return await here.read(_floor_view)


@router.put("/floor")
async def set_floor(here: Here, caller: Manager, settings: FloorSettings) -> FloorView:
    """Change what is given; "" and 0 take a floor away."""

    def write(tx: Tx) -> FloorView:
        updates.set_floor(here.grid, tx, settings, fresh(tx, caller).name, here.clock())
        return _floor_view(tx)

    return await here.write(write)


def _floor_view(tx: Tx) -> FloorView:
    known = updates.policy(tx).floor
    below = [
        StaleMachine(id=one.id, name=one.name, why=words)
        for one in tx.machines()
        if (words := updates.words(tx, one)) is not None
    ]
    return FloorView(worker=known.worker, agent=known.agent, image=known.image, below=below)


@router.get("/updates")
async def list_updates(here: Here, caller: MachineReader) -> UpdateList:
    """All releases, newest push first, with the machines on which they failed."""
    return await here.read(_list)


@router.post("/updates", status_code=201)
async def push(here: Here, caller: Manager, request: ReleasePush) -> UpdateList:
    """Put an uploaded wheel in force: workers that are older update themselves to it."""
    size, facts = await run_in_threadpool(_inspect, here, request.digest)

    def write(tx: Tx) -> UpdateList:
        updates.push(
            here.grid, tx, digest=request.digest, version=facts.version, size=size,
            by=fresh(tx, caller).name, now=here.clock(),
        )  # fmt: skip
        return _list(tx)

    return await here.write(write)


def _inspect(here: Coordinator, digest: str) -> tuple[int, WheelFacts]:
    size = here.objects.size(digest)
    if size is None:
        raise InputError(
            "The wheel of this release is not in the store.",
            fix="Upload it first (see /v1/objects/missing).",
            code="missing_block",
        )
    if size > MAX_WHEEL_BYTES:
        raise LimitError(f"A release may have {MAX_WHEEL_BYTES // 1024**2} MB, and this is larger.")
    return size, inspect_wheel(FilePath(here.objects.path(digest)))


@router.post("/updates/roll-back")
async def roll_back(here: Here, caller: Manager) -> UpdateList:
    """Withdraw what is in force; workers go back to the one before, or to what is installed."""
    return await _change(
        here, lambda tx: updates.roll_back(here.grid, tx, fresh(tx, caller).name, here.clock())
    )


@router.post("/updates/retry")
async def retry(here: Here, caller: Manager) -> UpdateList:
    """Machines on which the release in force failed try it again."""
    return await _change(
        here, lambda tx: updates.retry(here.grid, tx, fresh(tx, caller).name, here.clock())
    )


async def _change(here: Coordinator, change: Callable[[Tx], object]) -> UpdateList:
    def write(tx: Tx) -> UpdateList:
        change(tx)
        return _list(tx)

    return await here.write(write)


def _list(tx: Tx) -> UpdateList:
    workers = [one for one in tx.machines() if views.is_worker(one) and not one.revoked]
    versions = Counter(str(one.facts["version"]) for one in workers if one.facts.get("version"))
    running = [updates.runs_of(one) for one in workers]
    found = updates.policy(tx).releases
    rows = [
        ReleaseView(
            digest=one.digest, version=one.version, size=one.size, state=one.state,
            pushed_at=one.pushed_at, pushed_by=one.pushed_by,
            running=sum(is_running(one, runs) for runs in running),
            installed=sum(is_running(one, runs) and not runs.digest for runs in running),
            failed=_failed(workers, one.digest),
        )
        for one in reversed(found.all)
    ]  # fmt: skip
    return UpdateList(releases=rows, versions=dict(sorted(versions.items())))


def _failed(workers: list[Machine], digest: str) -> list[ReleaseFailure]:
    return [
        ReleaseFailure(id=one.id, name=one.name, why=str(failed["why"]))
        for one in workers
        if (failed := updates.failure_of(one)).get("digest") == digest
    ]


@router.get("/release/{sha256}", response_class=Response)
async def release(here: Here, caller: Worker, sha256: Digest) -> Response:
    """The wheel of the release in force, and of no other object."""
    current = (await here.read(updates.policy)).releases.find(sha256)
    is_there = here.objects.size(sha256) is not None
    if current is None or current.state is not ReleaseState.IN_FORCE or not is_there:
        raise NotFoundError(
            f"Release {sha256[:12]}… is not in force.",
            "It was taken back, another one took its place, or the store lost it.",
            "Ask for a new order with the next claim.",
        )
    path = FilePath(here.objects.path(sha256))
    return FileResponse(path, media_type="application/octet-stream")
