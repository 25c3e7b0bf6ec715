"""What an installation has made, in a file that only root or administrators can write.

It does not lie in the agent's home: the agent's account could then tell an uninstallation, which
runs with all rights, to remove whatever it likes. An entry is written before its step is done, so
that an installation which broke off in the middle can be completed or taken back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from officegrid.agent.files import write_private
from officegrid.agent.install.plan import Wishes
from officegrid.core.errors import ConflictError, UnavailableError

FORMAT = 1


@dataclass(slots=True)
class Manifest:
    """`made` holds objects like {"kind": "file", "path": …, "sha256": …}, in the order of doing."""

    version: str
    home: str
    account: str
    complete: bool = False
    """False: broke off, or only what an uninstallation keeps is left."""
    wishes: dict[str, Any] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, entry: dict[str, Any]) -> None:
        """Add an entry, or replace the one about the same thing."""
        self.forget(entry)
        self.made.append(entry)

    def forget(self, entry: dict[str, Any]) -> None:
        self.made = [kept for kept in self.made if _about(kept) != _about(entry)]

    def digest_of(self, path: str) -> str | None:
        """SHA-256 of what we wrote to this path; None: it is not ours."""
        for entry in self.made:
            if entry["kind"] in ("file", "settings") and entry["path"] == path:
                return str(entry["sha256"])
        return None

    def has(self, kind: str, name: str) -> bool:
        return (kind, name) in map(_about, self.made)

    def earlier_wishes(self) -> dict[str, Any]:
        return {name: self.wishes.get(name) for name in asdict(Wishes())}


def _about(entry: dict[str, Any]) -> tuple[str, str]:
    return str(entry["kind"]), str(entry.get("path") or entry.get("name"))


def read(path: Path) -> Manifest | None:
    """None: nothing of ours is here. Raises ConflictError for a file that we cannot understand,
    UnavailableError for one that cannot be read."""
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']}")
        manifest = Manifest(**{key: value for key, value in found.items() if key != "format"})
        for entry in manifest.made:
            _about(entry)
        return manifest
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(
            "What is installed here cannot be read.", f"{path}: {error.strerror or error}.",
            "Run this as root, or as administrator.",
        ) from None  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConflictError(
            "The list of what is installed here cannot be understood.",
            f"{path}: {error}.",
            "It was damaged, or a newer version wrote it: use that version, or remove this file "
            "and what docs/agent-install.md lists.",
        ) from None


def write(path: Path, manifest: Manifest) -> None:
    """Raises UnavailableError."""
    data = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, data)
    except OSError as error:
        raise cannot(path, error) from None


def cannot(path: Path | str, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"{path} cannot be changed.",
        f"{error.strerror or error}.",
        "Make its folder writable and its disk not full, then run this again: it goes on where "
        "it stopped.",
    )
