"""Machines and people's clients: join codes, tokens, sessions, what happens on a desktop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from officegrid.coordinator.service import identity, returns
from officegrid.coordinator.service.context import Grid, next_number
from officegrid.core.errors import AuthError, ConflictError, NotFoundError
from officegrid.storage.api import JoinCode, Machine, Tx
from officegrid.wire.work import MachineEvent

SUSPENDING = frozenset({"paused", "saved", "user_back"})
"""The machine keeps its memory: very long records may be kept too, see `core.suspension`."""
RELEASING = SUSPENDING | {"worker_stopped", "stopped", "trouble"}
STATES = {
    "worker_started": "working", "worker_stopped": "stopped", "idle": "idle",
    "starting": "starting", "running": "working", "paused": "paused", "saved": "saved",
    "user_back": "user here", "thawed": "working", "stopped": "stopped", "trouble": "trouble",
}  # fmt: skip
PROMPT_S = 5.0
"""An event told within this time is about now: all units go back."""


def add_code(tx: Tx, code_hash: str, role: str, uses: int, ttl_s: float, now: float) -> None:
    tx.add_join_code(JoinCode(code_hash, role, uses, now + ttl_s, now))


def join(
    grid: Grid,
    tx: Tx,
    *,
    code_hash: str,
    token_hash: str,
    name: str,
    facts: dict[str, Any],
    now: float,
) -> Machine:
    """Turn one use of a join code into a machine. Raises AuthError on a code that is no good.

    With an agent's code it is the one worker of that desktop: made the first time, given a new
    token each time after.
    """
    code = tx.use_join_code(code_hash, now)
    host = tx.machine(code.host) if code is not None and code.host is not None else None
    if code is None or (code.host is not None and (host is None or host.revoked)):
        raise AuthError(
            "This join code is not valid.",
            "It is unknown, used up or expired.",
            "Ask the grid admin for a new one: `officegrid join-code --role …`.",
            code="join_code",
        )
    known = tx.machines_on(host.id) if host is not None else []
    if known:
        return _join_again(grid, tx, known[0], token_hash, facts, now)
    machine = add_machine(
        tx, role=code.role, name=name if host is None else f"{host.name}/vm",
        token_hash=token_hash, facts=facts, now=now, host=code.host,
    )  # fmt: skip
    tx.add_event(now, machine.id, "joined", f"{machine.name} joined as {code.role}")
    return machine


def _join_again(
    grid: Grid, tx: Tx, worker: Machine, token_hash: str, facts: dict[str, Any], now: float
) -> Machine:
    """A desktop's VM was made anew: its worker is the same machine with another token. Whoever
    held the old one is out, and the units of the old VM go to others."""
    returns.release_machine(grid, tx, worker, now)
    again = replace(
        worker, token_hash=token_hash, facts=facts, session="", last_seen=now, state="joined",
        revoked=False,
    )  # fmt: skip
    tx.put_machine(again)
    identity.end_alarm(tx, worker)
    tx.add_event(now, worker.id, "joined", f"{worker.name} joined again, with a new token")
    return again


def add_machine(
    tx: Tx, *, role: str, name: str, token_hash: str, facts: dict[str, Any], now: float,
    host: str | None = None,
) -> Machine:  # fmt: skip
    machine = Machine(
        id=f"m{next_number(tx, 'machine_counter')}",
        name=name,
        role=role,
        token_hash=token_hash,
        created_at=now,
        facts=facts,
        last_seen=now,
        state="joined",
        host=host,
    )
    tx.put_machine(machine)
    return machine


def find(tx: Tx, name_or_id: str) -> Machine:
    """A machine by id, or by name when only one has it."""
    machine = tx.machine(name_or_id)
    if machine is not None:
        return machine
    named = [m for m in tx.machines() if m.name == name_or_id]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(m.id for m in named)
        raise NotFoundError(f"{len(named)} machines are named {name_or_id!r}.", fix=f"Use: {ids}.")
    raise NotFoundError(f"There is no machine {name_or_id!r}.", fix="See `officegrid machines`.")


def note_event(grid: Grid, tx: Tx, machine: Machine, event: MachineEvent, now: float) -> int:
    """Write down what a worker tells of its machine; a yielding one's units go back at once.

    What a worker tells that is not the machine's present one, perhaps on a copy of it, is neither
    the machine's state nor a sign of its life."""
    if event.session_id not in ("", machine.session):
        words = event.text or event.kind.replace("_", " ")
        tx.add_event(now, machine.id, event.kind, f"{machine.name}, another worker: {words}")
        return 0
    return happened(grid, tx, machine, event.kind, event.text, at=now, now=now, holders=[machine])


def happened(
    grid: Grid, tx: Tx, machine: Machine, kind: str, text: str, *, at: float, now: float,
    holders: Sequence[Machine],
) -> int:  # fmt: skip
    """Write an event of a machine into its story, as of `at`; when it yields, the units of all
    `holders` go back at once. Returns how many."""
    released = 0
    since = at if now - at > PROMPT_S else None
    if kind in RELEASING:
        for holder in holders:
            released += returns.release_machine(
                grid, tx, holder, now, suspend=kind in SUSPENDING, since=since
            )
    for holder in holders:
        if kind in RELEASING or kind == "running":
            _follow(tx, machine, holder, kind, at)
    tx.touch_machine(machine.id, state=STATES[kind], last_seen=now)
    words = text or f"{machine.name}: {kind.replace('_', ' ')}"
    if released:
        words = f"{words.rstrip('.')}; {released} unit{'s' if released > 1 else ''} released."
    tx.add_event(at, machine.id, kind, words)
    return released


def _follow(tx: Tx, desktop: Machine, worker: Machine, kind: str, at: float) -> None:
    """The worker in a VM rests and wakes with its desktop, unless it was heard of since."""
    if worker.id != desktop.id and worker.last_seen <= at and not worker.revoked:
        tx.touch_machine(worker.id, state=STATES[kind])


def revoke(grid: Grid, tx: Tx, machine: Machine, now: float) -> None:
    """Take a machine's access away; its units go back. With an agent goes its worker, with a
    worker all that joined as copies of it, and as copies of these."""
    followers = identity.followers(tx.machines(), machine.id)
    for one in (machine, *(one for one in followers if not one.revoked)):
        returns.release_machine(grid, tx, one, now)
        tx.touch_machine(one.id, revoked=True, state="revoked")
        tx.add_event(now, one.id, "revoked", f"{one.name} lost its access")
        tx.drop_join_codes(one.host or one.id)


def drain(grid: Grid, tx: Tx, machine: Machine, drains: bool, now: float) -> None:
    """Take a machine out of service, or back into it. It gets no new units; what it works on may
    end, except that a desktop yields."""
    if machine.role not in ("worker", "agent"):
        raise ConflictError(
            f"{machine.name} joined as {machine.role}: it does not work, so it cannot be drained.",
            fix="See `officegrid machines`; `officegrid revoke` takes a person's access away.",
        )
    if machine.drain == drains:
        return
    tx.touch_machine(machine.id, drain=drains)
    words = "is taken out of service" if drains else "is back in service"
    tx.add_event(now, machine.id, "drained" if drains else "undrained", f"{machine.name} {words}")
    grid.work_appeared()
