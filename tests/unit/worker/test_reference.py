"""Reference data on a disk: whole or not there, kept while it fits, never dropped in use."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

import pytest

from officegrid.bundles.archive import make_archive
from officegrid.bundles.delta import make_delta
from officegrid.bundles.pieces import cut
from officegrid.core.errors import NotFoundError, ProgramError, UnavailableError
from officegrid.wire.archives import ArchiveSpec, DeltaSpec, Piece
from officegrid.wire.catalogue import FetchWay
from officegrid.wire.work import UnitData
from officegrid.worker import reference
from officegrid.worker.link import GaveUp, Link
from officegrid.worker.reference import CACHE_VARIABLE, ReferenceData

T = TypeVar("T")
PIECE_BYTES = 1000


class Store:
    """Stands where the coordinator is; counts what travels."""

    peers = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.objects: dict[str, bytes] = {}
        self.ways: dict[str, FetchWay] = {}
        self.deltas: dict[tuple[str, str], DeltaSpec] = {}
        self.sent: list[str] = []
        self.before_object: Callable[[], None] = lambda: None

    def _keep(self, path: Path, *, plain: bool) -> list[Piece]:
        pieces = []
        for one in cut(path, piece_bytes=PIECE_BYTES, plain=plain):
            self.objects[one.piece.sha256] = one.payload
            pieces.append(one.piece)
        return pieces

    def push(self, source: Path, name: str, n: int) -> UnitData:
        stream = self._folder / f"{name}-{n}"
        made = make_archive(source, stream)
        spec = ArchiveSpec(
            kind=made.kind, raw_bytes=made.raw_bytes, raw_sha256=made.raw_sha256,
            files=made.files, pieces=self._keep(stream, plain=False),
        )  # fmt: skip
        self.ways[spec.digest] = FetchWay(digest=spec.digest, spec=spec, bytes=spec.stored_bytes)
        before = self._folder / f"{name}-{n - 1}"
        data = UnitData(digest=spec.digest, name=name, n=n, file_name=source.name)
        if before.exists():
            delta = self._folder / "delta"
            facts = make_delta(before, stream, delta)
            old = next(d for d, w in self.ways.items() if w.spec and _is(w.spec, before))
            step = DeltaSpec(
                old=old, new=spec.digest, sha256=facts.sha256, stored_bytes=facts.stored_bytes,
                pieces=self._keep(delta, plain=True), memory_bytes=facts.memory_bytes,
            )  # fmt: skip
            self.deltas[old, spec.digest] = step
        return data

    def way(self, archive: str, have: list[str]) -> FetchWay:
        whole = self.ways.get(archive)
        if whole is None:
            raise NotFoundError("There is no such archive.")
        for old in have:
            step = self.deltas.get((old, archive))
            if step is not None:
                return whole.model_copy(
                    update={"start": old, "deltas": [step], "bytes": step.stored_bytes}
                )
        return whole

    def archive_object(self, archive: str, sha256: str, max_bytes: int) -> bytes:
        self.before_object()
        self.sent.append(sha256)
        return self.objects[sha256]

    def patiently(self, request: Callable[[], T], wanted: Callable[[], bool]) -> T:
        return request()


def _is(spec: ArchiveSpec, stream: Path) -> bool:
    import hashlib

    return spec.raw_sha256 == hashlib.sha256(stream.read_bytes()).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _file(tmp_path: Path, seed: int, size: int = 5000) -> Path:
    path = tmp_path / "table.csv"
    lines = [f"{(seed * 7919 + n) % 9973},{n}\n" for n in range(size // 10)]
    path.write_text("".join(lines))
    return path


def _ready(data: ReferenceData, store: Store, slot: int, **sets: UnitData) -> dict[str, Path]:
    found = data.ready(cast(Link, store), slot, sets, lambda: True)
    return {key: Path(place) for key, place in found.items()}


def test_a_file_is_there_under_its_name_and_a_folder_as_it_was(
    tmp_path: Path, store: Store
) -> None:
    folder = tmp_path / "rules"
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    source = _file(tmp_path, 1)
    table, rules = store.push(source, "table", 1), store.push(folder, "rules", 1)
    found = _ready(ReferenceData(tmp_path / "w"), store, 0, table=table, rules=rules)
    assert found["OFFICEGRID_DATA_TABLE"].name == "table.csv"
    assert found["OFFICEGRID_DATA_TABLE"].read_bytes() == source.read_bytes()
    place = found["OFFICEGRID_DATA_RULES"]
    assert os.access(place / "run.sh", os.X_OK)
    assert (place / "deep" / "empty").is_dir()
    assert (place / "link").read_text() == "#!/bin/sh\n"
    # A worker that starts again finds it, and the same content under another name.
    store.sent.clear()
    other = table.model_copy(update={"file_name": "other.csv"})
    again = _ready(ReferenceData(tmp_path / "w"), store, 0, table=other)
    assert again["OFFICEGRID_DATA_TABLE"].name == "other.csv"
    assert again["OFFICEGRID_DATA_TABLE"].read_bytes() == source.read_bytes()
    assert store.sent == []


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "nul\0"])
def test_a_name_never_leads_out_of_its_folder(tmp_path: Path, store: Store, name: str) -> None:
    data = store.push(_file(tmp_path, 1), "table", 1).model_copy(update={"file_name": name})
    found = _ready(ReferenceData(tmp_path / "w"), store, 0, table=data)["OFFICEGRID_DATA_TABLE"]
    assert found.name == "data"
    assert found.resolve().is_relative_to(tmp_path / "w" / "data" / data.digest)


def test_a_new_version_comes_as_a_delta_and_a_spoiled_old_one_costs_a_full_fetch(
    tmp_path: Path, store: Store
) -> None:
    first = store.push(_file(tmp_path, 1), "table", 1)
    kept = ReferenceData(tmp_path / "w")
    old = _ready(kept, store, 0, table=first)["OFFICEGRID_DATA_TABLE"]
    source = tmp_path / "table.csv"
    source.write_text("new,row\n" + source.read_text())
    second = store.push(source, "table", 2)
    store.sent.clear()
    found = _ready(kept, store, 0, table=second)["OFFICEGRID_DATA_TABLE"]
    assert found.read_bytes() == source.read_bytes()
    assert store.sent == [one.sha256 for one in store.deltas[first.digest, second.digest].pieces]
    third_text = "newer,row\n" + source.read_text()
    source.write_text(third_text)
    third = store.push(source, "table", 3)
    # What the delta starts from is not what it says it is, and the file system does not show it.
    status = found.stat()
    found.chmod(0o644)
    found.write_bytes(found.read_bytes().replace(b"1", b"2"))
    os.utime(found, ns=(status.st_atime_ns, status.st_mtime_ns))
    got = _ready(kept, store, 0, table=third)["OFFICEGRID_DATA_TABLE"]
    assert got.read_text() == third_text
    assert old.exists(), "what is not in the way stays"


def test_the_least_used_goes_first_and_what_a_slot_uses_stays(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "0.000012")  # two of them
    sets = [store.push(_file(tmp_path, n), f"t{n}", 1) for n in range(4)]
    kept = ReferenceData(tmp_path / "w")
    places = [_ready(kept, store, 0, t=sets[0]), _ready(kept, store, 1, t=sets[1])]
    for n, age in ((0, 50), (1, 40)):
        home = tmp_path / "w" / "data" / sets[n].digest
        os.utime(home, (home.stat().st_atime, home.stat().st_mtime - age))
    kept.release(1)
    _ready(kept, store, 1, t=sets[2])
    assert places[0]["OFFICEGRID_DATA_T"].exists(), "slot 0 still uses it"
    _ready(kept, store, 1, t=sets[3])
    here = {path.name for path in (tmp_path / "w" / "data").iterdir()}
    assert sets[0].digest in here
    assert sets[1].digest not in here


def test_what_was_not_used_for_a_month_goes(tmp_path: Path, store: Store) -> None:
    first, second = (store.push(_file(tmp_path, n), f"t{n}", 1) for n in range(2))
    kept = ReferenceData(tmp_path / "w")
    place = _ready(kept, store, 0, t=first)["OFFICEGRID_DATA_T"]
    kept.release(0)
    os.utime(tmp_path / "w" / "data" / first.digest, (0, 0))
    _ready(kept, store, 0, t=second)
    assert not place.exists()


def test_data_that_is_gone_or_damaged_holds_the_job_and_not_the_record(
    tmp_path: Path, store: Store
) -> None:
    data = store.push(_file(tmp_path, 1), "table", 1)
    spec = store.ways[data.digest].spec
    assert spec is not None
    store.objects[spec.pieces[2].sha256] = b"something else"
    kept = ReferenceData(tmp_path / "w")
    with pytest.raises(ProgramError, match="damaged"):
        _ready(kept, store, 0, table=data)
    assert list((tmp_path / "w" / "data").iterdir()) == []
    del store.ways[data.digest]
    with pytest.raises(ProgramError, match=r"The data 't' \(table version 1\) cannot be used"):
        _ready(kept, store, 0, t=data)


def test_a_full_disk_is_this_machines_trouble_and_leaves_nothing_half_done(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = store.push(_file(tmp_path, 1), "table", 1)
    kept = ReferenceData(tmp_path / "w")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(reference, "make_durable", full)
        with pytest.raises(UnavailableError, match="cannot be put in place"):
            _ready(kept, store, 0, table=data)
    assert list((tmp_path / "w" / "data").iterdir()) == []
    assert _ready(kept, store, 0, table=data)["OFFICEGRID_DATA_TABLE"].exists()


CHILD = """
import pickle, sys
from pathlib import Path
from officegrid.worker.reference import ReferenceData
sys.path.insert(0, {tests!r})
from test_reference import Store
store, data, work, stop = pickle.load(open({state!r}, "rb"))
left = [stop]
def before():
    left[0] -= 1
    if left[0] < 0:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
store.before_object = before
ReferenceData(Path(work)).ready(store, 0, {{"t": data}}, lambda: True)
"""


def test_a_fetch_that_was_killed_goes_on_where_it_was(tmp_path: Path, store: Store) -> None:
    import pickle

    source = _file(tmp_path, 1, size=20_000)
    data = store.push(source, "table", 1)
    spec = store.ways[data.digest].spec
    assert spec is not None
    assert len(spec.pieces) > 5
    del store.before_object
    for stop in (1, 3):
        state = tmp_path / "state"
        state.write_bytes(pickle.dumps((store, data, str(tmp_path / "w"), stop)))
        code = textwrap.dedent(CHILD).format(tests=str(Path(__file__).parent), state=str(state))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list((tmp_path / "w" / "data").iterdir()) == []
    store.before_object = lambda: None
    found = _ready(ReferenceData(tmp_path / "w"), store, 0, t=data)["OFFICEGRID_DATA_T"]
    assert found.read_bytes() == source.read_bytes()
    assert len(store.sent) == len(spec.pieces) - 4, "1 and then 3 more were here already"


def _rules(tmp_path: Path) -> Path:
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "a.csv").write_text("a\n")
    (folder / "b.csv").write_text("b\n")
    return folder


def _change(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("changed\n")


def test_changed_data_stays_under_the_program_of_another_slot(tmp_path: Path, store: Store) -> None:
    data = {"t": store.push(_rules(tmp_path), "rules", 1)}
    kept = ReferenceData(tmp_path / "w")
    place = _ready(kept, store, 0, **data)["OFFICEGRID_DATA_T"]
    _ready(kept, store, 1, **data)
    working = os.open(place, os.O_RDONLY)
    _change(place / "a.csv")
    there = []
    store.before_object = lambda: there.append((place / "b.csv").exists())
    again = _ready(kept, store, 0, **data)["OFFICEGRID_DATA_T"]
    assert set(there) == {True}
    assert (again / "a.csv").read_text() == "a\n"
    assert sorted(os.listdir(working)) == ["a.csv", "b.csv"]
    assert kept.is_untouched(0, data)
    assert not kept.is_untouched(1, data), "its program has the changed one open"
    _ready(kept, store, 1, **data)
    assert kept.is_untouched(1, data)
    assert os.listdir(working) == []
    os.close(working)


def test_a_slot_that_waited_for_another_ones_fetch_starts_with_the_new_data(
    tmp_path: Path, store: Store
) -> None:
    data = {"t": store.push(_rules(tmp_path), "rules", 1)}
    kept = ReferenceData(tmp_path / "w")
    place = _ready(kept, store, 0, **data)["OFFICEGRID_DATA_T"]
    _ready(kept, store, 1, **data)
    _change(place / "a.csv")
    fetching, waiting = threading.Event(), threading.Event()

    def before() -> None:
        fetching.set()
        assert waiting.wait(60)

    def wanted() -> bool:  # asked again and again while it waits
        waiting.set()
        return True

    store.before_object = before
    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(_ready, kept, store, 0, **data)
        assert fetching.wait(60)
        kept.ready(cast(Link, store), 1, data, wanted)
        fetched.result(60)
    assert kept.is_untouched(1, data), "or its program would start twice"
    assert list((tmp_path / "w" / "data-partial").iterdir()) == []


def test_what_a_program_leaves_beside_a_file_is_never_taken_for_it(
    tmp_path: Path, store: Store
) -> None:
    source = _file(tmp_path, 1)
    data = store.push(source, "table", 1)
    kept = ReferenceData(tmp_path / "w")
    first = _ready(kept, store, 0, t=data)["OFFICEGRID_DATA_T"]
    first.parent.chmod(0o755)
    for word in ("wal", "shm", "journal", "lock", "tmp", "bak"):
        first.with_name(f"table.csv-{word}").write_text("junk")
    first.with_name("taken.csv").write_text("junk")
    first.with_name("folder.csv").mkdir()
    first.with_name("link.csv").symlink_to("taken.csv")
    for name in ("other.csv", "taken.csv", "folder.csv", "link.csv", "table.csv"):
        under = data.model_copy(update={"file_name": name})
        found = _ready(kept, store, 0, t=under)["OFFICEGRID_DATA_T"]
        assert found.name == name
        assert found.read_bytes() == source.read_bytes()
    source.write_text("new,row\n" + source.read_text())
    found = _ready(kept, store, 0, t=store.push(source, "table", 2))["OFFICEGRID_DATA_T"]
    assert found.read_bytes() == source.read_bytes()
    assert len(store.sent) > len(store.deltas), "the start of the delta was the file itself"


def test_a_disk_that_refuses_is_this_machines_trouble(tmp_path: Path, store: Store) -> None:
    source = _file(tmp_path, 1)
    first = store.push(source, "table", 1)
    kept = ReferenceData(tmp_path / "w")
    _ready(kept, store, 0, t=first)
    source.write_text("new,row\n" + source.read_text())
    second = store.push(source, "table", 2)
    aside = tmp_path / "w" / "data-partial"
    aside.rmdir()
    aside.touch()
    with pytest.raises(UnavailableError, match="cannot be put in place"):
        _ready(kept, store, 0, t=second)
    aside.unlink()
    aside.mkdir()
    assert _ready(kept, store, 0, t=second)["OFFICEGRID_DATA_T"].read_bytes() == source.read_bytes()


def test_a_slot_waits_only_for_a_fetch_of_what_it_wants_itself(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "0.000001")  # room for nothing that is not used
    sets = [store.push(_file(tmp_path, n), f"t{n}", 1) for n in range(3)]
    kept = ReferenceData(tmp_path / "w")
    here = _ready(kept, store, 1, t=sets[1])["OFFICEGRID_DATA_T"]
    fetching, go_on = threading.Event(), threading.Event()
    this = threading.get_ident()

    def before() -> None:
        if threading.get_ident() != this:
            fetching.set()
            assert go_on.wait(60)

    store.before_object = before
    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(_ready, kept, store, 0, t=sets[0])
        try:
            assert fetching.wait(60)
            assert _ready(kept, store, 1, t=sets[1])["OFFICEGRID_DATA_T"] == here
            other = _ready(kept, store, 2, t=sets[2])["OFFICEGRID_DATA_T"]
            with pytest.raises(GaveUp):
                kept.ready(cast(Link, store), 3, {"t": sets[0]}, lambda: False)
            kept.release(1)
            _ready(kept, store, 2, t=sets[1])
        finally:
            go_on.set()
        assert fetched.result(60)["OFFICEGRID_DATA_T"].exists()
    assert here.exists()
    assert other.exists()


def test_a_set_of_no_bytes_and_a_folder_of_no_files(tmp_path: Path, store: Store) -> None:
    (tmp_path / "none.csv").touch()
    (tmp_path / "hollow" / "deep").mkdir(parents=True)
    data = {
        "none": store.push(tmp_path / "none.csv", "none", 1),
        "hollow": store.push(tmp_path / "hollow", "hollow", 1),
    }
    kept = ReferenceData(tmp_path / "w")
    found = _ready(kept, store, 0, **data)
    assert found["OFFICEGRID_DATA_NONE"].read_bytes() == b""
    deep = found["OFFICEGRID_DATA_HOLLOW"] / "deep"
    assert deep.is_dir()
    assert kept.is_untouched(0, data)
    deep.parent.chmod(0o755)
    deep.rmdir()
    assert not kept.is_untouched(0, data)
    assert _ready(kept, store, 0, **data) == found
    assert deep.is_dir()
