"""Environments for bundles, built with the real venv and pip from a local package."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from officegrid.core.errors import ProgramError
from officegrid.worker.environments import DONE_MARKER, environment_for

WHEEL_NAME = "tinytool-1.0-py3-none-any.whl"


def local_wheel(folder: Path) -> Path:
    """A wheel written by hand: installing it needs no network and no build tool."""
    import zipfile

    wheel = folder / WHEEL_NAME
    info = "tinytool-1.0.dist-info"
    files = {
        "tinytool.py": "ANSWER = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinytool\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return wheel


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return folder


def test_without_requirements_it_is_the_workers_own_python(bundle: Path, tmp_path: Path) -> None:
    assert environment_for(bundle, tmp_path / "cache") == Path(sys.executable)
    assert not (tmp_path / "cache").exists()


def test_concurrent_builders_build_once_and_use_is_recorded(bundle: Path, tmp_path: Path) -> None:
    wheel = local_wheel(tmp_path)
    (bundle / "requirements.txt").write_text(f"{wheel}\n")
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(2) as pool:
        pythons = set(pool.map(lambda _: environment_for(bundle, cache), range(2)))
    (python,) = pythons
    command = [str(python), "-c", "import tinytool, sys; print(tinytool.ANSWER, sys.prefix)"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert printed == ["42", str(python.parent.parent)]

    marker = python.parent.parent / DONE_MARKER
    os.utime(marker, (1, 1))
    built = (python.parent.parent / "pyvenv.cfg").stat().st_mtime_ns
    assert environment_for(bundle, cache) == python
    assert marker.stat().st_mtime > 1
    assert (python.parent.parent / "pyvenv.cfg").stat().st_mtime_ns == built

    marker.unlink()  # as a crash in the middle of a build leaves it
    (python.parent.parent / "lib" / "rubbish").touch()
    assert environment_for(bundle, cache) == python
    assert not (python.parent.parent / "lib" / "rubbish").exists()
    assert marker.exists()


def test_a_package_that_does_not_exist(bundle: Path, tmp_path: Path) -> None:
    (bundle / "requirements.txt").write_text("./no-such-package.whl\n")
    cache = tmp_path / "cache"
    with pytest.raises(ProgramError, match="cannot be filled") as caught:
        environment_for(bundle, cache)
    assert "no-such-package" in caught.value.why
    assert "pip install -r requirements.txt" in caught.value.fix
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
