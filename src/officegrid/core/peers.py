"""Which workers may pass an object on to another one: those that have it, on the same network.

A worker that shares what it fetched tells the coordinator which objects it holds. Who needs some of
them is told of a few such workers; whom it cannot reach, or who does not have it any more, costs it
one try, and it asks the coordinator itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

MOST_NAMED = 8
"""How many workers one answer names."""
HOLDERS_EACH = 2
"""An object for which so many are named needs no more."""
IPV4_BITS, IPV6_BITS = 24, 64
"""What is one network where the admin has named none: the usual size of an office's."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def plain_address(text: str) -> str:
    """An IP address in one spelling: IPv4 inside IPv6 as IPv4, no zone; "" if it is none."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def parse_network(text: str) -> Network:
    """ "10.2.0.0/16" → a network. Raises ValueError."""
    return ipaddress.ip_network(text.strip())


def network_of(address: str, networks: Iterable[Network]) -> str:
    """The network of a plain address: the smallest of `networks` that has it, else the usual one
    around it. Two addresses with the same one may fetch from one another."""
    parsed = ipaddress.ip_address(address)
    having = [net for net in networks if net.version == parsed.version and parsed in net]
    if having:
        return str(max(having, key=lambda net: net.prefixlen))
    bits = IPV4_BITS if parsed.version == 4 else IPV6_BITS
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))


class Holders:
    """Which machines of one network hold which objects. Adding and removing cost what changes."""

    def __init__(self) -> None:
        self._objects: dict[str, frozenset[str]] = {}
        self._machines: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def of(self, machine: str) -> frozenset[str]:
        """What it holds."""
        return self._objects.get(machine, frozenset())

    def set(self, machine: str, objects: frozenset[str]) -> None:
        """From now on it holds these; none at all: it is not listed."""
        before = self.of(machine)
        for one in before - objects:
            self._machines[one].remove(machine)
            if not self._machines[one]:
                del self._machines[one]
        for one in objects - before:
            self._machines.setdefault(one, []).append(machine)
        if objects:
            self._objects[machine] = objects
        else:
            self._objects.pop(machine, None)

    def choose(self, wanted: Iterable[str], asker: str, turn: int) -> dict[str, list[str]]:
        """Machines other than `asker`, each with what it has of `wanted`: for each object two
        holders at most, eight machines in all. `turn` grows with each question, so that all get
        their share of the work."""
        found: dict[str, list[str]] = {}
        for number, one in enumerate(wanted):
            holders = self._machines.get(one, [])
            named = [machine for machine in found if one in self._objects[machine]]
            chosen = named[:HOLDERS_EACH]
            for step in range(min(len(holders), HOLDERS_EACH + MOST_NAMED)):
                if len(chosen) == HOLDERS_EACH or len(found) == MOST_NAMED:
                    break
                machine = holders[(turn + number + step) % len(holders)]
                if machine != asker and machine not in chosen:
                    chosen.append(machine)
                    found.setdefault(machine, [])
            for machine in chosen:
                found[machine].append(one)
        return found
