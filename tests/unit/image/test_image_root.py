"""What is put into the guest's root and what is taken out of it, on a small tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from officegrid.core.errors import UnavailableError, UsageError
from officegrid.image import base, build, rootfiles, sbom, worker_files
from officegrid.image.family import Package
from officegrid.image.recipe import FORMATS, Recipe
from officegrid.image.run import BuildError, Runner
from officegrid.image.worker_files import Wheel
from parts import need, without

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPE = Recipe("debian", "bookworm", ("php",), FORMATS, start="cron", every_minutes=7)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Runner]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    runner = Runner(tmp_path / "log", print, scratch)
    yield runner
    runner.close()


@pytest.fixture
def root(tmp_path: Path, run: Runner) -> Path:
    """A root in which a static shell can run."""
    need("busybox", "unshare")
    if os.geteuid() != 0:
        without("a chroot needs root")
    folder = tmp_path / "root"
    for name in ("bin", "proc", "dev", "run", "tmp", "etc", "root", "usr/sbin"):
        (folder / name).mkdir(parents=True)
    for name in ("sh", "cat", "touch", "false"):
        (folder / "bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (folder / "bin" / name).chmod(0o755)
    rootfiles.link(folder / "etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
    return folder


def test_files_and_their_modes(tmp_path: Path) -> None:
    rootfiles.put_files(tmp_path, RECIPE)
    wrapper = tmp_path / "usr/bin/officegrid"
    assert wrapper.stat().st_mode & 0o777 == 0o755
    unit = tmp_path / "usr/lib/systemd/system/officegrid-worker.service"
    assert unit.stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "enabled.txt").exists()
    baked = json.loads((tmp_path / "etc/officegrid/guest.json").read_text())
    assert baked == {"start": "cron", "every_minutes": 7, "user": "grid", "slots": 1}
    assert (tmp_path / "etc/machine-id").read_bytes() == b""
    assert (tmp_path / "etc/resolv.conf").readlink() == Path("/run/systemd/resolve/resolv.conf")


def test_a_script_runs_in_the_root_and_leaves_nothing_of_ours(
    tmp_path: Path, root: Path, run: Runner
) -> None:
    script = tmp_path / "company.sh"
    script.write_text("#!/bin/sh\nset -e\ncat /etc/resolv.conf >/etc/seen\n"
                      "touch /tmp/x /run/x /etc/made\ncat /usr/sbin/policy-rc.d >>/etc/seen\n"
                      "cat /proc/self/comm >/etc/comm\n")  # fmt: skip
    rootfiles.run_script(run, root, script)
    assert Path("/etc/resolv.conf").read_text() in (root / "etc/seen").read_text()
    assert "exit 101" in (root / "etc/seen").read_text(), "no service may start"
    assert (root / "etc/comm").read_text() == "cat\n"
    left = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    assert {name for name in left if not name.startswith("bin/")} == {
        "etc/resolv.conf", "etc/seen", "etc/made", "etc/comm"
    }  # fmt: skip
    assert (root / "etc/resolv.conf").is_symlink()
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


def test_a_script_that_fails_is_shown_with_what_it_said(
    tmp_path: Path, root: Path, run: Runner
) -> None:
    script = tmp_path / "company.sh"
    script.write_text("cat /etc/not-there\n")
    with pytest.raises(BuildError, match=r"company\.sh failed") as caught:
        rootfiles.run_script(run, root, script)
    assert "/etc/not-there" in caught.value.why
    assert (root / "etc/resolv.conf").is_symlink()
    assert not (root / "root/.image-script").exists()


def test_what_is_cleaned(tmp_path: Path) -> None:
    for name in ("tmp/.X0", "root/.bashrc", "etc/shadow-", "etc/shadow", "var/log/apt/term.log",
                 "boot/vmlinuz-1", "var/lib/apt/lists/x", "usr/lib/keep"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "opt").mkdir()
    rootfiles.clean(tmp_path, ("var/lib/apt/lists/*",))
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == ["etc/shadow", "usr/lib/keep"]
    assert (tmp_path / "tmp").is_dir()


def test_only_what_a_guest_runs_is_in_the_guest(tmp_path: Path) -> None:
    worker_files.put_program(tmp_path)
    library = tmp_path / worker_files.LIBRARY
    there = {path.name for path in (library / "officegrid").iterdir()}
    assert {"worker", "guest", "core", "wire", "cli", "__main__.py"} <= there
    assert not {"coordinator", "agent", "storage", "testing", "image"} & there
    assert not list(library.rglob("*.pyc"))
    done = subprocess.run(
        [sys.executable, "-m", "officegrid", "worker", "--help"], cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(library)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--drain" in done.stdout


def test_the_worker_s_locks_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/worker_lock.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"run: python tools/worker_lock.py\n{done.stdout}{done.stderr}"
    for python in ("3.11", "3.13"):
        lines = worker_files.lock_text(python).splitlines()
        names = [line for line in lines if not line.startswith(" ")]
        assert all("==" in line and ";" not in line for line in names)
        assert sum("--hash=sha256:" in line for line in lines) >= len(names)


def test_libraries_without_a_wheel_are_an_error_that_says_where_from(
    tmp_path: Path, run: Runner
) -> None:
    empty = tmp_path / "wheelhouse"
    empty.mkdir()
    with pytest.raises(BuildError, match="libraries could not be fetched"):
        worker_files.put_libraries(run, tmp_path / "root", "3.11", empty, empty, run.log.parent)


def test_a_mirror_that_does_not_answer() -> None:
    with pytest.raises(UnavailableError) as caught:
        base.fetch_indexes(("http://127.0.0.1:9/debian/dists/bookworm/InRelease",))
    assert "127.0.0.1:9" in caught.value.what
    assert "--mirror" in caught.value.fix


def test_a_base_is_used_again_only_for_the_same_indexes_and_commands() -> None:
    family = build.FAMILIES["debian"]

    def key(recipe: Recipe, digest: str, epoch_s: int = 1) -> str:
        return base._key(family, recipe, {"a": digest}, epoch_s)

    first = key(RECIPE, "1")
    assert first == key(replace(RECIPE, start="service", disk_gb=99, scripts=(Path("x"),)), "1")
    assert first != key(RECIPE, "2"), "there are newer packages"
    assert first != key(RECIPE, "1", 2), "times in it are of another epoch"
    assert first != key(replace(RECIPE, packages=("jq",)), "1")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="not an image"):
        build._check_output(tmp_path)
    (tmp_path / "image.json").touch()
    build._check_output(tmp_path)


def test_the_bill_of_materials() -> None:
    packages = [Package("php-cli", "2:8.2+93", "all", "php-defaults 93", ("PHP-3.01", "Expat"))]
    wheels = [Wheel("pydantic_core", "2.50.4", "pydantic_core-2.50.4.whl", "ab" * 32, "MIT")]
    first = sbom.document("n", "1.0", 0, "debian", "bookworm", packages, wheels, "f", "cd" * 32)
    found = json.loads(first)
    assert found["spdxVersion"] == "SPDX-2.3"
    assert found["creationInfo"]["created"] == "1970-01-01T00:00:00Z"
    entries = {entry["name"]: entry for entry in found["packages"]}
    purl = entries["php-cli"]["externalRefs"][0]["referenceLocator"]
    assert purl == "pkg:deb/debian/php-cli@2%3A8.2%2B93?arch=all&distro=bookworm"
    assert "PHP-3.01" in entries["php-cli"]["licenseComments"]
    assert entries["pydantic-core"]["checksums"][0]["checksumValue"] == "ab" * 32
    named = {entry["SPDXID"] for entry in found["packages"]}
    assert len(named) == len(found["packages"])
    related = {relation["relatedSpdxElement"] for relation in found["relationships"]}
    assert related == named, "everything is in the image, and nothing else"
    again = sbom.document("n", "1.0", 0, "debian", "bookworm", packages, wheels, "f", "ef" * 32)
    assert json.loads(again)["documentNamespace"] != found["documentNamespace"]
    listed = sbom.plain_list(packages, wheels, "1.0").splitlines()
    assert listed == ["system php-cli 2:8.2+93", "python pydantic_core 2.50.4",
                      "python officegrid 1.0"]  # fmt: skip
