"""An HTTP proxy as offices have it: takes CONNECT and nothing else, resolves names itself."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Mapping
from types import TracebackType

_MOST_BYTES = 65536
_TICK_S = 0.1


class ConnectProxy:
    """Listens on `address`, in the network of the thread that makes it.

    `hosts` are the names it knows; `asked` lists the targets it was asked for, as `host:port`.
    """

    def __init__(self, address: str, hosts: Mapping[str, str]) -> None:
        self._hosts = hosts
        self.asked: list[str] = []
        self._closed = threading.Event()
        self._listener = socket.create_server((address, 0))
        self._listener.settimeout(_TICK_S)
        self.url = f"http://{address}:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):  # nobody came for a while
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[client], daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head and len(head) < _MOST_BYTES:
                if not (piece := client.recv(_MOST_BYTES)):
                    return
                head += piece
            verb, _, rest = head.decode("latin-1").partition(" ")
            target = rest.split(" ", 1)[0]
            host, _, port = target.rpartition(":")
            self.asked.append(target)
            if verb != "CONNECT" or host not in self._hosts:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection((self._hosts[host], int(port)), timeout=10) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(client, selectors.EVENT_READ, server)
            waiting.register(server, selectors.EVENT_READ, client)
            while not self._closed.is_set():
                for key, _ in waiting.select(_TICK_S):
                    assert isinstance(key.fileobj, socket.socket)
                    if not (piece := key.fileobj.recv(_MOST_BYTES)):
                        return
                    key.data.sendall(piece)

    def __enter__(self) -> ConnectProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._closed.set()
        for thread in self._threads:
            thread.join(15)
        self._listener.close()
