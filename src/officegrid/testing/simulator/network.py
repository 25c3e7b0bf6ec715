"""A network that loses, repeats, delays and thereby re-orders messages, until it is healed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from officegrid.testing.simulator.timeline import Timeline

LEAST_S, MOST_S = 0.002, 0.03


@dataclass(slots=True)
class Network:
    """Each message, and each reply, is carried on its own. Rates are shares of messages."""

    timeline: Timeline
    rng: random.Random
    lost: float
    duplicated: float
    delayed: float
    delay_s: float
    carried: int = 0

    def carry(self, deliver: Callable[[], None]) -> None:
        """Call `deliver` never, once or twice, each time after a delay of its own."""
        self.carried += 1
        copies = 0 if self.rng.random() < self.lost else 1
        if self.rng.random() < self.duplicated:
            copies += 1
        for _ in range(copies):
            delay_s = self.rng.uniform(LEAST_S, MOST_S)
            if self.rng.random() < self.delayed:
                delay_s += self.rng.expovariate(1.0 / self.delay_s)
            self.timeline.after(delay_s, deliver)

    def heal(self) -> None:
        self.lost = self.duplicated = self.delayed = 0.0
