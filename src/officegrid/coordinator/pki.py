"""The coordinator's own certificate authority, so that an office needs no other.

    <folder>/ca-key.pem      0600  the CA's private key and certificate: ONE file, so that the two
                                   can never be half written or mixed up. Back it up.
    <folder>/ca.pem                the CA certificate alone, for people; remade when it is missing
    <folder>/server-key.pem  0600  the key of the certificate the coordinator serves
    <folder>/server.pem            that certificate

The CA lasts ten years: its SHA-256 is in every join code and its certificate on every machine,
so a new CA means that every machine joins again. The server's certificate lasts a year and is
issued anew when it gets old or when the coordinator's names or addresses change, which clients
do not notice. `ensure_pki` is cheap when there is nothing to do; a coordinator that runs for
months calls it daily and loads the files again with `SSLContext.load_cert_chain`.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from officegrid.coordinator.certificates import Authority, issue, make_authority, private_pem
from officegrid.core.errors import UnavailableError, UsageError

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=60)
# A machine whose clock is somewhat behind (a VM just thawed) must be able to join a new grid.
_BACKDATED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pki:
    """Where the coordinator's identity lies. `fingerprint` is the SHA-256 of the CA's DER."""

    ca_cert_path: Path
    server_cert_path: Path
    server_key_path: Path
    fingerprint: bytes
    ca_pem: str
    names: tuple[str, ...]  # DNS names and IP addresses the server certificate is good for
    server_expires_at: float  # seconds since the epoch


def ensure_pki(folder: Path, names: Sequence[str], now: float) -> Pki:
    """Make, renew or just load the certificates in `folder`; returns where they are.

    `names` are the further DNS names and IP addresses under which clients reach the
    coordinator; host name, fully qualified name, localhost and all addresses of the local
    network cards are always included. `now` is in seconds since the epoch.

    Raises UsageError for a name that no certificate can carry, UnavailableError when the
    files cannot be read or written, or when the CA's ten years are over.
    """
    moment = datetime.fromtimestamp(now, UTC)
    wanted = _wanted_names(names)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        authority = _load_or_make_authority(folder / "ca-key.pem", moment)
        ca_pem = authority.cert_pem
        if _read(folder / "ca.pem") != ca_pem:
            _write(folder / "ca.pem", ca_pem, mode=0o644)
        server = _load_server(folder, authority, wanted, moment)
        if server is None:
            server = _issue_server(folder, authority, wanted, moment)
    except OSError as error:
        raise UnavailableError(
            "The coordinator's certificates cannot be read or written.",
            f"{error.strerror or error}: {error.filename or folder}",
            "Check the rights and the free space of that folder, then start again.",
        ) from error
    return Pki(
        ca_cert_path=folder / "ca.pem",
        server_cert_path=folder / "server.pem",
        server_key_path=folder / "server-key.pem",
        fingerprint=hashlib.sha256(
            authority.cert.public_bytes(serialization.Encoding.DER)
        ).digest(),
        ca_pem=ca_pem.decode("ascii"),
        names=tuple(sorted(_names_of(server))),
        server_expires_at=server.not_valid_after_utc.timestamp(),
    )


# --- names -----------------------------------------------------------------------------------


def _wanted_names(names: Sequence[str]) -> frozenset[str]:
    found = {"localhost", "127.0.0.1", "::1"}
    for name in names:
        found.add(_certificate_name(name))
    for name in _local_names():
        with contextlib.suppress(UsageError):  # a strange host name must not stop the server
            found.add(_certificate_name(name))
    return frozenset(found)


def _local_names() -> list[str]:
    host = socket.gethostname()
    full = socket.getfqdn()
    found = [host] if full.endswith(".arpa") else [host, full]
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            ip = ipaddress.ip_address(address.address.partition("%")[0])
            # Link-local IPv6 needs a zone, which no URL in a certificate check carries.
            if not (ip.version == 6 and ip.is_link_local):
                found.append(str(ip))
    return found


def _certificate_name(name: str) -> str:
    """`name` as a certificate holds it: canonical IP address, or DNS name in ASCII."""
    plain = name.strip().strip("[]").rstrip(".").lower()
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(plain))
    try:
        ascii_name = plain.encode("idna").decode("ascii")
    except UnicodeError:
        ascii_name = ""
    allowed = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")
    if not ascii_name or len(ascii_name) > 253 or not frozenset(ascii_name) <= allowed:
        raise UsageError(
            f"{name!r} cannot be a name of the coordinator.",
            "A certificate holds host names and IP addresses only.",
            "Give a plain host name such as grid.example.org, or an IP address; no port, no URL.",
        )
    return ascii_name


def _names_of(cert: x509.Certificate) -> frozenset[str]:
    try:
        held = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(name.value) for name in held)


# --- the authority ---------------------------------------------------------------------------


def _load_or_make_authority(path: Path, moment: datetime) -> Authority:
    stored = _read(path)
    if stored is None:
        # A link, unlike a rename, never replaces: of two coordinators starting at once on one
        # folder, both end up with the CA of the first.
        _write(path, _make_authority_pem(moment), mode=0o600, only_new=True)
        stored = path.read_bytes()
    path.chmod(0o600)
    try:
        key = serialization.load_pem_private_key(stored, password=None)
        cert = x509.load_pem_x509_certificate(stored)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
            raise ValueError("the key and the certificate in it do not belong together")
    except ValueError as error:
        raise UnavailableError(
            "The coordinator's certificate authority is damaged.",
            f"{path}: {error}",
            "Restore this file from a backup. Without one, remove it and let every machine "
            "join again.",
        ) from error
    if cert.not_valid_after_utc <= moment:
        raise UnavailableError(
            "The coordinator's certificate authority has expired.",
            f"{path} was good until {cert.not_valid_after_utc:%Y-%m-%d}.",
            "If this computer's clock is right, remove the file, start again, and let every "
            "machine join again.",
        )
    return Authority(key, cert)


def _make_authority_pem(moment: datetime) -> bytes:
    made = make_authority("Office Grid CA", moment - _BACKDATED, moment + CA_LIFETIME)
    return private_pem(made.key) + made.cert_pem


# --- the server's certificate ----------------------------------------------------------------


def _load_server(
    folder: Path, authority: Authority, wanted: frozenset[str], moment: datetime
) -> x509.Certificate | None:
    """The certificate in use, or None when it must be issued (again)."""
    cert_pem, key_pem = _read(folder / "server.pem"), _read(folder / "server-key.pem")
    if cert_pem is None or key_pem is None:
        return None
    try:
        cert = x509.load_pem_x509_certificate(cert_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
        cert.verify_directly_issued_by(authority.cert)
    except (ValueError, TypeError, InvalidSignature):
        return None
    is_pair = key.public_key() == cert.public_key()
    is_young = cert.not_valid_before_utc <= moment < cert.not_valid_after_utc - RENEW_BEFORE
    if not (is_pair and is_young and _names_of(cert) == wanted):
        return None
    (folder / "server-key.pem").chmod(0o600)
    return cert


def _issue_server(
    folder: Path, authority: Authority, wanted: frozenset[str], moment: datetime
) -> x509.Certificate:
    key, cert = issue(
        authority, "Office Grid coordinator", wanted, moment - _BACKDATED,
        _BACKDATED + SERVER_LIFETIME, [ExtendedKeyUsageOID.SERVER_AUTH],
    )  # fmt: skip
    # A crash between these two writes leaves a pair that does not match, which the next start
    # sees and issues again.
    _write(folder / "server-key.pem", private_pem(key), mode=0o600)
    _write(folder / "server.pem", cert.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return cert


# --- small parts -----------------------------------------------------------------------------


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, content: bytes, *, mode: int, only_new: bool = False) -> None:
    """Write all of `content` or nothing; with `only_new`, leave an existing file as it is."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if only_new:
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        else:
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
