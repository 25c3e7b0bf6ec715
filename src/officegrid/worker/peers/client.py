"""Fetching one object from another worker: quickly, or not at all."""

from __future__ import annotations

import hashlib
import ssl
import time
from enum import Enum

import httpx2

from officegrid.wire.peers import PEER_DOMAIN, PeerPlace

_TIMEOUT = httpx2.Timeout(5.0, connect=1.5)
SLOWEST_BYTES_PER_S = 256 * 1024
PATIENCE_S = 5.0
"""Beside the time that the bytes themselves may take."""


class Trouble(Enum):
    BUSY = "busy"
    FAILED = "failed"
    """It is away, or too slow, or has lost the object."""
    WRONG = "wrong"
    """It sent something else than was asked for."""


def fetch(
    peer: PeerPlace, sha256: str, most_bytes: int, context: ssl.SSLContext
) -> bytes | Trouble:
    """The object's bytes, verified. `most_bytes`: more is wrong in any case."""
    host = f"[{peer.address}]" if ":" in peer.address else peer.address
    url = f"https://{host}:{peer.port}/v1/objects/{sha256}"
    deadline_s = time.monotonic() + PATIENCE_S + most_bytes / SLOWEST_BYTES_PER_S
    # The certificate is for the machine, wherever it is: addresses change hands.
    extensions = {"sni_hostname": f"{peer.id}.{PEER_DOMAIN}"}
    payload = bytearray()
    try:
        with (
            httpx2.Client(verify=context, timeout=_TIMEOUT, trust_env=False) as client,
            client.stream("GET", url, extensions=extensions) as response,
        ):
            if response.status_code != 200:
                return Trouble.BUSY if response.status_code == 503 else Trouble.FAILED
            for chunk in response.iter_raw():
                payload += chunk
                if len(payload) > most_bytes:
                    return Trouble.WRONG
                if time.monotonic() > deadline_s:
                    return Trouble.FAILED
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
        return Trouble.FAILED
    return bytes(payload) if hashlib.sha256(payload).hexdigest() == sha256 else Trouble.WRONG
