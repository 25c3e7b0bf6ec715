"""The certificate that a worker shows to other workers, and whom it believes.

Both ends prove that they belong to this grid: the authority signs for nobody else. The key is in
memory, and in a file only for the moment in which the TLS library reads it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from officegrid.core.errors import UnavailableError
from officegrid.transport.private_file import write_private
from officegrid.wire.peers import PeerCertificate

RENEW_BEFORE_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    authority: str
    expires_at: float
    server: ssl.SSLContext
    client: ssl.SSLContext

    def is_young(self, now: float) -> bool:
        """Good for some hours more?"""
        return now < self.expires_at - RENEW_BEFORE_S


def make_identity(authority: str, certificate: PeerCertificate, folder: Path) -> Identity:
    """Raises UnavailableError where it cannot be used; `folder` is the worker's own."""
    path = folder / "peer.pem"
    try:
        write_private(path, (certificate.key + certificate.certificate).encode())
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_verify_locations(cadata=authority)
        server.verify_mode = ssl.CERT_REQUIRED
        client = ssl.create_default_context(cadata=authority)
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_cert_chain(path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UnavailableError("The certificate for peers cannot be used.", str(error)) from None
    finally:
        path.unlink(missing_ok=True)
    return Identity(authority, certificate.expires_at, server, client)
