"""What an agent senses at a desk, the rules it follows, and what it decides: the vocabulary.

    Sample   what all sensors say at one moment
    DeskPolicy   the rules: central ones, made stricter (never laxer) by the machine's own
    Verdict   may the grid use this PC now, with the rule, the numbers and what would change it

`core.idle.decide` maps samples to verdicts. None in a Sample means that nobody could tell, and
nobody could tell means busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

FOREVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class Session:
    """One logon session at which a person can sit: the console, a remote desktop."""

    id: str
    age_s: float
    """How old this reading is; a sensor that fell silent lets it grow."""
    idle_s: float | None
    """Since the last key press or pointer movement, at the time of the reading."""
    locked: bool | None = None
    remote: bool = False
    presenting: bool | None = False
    """A full-screen program, a presentation, a call: somebody looks on without typing."""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What all sensors say at one moment."""

    at_s: float
    """Monotonic seconds; may jump forward after sleep, never backwards."""
    wall_s: float
    """Seconds since the epoch; may jump either way."""
    weekday: int
    """Local time: Monday is 0."""
    minute: int
    """Local time: minute of the day, 0 to 1439."""
    sessions: tuple[Session, ...] | None
    """Connected sessions; () is the login screen with nobody logged on; None: not known."""
    foreign_cpu: float | None
    """Share of all cores (0 to 1) that others than our own worker use, averaged over seconds."""
    on_battery: bool | None
    memory_free_mb: int | None
    """Available to programs; while our VM runs, its memory counts as free."""
    pause_until_s: float | None = None
    """The desk user said "not now" until this wall-clock time; infinity: for ever."""
    drain: bool = False
    """The grid admin takes this machine out of service."""


@dataclass(frozen=True, slots=True)
class Hours:
    """A weekly span, in local time: `days` are 0 (Monday) to 6, minutes of the day; a span with
    `end_minute <= start_minute` goes on into the next day."""

    days: frozenset[int]
    start_minute: int
    end_minute: int


@dataclass(frozen=True, slots=True)
class DeskPolicy:
    """The rules of a desk. Each has a stricter direction, so that two policies can be merged."""

    idle_s: float = 300.0
    """No input for this long means away. A locked session counts as away at once."""
    lock_counts: bool = True
    cpu_busy_share: float = 0.25
    """Other programs using more than this share of the cores for `cpu_busy_s`: busy."""
    cpu_busy_s: float = 10.0
    cpu_idle_share: float = 0.15
    """To start, others must have used at most this for `cpu_idle_s`."""
    cpu_idle_s: float = 30.0
    on_battery: bool = False
    """May the grid run on battery?"""
    remote_session: bool = False
    """May the grid run while a remote session is connected and unlocked?"""
    memory_free_mb: int = 1024
    """Must be free beside the memory of the VM."""
    quiet_hours: tuple[Hours, ...] = ()
    """The grid never runs inside these."""
    run_hours: tuple[Hours, ...] = ()
    """If any are given, the grid runs only inside these."""
    sensor_timeout_s: float = 15.0
    """A session whose sensor has been silent for longer counts as busy."""
    settle_s: float = 10.0
    """After anything but the desk user ended a run, all must be well for this long to start."""
    never: bool = False
    """Not on this machine."""
    # What the life of the VM follows; see core.vmcycle.
    saves_per_hour: int = 6
    """More interruptions than this within an hour power the VM off instead of writing its memory
    to disk: solid-state disks wear."""
    save_delay_s: float = 0.0
    """How long the VM may stay paused in memory before it is saved, when memory is plentiful."""


class Decision(StrEnum):
    RUN = "run"
    """Nobody is here: the grid may use this PC."""
    YIELD = "yield"
    """Give the PC back at once."""


class Rule(StrEnum):
    """Why; one per sentence a person may be told."""

    AWAY = "away"
    LOCKED = "locked"
    NOBODY = "nobody_logged_on"
    INPUT = "input"
    NOT_YET = "not_idle_long_enough"
    PRESENTING = "presenting"
    REMOTE = "remote_session"
    CPU = "cpu_busy"
    MEMORY = "memory"
    BATTERY = "battery"
    HOURS = "hours"
    USER_PAUSE = "user_pause"
    DRAIN = "drain"
    NEVER = "never"
    SILENT = "sensor_silent"
    SETTLING = "settling"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision that can explain itself."""

    decision: Decision
    rule: Rule
    sentence: str
    """What was decided and why, with the numbers: "Somebody typed 3 s ago."."""
    change: str = ""
    """What would change it: "Starts after 4 min 57 s more without input."."""
    numbers: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    discard: bool = False
    """The VM should be powered off rather than saved: it will not be wanted for long."""
