"""Keeps the guest's time right after it was saved, and drops the connections that died with it.

Twice a second the clock chip is compared with the wall clock (`clock.ClockWatch`); after a step,
TCP connections are ended at once (`ss -K`): their other ends have given up long ago, and a program
would wait for minutes. Where the chip does not follow the host, the coordinator's time is asked
for (`servertime`), by the upkeep thread, once a minute.
"""

from __future__ import annotations

import os
import threading
import time

from officegrid.core.errors import OfficeGridError
from officegrid.guest import programs
from officegrid.guest.clock import STEP_S, ClockWatch, Reading
from officegrid.guest.console import complain, say
from officegrid.guest.hardware import chip_follows_host
from officegrid.guest.place import Place, read_text, write_file

LOOK_EVERY_S = 0.5


class Timekeeper:
    """`tick` twice a second on the main thread; `step_to` from any thread."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self.uses_chip = chip_follows_host(place)
        self._watch = ClockWatch(
            earliest_s=built_at_s(place), trust_wall=os.path.exists(place.clock_checked)
        )
        self._looked = False
        self._told_apart_s: float | None = None

    def tick(self) -> float:
        """Look, step where needed; for how long this machine has been away, 0 when it was not."""
        with self._lock:
            move = self._watch.look(self._reading())
            if move.step_s:
                self._step(move.step_s, away=not move.drift)
            elif move.away_s:
                say("CLOCK", f"moved by {move.away_s:.0f} s by another program")
                self._after_absence()
        if not self._looked:
            self._looked = True
            self._note_looked()
        return move.away_s

    def step_to(self, wall_s: float) -> float:
        """The right time is `wall_s` now: step if that is far from ours. For how long this machine
        has been away, 0 when it was not: a difference that has grown little by little."""
        with self._lock:
            apart_s = wall_s - time.time()
            before_s, self._told_apart_s = self._told_apart_s, apart_s
            if abs(apart_s) <= STEP_S:
                return 0.0
            away = before_s is None or abs(apart_s - before_s) > STEP_S
            self._told_apart_s = 0.0
            self._step(apart_s, away=away)
            self._watch.moved(apart_s)
            return apart_s if away else 0.0

    def _step(self, by_s: float, *, away: bool) -> None:
        try:
            time.clock_settime(time.CLOCK_REALTIME, time.time() + by_s)
        except (OSError, OverflowError) as error:
            say("TROUBLE", f"The clock is wrong by {by_s:.0f} s and cannot be set: {error}.")
            return
        say("CLOCK", f"moved by {by_s:.0f} s" + ("" if away else ": it ran too fast or too slow"))
        if away:
            self._after_absence()

    def _after_absence(self) -> None:
        try:
            drop_connections()
            if os.path.exists(self._place.chrony_socket):
                programs.run("chronyc", "-n", "makestep", timeout_s=5)
        except OfficeGridError as error:
            complain(error)

    def _reading(self) -> Reading:
        chip = read_text(self._place.chip).strip() if self.uses_chip else ""
        chip_s = float(chip) if chip.isdigit() else None
        kept = os.path.exists(self._place.chrony_socket)
        return Reading(time.time(), time.monotonic(), chip_s, kept)

    def _note_looked(self) -> None:
        """A restart of this program must not take the chip for right once chrony has spoken."""
        try:
            write_file(self._place.clock_checked, "", 0o644)
        except OfficeGridError as error:
            complain(error)


def drop_connections() -> None:
    """End all established TCP connections but those within this machine. Raises
    UnavailableError."""
    programs.run(
        "ss", "-K", "-t", "state", "connected",
        "not", "dst", "127.0.0.0/8", "and", "not", "dst", "[::1]", timeout_s=10,
    )  # fmt: skip


def built_at_s(place: Place) -> float:
    """When the image was built, as its settings file tells; seconds since 1970."""
    try:
        return os.stat(place.baked).st_mtime
    except OSError:
        return 0.0
