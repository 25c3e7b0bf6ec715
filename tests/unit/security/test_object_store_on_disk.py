"""The object store on a real disk: races, wrong bytes, a full disk, a killed writer."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import officegrid
from officegrid.coordinator.objects import ObjectStore
from officegrid.core.errors import InputError, LimitError, NotFoundError, UnavailableError

SOURCE = str(Path(officegrid.__file__).parents[1])
LIMIT = 10_000_000


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pieces(content: bytes, size: int = 1000) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path)


def test_what_is_put_can_be_read_from_anywhere(store: ObjectStore) -> None:
    content = os.urandom(5000)
    name = name_of(content)
    assert store.size(name) is None
    assert store.put(name, pieces(content), max_bytes=5000) == 5000
    assert store.size(name) == 5000
    assert store.path(name).read_bytes() == content
    for start in (0, 1, 4999, 5000):
        with store.open(name, start) as file:
            assert file.read() == content[start:]


def test_it_survives_reopening(store: ObjectStore, tmp_path: Path) -> None:
    name = store.put_bytes(b"kept")
    assert ObjectStore(tmp_path).size(name) == 4


def test_the_layout_is_the_documented_one(store: ObjectStore, tmp_path: Path) -> None:
    name = store.put_bytes(b"")
    assert store.path(name) == tmp_path / "objects" / name[:2] / name[2:]


def test_putting_twice_neither_reads_nor_writes(store: ObjectStore) -> None:
    name = store.put_bytes(b"once")
    inode = store.path(name).stat().st_ino

    def untouched() -> Iterator[bytes]:
        raise AssertionError("read although the object is there")
        yield b""

    assert store.put(name, untouched(), max_bytes=4) == 4
    assert store.path(name).stat().st_ino == inode


@pytest.mark.parametrize("wrong", [b"damaged", b"", b"cut of"])
def test_a_wrong_digest_leaves_no_trace(store: ObjectStore, tmp_path: Path, wrong: bytes) -> None:
    name = name_of(b"cut off")
    with pytest.raises(InputError, match="not those of object"):
        store.put(name, [wrong], max_bytes=LIMIT)
    assert store.size(name) is None
    assert files_below(tmp_path) == []


def test_too_much_is_refused_while_it_arrives(store: ObjectStore, tmp_path: Path) -> None:
    seen = 0

    def endless() -> Iterator[bytes]:
        nonlocal seen
        while True:
            seen += 1
            yield b"x" * 1000

    with pytest.raises(LimitError, match="too large"):
        store.put(name_of(b"?"), endless(), max_bytes=10_000)
    assert seen == 11
    assert files_below(tmp_path) == []


def test_a_sender_that_breaks_off_leaves_no_trace(store: ObjectStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"first"
        raise ConnectionResetError("gone")

    # An OSError of the sender is the sender's, and not mistaken for one of the disk.
    with pytest.raises(ConnectionResetError):
        store.put(name_of(b"first and second"), broken(), max_bytes=LIMIT)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ab",
        "../" * 21 + "a",
        "/etc/passwd",
        "A" * 64,
        "g" * 64,
        "a" * 63 + "/",
        "a" * 64 + "\n",
        "a" * 65,
        "\u0661" * 64,
        "a" * 63 + "\0",
    ],
)
def test_names_that_are_not_digests_are_refused(
    store: ObjectStore, tmp_path: Path, name: str
) -> None:
    for use in (
        lambda: store.put(name, [b"x"], max_bytes=1),
        lambda: store.open(name),
        lambda: store.size(name),
        lambda: store.path(name),
        lambda: store.delete(name),
        lambda: store.missing([name]),
        lambda: store.begin(name, max_bytes=1),
    ):
        with pytest.raises(InputError, match="not the name of an object"):
            use()
    assert files_below(tmp_path) == []


def test_reading_what_is_not_there(store: ObjectStore) -> None:
    name = store.put_bytes(b"1234")
    with pytest.raises(NotFoundError, match="There is no object"):
        store.open("0" * 64)
    for start in (5, -1):
        with pytest.raises(InputError, match="has no byte"):
            store.open(name, start)


def test_missing_all_and_delete(store: ObjectStore) -> None:
    names = [store.put_bytes(text.encode()) for text in "abcdef"]
    absent = [name_of(b"y"), name_of(b"z")]
    assert store.missing([absent[1], *names, absent[0], absent[1]]) == [absent[1], absent[0]]
    assert [name for name, _, _ in store.all()] == sorted(names)
    assert {size for _, size, _ in store.all()} == {1}
    assert store.delete(names[0])
    assert not store.delete(names[0])
    assert store.missing(names) == [names[0]]


@pytest.mark.parametrize("how", ["missing", "put"])
def test_what_was_promised_looks_young_to_a_clean_up_by_age(store: ObjectStore, how: str) -> None:
    name = store.put_bytes(b"old")
    os.utime(store.path(name), (1000, 1000))
    if how == "missing":
        assert store.missing([name]) == []
    else:
        store.put(name, [], max_bytes=0)
    [(_, _, modified_at)] = store.all()
    assert modified_at > time.time() - 60


def test_strange_files_are_not_objects(store: ObjectStore, tmp_path: Path) -> None:
    name = store.put_bytes(b"real")
    (tmp_path / "objects" / "ab" / "lost+found").mkdir()
    (tmp_path / "objects" / "ab" / ".directory").write_text("x")
    assert [found for found, _, _ in store.all()] == [name]


def test_parallel_puts_of_one_name_all_succeed_and_readers_see_it_whole(
    store: ObjectStore, tmp_path: Path
) -> None:
    content = os.urandom(300_000)
    name = name_of(content)
    writers, results, seen = 8, [], []
    barrier = threading.Barrier(writers + 1)

    def write() -> None:
        barrier.wait(timeout=10)
        results.append(store.put(name, pieces(content, 7000), max_bytes=LIMIT))

    def read() -> None:
        barrier.wait(timeout=10)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(results) < writers:
            if store.size(name) is not None:
                with store.open(name) as file:
                    seen.append(file.read() == content)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results == [len(content)] * writers
    assert all(seen)
    assert files_below(tmp_path) == [store.path(name)]


def test_parallel_puts_of_many_names(store: ObjectStore) -> None:
    contents = [os.urandom(2000) for _ in range(40)]
    failed: list[BaseException] = []

    def write(own: list[bytes]) -> None:
        try:
            for content in own:
                store.put(name_of(content), pieces(content), max_bytes=LIMIT)
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=write, args=(contents[n : n + 20],)) for n in range(0, 21, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert failed == []
    assert {name for name, _, _ in store.all()} == {name_of(content) for content in contents}


def test_temp_files_go_by_age(store: ObjectStore, tmp_path: Path) -> None:
    incoming = store.begin(name_of(b"slow"), max_bytes=LIMIT)
    incoming.write(b"sl")
    now = time.time()
    assert store.sweep_temp(3600, now) == 0
    assert len(files_below(tmp_path)) == 1
    assert store.sweep_temp(3600, now + 3700) == 1
    assert files_below(tmp_path) == []
    with incoming:
        pass  # leaving it after the sweep is no error


def test_a_finished_upload_whose_draft_was_swept_is_an_error(store: ObjectStore) -> None:
    with store.begin(name_of(b"slow"), max_bytes=LIMIT) as incoming:
        incoming.write(b"slow")
        store.sweep_temp(0, time.time() + 10)
        with pytest.raises(UnavailableError):
            incoming.finish()
    assert store.size(name_of(b"slow")) is None


def test_free_bytes_is_what_the_system_says(store: ObjectStore, tmp_path: Path) -> None:
    assert abs(store.free_bytes() - shutil.disk_usage(tmp_path).free) < 2**30


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_writer_killed_in_the_middle_leaves_no_visible_object(tmp_path: Path) -> None:
    content = b"x" * 400_000
    name = name_of(content)
    script = (
        "import sys; from pathlib import Path\n"
        "from officegrid.coordinator.objects import ObjectStore\n"
        "def chunks():\n"
        "    yield b'x' * 200_000\n"
        "    print('half', flush=True); sys.stdin.read()\n"
        "    yield b'x' * 200_000\n"
        "ObjectStore(Path(sys.argv[1])).put(sys.argv[2], chunks(), max_bytes=10**6)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    store = ObjectStore(tmp_path)
    assert store.size(name) is None
    assert list(store.all()) == []
    [draft] = files_below(tmp_path)
    assert draft.stat().st_size == 200_000
    assert store.sweep_temp(60, time.time() + 120) == 1
    assert store.put(name, pieces(content), max_bytes=LIMIT) == 400_000


FULL_DISK = """
import hashlib, os, sys
from pathlib import Path
from officegrid.coordinator.objects import ObjectStore
from officegrid.core.errors import UnavailableError
root = Path(sys.argv[1])
store = ObjectStore(root)
free = store.free_bytes()
assert free <= 3 * 2**20, free
large = os.urandom(free + 100_000)
name = hashlib.sha256(large).hexdigest()
kept = store.put_bytes(b'small')
try:
    store.put(name, [large[i:i + 65536] for i in range(0, len(large), 65536)], max_bytes=10**8)
except UnavailableError as error:
    assert error.what == "The coordinator's disk is full.", error.what
    assert error.http_status == 503 and error.fix
else:
    raise SystemExit('the disk was not full')
assert store.size(name) is None
assert [n for n, _, _ in store.all()] == [kept]
assert list((root / 'objects' / 'tmp').iterdir()) == []
assert store.free_bytes() > free - 100_000, 'space is not given back'
fits = os.urandom(free // 2)
assert store.put_bytes(fits) == hashlib.sha256(fits).hexdigest()
print('as promised')
"""


def test_a_full_disk_is_told_and_leaves_no_trace(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    if (
        unshare is None
        or subprocess.run(
            [unshare, *namespaces, "true"], capture_output=True, check=False
        ).returncode
    ):
        if os.environ.get("CI") == "true":
            pytest.fail("this needs `unshare` and the right to make a mount namespace")
        pytest.skip("a small disk needs `unshare` and the right to make a mount namespace")
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    # The mount lives in its own namespace and so disappears with the process.
    command = (
        f'mount -t tmpfs -o size=3m small "{disk}" && exec "{sys.executable}" "{script}" "{disk}"'
    )
    result = subprocess.run(
        [unshare, *namespaces, "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert result.stdout.strip() == "as promised", result.stderr
