"""Wheels of this program, and what a worker keeps of them: whole, or not there at all."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import officegrid
from officegrid.bundles.wheel import (
    build_wheel,
    inspect_wheel,
    installed_wheel,
    is_whole,
    unpack_wheel,
)
from officegrid.coordinator.pki import ensure_pki
from officegrid.core.errors import ConflictError, InputError, LimitError, UnavailableError
from officegrid.core.updatelife import Ended, Fetched, Heard, Held, Life
from officegrid.transport.profile import Profile, save_profile
from officegrid.transport.single_instance import single_instance
from officegrid.worker import release_probe
from officegrid.worker.releases import Releases

METADATA = """Metadata-Version: 2.1
Name: other
Version: 9
Requires-Python: >=3.11
Requires-Dist: click>=8.5

Words for people.
"""
ABOUT = "officegrid-0.2.0.dist-info"
HELD = Held("a" * 64, "0.2.0", 1, "0.1.0")


def package(folder: Path, version: str = "0.2.0") -> Path:
    tree = folder / "officegrid"
    (tree / "worker" / "__pycache__").mkdir(parents=True)
    (tree / "__init__.py").write_text(f'__version__ = "{version}"\n')
    (tree / "worker" / "release_start.py").write_text("print('started')\n")
    (tree / "worker" / "__pycache__" / "x.pyc").write_bytes(b"x")
    return tree


@pytest.fixture
def wheel(tmp_path: Path) -> bytes:
    return build_wheel(package(tmp_path), "0.2.0", METADATA)


def changed(wheel: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """The wheel with other files, in a zip that is whole."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
    return out.getvalue()


def test_a_wheel_says_what_it_is_and_the_same_folder_gives_the_same_bytes(
    tmp_path: Path, wheel: bytes
) -> None:
    facts = inspect_wheel(wheel)
    assert facts.version == "0.2.0"
    assert facts.requires == ("click>=8.5",)
    assert facts.requires_python == ">=3.11"
    assert build_wheel(package(tmp_path / "again"), "0.2.0", METADATA) == wheel
    names = zipfile.ZipFile(io.BytesIO(wheel)).namelist()
    assert not [name for name in names if "pycache" in name]


def test_pip_installs_what_is_made_of_the_installed_program(tmp_path: Path) -> None:
    version = officegrid.__version__
    path = tmp_path / f"officegrid-{version}-py3-none-any.whl"
    path.write_bytes(installed_wheel())
    target = tmp_path / "target"
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*command, *options, str(path)], check=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-m", "officegrid", "--version"], env={"PYTHONPATH": str(target)},
        cwd="/", capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert version in done.stdout


BAD: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "another program": (lambda f: f.pop("officegrid/__init__.py"), "not a wheel of officegrid"),
    "a file beside it": (lambda f: f.update({"other/x.py": b""}), "does not belong"),
    "a file on top": (lambda f: f.update({"__main__.py": b""}), "does not belong"),
    "out of it": (lambda f: f.update({"officegrid/../../x.py": b""}), "does not belong"),
    "an absolute name": (lambda f: f.update({"/officegrid/x.py": b""}), "does not belong"),
    "an odd name": (lambda f: f.update({"officegrid/./x.py": b""}), "does not belong"),
    "two of them": (lambda f: f.update({"officegrid-1.dist-info/x": b""}), "not a wheel of"),
    "no record": (lambda f: f.pop(f"{ABOUT}/RECORD"), "has no"),
    "no metadata": (lambda f: f.pop(f"{ABOUT}/METADATA"), "has no"),
    "too old": (lambda f: f.pop("officegrid/worker/release_start.py"), "too old"),
    "a changed file": (lambda f: f.update({"officegrid/__init__.py": b'__version__ = "0.2.0"'}),
                       "own RECORD"),
    "a file too many": (lambda f: f.update({"officegrid/x.py": b""}), "own RECORD"),
    "another version inside": (
        lambda f: f.update({"officegrid/__init__.py": b'__version__ = "0.3.0"\n'}),
        "its program says 0.3.0",
    ),
    "no version": (lambda f: f.update({f"{ABOUT}/METADATA": b"Name: x\n"}), "Its version is ''"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_release_is_refused(tmp_path: Path, wheel: bytes, fault: str) -> None:
    change, words = BAD[fault]
    bad = changed(wheel, change)
    with pytest.raises(InputError, match="not a release that workers can run") as caught:
        unpack_wheel(bad, tmp_path / "there")
    assert words in caught.value.why
    assert not list(tmp_path.glob("*there*"))


def test_a_link_in_a_wheel_is_refused(wheel: bytes) -> None:
    out = io.BytesIO(wheel)
    with zipfile.ZipFile(out, "a") as more:
        link = zipfile.ZipInfo("officegrid/link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        more.writestr(link, "/etc/passwd")
    with pytest.raises(InputError) as caught:
        inspect_wheel(out.getvalue())
    assert "is not a file" in caught.value.why


def test_a_damaged_wheel_is_refused_wherever_the_damage_is(wheel: bytes) -> None:
    step = max(1, len(wheel) // 60)
    for at in range(0, len(wheel), step):
        broken = bytearray(wheel)
        broken[at] ^= 0xFF
        try:
            inspect_wheel(bytes(broken))
        except InputError:
            continue
        except LimitError:
            continue  # the damage was in a size
        # What is left is a time stamp or the like: nothing that is unpacked.
    for length in range(0, len(wheel) - 1, step):
        with pytest.raises(InputError):
            inspect_wheel(wheel[:length])


def test_a_wheel_that_grows_when_unpacked_is_refused(tmp_path: Path, wheel: bytes) -> None:
    out = io.BytesIO(wheel)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as more:
        for number in range(5):
            more.writestr(f"officegrid/big{number}", bytes(64 * 1024 * 1024))
    assert len(out.getvalue()) < 2_000_000
    with pytest.raises(LimitError, match="too large"):
        inspect_wheel(out.getvalue())


def test_an_unpacked_release_runs_and_its_damage_is_seen(tmp_path: Path, wheel: bytes) -> None:
    place = tmp_path / "there"
    assert unpack_wheel(wheel, place).version == "0.2.0"
    assert is_whole(place)
    assert (place / "__main__.py").read_text() == (
        Path(officegrid.__file__).parent / "worker" / "release_start.py"
    ).read_text(), "what starts it is of the program that unpacks it"
    said = subprocess.run(
        [sys.executable, str(place)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "start it with `officegrid worker`" in said.stderr
    init = place / "officegrid" / "__init__.py"
    init.write_bytes(init.read_bytes() + b"#")
    assert not is_whole(place)
    init.unlink()
    assert not is_whole(place)
    assert not is_whole(tmp_path / "nowhere")


def test_a_release_that_does_not_fit_on_the_disk_leaves_nothing(
    tmp_path: Path, wheel: bytes
) -> None:
    full = tmp_path / "full"
    full.write_text("")  # a file where a folder has to be
    with pytest.raises(UnavailableError, match="cannot be unpacked"):
        unpack_wheel(wheel, full / "there")
    assert full.read_text() == ""


# --- what the worker remembers


def test_the_life_survives_and_what_is_not_needed_goes(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert releases.life == Life()
    assert releases.happened(Fetched(HELD))
    for name in (HELD.digest, "b" * 64, ".c.part"):
        (releases.folder / name).mkdir()
    (releases.folder / ".state.json.123").write_text("x")
    again = Releases(tmp_path)
    assert again.life == Life(trial=HELD)
    again.tidy()
    assert sorted(path.name for path in again.folder.iterdir()) == [HELD.digest, "state.json"]
    assert again.happened(Heard(HELD.digest))
    assert again.happened(Ended(HELD.digest, "It broke."))
    assert Releases(tmp_path).life.failed[HELD.digest].why == "It broke."


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"current": 5}', '{"current": {"digest": "../../x"}}', '{"failed": 7}',
     '{"trial": {"digest": "' + "a" * 64 + '"}}'],
)  # fmt: skip
def test_a_state_that_cannot_be_read_means_the_installed_program(tmp_path: Path, text: str) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "state.json").write_text(text)
    assert Releases(tmp_path).life == Life()


def test_a_state_of_a_later_release_is_understood(tmp_path: Path) -> None:
    Releases(tmp_path).happened(Fetched(HELD))
    path = tmp_path / "releases" / "state.json"
    plain = json.loads(path.read_text())
    plain["trial"]["more"] = plain["more"] = 1
    path.write_text(json.dumps(plain))
    assert Releases(tmp_path).life == Life(trial=HELD)


def test_what_a_release_has_left_is_taken_once(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    releases.happened(Fetched(HELD))
    note = releases.folder / "ended.json"
    note.write_text(json.dumps({"digest": HELD.digest, "why": "It broke."}))
    releases.take_note()
    assert releases.life.trial is None
    assert not note.exists()
    note.write_text("{")
    releases.take_note()
    assert releases.life.wanted is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_changes_nothing(tmp_path: Path, wheel: bytes) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False
    )
    if mounted.returncode:
        pytest.skip("this system mounts no tmpfs here")
    try:
        releases = Releases(small)
        assert releases.happened(Fetched(HELD))
        with pytest.raises(OSError, match="No space"):
            (small / "filler").write_bytes(bytes(1 << 20))
        assert not releases.happened(Heard(HELD.digest))
        assert releases.life == Life(trial=HELD), "what is not on the disk has not happened"
        assert Releases(small).life == Life(trial=HELD)
        with pytest.raises(UnavailableError, match="cannot be unpacked"):
            unpack_wheel(wheel, releases.place("b" * 64))
        assert sorted(path.name for path in releases.folder.iterdir()) == ["state.json"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- the lock


def test_a_lock_is_handed_on_without_a_gap(tmp_path: Path) -> None:
    """As it is when a worker becomes another program: the same process, another object."""
    with single_instance(tmp_path, "worker", "fix") as first:
        handed = os.dup(first)
        with single_instance(tmp_path, "worker", "fix", handed) as second:
            assert second == handed
            assert not os.get_inheritable(second)
        with pytest.raises(ConflictError), single_instance(tmp_path, "worker", "fix"):
            pass
    with single_instance(tmp_path, "worker", "fix"):
        pass


def test_what_is_not_the_lock_is_not_taken_for_it(tmp_path: Path) -> None:
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    with single_instance(tmp_path, "worker", "fix", other) as mine:
        assert mine != other
    os.fstat(other)  # it was left open
    os.close(other)
    with single_instance(tmp_path, "worker", "fix", 99) as mine:
        assert mine != 99


def test_a_coordinator_that_is_away_puts_no_blame_on_a_release(tmp_path: Path) -> None:
    """What the starter of a release on trial asks before it gives the release up."""
    pki = ensure_pki(tmp_path / "pki", [], 1_800_000_000.0)
    profile = Profile("https://127.0.0.1:1", pki.ca_pem, "t" * 40, "m1", "worker", "w")
    save_profile(profile, tmp_path / "home")
    assert release_probe.answers(tmp_path / "home") is False
    assert release_probe.answers(tmp_path / "nobody") is False


@pytest.mark.parametrize(
    ("end", "note"),
    [
        ("raise SystemExit(0)", {"stopped": True}),
        ("raise SystemExit(130)", {"stopped": True}),
        ("raise SystemExit(1)", {"why": "It ended with exit code 1. The worker's log says why."}),
        ("import no_such", {"why": "It broke: ModuleNotFoundError: No module named 'no_such'"}),
        ("1 / 0", {"why": "It broke: ZeroDivisionError: division by zero"}),
    ],
)
@pytest.mark.parametrize("on_trial", [True, False])
def test_how_a_release_may_end(
    tmp_path: Path, end: str, note: dict[str, object], on_trial: bool
) -> None:
    """On trial every bad end leads back. Later only a release that cannot be loaded does."""
    tree = package(tmp_path)
    (tree / "cli").mkdir()
    (tree / "cli" / "__init__.py").write_text("")
    (tree / "cli" / "main.py").write_text(f"def main():\n    {end}\n")
    releases = Releases(tmp_path / "worker")
    releases.happened(Fetched(HELD))
    if not on_trial:
        releases.happened(Heard(HELD.digest))
    place = releases.place(HELD.digest)
    unpack_wheel(build_wheel(tree, "0.2.0", METADATA), place)
    base = [
        sys.executable,
        "-c",
        "import os; print('base', os.environ['OFFICEGRID_RELEASE_START'])",
    ]
    told = {"base": base, "digest": HELD.digest, "lock": None}
    env = {**os.environ, "OFFICEGRID_RELEASE_START": json.dumps(told)}
    done = subprocess.run(
        [sys.executable, str(place), "worker"], env=env, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    left = releases.folder / "ended.json"
    goes_back = "why" in note and (on_trial or "import" in end)
    assert done.stdout.startswith("base") == goes_back, done.stderr
    if goes_back or on_trial:
        assert json.loads(left.read_text()) == {"digest": HELD.digest, **note}
    else:
        assert not left.exists()
    if not goes_back:
        assert done.returncode == {"raise SystemExit(130)": 130}.get(end, int("why" in note))
