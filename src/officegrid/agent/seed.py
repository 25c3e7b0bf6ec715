"""What a worker VM is told at its first start: a folder, and the same as a disk named CIDATA.

cloud-init's NoCloud source takes `meta-data` and `user-data` from it (cloud-init documentation,
"NoCloud"); the guest's own start-up reads `officegrid.json`: the coordinator's address, a join
code, a name, settings. A new `instance-id` tells the guest that it is a new machine. The code is a
secret until it is used: the folder has mode 0700, the files 0600, and no log or error ever quotes
it.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from officegrid.agent.files import read_json, write_json, write_private
from officegrid.core.errors import UnavailableError

VOLUME = "CIDATA"
_ISO_NAMES = {
    "meta-data": "/METADATA.;1",
    "user-data": "/USERDATA.;1",
    "officegrid.json": "/OFFICEGR.JSN;1",
}


@dataclass(frozen=True, slots=True)
class Seed:
    """`url` and `code` are None where the guest has joined already."""

    instance_id: str
    name: str
    url: str | None = None
    code: str | None = field(default=None, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    """How the guest runs its worker, as stated in `[vm.guest]` (`config.GuestConfig`)."""

    def files(self) -> dict[str, bytes]:
        """Contents by file name."""
        told = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        host_name = "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")
        meta = {"instance-id": self.instance_id, "local-hostname": host_name[:63] or "worker"}
        # JSON is YAML, which is what cloud-init reads.
        return {
            "meta-data": json.dumps(meta).encode() + b"\n",
            "user-data": b"#cloud-config\nssh_pwauth: false\ndisable_root: true\n",
            "officegrid.json": json.dumps(told).encode() + b"\n",
        }


def write_seed(folder: Path, iso: Path | None, seed: Seed) -> None:
    """Write folder and disk, each file replaced whole. Raises UnavailableError."""
    files = seed.files()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(folder, 0o700)
        for name, data in files.items():
            write_private(folder / name, data)
        if iso is not None:
            write_private(iso, iso_image(files))
    except OSError as error:
        raise UnavailableError(
            "The disk that tells the worker VM where to join cannot be written.",
            f"{folder}: {error.strerror or error}.",
            "Free some disk space, or check the rights of the agent's folder.",
        ) from None


def iso_image(files: dict[str, bytes]) -> bytes:
    """An ISO 9660 image with Joliet and Rock Ridge names, volume CIDATA."""
    import pycdlib  # only here: a worker VM is seeded rarely, the agent is small always

    disk: Any = pycdlib.PyCdlib()
    disk.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=VOLUME)
    try:
        for name, data in files.items():
            disk.add_fp(
                io.BytesIO(data), len(data), iso_path=_ISO_NAMES[name], rr_name=name,
                joliet_path=f"/{name}", file_mode=0o100600,
            )  # fmt: skip
        image = io.BytesIO()
        disk.write_fp(image)
        return image.getvalue()
    finally:
        disk.close()


class Guest:
    """Which guest lives in the VM, whether its worker has joined, and for whom: the agent's
    machine id, and the UUID of the VM's computer. Kept in `guest.json`:

        {"instance_id", "joined", "machine_id", "hardware"}
    """

    def __init__(self, path: Path, machine_id: str, hardware: str) -> None:
        """`machine_id` and `hardware` are today's."""
        self._path = path
        self._now = (machine_id, hardware)
        kept = read_json(path) or {}
        instance_id = kept.get("instance_id")
        self.instance_id = instance_id if isinstance(instance_id, str) else _new_id()
        self.joined = kept.get("joined") is True
        self._told = _text(kept, "machine_id"), _text(kept, "hardware")
        self._is_kept = isinstance(instance_id, str)

    @property
    def is_anothers(self) -> bool:
        """Was the guest set up for another identity of this agent, or for another computer?"""
        pairs = zip(self._told, self._now, strict=True)
        return any(told is not None and told != now for told, now in pairs)

    def adopt(self) -> None:
        """A file of a release that did not keep whose the guest is: it is today's. Raises
        UnavailableError."""
        if self._is_kept and None in self._told and not self.is_anothers:
            self._told = self._now
            self._keep()

    def made_anew(self) -> None:
        """Nothing in the VM has joined as what it is to be: it is made from the image, or it was
        another's. Raises UnavailableError."""
        self.instance_id, self.joined, self._told = _new_id(), False, self._now
        self._keep()

    def has_joined(self) -> None:
        if not self.joined:
            self.joined = True
            self._keep()

    def _keep(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            machine_id, hardware = (
                now if told is None else told
                for told, now in zip(self._told, self._now, strict=True)
            )
            write_json(
                self._path,
                {"instance_id": self.instance_id, "joined": self.joined,
                 "machine_id": machine_id, "hardware": hardware},
            )  # fmt: skip
        except OSError as error:
            raise UnavailableError(
                "The agent cannot keep what it knows about its VM.",
                f"{self._path}: {error.strerror or error}.",
                "Free some disk space.",
            ) from None


def _text(kept: dict[str, Any], key: str) -> str | None:
    value = kept.get(key)
    return value if isinstance(value, str) else None


def _new_id() -> str:
    return f"officegrid-{secrets.token_hex(8)}"
