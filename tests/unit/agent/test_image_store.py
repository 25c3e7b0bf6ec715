"""Images on this PC's disk: what is remembered, what is swept, and what is left alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from officegrid.agent.images import hygiene as hygiene_module
from officegrid.agent.images.hygiene import Hygiene, vm_room_bytes
from officegrid.agent.images.store import GB, Store, folder_bytes
from officegrid.core.errors import LimitError, UnavailableError
from officegrid.core.imageevents import Held, Order
from officegrid.core.imagelife import Life
from unit.agent.desk_kit import wait_for


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "agent" / "images", tmp_path / "agent" / "images.json")


def put(store: Store, data: bytes, number: int = 1) -> Held:
    """An image's file, as a fetch leaves it."""
    sha256 = hashlib.sha256(data).hexdigest()
    held = Held(f"id{number}", number, f"grid-{number}", sha256, "qcow2", len(data))
    with store.open_part(sha256) as part:
        part.write(data)
    store.finish(held)
    return held


def test_a_life_is_kept_whole(store: Store) -> None:
    held = put(store, b"disk")
    known = Life(
        ordered=Order("id2", 2, "grid-2", retry=True), current=held, candidate=held,
        boots_in_vain=1, failed={"id3": "silent"}, remake="too large", made_of=held,
    )  # fmt: skip
    store.save(known)
    again = Store(store.folder, store.folder.with_suffix(".json"))
    assert again.load() == known
    assert not again.damaged


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "current": 7}', '{"format": 99}'])
def test_a_damaged_record_is_a_new_life_and_nothing_is_swept(store: Store, text: str) -> None:
    held = put(store, b"the VM may rest on this")
    store.folder.with_suffix(".json").write_text(text)
    known = store.load()
    assert known == Life(unsure=True)
    assert store.sweep(()) == []
    assert store.holds(held)
    # An order does not say what the VM rests on, nor does a restart of the agent.
    store.save(replace(known, ordered=Order("id2", 2, "grid-2")))
    assert store.sweep(()) == []
    again = Store(store.folder, store.folder.with_suffix(".json"))
    assert again.load().unsure
    assert again.sweep(()) == []
    # Once something is known again, what is not needed goes.
    store.save(Life())
    assert len(store.sweep(())) == 1
    assert not store.holds(held)


def test_files_are_for_the_agent_alone_and_never_written_again(store: Store) -> None:
    path = store.path(put(store, b"disk"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with store.open_part("0" * 64):
        assert stat.S_IMODE(store.part("0" * 64).stat().st_mode) == 0o600


def test_a_damaged_file_is_noticed(store: Store) -> None:
    held = put(store, b"disk")
    assert store.is_whole(held)
    path = store.path(held)
    os.chmod(path, 0o600)
    path.write_bytes(b"disc")
    assert store.holds(held)
    assert not store.is_whole(held)
    path.write_bytes(b"short")
    assert not store.holds(held)
    store.drop(held)
    assert not path.exists()
    assert not store.is_whole(held)


def test_a_sweep_takes_what_is_ours_and_not_needed(store: Store) -> None:
    kept, old = put(store, b"kept"), put(store, b"old", 2)
    store.open_part("a" * 64).close()
    store.open_part("b" * 64).close()
    draft = store.folder.parent / ".images.json.4711.abcd"
    draft.write_text("{")
    foreign = [
        store.folder / "holiday.qcow2",
        store.folder / f"{'c' * 64}.txt",
        store.folder / f"{'C' * 64}.qcow2",
        store.folder / f"{'d' * 63}.qcow2",
        store.folder.parent / "orders.json",
        store.folder.parent / ".orders.json.1.ab",
    ]
    for path in foreign:
        path.write_text("not the store's")
    below = store.folder / f"{'e' * 64}.qcow2"
    below.mkdir()
    assert len(store.sweep({kept.sha256, old.sha256}, parts=False)) == 1, "the draft alone"
    draft.write_text("{")
    told = store.sweep({kept.sha256, "b" * 64})
    assert len(told) == 3
    assert old.sha256 in " ".join(told)
    assert store.holds(kept)
    assert store.part("b" * 64).exists()
    assert not store.path(old).exists()
    assert not store.part("a" * 64).exists()
    assert not draft.exists()
    assert all(path.exists() for path in [*foreign, below])


def test_room_is_counted_before_anything_is_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.folder.parent.parent)
    free = 5 * GB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    store.need_room("grid-1", 2 * GB, 2 * GB)
    with pytest.raises(LimitError, match="no room") as caught:
        store.need_room("grid-1", 2 * GB + 1, 2 * GB)
    assert "5.0 GB are free" in caught.value.why
    assert caught.value.fix
    # An OVA is unpacked into the VM's own disk, the others are not.
    assert vm_room_bytes(GB, "ova", 1024) - vm_room_bytes(GB, "qcow2", 1024) == 3 * GB


def test_a_record_that_cannot_be_written_is_a_sentence(store: Store) -> None:
    store.folder.parent.write_text("a file where the folder should be")
    with pytest.raises(UnavailableError, match="cannot keep"):
        store.save(Life())
    with pytest.raises(UnavailableError, match="cannot write the image"):
        store.open_part("a" * 64)


def test_a_folder_is_measured_by_what_it_takes(tmp_path: Path) -> None:
    assert folder_bytes(tmp_path / "none") == 0
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 * GB)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "full").write_bytes(b"x" * 300_000)
    assert 300_000 <= folder_bytes(tmp_path) < 2_000_000


class Sweeper:
    """A driver as far as hygiene goes."""

    name = "sweeper"

    def __init__(self) -> None:
        self.swept: list[str] = []
        self.elsewhere = 0

    def sweep(self, keep_name: str) -> list[str]:
        self.swept.append(keep_name)
        return [f"A leftover beside {keep_name} was removed."]

    def disk_bytes(self) -> int:
        return self.elsewhere


def _hygiene(store: Store, told: list[str]) -> tuple[Hygiene, Sweeper]:
    def tell(text: str, *, once: bool = False) -> None:
        told.append(text)

    hygiene, driver = Hygiene(store, lambda: ((), True), tell), Sweeper()
    any_driver: Any = driver
    hygiene.use(any_driver, "GridMachine", pinned=False)
    return hygiene, driver


def test_the_quota_counts_all_the_vm_takes_and_tells_the_numbers(
    store: Store, tmp_path: Path
) -> None:
    hygiene, driver = _hygiene(store, [])
    vm = tmp_path / "vm"
    vm.mkdir()
    (vm / "overlay.qcow2").write_bytes(b"x" * 2_000_000)
    assert hygiene.outgrown(vm, 1.0, 1000.0) == ""
    driver.elsewhere = 2 * GB
    assert hygiene.outgrown(vm, 1.0, 1010.0) == "", "looked at again too soon"
    said = hygiene.outgrown(vm, 1.0, 1100.0)
    assert "2.0 GB" in said
    assert "1 GB" in said
    # A VM that is too large from the beginning gets to work nevertheless.
    assert hygiene.outgrown(vm, 1.0, 5000.0) == ""
    assert hygiene.outgrown(vm, 1.0, 1100.0 + hygiene_module.OUTGROWN_EVERY_S) != ""


def test_files_and_vms_are_swept_at_the_start_and_then_daily(store: Store) -> None:
    told: list[str] = []
    hygiene, driver = _hygiene(store, told)
    old = put(store, b"old")
    for now_s in (10.0, 20.0, 80_000.0):
        hygiene.daily(now_s)
    wait_for(lambda: driver.swept == ["GridMachine"], "one sweep")
    wait_for(lambda: told, "it is told")
    assert not store.holds(old)
    hygiene.daily(90_000.0)
    wait_for(lambda: len(driver.swept) == 2, "another a day later")


def test_with_an_image_of_the_admins_own_no_file_is_swept(store: Store) -> None:
    hygiene, driver = _hygiene(store, [])
    old = put(store, b"a VM may rest on it")
    any_driver: Any = driver
    hygiene.use(any_driver, "GridMachine", pinned=True)
    hygiene.sweep_files()
    assert store.holds(old)


def test_the_record_names_its_format(store: Store) -> None:
    store.save(Life())
    assert json.loads(store.folder.with_suffix(".json").read_text())["format"] == 1
