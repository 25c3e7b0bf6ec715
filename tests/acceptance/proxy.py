"""A network that a test can break: a TCP proxy that passes, cuts, swallows or slows down."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Literal

PIECE_BYTES = 64 * 1024
TICK_S = 0.05

Weather = Literal["fine", "cut", "blackhole"]


class Proxy:
    """Forwards connections on `port` of 127.0.0.1 to `target_port`, as the weather allows.

    `cut` closes everything and refuses newcomers. `blackhole` accepts and keeps connections, but
    nothing passes until the weather is fine again; then what was under way arrives, late.
    `up_bytes_per_s` slows down what goes to the target; `up_bytes` counts it.
    """

    def __init__(self, target_port: int, *, up_bytes_per_s: float | None = None) -> None:
        self._target_port = target_port
        self._up_bytes_per_s = up_bytes_per_s
        self.weather: Weather = "fine"
        self.up_bytes = 0
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TICK_S)
        self.port = int(self._listener.getsockname()[1])
        self._spawn(self._accept)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except (TimeoutError, OSError):
                continue
            if self.weather == "cut":
                client.close()
                continue
            self.connections += 1
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
        except OSError:
            client.close()
            return
        with self._lock:
            self._open |= {client, server}
        for one in (client, server):
            one.settimeout(TICK_S)
        self._spawn(self._pump, server, client, False)
        self._pump(client, server, True)

    def _pump(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        while not self._closed.is_set():
            try:
                data = source.recv(PIECE_BYTES)
            except TimeoutError:
                continue
            except OSError:
                break
            while self.weather == "blackhole" and not self._closed.is_set():
                time.sleep(TICK_S)
            if not data or self.weather == "cut":
                break
            if upwards:
                self.up_bytes += len(data)
                if self._up_bytes_per_s:
                    time.sleep(len(data) / self._up_bytes_per_s)
            if not _send(sink, data, self._closed):
                break
        self._hang_up(source, sink)

    def _hang_up(self, *sockets: socket.socket) -> None:
        with self._lock:
            for one in sockets:
                self._open.discard(one)
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def cut(self) -> None:
        self.weather = "cut"
        with self._lock:
            waiting = list(self._open)
        self._hang_up(*waiting)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()


def _send(sink: socket.socket, data: bytes, closed: threading.Event) -> bool:
    rest = memoryview(data)
    while rest and not closed.is_set():
        try:
            rest = rest[sink.send(rest) :]
        except TimeoutError:
            continue
        except OSError:
            return False
    return True
