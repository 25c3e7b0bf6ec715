"""Routes about the grid itself: joining, machines, join codes, health."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse

from officegrid import __version__
from officegrid.coordinator.api.common import (
    ERRORS,
    Here,
    MachineReader,
    Manager,
    Reader,
    Worker,
    fresh,
)
from officegrid.coordinator.api.objects import MAX_OBJECT_BYTES
from officegrid.coordinator.service import identity, machines, views
from officegrid.coordinator.tokens import hash_token, new_join_code, new_token
from officegrid.core.errors import AuthError, LimitError
from officegrid.storage.api import Tx
from officegrid.wire.jobs import (
    JoinCodeReply,
    JoinCodeRequest,
    MachineList,
    MachineView,
    ServerInfo,
)
from officegrid.wire.join import (
    CA_PATH,
    CLONE_PATH,
    JOIN_PATH,
    CloneRequest,
    JoinReply,
    JoinRequest,
)
from officegrid.wire.versions import PROTOCOL, PROTOCOL_OLDEST

router = APIRouter(tags=["grid"], responses=ERRORS)

WRONG_CODES_PER_MINUTE = 60
_MAX_FACTS_TEXT = 16 * 1024


class _WrongCodes:
    """Slows guessing down: after too many wrong codes in a minute from one address, nobody can
    join from there for a while."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def check(self, address: str) -> None:
        since = time.monotonic() - 60
        for known in list(self._times):
            self._times[known] = [at for at in self._times[known] if at > since]
            if not self._times[known]:
                del self._times[known]
        if len(self._times.get(address, ())) >= WRONG_CODES_PER_MINUTE:
            raise LimitError(
                "Too many wrong join codes were tried.", fix="Wait a minute, then try again."
            )

    def note(self, address: str) -> None:
        self._times.setdefault(address, []).append(time.monotonic())


_wrong_codes = _WrongCodes()


@router.get(CA_PATH, response_class=PlainTextResponse)
async def ca(here: Here) -> str:
    """The grid's CA certificate; a join code says which one to believe."""
    return here.pki.ca_pem


@router.get("/v1/health")
async def health(here: Here) -> ServerInfo:
    return ServerInfo(
        version=__version__,
        protocol=PROTOCOL,
        protocol_oldest=PROTOCOL_OLDEST,
        max_object_bytes=MAX_OBJECT_BYTES,
    )


@router.get("/v1/openapi.json", include_in_schema=False)
async def openapi(request: Request, caller: Reader) -> dict[str, Any]:
    """The description of this API."""
    schema: dict[str, Any] = request.app.openapi()
    return schema


@router.post(JOIN_PATH, status_code=201)
async def join(here: Here, request: JoinRequest, http: Request) -> JoinReply:
    """Turn a join code into a machine token."""
    address = http.client.host if http.client else ""
    _wrong_codes.check(address)
    token = new_token()
    facts = _small(request.facts)

    def write(tx: Tx) -> JoinReply:
        machine = machines.join(
            here.grid,
            tx,
            code_hash=hash_token(request.secret),
            token_hash=token.hash,
            name=request.name,
            facts=facts,
            now=here.clock(),
        )
        return JoinReply(machine_id=machine.id, token=token.text, role=machine.role)

    try:
        reply = await here.write(write)
    except AuthError:
        _wrong_codes.note(address)
        raise
    here.forget_callers()  # joining again makes an older token void
    return reply


@router.post(CLONE_PATH, status_code=201)
async def clone(here: Here, machine: Worker, request: CloneRequest) -> JoinReply:
    """An identity of its own for a worker that is a copy of the asking one on other hardware;
    the same hardware gets the same machine each time, with a new token."""
    token = new_token()
    facts = _small(request.facts)

    def write(tx: Tx) -> JoinReply:
        made = identity.clone(
            here.grid, tx, fresh(tx, machine), hardware=request.hardware_id,
            token_hash=token.hash, facts=facts, now=here.clock(),
        )  # fmt: skip
        return JoinReply(machine_id=made.id, token=token.text, role=made.role)

    reply = await here.write(write)
    here.forget_callers()  # asking again makes an older token of the copy void
    return reply


def _small(facts: dict[str, Any]) -> dict[str, Any]:
    if len(str(facts)) > _MAX_FACTS_TEXT:
        raise LimitError("The facts about this machine are too long.")
    return facts


@router.post("/v1/join-codes", status_code=201)
async def join_code(here: Here, caller: Manager, request: JoinCodeRequest) -> JoinCodeReply:
    code = new_join_code(here.pki.fingerprint)
    now = here.clock()

    def write(tx: Tx) -> None:
        machines.add_code(tx, code.hash, request.role, request.uses, request.ttl_s, now)

    await here.write(write)
    return JoinCodeReply(
        code=code.text, role=request.role, uses=request.uses, expires_at=now + request.ttl_s
    )


@router.get("/v1/machines")
async def list_machines(here: Here, caller: MachineReader) -> MachineList:
    def read(tx: Tx) -> MachineList:
        now = here.clock()
        return MachineList(
            machines=[views.machine_view(here.grid, tx, m, now) for m in tx.machines()]
        )

    return await here.read(read)


# A worker in a desktop's VM is named "pc-7/vm".
@router.get("/v1/machines/{name_or_id:path}")
async def machine(here: Here, caller: MachineReader, name_or_id: str) -> MachineView:
    return await here.read(
        lambda tx: views.machine_view(here.grid, tx, machines.find(tx, name_or_id), here.clock())
    )


@router.post("/v1/machines/{name_or_id:path}/revoke")
async def revoke(here: Here, caller: Manager, name_or_id: str) -> MachineView:
    """Take a machine's access away at once."""

    def write(tx: Tx) -> MachineView:
        found = machines.find(tx, name_or_id)
        machines.revoke(here.grid, tx, found, here.clock())
        return views.machine_view(here.grid, tx, machines.find(tx, found.id), here.clock())

    view = await here.write(write)
    here.forget_callers()
    # With a desktop goes its worker, with an original its copies.
    revoked = await here.read(lambda tx: [one.id for one in tx.machines() if one.revoked])
    here.peers.forget(revoked)
    return view
