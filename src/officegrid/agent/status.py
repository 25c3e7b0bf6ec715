"""What the agent says about itself: to the coordinator, to `officegrid agent status`, and in
`status.json` for whoever may read the agent's folder."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from officegrid import __version__
from officegrid.agent.files import write_json
from officegrid.agent.log import get_logger
from officegrid.agent.parts import View
from officegrid.agent.policy import Effective
from officegrid.core.desk import Decision, DeskPolicy, Hours
from officegrid.core.deskrules import format_hours
from officegrid.core.vm import Health
from officegrid.wire.agent import AgentOrders, DeskStatus
from officegrid.wire.images import ImageReport

log = get_logger("status")

MOST_CHARS = 1024
WRITE_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known beside the loop's view."""

    run_id: str
    driver: str
    health: Health
    refused: tuple[str, ...]
    """Drivers that were tried and cannot be used, as sentences."""
    rules: Effective
    today: dict[str, Any]
    coordinator: str
    coordinator_trouble: str
    events_waiting: int
    pause_until_s: float | None
    orders: AgentOrders
    sensor_trouble: str
    settings_trouble: str = ""
    """Why agent.toml as it is now is not used."""
    replaced: str = ""
    """Another PC reports under this one's identity, as a sentence."""
    waits: str = ""
    """For which image this PC waits, as a sentence."""
    image: ImageReport | None = None
    unsent_s: float = 0.0
    """How long the VM has run without the coordinator having been told."""


def desk_status(
    view: View, driver: str, health: Health, now_s: float, *, waits: str = ""
) -> DeskStatus:
    """The status as the coordinator gets it. `now_s` is monotonic; `waits`: for which image."""
    verdict = view.verdict
    # With nothing to start, what else must change would only mislead.
    change = waits if waits and verdict.decision is Decision.RUN else verdict.change
    return DeskStatus(
        decision=verdict.decision.value,
        rule=verdict.rule.value,
        sentence=verdict.sentence[:MOST_CHARS],
        change=change[:MOST_CHARS],
        numbers=dict(verdict.numbers),
        vm=view.vm.state.value,
        vm_detail=(waits or view.trouble or view.doing or view.vm.detail)[:MOST_CHARS],
        driver=driver,
        health=health.level.value,
        health_sentence=health.sentence[:MOST_CHARS],
        since_s=max(0.0, now_s - view.since_s),
    )


def full_status(view: View, around: Surroundings, now_s: float) -> dict[str, Any]:
    """Everything, as JSON values: DeskStatus and what only this machine needs to know."""
    desk = desk_status(view, around.driver, around.health, now_s, waits=around.waits)
    until_s = around.pause_until_s
    return desk.model_dump() | {
        "at": round(time.time(), 3),
        "pid": os.getpid(),
        "run_id": around.run_id,
        "version": __version__,
        "trouble": around.waits or view.trouble,
        "health_fix": around.health.fix,
        "drivers_refused": list(around.refused),
        "rules": _rules(around.rules),
        "rules_ignored": list(around.rules.ignored),
        "rules_unreadable": list(around.rules.problems),
        "today": around.today,
        "coordinator": around.coordinator,
        "coordinator_trouble": around.coordinator_trouble,
        "events_waiting": around.events_waiting,
        "paused": until_s is not None and until_s > time.time(),
        "pause_until": until_s if until_s is not None and math.isfinite(until_s) else None,
        "drain": around.orders.drain,
        "below_floor": around.orders.below_floor,
        "sensor_trouble": around.sensor_trouble,
        "settings_trouble": around.settings_trouble,
        "replaced": around.replaced,
        "image": around.image.model_dump() if around.image is not None else None,
        "unsent_s": round(around.unsent_s, 1),
    }


def _rules(rules: Effective) -> dict[str, dict[str, Any]]:
    return {
        field.name: {
            "value": _plain(getattr(rules.policy, field.name)),
            "from": rules.origins.get(field.name, "default"),
        }
        for field in fields(DeskPolicy)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [format_hours(hours) for hours in value if isinstance(hours, Hours)]
    return value


class StatusFile:
    """Writes `status.json` when what it says has changed, and every half minute."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: tuple[Any, ...] = ()
        self._written_s = float("-inf")
        self._failed = False

    def write(self, status: dict[str, Any], now_s: float) -> None:
        """Never raises: a full disk must not stop the agent."""
        told = tuple(status[key] for key in ("decision", "rule", "vm", "trouble", "paused"))
        if told == self._told and now_s - self._written_s < WRITE_EVERY_S:
            return
        self._told, self._written_s = told, now_s
        try:
            write_json(self._path, status)
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("not_written", path=self._path, why=error.strerror or error)
            self._failed = True
