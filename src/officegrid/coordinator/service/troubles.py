"""Machines that gave a unit back for a reason of their own, and rest: which, for which job, why.

Only advice for people, kept in memory: each machine tries again after its rest, and tells anew.
"""

from __future__ import annotations

from officegrid.coordinator.service.context import Grid, Trouble
from officegrid.core.why import Resting, why_resting
from officegrid.storage.api import Job, Machine, Tx

KEPT_S = 600.0
"""A machine that has not told the same again for so long after its rest is not in trouble."""
MOST_EACH = 50
"""Jobs that are remembered of one machine."""


def note(
    grid: Grid, machine: Machine, job_id: str, *, rest_s: float, reason: str, now: float
) -> None:
    """The machine cannot run a unit of this job, and takes no units of any for `rest_s`."""
    known = {
        job: trouble
        for job, trouble in grid.troubles.get(machine.id, {}).items()
        if job != job_id and _is_known(trouble, now)
    }
    newest = list(known.items())[-MOST_EACH + 1 :]
    # A new one at once: others may be reading the old one.
    grid.troubles[machine.id] = {**dict(newest), job_id: Trouble(now, now + rest_s, reason)}


def over(grid: Grid, machine: Machine, job_id: str, claimed_at: float) -> None:
    """The machine has committed a unit of this job, which it got at `claimed_at`."""
    known = grid.troubles.get(machine.id, {})
    # A unit that was under way before says nothing about the next one.
    if job_id in known and claimed_at > known[job_id].at:
        left = {job: trouble for job, trouble in known.items() if job != job_id}
        grid.troubles[machine.id] = left
        if not left:
            del grid.troubles[machine.id]


def rests(grid: Grid, machine: Machine, now: float) -> bool:
    """Does the machine take no units at present?"""
    known = grid.troubles.get(machine.id, {})
    return any(trouble.at <= now < trouble.rests_until for trouble in known.values())


def for_job(grid: Grid, tx: Tx, job: Job, machines: list[Machine], now: float) -> list[Resting]:
    """Those of `machines` that could not run this job at their last try, or that rest because of
    another job."""
    found: list[Resting] = []
    for machine in machines:
        known = _of(grid, machine, now)
        trouble = known.get(job.id)
        if trouble is not None:
            found.append(_resting(machine, trouble, now))
            continue
        for other, trouble in known.items():
            if now < trouble.rests_until:
                found.append(_resting(machine, trouble, now, _words(tx, other)))
                break
    return found


def why(grid: Grid, tx: Tx, machine: Machine, now: float) -> list[str]:
    """Sentences about what this machine, or the worker in its VM, could not run."""
    sentences: list[str] = []
    for one in [machine, *tx.machines_on(machine.id)]:
        for job_id, trouble in _of(grid, one, now).items():
            sentences += why_resting([_resting(one, trouble, now, _words(tx, job_id))])
    return sentences


def _of(grid: Grid, machine: Machine, now: float) -> dict[str, Trouble]:
    """By job; the newest last. Nothing of a machine that was revoked."""
    if machine.revoked:
        return {}
    known = grid.troubles.get(machine.id, {})
    return {job_id: trouble for job_id, trouble in known.items() if _is_known(trouble, now)}


def _is_known(trouble: Trouble, now: float) -> bool:
    return trouble.at <= now < trouble.rests_until + KEPT_S


def _resting(machine: Machine, trouble: Trouble, now: float, job: str = "") -> Resting:
    return Resting(machine.name, trouble.reason, max(0.0, trouble.rests_until - now), job)


def _words(tx: Tx, job_id: str) -> str:
    job = tx.job(job_id)
    return job_id if job is None else f"{job.name} ({job.id})"
