"""System parts that some tests need: missing ones skip on a laptop and fail under CI=true."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*programs: str) -> None:
    """Skip, or under CI fail, unless all these programs are on the PATH."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        without(f"{', '.join(missing)} is not installed")


def without(reason: str) -> None:
    """A part is missing for `reason`."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
