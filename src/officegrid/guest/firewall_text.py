"""What the guest's firewall is told, as text for `nft -f`; and what follows from it.

The rules themselves are static, in `/etc/nftables.conf`, and are loaded before the network is up.
They refer to sets that this module fills: `open4`, `open6` (address or network . TCP port) and
`resolver4`, `resolver6`, `ntp4`, `ntp6`, and `peer4`, `peer6`, which are open in both directions:
workers that share data. Syntax: nft(8).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

TABLE = "inet officegrid"
KEEP_ADDRESS_S = 600.0
"""A name's address stays open for so long after it was last seen: names that lead to several
servers in turn must not close the one in use."""

Opening = tuple[str, int]
"""An address, or a network in CIDR form, and a TCP port."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def commands(
    openings: Iterable[Opening],
    resolvers: Iterable[str],
    time_servers: Iterable[str] = (),
    peers: Iterable[Opening] = (),
) -> str:
    """One transaction that makes the sets hold exactly these; what is no address is left out."""
    lines: list[str] = []
    ways = {"open": collapse(openings), "peer": collapse(peers)}
    for version, suffix in ((4, "4"), (6, "6")):
        for name, pairs in ways.items():
            elements = [f"{net} . {port}" for net, port in pairs if net.version == version]
            lines += _fill(f"{name}{suffix}", elements)
        lines += _fill(f"resolver{suffix}", _addresses(resolvers, version))
        lines += _fill(f"ntp{suffix}", _addresses(time_servers, version))
    return "\n".join(lines) + "\n"


def _addresses(texts: Iterable[str], version: int) -> list[str]:
    nets = [_plain(text) for text in texts]
    return sorted({str(net.network_address) for net in nets if net and net.version == version})


def _fill(name: str, elements: list[str]) -> list[str]:
    lines = [f"flush set {TABLE} {name}"]
    if elements:
        lines.append(f"add element {TABLE} {name} {{ {', '.join(elements)} }}")
    return lines


def collapse(openings: Iterable[Opening]) -> list[tuple[Network, int]]:
    """No element within another: nft refuses a set of overlapping intervals."""
    by_port: dict[tuple[int, int], list[Network]] = {}
    for text, port in openings:
        net = _plain(text)
        if net is not None and 0 < port < 2**16:
            by_port.setdefault((net.version, port), []).append(net)
    return [
        (net, port)
        for (_, port), nets in sorted(by_port.items(), key=lambda item: item[0])
        for net in ipaddress.collapse_addresses(nets)  # type: ignore[type-var]
    ]


def _plain(text: str) -> Network | None:
    try:
        # A link-local address comes as fe80::1%eth0.
        return ipaddress.ip_network(text.partition("%")[0], strict=False)
    except ValueError:
        return None


def is_literal(host: str) -> bool:
    """Is this an address or a network, and no name to be resolved?"""
    return _plain(host) is not None


def nameservers(resolv_conf: str) -> list[str]:
    """Addresses in a resolver configuration; resolv.conf(5)."""
    words = (line.split() for line in resolv_conf.splitlines())
    return [found[1] for found in words if len(found) >= 2 and found[0] == "nameserver"]


def still_open(
    seen_s: Mapping[Opening, float], found: Iterable[Opening], now_s: float
) -> dict[Opening, float]:
    """Each opening with the time it was last seen: the old ones that are not too old, and `found`.

    Times are monotonic; `seen_s` is what this function returned last time.
    """
    kept = {one: at_s for one, at_s in seen_s.items() if now_s - at_s < KEEP_ADDRESS_S}
    return kept | dict.fromkeys(found, now_s)
