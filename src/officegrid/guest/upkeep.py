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
from officegrid.guest.leases import OwnAddresses, ask_again
from officegrid.guest.ntp import TimeServers
from officegrid.guest.persona import Persona, kept_profile
from officegrid.guest.place import Place
from officegrid.guest.settings import Settings, address, peers, targets
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
        self.moved_s = uptime_s()
        """When it last did something, on the clock of `uptime_s`; see main.STUCK_AFTER_S."""
        self._firewall = (
            Firewall(
                place, targets(settings, persona.url), alive=self._alive, peers=peers(settings)
            )
            if programs.has("nft")
            else None
        )
        self._addresses = OwnAddresses(place)
        self._servers = TimeServers(place, settings.ntp) if programs.has("chronyc") else None
        self._servers_due_s = 0.0
        self._ask_time_at_s = uptime_s() + ASK_TIME_EVERY_S
        self._away = threading.Event()
        self._away_s = 0.0

    def begin(self) -> None:
        threading.Thread(target=self._run, name="upkeep", daemon=True).start()

    def was_away(self, away_s: float) -> None:
        """Whatever was known about the network may be wrong now: look at once."""
        # Two absences in a row count as one, until the upkeep has seen to them.
        self._away_s = away_s + (self._away_s if self._away.is_set() else 0.0)
        self._away.set()

    def _alive(self) -> None:
        self.moved_s = uptime_s()

    def _run(self) -> None:
        try:
            self._first()
            while True:
                if self._away.wait(EVERY_S):
                    self._away.clear()
                    self._after_absence(self._away_s)
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

    def _after_absence(self, away_s: float) -> None:
        self._servers_due_s = self._ask_time_at_s = 0.0
        if self._firewall is not None:
            self._firewall.hurry()
        try:
            ask_again(self._place, away_s)
        except OfficeGridError as error:
            complain(error)

    def _round(self) -> None:
        now_s = uptime_s()
        self._alive()
        self._addresses.tick()
        servers_due = self._servers is not None and now_s >= self._servers_due_s
        if self._firewall is not None:
            if self._servers is not None and servers_due:
                # chrony's first words must not be refused.
                self._firewall.time_servers(self._servers.wanted())
            self._firewall.tick()
        if self._servers is not None and servers_due:
            self._alive()
            self._servers_due_s = now_s + SERVERS_EVERY_S
            try:
                self._servers.tick()
            except OfficeGridError as error:
                complain(error)
        self._alive()
        if not self._timekeeper.uses_chip and now_s >= self._ask_time_at_s:
            self._ask_time_at_s = now_s + self._ask_time()

    def _ask_time(self) -> float:
        """Seconds until the next time. That the coordinator is away is the worker's to tell."""
        profile = kept_profile(self._place)
        if profile is None or not self._persona.url:
            return ASK_TIME_EVERY_S
        from officegrid.guest.servertime import coordinator_time_s  # few guests need it

        try:
            right_s = coordinator_time_s(
                f"https://{address(self._persona.url)}", profile["ca_pem"], self._settings.proxy
            )  # fmt: skip
        except OfficeGridError:
            return ASK_TIME_AGAIN_S
        if away_s := self._timekeeper.step_to(right_s):
            self._after_absence(away_s)
        return ASK_TIME_EVERY_S
