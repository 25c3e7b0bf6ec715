"""Keeps the firewall's openings in step with where the coordinator really is.

Called again and again from the upkeep thread: names are resolved there, which may take seconds.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from officegrid.core.errors import UnavailableError
from officegrid.guest import firewall_text, programs
from officegrid.guest.console import complain, say, uptime_s
from officegrid.guest.place import Place
from officegrid.guest.settings import Target

REFRESH_S = 60.0
RETRY_S = 5.0
COMPLAIN_EVERY_S = 300.0
_NTP_PORT = 123

Resolve = Callable[[str, int], list[str]]
Apply = Callable[[str], object]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def apply(text: str) -> None:
    """Hand the commands to nft. Raises UnavailableError."""
    programs.run("nft", "-f", "-", given=text)


class Firewall:
    """`tick` when the time has come; `hurry` makes it come at once."""

    def __init__(
        self, place: Place, targets: Sequence[Target], *, resolve: Resolve = resolve,
        apply: Apply = apply, alive: Callable[[], object] = lambda: None,
        peers: Sequence[Target] = (),
    ) -> None:  # fmt: skip
        """`alive` is called after each step that may have taken seconds. `peers`: networks that may
        also come in."""
        self._place = place
        self._targets = targets
        self._resolve = resolve
        self._apply = apply
        self._alive = alive
        self._peers = peers
        self._time_servers: Sequence[str] = ()
        self._times_seen_s: dict[firewall_text.Opening, float] = {}
        self._seen_s: dict[firewall_text.Opening, float] = {}
        self._applied = ""
        self._said = ""
        self._resolvers: list[str] = []
        self._due_s = 0.0
        self._complained_s: float | None = None

    def hurry(self) -> None:
        self._due_s = 0.0

    def time_servers(self, servers: Sequence[str]) -> None:
        """Names or addresses of those that chrony is about to ask."""
        if list(servers) != list(self._time_servers):
            self._time_servers = list(servers)
            self.hurry()

    def tick(self) -> None:
        """Resolve and apply where due. Trouble is told on the console and tried again."""
        now_s = uptime_s()
        resolvers = firewall_text.nameservers(_resolver_file(self._place))
        if now_s < self._due_s and resolvers == self._resolvers:
            return
        if resolvers != self._resolvers:
            # Names can only be resolved once the way to the resolvers is open.
            self._resolvers = resolvers
            self._tell(list(self._seen_s))
        missing = self._refresh(now_s)
        if missing and (
            self._complained_s is None or now_s - self._complained_s > COMPLAIN_EVERY_S
        ):
            self._complained_s = now_s
            say("FIREWALL", f"not found yet: {', '.join(missing)}")
        self._due_s = uptime_s() + (RETRY_S if missing else REFRESH_S)

    def _refresh(self, now_s: float) -> list[str]:
        """Resolve all targets and open the ways to them; returns the names without an address."""
        missing: list[str] = []
        found = self._look_up(self._targets, missing)
        self._seen_s = firewall_text.still_open(self._seen_s, found, now_s)
        times = self._look_up([Target(one, _NTP_PORT) for one in self._time_servers], missing)
        self._times_seen_s = firewall_text.still_open(self._times_seen_s, times, now_s)
        if not self._tell(list(self._seen_s)):
            missing.append("nft")
        return missing

    def _look_up(
        self, targets: Sequence[Target], missing: list[str]
    ) -> list[firewall_text.Opening]:
        """The addresses of all; a name without one is added to `missing`."""
        found: list[firewall_text.Opening] = []
        for host, port in targets:
            if firewall_text.is_literal(host):
                found.append((host, port))
                continue
            try:
                found += [(address, port) for address in self._resolve(host, port)]
            except (OSError, UnicodeError):
                missing.append(host)
            self._alive()
        return found

    def _tell(self, openings: list[firewall_text.Opening]) -> bool:
        times = [address for address, _ in self._times_seen_s]
        text = firewall_text.commands(sorted(openings), self._resolvers, times, self._peers)
        if text == self._applied:
            return True
        try:
            self._apply(text)
        except UnavailableError as error:
            complain(error)
            self._applied = ""
            return False
        self._applied = text
        ways = ", ".join(f"{net} port {port}" for net, port in firewall_text.collapse(openings))
        if ways != self._said:
            self._said = ways
            say("FIREWALL", f"open: {ways or 'nothing'}")
        return True


def _resolver_file(place: Place) -> str:
    """The text of resolv.conf, which is a link into /run."""
    try:
        with open(place.resolv_conf, encoding="utf-8", errors="replace") as file:
            return file.read(2**16)
    except OSError:
        return ""
