"""What `officegrid agent status` says about the VM's image."""

from __future__ import annotations

from typing import Any

import pytest

from officegrid.cli.agent_look import status_lines
from officegrid.wire.images import ImageReport

OLD, NEW = "1" * 64, "2" * 64


def lines(**told: Any) -> list[str]:
    image = ImageReport(**told).model_dump()
    found = status_lines({"decision": "yield", "at": 2e9, "image": image})
    return [line for line in found if line.startswith(("image", "         "))]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"pinned": True, "format": "qcow2"}, "a file of this PC's own"),
        ({"format": "ova", "running": OLD}, "the VM is made from 111111111111"),
        (
            {"format": "ova", "image": NEW, "state": "fetching", "done_bytes": 37,
             "total_bytes": 100},
            "there is no VM yet; 222222222222 is being fetched 37 %",
        ),
        (
            {"format": "ova", "running": OLD, "image": NEW, "state": "trial"},
            "made from 111111111111; 222222222222 is on trial",
        ),
    ],
)  # fmt: skip
def test_it_says_in_words(told: dict[str, Any], expected: str) -> None:
    (line,) = lines(**told)
    assert expected in line


def test_a_failure_comes_with_its_reason() -> None:
    first, second = lines(
        format="ova", running=OLD, image=NEW, state="failed", text="Its worker was never heard."
    )
    assert "222222222222 failed here" in first
    assert "Its worker was never heard." in second


def test_a_driver_without_images_says_nothing() -> None:
    assert lines() == []
    assert status_lines({"decision": "run", "at": 2e9})


def test_a_desktop_below_the_floor_says_so() -> None:
    told = "The desktop's agent runs officegrid 0.1.0, which is below the floor 0.2.0."
    found = status_lines({"decision": "run", "at": 2e9, "below_floor": told})
    assert f"too old  {told}" in found
    assert not [line for line in status_lines({"decision": "run", "at": 2e9}) if "too old" in line]
