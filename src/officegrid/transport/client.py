"""How the HTTP library is set up: whom to trust, proxies, pooling."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx2

from officegrid.core.errors import AuthError, UsageError
from officegrid.transport.address import is_loopback

_CONNECT_TIMEOUT_S = 10.0
_POOL = httpx2.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=60.0)


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
        )
    except (ValueError, ImportError, httpx2.InvalidURL):
        # The cause is left out: it may quote a proxy's password.
        raise UsageError(
            "The proxy settings of this machine cannot be used.",
            "HTTPS_PROXY or ALL_PROXY is not an http:// or https:// address.",
            "Correct it, or add the coordinator to NO_PROXY.",
        ) from None


def timeouts(timeout_s: float) -> httpx2.Timeout:
    """`timeout_s` for each wait; less for the connection, which is quick or will not come."""
    return httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
