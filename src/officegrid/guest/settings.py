"""How a guest is to behave: what the image says, overridden key by key by the seed disk.

`/etc/officegrid/guest.json` is baked when the image is built; the seed's "settings" come from
`[vm.guest]` in the desktop's agent.toml. A wrong value is told on the console and ignored: a guest
that works with the default is better than one that does not start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})|[0-9A-Fa-f:]{2,39}")
_PROXY = re.compile(r"http://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})/?")
_ALLOW = re.compile(
    r"(\[[0-9A-Fa-f:]+(?:/\d{1,3})?\]|[A-Za-z0-9._-]{1,253}(?:/\d{1,2})?):(\d{1,5})"
)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
# A `*/N` of cron is regular within an hour only.
_MOST = {"every_minutes": 59, "slots": 256, "peers_port": 2**16 - 1}
_MOST_ENTRIES = 64
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")  # RFC 1918, RFC 4193


class Settings(NamedTuple):
    """`start`: the worker is a "service", or "cron" starts it `every_minutes`. `init`: "systemd",
    or "small" in the test guest. `allow` is "host:port" or "network/bits:port", IPv6 in [].
    `peers_port`: where the worker shares data with others on its network; 0: it does not."""

    start: str = "service"
    every_minutes: int = 5
    user: str = "grid"
    slots: int = 1
    init: str = "systemd"
    proxy: str = ""
    ntp: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    peers_port: int = 0


class Target(NamedTuple):
    """What a guest may talk to by TCP. `host` is a name, an address, or a network in CIDR form."""

    host: str
    port: int


_FROM_SEED = frozenset({"start", "every_minutes", "slots", "proxy", "ntp", "allow", "peers_port"})


def merge(baked: Mapping[str, Any], seeded: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings, and a sentence for each value that was ignored."""
    found: dict[str, Any] = {}
    complaints: list[str] = []
    for where, values in (("/etc/officegrid/guest.json", baked), ("the seed disk", seeded)):
        for key, value in values.items():
            known = key in Settings._fields if values is baked else key in _FROM_SEED
            if not known:
                if values is seeded:
                    complaints.append(f"The setting {key!r} of {where} is not known.")
            elif (right := _checked(key, value)) is None:
                complaints.append(f"The setting {key!r} of {where} has a wrong value.")
            else:
                found[key] = right
    return Settings(**found), complaints


def accepted(seeded: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a seed's settings that `merge` takes."""
    return {
        key: value
        for key, value in seeded.items()
        if key in _FROM_SEED and _checked(key, value) is not None
    }


def _checked(key: str, value: Any) -> Any:
    """The value in its own form; None when it is wrong."""
    if key == "start":
        return value if value in ("service", "cron") else None
    if key == "init":
        return value if value in ("systemd", "small") else None
    if key in _MOST:
        most = _MOST[key]
        right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        return value if right else None
    if key in ("user", "proxy"):
        pattern = _USER if key == "user" else _PROXY
        if value == "" and key == "proxy":
            return value
        return value if isinstance(value, str) and pattern.fullmatch(value) else None
    pattern = _HOST if key == "ntp" else _ALLOW
    right = isinstance(value, list | tuple) and len(value) <= _MOST_ENTRIES
    right = right and all(isinstance(one, str) and pattern.fullmatch(one) for one in value)
    return tuple(value) if right else None


def address(url: str) -> str:
    """HOST:PORT of a coordinator, the port that `officegrid join` takes included."""
    text = url.strip().lower().removeprefix("https://").rstrip("/")
    return text if re.search(r":\d+$", text) else f"{text}:8443"


def peers(settings: Settings) -> list[Target]:
    """The networks whose workers may share data with this one: all private addresses, on the one
    port. Which of them are near, the coordinator knows."""
    nets = _PRIVATE if settings.peers_port else ()
    return [Target(net, settings.peers_port) for net in nets]


def targets(settings: Settings, url: str) -> list[Target]:
    """What the worker talks to: the coordinator at `url` ("": not known yet), or the proxy in
    front of it, and what is allowed besides."""
    texts = [*settings.allow]
    if settings.proxy:
        texts.append(settings.proxy.removeprefix("http://").rstrip("/"))
    elif url:
        texts.append(address(url))
    found = []
    for text in texts:
        host, _, port = text.rpartition(":")
        if host and port.isdigit() and 0 < int(port) < 2**16:
            found.append(Target(host.strip("[]"), int(port)))
    return found
