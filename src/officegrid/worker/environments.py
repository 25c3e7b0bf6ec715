"""Python environments for bundles: the packages that a requirements.txt asks for.

An environment is a venv in a cache folder, named by the SHA-256 of requirements.txt and the
Python version. It is built beside its final place under a file lock and gets a marker file as the
last step: an environment without the marker is half built, and is built anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from officegrid.bundles.durable import make_durable
from officegrid.core.errors import ProgramError

REQUIREMENTS = "requirements.txt"
DONE_MARKER = "officegrid-done"
INSTALL_TIMEOUT_S = 1800.0
TAIL_CHARS = 2000


def environment_for(bundle_dir: Path, cache: Path) -> Path:
    """The Python interpreter for a bundle, with its packages; builds the environment if needed.

    Without a requirements.txt it is the worker's own interpreter. Blocks while another process
    builds the same environment. Each use sets the modification time of the environment's marker,
    so that the least recently used ones can be found. Raises ProgramError if the packages cannot
    be installed.
    """
    requirements = bundle_dir / REQUIREMENTS
    if not requirements.is_file():
        return Path(sys.executable)
    cache.mkdir(parents=True, exist_ok=True)
    text = requirements.read_bytes()
    key = hashlib.sha256(text + b"\0" + platform.python_version().encode()).hexdigest()
    place = cache / key
    marker = place / DONE_MARKER
    if not marker.exists():
        with _locked(cache / f"{key}.lock"):
            if not marker.exists():
                _build(place, bundle_dir)
    os.utime(marker)
    return place / "bin" / "python"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(place: Path, bundle_dir: Path) -> None:
    # Built in place: the scripts of a venv hold its path, so it must not be moved afterwards.
    shutil.rmtree(place, ignore_errors=True)
    try:
        _run([sys.executable, "-m", "venv", str(place)], place.parent, "created")
        pip = [str(place / "bin" / "python"), "-m", "pip", "install"]
        options = ["--no-input", "--disable-pip-version-check", "-r", REQUIREMENTS]
        _run([*pip, *options], bundle_dir, "filled")
        make_durable(place)  # or a power cut leaves the marker and empty files
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    (place / DONE_MARKER).touch()


def _run(command: list[str], cwd: Path, verb: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        output, failed = done.stdout, done.returncode != 0
    except subprocess.TimeoutExpired as error:
        output, failed = error.stdout or b"it took too long", True
    if failed:
        raise ProgramError(
            f"The Python environment of the job cannot be {verb}.",
            why=output.decode(errors="replace").strip()[-TAIL_CHARS:],
            fix=f"Try `pip install -r {REQUIREMENTS}` in the folder of the job with Python "
            f"{platform.python_version()}, correct the file, and submit again.",
        )
