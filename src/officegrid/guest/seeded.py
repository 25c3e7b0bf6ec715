"""What the last seed disk said, in a file that only root can read or write.

A seed disk may be taken out once the guest has joined, and what the worker keeps can be changed by
the programs it runs. So root goes by the disk, and without a disk by this file:
{"instance_id", "name", "url", "host_name", "settings"}. No code is in it.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from officegrid.guest.place import Place, make_folder, read_json, write_file
from officegrid.guest.seed import Seed
from officegrid.guest.settings import accepted

_TEXTS = ("instance_id", "name", "url", "host_name")


class Seeded(NamedTuple):
    """Texts are "" where they are not known. `url` is the coordinator's; `host_name` the one this
    guest goes by, which is a copy's own; `settings` as on the seed disk."""

    instance_id: str = ""
    name: str = ""
    url: str = ""
    host_name: str = ""
    settings: dict[str, Any] = {}  # noqa: RUF012


def load(place: Place) -> Seeded:
    """What was kept; all empty where nothing was, or where it is damaged."""
    told = read_json(place.seeded) or {}
    texts = {key: text for key in _TEXTS if isinstance(text := told.get(key), str)}
    settings = told.get("settings")
    return Seeded(**texts, settings=settings if isinstance(settings, dict) else {})


def with_disk(kept: Seeded, disk: Seed | None) -> Seeded:
    """What holds now: a disk that is there counts, but for an address that it does not name."""
    if disk is None:
        return kept
    settings = accepted(disk.settings)
    return Seeded(
        disk.instance_id, disk.name, disk.url or kept.url, kept.host_name, settings
    )  # fmt: skip


def keep(place: Place, what: Seeded) -> None:
    """Write it, unless it is there already. Raises UnavailableError."""
    if what == load(place):
        return
    make_folder(os.path.dirname(place.seeded), 0o700)
    write_file(place.seeded, json.dumps(what._asdict(), sort_keys=True) + "\n", 0o600)
