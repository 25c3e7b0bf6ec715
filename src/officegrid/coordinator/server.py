"""Run the coordinator: TLS always, a clear word when the port is taken, a clean stop."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import ssl
from collections.abc import Callable

import uvicorn

from officegrid.coordinator.app import make_app
from officegrid.coordinator.pki import ensure_pki
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import UnavailableError, UsageError

GRACE_S = 5


def parse_listen(text: str) -> tuple[str, int]:
    """ "0.0.0.0:8443", ":8443", "[::1]:8443" → (host, port). Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is not an address to listen on.", fix="Write HOST:PORT.")
    return host.strip("[]") or "0.0.0.0", int(port)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UnavailableError or UsageError that says what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"Port {port} is in use.",
                "Another program, perhaps another coordinator, listens there.",
                "Stop it, or choose another port: `officegrid serve --listen HOST:PORT`.",
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(
                f"Port {port} may not be used by this user.", fix="Choose a port above 1023."
            ) from None
        raise UsageError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    return listener


def run(coordinator: Coordinator, listener: socket.socket, when_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests under way get a few seconds to end."""
    app = make_app(coordinator)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                when_ready()

        def handle_exit(self, sig: int, frame: object) -> None:
            # Waiting claims and watchers would otherwise hold the shutdown up.
            coordinator.stopping.set()
            coordinator.grid.work_appeared()
            coordinator.work.check(coordinator.grid.work_version)
            # Not super(): it raises the signal again at the end, and a clean stop exits with 0.
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    config = uvicorn.Config(
        app,
        ssl_certfile=coordinator.pki.server_cert_path,
        ssl_keyfile=coordinator.pki.server_key_path,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
        loop="auto",
        http="auto",
    )
    config.load()

    def renew_certificate() -> None:
        pki = ensure_pki(
            coordinator.pki.ca_cert_path.parent, coordinator.pki.names, coordinator.clock()
        )
        if pki.server_expires_at != coordinator.pki.server_expires_at and config.ssl is not None:
            config.ssl.load_cert_chain(pki.server_cert_path, pki.server_key_path)
            coordinator.pki = pki

    coordinator.renew_certificate = renew_certificate
    with contextlib.closing(listener):
        Server(config).run(sockets=[listener])
