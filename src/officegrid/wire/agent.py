"""Messages between a host agent and the coordinator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from officegrid.core.deskrules import read_rules
from officegrid.core.errors import UsageError
from officegrid.core.whydesk import DeskState
from officegrid.wire.data import Message
from officegrid.wire.images import ImageOrder, ImageReport
from officegrid.wire.mistakes import mistakes

DeskEventKind = Literal[
    "idle", "starting", "running", "paused", "saved", "user_back", "stopped", "trouble"
]


_LONGEST_S = 1e9  # thirty years: an agent that was cut off for weeks must still be understood
_HoursText = Annotated[str, StringConstraints(max_length=100)]
_NumberName = Annotated[str, StringConstraints(max_length=64)]
_NumberText = Annotated[str, StringConstraints(max_length=256)]


class _Finite(Message):
    """A message in which no number may be infinite or not a number: these are not JSON."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_Number = Annotated[
    float | int | bool | _NumberText | None, BeforeValidator(_finite_or_none)
]  # "paused for ever" has no number that JSON knows


class DeskRules(_Finite):
    """Rules of a desk as the admin or the machine's own settings state them; None: not stated.

    Units as in `core.desk.DeskPolicy`. Hours are texts like "mon-fri 08:00-18:00",
    "sat,sun 00:00-24:00" or "20:00-06:00" (every day); see `core.deskrules`.
    """

    idle_s: float | None = Field(default=None, ge=0, le=86400)
    lock_counts: bool | None = None
    cpu_busy_share: float | None = Field(default=None, ge=0, le=1)
    cpu_busy_s: float | None = Field(default=None, ge=0, le=3600)
    cpu_idle_share: float | None = Field(default=None, ge=0, le=1)
    cpu_idle_s: float | None = Field(default=None, ge=0, le=3600)
    on_battery: bool | None = None
    remote_session: bool | None = None
    memory_free_mb: int | None = Field(default=None, ge=0, le=100_000_000)
    quiet_hours: list[_HoursText] | None = Field(default=None, max_length=50)
    run_hours: list[_HoursText] | None = Field(default=None, max_length=50)
    sensor_timeout_s: float | None = Field(default=None, ge=1, le=3600)
    settle_s: float | None = Field(default=None, ge=0, le=3600)
    never: bool | None = None
    saves_per_hour: int | None = Field(default=None, ge=0, le=1000)
    save_delay_s: float | None = Field(default=None, ge=0, le=3600)


def desk_rules(raw: Mapping[str, object], source: str) -> DeskRules:
    """Rules as people write them (`core.deskrules.read_rules`), checked. `source` is the name of
    the file, for the message. Raises UsageError that names the rule."""
    rules = read_rules(raw)
    unknown = sorted(set(rules) - set(DeskRules.model_fields))
    if unknown:
        raise UsageError(
            f"{source} has an unknown rule: {unknown[0]!r}.",
            f"The rules are {', '.join(DeskRules.model_fields)}.",
            "Correct its name.",
        )
    try:
        return DeskRules.model_validate(rules)
    except ValidationError as error:
        first = mistakes(error, rules)[0]
        raise UsageError(
            f"{source} is wrong{first.at}.",
            first.sentence,
            "Correct that value; `officegrid policy` shows the rules in force.",
        ) from None


class DeskEvent(_Finite):
    """Something happened on a desktop. Sent in order; `number` counts up within an agent's run,
    so that a repeated message counts once."""

    number: int = Field(ge=1, le=2**62)
    kind: DeskEventKind
    ago_s: float = Field(
        default=0, ge=0, le=_LONGEST_S, description="how long ago, where sending had to wait"
    )
    text: str = Field(default="", max_length=1024)
    ran_s: float = Field(
        default=0, ge=0, le=_LONGEST_S, description="how long the VM had run, when it ends"
    )
    cpu_back_ms: float | None = Field(
        default=None, ge=0, le=1000 * _LONGEST_S, description="input to CPU released"
    )
    memory_back_ms: float | None = Field(
        default=None, ge=0, le=1000 * _LONGEST_S, description="input to memory released"
    )


class DeskStatus(_Finite):
    """The last decision of an agent, and all that explains it."""

    decision: Literal["run", "yield"]
    rule: str = Field(max_length=64)
    sentence: str = Field(max_length=1024)
    change: str = Field(default="", max_length=1024)
    numbers: dict[_NumberName, _Number] = Field(default_factory=dict, max_length=64)
    vm: str = Field(default="unknown", max_length=32)
    vm_detail: str = Field(default="", max_length=1024)
    driver: str = Field(default="", max_length=32)
    health: str = Field(default="", max_length=32)
    health_sentence: str = Field(default="", max_length=1024)
    since_s: float = Field(default=0, ge=0, le=_LONGEST_S, description="how long it has been so")


class AgentReport(Message):
    """Sent on every change at once and otherwise as often as the coordinator asked."""

    run_id: str = Field(min_length=1, max_length=64, description="new with each start of the agent")
    status: DeskStatus
    events: list[DeskEvent] = Field(default_factory=list, max_length=1000)
    version: str = Field(default="", max_length=64)
    image: ImageReport | None = None


class AgentOrders(Message):
    """What the coordinator wants from an agent."""

    rules: DeskRules = Field(default_factory=DeskRules)
    drain: bool = False
    worker_joined: bool = Field(default=False, description="its VM's worker has an identity")
    worker_seen_ago_s: float | None = None
    report_every_s: float = Field(default=30.0, gt=0, le=3600)
    units_released: int = Field(default=0, description="by the events of this report")
    image: ImageOrder | None = Field(
        default=None, description="what its VM is to be made from; null: nothing was pushed"
    )
    below_floor: str = Field(
        default="", description="why this desktop gets no units: its agent or image is too old"
    )
    replaced: bool = Field(
        default=False,
        description="a later run of an agent with this identity reports: this one is ignored",
    )


class WorkerCodeReply(Message):
    """A join code for the one worker VM of the asking agent; joining again replaces the token."""

    code: str = Field(repr=False)
    expires_at: float


class DrainRequest(Message):
    drain: bool


class YieldTimes(Message):
    """How long it took to give a desktop back, of the last `count` times; milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


class DeskView(Message):
    """A desktop as people see it: what its agent said last, and what it has given and cost."""

    state: DeskState
    words: str = Field(description="the state with its reason: 'idle, starts in 2 min'")
    heard_ago_s: float | None = Field(description="since the agent's last report; null: never")
    since_s: float | None = Field(default=None, description="how long it has been so")
    status: DeskStatus | None = None
    version: str = ""
    harvested_s: float = 0.0
    interruptions: int = 0
    starts: int = 0
    units_released: int = Field(default=0, description="by interruptions")
    cpu_back: YieldTimes | None = None
    memory_back: YieldTimes | None = None
    worker: str | None = Field(default=None, description="id of the worker in its VM")
    worker_online: bool = False
    worker_units: int = 0
