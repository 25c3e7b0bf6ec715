"""What a guest does about its identity, on a real file system."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from guest_kit import OTHER_UUID, UUID, GuestFiles

from officegrid.core.errors import InputError
from officegrid.core.identity import Choice, KeptIdentity
from officegrid.guest import persona
from officegrid.guest.hardware import chip_follows_host, find_hardware_id
from officegrid.guest.persona import Persona
from officegrid.guest.seed import Seed

OLD_MACHINE_ID = "0123456789abcdef0123456789abcdef\n"
OWNER = (os.getuid(), os.getgid())
SEED = Seed("iid-1", "PC 1 (Büro)-vm", "https://new.firm:8443", "og-secret", {})


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    return GuestFiles(tmp_path)


def boot(guest: GuestFiles, seed: Seed | None) -> Persona:
    found = persona.find_out(guest.place, seed, find_hardware_id(guest.place))
    return persona.become(guest.place, found, seed, OWNER)


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_new_guest_orders_its_worker_to_join(
    guest: GuestFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    who = boot(guest, SEED)
    order = guest.json("run/officegrid/worker/join.json")
    assert order == {
        "kind": "join", "instance_id": "iid-1", "name": SEED.name, "url": SEED.url,
        "code": "og-secret", "hardware_id": find_hardware_id(guest.place),
    }  # fmt: skip
    assert mode_of(guest.place.join) == 0o400
    assert mode_of(guest.place.run_worker) == 0o700
    assert mode_of(guest.place.home) == 0o700
    assert who.url == SEED.url
    assert who.renamed
    assert guest.read("etc/hostname") == "pc-1--b-ro--vm\n"
    assert guest.read("etc/machine-id") == OLD_MACHINE_ID, "made at this guest's first boot"
    said = capsys.readouterr().out
    assert "GRID-SEED iid-1" in said
    assert "og-secret" not in said


def test_a_guest_that_has_joined_goes_on(guest: GuestFiles) -> None:
    guest.joined("iid-1", find_hardware_id(guest.place))
    guest.put("etc/hostname", "pc-1--b-ro--vm\n")
    guest.put("run/officegrid/worker/join.json", "{}")
    who = boot(guest, SEED)
    assert who.decision.choice is Choice.KEEP
    assert who.url == "https://grid.firm:8443"
    assert not who.renamed
    assert not Path(guest.place.join).exists()


def test_a_copied_disk_becomes_another_machine(
    guest: GuestFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    guest.joined("iid-1", find_hardware_id(guest.place))
    guest.hardware(OTHER_UUID)
    who = boot(guest, None)
    assert who.decision.choice is Choice.CLONE
    order = guest.json("run/officegrid/worker/join.json")
    assert order == {
        "kind": "clone", "instance_id": "iid-1", "name": "pc-1-vm",
        "url": "https://grid.firm:8443", "hardware_id": who.hardware_id,
    }  # fmt: skip
    made = guest.read("etc/machine-id")
    assert made != OLD_MACHINE_ID
    assert len(made) == 33
    assert made[12] == "4"
    assert guest.read("etc/hostname") == f"pc-1-vm-{who.hardware_id[:6]}\n"
    assert who.renamed
    assert "GRID-SEED" not in capsys.readouterr().out
    assert guest.json("var/lib/officegrid/identity.json")["hardware_id"] != who.hardware_id, (
        "only the worker knows when it has become somebody else"
    )


def test_an_old_guest_notes_where_it_is(guest: GuestFiles) -> None:
    guest.joined("", "")
    Path(guest.place.identity).unlink()
    who = boot(guest, None)
    assert persona.kept_identity(guest.place) == KeptIdentity("", who.hardware_id)
    assert mode_of(guest.place.identity) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": ""}', '{"token": "t", "url": 3}'])
def test_half_a_profile_is_none(guest: GuestFiles, text: str) -> None:
    guest.put("var/lib/officegrid/profile.json", text)
    found = persona.find_out(guest.place, None, "")
    assert found.decision.choice is Choice.WAIT
    assert persona.find_out(guest.place, SEED, "").decision.choice is Choice.JOIN


def test_links_that_a_job_has_laid_are_not_followed(guest: GuestFiles) -> None:
    """Programs of jobs own the worker's folders; root writes there."""
    precious = guest.put("etc/precious", "untouched")
    boot(guest, SEED)
    for name in (guest.place.join, guest.place.identity):
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(precious)
    draft = Path(guest.place.join).with_name(f".join.json.{os.getpid()}")
    draft.symlink_to(precious)
    boot(guest, SEED)
    assert precious.read_text() == "untouched"
    assert json.loads(Path(guest.place.join).read_text())["kind"] == "join"
    Path(guest.place.profile).symlink_to(guest.put("etc/other", '{"token": "t"}'))
    assert persona.kept_profile(guest.place) is None


def test_hardware_without_a_uuid(guest: GuestFiles) -> None:
    by_uuid = find_hardware_id(guest.place)
    guest.hardware("0" * 8 + "-0000-0000-0000-" + "0" * 12)
    assert find_hardware_id(guest.place) == "", "there is no card but the system's own"
    guest.put("sys/class/net/lo/address", "00:00:00:00:00:00\n")
    guest.put("sys/class/net/eth0/address", "52:54:00:11:22:33\n")
    guest.put("sys/class/net/eth0/device/vendor", "0x1af4\n")
    guest.put("sys/class/net/br0/address", "52:54:00:99:99:99\n")
    by_card = find_hardware_id(guest.place)
    assert by_card not in ("", by_uuid)
    guest.put("sys/class/net/br0/address", "52:54:00:99:99:98\n")
    assert find_hardware_id(guest.place) == by_card
    guest.hardware(UUID)
    assert find_hardware_id(guest.place) == by_uuid


def test_whose_clock_chip_is_believed(guest: GuestFiles) -> None:
    assert not chip_follows_host(guest.place), "there is none"
    guest.put("sys/class/rtc/rtc0/since_epoch", "1800000000\n")
    guest.put("sys/class/dmi/id/product_name", "Standard PC (Q35 + ICH9, 2009)\n")
    assert chip_follows_host(guest.place)
    guest.put("sys/class/dmi/id/product_name", "VirtualBox\n")
    assert not chip_follows_host(guest.place)


@pytest.mark.parametrize(
    ("name", "label"),
    [("PC-1", "pc-1"), ("-a-", "a"), ("ü", ""), ("a" * 80, "a" * 63), ("x.y_z", "x-y-z")],
)
def test_host_names(name: str, label: str) -> None:
    assert persona.host_label(name) == label


def test_a_user_that_does_not_exist_is_told() -> None:
    with pytest.raises(InputError, match="no-such-user"):
        persona.owner_of("no-such-user")
