"""Routes about desktops: for their agents, and for the admin who sets their rules."""

from __future__ import annotations

from fastapi import APIRouter

from officegrid.coordinator.api.common import (
    ERRORS,
    Desktop,
    Here,
    MachineReader,
    Manager,
    fresh,
)
from officegrid.coordinator.service import desks, machines, views
from officegrid.coordinator.tokens import new_join_code
from officegrid.core.deskrules import parse_hours
from officegrid.storage.api import Tx
from officegrid.wire.agent import (
    AgentOrders,
    AgentReport,
    DeskRules,
    DrainRequest,
    WorkerCodeReply,
)
from officegrid.wire.jobs import MachineView

router = APIRouter(prefix="/v1", tags=["desks"], responses=ERRORS)


@router.post("/machine/report")
async def report(here: Here, agent: Desktop, request: AgentReport) -> AgentOrders:
    """What happens on a desktop, each event once; when its user is back, units are released."""
    return await here.write(
        lambda tx: desks.report(here.grid, tx, fresh(tx, agent), request, here.clock())
    )


@router.post("/machine/worker-code", status_code=201)
async def worker_code(here: Here, agent: Desktop) -> WorkerCodeReply:
    """A join code for the one worker of this desktop, for one use; earlier ones become void."""
    code = new_join_code(here.pki.fingerprint)

    def write(tx: Tx) -> float:
        return desks.worker_code(tx, fresh(tx, agent), code.hash, here.clock())

    expires_at = await here.write(write)
    return WorkerCodeReply(code=code.text, expires_at=expires_at)


@router.get("/desk-rules")
async def desk_rules(here: Here, caller: MachineReader) -> DeskRules:
    """The central rules of desktops as they were set; null: at its default."""
    return await here.read(desks.rules)


@router.put("/desk-rules")
async def set_desk_rules(here: Here, caller: Manager, rules: DeskRules) -> DeskRules:
    """Replace the central rules."""
    for text in [*(rules.quiet_hours or []), *(rules.run_hours or [])]:
        parse_hours(text)
    await here.write(lambda tx: desks.set_rules(tx, rules))
    return rules


@router.post("/machines/{name_or_id:path}/drain")
async def drain(here: Here, caller: Manager, name_or_id: str, request: DrainRequest) -> MachineView:
    """Take a machine out of service, or back into it."""

    def write(tx: Tx) -> MachineView:
        found = machines.find(tx, name_or_id)
        machines.drain(here.grid, tx, found, request.drain, here.clock())
        return views.machine_view(here.grid, tx, machines.find(tx, found.id), here.clock())

    return await here.write(write)
