"""How the HTTP library is set up: whom to trust, proxies, pooling, dead connections."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping

import httpx2

from officegrid.core.errors import AuthError, UsageError
from officegrid.transport.address import is_loopback

_CONNECT_TIMEOUT_S = 10.0
_POOL = httpx2.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=60.0)

# Seconds of silence before the first probe, between two, and how many may stay unanswered; and for
# how many milliseconds sent data may (Linux, tcp(7)).
_PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}


def tls_context(ca_pem: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, host name checked, and no CA believed but this one.

    Raises AuthError when `ca_pem` is not a certificate.
    """
    try:
        context = ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise AuthError(
            "The coordinator's certificate on this machine is damaged.",
            "The profile holds something that is not a certificate.",
            "Join again with a new code.",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default, on all versions
    return context


def unverified_context() -> ssl.SSLContext:
    """TLS that proves nothing about the other side: for reading the CA before a join only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def open_client(
    url: str, context: ssl.SSLContext, headers: Mapping[str, str], timeout_s: float
) -> httpx2.Client:
    """A pooled client for one coordinator. HTTPS_PROXY, ALL_PROXY and NO_PROXY are honoured, but
    for this very machine no proxy is ever asked. Raises UsageError for a malformed proxy."""
    try:
        return httpx2.Client(
            base_url=url,
            verify=context,
            headers=dict(headers),
            timeout=timeouts(timeout_s),
            limits=_POOL,
            trust_env=not is_loopback(url),
            follow_redirects=False,
            event_hooks={"response": [_watch_connection]},
        )
    except (ValueError, ImportError, httpx2.InvalidURL):
        # The cause is left out: it may quote a proxy's password.
        raise UsageError(
            "The proxy settings of this machine cannot be used.",
            "HTTPS_PROXY or ALL_PROXY is not an http:// or https:// address.",
            "Correct it, or add the coordinator to NO_PROXY.",
        ) from None


def _watch_connection(response: httpx2.Response) -> None:
    """Let the system notice when this connection is dead.

    The other end of a connection is gone without a word when this machine gets another address,
    or when a firewall on the way forgets it; a worker that waits for work would wait out its whole
    long poll. The operating system's probes tell within about half a minute. Set at each answer:
    the library has no place for it that works with proxies too.
    """
    stream = response.extensions.get("network_stream")
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is None:
        return
    with contextlib.suppress(OSError):  # it has just been closed
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):  # not all systems have all
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def timeouts(timeout_s: float) -> httpx2.Timeout:
    """`timeout_s` for each wait; less for the connection, which is quick or will not come."""
    return httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
