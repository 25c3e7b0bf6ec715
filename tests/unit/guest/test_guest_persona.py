"""What a guest does about its identity, on a real file system."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from guest_kit import OTHER_UUID, UUID, GuestFiles

from officegrid.core.errors import InputError
from officegrid.core.identity import Choice, KeptIdentity
from officegrid.guest import persona, seeded
from officegrid.guest.hardware import chip_follows_host, find_hardware_id
from officegrid.guest.persona import Persona
from officegrid.guest.place import read_text
from officegrid.guest.seed import Seed
from officegrid.guest.seeded import Seeded

OLD_MACHINE_ID = "0123456789abcdef0123456789abcdef\n"
OWNER = (os.getuid(), os.getgid())
SEED = Seed("iid-1", "PC 1 (Büro)-vm", "https://new.firm:8443", "og-secret", {})


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    return GuestFiles(tmp_path)


def boot(guest: GuestFiles, seed: Seed | None) -> Persona:
    told = seeded.with_disk(seeded.load(guest.place), seed)
    found = persona.find_out(guest.place, seed, told, find_hardware_id(guest.place))
    who = persona.become(guest.place, found, seed, OWNER)
    seeded.keep(guest.place, told._replace(host_name=who.host_name))
    return who


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
    assert who.url == SEED.url, "the disk is right, whatever the profile says"
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


def test_what_the_disk_said_stays_when_it_is_taken_out(guest: GuestFiles) -> None:
    told = {"slots": 3, "proxy": "http://proxy.firm:3128", "start": "nonsense", "colour": "red"}
    boot(guest, SEED._replace(settings=told))
    guest.joined("iid-1", find_hardware_id(guest.place))
    assert mode_of(guest.place.seeded) == 0o600
    assert mode_of(os.path.dirname(guest.place.seeded)) == 0o700
    assert "og-secret" not in Path(guest.place.seeded).read_text()
    kept = seeded.load(guest.place)
    assert kept.settings == {"slots": 3, "proxy": "http://proxy.firm:3128"}
    assert boot(guest, None).url == SEED.url
    # The disk of a guest that has joined names no coordinator, but may change settings.
    boot(guest, Seed("iid-1", SEED.name, "", "", {"slots": 1}))
    assert seeded.load(guest.place) == Seeded(
        "iid-1", SEED.name, SEED.url, "pc-1--b-ro--vm", {"slots": 1}
    )  # fmt: skip
    guest.hardware(OTHER_UUID)
    who = boot(guest, None)
    assert who.decision.choice is Choice.CLONE
    assert guest.json("run/officegrid/worker/join.json")["url"] == SEED.url
    assert seeded.load(guest.place).settings == {"slots": 1}, "a copy keeps them"


def test_a_copy_keeps_its_own_host_name(guest: GuestFiles) -> None:
    boot(guest, SEED)
    guest.joined("iid-1", find_hardware_id(guest.place))
    guest.hardware(OTHER_UUID)
    name = boot(guest, SEED).host_name
    assert name.startswith("pc-1-vm-")
    guest.joined("iid-1", find_hardware_id(guest.place))  # the worker has its new identity
    who = boot(guest, SEED)
    assert who.decision.choice is Choice.KEEP
    assert guest.read("etc/hostname") == f"{name}\n"
    assert not who.renamed


def test_what_jobs_can_write_names_no_coordinator(guest: GuestFiles) -> None:
    boot(guest, SEED)
    guest.joined("iid-1", find_hardware_id(guest.place))  # its profile names another address
    who = boot(guest, None)
    assert who.url == SEED.url
    assert "anew" in persona.address_trouble(guest.place, who)
    Path(guest.place.seeded).unlink()
    who = boot(guest, None)
    assert who.url == ""
    assert "firewall stays closed" in persona.address_trouble(guest.place, who)
    for url in ("https://grid.firm:8443/", "https://Grid.firm", "https://grid.firm:8443"):
        agreed = boot(guest, SEED._replace(url=url))
        assert persona.address_trouble(guest.place, agreed) == ""


@pytest.mark.parametrize("text", ["", "{", "null", '{"url": 3, "settings": [], "name": null}'])
def test_a_damaged_note_is_none(guest: GuestFiles, text: str) -> None:
    guest.put("var/lib/officegrid-guest/seeded.json", text)
    assert seeded.load(guest.place) == Seeded()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 200_000, '{"token": ""}', '{"token": "t", "url": 3}']
)
def test_half_a_profile_is_none(guest: GuestFiles, text: str) -> None:
    guest.put("var/lib/officegrid/profile.json", text)
    found = persona.find_out(guest.place, None, Seeded(), "")
    assert found.decision.choice is Choice.WAIT
    assert persona.find_out(guest.place, SEED, Seeded(), "").decision.choice is Choice.JOIN


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


def test_what_is_no_plain_file_is_not_read(guest: GuestFiles) -> None:
    """A pipe without a writer, a pipe with one that says nothing, a folder."""
    Path(guest.place.home).mkdir()
    os.mkfifo(guest.place.profile)
    read = (
        f"from officegrid.guest.place import read_text; print([read_text({guest.place.profile!r})])"
    )
    argv = [sys.executable, "-c", read]

    def reads() -> str:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout

    assert reads() == "['']\n"
    line = os.open(guest.place.profile, os.O_RDWR)
    try:
        assert reads() == "['']\n"
    finally:
        os.close(line)
    assert read_text(guest.place.home) == ""
    guest.put("etc/large", "x" * 2**20)
    assert len(read_text(str(guest.root / "etc/large"))) == 256 * 2**10


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
