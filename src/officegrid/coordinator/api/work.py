"""Routes for workers: claim, renew, commit, release, fail, and what happens on the machine."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from officegrid.coordinator.api.common import ERRORS, Here, Worker, fresh
from officegrid.coordinator.service import claims, commits, identity, machines, returns
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import ConflictError, InputError
from officegrid.storage.api import Tx
from officegrid.wire.work import (
    ClaimReply,
    ClaimRequest,
    CommitReply,
    CommitRequest,
    FailRequest,
    MachineEvent,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
)

router = APIRouter(prefix="/v1", tags=["work"], responses=ERRORS)


@router.post("/claim")
async def claim(here: Here, machine: Worker, request: ClaimRequest, http: Request) -> ClaimReply:
    """Up to `units` units of work; waits up to `wait_s` for some to appear."""
    deadline = time.monotonic() + request.wait_s

    def look(tx: Tx) -> tuple[ClaimReply, int]:
        reply = claims.claim(here.grid, tx, fresh(tx, machine), request, here.clock())
        return reply, here.grid.work_version

    try:
        reply, version = await here.write(look)
    except ConflictError as error:
        # Only at the first look: one that waited here may be of a worker that died meanwhile.
        code, now = error.code, here.clock()
        await here.write(lambda tx: identity.note_refused(tx, machine, code, now))
        raise
    while True:
        if reply.update is not None and reply.update.mark != request.update_mark:
            return reply  # news about its program
        left_s = deadline - time.monotonic()
        if reply.units or request.units == 0 or left_s <= 0 or here.stopping.is_set():
            return reply
        if not await here.work.wait(left_s, version):
            return reply
        if await http.is_disconnected():  # nobody is there to take what would be leased
            return reply
        reply, version = await here.write(look)


@router.post("/renew")
async def renew(here: Here, machine: Worker, request: RenewRequest) -> RenewReply:
    return await here.write(
        lambda tx: commits.renew(here.grid, tx, fresh(tx, machine), request, here.clock())
    )


@router.post("/commit")
async def commit(here: Here, machine: Worker, request: CommitRequest) -> CommitReply:
    """Commit a unit; with `claim`, also get the next one in the same round trip."""
    await run_in_threadpool(_check_content, here, request)
    return await here.write(
        lambda tx: commits.commit(here.grid, tx, fresh(tx, machine), request, here.clock())
    )


def _check_content(here: Coordinator, request: CommitRequest) -> None:
    for block in request.blocks:
        if block.offset or block.length != block.raw_bytes:
            raise InputError("A commit must name whole blocks.")
        if here.objects.hold(block.sha256) != block.stored_bytes:
            raise InputError(
                f"Block {block.sha256[:12]}… of this commit is not in the store.",
                fix="Upload it, then commit again.",
                code="missing_block",
            )
    try:
        for bad in request.quarantined:
            bad.raw_bytes()
    except ValueError:
        raise InputError("A quarantined record is not base64.") from None


@router.post("/release")
async def release(here: Here, machine: Worker, request: ReleaseRequest) -> RenewReply:
    return await here.write(
        lambda tx: returns.release(here.grid, tx, fresh(tx, machine), request, here.clock())
    )


@router.post("/fail")
async def fail(here: Here, machine: Worker, request: FailRequest) -> RenewReply:
    return await here.write(
        lambda tx: returns.fail(here.grid, tx, fresh(tx, machine), request, here.clock())
    )


@router.post("/machine/events")
async def machine_event(here: Here, machine: Worker, event: MachineEvent) -> RenewReply:
    """Tell what happens on this machine; when its user is back, its units are released."""
    await here.write(
        lambda tx: machines.note_event(here.grid, tx, fresh(tx, machine), event, here.clock())
    )
    return RenewReply(alive=[], lost=[])
