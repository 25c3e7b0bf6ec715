"""Desktops: what their agents report, the orders they get, the one worker of each, the rules.

An agent's `status` column holds

    {"run_id", "number",   what makes each event count once
     "past",               run ids that were replaced: what they still send is ignored
     "at", "report",       the last DeskStatus and when it came
     "trouble",            the text of the last trouble, until the VM runs again
     "version",
     "image"}             what it says about worker images, see service.images
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

from officegrid.coordinator.service import identity, images, machines, updates
from officegrid.coordinator.service.context import Grid
from officegrid.core import deskstats
from officegrid.core.errors import ForbiddenError
from officegrid.core.whyidentity import AlarmKind
from officegrid.storage.api import JoinCode, Machine, Tx
from officegrid.wire.agent import AgentOrders, AgentReport, DeskEvent, DeskRules

CODE_TTL_S = 24 * 3600.0
PAST_RUNS = 20
RULES = "desk_rules"  # the setting that holds the central rules
REPORT_EVERY_S = 30.0
MOST_TEXT_CHARS = 1024
REPORTS_PER_S = 20.0  # more agents than this allows report less often
COUNT_EVERY_S = 60.0
_SPREAD = 0.1


def report(grid: Grid, tx: Tx, agent: Machine, request: AgentReport, now: float) -> AgentOrders:
    """Take a report in, each event once, and say what the coordinator wants."""
    known = agent.status
    past: list[str] = known.get("past", [])
    if request.run_id in past:
        identity.raise_alarm(tx, agent, AlarmKind.AGENTS, now)
        return _orders(grid, tx, agent, now).model_copy(update={"replaced": True})
    number = 0
    if known.get("run_id") == request.run_id:
        number = int(known["number"])
    elif "run_id" in known:
        past = [*past, known["run_id"]][-PAST_RUNS:]
    stats = deskstats.from_plain(agent.stats)
    trouble = known.get("trouble", "")
    released = 0
    holders = [agent, *tx.machines_on(agent.id)]
    for event in sorted(request.events, key=lambda one: one.number):
        if event.number <= number:
            continue
        number = event.number
        freed = _happened(grid, tx, agent, event, holders, now)
        stats = deskstats.noted(
            stats, event.kind, ran_s=event.ran_s, cpu_back_ms=event.cpu_back_ms,
            memory_back_ms=event.memory_back_ms, units_released=freed,
        )  # fmt: skip
        released += freed
        if event.kind in ("trouble", "running"):
            trouble = event.text if event.kind == "trouble" else ""
    status = {
        "run_id": request.run_id, "number": number, "past": past, "at": now,
        "report": request.status.model_dump(), "trouble": trouble, "version": request.version,
    }  # fmt: skip
    status["image"], image = images.reported(grid, tx, agent, request.image, now)
    changes: dict[str, Any] = {"status": status, "last_seen": now}
    if (plain := deskstats.to_plain(stats)) != agent.stats:
        changes["stats"] = plain
    if agent.state == "joined" and number == 0:
        changes["state"] = "idle"
    tx.touch_machine(agent.id, **changes)
    old = updates.stale_agent(tx, replace(agent, status=status))
    more = {"units_released": released, "image": image, "below_floor": old[:MOST_TEXT_CHARS]}
    return _orders(grid, tx, agent, now).model_copy(update=more)


def _happened(
    grid: Grid, tx: Tx, agent: Machine, event: DeskEvent, holders: list[Machine], now: float
) -> int:
    at = max(agent.created_at, now - event.ago_s)
    return machines.happened(
        grid, tx, agent, event.kind, _told(event), at=min(at, now), now=now, holders=holders
    )


_HEADLINES = {
    "idle": "Nobody is here", "starting": "The VM is started", "running": "The VM runs",
    "paused": "The VM is paused", "saved": "The VM is saved and gone", "user_back": "Given back",
    "stopped": "The VM is powered off", "trouble": "Trouble",
}  # fmt: skip


def _told(event: DeskEvent) -> str:
    """An event as the desktop's story tells it."""
    headline = _HEADLINES[event.kind]
    return f"{headline}: {event.text}" if event.text else f"{headline}."


def _orders(grid: Grid, tx: Tx, agent: Machine, now: float) -> AgentOrders:
    workers = [one for one in tx.machines_on(agent.id) if not one.revoked]
    seen = max((one.last_seen for one in workers), default=None)
    return AgentOrders(
        rules=rules(tx),
        drain=agent.drain,
        worker_joined=bool(workers),
        worker_seen_ago_s=None if seen is None else max(0.0, now - seen),
        report_every_s=report_every_s(grid, tx, agent, now),
    )


def report_every_s(grid: Grid, tx: Tx, agent: Machine, now: float) -> float:
    """How often this agent should report when nothing happens: every 30 s, more rarely when there
    are so many that their reports alone would be work; a little different for each, so that they
    do not come all at once."""
    counted_at, desks = grid.desks_counted
    if not 0 <= now - counted_at < COUNT_EVERY_S:
        desks = sum(one.role == "agent" and not one.revoked for one in tx.machines())
        grid.desks_counted = (now, desks)
    share = zlib.crc32(agent.id.encode()) / 2**32
    every_s = max(REPORT_EVERY_S, desks / REPORTS_PER_S)
    return round(every_s * (1 - _SPREAD + 2 * _SPREAD * share), 1)


def worker_code(tx: Tx, agent: Machine, code_hash: str, now: float) -> float:
    """Make `code_hash` the one code with which the worker of this desktop can join; until when.

    Raises ForbiddenError when an admin has revoked that worker.
    """
    for worker in tx.machines_on(agent.id):
        if worker.revoked:
            raise ForbiddenError(
                f"The worker of {agent.name} was revoked.",
                "A revoked worker does not come back by itself.",
                f"Let the desktop join anew: `officegrid revoke {agent.name}`, then there "
                "`officegrid join URL --install --anew` with a code for the role agent.",
            )
    tx.drop_join_codes(agent.id)
    tx.add_join_code(JoinCode(code_hash, "worker", 1, now + CODE_TTL_S, now, host=agent.id))
    return now + CODE_TTL_S


def rules(tx: Tx) -> DeskRules:
    """The central rules as the admin stated them; what is not stated is at its default."""
    text = tx.setting(RULES)
    return DeskRules() if text is None else DeskRules.model_validate_json(text)


def set_rules(tx: Tx, new: DeskRules) -> None:
    """Replace the central rules. Agents hear of them with their next report."""
    tx.put_setting(RULES, new.model_dump_json(exclude_none=True))
