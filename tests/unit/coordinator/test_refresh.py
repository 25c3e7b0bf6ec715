"""Data that is kept fresh: odd troubles are told, a roll-back stays, lost pieces come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from officegrid.bundles.archive import make_archive
from officegrid.bundles.pieces import cut
from officegrid.coordinator import publish, refresh
from officegrid.coordinator.app import open_coordinator
from officegrid.coordinator.config import CoordinatorConfig
from officegrid.coordinator.service import versions
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import InputError, OfficeGridError, UnavailableError
from officegrid.storage.api import Version

Open = Callable[[dict[str, str]], Coordinator]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    made: list[Coordinator] = []

    def make(source: dict[str, str]) -> Coordinator:
        config = CoordinatorConfig.model_validate({"data": {"x": source}})
        made.append(open_coordinator(tmp_path / "grid", names=["localhost"], config=config))
        return made[-1]

    yield make
    for one in made:
        one.writer.stop()
        one.storage.close()


def _newest(here: Coordinator) -> Version:
    found = here.storage.read(lambda tx: tx.version("data", "x"))
    assert found is not None
    return found


def _look(here: Coordinator) -> Version:
    asyncio.run(refresh.refresh(here, "x"))
    return _newest(here)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), UnavailableError),
        (ValueError("https://me:s3cret@host"), InputError),
    ],
)
def test_trouble_of_any_kind_is_told_and_waits_for_the_next_time(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception,
    told: type[OfficeGridError],
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise error

    here = opened({"path": str(tmp_path), "schedule": "0 3 1 1 *"})
    monkeypatch.setattr(refresh, "_store", fail)
    with pytest.raises(told):
        _look(here)
    known = here.storage.read(lambda tx: refresh.known(tx, "x"))
    assert "cannot be read or stored" in known.trouble
    assert "s3cret" not in known.trouble
    assert not asyncio.run(refresh._is_due(here, "x", here.config.data["x"]))


def test_a_version_that_was_rolled_back_comes_only_back_with_another_content(
    opened: Open, tmp_path: Path
) -> None:
    source = tmp_path / "rates.csv"
    here = opened({"path": str(source)})
    source.write_text("good\n")
    good = _look(here)
    source.write_text("bad\n")
    assert _look(here).digest != good.digest
    here.storage.write(lambda tx: versions.roll_back(tx, "data", "x", None, by="me", now=1.0))
    assert _look(here).digest == good.digest, "the source is as it was"
    source.write_text("better\n")
    assert (_look(here).n, _newest(here).pushed_by) == (4, "coordinator")


class _Server(HTTPServer):
    tag: str | None = '"one"'
    content = b"usd,1\n" * 50
    asked: list[str | None]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        had = self.headers.get("If-None-Match")
        self.server.asked.append(had)
        same = had is not None and had == self.server.tag
        self.send_response(304 if same else 200)
        if self.server.tag is not None:
            self.send_header("ETag", self.server.tag)
        self.end_headers()
        if not same:
            self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server(("127.0.0.1", 0), _Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_tag_that_the_server_no_longer_gives_is_not_used_again(
    opened: Open, server: _Server
) -> None:
    here = opened({"url": f"http://127.0.0.1:{server.server_port}/rates.csv"})
    _look(here)
    server.tag, server.content = None, b"usd,2\n"
    _look(here)
    server.tag = '"one"'  # which means something else by now
    _look(here)
    _look(here)
    assert server.asked == [None, '"one"', None, '"one"']


def test_a_piece_that_was_lost_is_fetched_again(opened: Open, server: _Server) -> None:
    here = opened({"url": f"http://127.0.0.1:{server.server_port}/rates.csv"})
    digest = _look(here).digest
    archive = here.storage.read(lambda tx: tx.archive(digest))
    assert archive is not None
    (piece,) = archive.spec["pieces"]
    here.objects.delete(piece["sha256"])
    assert _look(here).n == 1
    assert here.objects.size(piece["sha256"]) == piece["stored_bytes"]


def test_lost_content_that_comes_in_other_pieces_takes_their_place(
    opened: Open, tmp_path: Path
) -> None:
    here = opened({"path": str(tmp_path / "rates.csv")})
    (tmp_path / "rates.csv").write_text("usd,1\n" * 50)
    digest = _look(here).digest
    archive = here.storage.read(lambda tx: tx.archive(digest))
    assert archive is not None
    made = make_archive(tmp_path / "rates.csv", tmp_path / "stream")
    (plain,) = cut(tmp_path / "stream", plain=True)
    here.objects.put(plain.piece.sha256, [plain.payload], max_bytes=len(plain.payload))
    other = made.spec([plain.piece])

    def push() -> dict[str, Any]:
        asyncio.run(publish.add_data(here, "x", other, by="me", origin="", file_name="rates.csv"))
        found = here.storage.read(lambda tx: tx.archive(digest))
        assert found is not None
        return found.spec

    assert push() == archive.spec, "nothing is lost: workers may be fetching these"
    here.objects.delete(archive.spec["pieces"][0]["sha256"])
    assert push() == replace(archive, spec=other.model_dump(mode="json")).spec
    assert _newest(here).n == 1
