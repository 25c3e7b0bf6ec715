"""A Windows Python under Wine, made once and kept in .cache; each test process has its own copy of
the Windows folders and registry (hard links, but for the registry, which Wine writes in place)."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parts import need, without

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "tools" / "wine" / "setup.sh"
# Tests that a Python on Windows runs; test_inside.py starts them.
collect_ignore = ["inside"]


@dataclass(frozen=True)
class Rig:
    """Runs Windows programs."""

    python: Path
    prefix: Path
    """Wine's folder: the registry and drive C."""
    display: str
    """The X screen that shows the Windows desktop."""

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "HOME": str(self.prefix.parent),
            "PATH": os.environ["PATH"],
            "DISPLAY": self.display,
            "WINEPREFIX": str(self.prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
            "PYTHONPATH": windows_path(ROOT / "src"),
            "PYTHONUTF8": "1",
            "PYTHONPYCACHEPREFIX": windows_path(self.python.parent / "pycache"),
            **more,
        }

    def start(self, *arguments: object, **more: str) -> subprocess.Popen[str]:
        """`python arguments…`. Its streams are pipes: this Python cannot write to plain files."""
        return subprocess.Popen(
            ["wine", str(self.python), *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", env=self.environment(**more), cwd=self.prefix.parent,
        )  # fmt: skip

    def program(self, *command: str) -> subprocess.Popen[bytes]:
        """A program of Windows itself, such as notepad."""
        null = subprocess.DEVNULL
        return subprocess.Popen(
            ["wine", *command], stdin=null, stdout=null, stderr=null, env=self.environment()
        )

    def run(self, *arguments: object, timeout_s: float = 60, **more: str) -> tuple[int, str]:
        """Exit code, and stdout with stderr."""
        said: list[str] = []
        with self.start(*arguments, **more) as process:
            assert process.stdout is not None
            # Not until the end of the stream: what Wine itself starts keeps it open for longer.
            reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
            reader.start()
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"no end within {timeout_s} s:\n{''.join(said)}") from None
            reader.join(timeout=1)
        return code, "".join(said)


def windows_path(path: Path) -> str:
    """How a Windows program under Wine sees a path of ours."""
    return "Z:" + str(path).replace("/", "\\")


@pytest.fixture(scope="session")
def screen() -> Iterator[str]:
    """An X server without a screen, on a display number that was free."""
    need("Xvfb")
    read_end, write_end = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "1024x768x24", "-nolisten", "tcp",
         "-noreset"],
        pass_fds=[write_end], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(write_end)
    try:
        with os.fdopen(read_end, encoding="ascii") as told:
            yield f":{told.readline().strip()}"
    finally:
        server.terminate()
        server.wait(10)


def _link(source: str, target: str) -> None:
    if source.endswith(".reg"):
        shutil.copy2(source, target)
    else:
        os.link(source, target)


@pytest.fixture(scope="session")
def rig(screen: str) -> Iterator[Rig]:
    need("wine", "wineserver")
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    (cache / ".gitignore").write_text("*\n", encoding="utf-8")
    digest = subprocess.run(
        [SETUP, "--digest"], capture_output=True, text=True, check=True
    ).stdout.strip()
    made = cache / f"wine-{digest}"
    setup = subprocess.run([SETUP, made], capture_output=True, text=True)
    if setup.returncode != 0:
        without(f"{SETUP.name} could not make a Windows Python:\n{setup.stdout}{setup.stderr}")
    folder = made / f"run-{os.getpid()}"  # beside the original: links do not cross disks
    shutil.copytree(
        made / "prefix", folder / "prefix", symlinks=True, copy_function=_link
    )  # fmt: skip
    found = Rig(made / "cp311" / "python.exe", folder / "prefix", screen)
    # Keeps the Windows side running between our programs: each would else boot it anew.
    subprocess.run(["wineserver", "-p"], env=found.environment(), check=True, timeout=30)
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    subprocess.run(["wine", "wineboot"], env=found.environment(), timeout=60, check=True, **quiet)
    try:
        yield found
    finally:
        subprocess.run(["wineserver", "-k"], env=found.environment(), check=False, timeout=30)
        subprocess.run(["wineserver", "-w"], env=found.environment(), check=False, timeout=30)
        shutil.rmtree(folder)
