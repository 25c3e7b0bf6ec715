"""New versions beside a delta that takes long, on a disk that is too small, and at a stop."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd

from officegrid.bundles.archive import DEFAULT_MAX_BYTES
from officegrid.bundles.pack import pack_folder
from officegrid.coordinator import publish
from officegrid.coordinator.api.archives import _check_pieces
from officegrid.coordinator.app import make_app, open_coordinator
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import LimitError, UnavailableError
from officegrid.storage.api import Delta
from officegrid.wire.archives import ArchiveSpec, Piece

MIB = 1024 * 1024


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Coordinator]:
    made = open_coordinator(tmp_path / "grid", names=["localhost"])
    yield made
    made.writer.stop()
    made.storage.close()


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What holds a thread up until the test is over, if not before."""
    made = threading.Event()
    yield made
    made.set()


def _bundle(here: Coordinator, folder: Path, text: str) -> str:
    (folder / text).mkdir()
    (folder / text / "program.py").write_text(f"{text} = 1\n" * 1000)
    (folder / text / "large.bin").write_bytes(hashlib.shake_128(b"same").digest(100_000))
    bundle = pack_folder(folder / text)
    here.objects.put(bundle.sha256, [bundle.payload], max_bytes=MIB)
    return bundle.sha256


def _deltas(here: Coordinator, digest: str) -> list[Delta]:
    return here.storage.read(lambda tx: tx.deltas_to(digest))


async def _busy(here: Coordinator, go_on: threading.Event) -> asyncio.Task[bool]:
    """Somebody's large delta is being made."""
    begun = threading.Event()

    def work() -> bool:
        begun.set()
        return go_on.wait(60)

    task = asyncio.create_task(here.deltas.turn.run(work))
    await asyncio.to_thread(begun.wait, 20)
    return task


def test_a_job_does_not_wait_for_the_delta_of_another_and_gets_its_own_later(
    here: Coordinator, tmp_path: Path, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "DELTA_PATIENCE_S", 0.05)
    one, two = _bundle(here, tmp_path, "one"), _bundle(here, tmp_path, "two")

    async def go() -> None:
        await publish.add_code(here, "job", one, by="x", origin="")
        busy = await _busy(here, go_on)
        async with asyncio.timeout(20):
            prepared = await publish.prepare_code(here, "job", two)
            await here.write(lambda tx: publish.keep(tx, prepared.archive, prepared.delta))
        publish.keep_later(here, prepared)
        assert not busy.done()
        assert _deltas(here, two) == []
        go_on.set()
        async with asyncio.timeout(20):
            await here.tasks.ended()
            await busy

    asyncio.run(go())
    assert [delta.old for delta in _deltas(here, two)] == [one]


def test_pushes_that_wait_for_their_delta_take_no_thread_from_requests(
    here: Coordinator, tmp_path: Path, go_on: threading.Event
) -> None:
    one, two = _bundle(here, tmp_path, "one"), _bundle(here, tmp_path, "two")

    async def go() -> None:
        await publish.add_code(here, "job", one, by="x", origin="")
        archive = (await publish.prepare_code(here, "job", two)).archive
        await here.write(lambda tx: tx.put_archive(archive))
        busy = await _busy(here, go_on)
        pushes = [
            asyncio.create_task(publish.make_delta(here, "code", "job", archive)) for _ in range(60)
        ]
        for _ in range(200):
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            assert await here.read(lambda tx: tx.archive(two)) == archive
        assert not busy.done()
        here.deltas.turn.close()
        go_on.set()
        ended = await asyncio.gather(*pushes, return_exceptions=True)
        assert {type(one) for one in ended} == {UnavailableError}, "they are told of a stop"

    asyncio.run(go())


def _zeros(here: Coordinator, times: int) -> ArchiveSpec:
    """A data set that is one small piece, over and over."""
    raw = bytes(MIB)
    payload = zstd.compress(raw)
    sha256 = here.objects.put_bytes(payload)
    digest = hashlib.sha256()
    for _ in range(min(times, 64)):
        digest.update(raw)
    piece = Piece(sha256=sha256, stored_bytes=len(payload), raw_bytes=len(raw))
    return ArchiveSpec(
        kind="file", raw_bytes=times * MIB, raw_sha256=digest.hexdigest(), files=1,
        pieces=[piece] * times,
    )  # fmt: skip


def test_a_data_set_that_no_worker_would_unpack_is_refused(here: Coordinator) -> None:
    most = DEFAULT_MAX_BYTES // MIB
    _check_pieces(here, _zeros(here, most))
    with pytest.raises(LimitError, match="too large"):
        _check_pieces(here, _zeros(here, most + 1))


def test_no_delta_is_made_where_the_disk_has_no_room_for_the_streams(
    here: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = _zeros(here, 1), _zeros(here, 4)

    async def push(spec: ArchiveSpec) -> None:
        await publish.add_data(here, "d", spec, by="x", origin="", file_name="a")

    monkeypatch.setattr("officegrid.coordinator.deltas.RESERVE_BYTES", 2**60)
    asyncio.run(push(small))
    asyncio.run(push(large))
    assert _deltas(here, large.digest) == []
    assert list(here.folder.glob(".delta-*")) == []


def _is_closed(here: Coordinator) -> bool:
    with pytest.raises(UnavailableError):
        here.storage.read(lambda tx: tx.archives())
    with pytest.raises(UnavailableError):
        here.writer.submit(lambda tx: None)
    return True


@pytest.mark.parametrize("how", ["hangs", "fails", "is cancelled"])
def test_the_application_closes_its_database_whatever_its_parts_do(
    here: Coordinator, how: str, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(one: Coordinator) -> None:
        await one.deltas.inflating.run(lambda: go_on.wait(60))

    async def fails(_: Coordinator) -> None:
        raise RuntimeError("a bug")

    async def is_cancelled(_: Coordinator) -> None:
        raise asyncio.CancelledError

    ways: dict[str, Callable[[Coordinator], object]] = {
        "hangs": hangs, "fails": fails, "is cancelled": is_cancelled,
    }  # fmt: skip
    monkeypatch.setattr("officegrid.coordinator.refresh.run", ways[how])
    monkeypatch.setattr("officegrid.coordinator.app.STOP_WITHIN_S", 0.3)
    app = make_app(here)

    async def go() -> None:
        async with asyncio.timeout(30), app.router.lifespan_context(app):
            await here.read(lambda tx: tx.archives())

    asyncio.run(go())
    assert _is_closed(here)
