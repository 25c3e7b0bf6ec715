"""The private CA: checked by Python's own TLS, strict mode included."""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from cryptography import x509

from officegrid.coordinator.pki import Pki, ensure_pki
from officegrid.core.errors import UnavailableError, UsageError

DAY_S = 86_400.0
NOW = time.time()


def handshake(pki: Pki, host: str, *, ca_pem: str | None = None) -> None:
    """A whole TLS handshake in memory. Raises ssl.SSLCertVerificationError like a socket would."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki.server_cert_path, pki.server_key_path)
    client = ssl.create_default_context(cadata=ca_pem or pki.ca_pem)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=host)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [near, far]
    for _ in range(20):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            return
    raise AssertionError("the handshake does not end")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pki"


@pytest.mark.parametrize(
    "host", ["grid.example.org", "10.1.2.3", "localhost", "127.0.0.1", "::1", "2001:db8::7"]
)
def test_strict_tls_accepts_every_name(folder: Path, host: str) -> None:
    pki = ensure_pki(folder, ["Grid.Example.org.", "10.1.2.3", "[2001:DB8:0::7]"], NOW)
    handshake(pki, host)


@pytest.mark.parametrize("host", ["other.example.org", "10.1.2.4", "grid.example.org.evil.test"])
def test_strict_tls_refuses_other_names(folder: Path, host: str) -> None:
    pki = ensure_pki(folder, ["grid.example.org", "10.1.2.3"], NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pki, host)


def test_another_ca_is_refused(folder: Path, tmp_path: Path) -> None:
    pki, other = ensure_pki(folder, [], NOW), ensure_pki(tmp_path / "other", [], NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pki, "localhost", ca_pem=other.ca_pem)


def test_the_server_certificate_cannot_act_as_a_ca(folder: Path) -> None:
    pki = ensure_pki(folder, [], NOW)
    cert = x509.load_pem_x509_certificate(pki.server_cert_path.read_bytes())
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pki, "localhost", ca_pem=pki.server_cert_path.read_text())


def test_all_local_addresses_are_covered(folder: Path) -> None:
    pki = ensure_pki(folder, [], NOW)
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family.name == "AF_INET":
                handshake(pki, address.address)


def test_the_fingerprint_is_that_of_the_ca(folder: Path) -> None:
    pki = ensure_pki(folder, [], NOW)
    der = ssl.PEM_cert_to_DER_cert(pki.ca_cert_path.read_text())
    assert pki.fingerprint == hashlib.sha256(der).digest()
    assert pki.ca_pem == pki.ca_cert_path.read_text()
    assert "PRIVATE" not in pki.ca_pem


@pytest.mark.skipif(os.name != "posix", reason="POSIX rights")
def test_keys_are_private_even_if_someone_opened_them_up(folder: Path) -> None:
    ensure_pki(folder, [], NOW)
    keys = [folder / "ca-key.pem", folder / "server-key.pem"]
    assert [mode_of(path) for path in [folder, *keys]] == [0o700, 0o600, 0o600]
    for path in [folder, *keys]:
        path.chmod(0o755)
    ensure_pki(folder, [], NOW)
    assert [mode_of(path) for path in [folder, *keys]] == [0o700, 0o600, 0o600]


def test_a_second_start_changes_nothing(folder: Path) -> None:
    first = ensure_pki(folder, ["grid"], NOW)
    files = snapshot(folder)
    assert ensure_pki(folder, ["grid"], NOW + 30 * DAY_S) == first
    assert snapshot(folder) == files
    assert len(files) == 4  # no drafts left behind


@pytest.mark.parametrize(("days", "renewed"), [(300, False), (306, True), (400, True)])
def test_the_server_certificate_is_renewed_in_time(
    folder: Path, days: float, renewed: bool
) -> None:
    first = ensure_pki(folder, [], NOW)
    later = ensure_pki(folder, [], NOW + days * DAY_S)
    assert (later.server_expires_at > first.server_expires_at) is renewed
    assert later.fingerprint == first.fingerprint


def test_changed_names_bring_a_new_certificate_from_the_same_ca(folder: Path) -> None:
    first = ensure_pki(folder, ["old.example.org"], NOW)
    second = ensure_pki(folder, ["new.example.org"], NOW)
    assert second.ca_pem == first.ca_pem
    handshake(second, "new.example.org", ca_pem=first.ca_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(second, "old.example.org")


def test_a_crash_between_key_and_certificate_heals(folder: Path, tmp_path: Path) -> None:
    pki = ensure_pki(folder, [], NOW)
    other = ensure_pki(tmp_path / "other", [], NOW)
    pki.server_key_path.write_bytes(other.server_key_path.read_bytes())
    healed = ensure_pki(folder, [], NOW)
    assert healed.fingerprint == pki.fingerprint
    handshake(healed, "localhost")


@pytest.mark.parametrize("name", ["server.pem", "server-key.pem", "ca.pem"])
@pytest.mark.parametrize("damage", ["gone", "empty", "garbage"])
def test_what_can_be_remade_is_remade(folder: Path, name: str, damage: str) -> None:
    pki = ensure_pki(folder, [], NOW)
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(b"" if damage == "empty" else b"-----BEGIN x\n\x00")
    healed = ensure_pki(folder, [], NOW)
    assert healed.fingerprint == pki.fingerprint
    handshake(healed, "localhost")


def test_a_certificate_of_another_ca_is_replaced(folder: Path, tmp_path: Path) -> None:
    pki = ensure_pki(folder, [], NOW)
    other = ensure_pki(tmp_path / "other", [], NOW)
    pki.server_cert_path.write_bytes(other.server_cert_path.read_bytes())
    pki.server_key_path.write_bytes(other.server_key_path.read_bytes())
    handshake(ensure_pki(folder, [], NOW), "localhost")


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAA==\n"])
def test_a_damaged_ca_is_never_replaced_silently(folder: Path, content: bytes) -> None:
    ensure_pki(folder, [], NOW)
    (folder / "ca-key.pem").write_bytes(content)
    with pytest.raises(UnavailableError, match="damaged") as caught:
        ensure_pki(folder, [], NOW)
    assert "backup" in caught.value.fix
    assert (folder / "ca-key.pem").read_bytes() == content


def test_an_expired_ca_is_told(folder: Path) -> None:
    ensure_pki(folder, [], NOW)
    with pytest.raises(UnavailableError, match="expired"):
        ensure_pki(folder, [], NOW + 3651 * DAY_S)


def test_the_server_certificate_never_outlives_the_ca(folder: Path) -> None:
    ensure_pki(folder, [], NOW)
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    late = ensure_pki(folder, [], NOW + 3600 * DAY_S)
    assert late.server_expires_at == ca.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("name", ["https://grid", "grid:8443", "a b", "", "x" * 300, "ex\nample"])
def test_impossible_names_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        ensure_pki(folder, [name], NOW)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="cannot be read or written"):
        ensure_pki(tmp_path / "file" / "pki", [], NOW)


def test_starting_at_once_agrees_on_one_ca(folder: Path) -> None:
    found: list[bytes] = []
    barrier = threading.Barrier(6)

    def start() -> None:
        barrier.wait(timeout=10)
        found.append(ensure_pki(folder, [], NOW).fingerprint)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 6
    assert len(set(found)) == 1
    handshake(ensure_pki(folder, [], NOW), "localhost")


def test_newer_pythons_accept_it_by_default(folder: Path) -> None:
    """The strict default of Python 3.13 comes from the flag that `handshake` sets; where such
    a Python is at hand, let it judge itself."""
    pki = ensure_pki(folder, [], NOW)
    python = next(
        (p for p in Path(sys.base_prefix).parent.glob("3.1[3-9]*/bin/python") if p.exists()), None
    )
    if python is None:
        pytest.skip("no Python 3.13 or newer beside this one")
    script = (
        "import ssl,sys\n"
        "s=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); s.load_cert_chain(*sys.argv[2:4])\n"
        "c=ssl.create_default_context(cafile=sys.argv[1])\n"
        "assert c.verify_flags & ssl.VERIFY_X509_STRICT\n"
        "a,b=ssl.MemoryBIO(),ssl.MemoryBIO()\n"
        "ends=[c.wrap_bio(a,b,server_hostname='localhost'),s.wrap_bio(b,a,server_side=True)]\n"
        "for _ in range(20):\n"
        "    for end in list(ends):\n"
        "        try: end.do_handshake(); ends.remove(end)\n"
        "        except ssl.SSLWantReadError: pass\n"
        "print('left', len(ends))\n"
    )
    arguments = [pki.ca_cert_path, pki.server_cert_path, pki.server_key_path]
    result = subprocess.run(
        [python, "-c", script, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.stdout.strip() == "left 0", result.stderr
