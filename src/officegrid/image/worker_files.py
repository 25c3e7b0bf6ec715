"""The worker's part of the guest: its libraries with locked hashes, and this program's own files.

The libraries are downloaded as wheels for the guest's Python, whatever Python runs here, checked
against `worker-pyX.Y.lock`, and unpacked by pip. Of this program only what a guest runs is copied,
from the very installation that builds the image: guest and builder are of one version.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import officegrid
from officegrid.core.errors import UnavailableError
from officegrid.image.run import BuildError, Runner

LIBRARY = "opt/officegrid/lib"
"""Below the guest's root."""
_OURS = ("core", "wire", "bundles", "data", "transport", "worker", "guest", "cli")
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
_NOT_FETCHED = "The worker's libraries could not be fetched."
_FETCH_FIX = (
    "Is the package index reachable? Without a network, give --wheelhouse DIR with the wheels "
    "that the image's lock file names."
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """`sha256`: of the file as downloaded. `licence`: as its metadata words it."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str = ""


def check_pip() -> None:
    """Raises UnavailableError where this Python has no pip."""
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(
            "The worker's libraries cannot be fetched.",
            f"The Python that runs this program, {sys.executable}, has no pip.",
            "Install it: python3 -m ensurepip, or apt-get install python3-pip.",
        )


def lock_text(python: str) -> str:
    """The locked versions and hashes for a guest with this Python."""
    return (files("officegrid.image") / f"worker-py{python}.lock").read_text(encoding="utf-8")


def put_libraries(
    run: Runner, root: Path, python: str, downloads: Path, wheelhouse: Path | None, scratch: Path
) -> list[Wheel]:
    """Fetch, check and unpack. `downloads`: wheels kept between builds, asked first. With a
    `wheelhouse` nothing is fetched from the network. Raises BuildError."""
    lock, wheels = scratch / "worker.lock", scratch / "wheels"
    lock.write_text(lock_text(python), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    target = [
        "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *(word for platform in _PLATFORMS for word in ("--platform", platform)),
    ]  # fmt: skip
    fetch = [
        *pip, "download", "--quiet", "--require-hashes", *target, "--dest", str(wheels),
        "-r", str(lock),
    ]  # fmt: skip
    try:  # the wheels of an earlier build may be all that is needed
        run.run([*fetch, "--no-index", "--find-links", str(wheelhouse or downloads)], _NOT_FETCHED)
    except BuildError:
        if wheelhouse is not None:
            raise
        run.run(fetch, _NOT_FETCHED, _FETCH_FIX)
    found = sorted(wheels.glob("*.whl"))
    run.run(
        [*pip, "install", "--quiet", "--root-user-action=ignore", "--no-compile", "--no-index",
         *target, "--target", str(root / LIBRARY), *map(str, found)],
        "The worker's libraries could not be unpacked.",
    )  # fmt: skip
    shutil.rmtree(root / LIBRARY / "bin", ignore_errors=True)
    _forget_where_from(root / LIBRARY)
    for wheel in found:
        shutil.copyfile(wheel, downloads / wheel.name)
    return [_described(wheel, root / LIBRARY) for wheel in found]


def _forget_where_from(library: Path) -> None:
    """pip notes from which folder of the building machine each wheel came."""
    for path in library.glob("*.dist-info/direct_url.json"):
        path.unlink()
        record = path.with_name("RECORD")
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(f"{path.parent.name}/{path.name},")]
        record.write_text("".join(kept), encoding="utf-8")


def _described(wheel: Path, library: Path) -> Wheel:
    name, version = wheel.name.split("-")[:2]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    text = ""
    for metadata in library.glob(f"{name}-{version}.dist-info/METADATA"):
        text = metadata.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    licence = re.search(r"^License(?:-Expression)?: *(\S.{0,79})$", text, re.MULTILINE)
    return Wheel(name, version, wheel.name, digest, licence.group(1) if licence else "")


def put_program(root: Path) -> None:
    """This program's files that a guest runs, and what tells scanners its version."""
    source = Path(officegrid.__file__).parent
    target = root / LIBRARY / "officegrid"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "__main__.py", "py.typed"):
        shutil.copyfile(source / name, target / name)
    for name in _OURS:
        shutil.copytree(
            source / name, target / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"),
            copy_function=shutil.copyfile,
        )  # fmt: skip
    about = root / LIBRARY / f"officegrid-{officegrid.__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: officegrid\nVersion: {officegrid.__version__}\n"
        "License-Expression: Apache-2.0\n",
        encoding="utf-8",
    )
    (about / "INSTALLER").write_text("officegrid\n", encoding="utf-8")


def compile_all(run: Runner, root: Path, python: str) -> None:
    """Bytecode of the worker and of the standard library, not checked against its source's time:
    an image is copied, and a read-only or reset disk must not compile at every boot."""
    folders = [f"usr/lib/python{python}", f"usr/lib64/python{python}", "opt/officegrid"]
    run.run_in_root(
        root,
        [f"python{python}", "-m", "compileall", "-q", "-f", "--invalidation-mode",
         "unchecked-hash", *(f"/{name}" for name in folders if (root / name).exists())],
        "The worker's bytecode could not be made.",
    )  # fmt: skip
