"""A worker's standing among its peers: what it told the coordinator, where it listens, whom it
shuns.

The coordinator decides whether there are peers at all, and signs for each of them. It says from
which address a question came. A worker that can listen at that address can be reached there; one
behind a translator of addresses or a proxy cannot, and only fetches.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from officegrid.core.errors import NotFoundError, OfficeGridError
from officegrid.wire.peers import MOST_WANTED, PeerAsk, PeerPlace, PeerReply
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger
from officegrid.worker.peers.identity import Identity, make_identity, sweep
from officegrid.worker.peers.server import PeerServer
from officegrid.worker.peers.shelf import Shelf

log = get_logger("peers")

TELL_PAUSE_S = 2.0
"""Objects that come one after the other are told together."""
AWAY_AGAIN_S = 60.0
FIRST_ANSWER_S = 6.0
SLOW_S = 2.0
REST_S = 30.0
"""A coordinator that is away, or slow, is not asked about peers for so long."""
SHUNNED_S = 300.0
CERTIFICATE_EVERY_S = 300.0


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
        self._answered = threading.Event()
        self._turn = threading.Lock()  # one question at a time; held while the answer comes
        self._book = threading.Lock()  # held for moments only
        self._identity: Identity | None = None
        self._server: PeerServer | None = None
        self._certificate_asked_s = float("-inf")
        self._told: set[str] = set()
        self._rests_until_s = float("-inf")
        self._shunned_until_s: dict[str, float] = {}  # by machine id, on the monotonic clock
        self._unreported: set[str] = set()
        self._got_objects = self._got_bytes = 0
        self._said = ""
        sweep(folder)

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

    def shun(self, peer_id: str, *, report: bool) -> None:
        """Ask that peer no more for a while. `report`: it did not answer; the coordinator names it
        to nobody when others say so too."""
        with self._book:
            self._shunned_until_s[peer_id] = time.monotonic() + SHUNNED_S
            if report:
                self._unreported.add(peer_id)

    def shuns(self, peer_id: str) -> bool:
        with self._book:
            return time.monotonic() < self._shunned_until_s.get(peer_id, float("-inf"))

    def ask(self, wants: Sequence[str]) -> list[PeerPlace] | None:
        """Who has some of `wants`, at most 64 of them. None where that cannot be asked now."""
        if self._closed.is_set() or time.monotonic() < self._rests_until_s:
            return None
        with self._turn:
            began_s = time.monotonic()
            if self._closed.is_set() or began_s < self._rests_until_s:
                return None
            try:
                found = self._ask(wants).peers
            except OfficeGridError:
                self._rests_until_s = time.monotonic() + REST_S
                return None
            if time.monotonic() - began_s > SLOW_S:
                self._rests_until_s = time.monotonic() + REST_S
            return found

    def _keep_telling(self) -> None:
        while not self._closed.is_set():
            self._news.clear()
            again_s = AWAY_AGAIN_S
            try:
                with self._turn:
                    again_s = self._ask(()).again_s
            except NotFoundError:  # an older coordinator
                self._say("off: the coordinator knows of no peers")
                again_s = 10 * AWAY_AGAIN_S
            except OfficeGridError as error:
                log.info("not_told", what=error.what)
            except Exception as error:
                # Sharing is worth no worker: it goes on, and so does this.
                log.error("unexpected", error=f"{type(error).__name__}: {error}")
            self._answered.set()
            if not self._news.wait(again_s * random.uniform(0.8, 1.0)):
                self._told = set()  # what made way meanwhile was not told
            self._closed.wait(TELL_PAUSE_S)

    def _ask(self, wants: Sequence[str], *, everything: bool = False) -> PeerReply:
        for _ in range(3):
            reply = self._send(wants, everything=everything)
            again, everything = self._take(reply), everything or reply.tell_all
            if not again and not reply.tell_all:
                break
        return reply

    def _send(self, wants: Sequence[str], *, everything: bool) -> PeerReply:
        names = self._shelf.names()
        everything = everything or not self._told
        new = [name for name in names if name not in self._told]
        with self._book:
            failed = sorted(self._unreported)[:64]
            got_objects, got_bytes = self._got_objects, self._got_bytes
        certificate = self._wants_certificate()
        reply = self._link.ask_peers(
            PeerAsk(
                port=0 if self._server is None else self._server.port,
                holds=names if everything else None,
                adds=[] if everything else new,
                wants=list(wants)[:MOST_WANTED],
                certificate=certificate,
                failed=failed,
                got_objects=got_objects,
                got_bytes=got_bytes,
            )
        )
        self._told = set(names) if everything else self._told | set(new)
        if certificate:
            self._certificate_asked_s = time.monotonic()
        with self._book:
            self._unreported.difference_update(failed)
            self._got_objects -= got_objects
            self._got_bytes -= got_bytes
        return reply

    def _wants_certificate(self) -> bool:
        if self._identity is None:
            return True
        # With a clock that is far ahead, none is ever young.
        lately = time.monotonic() - self._certificate_asked_s < CERTIFICATE_EVERY_S
        return not lately and not self._identity.is_young(time.time())

    def _take(self, reply: PeerReply) -> bool:
        """Do as the coordinator says; True where it has to be told what came of it."""
        if not reply.allowed:
            self._identity = None
            self._stop_listening()
            self._shelf.clear()
            self._say("off: the coordinator does not allow it")
            return False
        if reply.certificate is not None:
            self._identity = make_identity(reply.certificate, self._folder)
            if self._server is not None:
                self._server.use(self._identity.server)
        elif self._identity is None or self._identity.authority_id != reply.authority_id:
            self._identity = None  # the coordinator began anew, and trusts no older certificate
            return True
        if self._server is not None and self._server.address == reply.came_from:
            return False
        self._stop_listening()  # this machine has moved
        return self._listen(reply.came_from, self._identity)

    def _listen(self, address: str, identity: Identity) -> bool:
        if self._closed.is_set() or not address:
            return False
        try:
            self._server = PeerServer(address, self._port, self._shelf, identity.server)
        except OSError as error:
            why = error.strerror or str(error)
            self._say(f"only fetches: cannot listen at {address} port {self._port}: {why}")
            return False
        self._told = set()
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
