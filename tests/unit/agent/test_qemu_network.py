"""The QEMU driver's `network` option: what is accepted, and what QEMU is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.qemu.arguments import command_line, digest
from officegrid.agent.drivers.qemu.driver import QemuDriver
from officegrid.agent.drivers.qemu.options import parse_options
from officegrid.core.errors import UsageError
from officegrid.core.vm import DriverError, HealthLevel, Trouble
from parts import need


def settings(folder: Path, network: str) -> VmSettings:
    options = {"network": network, "accelerator": "tcg"}
    return VmSettings("GridMachine", folder, folder / "image.qcow2", 64, 1, 100, options=options)


def words_of(folder: Path, network: str) -> list[str]:
    made = settings(folder, network)
    return command_line(made, parse_options(made.options), "tcg", restoring=False)


def test_each_network_gives_one_card_or_none(tmp_path: Path) -> None:
    user, tap = words_of(tmp_path, "user"), words_of(tmp_path, "tap:gridtap")
    assert "user,id=net0,ipv6=off" in user
    # No script of QEMU's is run for it: the sandbox would not allow it.
    assert "tap,id=net0,ifname=gridtap,script=no,downscript=no" in tap
    cards = [[word for word in words if word.startswith("virtio-net")] for words in (user, tap)]
    assert cards[0] == cards[1]
    assert len(cards[0]) == 1
    none = words_of(tmp_path, "none")
    assert "-netdev" not in none
    assert not any(word.startswith("virtio-net") for word in none)


def test_a_saved_state_does_not_fit_another_network(tmp_path: Path) -> None:
    digests = {
        digest(settings(tmp_path, network), parse_options({"network": network}), "tcg")
        for network in ("user", "none", "tap:a", "tap:b")
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    "network",
    ["bridge", "tap", "tap:", "tap:sixteencharacter", "tap:a b", "tap:a,script=/bin/sh", "tap:a/b",
     "tap:..", "tap:t%d", "tap:a\n"],
)  # fmt: skip
def test_what_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(UsageError, match="network") as caught:
        parse_options({"network": network})
    assert "tap:" in caught.value.why


def test_a_tap_that_does_not_exist_is_told_before_qemu_makes_one(tmp_path: Path) -> None:
    need("qemu-system-x86_64", "qemu-img")
    driver = QemuDriver(settings(tmp_path, "tap:ognotthere"))
    health = driver.detect()
    assert health.level is HealthLevel.UNUSABLE
    assert "ognotthere does not exist" in health.sentence
    with pytest.raises(DriverError) as caught:
        driver._boot.need_tap()
    assert caught.value.trouble is Trouble.MISSING
