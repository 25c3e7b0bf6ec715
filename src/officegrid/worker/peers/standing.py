"""A worker's standing among its peers: what it told the coordinator, where it listens, whom it
shuns.

The coordinator decides whether there are peers at all, and signs for each of them. It lists a
worker for others only where the address that the worker has is the one that its requests come
from: behind a translator of addresses or a proxy nobody could reach it, so it need not listen.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from officegrid.core.errors import NotFoundError, OfficeGridError
from officegrid.wire.peers import MOST_WANTED, PeerAsk, PeerPlace, PeerReply
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger
from officegrid.worker.peers.identity import Identity, make_identity
from officegrid.worker.peers.server import PeerServer
from officegrid.worker.peers.shelf import Shelf

log = get_logger("peers")

TELL_PAUSE_S = 1.0
"""Objects that come one after the other are told together."""
AWAY_AGAIN_S = 60.0
FIRST_ANSWER_S = 6.0
SHUNNED_S = 300.0


class Standing:
    """`start` once, `close` at the end. Thread-safe."""

    def __init__(self, link: Link, folder: Path, port: int, shelf: Shelf) -> None:
        """`port`: where to listen, 0 for any free one. `folder` is the worker's own."""
        self._link = link
        self._folder = folder
        self._port = port
        self._shelf = shelf
        self._closed = threading.Event()
        self._news = threading.Event()
        self._turn = threading.Lock()  # one question at a time; held while the answer comes
        self._book = threading.Lock()  # held for moments only
        self._identity: Identity | None = None
        self._server: PeerServer | None = None
        self._failed: dict[str, float] = {}  # by machine id, on the monotonic clock
        self._unreported: set[str] = set()
        self._got_objects = self._got_bytes = 0
        self._said = ""
        self._answered = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._keep_telling, name="peers", daemon=True).start()

    def close(self) -> None:
        """Listen no more. What others fetch right now ends with the process."""
        self._closed.set()
        self._news.set()
        with self._turn:
            self._stop_listening()

    @property
    def identity(self) -> Identity | None:
        """None while there are no peers."""
        return self._identity

    def settle(self) -> None:
        """Wait until the coordinator has answered for the first time, or is away."""
        self._answered.wait(FIRST_ANSWER_S)

    def tell_soon(self) -> None:
        """There is something new on the shelf."""
        self._news.set()

    def got(self, number_of_bytes: int) -> None:
        """An object came from a peer."""
        with self._book:
            self._got_objects += 1
            self._got_bytes += number_of_bytes

    def failed(self, peer_id: str) -> None:
        """A peer did not give what it was said to have; the coordinator will hear of it."""
        with self._book:
            self._failed[peer_id] = time.monotonic()
            self._unreported.add(peer_id)

    def shuns(self, peer_id: str) -> bool:
        with self._book:
            at_s = self._failed.get(peer_id)
        return at_s is not None and time.monotonic() - at_s < SHUNNED_S

    def ask(self, wants: Sequence[str]) -> list[PeerPlace]:
        """Who has some of `wants`, after telling how things are here. Nobody, where the coordinator
        is away or wants no peers."""
        with self._turn:
            try:
                return self._ask(wants).peers
            except OfficeGridError:
                return []

    def _keep_telling(self) -> None:
        while not self._closed.is_set():
            self._news.clear()
            with self._turn:
                try:
                    again_s = self._ask(()).again_s
                except NotFoundError:  # an older coordinator
                    self._say("off: the coordinator knows of no peers")
                    again_s = 10 * AWAY_AGAIN_S
                except OfficeGridError:
                    again_s = AWAY_AGAIN_S
            self._answered.set()
            self._news.wait(again_s)
            self._closed.wait(TELL_PAUSE_S)

    def _ask(self, wants: Sequence[str]) -> PeerReply:
        reply = self._send(wants)
        if self._take(reply):
            reply = self._send(wants)
            self._take(reply)
        return reply

    def _send(self, wants: Sequence[str]) -> PeerReply:
        address = own_address(self._link.url)
        if self._server is not None and self._server.address != address:
            self._stop_listening()  # this machine has moved
        with self._book:
            failed = sorted(self._unreported)[:64]
            got_objects, got_bytes = self._got_objects, self._got_bytes
        good = self._identity is not None and self._identity.is_young(time.time())
        reply = self._link.ask_peers(
            PeerAsk(
                address=address,
                port=0 if self._server is None else self._server.port,
                holds=self._shelf.names(),
                wants=list(wants)[:MOST_WANTED],
                certificate=not good,
                failed=failed,
                got_objects=got_objects,
                got_bytes=got_bytes,
            )
        )
        with self._book:
            self._unreported.difference_update(failed)
            self._got_objects -= got_objects
            self._got_bytes -= got_bytes
        return reply

    def _take(self, reply: PeerReply) -> bool:
        """Do as the coordinator says; True where it has to be told what came of it."""
        if not reply.allowed:
            self._identity = None
            self._stop_listening()
            self._say("off: the coordinator does not allow it")
            return False
        if reply.certificate is not None:
            self._identity = make_identity(reply.authority, reply.certificate, self._folder)
            if self._server is not None:
                self._server.use(self._identity.server)
        elif self._identity is None or self._identity.authority != reply.authority:
            self._identity = None  # the coordinator began anew, and trusts no older certificate
            return True
        if not reply.reachable:
            self._stop_listening()
            self._say("only fetches: others cannot reach this address")
            return False
        return self._server is None and self._listen(self._identity)

    def _listen(self, identity: Identity) -> bool:
        address = own_address(self._link.url)
        try:
            if self._closed.is_set():
                return False
            self._server = PeerServer(address, self._port, self._shelf, identity.server)
        except OSError as error:
            why = error.strerror or str(error)
            self._say(f"only fetches: cannot listen at {address} port {self._port}: {why}")
            return False
        self._say(f"shares at {address} port {self._server.port}")
        return True

    def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.info("standing", now=what)


def own_address(url: str) -> str:
    """This machine's address towards the host of `url`; "" where there is no way to it."""
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # of a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return ""
