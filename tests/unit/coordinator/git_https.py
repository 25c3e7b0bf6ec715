"""A real https server of git repositories on loopback: `git http-backend` behind a password."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from officegrid.coordinator.pki import Pki, ensure_pki


class GitServer(ThreadingHTTPServer):
    """Serves the repositories below `root`. `command_lines`: of every process that ran while it
    was asked for something; `moved_to`: it answers everything with a redirect."""

    daemon_threads = True

    def __init__(self, root: Path, pki: Pki, login: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server_cert_path, pki.server_key_path)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.root = root
        self.expected = f"Basic {base64.b64encode(login.encode()).decode()}"
        self.command_lines: list[str] = []
        self.moved_to = ""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none."""


class _Handler(BaseHTTPRequestHandler):
    server: GitServer

    def do_GET(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                self.server.command_lines.append(" ".join(process.cmdline()))
        if self.server.moved_to:
            self._answer(302, [("Location", f"{self.server.moved_to}{self.path}")], b"")
        elif self.headers["Authorization"] != self.server.expected:
            self._answer(401, [("WWW-Authenticate", 'Basic realm="git"')], b"")
        else:
            self._backend()

    def do_POST(self) -> None:
        self.do_GET()

    def _backend(self) -> None:
        path, _, query = self.path.partition("?")
        env = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
            "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
            "GIT_PROTOCOL": self.headers["Git-Protocol"] or "", "REMOTE_USER": "bob",
        }  # fmt: skip
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        made = subprocess.run(
            ["git", "http-backend"], input=body, env=env, capture_output=True, check=False
        ).stdout
        head, _, content = made.partition(b"\r\n\r\n")
        lines = [line.partition(": ")[::2] for line in head.decode().split("\r\n")]
        status = next((int(v.split()[0]) for k, v in lines if k == "Status"), 200)
        self._answer(status, [(k, v) for k, v in lines if k != "Status"], content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(content)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(folder: Path, root: Path, login: str) -> Iterator[tuple[GitServer, Path]]:
    """(the server, the certificate to believe)."""
    pki = ensure_pki(folder, [], time.time())
    with GitServer(root, pki, login) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server, pki.ca_cert_path
        finally:
            server.shutdown()
            thread.join(10)
