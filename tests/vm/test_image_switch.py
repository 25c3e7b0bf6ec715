"""Images from the coordinator to a real VM: the first one, a better one at the next idle moment,
and a broken one from which the PC comes back by itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import double_job
from officegrid.agent.files import Folders
from officegrid.wire.images import ImageView
from vm.desk import Desk
from vm.guest import HOST, Guest

pytestmark = pytest.mark.timeout(1200)
BOOT_DEADLINE_S = 240
"""So long a boot on trial is watched; one takes ten seconds on a quiet machine. The broken image
powers off by itself, which counts at once."""
SWITCHED_WITHIN_S = 300.0


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    made = Grid(tmp_path / "grid", lease_s=10, names=[HOST])
    made.start()
    made.ok("image", "rollout", "--soak", "0s")
    yield made
    made.close()


@pytest.fixture
def desk(tmp_path: Path, grid: Grid, guest: Guest) -> Iterator[Desk]:
    made = Desk(tmp_path, grid, guest)
    # The kernel stays the same for all versions; the disk comes from the coordinator.
    settings = made.home / "agent.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("image =")]
    lines.insert(1, f"boot_deadline_s = {BOOT_DEADLINE_S}")
    lines += ["[images]", "rate_mb_s = 500", "rate_in_use_mb_s = 100"]
    settings.write_text("\n".join(lines))
    made.start()
    yield made
    made.close()


def build(folder: Path, name: str, disk: Path) -> Path:
    """What `officegrid image build` leaves, as far as a push needs it."""
    folder.mkdir()
    file = folder / f"{name}.qcow2"
    file.write_bytes(disk.read_bytes())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    files = {"qcow2": {"name": file.name, "size": file.stat().st_size, "sha256": sha256}}
    described = {"name": name, "worker_version": "test", "about": {}, "files": files}
    (folder / "image.json").write_text(json.dumps(described))
    return folder


def use_of(grid: Grid, version: str) -> tuple[str, str]:
    """(state, text) of the only desktop, about an image."""
    view = grid.connection().call("GET", f"/v1/images/{version}", reply=ImageView)
    return (view.uses[0].state, view.uses[0].text) if view.uses else ("", "")


def running(grid: Grid, version: str) -> int:
    return grid.connection().call("GET", f"/v1/images/{version}", reply=ImageView).running


def accept(grid: Grid, version: str) -> None:
    """Have it made the image of all desktops, unless it is already."""

    def accepted() -> bool:
        grid.run("image", "rollout", version, "--finish")
        view = grid.connection().call("GET", f"/v1/images/{version}", reply=ImageView)
        return view.state == "current"

    wait_for(accepted, f"{version} is current", 60)


def wait_good(grid: Grid, version: str) -> None:
    within_s = SWITCHED_WITHIN_S
    wait_for(lambda: use_of(grid, version)[0] == "good", f"{version} is good", within_s)


def test_images_come_and_go(desk: Desk, guest: Guest, tmp_path: Path) -> None:
    """A good image is taken, a broken one given back. (A short name: it is in a socket's path.)"""
    grid, images = desk.grid, Folders(desk.home).images
    job_id = grid.submit(
        double_job(tmp_path / "job", records=40_000, pause_s=0.02, unit_seconds=1.0)
    )

    # Nothing was pushed yet: the PC says what it waits for, and is in no trouble.
    desk.person.lock()
    wait_for(lambda: "image push" in grid.ok("why", desk.name), "why tells", 30)
    assert "image push" in grid.ok("agent", "status", home=desk.name)
    wait_for(lambda: desk.vm() == "absent", "the agent has looked", 30)
    view = desk.view().desk
    assert view is not None
    assert view.state != "trouble"

    # The first image is fetched, and its worker works.
    grid.ok("image", "push", str(build(tmp_path / "v1", "grid-v1", guest.image)))
    desk.wait_up(SWITCHED_WITHIN_S)
    wait_good(grid, "v1")
    grid.wait_done(job_id, 20, 150)
    first = desk.worker()
    accept(grid, "v1")

    # A better one waits for the VM to be given back, and is there at the next idle moment.
    other = tmp_path / "other.qcow2"
    convert = ["qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=128k"]
    subprocess.run([*convert, guest.image, other], check=True)
    grid.ok("image", "push", str(build(tmp_path / "v2", "grid-v2", other)))
    wait_for(lambda: use_of(grid, "v2")[0] == "ready", "v2 is ready", 120)
    process = desk.process()
    assert process is not None
    assert process.is_running()
    desk.person.touch()
    desk.wait_gone()
    desk.person.lock()
    wait_good(grid, "v2")
    assert running(grid, "v2") == 1
    made = json.loads(desk.files.made_of.read_text())
    assert made["image"] == str(next(path for path in images.iterdir() if _is(path, other)))
    second = desk.worker()
    assert first is not None
    assert second is not None
    grid.wait_done(job_id, grid.job(job_id).done + 20, 150)
    accept(grid, "v2")

    # One that does not boot: two boots, then back to v2 by itself; the coordinator knows why.
    broken = tmp_path / "broken.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", broken, "64M"], check=True)
    grid.ok("image", "push", str(build(tmp_path / "v3", "grid-v3", broken)))
    wait_for(lambda: use_of(grid, "v3")[0] == "ready", "v3 is ready", 120)
    boots = desk.boots()
    desk.person.touch()
    desk.wait_gone()
    desk.person.lock()
    wait_for(lambda: use_of(grid, "v3")[0] == "failed", "v3 has failed", SWITCHED_WITHIN_S)
    assert use_of(grid, "v3")[1]
    wait_for(lambda: running(grid, "v2") == 1, "it is v2 that runs again", SWITCHED_WITHIN_S)
    grid.wait_done(job_id, grid.job(job_id).done + 20, 200)
    assert desk.boots() == boots + 3
    wait_for(lambda: any("goes back to grid-v2" in text for text in desk.story()), "told", 30)
    wait_for(lambda: not any(_is(path, broken) for path in images.iterdir()), "v3 is swept", 30)
    desk.person.touch()
    desk.wait_saved()


def _is(path: Path, image: Path) -> bool:
    return path.name == f"{hashlib.sha256(image.read_bytes()).hexdigest()}.qcow2"
