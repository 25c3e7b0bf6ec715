"""Old programs: the floor below which nobody gets units, and the releases workers update to.

The setting `updates` holds all of it as JSON:

    {"mark",       another number with each change to any of it
     "floor":      {"worker", "agent", "image"}, see core.floor.Floor
     "releases":   see core.releases.to_plain}

What a worker says of itself is kept in its machine's facts: `version`, `release` (the digest of the
pushed one it runs), `update_failed` ({"digest", "version", "number", "why"}).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from officegrid.coordinator.service.context import Grid
from officegrid.core import releases as rules
from officegrid.core.errors import NotFoundError
from officegrid.core.floor import (
    OWN_IMAGE,
    Floor,
    Outlook,
    Stale,
    short,
    stale_desk,
    stale_worker,
    told,
    why_failed,
    why_stale,
)
from officegrid.core.releases import Releases, Runs
from officegrid.core.roles import Role
from officegrid.core.versions import checked
from officegrid.storage.api import Machine, Tx
from officegrid.wire.updates import FloorSettings
from officegrid.wire.work import ClaimRequest, UpdateOrder

SETTING = "updates"
SUBJECT = "updates"
"""Whose story tells what was done about floor and releases."""


@dataclass(frozen=True, slots=True)
class Policy:
    mark: int = 0
    floor: Floor = field(default_factory=Floor)
    releases: Releases = field(default_factory=Releases)


_parsed: tuple[str, Policy] = ("", Policy())
"""The last text read, and what it means: every claim reads it."""


def policy(tx: Tx) -> Policy:
    """What is in force."""
    global _parsed
    text = tx.setting(SETTING) or ""
    known, found = _parsed
    if text != known:
        plain = json.loads(text) if text else {}
        found = Policy(
            plain.get("mark", 0),
            Floor(**plain.get("floor", {})),
            rules.from_plain(plain.get("releases", {})),
        )
        _parsed = (text, found)
    return found


def _keep(grid: Grid, tx: Tx, new: Policy, by: str, words: str, now: float) -> Policy:
    new = replace(new, mark=new.mark + 1)
    plain = {
        "mark": new.mark, "floor": asdict(new.floor), "releases": rules.to_plain(new.releases)
    }  # fmt: skip
    tx.put_setting(SETTING, json.dumps(plain))
    tx.add_event(now, SUBJECT, "updates", f"{by}: {words}")
    grid.work_appeared()  # workers that wait for work hear of it at once
    return new


# --- the floor


def set_floor(grid: Grid, tx: Tx, asked: FloorSettings, by: str, now: float) -> Policy:
    """Change what is given. Raises UsageError for what is no version, NotFoundError for
    an image that is not there, changing nothing."""
    known = policy(tx)
    floor = known.floor
    if asked.worker is not None:
        floor = replace(floor, worker=asked.worker and checked(asked.worker, "floor for workers"))
    if asked.agent is not None:
        floor = replace(floor, agent=asked.agent and checked(asked.agent, "floor for agents"))
    if asked.image is not None:
        newest = max((image.version for image in tx.images(limit=1)), default=0)
        if asked.image > newest:
            raise NotFoundError(
                f"There is no image version {asked.image}.",
                f"The newest one that was pushed is {newest}." if newest else "None was pushed.",
                "See `officegrid image list`.",
            )
        floor = replace(floor, image=asked.image)
    if floor == known.floor:
        return known
    words = f"the floor is {floor_words(floor)}"
    return _keep(grid, tx, replace(known, floor=floor), by, words, now)


def floor_words(floor: Floor) -> str:
    """ "worker 0.2.0, image 3", or "not set"."""
    parts = [f"worker {floor.worker}" if floor.worker else ""]
    parts.append(f"agent {floor.agent}" if floor.agent else "")
    parts.append(f"image {floor.image}" if floor.image else "")
    return ", ".join(filter(None, parts)) or "not set"


# --- releases


def push(
    grid: Grid, tx: Tx, *, digest: str, version: str, size: int, by: str, now: float
) -> Policy:
    """The wheel with this digest, which is in the store, is in force. Raises ConflictError."""
    known = policy(tx)
    new = rules.pushed(
        known.releases, digest=digest, version=version, size=size, by=by, now=now
    )  # fmt: skip
    words = f"release {version} is in force"
    return _keep(grid, tx, replace(known, releases=new), by, words, now)


def roll_back(grid: Grid, tx: Tx, by: str, now: float) -> Policy:
    """Take back what is in force. Raises ConflictError."""
    known = policy(tx)
    new = rules.rolled_back(known.releases)
    before, after = known.releases.in_force, new.in_force
    assert before is not None
    to = f"release {after.version}" if after else "what is installed on each machine"
    words = f"release {before.version} is withdrawn; workers go back to {to}"
    return _keep(grid, tx, replace(known, releases=new), by, words, now)


def retry(grid: Grid, tx: Tx, by: str, now: float) -> Policy:
    """Machines on which the release in force failed try again. Raises ConflictError."""
    known = policy(tx)
    new = rules.retried(known.releases)
    assert new.in_force is not None
    words = f"machines on which release {new.in_force.version} failed try it again"
    return _keep(grid, tx, replace(known, releases=new), by, words, now)


# --- workers


def note(tx: Tx, machine: Machine, request: ClaimRequest, now: float) -> None:
    """Keep what a worker says of itself, when it changes."""
    facts = machine.facts
    failed = request.update_failed
    said: dict[str, Any] = {
        "version": request.version, "release": request.release,
        "update_failed": None if failed is None else failed.model_dump(),
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value}
    if {name: facts.get(name) for name in ("version", "release", "update_failed")} == {
        name: said.get(name) for name in ("version", "release", "update_failed")
    }:
        return
    fresh = tx.machine(machine.id) or machine  # the claim may have changed its facts just now
    # `officegrid` is the version it joined with.
    old = ("version", "release", "update_failed", *(["officegrid"] if request.version else []))
    kept = {name: value for name, value in fresh.facts.items() if name not in old}
    tx.touch_machine(machine.id, facts={**kept, **said})
    if failed is not None and facts.get("update_failed") != said.get("update_failed"):
        words = f"{machine.name}: the update to {failed.version} did not work: {failed.why}"
        tx.add_event(now, machine.id, "update_failed", words)
    before, runs = facts.get("version"), request.version
    if runs and before and (before, facts.get("release")) != (runs, request.release):
        where = "" if request.release else ", as it is installed there"
        tx.add_event(now, machine.id, "updated", f"{machine.name} now runs {runs}{where}")


def runs_of(machine: Machine) -> Runs:
    """What this worker said last that it runs; empty words where it said nothing."""
    return Runs(str(machine.facts.get("version") or ""), str(machine.facts.get("release") or ""))


def failure_of(machine: Machine) -> dict[str, Any]:
    """The release that did not work on this worker, as `update_failed` above; {} if none."""
    return machine.facts.get("update_failed") or {}


def order(tx: Tx, machine: Machine, request: ClaimRequest) -> tuple[UpdateOrder | None, bool]:
    """(what the worker is told about its program, whether it is below the floor)."""
    known = policy(tx)
    if not known.mark:
        return None, False
    stale = [*stale_worker(request.version, known.floor), *_stale_desk(tx, machine, known.floor)]
    failed = request.update_failed
    runs = Runs(
        request.version, request.release or "",
        ("", 0) if failed is None else (failed.digest, failed.number),
    )  # fmt: skip
    # A worker that does not say its version is of before there were orders.
    go = rules.order_for(known.releases, runs) if request.version else None
    if go is None and not stale:
        return None, False
    text = " ".join(told(one) for one in stale)
    reply = UpdateOrder(text=text, mark=known.mark)
    if go is not None:
        release = go.release
        about = {} if release is None else {
            "digest": release.digest, "version": release.version, "size": release.size
        }  # fmt: skip
        reply = reply.model_copy(
            update={**about, "number": go.number, "home": release is None}
        )  # fmt: skip
    return reply, bool(stale)


# --- in words


def _image_of(tx: Tx, host: Machine) -> int | None:
    """The number of what the desktop's VM is made from, as its agent says; see `stale_desk`."""
    said: dict[str, Any] = host.status.get("image", {})
    if not said.get("format"):
        return None
    image = tx.image(said["running"]) if said.get("running") else None
    return OWN_IMAGE if image is None else image.version


def _stale_desk(tx: Tx, machine: Machine, floor: Floor) -> list[Stale]:
    if not (floor.agent or floor.image):
        return []
    host = tx.machine(machine.host) if machine.host is not None else machine
    if host is None or host.role != Role.AGENT or not host.status:
        return []
    return stale_desk(host.status.get("version", ""), _image_of(tx, host), floor)


def stale_agent(tx: Tx, agent: Machine) -> str:
    """What an agent is told when it is below the floor, or its VM's image is; "" when not."""
    return " ".join(told(one) for one in _stale_desk(tx, agent, policy(tx).floor))


def stale_of(tx: Tx, machine: Machine) -> list[Stale]:
    """Why this machine gets no units, as far as programs are too old. Empty also for one that has
    not been heard of, and for people."""
    floor = policy(tx).floor
    if floor == Floor() or machine.revoked or machine.role not in (Role.WORKER, Role.AGENT):
        return []
    stale = _stale_desk(tx, machine, floor)
    if machine.session:
        stale = [*stale_worker(machine.facts.get("version", ""), floor), *stale]
    return stale


def words(tx: Tx, machine: Machine) -> str | None:
    """One line, None when it is not below the floor."""
    return "; ".join(short(one) for one in stale_of(tx, machine)) or None


def why(tx: Tx, machine: Machine) -> list[str]:
    """Sentences about old programs on this machine, and in its VM."""
    sentences: list[str] = []
    told_of: set[str] = set()
    for one in [machine, *tx.machines_on(machine.id)]:
        outlook = _outlook(tx, one)
        stale = stale_of(tx, one)
        for each in stale:
            if each.kind not in told_of:
                sentences += why_stale(one.name, each, outlook)
            told_of.add(each.kind)
        if outlook.failed and not any(each.kind == "worker" for each in stale):
            sentences.append(f"{one.name} works with what it ran before. {why_failed(outlook)}")
    return sentences


def _outlook(tx: Tx, machine: Machine) -> Outlook:
    current = policy(tx).releases.in_force
    failed = failure_of(machine)
    if current is None or machine.revoked:
        return Outlook()
    if failed.get("digest") == current.digest and failed.get("number", 0) >= current.number:
        return Outlook(failed=current.version, failed_why=str(failed.get("why", "")))
    runs = runs_of(machine)
    go = rules.order_for(policy(tx).releases, runs) if runs.version else None
    return Outlook(order=go.release.version if go is not None and go.release else "")
