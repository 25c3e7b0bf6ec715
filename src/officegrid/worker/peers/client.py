"""Fetching one object from another worker: quickly, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Mapping
from enum import Enum
from typing import Any

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
    late = _Deadline(PATIENCE_S + most_bytes / SLOWEST_BYTES_PER_S)
    try:
        with httpx2.Client(verify=context, timeout=_TIMEOUT, trust_env=False) as client:
            payload = _read(client, peer, sha256, most_bytes, late)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return Trouble.FAILED if late.has_come else _trouble_of(error)
    finally:
        late.cancel()
    if isinstance(payload, Trouble):
        return payload
    return payload if hashlib.sha256(payload).hexdigest() == sha256 else Trouble.WRONG


class _Deadline:
    """Ends a connection that answers too slowly, however regularly: its next read finds the end."""

    def __init__(self, within_s: float) -> None:
        self.has_come = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(within_s, self._come)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, event: str, about: Mapping[str, Any]) -> None:
        """For the HTTP library's trace."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = about["return_value"].get_extra_info("socket")

    def cancel(self) -> None:
        self._timer.cancel()
        self._socket = None

    def _come(self) -> None:
        self.has_come = True
        connection = self._socket
        if connection is not None:
            # Not closed: its number could be another connection's by the time of the next read.
            # And not TLS's own shutdown, which takes away what that read is using.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _read(
    client: httpx2.Client, peer: PeerPlace, sha256: str, most_bytes: int, late: _Deadline
) -> bytes | Trouble:
    host = f"[{peer.address}]" if ":" in peer.address else peer.address
    # The certificate is for the machine, wherever it is: addresses change hands.
    extensions = {"sni_hostname": f"{peer.id}.{PEER_DOMAIN}", "trace": late.watch}
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
        except (httpx2.HTTPError, OSError):
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
