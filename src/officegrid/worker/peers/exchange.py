"""Objects from other workers on the same network, and from the coordinator what they lack.

Nothing depends on peers: what none of them gives at once comes from the coordinator. A worker takes
objects in an order of its own, those first that a peer has. So ten workers that begin at once each
fetch another part from the coordinator, and the rest from one another. What is too large for the
shelf is taken in parts.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from officegrid.wire.archives import Piece
from officegrid.wire.peers import MOST_WANTED, PeerPlace
from officegrid.worker.link import GaveUp, Link
from officegrid.worker.log import get_logger
from officegrid.worker.peers.client import Trouble, fetch
from officegrid.worker.peers.shelf import Shelf
from officegrid.worker.peers.standing import Standing

log = get_logger("peers")

LEAST_BYTES = 256 * 1024
"""For less, finding a peer takes longer than the coordinator does."""
SHELF_BYTES = 1024**3
ASK_EVERY_S = 0.5
BUSY_S = 1.5
MARGIN_BYTES = 64 * 1024 * 1024

GetPiece = Callable[[Piece], bytes]


class Peers:
    """`start` once, `close` at the end; `getter` from any thread between."""

    def __init__(self, link: Link, folder: Path, port: int, most_bytes: int = SHELF_BYTES) -> None:
        """`port`: where to listen, 0 for any free one. `folder` is the worker's own. Raises
        OSError."""
        self._shelf = Shelf(folder / "shelf", most_bytes)
        self._standing = Standing(link, folder, port, self._shelf)

    def start(self) -> None:
        self._standing.start()

    def close(self) -> None:
        self._standing.close()

    def getter(
        self, pieces: Sequence[Piece], direct: GetPiece, wanted: Callable[[], bool]
    ) -> GetPiece:
        """What gets the payload of each of `pieces`, in their order; `direct` asks the coordinator.
        It raises GaveUp when it is not wanted any more, and what `direct` does."""
        if sum(piece.stored_bytes for piece in pieces) < LEAST_BYTES:
            return direct
        self._standing.settle()
        if self._standing.identity is None:
            return direct
        return _Fetch(self._standing, self._shelf, pieces, direct, wanted).get


class _Fetch:
    """One row of pieces on its way here."""

    def __init__(
        self, standing: Standing, shelf: Shelf, pieces: Sequence[Piece], direct: GetPiece,
        wanted: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._standing = standing
        self._shelf = shelf
        self._coming = list(pieces)
        self._direct = direct
        self._wanted = wanted
        self._random = random.Random()
        self._having: dict[str, list[PeerPlace]] = {}
        self._asked_s = float("-inf")
        self._busy_until_s: dict[str, float] = {}
        self._lost: set[tuple[str, str]] = set()
        # The stream itself, and what it is unpacked to, need their space more than the shelf does.
        self._spare_bytes = 2 * sum(piece.raw_bytes for piece in pieces) + MARGIN_BYTES
        largest = max(piece.stored_bytes for piece in pieces)
        self._has_room = shelf.leave_free(self._spare_bytes + largest)

    def get(self, piece: Piece) -> bytes:
        """The payload of the next piece; those before it are not asked for again."""
        while self._coming and self._coming[0].sha256 != piece.sha256:
            self._coming.pop(0)
        if piece.sha256 not in self._shelf and self._has_room:
            self._stock()
        payload = self._shelf.get(piece.sha256)
        if payload is None:
            self._look(self._coming)
            payload = self._from_peers(piece) or self._from_coordinator(piece)
        return payload

    def _stock(self) -> None:
        """Put the pieces that come next on the shelf, or as many as have room there."""
        left = self._next_part()
        self._shelf.prefer(piece.sha256 for piece in left)
        left = [piece for piece in left if piece.sha256 not in self._shelf]
        self._random.shuffle(left)
        while left and self._has_room:
            if not self._wanted():
                raise GaveUp
            self._look(left)
            piece = next((one for one in left if self._from_peers(one) is not None), None)
            if piece is None:
                piece = next((one for one in left if one.sha256 not in self._having), left[0])
                self._from_coordinator(piece)
            left.remove(piece)

    def _next_part(self) -> list[Piece]:
        """The next pieces, each once, that a quarter of the shelf takes."""
        found: dict[str, Piece] = {}
        size = 0
        for piece in self._coming:
            size += piece.stored_bytes
            if found and size > self._shelf.most_bytes // 4:
                break
            found[piece.sha256] = piece
        return list(found.values())

    def _look(self, wanted: Sequence[Piece]) -> None:
        """Ask who has what of these, unless that was asked a moment ago."""
        if time.monotonic() - self._asked_s < ASK_EVERY_S:
            return
        found = self._standing.ask([piece.sha256 for piece in wanted[:MOST_WANTED]])
        if found is not None:
            self._having = {}
            for place in found:
                for sha256 in place.has:
                    self._having.setdefault(sha256, []).append(place)
        self._asked_s = time.monotonic()

    def _from_peers(self, piece: Piece) -> bytes | None:
        """The object, put on the shelf too; None where no peer gives it now."""
        for place in self._having.get(piece.sha256, ()):
            if self._may_ask(place, piece):
                if not self._wanted():
                    raise GaveUp
                payload = self._try(place, piece)
                if payload is not None:
                    return payload
        return None

    def _may_ask(self, place: PeerPlace, piece: Piece) -> bool:
        return (
            (place.id, piece.sha256) not in self._lost
            and time.monotonic() >= self._busy_until_s.get(place.id, float("-inf"))
            and not self._standing.shuns(place.id)
        )

    def _try(self, place: PeerPlace, piece: Piece) -> bytes | None:
        identity = self._standing.identity
        if identity is None:
            return None
        got = fetch(place, piece.sha256, piece.stored_bytes, identity.client)
        if isinstance(got, bytes):
            log.info("from_peer", object=piece.sha256[:12], peer=place.id, bytes=len(got))
            self._standing.got(len(got))
            self._put(piece, got)
            return got
        if got is Trouble.BUSY:
            self._busy_until_s[place.id] = time.monotonic() + self._random.uniform(1, 2) * BUSY_S
            return None
        log.info("peer_failed", peer=place.id, address=place.address, trouble=got.value)
        if got is Trouble.LACKS:
            self._lost.add((place.id, piece.sha256))
        else:
            self._standing.shun(place.id, report=got is Trouble.FAILED)
        return None

    def _from_coordinator(self, piece: Piece) -> bytes:
        payload = self._direct(piece)
        # Only what is right: who joins the pieces sees any damage, and others must not get it.
        if hashlib.sha256(payload).hexdigest() == piece.sha256:
            self._put(piece, payload)
        return payload

    def _put(self, piece: Piece, payload: bytes) -> None:
        self._has_room = self._shelf.put(piece.sha256, payload, self._spare_bytes)
        if self._has_room:
            self._standing.tell_soon()
