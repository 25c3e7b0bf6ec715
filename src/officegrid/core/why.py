"""Why something is not running, in words: the rule, the numbers, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from officegrid.core.jobs import JobState
from officegrid.core.quantities import duration_text

MOST_NAMES = 5
"""Of machines in one sentence."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    id: str
    name: str
    state: JobState
    reason: str
    total: int
    pending: int
    leased: int
    done: int
    quarantined: int
    quarantine_allowance: int
    live_leases: int
    priority: int
    next_start_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Resting:
    """A worker that gave a unit back for a reason of its own, like a program that it lacks."""

    machine: str
    reason: str
    """Sentences: what, why, and what helps."""
    rests_s: float
    """For so long it takes no units; 0: it tries again."""
    job: str = ""
    """The job it could not run, where that is not the one in question."""


@dataclass(frozen=True, slots=True)
class GridFacts:
    workers_joined: int
    workers_online: int
    busier_jobs: Sequence[str] = ()
    """Jobs of higher priority that have records pending."""
    desks: Mapping[str, int] = field(default_factory=dict)
    """How many desktops are in which state: {"user here": 12, "saved": 3}."""
    workers_stale: int = 0
    """Of those online, how many get no units because a program there is too old."""
    resting: Sequence[Resting] = ()
    """Those online that could not run the job at their last try, or rest because of another one."""


def why_job(job: JobFacts, grid: GridFacts) -> list[str]:
    """Sentences, most important first."""
    if job.state is JobState.FINISHED:
        end = f"{job.name} has finished: {job.done:,} of {job.total:,} records done"
        if not job.quarantined:
            return [end + "."]
        return [
            f"{end}, {job.quarantined:,} quarantined.",
            f"See `officegrid quarantine {job.id}`; `officegrid retry {job.id}` runs them again.",
        ]
    if job.state is JobState.CANCELLED:
        return [f"{job.name} was cancelled: {job.reason or 'no reason given'}."]
    if job.state is JobState.SCHEDULED:
        when = duration_text(job.next_start_in_s or 0)
        return [f"{job.name} is a schedule; its next run starts in {when}."]
    if job.state is JobState.WAITING:
        return [f"{job.name} {job.reason or 'waits to be started'}."]
    if job.state is JobState.HELD:
        return [f"{job.name} is held: {job.reason}.", *_held_advice(job)]
    return _why_running(job, grid)


def _held_advice(job: JobFacts) -> list[str]:
    if job.quarantined > job.quarantine_allowance:
        return [
            f"{job.quarantined:,} records are quarantined; {job.quarantine_allowance:,} allowed.",
            f"Look at them with `officegrid quarantine {job.id}`, then "
            f"`officegrid retry {job.id}` with corrected code, or accept them with "
            f"`officegrid release {job.id}`.",
        ]
    if job.reason.startswith("the program could not be started"):
        return [
            "Correct the program and submit the job again, then cancel this one. "
            f"`officegrid release {job.id}` tries the same code once more; a job with "
            "follow_latest runs what was pushed since.",
        ]
    if job.reason.startswith("its input cannot be read"):
        return [
            f"When that is mended in the database, `officegrid release {job.id}` reads it again. A "
            "job file that was wrong has to be submitted again.",
        ]
    return [f"`officegrid release {job.id}` lets it go on."]


def _why_running(job: JobFacts, grid: GridFacts) -> list[str]:
    left = job.pending + job.leased
    start = f"{job.name} is running: {job.done:,} of {job.total:,} records done"
    if job.live_leases:
        running = f"{job.live_leases} unit{'s' if job.live_leases > 1 else ''}"
        busy = f"{start}, {running} with {job.leased:,} records being worked on."
        return [busy, *_why_not_here(grid)]
    sentences = [f"{start}, {left:,} left, but no unit is being worked on."]
    if grid.workers_online == 0 and grid.desks:
        sentences += _desks_away(grid.desks)
    elif grid.workers_joined == 0:
        sentences.append(
            "No worker has joined. Make a code with `officegrid join-code --role worker`, then run "
            "`officegrid join` and `officegrid worker` on a machine."
        )
    elif grid.workers_online == 0:
        joined = grid.workers_joined
        one = joined == 1
        none = "The only worker that has" if one else f"None of the {joined} workers that have"
        sentences.append(
            f"{none} joined is {'not ' if one else ''}online. "
            "Start one with `officegrid worker`, or see `officegrid machines`."
        )
    elif grid.workers_stale >= grid.workers_online:
        one = grid.workers_stale == 1
        sentences.append(
            f"{'The only worker' if one else f'All {grid.workers_stale} workers'} online "
            f"{'is' if one else 'are'} below the floor and {'gets' if one else 'get'} no units: "
            "`officegrid floor` shows which and why."
        )
    elif grid.workers_stale + len(grid.resting) >= grid.workers_online:
        sentences += _why_not_here(grid)
        if grid.workers_stale:
            sentences.append("The others are below the floor: `officegrid floor` shows why.")
    elif grid.busier_jobs:
        names = ", ".join(grid.busier_jobs)
        sentences.append(
            f"Workers are busy with jobs of higher priority: {names}. "
            f"This one has priority {job.priority}."
        )
    else:
        sentences += _why_not_here(grid)
        online = grid.workers_online - len(grid.resting)
        sentences.append(
            f"{online} {'other ' if grid.resting else ''}worker{'s are' if online > 1 else ' is'} "
            "online and should ask for a unit within seconds."
        )
    return sentences


def _why_not_here(grid: GridFacts) -> list[str]:
    """Which workers online do not run the job now, and why."""
    failed = sum(not one.job for one in grid.resting)
    sentences = []
    if failed:
        of = f"{failed} of the {grid.workers_online} workers online"
        if failed == grid.workers_online:
            of = "The only worker online" if failed == 1 else f"All {failed} workers online"
        they = "it" if failed == 1 else "they"
        sentences.append(f"{of} could not run it when {they} last tried.")
    return [*sentences, *why_resting(grid.resting)]


def why_resting(resting: Sequence[Resting]) -> list[str]:
    """Who could not run what, for which reason, and when they try again; one sentence for all who
    have the same reason."""
    sentences = []
    groups: dict[tuple[str, str], list[Resting]] = {}
    for one in resting:
        groups.setdefault((one.job, one.reason), []).append(one)
    for (job, reason), group in groups.items():
        names = [one.machine for one in group]
        shown = ", ".join(names[:MOST_NAMES])
        shown += f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        start = f"{shown} could not run {job}" if job else shown
        sentences.append(f"{start}: {reason}")
    now = [one for one in resting if one.rests_s]
    if now:
        alone = len(now) == 1
        who = "They" if len(now) == len(resting) else f"{len(now)} of them"
        sentences.append(
            f"{f'{now[0].machine} takes' if alone else f'{who} take'} no units for "
            f"{duration_text(max(one.rests_s for one in now))}, then "
            f"{'tries' if alone else 'try'} again. Records that went back are not lost."
        )
    return sentences


def _desks_away(desks: Mapping[str, int]) -> list[str]:
    total = sum(desks.values())
    states = ", ".join(f"{count} {state}" for state, count in sorted(desks.items()))
    return [
        f"No worker is online. There {'is' if total == 1 else 'are'} {total} "
        f"desktop{'' if total == 1 else 's'}: {states}.",
        "It goes on when one of them is left, or on a machine where you run `officegrid worker`. "
        "`officegrid why NAME` says what a desktop waits for.",
    ]


def why_machine(
    name: str, role: str, *, revoked: bool, online: bool, last_seen_ago_s: float, state: str,
    units: int, claimable_jobs: int, drained: bool = False,
) -> list[str]:  # fmt: skip
    """Why a machine that is not a desktop is not working; desktops: `core.whydesk`."""
    if revoked:
        return [f"{name} was revoked. Join it again with a new code if it should work."]
    if role not in ("worker", "agent"):
        return [f"{name} joined as {role}: it does not process records."]
    ago = duration_text(last_seen_ago_s)
    if drained:
        return [
            f"{name} is drained: an admin took it out of service, and it gets no new units. "
            f"{units} still run{'s' if units == 1 else ''}; last heard of {ago} ago.",
            f"`officegrid drain {name} --off` puts it back.",
        ]
    if not online:
        return [
            f"{name} is offline: last heard of {ago} ago (state then: {state}).",
            "Start its worker with `officegrid worker`, or look at its network and its log.",
        ]
    if units:
        return [f"{name} is working on {units} unit{'s' if units > 1 else ''}."]
    if claimable_jobs == 0:
        return [f"{name} is online and has nothing to do: no job has records pending."]
    return [f"{name} is online (heard of {ago} ago, {state}) and should ask for a unit soon."]
