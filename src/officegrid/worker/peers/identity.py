"""The certificate that a worker shows to other workers, and whom it believes.

Both ends prove that they belong to this grid: the authority signs for nobody else. The TLS library
takes a key from a file only. On Linux that is one in memory; elsewhere it is there for that moment.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from officegrid.core.errors import UnavailableError
from officegrid.transport.client import tls_context
from officegrid.transport.private_file import write_private
from officegrid.wire.peers import PeerCertificate

RENEW_BEFORE_S = 6 * 3600.0
_FILE = "peer.pem"


@dataclass(frozen=True, slots=True)
class Identity:
    authority_id: str
    expires_at: float
    server: ssl.SSLContext
    client: ssl.SSLContext

    def is_young(self, now: float) -> bool:
        """Good for some hours more?"""
        return now < self.expires_at - RENEW_BEFORE_S


def make_identity(certificate: PeerCertificate, folder: Path) -> Identity:
    """Raises UnavailableError where it cannot be used; `folder` is the worker's own."""
    try:
        with _file_of((certificate.key + certificate.certificate).encode(), folder) as path:
            server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.load_verify_locations(cadata=certificate.authority)
            server.verify_mode = ssl.CERT_REQUIRED
            client = tls_context(certificate.authority)
            server.minimum_version = ssl.TLSVersion.TLSv1_2
            server.verify_flags |= ssl.VERIFY_X509_STRICT
            for context in (server, client):
                context.load_cert_chain(path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UnavailableError("The certificate for peers cannot be used.", str(error)) from None
    return Identity(certificate.authority_id, certificate.expires_at, server, client)


def sweep(folder: Path) -> None:
    """Remove what a worker that was killed in that moment has left."""
    for path in folder.glob(f"*{_FILE}*"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _file_of(secret: bytes, folder: Path) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("peer", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, secret)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    path = folder / _FILE
    try:
        write_private(path, secret)
        yield str(path)
    finally:
        sweep(folder)
