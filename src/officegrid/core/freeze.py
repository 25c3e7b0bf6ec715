"""Notices that time passed without us: a VM that was saved, a laptop that slept, a clock set."""

from __future__ import annotations

TOLERANCE_S = 5.0


class FreezeDetector:
    """Fed with both clocks at every tick; tells when one of them jumped.

    A suspended process sees both jump; a VM restored from its saved state sees the wall clock
    jump once its time is set right, while the monotonic clock never noticed.
    """

    def __init__(self, tick_s: float, tolerance_s: float = TOLERANCE_S) -> None:
        self._limit_s = tick_s + tolerance_s
        self._last: tuple[float, float] | None = None

    def tick(self, wall: float, monotonic: float) -> float | None:
        """Seconds of the jump, or None when time passed as it should."""
        last, self._last = self._last, (wall, monotonic)
        if last is None:
            return None
        wall_gap, monotonic_gap = wall - last[0], monotonic - last[1]
        jump = max(abs(wall_gap), monotonic_gap)
        return jump if jump > self._limit_s else None
