"""Tells from three clocks whether this machine was away, and by how much its time is wrong.

A machine that was saved comes back with the wall clock of that moment, and its monotonic clock has
not noticed anything either. The host's clock chip has: it jumped. If instead the wall clock jumps
and the chip does not, somebody in the guest (chrony, a driver of the hypervisor) has set it, and
knows better. What the two were apart before is left as it was: the chip of a Windows host may show
local time, and chrony may know better than the host.

No two clocks run equally fast. A difference that grows without a jump is no absence: where chrony
keeps the wall clock it is followed, elsewhere the wall clock is put right and no more is done.
"""

from __future__ import annotations

from typing import NamedTuple

STEP_S = 2.0
"""Less than this is no absence. The chip counts whole seconds."""
_SET_BY_OTHERS_S = 1.0
_FOLLOW_S = 60.0
"""A slow difference is followed within about this time."""


class Reading(NamedTuple):
    """All in seconds; `chip_s` is None without a readable chip. `wall_s` and `chip_s` count from
    1970, `monotonic_s` from any moment. `kept`: a program like chrony keeps the wall clock."""

    wall_s: float
    monotonic_s: float
    chip_s: float | None
    kept: bool = False


class Move(NamedTuple):
    """`step_s`: move the wall clock by so much (0: leave it). `others_s`: by so much somebody else
    has moved it since the last reading (0: not). `drift`: the step mends what has added up little
    by little; this machine was not away."""

    step_s: float = 0.0
    others_s: float = 0.0
    drift: bool = False

    @property
    def away_s(self) -> float:
        """For how long this machine was away, as far as one knows; 0 when it was not."""
        steps = (0.0 if self.drift else self.step_s, self.others_s)
        return next((s for s in steps if abs(s) > STEP_S), 0.0)


class ClockWatch:
    """Fed with a reading once or twice a second."""

    def __init__(self, *, earliest_s: float, trust_wall: bool) -> None:
        """A chip that shows less than `earliest_s` (when the image was built) is not believed.
        `trust_wall`: somebody has already compared the clocks since the boot."""
        self._earliest_s = earliest_s
        self._trust_wall = trust_wall
        self._last: Reading | None = None
        self._chip: Reading | None = None
        """The last one with a chip."""
        self._set_s = 0.0
        """By how much others have moved the wall clock since then."""
        self._usual_s: float | None = None
        """Chip minus wall clock when all is well; None: not known yet."""

    def look(self, reading: Reading) -> Move:
        """What to do. The caller does it before the next reading."""
        last, self._last = self._last, reading
        others_s = passed_s = 0.0
        if last is not None:
            passed_s = reading.monotonic_s - last.monotonic_s
            moved_s = reading.wall_s - last.wall_s - passed_s
            others_s = moved_s if abs(moved_s) > _SET_BY_OTHERS_S else 0.0
        self._set_s += others_s
        if reading.chip_s is None or reading.chip_s < self._earliest_s:
            return Move(0.0, others_s)
        jumped_s = self._chip_jumped_s(reading, reading.chip_s)
        # Half a second: the chip counts whole ones.
        apart_s = reading.chip_s + 0.5 - reading.wall_s
        if self._usual_s is None:
            near = abs(apart_s) <= STEP_S or not self._trust_wall
            self._usual_s = 0.0 if near else apart_s
        elif abs(jumped_s) <= STEP_S:
            self._usual_s -= self._set_s
        self._set_s = 0.0
        wrong_s = apart_s - self._usual_s
        drift = abs(jumped_s) <= STEP_S
        if drift and reading.kept:
            self._usual_s += wrong_s * min(passed_s / _FOLLOW_S, 1.0)
            return Move(0.0, others_s)
        if abs(wrong_s) <= STEP_S:
            return Move(0.0, others_s)
        self._last = reading._replace(wall_s=reading.wall_s + wrong_s)
        return Move(wrong_s, others_s, drift)

    def _chip_jumped_s(self, reading: Reading, chip_s: float) -> float:
        """By how much more than the monotonic clock the chip has gone on; endless at first."""
        last, self._chip = self._chip, reading
        if last is None or last.chip_s is None:
            return float("inf")
        return chip_s - last.chip_s - (reading.monotonic_s - last.monotonic_s)

    def moved(self, step_s: float) -> None:
        """We have moved the wall clock ourselves, for another reason than the chip."""
        if self._last is not None:
            self._last = self._last._replace(wall_s=self._last.wall_s + step_s)
        if self._usual_s is not None:
            self._usual_s -= step_s
