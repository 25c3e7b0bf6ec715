"""Machines and people's clients: join codes, tokens, sessions, what happens on a desktop."""

from __future__ import annotations

from typing import Any

from officegrid.coordinator.service import returns
from officegrid.coordinator.service.context import Grid, next_number
from officegrid.core.errors import AuthError, NotFoundError
from officegrid.storage.api import JoinCode, Machine, Tx
from officegrid.wire.jobs import MachineEvent

RELEASING = frozenset({"paused", "saved", "user_back", "worker_stopped"})
STATES = {
    "worker_started": "working", "worker_stopped": "stopped", "idle": "idle",
    "starting": "starting", "running": "working", "paused": "paused", "saved": "saved",
    "user_back": "user here", "thawed": "working",
}  # fmt: skip


def add_code(tx: Tx, code_hash: str, role: str, uses: int, ttl_s: float, now: float) -> None:
    tx.add_join_code(JoinCode(code_hash, role, uses, now + ttl_s, now))


def join(
    tx: Tx, *, code_hash: str, token_hash: str, name: str, facts: dict[str, Any], now: float
) -> Machine:
    """Turn one use of a join code into a machine. Raises AuthError on a code that is no good."""
    code = tx.use_join_code(code_hash, now)
    if code is None:
        raise AuthError(
            "This join code is not valid.",
            "It is unknown, used up or expired.",
            "Ask the grid admin for a new one: `officegrid join-code --role …`.",
            code="join_code",
        )
    machine = add_machine(
        tx, role=code.role, name=name, token_hash=token_hash, facts=facts, now=now
    )
    tx.add_event(now, machine.id, "joined", f"{name} joined as {code.role}")
    return machine


def add_machine(
    tx: Tx, *, role: str, name: str, token_hash: str, facts: dict[str, Any], now: float
) -> Machine:
    machine = Machine(
        id=f"m{next_number(tx, 'machine_counter')}",
        name=name,
        role=role,
        token_hash=token_hash,
        created_at=now,
        facts=facts,
        last_seen=now,
        state="joined",
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
    """Write down what happens on a machine; a yielding machine's units go back at once."""
    released = 0
    if event.kind in RELEASING and event.session_id in ("", machine.session):
        released = returns.release_machine(grid, tx, machine, now)
    tx.touch_machine(machine.id, state=STATES[event.kind], last_seen=now)
    text = event.text or f"{machine.name}: {event.kind.replace('_', ' ')}"
    if released:
        text += f"; {released} unit{'s' if released > 1 else ''} released"
    tx.add_event(now, machine.id, event.kind, text)
    return released


def revoke(grid: Grid, tx: Tx, machine: Machine, now: float) -> None:
    """Take a machine's access away; its units go back."""
    returns.release_machine(grid, tx, machine, now)
    tx.touch_machine(machine.id, revoked=True, state="revoked")
    tx.add_event(now, machine.id, "revoked", f"{machine.name} lost its access")
