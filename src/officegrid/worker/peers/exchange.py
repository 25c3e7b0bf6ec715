"""Objects from other workers on the same network, and from the coordinator what they lack.

Nothing depends on peers: what none of them gives at once comes from the coordinator. A worker takes
objects in an order of its own, those first that a peer has. So ten workers that begin at once each
fetch another part from the coordinator, and the rest from one another.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from officegrid.wire.archives import Piece
from officegrid.wire.peers import PeerPlace
from officegrid.worker.link import GaveUp, Link
from officegrid.worker.log import get_logger
from officegrid.worker.peers.client import Trouble, fetch
from officegrid.worker.peers.shelf import Shelf
from officegrid.worker.peers.standing import Standing

log = get_logger("peers")

LEAST_BYTES = 256 * 1024
"""For less, finding a peer takes longer than the coordinator does."""
SHELF_BYTES = 1024**3
ASKED_LATELY_S = 1.0

GetPiece = Callable[[Piece], bytes]


class Peers:
    """`start` once, `close` at the end; `getter` from any thread between."""

    def __init__(self, link: Link, folder: Path, port: int, most_bytes: int = SHELF_BYTES) -> None:
        """`port`: where to listen, 0 for any free one. `folder` is the worker's own."""
        self._shelf = Shelf(folder / "shelf", most_bytes)
        self._standing = Standing(link, folder, port, self._shelf)
        self._random = random.Random()

    def start(self) -> None:
        self._standing.start()

    def close(self) -> None:
        self._standing.close()

    def getter(
        self, pieces: Sequence[Piece], direct: GetPiece, wanted: Callable[[], bool]
    ) -> GetPiece:
        """What gets the payload of each of `pieces`; `direct` asks the coordinator. Raises GaveUp
        when it is not wanted any more, and what `direct` does."""
        size = sum(piece.stored_bytes for piece in pieces)
        if size < LEAST_BYTES:
            return direct
        self._standing.settle()
        if self._standing.identity is None:
            return direct
        if size <= self._shelf.most_bytes // 2:
            self._stock(pieces, direct, wanted)
        hunt = _Hunt(self._standing, self._shelf, (piece.sha256 for piece in pieces))

        def get(piece: Piece) -> bytes:
            payload = self._shelf.get(piece.sha256) or hunt.from_peers(piece)
            if payload is None:
                payload = direct(piece)
                self._put(piece, payload)
            hunt.drop(piece.sha256)
            return payload

        return get

    def _stock(self, pieces: Sequence[Piece], direct: GetPiece, wanted: Callable[[], bool]) -> None:
        """Put all of `pieces` on the shelf, or what fits."""
        left = [piece for piece in pieces if piece.sha256 not in self._shelf]
        self._random.shuffle(left)
        hunt = _Hunt(self._standing, self._shelf, (piece.sha256 for piece in left))
        while left:
            if not wanted():
                raise GaveUp
            held = hunt.held()
            left.sort(key=lambda one: one.sha256 not in held)  # stable: else in its own order
            piece = next((one for one in left if hunt.from_peers(one) is not None), None)
            if piece is None:
                piece = next((one for one in left if one.sha256 not in held), left[0])
                if not self._put(piece, direct(piece)):
                    return
            left.remove(piece)
            hunt.drop(piece.sha256)

    def _put(self, piece: Piece, payload: bytes) -> bool:
        """Only what is right: who joins the pieces sees any damage, and others must not get it."""
        if hashlib.sha256(payload).hexdigest() != piece.sha256:
            return False
        if not self._shelf.put(piece.sha256, payload):
            return False
        self._standing.tell_soon()
        return True


class _Hunt:
    """Looking for objects among peers, for one fetch."""

    def __init__(self, standing: Standing, shelf: Shelf, wanted: Iterable[str]) -> None:
        self._standing = standing
        self._shelf = shelf
        self._wanted = dict.fromkeys(wanted)
        self._places: list[PeerPlace] = []
        self._asked_s: float | None = None

    def held(self) -> set[str]:
        """Which of the objects that are still wanted some peer has."""
        now_s = time.monotonic()
        if self._wanted and (self._asked_s is None or now_s - self._asked_s > ASKED_LATELY_S):
            self._places = self._standing.ask(list(self._wanted))
            self._asked_s = now_s
        return {
            sha256
            for place in self._places
            if not self._standing.shuns(place.id)
            for sha256 in place.has
            if sha256 in self._wanted
        }

    def from_peers(self, piece: Piece) -> bytes | None:
        """The object, put on the shelf too; None where no peer gives it now."""
        if piece.sha256 not in self.held():
            return None
        for place in self._places:
            if piece.sha256 in place.has and not self._standing.shuns(place.id):
                payload = self._try(place, piece)
                if payload is not None:
                    return payload
        return None

    def drop(self, sha256: str) -> None:
        """It is here now."""
        self._wanted.pop(sha256, None)

    def _try(self, place: PeerPlace, piece: Piece) -> bytes | None:
        identity = self._standing.identity
        if identity is None:
            return None
        got = fetch(place, piece.sha256, piece.stored_bytes, identity.client)
        if isinstance(got, Trouble):
            log.info("peer_failed", peer=place.id, address=place.address, trouble=got.value)
            if got is not Trouble.BUSY:
                self._standing.failed(place.id)
            return None
        log.info("from_peer", object=piece.sha256[:12], peer=place.id, bytes=len(got))
        self._standing.got(len(got))
        if self._shelf.put(piece.sha256, got):
            self._standing.tell_soon()
        return got
