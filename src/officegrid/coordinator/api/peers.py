"""Routes about workers that pass on to one another what they fetched."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from officegrid.coordinator.api.common import ERRORS, Here, MachineReader, Worker, fresh
from officegrid.wire.peers import PeerAsk, PeerList, PeerReply

router = APIRouter(prefix="/v1", tags=["peers"], responses=ERRORS)


@router.post("/peers")
async def ask(here: Here, caller: Worker, request: Request, body: PeerAsk) -> PeerReply:
    """Say what this worker can give to others, and ask who near it has what it needs. Answers
    that sharing is not allowed, unless [peers] in coordinator.toml allows it."""
    # A revoked machine must not get a certificate out of the cache of callers.
    machine = await here.read(lambda tx: fresh(tx, caller))
    certificate = None
    if body.certificate and here.peers.config.allow:
        certificate = await run_in_threadpool(here.peers.signer.certificate, machine.id)
    came_from = request.client.host if request.client is not None else ""
    return here.peers.answer(machine.id, came_from, body, certificate)


@router.get("/peers")
async def peers(here: Here, caller: MachineReader) -> PeerList:
    """The workers that share now, and how much workers got from one another."""
    names = await here.read(lambda tx: {one.id: one.name for one in tx.machines()})
    return here.peers.view(lambda machine_id: names.get(machine_id, machine_id))
