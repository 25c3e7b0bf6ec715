"""What may take seconds and must never delay the clock: names, firewall, time servers.

One thread, once a second. An error nobody expected ends the whole program, which is then started
anew: a guest whose firewall is no longer looked after must not go on quietly.
"""

from __future__ import annotations

import os
import sys
import threading

from officegrid.core.errors import OfficeGridError
from officegrid.guest import programs, start
from officegrid.guest.console import complain, uptime_s
from officegrid.guest.firewall import Firewall
from officegrid.guest.ntp import TimeServers
from officegrid.guest.persona import Persona, kept_profile
from officegrid.guest.place import Place
from officegrid.guest.settings import Settings, targets
from officegrid.guest.timekeeping import Timekeeper

EVERY_S = 1.0
SERVERS_EVERY_S = 30.0
ASK_TIME_EVERY_S = 60.0
ASK_TIME_AGAIN_S = 300.0
"""After the coordinator did not tell."""


class Upkeep:
    """Started once it is known who this guest is."""

    def __init__(
        self, place: Place, settings: Settings, persona: Persona, timekeeper: Timekeeper, *,
        late: bool,
    ) -> None:  # fmt: skip
        self._place = place
        self._settings = settings
        self._persona = persona
        self._timekeeper = timekeeper
        self._late = late
        self._firewall = (
            Firewall(place, targets(settings, persona.url)) if programs.has("nft") else None
        )
        self._servers = TimeServers(place, settings.ntp) if programs.has("chronyc") else None
        self._servers_due_s = 0.0
        self._ask_time_at_s = uptime_s() + ASK_TIME_EVERY_S
        self._away = threading.Event()

    def begin(self) -> None:
        threading.Thread(target=self._run, name="upkeep", daemon=True).start()

    def was_away(self) -> None:
        """Whatever was known about the network may be wrong now: look at once."""
        self._away.set()

    def _run(self) -> None:
        try:
            self._first()
            while True:
                if self._away.wait(EVERY_S):
                    self._away.clear()
                    self._servers_due_s = self._ask_time_at_s = 0.0
                    if self._firewall is not None:
                        self._firewall.hurry()
                self._round()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stdout.flush()
            os._exit(1)

    def _first(self) -> None:
        # The firewall first: the worker is starting, and wants to talk.
        if self._firewall is not None:
            self._firewall.tick()
        try:
            if self._persona.renamed and self._settings.init == "systemd":
                programs.run("systemctl", "try-restart", "--no-block", "systemd-networkd.service")
            start.begin(self._place, self._settings, late=self._late)
        except OfficeGridError as error:
            complain(error)

    def _round(self) -> None:
        now_s = uptime_s()
        if self._firewall is not None:
            self._firewall.tick()
        if self._servers is not None and now_s >= self._servers_due_s:
            self._servers_due_s = now_s + SERVERS_EVERY_S
            try:
                self._servers.tick()
            except OfficeGridError as error:
                complain(error)
        if not self._timekeeper.uses_chip and now_s >= self._ask_time_at_s:
            self._ask_time_at_s = now_s + self._ask_time()

    def _ask_time(self) -> float:
        """Seconds until the next time. That the coordinator is away is the worker's to tell."""
        profile = kept_profile(self._place)
        if profile is None:
            return ASK_TIME_EVERY_S
        from officegrid.guest.servertime import coordinator_time_s  # few guests need it

        try:
            right_s = coordinator_time_s(profile["url"], profile["ca_pem"], self._settings.proxy)
        except OfficeGridError:
            return ASK_TIME_AGAIN_S
        if self._timekeeper.step_to(right_s) and self._firewall is not None:
            self._firewall.hurry()
        return ASK_TIME_EVERY_S
