"""One machine, one identity: copies get their own, and one identity in two places is an alarm.

A machine's `facts["hardware_id"]` is the computer it joined on, told when it joined or with the
first claim that knows one. The alarm of a machine is kept in the setting `identity_alarm:<id>`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from officegrid.coordinator.service import returns
from officegrid.coordinator.service.context import Grid, next_number
from officegrid.core.errors import ConflictError, ForbiddenError, LimitError
from officegrid.core.roles import Role
from officegrid.core.whyidentity import Alarm, AlarmKind, again, alarm_words, event_text, is_open
from officegrid.storage.api import Machine, Tx

MOST_CLONES = 1000
"""Of one machine that joined with a code, copies of copies included. A disk that was copied a
thousand times is a mistake, and so is a token that makes a thousand machines."""
DEEPEST_CLONE = 8
"""A copy is one step away from what it was copied from, the copy of a copy is two."""
TURNS_S = 600.0
"""Two that take turns meet again within this time."""
_ID_CHARS = 64
_NAME_CHARS = 240


# --- hardware ----------------------------------------------------------------------------------


def hardware_id(machine: Machine) -> str:
    """The computer the machine is known to be on; "" if it never said."""
    told = machine.facts.get("hardware_id", "")
    return told[:_ID_CHARS] if isinstance(told, str) else ""


def check_hardware(machine: Machine, told: str) -> None:
    """Is a worker that starts on the computer `told` this machine at all? Raises ConflictError
    ("cloned") when it is a copy. "" is believed, and so is the first one that is told."""
    known = hardware_id(machine)
    if told and known and told != known:
        raise ConflictError(
            f"This is a copy of {machine.name}: it runs on another computer than the one that "
            "joined.",
            f"{machine.name} joined on hardware {known[:6]}…, this is {told[:6]}….",
            "The worker asks for an identity of its own by itself. If it does not, join with a "
            "new code: `officegrid join URL --code CODE`.",
            code="cloned",
        )


# --- copies ------------------------------------------------------------------------------------


def clone(
    grid: Grid, tx: Tx, original: Machine, *, hardware: str, token_hash: str,
    facts: dict[str, Any], now: float,
) -> Machine:  # fmt: skip
    """Give a copy of `original` that runs on other hardware an identity of its own.

    The same hardware asking again (its answer was lost, its disk was reset) is the same machine
    with a new token. Raises ForbiddenError for a machine that is no worker and for a copy that an
    admin has revoked, ConflictError ("not_a_copy") when `original` itself is on this hardware,
    LimitError ("too_many_copies") after MOST_CLONES, and below DEEPEST_CLONE.
    """
    if original.role != Role.WORKER:
        raise ForbiddenError(
            f"{original.name} joined as {original.role}: only a worker's copy can join by itself.",
            fix=f"Join with a code of its own: `officegrid join-code --role {original.role}`.",
        )
    if hardware == hardware_id(original):
        raise ConflictError(
            f"This is {original.name} itself, not a copy of it.",
            "It asks from the very hardware that it joined on.",
            "It can go on with the identity that it has.",
            code="not_a_copy",
        )
    facts = {**facts, "hardware_id": hardware}
    everyone = tx.machines()
    copies = (one for one in everyone if one.cloned_from == original.id)
    known = next((one for one in copies if hardware_id(one) == hardware), None)
    if known is not None:
        return _again(grid, tx, original, known, token_hash, facts, now)
    _refuse_too_many(everyone, original)
    machine = Machine(
        id=f"m{next_number(tx, 'machine_counter')}",
        name=clone_name(original.name, hardware),
        role=Role.WORKER, token_hash=token_hash, created_at=now, facts=facts, last_seen=now,
        state="joined", cloned_from=original.id,
    )  # fmt: skip
    tx.put_machine(machine)
    text = f"{machine.name} joined as a copy of {original.name} ({original.id}) on other hardware"
    tx.add_event(now, machine.id, "joined", text)
    text = f"a copy of {original.name} on other hardware joined as {machine.name} ({machine.id})"
    tx.add_event(now, original.id, "cloned", text)
    _end_alarm(tx, original, AlarmKind.CLONED)
    return machine


def clone_name(name: str, hardware: str) -> str:
    mark = "".join(c for c in hardware if c.isalnum())[:6]
    return f"{name[:_NAME_CHARS]}-{mark or 'copy'}"


def _again(
    grid: Grid, tx: Tx, original: Machine, known: Machine, token_hash: str,
    facts: dict[str, Any], now: float,
) -> Machine:  # fmt: skip
    if known.revoked:
        raise ForbiddenError(
            f"{known.name}, the copy of {original.name} on this hardware, was revoked.",
            "A revoked worker does not come back by itself.",
            "Join it with a new code: `officegrid join-code --role worker`.",
        )
    returns.release_machine(grid, tx, known, now)
    renewed = replace(
        known, token_hash=token_hash, facts=facts, session="", last_seen=now, state="joined"
    )
    tx.put_machine(renewed)
    text = f"{known.name} asked for its identity again and has a new token"
    tx.add_event(now, known.id, "joined", text)
    _end_alarm(tx, original, AlarmKind.CLONED)
    return renewed


def _refuse_too_many(everyone: Iterable[Machine], original: Machine) -> None:
    """Raises LimitError when `original` must not have one more copy.

    The limits are those of the machine at the root, which joined with a code: else a copy of a
    copy, and so on, would make as many machines as it likes.
    """
    by_id = {one.id: one for one in everyone}
    line = {original.id: original.name}
    above = original.cloned_from
    while above is not None and above not in line:
        parent = by_id.get(above)
        line[above] = parent.name if parent is not None else above
        above = parent.cloned_from if parent is not None else None
    root_id, root_name = next(reversed(line.items()))
    if len(line) > DEEPEST_CLONE:
        raise LimitError(
            f"{original.name} is itself a copy of a copy; no further copy of it can join.",
            f"It is {len(line) - 1} copies away from {root_name}, and {DEEPEST_CLONE} are allowed.",
            "Join this machine with a code of its own: `officegrid join-code --role worker`.",
            code="too_many_copies",
        )
    if len(followers(by_id.values(), root_id)) >= MOST_CLONES:
        raise LimitError(
            f"{root_name} has been copied {MOST_CLONES} times; no further copy can join.",
            "Copies of its copies count as well.",
            f"Revoke it (`officegrid revoke {root_name}`), and join what is to work with codes.",
            code="too_many_copies",
        )


def followers(everyone: Iterable[Machine], machine_id: str) -> list[Machine]:
    """Whoever has an identity only because this machine has one, revoked or not: the worker of a
    desktop, copies, copies of copies. The nearest first; each once, however they are linked."""
    below: dict[str, list[Machine]] = {}
    for one in everyone:
        for above in (one.host, one.cloned_from):
            if above is not None:
                below.setdefault(above, []).append(one)
    found: list[Machine] = []
    seen, to_do = {machine_id}, deque([machine_id])
    while to_do:
        for one in below.get(to_do.popleft(), ()):
            if one.id not in seen:
                seen.add(one.id)
                found.append(one)
                to_do.append(one.id)
    return found


# --- alarms ------------------------------------------------------------------------------------


def raise_alarm(tx: Tx, machine: Machine, kind: AlarmKind, now: float) -> None:
    """Something happened that means one identity in two places."""
    alarm, tell = again(_stored(tx, machine), kind, now)
    tx.put_setting(_key(machine), json.dumps(asdict(alarm)))
    if tell:
        tx.add_event(now, machine.id, "identity_alarm", event_text(machine.name, kind))


def note_refused(tx: Tx, machine: Machine, code: str, now: float) -> None:
    """A worker was refused with this error code when it asked for work."""
    kind = {"cloned": AlarmKind.CLONED, "session_replaced": AlarmKind.TURNS}.get(code)
    found = tx.machine(machine.id)
    if kind is not None and found is not None and not found.revoked:
        raise_alarm(tx, found, kind, now)


def open_alarm(tx: Tx, machine: Machine, now: float) -> Alarm | None:
    """The machine's alarm, unless it has ended."""
    alarm = None if machine.revoked else _stored(tx, machine)
    return alarm if alarm is not None and is_open(alarm, now) else None


def is_shared(tx: Tx, machine: Machine, now: float) -> bool:
    """Do two workers take turns under this identity just now?"""
    alarm = open_alarm(tx, machine, now)
    return alarm is not None and alarm.kind is AlarmKind.TURNS and now - alarm.last_at < TURNS_S


def words(tx: Tx, machine: Machine, now: float) -> str | None:
    """The machine's alarm in one line, for people."""
    alarm = open_alarm(tx, machine, now)
    return None if alarm is None else alarm_words(alarm, now)


def end_alarm(tx: Tx, machine: Machine) -> None:
    """The machine has a new token: who shared the old one is out."""
    if tx.setting(_key(machine)):
        tx.put_setting(_key(machine), "")


def _end_alarm(tx: Tx, machine: Machine, kind: AlarmKind) -> None:
    alarm = _stored(tx, machine)
    if alarm is not None and alarm.kind is kind:
        end_alarm(tx, machine)


def _stored(tx: Tx, machine: Machine) -> Alarm | None:
    text = tx.setting(_key(machine))
    if not text:
        return None
    plain = json.loads(text)
    return Alarm(**{**plain, "kind": AlarmKind(plain["kind"])})


def _key(machine: Machine) -> str:
    return f"identity_alarm:{machine.id}"
