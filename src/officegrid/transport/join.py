"""Joining a grid: from an address and a pasted code to verified TLS and a token.

The CA certificate is fetched over TLS that proves nothing, without sending anything secret, and
is believed only if its SHA-256 is the one inside the code. The secret half of the code goes out
afterwards, over TLS verified against that CA: whoever stands in between learns nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx2
from pydantic import ValidationError

from officegrid.core.errors import AuthError, UsageError
from officegrid.core.joincode import parse_code
from officegrid.transport import failures
from officegrid.transport.address import normalise_url
from officegrid.transport.client import open_client, unverified_context
from officegrid.transport.http import USER_AGENT, Connection
from officegrid.transport.profile import Profile
from officegrid.wire.join import CA_PATH, JOIN_PATH, JoinReply, JoinRequest

_MAX_CA_BYTES = 64 * 2**10
_PEM_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def join(
    url: str, code: str, *, name: str, facts: dict[str, Any], timeout_s: float = 30.0
) -> Profile:
    """Trade a join code for an identity. The caller saves the profile (`profile.save_profile`).

    `name` is how people will call this machine, `facts` what else they may want to know.
    Raises UsageError for a mistyped address or code, AuthError when the server is not the one
    the code was made for or does not accept the code, UnavailableError when it is not there.
    """
    parts = parse_code(code)
    address = normalise_url(url)
    ca_pem = _fetch_ca(address, parts.fingerprint, timeout_s)
    request = _request(parts.secret_text, name.strip(), facts)
    with Connection(address, ca_pem, None, timeout_s=timeout_s) as connection:
        # Not retried: if only the answer got lost, a second try would use the code up twice.
        reply = connection.call("POST", JOIN_PATH, body=request, reply=JoinReply, retry=False)
    return Profile(
        url=address,
        ca_pem=ca_pem,
        token=reply.token,
        machine_id=reply.machine_id,
        role=reply.role,
        name=request.name,
    )


def _request(secret_text: str, name: str, facts: dict[str, Any]) -> JoinRequest:
    try:
        return JoinRequest(secret=secret_text, name=name, facts=facts)
    except ValidationError:
        # Its details may quote the secret.
        raise UsageError(
            "This machine cannot join under this name.",
            "A name has 1 to 255 characters, and at most 64 facts can be told with it.",
            "Choose another name.",
        ) from None


def _fetch_ca(url: str, fingerprint: bytes, timeout_s: float) -> str:
    """The PEM of the one certificate offered by `url` that has this SHA-256."""
    text = _read_unverified(url, timeout_s).decode("ascii", "replace")
    offered = 0
    for der in _certificates(text):
        offered += 1
        if hashlib.sha256(der).digest() == fingerprint:
            return ssl.DER_cert_to_PEM_cert(der)
    if not offered:
        raise failures.not_a_coordinator(url, f"It offers no certificate at {CA_PATH}.")
    raise AuthError(
        f"The server at {url} is not the one this join code was made for.",
        "The fingerprint of its certificate is not the one in the code: the address is wrong, "
        "the coordinator was set up anew since, or something on the network poses as it.",
        "Check the address, and ask the grid admin for a fresh code. Nothing secret was sent.",
    )


def _read_unverified(url: str, timeout_s: float) -> bytes:
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    received = bytearray()
    give_up_at = time.monotonic() + timeout_s
    try:
        with (
            open_client(url, unverified_context(), headers, timeout_s) as client,
            client.stream("GET", CA_PATH) as response,
        ):
            # Raw, so that a hostile server cannot send little that unpacks to a lot.
            for chunk in response.iter_raw():
                received += chunk
                if len(received) > _MAX_CA_BYTES:
                    raise failures.not_a_coordinator(url, f"Its {CA_PATH} is far too long.")
                if time.monotonic() > give_up_at:
                    raise failures.too_slow(url, timeout_s)
    except httpx2.HTTPError as error:
        raise failures.of_transport(error, url, timeout_s).error from None
    if response.status_code >= 300:
        raise failures.of_response(response, bytes(received), url).error
    return bytes(received)


def _certificates(text: str) -> Iterator[bytes]:
    for block in _PEM_BLOCK.findall(text):
        with contextlib.suppress(ValueError):
            if der := ssl.PEM_cert_to_DER_cert(block):
                yield der
