"""Seed disks: found by their name, mounted for a moment, refused with a reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from guest_kit import GuestFiles, attached, disk_image, knows_ext4, seed_image

from officegrid.agent.seed import iso_image
from officegrid.core.errors import InputError
from officegrid.guest import seed
from parts import need

TOLD = {"instance_id": "iid-1", "name": "pc-1-vm", "url": "https://grid:8443", "code": "og-secret",
        "settings": {"slots": 2}}  # fmt: skip

VOLUME = seed.volume


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    return GuestFiles(tmp_path / "root")


@pytest.fixture(autouse=True)
def ext4_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed, "volume", knows_ext4)


def fat_head(folder: Path, label: str, size_kb: int) -> bytes:
    need("mkfs.vfat")
    image = folder / "fat.img"
    image.write_bytes(b"\0" * size_kb * 1024)
    kind = ["-F", "32"] if size_kb > 40_000 else []
    subprocess.run(["mkfs.vfat", *kind, "-n", label, str(image)], check=True, capture_output=True)
    return image.read_bytes()[:34816]


def mounts() -> str:
    return Path("/proc/mounts").read_text()


# --- by their name (tests/vm mounts the real disc in a real guest)


def test_the_disc_that_agents_write_is_known() -> None:
    assert VOLUME(iso_image({"officegrid.json": b"{}"})[:34816]) == ("iso9660", "CIDATA")


@pytest.mark.parametrize("size_kb", [1440, 50_000])
def test_a_fat_disk_is_known(tmp_path: Path, size_kb: int) -> None:
    assert VOLUME(fat_head(tmp_path, "CIDATA", size_kb)) == ("vfat", "CIDATA")
    assert VOLUME(fat_head(tmp_path, "BACKUP", size_kb)) == ("vfat", "BACKUP")


@pytest.mark.parametrize("head", [b"", b"\0" * 34816, b"CIDATA" * 6000])
def test_anything_else_is_not(head: bytes) -> None:
    assert VOLUME(head) == ("", "")


# --- on real block devices, really mounted


def test_the_seed_is_read_and_the_disk_left_alone(guest: GuestFiles, tmp_path: Path) -> None:
    with attached(guest, seed_image(tmp_path, **TOLD)):
        found = seed.find(guest.place)
    assert found == seed.Seed("iid-1", "pc-1-vm", "https://grid:8443", "og-secret", {"slots": 2})
    assert not Path(guest.place.seed).exists()
    assert str(guest.root) not in mounts()


def test_other_disks_are_not_mounted(guest: GuestFiles, tmp_path: Path) -> None:
    files = {"officegrid.json": json.dumps(TOLD).encode()}
    with attached(guest, disk_image(tmp_path, files, label="BACKUP"), "sda"):
        guest.put("dev/vda", "a disk with nothing known on it")
        (guest.root / "dev/sr1").symlink_to("/dev/does-not-exist")
        assert seed.find(guest.place) is None
    assert not Path(guest.place.seed).exists(), "something was mounted"


def test_a_disk_without_our_file_is_told_unless_another_has_it(
    guest: GuestFiles, tmp_path: Path
) -> None:
    with attached(guest, disk_image(tmp_path, {"meta-data": b"{}"}), "sr0"):
        with pytest.raises(InputError, match="cannot be used") as caught:
            seed.find(guest.place)
        assert "officegrid.json" in caught.value.why
        with attached(guest, seed_image(tmp_path, **TOLD), "vdb"):
            found = seed.find(guest.place)
        assert found is not None
        assert found.instance_id == "iid-1"
    assert str(guest.root) not in mounts()


def test_a_disk_that_cannot_be_mounted_is_told(guest: GuestFiles, tmp_path: Path) -> None:
    damaged = bytearray(seed_image(tmp_path, **TOLD))
    damaged[1024 + 4 : 1024 + 8] = b"\xff" * 4  # its count of blocks
    with attached(guest, bytes(damaged)), pytest.raises(InputError) as caught:
        seed.find(guest.place)
    assert "cannot be mounted" in caught.value.why
    assert not Path(guest.place.seed).exists()


# --- what is on them


@pytest.mark.parametrize(
    ("told", "named"),
    [({}, "instance_id, name"), ({"instance_id": 1, "name": "a"}, "instance_id"),
     ({"instance_id": "i", "name": "a", "code": "og-secret"}, "url"),
     ({"instance_id": "i", "name": "a", "settings": ["x"]}, "settings"),
     (["og-secret"], "JSON object"), ("og-secret", "JSON object")],
)  # fmt: skip
def test_a_seed_that_says_too_little_is_refused_by_name(told: object, named: str) -> None:
    with pytest.raises(InputError) as caught:
        seed.parse(json.dumps(told).encode())
    assert named in caught.value.why
    assert "og-secret" not in str(caught.value)


def test_a_seed_of_a_guest_that_has_joined_has_no_code() -> None:
    found = seed.parse(b'{"instance_id": "i", "name": "a", "code": null}')
    assert found == seed.Seed("i", "a", "", "", {})
    with pytest.raises(InputError):
        seed.parse(b"\xff\x00 not text")
