"""A recipe is checked before anything is downloaded, and becomes exact commands."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from officegrid import image
from officegrid.core.errors import ForbiddenError, UnavailableError, UsageError
from officegrid.image import tools
from officegrid.image.base import newest_date
from officegrid.image.debian import Debian
from officegrid.image.el9 import El9
from officegrid.image.recipe import FORMATS, PARTS, Recipe, check, parse_list, parse_start

RECIPE = Recipe("debian", "bookworm", tuple(PARTS), FORMATS)
ROOT, BEFORE, DOWNLOADS = Path("/w/root"), Path("/w/before"), Path("/c/it's")


def test_lists_keep_one_order_and_refuse_what_is_not_known() -> None:
    assert parse_list(["python, php", "php"], PARTS, "--with") == ("php", "python")
    assert parse_list(["none"], PARTS, "--with") == ()
    with pytest.raises(UsageError, match="perl is not known"):
        parse_list(["php,perl"], PARTS, "--with")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("service", ("service", 5)), ("cron", ("cron", 5)), ("cron:17", ("cron", 17))],
)
def test_start(text: str, wanted: tuple[str, int]) -> None:
    assert parse_start(text) == wanted


@pytest.mark.parametrize("text", ["", "cron:0", "cron:60", "cron:x", "cron:-1", "Service", "at:5"])
def test_start_that_is_not_known(text: str) -> None:
    with pytest.raises(UsageError, match="is not known"):
        parse_start(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "suse"}, "suse"),
        ({"release": "buster"}, "does not belong"),
        ({"family": "el9"}, "does not belong"),
        ({"formats": ()}, "format"),
        ({"disk_gb": 3}, "out of bounds"),
        ({"packages": ("-oDebug::x=1",)}, "not the name of a package"),
        ({"packages": ("vim,ssh",)}, "not the name of a package"),
        ({"mirror": "deb.example.com"}, "not the address"),
        ({"mirror": "http://h/debian [trusted=yes]"}, "not the address"),
        ({"security_mirror": "https://joe:pa55@h/debian"}, "password"),
    ],
)
def test_recipes_that_cannot_be(change: dict[str, object], words: str) -> None:
    assert check(RECIPE) == RECIPE
    with pytest.raises(UsageError, match=words) as caught:
        check(replace(RECIPE, **change))  # type: ignore[arg-type]
    assert "pa55" not in str(caught.value)


def test_parts_bring_their_packages_and_no_others() -> None:
    everything = Debian().packages(replace(RECIPE, packages=("jq",)))
    assert {"php-mysql", "php-intl", "mariadb-server", "python3-pip", "jq"} <= set(everything)
    bare = Debian().packages(replace(RECIPE, parts=()))
    assert "python3" in bare, "the worker needs it"
    assert not any(name.startswith(("php", "mariadb", "python3-")) for name in bare)
    for packages in (everything, bare):
        assert not {"openssh-server", "sudo", "unattended-upgrades", "rsyslog"} & set(packages)


def test_debian_asks_the_mirrors_it_was_told() -> None:
    recipe = replace(RECIPE, mirror="https://m.example/debian/", security_mirror="http://s/sec")
    plan = Debian().plan(recipe, ROOT, BEFORE, DOWNLOADS)
    assert plan.indexes == (
        "https://m.example/debian/dists/bookworm/InRelease",
        "https://m.example/debian/dists/bookworm-updates/InRelease",
        "http://s/sec/dists/bookworm-security/InRelease",
    )
    (command,) = plan.commands
    assert command.argv[-4:] == (
        "/w/root",
        "deb https://m.example/debian bookworm main",
        "deb https://m.example/debian bookworm-updates main",
        "deb http://s/sec bookworm-security main",
    )
    assert not any("Check-Valid-Until" in word for word in command.argv)
    past = replace(recipe, mirror="https://snapshot.debian.org/archive/debian/20260101T000000Z")
    (command,) = Debian().plan(past, ROOT, BEFORE, DOWNLOADS).commands
    assert any("Check-Valid-Until" in word for word in command.argv)


def test_folders_with_quotes_in_their_names_are_no_shell_commands() -> None:
    (command,) = Debian().plan(RECIPE, ROOT, BEFORE, DOWNLOADS).commands
    hooks = [word for word in command.argv if "hook=" in word]
    assert sum("'/c/it'\"'\"'s'" in hook for hook in hooks) == 2


def test_drivers_of_every_hypervisor_are_in_the_first_root() -> None:
    files = Debian().plan(RECIPE, ROOT, BEFORE, DOWNLOADS).files
    hook = files["/etc/initramfs-tools/hooks/gridmachine"]
    assert hook.startswith("#!/bin/sh\n")
    assert {"virtio_blk", "virtio_scsi", "ahci", "ata_piix", "hv_storvsc", "nvme"} <= set(
        hook.split()
    )


def test_the_newest_kernel_boots(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    for version in ("6.1.0-9-amd64", "6.1.0-10-amd64"):
        (tmp_path / f"boot/vmlinuz-{version}").touch()
        (tmp_path / f"boot/initrd.img-{version}").touch()
    kernel, initrd = Debian().boot_files(tmp_path)
    assert (kernel.name, initrd.name) == ("vmlinuz-6.1.0-10-amd64", "initrd.img-6.1.0-10-amd64")


def test_the_plan_for_el9() -> None:
    recipe = Recipe("el9", "9", ("php", "mariadb"), FORMATS, packages=("jq",))
    plan = El9().plan(check(recipe), ROOT, BEFORE, DOWNLOADS)
    lines = [" ".join(command.argv) for command in plan.commands]
    dnf = "dnf -y --installroot=/w/root --releasever=9"
    enable = next(n for n, line in enumerate(lines) if "module enable php:8.2" in line)
    install = next(n for n, line in enumerate(lines) if " install " in line and "kernel" in line)
    assert lines[enable].startswith(dnf)
    assert lines[install].startswith(dnf)
    copy = next(n for n, line in enumerate(lines) if line.startswith("cp -R /w/before/."))
    assert copy < enable < install, "dracut must find its settings when the kernel comes"
    assert {"php-mysqlnd", "mariadb-server", "python3.11", "jq"} <= set(lines[install].split())
    assert "python3.11-pip" not in lines[install], "not asked for"
    assert plan.commands[install + 1].in_root
    assert plan.commands[install + 1].argv[0] == "dracut"
    for name in ("baseos", "appstream", "epel"):
        assert "gpgcheck=1" in plan.files[f"/etc/yum.repos.d/{name}.repo"]
    # The unit of the image names /usr/bin/python3, which is too old there.
    unit = Path(image.__file__).parent / "files/usr/lib/systemd/system/officegrid-guest.service"
    (start,) = re.findall(r"^ExecStart=/usr/bin/python3( .+)$", unit.read_text(), re.MULTILINE)
    dropped_in = plan.files["/etc/systemd/system/officegrid-guest.service.d/python.conf"]
    assert f"ExecStart=\nExecStart=/usr/bin/python3.11{start}\n" in dropped_in
    without = El9().plan(replace(recipe, parts=()), ROOT, BEFORE, DOWNLOADS)
    assert not any("php" in word for command in without.commands for word in command.argv)


def test_the_date_of_the_indexes_is_the_date_of_the_image() -> None:
    old = "Origin: Debian\nDate: Sat, 10 Jan 2026 10:00:00 UTC\nValid-Until: Sat, 17 Jan 2026\n"
    new = "<repomd><revision>1790000000</revision></repomd>"
    assert newest_date({"a": old}) == 1768039200
    assert newest_date({"a": old, "b": new}) == 1790000000
    assert newest_date({"a": "no date"}) == 0


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(UnavailableError) as caught:
        tools.check_tools({"mcopy": "mtools", "qemu-img": "qemu-utils", "sh": "dash"},
                          lambda name: "/bin/sh" if name == "sh" else None)  # fmt: skip
    assert re.search(r"apt-get install .*mtools.*qemu-utils", caught.value.fix)
    assert "dash" not in caught.value.fix


def test_only_root_builds() -> None:
    tools.check_root(0)
    with pytest.raises(ForbiddenError, match="root only"):
        tools.check_root(1000)


def test_room_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.check_space(tmp_path, tmp_path / "not" / "there")
    monkeypatch.setattr(tools, "_WORK_BYTES", 2**60)
    with pytest.raises(UnavailableError, match="not enough room"):
        tools.check_space(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--with", "php,perl"], "perl is not known"),
        (["--start", "at:5"], "--start at:5 is not known"),
        (["--release", "sid"], "does not belong"),
        (["--name", "../up"], "cannot be the name"),
        (["--script", "/does/not/exist"], "does not exist"),
    ],
)
def test_wrong_options_are_told_at_once(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "officegrid", "image", "build", "-o", tmp_path / "x", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not list(tmp_path.iterdir())
