"""Which time servers chrony asks: those of the seed disk, else those that DHCP names, else none.

No public server is ever asked unless somebody says so: the host's clock chip is there. chrony is
started when there is a first server; see `sourcedir` in /etc/chrony/chrony.conf.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable

from officegrid.guest import programs
from officegrid.guest.place import Place, make_folder, read_text, write_file


def from_lease(text: str) -> list[str]:
    """The time servers in a lease file of systemd-networkd: a line `NTP=ADDRESS ADDRESS`."""
    found: list[str] = []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "NTP":
            found += [word for word in value.split() if _is_address(word)]
    return found


def sources(servers: Iterable[str]) -> str:
    """A file of chrony's `sourcedir`, chrony.conf(5)."""
    return "".join(f"server {server} iburst\n" for server in dict.fromkeys(servers))


class TimeServers:
    """`tick` now and then."""

    def __init__(self, place: Place, told: Iterable[str]) -> None:
        self._place = place
        self._told = list(told)
        self._written = ""

    def wanted(self) -> list[str]:
        """Names or addresses of those to be asked."""
        return self._told or self._leased()

    def tick(self) -> None:
        """Tell chrony where that changed. Raises UnavailableError."""
        text = sources(self.wanted())
        if text == self._written or not text:
            return
        make_folder(os.path.dirname(self._place.chrony_sources), 0o755)
        write_file(self._place.chrony_sources, text, 0o644)
        if os.path.exists(self._place.chrony_socket):
            programs.run("chronyc", "-n", "reload", "sources", timeout_s=5)
        else:
            programs.run("systemctl", "start", "--no-block", "chrony.service")
        self._written = text

    def _leased(self) -> list[str]:
        try:
            names = sorted(os.listdir(self._place.leases))
        except OSError:
            return []
        texts = [read_text(os.path.join(self._place.leases, name)) for name in names]
        return [server for text in texts for server in from_lease(text)]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
