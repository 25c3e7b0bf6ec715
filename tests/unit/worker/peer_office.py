"""An office of workers that share: real TLS on this computer, the coordinator's real answers."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from desktops import wait_until
from officegrid.coordinator.config import PeersConfig
from officegrid.coordinator.peers import Peers as Book
from officegrid.core.errors import UnavailableError
from officegrid.wire.archives import Piece
from officegrid.wire.peers import PeerAsk, PeerReply
from officegrid.worker.peers.exchange import Peers

HERE = "127.0.0.1"
wait_for = partial(wait_until, timeout_s=20.0)


@dataclass
class Wire:
    """What a worker's link is to its peers: `came_from` is the address its requests show."""

    office: Office
    machine: str
    came_from: str = HERE

    def ask_peers(self, ask: PeerAsk) -> PeerReply:
        if self.office.away:
            raise UnavailableError("The coordinator is away.")
        self.office.asks.append(ask)
        time.sleep(self.office.slow_s)
        book = self.office.book
        certificate = book.signer.certificate(self.machine) if ask.certificate else None
        return book.answer(self.machine, self.came_from, ask, certificate)


@dataclass
class Office:
    folder: Path
    book: Book = field(default_factory=lambda: Book(PeersConfig(allow=True), time.time))
    away: bool = False
    slow_s: float = 0.0
    """How long the coordinator takes to answer."""
    asks: list[PeerAsk] = field(default_factory=list)
    direct_pause_s: float = 0.0
    objects: dict[str, bytes] = field(default_factory=dict)
    """What the coordinator has."""
    fetched: list[str] = field(default_factory=list)
    """What was fetched from it."""
    workers: list[Peers] = field(default_factory=list)

    def worker(
        self, name: str, *, came_from: str = HERE, port: int = 0, room: int = 2**30
    ) -> Peers:
        made = Peers(
            Wire(self, name, came_from),
            self.folder / name,
            port,
            room,  # type: ignore[arg-type]
        )
        self.workers.append(made)
        made.start()
        made._standing.settle()
        return made

    def pieces(self, count: int, size: int = 300_000) -> list[Piece]:
        payloads = [os.urandom(size) for _ in range(count)]
        for payload in payloads:
            self.objects[hashlib.sha256(payload).hexdigest()] = payload
        return [
            Piece(sha256=hashlib.sha256(one).hexdigest(), stored_bytes=len(one), raw_bytes=len(one))
            for one in payloads
        ]

    def direct(self, piece: Piece) -> bytes:
        time.sleep(self.direct_pause_s)
        self.fetched.append(piece.sha256)
        return self.objects[piece.sha256]

    def fetch(self, worker: Peers, pieces: list[Piece]) -> None:
        """All pieces, as `bundles.pieces.join` asks for them; they must be right."""
        get = worker.getter(pieces, self.direct, lambda: True)
        for piece in pieces:
            assert get(piece) == self.objects[piece.sha256]

    def listed(self, machine: str, objects: int = 1) -> bool:
        peers = self.book.view(str).peers
        return any(one.id == machine and one.objects >= objects for one in peers)

    def close(self) -> None:
        for one in self.workers:
            one.close()
