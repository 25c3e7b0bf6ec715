"""Where a worker gives objects to others: `GET /v1/objects/<sha256>`, to peers of the grid only.

A connection that does not show a certificate of the grid's peers ends before anything of HTTP is
read. Each has a thread of its own, its handshake included, and there are few of them.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from officegrid.worker.log import get_logger
from officegrid.worker.peers.shelf import Shelf

log = get_logger("peers")

MOST_CONNECTIONS = 64
MOST_UPLOADS = 4
SILENCE_S = 15.0
"""The other end may be a VM that was paused."""
SLICE_BYTES = 64 * 1024
"""The silence is counted for each slice, not for the whole object."""
UPLOAD_WITHIN_S = 300.0
LOOK_EVERY_S = 1.0
_PATH = re.compile(r"/v1/objects/([0-9a-f]{64})")


class PeerServer:
    """Listens from the start, until `close`."""

    def __init__(self, address: str, port: int, shelf: Shelf, context: ssl.SSLContext) -> None:
        """`port` 0: any free one. Raises OSError."""
        self._server = _Server(address, port, shelf, context)
        self.address = address
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="peer-server", daemon=True).start()

    def use(self, context: ssl.SSLContext) -> None:
        """New connections see this certificate."""
        self._server.context = context

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # on Windows it would let two programs share a port
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: str, port: int, shelf: Shelf, context: ssl.SSLContext) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.shelf = shelf
        self.context = context
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.uploads = threading.BoundedSemaphore(MOST_UPLOADS)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for this machine's name, which may take long.
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self.connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(SILENCE_S)
        with self.context.wrap_socket(request, server_side=True) as secure:
            _Handler(secure, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A stranger, or a peer that went away: its own trouble."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "officegrid", ""
    timeout = SILENCE_S
    server: _Server

    def do_GET(self) -> None:
        found = _PATH.fullmatch(self.path)
        if found is None:
            self._answer(404)
            return
        if not self.server.uploads.acquire(blocking=False):
            self._answer(503)
            return
        try:
            payload = self.server.shelf.get(found[1])
            self._answer(404 if payload is None else 200, payload or b"")
        finally:
            self.server.uploads.release()

    def _answer(self, status: int, payload: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        until_s = time.monotonic() + UPLOAD_WITHIN_S
        for start in range(0, len(payload), SLICE_BYTES):
            self.wfile.write(payload[start : start + SLICE_BYTES])
            if time.monotonic() > until_s:
                return

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""
