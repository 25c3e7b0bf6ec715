"""The coordinator's last orders, kept on disk: an agent that restarts while the coordinator is
away must not be laxer than it was told to be."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from pydantic import ValidationError

from officegrid.agent.files import read_json, write_json
from officegrid.agent.log import get_logger
from officegrid.wire.agent import AgentOrders

log = get_logger("orders")

REPLACED = (
    "Another PC uses this PC's identity: as administrator run "
    "`officegrid join URL --install --anew` with a code of its own."
)


class KeptOrders:
    """Thread-safe. `latest` is what the coordinator said last, now or in an earlier life."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._orders = _read(path)
        self._received_s: float | None = None

    @property
    def latest(self) -> AgentOrders:
        return self._orders

    @property
    def replaced(self) -> str:
        """Why this agent may start nothing, as a sentence; empty: it may."""
        return REPLACED if self._orders.replaced else ""

    @property
    def received_s(self) -> float | None:
        """Monotonic time of the last orders of this run; None before the first."""
        return self._received_s

    def take(self, orders: AgentOrders) -> bool:
        """Follow these from now on; True if rules or drain changed. Never raises."""
        with self._lock:
            before = self._orders
            if orders.replaced and not before.replaced:
                log.error("replaced", what=REPLACED)
            if orders.below_floor and orders.below_floor != before.below_floor:
                log.warning("below_floor", what=orders.below_floor)
            changed = (before.rules, before.drain) != (orders.rules, orders.drain)
            self._orders = orders
            self._received_s = time.monotonic()
            if changed or before.worker_joined != orders.worker_joined:
                self._keep(orders)
        return changed

    def _keep(self, orders: AgentOrders) -> None:
        kept = orders.model_dump(include={"rules", "drain", "worker_joined"}, exclude_none=True)
        try:
            write_json(self._path, kept)
        except OSError as error:
            log.warning("not_kept", path=self._path, why=error.strerror or error)


def _read(path: Path) -> AgentOrders:
    try:
        return AgentOrders.model_validate(read_json(path) or {})
    except ValidationError:
        log.warning("damaged", path=path)
        return AgentOrders()
