"""All parts together: a worker that has one version comes to another with what changed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from officegrid.bundles.archive import extract_archive, make_archive
from officegrid.bundles.delta import apply_delta, make_delta
from officegrid.bundles.pieces import cut, join
from officegrid.core.fetchplan import KnownDelta, plan_fetch
from officegrid.wire.archives import ArchiveSpec, DeltaSpec, Piece


class Coordinator:
    """Its store, and what it knows of versions and deltas."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.objects: dict[str, bytes] = {}
        self.archives: list[ArchiveSpec] = []
        self.deltas: list[DeltaSpec] = []
        self.served_bytes = 0

    def _keep(self, path: Path, *, plain: bool = False) -> list[Piece]:
        pieces = []
        for one in cut(path, piece_bytes=50_000, plain=plain):
            self.objects[one.piece.sha256] = one.payload
            pieces.append(one.piece)
        return pieces

    def push(self, source: Path) -> ArchiveSpec:
        stream = self.folder / f"stream-{len(self.archives)}"
        facts = make_archive(source, stream)
        spec = facts.spec(self._keep(stream))
        if self.archives:
            before = self.archives[-1]
            old, delta = self.folder / "old", self.folder / "delta"
            join(before.pieces, lambda piece: self.objects[piece.sha256], old, before.raw_sha256)
            made = make_delta(old, stream, delta)
            self.deltas.append(made.spec(before, spec, self._keep(delta, plain=True)))
        self.archives.append(spec)
        return spec

    def get(self, piece: Piece) -> bytes:
        self.served_bytes += piece.stored_bytes
        return self.objects[piece.sha256]


class Worker:
    """What it has lies unpacked; the streams are made again when they are needed."""

    def __init__(self, folder: Path, coordinator: Coordinator) -> None:
        self.folder = folder
        self.coordinator = coordinator
        self.folder.mkdir()

    def fetch(self, wanted: ArchiveSpec) -> Path:
        here = self.coordinator
        known = {(delta.old, delta.new): delta for delta in here.deltas}
        plan = plan_fetch(
            wanted.digest,
            [path.name for path in self.folder.iterdir()],
            [KnownDelta(one.old, one.new, one.stored_bytes) for one in here.deltas],
            wanted.stored_bytes,
        )
        target = self.folder / wanted.digest
        work = self.folder.with_suffix(".work")
        work.mkdir()
        stream = work / "stream"
        if plan.start is None:
            join(wanted.pieces, here.get, stream, wanted.raw_sha256)
        else:
            make_archive(self.folder / plan.start, stream, everything=True)
            for number, step in enumerate(plan.deltas):
                delta, after = known[step.old, step.new], work / f"{number}"
                join(delta.pieces, here.get, work / "delta", delta.sha256, plain=True)
                apply_delta(stream, work / "delta", after)
                after.replace(stream)
        extract_archive(stream, wanted.kind, target)
        shutil.rmtree(work)
        return target


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_three_versions_on(tmp_path: Path, kind: str) -> None:
    chance = random.Random(3)
    coordinator = Coordinator(tmp_path / "store")
    worker = Worker(tmp_path / "worker", coordinator)
    lines = [b"%x\n" % chance.getrandbits(200) for _ in range(8000)]
    source = tmp_path / "data"
    changing = source
    if kind == "folder":
        source.mkdir()
        (source / "run").write_bytes(b"#!/bin/sh\n")
        (source / "run").chmod(0o755)
        (source / "link").symlink_to("run")
        changing = source / "table.txt"
    for version in range(4):
        lines.insert(chance.randrange(len(lines)), b"version %d\n" % version)
        changing.write_bytes(b"".join(lines))
        spec = coordinator.push(source)
        if version == 0:
            assert worker.fetch(spec).name == spec.digest
            assert coordinator.served_bytes == spec.stored_bytes
    before = coordinator.served_bytes
    target = worker.fetch(spec)
    assert coordinator.served_bytes - before < 3 * 2000 < spec.stored_bytes / 10
    found = target / "table.txt" if kind == "folder" else target
    assert found.read_bytes() == b"".join(lines)
    if kind == "folder":
        assert (target / "link").resolve() == (target / "run").resolve()
        assert (target / "run").stat().st_mode & 0o777 == 0o755


def test_a_spec_is_only_of_its_own_archives(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path / "store")
    (tmp_path / "data").write_bytes(b"one")
    first = coordinator.push(tmp_path / "data")
    (tmp_path / "data").write_bytes(b"two")
    second = coordinator.push(tmp_path / "data")
    delta = make_delta(tmp_path / "store/stream-0", tmp_path / "store/stream-1", tmp_path / "d")
    pieces = [one.piece for one in cut(tmp_path / "d", plain=True)]
    assert delta.spec(first, second, pieces) == coordinator.deltas[0]
    with pytest.raises(ValueError, match="other archives"):
        delta.spec(second, first, pieces)
