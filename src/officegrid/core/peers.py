"""Which workers may pass an object on to another one: those that have it, on the same network.

A worker that shares what it fetched tells the coordinator which objects it holds. Who needs some of
them is told of a few such workers; whom it cannot reach, or who does not have it any more, costs it
one try, and it asks the coordinator itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_NAMED = 8
"""How many workers one answer names."""
HOLDERS_EACH = 2
"""An object for which so many are named needs no more."""
IPV4_BITS, IPV6_BITS = 24, 64
"""What is one network where the admin has named none: the usual size of an office's."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Sharer:
    """A worker that gives objects away: at `address` and `port`, those whose SHA-256 it `holds`."""

    id: str
    address: str
    port: int
    holds: frozenset[str]


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


def choose(
    sharers: Sequence[Sharer], wanted: Iterable[str], turn: int
) -> list[tuple[Sharer, frozenset[str]]]:
    """Some of `sharers`, each with what it has of `wanted`: for each object two holders at most,
    eight sharers in all. `turn` grows with each question, so that all get their share of the work.
    """
    lacking = dict.fromkeys(wanted, HOLDERS_EACH)
    found: list[tuple[Sharer, frozenset[str]]] = []
    start = turn % len(sharers) if sharers else 0
    for sharer in (*sharers[start:], *sharers[:start]):
        if not lacking or len(found) == MOST_NAMED:
            break
        if sharer.holds.isdisjoint(lacking):
            continue
        has = frozenset(one for one in lacking if one in sharer.holds)
        found.append((sharer, has))
        for one in has:
            lacking[one] -= 1
            if not lacking[one]:
                del lacking[one]
    return found
