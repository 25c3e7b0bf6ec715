"""Addresses of coordinators: from what a person types to one canonical URL."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from officegrid.core.errors import UsageError

DEFAULT_PORT = 8443
_FIX = "Give it as HOST, HOST:PORT or https://HOST:PORT."


def normalise_url(text: str) -> str:
    """`https://host:port` for `host`, `host:port`, `https://host`, an IPv6 address, and the like.

    The port is 8443 unless given. Raises UsageError for http:// and for anything that is more
    than an address.
    """
    typed = text.strip()
    scheme, separator, rest = typed.partition("://")
    if not separator:
        scheme, rest = "https", _bracketed(typed)
    if scheme.lower() == "http":
        raise UsageError(
            "The coordinator is never talked to over plain http.",
            "Join codes, tokens and records would be readable on the network.",
            "Write https:// instead, or leave the scheme out.",
        )
    if scheme.lower() != "https":
        raise _wrong(typed, f"It starts with {scheme}://.")
    try:
        parts = urlsplit(f"https://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _wrong(typed, f"{error}.") from None
    if parts.username is not None or parts.password is not None:
        # Not quoted: it may hold a password.
        raise UsageError("The coordinator's address holds a user name.", "It needs none.", _FIX)
    if not host or not _is_host(host):
        raise _wrong(typed, "It has no valid host name or address.")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _wrong(typed, "Something follows the host and port.")
    if port == 0:
        raise _wrong(typed, "Port 0 cannot be reached.")
    return f"https://{_bracketed(host)}:{DEFAULT_PORT if port is None else port}"


def is_loopback(url: str) -> bool:
    """Does this URL lead back to this very machine?"""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _bracketed(host: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(host)}]"
    except ValueError:
        return host


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A colon here means a bare IPv6 address with a mistake in it.
        return all(char.isalnum() or char in "-._" for char in host) and len(host) <= 253
    return True


def _wrong(typed: str, why: str) -> UsageError:
    return UsageError(f"{typed[:200]!r} is not the address of a coordinator.", why, _FIX)
