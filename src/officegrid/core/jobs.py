"""The life of a job: its states, and which moves between them are allowed.

waiting ──────► running ──────► finished
   │  ▲           │  ▲             │
   │  └── held ◄──┘  └─────────────┘ (retry of quarantined records)
   │       ▲ │
   ▼       │ ▼
cancelled ◄──┘            scheduled: a template; each tick of its cron line starts a run
"""

from __future__ import annotations

from enum import StrEnum

from officegrid.core.errors import ConflictError


class JobState(StrEnum):
    SCHEDULED = "scheduled"  # a template that starts runs on a cron schedule
    WAITING = "waiting"  # until the jobs named in `after` have finished
    RUNNING = "running"
    HELD = "held"  # by a person, or by quarantine_limit; the reason says which
    FINISHED = "finished"
    CANCELLED = "cancelled"


MOVES: dict[tuple[JobState, str], JobState] = {
    (JobState.WAITING, "start"): JobState.RUNNING,
    (JobState.WAITING, "hold"): JobState.HELD,
    (JobState.WAITING, "cancel"): JobState.CANCELLED,
    (JobState.RUNNING, "hold"): JobState.HELD,
    (JobState.RUNNING, "cancel"): JobState.CANCELLED,
    (JobState.RUNNING, "finish"): JobState.FINISHED,
    (JobState.HELD, "hold"): JobState.HELD,
    (JobState.HELD, "release"): JobState.RUNNING,
    (JobState.HELD, "await"): JobState.WAITING,
    (JobState.HELD, "cancel"): JobState.CANCELLED,
    (JobState.FINISHED, "retry"): JobState.RUNNING,
    (JobState.RUNNING, "retry"): JobState.RUNNING,
    (JobState.HELD, "retry"): JobState.RUNNING,
    (JobState.SCHEDULED, "cancel"): JobState.CANCELLED,
}

ENDED = frozenset({JobState.FINISHED, JobState.CANCELLED})

_ADVICE = {
    "cancel": "Nothing is left to cancel.",
    "hold": "Only a waiting or running job can be held.",
    "release": "Only a held job can be released.",
    "retry": "Only a job with quarantined records that has not been cancelled can be retried.",
}


def move(state: JobState, verb: str, job: str = "the job") -> JobState:
    """The state after `verb`. Raises ConflictError when the move is not allowed."""
    after = MOVES.get((state, verb))
    if after is None:
        raise ConflictError(
            f"Cannot {verb} {job}: it is {state}.", fix=_ADVICE.get(verb, "See `officegrid jobs`.")
        )
    return after
