"""A guest's files in a temporary folder, and real seed disks on loop devices."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from officegrid.guest import seed
from officegrid.guest.place import Place
from parts import need, without

_VOLUME = seed.volume
UUID = "4c4c4544-0042-3510-8052-b4c04f4a3332"
OTHER_UUID = "4c4c4544-0042-3510-8052-b4c04f4a3333"
PROFILE = {
    "url": "https://grid.firm:8443", "ca_pem": "pem", "token": "secret-token",
    "machine_id": "m1", "role": "worker", "name": "pc-1-vm",
}  # fmt: skip


class GuestFiles:
    """`place` is for the code under test; the rest puts things there and reads them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = Place(str(root))
        for folder in ("etc/officegrid", "run", "var/lib", "dev/virtio-ports",
                       "sys/class/dmi/id", "sys/class/net/lo"):  # fmt: skip
            (root / folder).mkdir(parents=True)
        self.hardware(UUID)
        self.put("etc/officegrid/guest.json", json.dumps({"user": "root", "init": "small"}))
        self.put("etc/hostname", "gridmachine\n")
        self.put("etc/machine-id", "0123456789abcdef0123456789abcdef\n")

    def put(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def hardware(self, uuid: str) -> None:
        self.put("sys/class/dmi/id/product_uuid", uuid + "\n")

    def joined(self, instance_id: str, hardware_id: str) -> None:
        """As a worker leaves it."""
        self.put("var/lib/officegrid/profile.json", json.dumps(PROFILE))
        kept = {"instance_id": instance_id, "hardware_id": hardware_id}
        self.put("var/lib/officegrid/identity.json", json.dumps(kept))

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def json(self, path: str) -> dict[str, Any]:
        found = json.loads(self.read(path))
        assert isinstance(found, dict)
        return found


@contextlib.contextmanager
def attached(guest: GuestFiles, image: bytes, name: str = "sr0") -> Iterator[Path]:
    """The bytes as a real block device, which the guest sees as /dev/NAME."""
    need("losetup")
    if os.geteuid() != 0:
        without("loop devices need root")
    path = guest.root / f"{name}.img"
    path.write_bytes(image)
    done = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    device = done.stdout.strip()
    link = guest.root / "dev" / name
    link.symlink_to(device)
    try:
        yield link
    finally:
        link.unlink()
        subprocess.run(["losetup", "--detach", device], check=True)


def disk_image(folder: Path, files: dict[str, bytes], label: str = "CIDATA") -> bytes:
    """An ext4 disk: what every test machine's kernel can mount, unlike ISO 9660 and FAT."""
    need("mke2fs")
    content = folder / f"content-{label}-{len(files)}"
    content.mkdir(exist_ok=True)
    for name, data in files.items():
        (content / name).write_bytes(data)
    image = folder / "disk.img"
    image.unlink(missing_ok=True)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", label, "-d", str(content),
         str(image), "1M"], check=True, capture_output=True,
    )  # fmt: skip
    return image.read_bytes()


def seed_image(folder: Path, **told: Any) -> bytes:
    return disk_image(folder, {"officegrid.json": json.dumps(told).encode()})


def knows_ext4(head: bytes) -> tuple[str, str]:
    """`seed.volume`, which knows ext4 too; its label is at byte 120 of the superblock (Linux
    kernel documentation, "ext4 Data Structures and Algorithms")."""
    if head[1080:1082] == b"\x53\xef":
        return "ext4", head[1144:1160].rstrip(b"\0").decode()
    return _VOLUME(head)
