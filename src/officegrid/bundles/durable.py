"""Getting a whole folder onto the disk before something says that it is there.

A file system may keep the name of a new folder and lose what is in its files when the power goes;
in a VM that is killed for its desk user the power goes often.
"""

from __future__ import annotations

import os
from pathlib import Path


def make_durable(folder: Path) -> None:
    """Returns once all files of `folder` are on the disk. Raises OSError.

    One call for the whole file system where there is one: program folders have thousands of
    files, and waiting for each by itself takes minutes on a spinning disk.
    """
    if hasattr(os, "sync"):
        os.sync()
        return
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb+") as file:
                os.fsync(file.fileno())
