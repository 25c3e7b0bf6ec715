"""The guest's own program, root, one process: who am I, start the worker, keep time and firewall.

1. find the seed disk  2. decide about identity  3. write what the worker needs to know
4. say that we are ready  5. for ever: clock, firewall, time servers.

The firewall is closed when this starts (`/etc/nftables.conf`); the way to the coordinator is opened
right after 4, because names have to be resolved for it. Standard library only, and little of it:
on an emulated processor each import is felt.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from officegrid.core.errors import OfficeGridError
from officegrid.core.identity import Choice
from officegrid.guest import persona, seed, seeded, start
from officegrid.guest.console import Milestones, complain, say, uptime_s, words
from officegrid.guest.hardware import find_hardware_id
from officegrid.guest.persona import Persona
from officegrid.guest.place import Place, make_folder, read_json
from officegrid.guest.settings import Settings, merge
from officegrid.guest.systemd import notify, tell_host
from officegrid.guest.timekeeping import LOOK_EVERY_S, Timekeeper

if TYPE_CHECKING:
    from officegrid.guest.upkeep import Upkeep

LOOK_FOR_SEED_S = 5.0
SAY_AGAIN_S = 60.0
DISKS_APPEAR_WITHIN_S = 10.0
TELL_HOST_FOR_S = 120.0
WATCHDOG_EVERY_S = 10.0
STUCK_AFTER_S = 120.0
"""Longer than any single step of the upkeep: a name that nobody resolves, a program that hangs."""


class Guest:
    """`begin`, then `tick` twice a second, for ever."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._times = Milestones()
        self._settings = Settings()
        self._timekeeper: Timekeeper | None = None
        self._who: Persona | None = None
        self._upkeep: Upkeep | None = None
        self._ready_s: float | None = None
        self._host_knows = False
        self._look_again_s = 0.0
        self._said = ("", 0.0)
        self._watchdog_s = 0.0

    def begin(self) -> None:
        """Everything up to the word that this guest is ready. Waits for disks, never for people."""
        try:
            make_folder(self._place.run, 0o755)
        except OfficeGridError as error:
            complain(error)
        self._timekeeper = Timekeeper(self._place)
        # Before anything is written or joined: certificates are checked against the clock.
        self._timekeeper.tick()
        self._times.mark("clock")
        self._try_to_settle()
        self._ready()

    def tick(self) -> None:
        assert self._timekeeper is not None
        away_s = self._timekeeper.tick()
        now_s = uptime_s()
        if self._upkeep is not None:
            if away_s:
                self._upkeep.was_away(away_s)
        elif now_s >= self._look_again_s:
            self._try_to_settle()
        if not self._host_knows and now_s - (self._ready_s or now_s) < TELL_HOST_FOR_S:
            self._host_knows = tell_host(self._place.ready_port)
        # A program whose firewall is no longer looked after must be started anew.
        moving = self._upkeep is None or now_s - self._upkeep.moved_s < STUCK_AFTER_S
        if now_s >= self._watchdog_s and moving:
            self._watchdog_s = now_s + WATCHDOG_EVERY_S
            notify("WATCHDOG=1")

    def _try_to_settle(self) -> None:
        """Find out who we are and prepare the worker; tried again where that is not known yet."""
        self._look_again_s = uptime_s() + LOOK_FOR_SEED_S
        try:
            found = self._settle()
        except OfficeGridError as error:
            self._say_rarely("TROUBLE", words(error))
            return
        if found is not None:
            self._who = found
            if self._ready_s is not None:
                self._look_after(late=True)

    def _settle(self) -> Persona | None:
        """Who we are, with all files written; None while nobody says it."""
        disk = self._find_seed()
        self._times.mark("seed")
        baked = read_json(self._place.baked) or {}
        told = seeded.with_disk(seeded.load(self._place), disk)
        self._settings, complaints = merge(baked, disk.settings if disk else told.settings)
        who = persona.find_out(self._place, disk, told, find_hardware_id(self._place))
        decision = who.decision
        text = f"{decision.choice}: {decision.why}"
        self._say_rarely("IDENTITY", text)
        if decision.choice is Choice.WAIT:
            return None
        for complaint in [*complaints, persona.address_trouble(self._place, who)]:
            if complaint:
                say("TROUBLE", complaint)
        who = persona.become(self._place, who, disk, persona.owner_of(self._settings.user))
        # Before the worker starts: from then on only this file tells what a disk has said.
        seeded.keep(self._place, told._replace(host_name=who.host_name))
        self._times.mark("identity")
        start.prepare(self._place, self._settings, who.hardware_id)
        self._times.mark("files")
        return who

    def _find_seed(self) -> seed.Seed | None:
        """Disks may still be on their way: where there is none yet, wait until udev is done."""
        give_up_s = uptime_s() + DISKS_APPEAR_WITHIN_S
        while True:
            looking = os.path.exists(self._place.udev_queue)
            if (found := seed.find(self._place)) is not None:
                return found
            if not looking or self._ready_s is not None or uptime_s() > give_up_s:
                return None
            time.sleep(0.2)

    def _ready(self) -> None:
        self._ready_s = uptime_s()
        notify("READY=1")
        self._host_knows = tell_host(self._place.ready_port)
        say("READY", f"{self._ready_s:.2f}")
        say("TIMES", self._times.text())
        if self._who is not None:
            self._look_after(late=False)

    def _look_after(self, *, late: bool) -> None:
        from officegrid.guest.upkeep import Upkeep  # the host need not wait for its imports

        assert self._timekeeper is not None
        assert self._who is not None
        self._upkeep = Upkeep(self._place, self._settings, self._who, self._timekeeper, late=late)
        self._upkeep.begin()

    def _say_rarely(self, word: str, text: str) -> None:
        """The same words once a minute."""
        said, at_s = self._said
        if text != said or uptime_s() - at_s >= SAY_AGAIN_S:
            self._said = (text, uptime_s())
            say(word, text)


def main() -> None:
    """For ever; an unexpected error ends the process, and whoever supervises it starts it anew."""
    guest = Guest(Place())
    guest.begin()
    while True:
        time.sleep(LOOK_EVERY_S)
        guest.tick()
