"""Fetching one object from another worker: quickly, or not at all."""

from __future__ import annotations

import hashlib
import ssl
import threading
from enum import Enum

import httpx2

from officegrid.wire.peers import PEER_DOMAIN, PeerPlace

_TIMEOUT = httpx2.Timeout(5.0, connect=1.5)
SLOWEST_BYTES_PER_S = 256 * 1024
PATIENCE_S = 5.0
"""Beside the time that the bytes themselves may take."""


class Trouble(Enum):
    BUSY = "busy"
    """It has too many guests, and says so or hangs up before it has answered."""
    LACKS = "lacks it"
    FAILED = "does not answer"
    """It is away, or too slow."""
    STRANGER = "is not who it should be"
    """Or this machine's clock is wrong."""
    WRONG = "sends something else"


def fetch(
    peer: PeerPlace, sha256: str, most_bytes: int, context: ssl.SSLContext
) -> bytes | Trouble:
    """The object's bytes, verified. `most_bytes`: more is wrong in any case."""
    client = httpx2.Client(verify=context, timeout=_TIMEOUT, trust_env=False)
    # However slowly it answers: a read of a connection that was closed fails.
    is_late = threading.Event()

    def leave() -> None:
        is_late.set()
        client.close()

    late = threading.Timer(PATIENCE_S + most_bytes / SLOWEST_BYTES_PER_S, leave)
    late.daemon = True
    late.start()
    try:
        payload = _read(client, peer, sha256, most_bytes)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError) as error:
        return Trouble.FAILED if is_late.is_set() else _trouble_of(error)
    finally:
        late.cancel()
        client.close()
    if isinstance(payload, Trouble):
        return payload
    return payload if hashlib.sha256(payload).hexdigest() == sha256 else Trouble.WRONG


def _read(client: httpx2.Client, peer: PeerPlace, sha256: str, most_bytes: int) -> bytes | Trouble:
    host = f"[{peer.address}]" if ":" in peer.address else peer.address
    # The certificate is for the machine, wherever it is: addresses change hands.
    extensions = {"sni_hostname": f"{peer.id}.{PEER_DOMAIN}"}
    url = f"https://{host}:{peer.port}/v1/objects/{sha256}"
    payload = bytearray()
    with client.stream("GET", url, extensions=extensions) as response:
        if response.status_code != 200:
            return Trouble.BUSY if response.status_code == 503 else Trouble.LACKS
        try:
            for chunk in response.iter_raw():
                payload += chunk
                if len(payload) > most_bytes:
                    return Trouble.WRONG
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError):
            return Trouble.FAILED
    return bytes(payload)


def _trouble_of(error: BaseException) -> Trouble:
    """Nothing was answered: was it too busy, somebody else, or away?"""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Trouble.STRANGER
        if isinstance(cause, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
            return Trouble.BUSY
        cause = cause.__cause__ or cause.__context__
    closed = isinstance(error, httpx2.RemoteProtocolError) and "disconnected" in str(error)
    return Trouble.BUSY if closed else Trouble.FAILED
