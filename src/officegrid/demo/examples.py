"""Where the shipped examples lie: in the package when installed, in the repository otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

from officegrid.core.errors import NotFoundError

_PACKAGE = Path(__file__).resolve().parents[1]


def example_folder(name: str) -> Path:
    for root in (_PACKAGE / "_examples", _PACKAGE.parents[1] / "examples"):
        if (root / name).is_dir():
            return root / name
    raise NotFoundError(f"The example {name!r} is not installed.", fix="Install officegrid again.")


def copy_example(name: str, target: Path) -> Path:
    """Copy the example's program files to `target`; returns the path of its job file there."""
    target.mkdir(parents=True, exist_ok=True)
    for path in example_folder(name).iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    return target / "job.toml"
