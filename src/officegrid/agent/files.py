"""Where the agent keeps what, and how it writes: so that a crash leaves the old or the new file.

<home>/agent.toml           settings, written by the admin
<home>/agent/agent.lock     one agent per PC
<home>/agent/status.json    what `officegrid agent status` shows
<home>/agent/pause.json     the desk user's pause
<home>/agent/orders.json    the coordinator's last rules
<home>/agent/settings.json  agent.toml as it was last accepted
<home>/agent/driver.json    which driver the VM was made with
<home>/agent/guest.json     which VM was made last, whether its worker has joined, and for whom
<home>/agent/seed/, seed.iso    what the guest is told at its first start
<home>/agent/vm/            the driver's own
<home>/agent/images/        worker images, by the digests of their files
<home>/agent/images.json    which of them the VM is made from, and how they fare
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from officegrid.transport.private_file import write_private as write_private


class Folders:
    """The agent's places below one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.agent = home / "agent"
        self.config = home / "agent.toml"
        self.status = self.agent / "status.json"
        self.pause = self.agent / "pause.json"
        self.orders = self.agent / "orders.json"
        self.settings = self.agent / "settings.json"
        self.guest = self.agent / "guest.json"
        self.seed = self.agent / "seed"
        self.seed_iso = self.agent / "seed.iso"
        self.vm = self.agent / "vm"
        self.images = self.agent / "images"
        self.images_record = self.agent / "images.json"


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file, readable by its owner only. Raises OSError."""
    write_private(path, json.dumps(value, indent=1).encode())


def sync_folder(folder: Path) -> None:
    """Make renames and removals in this folder outlive a power cut, where that is possible."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
