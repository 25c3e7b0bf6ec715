"""Asks for the network's leases again after an absence, and drops what hangs on a lost address.

A DHCP client's timers stood still while the machine was saved: the address may be somebody else's
by now, long before the client would ask. A lease that may have run out is given up and asked for
anew; any other is renewed, which costs nothing if it still holds.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
from collections.abc import Iterable, Set

from officegrid.core.errors import OfficeGridError
from officegrid.guest import programs
from officegrid.guest.console import complain, say
from officegrid.guest.place import Place, read_text

_IPV6_DIGITS = 32


def ask_again(place: Place, away_s: float) -> None:
    """Renew all leases; `away_s` is how long this machine was away, negative if the clock went
    back. Raises UnavailableError."""
    for name in _names(place.udhcpc_pids):
        # The small guest's DHCP client; SIGUSR1 is "renew" (busybox, udhcpc --help).
        pid = read_text(os.path.join(place.udhcpc_pids, name)).strip()
        if pid.isdigit() and read_text(f"/proc/{pid}/comm").strip() in ("udhcpc", "busybox"):
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGUSR1)
    texts = {name: read_text(os.path.join(place.leases, name)) for name in _names(place.leases)}
    # systemd-networkd names a lease's file by the number of its card, which networkctl takes too.
    cards = [name for name in texts if name.isdigit()]
    stale = [card for card in cards if may_be_over(texts[card], away_s)]
    for verb, some in (("reconfigure", stale), ("renew", [c for c in cards if c not in stale])):
        if some:
            programs.run("networkctl", verb, *some, timeout_s=20)


def may_be_over(lease: str, away_s: float) -> bool:
    """May a lease with this file of systemd-networkd have run out? Half of it is left at least
    while its client is awake; see LIFETIME, in seconds."""
    values = dict(line.partition("=")[::2] for line in lease.splitlines())
    lifetime = values.get("LIFETIME", "")
    return away_s < 0 or not lifetime.isdigit() or away_s >= int(lifetime) / 2


class OwnAddresses:
    """`tick` about once a second."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._known = own_addresses(place)
        self._missed: frozenset[str] = frozenset()

    def tick(self) -> None:
        """End the connections of addresses that this machine no longer has: nobody answers them.

        An address must be missing twice in a row: clients take it off for a moment.
        """
        now = own_addresses(self._place)
        missing = self._known - now
        gone = missing & self._missed
        self._missed, self._known = missing - gone, (self._known | now) - gone
        for address in sorted(gone):
            say("NETWORK", f"{address} is no longer ours: its connections are ended")
            try:
                programs.run("ss", "-K", "state", "connected", "src", _for_ss(address))
            except OfficeGridError as error:
                complain(error)


def own_addresses(place: Place) -> frozenset[str]:
    """All addresses but those of the machine to itself, from the kernel's own lists."""
    found = local4(read_text(place.own_addresses4).splitlines())
    return frozenset(found | local6(read_text(place.own_addresses6).splitlines()))


def local4(fib_trie: Iterable[str]) -> Set[str]:
    """From /proc/net/fib_trie (Linux sources, net/ipv4/fib_trie.c): `|-- ADDRESS`, then lines with
    what it is; `/32 host LOCAL` is an address of ours."""
    found, last = set(), ""
    for line in fib_trie:
        words = line.split()
        if words[:1] == ["|--"] and len(words) == 2:
            last = words[1]
        elif words == ["/32", "host", "LOCAL"] and last and not last.startswith("127."):
            found.add(last)
    return found


def local6(if_inet6: Iterable[str]) -> Set[str]:
    """From /proc/net/if_inet6 (proc(5)): the address in 32 digits, then numbers and the card."""
    found = set()
    for line in if_inet6:
        digits = line.split(None, 1)[0] if line.strip() else ""
        if len(digits) != _IPV6_DIGITS:
            continue
        with contextlib.suppress(ValueError):
            address = ipaddress.IPv6Address(int(digits, 16))
            if not address.is_loopback and not address.is_link_local:
                found.add(str(address))
    return found


def _for_ss(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
