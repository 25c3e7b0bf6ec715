"""Machines and desktops as text: the rows of a list, and all there is to say about one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from officegrid.client.text import ago, table
from officegrid.core.quantities import duration_text
from officegrid.core.roles import Role
from officegrid.wire.agent import DeskStatus, DeskView, YieldTimes
from officegrid.wire.jobs import MachineView

_Add = Callable[[str, str], None]
HEADERS = [
    "id", "name", "role", "online", "state", "units", "harvested", "interruptions", "last seen",
]  # fmt: skip


def machine_table(machines: Sequence[MachineView]) -> str:
    """One row per machine; the worker in a desktop's VM is part of the desktop's row. Below it,
    whose identity seems to be in two places; then the people, who are never "online": they only
    ask, now and then."""
    people = [one for one in machines if is_person(one)]
    machines = [one for one in machines if not is_person(one)]
    desktops = {machine.id for machine in machines if machine.desk is not None}
    alarmed = {one.id for one in machines if one.alarm}
    alarmed |= {one.host for one in machines if one.alarm and one.host is not None}
    rows = [_row(one, one.id in alarmed) for one in machines if one.host not in desktops]
    alarms = [f"ALARM: {one.name} ({one.id}): {one.alarm}" for one in machines if one.alarm]
    alarms += [
        f"TOO OLD: {one.name} ({one.id}) gets no units: {one.below_floor}"
        for one in machines
        if one.below_floor
    ]
    if alarms:
        alarms.append("`officegrid why NAME` says what that means and what to do.")
    listed = table(HEADERS, rows) if rows else "No machine has joined yet."
    return "\n".join([listed, *alarms, *_people(people)])


def is_person(machine: MachineView) -> bool:
    """Did a person join, or a person's program, and not a machine that works?"""
    return machine.role not in (Role.WORKER, Role.AGENT)


def _people(people: Sequence[MachineView]) -> list[str]:
    rows = [
        [one.id, one.name, one.role, "revoked" if one.revoked else "yes", ago(one.created_at)]
        for one in people
    ]
    return ["", table(["id", "name", "role", "access", "joined"], rows)] if rows else []


def _row(machine: MachineView, alarmed: bool) -> list[str]:
    mark = "ALARM, " if alarmed else ""
    desk = machine.desk
    start = [machine.id, machine.name, machine.role, "yes" if machine.online else "no"]
    if desk is None:
        state = f"{machine.state}, drained" if machine.drain else machine.state
        return [*start, mark + state, str(machine.units_running), "-", "-", ago(machine.last_seen)]
    return [
        *start, mark + desk.words, str(desk.worker_units), hours_text(desk.harvested_s),
        f"{desk.interruptions:,}", ago(machine.last_seen),
    ]  # fmt: skip


def hours_text(seconds: float) -> str:
    """ "12.5 h": what a desktop gave, easy to compare down a column."""
    return f"{seconds / 3600:,.1f} h"


def machine_lines(view: MachineView) -> list[str]:
    """All there is to say about one machine."""
    lines = [f"{view.name} ({view.id}), {view.role}"]

    def add(name: str, text: str) -> None:
        if text:
            lines.append(f"  {name:<13} {text}")

    if is_person(view):
        add("access", "revoked" if view.revoked else "yes")
        add("joined", ago(view.created_at))
        add("last seen", f"{duration_text(time.time() - view.last_seen)} ago")
        for key, value in view.facts.items():
            add(key, _fact(key, value))
        return lines
    words = view.desk.words if view.desk is not None else view.state
    add("state", f"{words}, {'online' if view.online else 'offline'}")
    add("ALARM", view.alarm or "")
    add("TOO OLD", f"gets no units: {view.below_floor}" if view.below_floor else "")
    add("last seen", f"{duration_text(time.time() - view.last_seen)} ago")
    if view.drain:
        add("drained", f"gets no new units; `officegrid drain {view.name} --off` ends that")
    if view.host is not None:
        add("desktop", f"{view.host} (it runs in the VM there)")
    add("copy of", view.cloned_from or "")
    if view.desk is not None:
        _add_desk(add, view.desk)
    else:
        add("units", f"{view.units_running} running")
    for key, value in view.facts.items():
        add(key, _fact(key, value))
    return lines


def _fact(key: str, value: object) -> str:
    if key == "update_failed" and isinstance(value, dict):
        return f"{value.get('version', '')}: {value.get('why', '')}"
    if key == "release":
        return f"{str(value)[:12]}… (fetched from the coordinator)"
    return str(value)


def _add_desk(add: _Add, desk: DeskView) -> None:
    if desk.status is not None:
        _add_status(add, desk.status, desk.since_s)
    add("agent", desk.version)
    if desk.worker is not None:
        online = "online" if desk.worker_online else "offline"
        add("worker", f"{desk.worker}, {online}, {desk.worker_units} units running")
    else:
        add("worker", "has not joined yet")
    add("harvested", f"{hours_text(desk.harvested_s)} in {desk.starts:,} starts")
    add("interruptions", f"{desk.interruptions:,}; {desk.units_released:,} units given back")
    add("CPU back", _yield_text(desk.cpu_back))
    add("memory back", _yield_text(desk.memory_back))


def _add_status(add: _Add, status: DeskStatus, since_s: float | None) -> None:
    since = f", for {duration_text(since_s)}" if since_s is not None else ""
    add("decision", f"{status.decision} (rule {status.rule}){since}")
    add("why", status.sentence)
    add("would change", status.change)
    add("numbers", ", ".join(f"{key} {value}" for key, value in status.numbers.items()))
    add("VM", f"{status.vm}{f': {status.vm_detail}' if status.vm_detail else ''}")
    health = ": ".join(filter(None, (status.health, status.health_sentence)))
    add("driver", ", ".join(filter(None, (status.driver, health))))


def _yield_text(times: YieldTimes | None) -> str:
    if times is None:
        return ""
    return (
        f"half within {_ms(times.p50_ms)}, 99 % within {_ms(times.p99_ms)}, "
        f"longest {_ms(times.longest_ms)} (last {times.count})"
    )


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
