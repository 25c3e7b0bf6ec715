"""The coordinator's time over TLS that checks everything but dates; real TLS on loopback."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from officegrid.coordinator.pki import Pki, ensure_pki
from officegrid.core.errors import UnavailableError
from officegrid.guest import servertime
from officegrid.guest.servertime import coordinator_time_s, http_date_s

LONG_AGO_S = time.time() - 20 * 365 * 86400
MOMENT_S = 1_900_000_000.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates that were made twenty years ago and have expired."""
    return ensure_pki(tmp_path_factory.mktemp("pki"), ["127.0.0.1"], LONG_AGO_S)


@contextlib.contextmanager
def server(handle: str, pki: Pki | None, address: str = "127.0.0.1") -> Iterator[int]:
    """Answers each connection with `handle`; TLS with a pki."""
    context = None
    if pki is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server_cert_path, pki.server_key_path)
    listener = socket.create_server((address, 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), raw:
                line = context.wrap_socket(raw, server_side=True) if context else raw
                with line:
                    line.recv(4096)
                    line.sendall(handle.encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def answer(at_s: float) -> str:
    return f"HTTP/1.1 200 OK\r\ndate: {email.utils.formatdate(at_s, usegmt=True)}\r\n\r\nbody"


def test_an_expired_certificate_still_tells_who_it_is(pki: Pki) -> None:
    with server(answer(MOMENT_S), pki) as port:
        found = coordinator_time_s(f"https://127.0.0.1:{port}", pki.ca_pem)
    assert found == pytest.approx(MOMENT_S, abs=3)


def test_a_stranger_cannot_set_the_clock(pki: Pki, tmp_path: Path) -> None:
    stranger = ensure_pki(tmp_path / "stranger", ["127.0.0.1"], LONG_AGO_S)
    with server(answer(MOMENT_S), stranger) as port, pytest.raises(UnavailableError):
        coordinator_time_s(f"https://127.0.0.1:{port}", pki.ca_pem)
    # The right server, but its certificate is for other names.
    with server(answer(MOMENT_S), pki, "127.0.0.3") as port:
        with pytest.raises(UnavailableError, match="time") as caught:
            coordinator_time_s(f"https://127.0.0.3:{port}", pki.ca_pem)
        assert "certificate" in caught.value.why.lower()


@pytest.mark.parametrize("said", ["HTTP/1.1 200 OK\r\n\r\n", "", "Date: yesterday\r\n\r\n"])
def test_an_answer_without_a_date_is_none(pki: Pki, said: str) -> None:
    with server(said, pki) as port, pytest.raises(UnavailableError):
        coordinator_time_s(f"https://127.0.0.1:{port}", pki.ca_pem)


def test_a_late_answer_means_nothing(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servertime, "_MOST_DELAY_S", -1.0)
    with server(answer(MOMENT_S), pki) as port, pytest.raises(UnavailableError, match="time"):
        coordinator_time_s(f"https://127.0.0.1:{port}", pki.ca_pem)


def test_nobody_there_and_nonsense_are_refusals_too(pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (f"https://127.0.0.1:{port}", "https://127.0.0.1", "nonsense"):
        with pytest.raises(UnavailableError):
            coordinator_time_s(url, pki.ca_pem)
    with pytest.raises(UnavailableError):
        coordinator_time_s(f"https://127.0.0.1:{port}", "no certificate")
    for damaged in ("Zürich", "\0", pki.ca_pem[:100]):
        with pytest.raises(UnavailableError):
            coordinator_time_s(f"https://127.0.0.1:{port}", damaged)
    with pytest.raises(UnavailableError):
        coordinator_time_s("https://127.0.0.1:99999", pki.ca_pem)


def test_through_a_proxy(pki: Pki) -> None:
    asked: list[bytes] = []
    with server(answer(MOMENT_S), pki) as port, _proxy(port, asked) as proxy_port:
        proxy = f"http://127.0.0.1:{proxy_port}"
        found = coordinator_time_s(f"https://127.0.0.1:{port}", pki.ca_pem, proxy)
    assert found == pytest.approx(MOMENT_S, abs=3)
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())
    forbidden = server("HTTP/1.1 403 Forbidden\r\n\r\n", None)
    with forbidden as port, pytest.raises(UnavailableError, match="time"):
        coordinator_time_s("https://127.0.0.1:1", pki.ca_pem, f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def _proxy(target: int, asked: list[bytes]) -> Iterator[int]:
    """A CONNECT proxy for one connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def serve() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", target)) as far:
            asked.append(near.recv(4096))
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join(10)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        thread.join(10)


def test_dates_of_http() -> None:
    assert http_date_s(b"HTTP/1.1 200\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n") == 784111777
    assert http_date_s(b"Date: Sun, 06 Nov 0000 08:49:37 GMT\r\n") is None
    assert http_date_s(b"Date: Sun, 06 Now 1994 08:49:37 GMT\r\n") is None
    assert http_date_s(b"X-Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n") is None
