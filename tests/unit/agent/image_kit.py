"""A real HTTPS server that hands out images, and may do so badly; and images of random bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from officegrid.agent.images.fetch import MB, Pace, PacedConnection
from officegrid.coordinator.pki import Pki, ensure_pki
from officegrid.core.errors import NotFoundError
from officegrid.core.imageevents import Held, Order
from officegrid.wire.images import CHUNK_BYTES, ImageFile, ImageSpec
from unit.transport.loopback_servers import HEADERS, error_response, running

TOKEN = "ogt_0123456789012345678901234567890123456789"


@dataclass
class Shelf:
    """What the server has, and how it behaves."""

    pki: Pki
    url: str = ""
    specs: dict[str, ImageSpec] = field(default_factory=dict)
    chunks: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Whole files by image id."""
    asked: list[str] = field(default_factory=list)
    """Digests of chunks, as they were asked for."""
    damaged: list[str] = field(default_factory=list)
    """Chunks that are given out with a wrong byte, each once per mention."""
    away: bool = False

    def put(self, number: int, size: int, ext: str = "qcow2") -> tuple[Order, Held]:
        """An image of random bytes; the same number and size are the same image."""
        data = random.Random(number).randbytes(size)
        pieces = [data[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)]
        digests = [hashlib.sha256(piece).hexdigest() for piece in pieces]
        whole = hashlib.sha256(data).hexdigest()
        name = f"grid-{number}"
        file = ImageFile(name=f"{name}.{ext}", size=size, sha256=whole, chunks=digests)
        spec = ImageSpec(name=name, files={ext: file})  # type: ignore[dict-item]
        image_id = hashlib.sha256(
            json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()
        ).hexdigest()
        self.specs[image_id], self.files[image_id] = spec, data
        self.chunks.update(zip(digests, pieces, strict=True))
        held = Held(image_id, number, name, whole, ext, size)
        return Order(image_id, number, name), held

    async def spec(self, request: Request) -> Response:
        found = self.specs.get(request.path_params["id"])
        if found is None or self.away:
            return self._refuse()
        return Response(found.model_dump_json(), headers=HEADERS)

    async def chunk(self, request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        if sha256 not in self.chunks or self.away:
            return self._refuse()
        self.asked.append(sha256)
        data = self.chunks[sha256]
        if sha256 in self.damaged:
            self.damaged.remove(sha256)
            data = bytes([data[0] ^ 1]) + data[1:]
        return Response(data, headers=HEADERS)

    def _refuse(self) -> Response:
        if self.away:
            return Response("bad gateway", 502)
        return error_response(NotFoundError("There is no such thing."))


@contextlib.contextmanager
def open_shelf(folder: Path) -> Iterator[Shelf]:
    shelf = Shelf(ensure_pki(folder, [], time.time()))
    app = Starlette(
        routes=[
            Route("/v1/images/{id}/spec", shelf.spec),
            Route("/v1/image-chunks/{sha256}", shelf.chunk),
        ]
    )
    with running(app, shelf.pki) as port:
        shelf.url = f"https://127.0.0.1:{port}"
        yield shelf


def line_to(shelf: Shelf, rate_mb_s: float = 10_000.0) -> tuple[PacedConnection, Pace]:
    pace = Pace(lambda: rate_mb_s * MB)
    return PacedConnection(shelf.url, shelf.pki.ca_pem, TOKEN, pace), pace
