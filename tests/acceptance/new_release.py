"""Wheels of officegrid with another version, and with faults where a test wants them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

import officegrid
from officegrid.bundles.wheel import build_wheel

SOURCE = Path(officegrid.__file__).parent

IMPORT_ERROR = {"worker/worker.py": ("import contextlib\n", "import no_such_library\n")}
_CLAIM = '        return self._connection.call(\n            "POST", "/v1/claim"'
CRASH = {"worker/link.py": (_CLAIM, f"        __import__('os')._exit(7)\n{_CLAIM}")}
HANG = {"worker/link.py": (_CLAIM, f"        time.sleep(3600)\n{_CLAIM}")}


def make_wheel(
    folder: Path, version: str, faults: Mapping[str, tuple[str, str]] | None = None,
    requires: str = "",
) -> Path:  # fmt: skip
    """The source tree as a wheel of this version; `faults`: file -> (text, what takes its place);
    `requires`: one more library that it needs."""
    package = folder / f"tree-{version}" / "officegrid"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    edits = {"__init__.py": (officegrid.__version__, version), **(faults or {})}
    for name, (old, new) in edits.items():
        path = package / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{name} has changed: this test needs another edit"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
    metadata = distribution("officegrid").read_text("METADATA")
    assert metadata is not None
    if requires:
        head, _, body = metadata.partition("\n\n")
        metadata = f"{head}\nRequires-Dist: {requires}\n\n{body}"
    wheel = folder / f"officegrid-{version}-py3-none-any.whl"
    wheel.write_bytes(build_wheel(package, version, metadata))
    return wheel
