"""Copies of workers, as real processes against a real server: each becomes one machine, or is
reported; no record is lost or done twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acceptance.grid import Grid, Running, wait_for
from acceptance.projects import double_job, expected_output
from officegrid.transport.profile import load_profile
from officegrid.wire.jobs import MachineList, MachineView

HERE, THERE = "a" * 32, "b" * 32
CLONES = 20
AT_ONCE = 5


class Copies:
    """Homes of workers, each with the seed file its guest program would write."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def seed_file(self, name: str) -> Path:
        return self.grid.folder / "run" / name / "join.json"

    def tell(self, name: str, kind: str, hardware_id: str, code: str = "") -> None:
        """Write the seed file as the guest's program does: whole or not at all."""
        path = self.seed_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"kind": kind, "instance_id": f"i-{name}", "name": name, "url": self.grid.url,
                "hardware_id": hardware_id}  # fmt: skip
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({**told, **({"code": code} if code else {})}))
        draft.chmod(0o400)
        os.replace(draft, path)

    def begin(self, name: str, hardware_id: str = "", *options: str) -> Running:
        env = {"OFFICEGRID_SEED": str(self.seed_file(name)), "OFFICEGRID_HARDWARE_ID": hardware_id}
        return self.grid.begin(name, "worker", *options, home=name, env=env)

    def copy(self, name: str, to: str) -> None:
        shutil.copytree(self.grid.home(name), self.grid.home(to))

    def machine_id(self, name: str) -> str:
        return load_profile(self.grid.home(name)).machine_id

    def machines(self) -> dict[str, MachineView]:
        """The workers of the grid, by id."""
        reply = self.grid.connection().call("GET", "/v1/machines", reply=MachineList)
        return {one.id: one for one in reply.machines if one.role == "worker"}


def _alarms(grid: Grid) -> float:
    with grid.browser("admin") as client:
        text = client.get("/metrics").text
    line = next(line for line in text.splitlines() if line.startswith("officegrid_identity_alarms"))
    return float(line.split()[1])


def _finished(grid: Grid, job_id: str, job_file: Path, out: Path) -> None:
    """The output is exact: every record once, whoever did it."""
    view = grid.wait_job(job_id, within_s=80)
    assert view.quarantined == 0
    assert grid.output(job_id, out) == expected_output(job_file).output


def _lost(grid: Grid, job_id: str) -> list[str]:
    """The units that count as lost with their machine."""
    return [line for line in grid.story(job_id) if "come back" in line]


def test_twenty_clones_of_one_image_are_twenty_machines(grid: Grid, tmp_path: Path) -> None:
    copies = Copies(grid)
    job_file = double_job(tmp_path / "p", records=2000, unit_seconds=0.2)
    job_id = grid.submit(job_file)
    image = grid.home("image")  # what an image has: folders, and no identity
    (image / "worker").mkdir(parents=True)
    names = [f"pc-{number}" for number in range(CLONES)]
    for number, name in enumerate(names):
        copies.copy("image", name)
        copies.tell(name, "join", f"{number:032x}", grid.code("worker"))
    for first in range(0, CLONES, AT_ONCE):
        some = [
            copies.begin(name, f"{first + number:032x}", "--drain")
            for number, name in enumerate(names[first : first + AT_ONCE])
        ]
        for worker in some:
            assert worker.wait(60) == 0, worker.text()
    found = copies.machines()
    assert len(found) == CLONES
    assert sorted(one.name for one in found.values()) == sorted(names)
    assert len({one.facts["hardware_id"] for one in found.values()}) == CLONES
    assert {copies.machine_id(name) for name in names} == set(found)
    assert not [one for one in found.values() if one.alarm or one.cloned_from]
    assert not list((grid.folder / "run").rglob("join.json")), "the codes are gone"
    _finished(grid, job_id, job_file, tmp_path / "out.csv")


def test_a_code_is_good_for_one_machine_and_a_new_seed_mends_it(grid: Grid) -> None:
    copies = Copies(grid)
    code = grid.code("worker")
    copies.tell("one", "join", HERE, code)
    copies.tell("two", "join", THERE, code)
    one = copies.begin("one", HERE)
    one.wait_text("GRID-JOINED")
    two = copies.begin("two", THERE)
    two.wait_text("joining.refused")
    assert len(copies.machines()) == 1
    assert two.running
    copies.tell("two", "join", THERE, grid.code("worker"))
    two.wait_text("worker.started")
    assert len(copies.machines()) == 2
    three = copies.begin("three", "c" * 32)
    assert three.wait() == 1
    assert "has not joined a grid yet" in three.text()
    copies.tell("four", "join", "d" * 32, code)
    four = copies.begin("four", "d" * 32)
    four.wait_text("joining.refused")
    assert four.stop() == 0, "SIGTERM ends the wait"
    assert code not in one.text() + two.text() + four.text()
    assert [one.stop(), two.stop()] == [0, 0]


def test_a_copied_home_on_other_hardware_becomes_a_machine_of_its_own(
    grid: Grid, tmp_path: Path
) -> None:
    """No seed, no supervisor: the worker finds out from the coordinator, and goes on. Original
    and copy work side by side, and so does a copy of the copy that its guest has told."""
    copies = Copies(grid)
    job_file = double_job(tmp_path / "p", records=3000, pause_s=0.01)
    job_id = grid.submit(job_file)
    grid.join("original", "worker")
    copies.copy("original", "copy")
    original = copies.begin("original", HERE)
    original.wait_text("committed")
    copy = copies.begin("copy", THERE)
    copy.wait_text("worker.is_a_copy")
    copy.wait_text("GRID-JOINED")
    copy.wait_text("committed")
    copies.copy("copy", "third")
    copies.tell("third", "clone", "c" * 32)
    third = copies.begin("third", "c" * 32)
    third.wait_text("GRID-JOINED")
    third.wait_text("committed")
    assert "is_a_copy" not in third.text(), "it never worked under the identity it was copied with"
    found = copies.machines()
    ids = [copies.machine_id(name) for name in ("original", "copy", "third")]
    assert sorted(found) == sorted(ids)
    assert [found[one].cloned_from for one in ids] == [None, ids[0], ids[1]]
    assert [found[one].name for one in ids] == [
        "original", "original-bbbbbb", "original-bbbbbb-cccccc",
    ]  # fmt: skip
    assert "came back" not in original.text()
    assert "lease_lost" not in original.text(), "the original was not disturbed"
    _finished(grid, job_id, job_file, tmp_path / "out.csv")
    units = grid.connection().call("GET", f"/v1/machines/{ids[1]}", reply=MachineView)
    assert units.online
    assert f"copy of       {ids[0]}" in grid.ok("machine", ids[1])
    assert _alarms(grid) == 0, "every copy has an identity: nobody needs to do anything"
    assert any("joined as original-bbbbbb" in line for line in grid.story(ids[0]))
    grid.ok("revoke", ids[0])
    after = copies.machines()
    assert all(after[one].revoked for one in ids), "with the original go its copies"
    for worker in (original, copy, third):
        assert worker.wait() == 1
        assert "does not know this machine's token" in worker.text() or "revoked" in worker.text()


def test_the_original_and_its_copy_start_at_the_same_moment(grid: Grid, tmp_path: Path) -> None:
    """Nobody has told the coordinator yet on which hardware the machine is: one of them is it,
    the other becomes a copy."""
    copies = Copies(grid)
    job_file = double_job(tmp_path / "p", records=1500, pause_s=0.01)
    job_id = grid.submit(job_file)
    grid.join("original", "worker")
    copies.copy("original", "copy")
    both = [copies.begin("original", HERE), copies.begin("copy", THERE)]
    for worker in both:
        worker.wait_text("committed", 40)
    found = copies.machines()
    assert len(found) == 2
    assert sorted(one.cloned_from is None for one in found.values()) == [False, True]
    assert {one.facts["hardware_id"] for one in found.values()} == {HERE, THERE}
    assert {copies.machine_id("original"), copies.machine_id("copy")} == set(found)
    _finished(grid, job_id, job_file, tmp_path / "out.csv")
    assert [worker.stop() for worker in both] == [0, 0]


def test_copies_that_cannot_be_told_apart_raise_an_alarm(grid: Grid, tmp_path: Path) -> None:
    """No hardware id: two take turns under one identity, each started again by its supervisor."""
    copies = Copies(grid)
    job_file = double_job(tmp_path / "p", records=1500, pause_s=0.005)
    job_id = grid.submit(job_file)
    home = grid.join("original", "worker")
    copies.copy("original", "copy")
    machine_id = copies.machine_id("original")
    assert _alarms(grid) == 0
    first = grid.worker("original")
    first.wait_text("committed")
    second = copies.begin("copy")
    second.wait_text("committed")
    assert first.wait() == 1
    assert "taken this machine's place" in first.text()
    at_first = _lost(grid, job_id)  # it looked like a crash then
    again = grid.worker("original")
    again.wait_text("committed")
    assert second.wait() == 1
    view = grid.machine("original")
    assert view.alarm is not None
    assert view.alarm.startswith("two workers take turns under this identity")
    assert "ALARM, working" in grid.ok("machines")
    assert "two workers take turns" in grid.ok("machines")
    assert "ALARM" in grid.ok("machine", machine_id)
    assert "two workers take turns" in grid.ok("why", machine_id)
    told: list[Mapping[str, Any]] = grid.read("machines")
    assert [one["id"] for one in told if one["alarm"]] == [machine_id]
    assert grid.read("machine", machine_id)["alarm"].startswith("two workers take turns")
    assert _alarms(grid) == 1
    lines = [line for line in grid.story(machine_id) if "two workers take turns" in line]
    assert len(lines) == 1, "one line an hour"
    _finished(grid, job_id, job_file, tmp_path / "out.csv")
    assert _lost(grid, job_id) == at_first, "once it is known, no record is blamed for it"
    assert again.stop() == 0
    grid.ok("revoke", machine_id)
    assert _alarms(grid) == 0, "who shared the token is out"
    assert wait_for(lambda: grid.machine(machine_id).alarm is None, "the mark is gone")
    assert (home / "profile.json").exists()
