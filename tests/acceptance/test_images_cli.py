"""Images by real processes: pushed over TLS, told to desktops, fetched by pieces, rolled back."""

from __future__ import annotations

import hashlib
import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from acceptance.grid import Grid, wait_for
from acceptance.proxy import Proxy
from officegrid.cli.main import cli
from officegrid.client.images import PushProgress, push, read_spec
from officegrid.core.errors import UnavailableError, UsageError
from officegrid.transport.http import Connection
from officegrid.transport.join import join
from officegrid.transport.profile import load_profile
from officegrid.wire.agent import AgentOrders, AgentReport, DeskStatus
from officegrid.wire.images import CHUNK_BYTES, ImageOrder, ImageReport, ImageSpec, ImageView

MB = 1024 * 1024
STATUS = DeskStatus(decision="run", rule="away", sentence="Nobody has used this PC for 20 min.")


def build(folder: Path, name: str, megabytes: float = 9, seed: str = "") -> Path:
    """What `image build` leaves: noise in two formats that share their first chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(name + seed)
    disk = source.randbytes(int(megabytes * MB))
    contents = {"qcow2": disk, "ova": disk[:CHUNK_BYTES] + source.randbytes(3)}
    files = {}
    for kind, content in contents.items():
        (folder / f"{name}.{kind}").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        files[kind] = {"name": f"{name}.{kind}", "size": len(content), "sha256": sha256}
    described = {
        "name": name, "worker_version": "0.4", "built_at": 1.5e9,
        "about": {"system": "Debian 12", "parts": ["php", "python"]}, "files": files,
    }  # fmt: skip
    (folder / "image.json").write_text(json.dumps(described))
    return folder


class Desk:
    """A desktop whose agent is this test; what it says travels as real reports do."""

    def __init__(self, grid: Grid, name: str, code: str, file_format: str = "qcow2") -> None:
        self.name = name
        self.format = file_format
        profile = join(grid.url, code, name=name, facts={})
        self.connection = Connection(profile.url, profile.ca_pem, profile.token)

    def say(self, image: ImageOrder | None = None, state: str | None = None,
            **more: Any) -> ImageOrder | None:  # fmt: skip
        said = ImageReport.model_validate(
            {"format": self.format, "image": image and image.id, "state": state, **more}
        )
        request = AgentReport(run_id="run-1", status=STATUS, image=said)
        path = "/v1/machine/report"
        return self.connection.call("POST", path, body=request, reply=AgentOrders).image

    def told(self) -> str | None:
        order = self.say()
        return None if order is None else order.name

    def fetch(self, order: ImageOrder) -> bytes:
        """The file for its driver, put together from its chunks."""
        path = f"/v1/images/{order.id}/spec"
        file = self.connection.call("GET", path, reply=ImageSpec).files[self.format]  # type: ignore[index]
        content = b""
        for chunk in file.chunks:
            piece = self.connection.download(f"/v1/image-chunks/{chunk}")
            assert hashlib.sha256(piece).hexdigest() == chunk
            content += piece
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
        return content


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A coordinator for those tests that leave one another alone."""
    made = Grid(tmp_path_factory.mktemp("images") / "grid")
    try:
        made.start()
        yield made
    finally:
        made.close()


def names(grid: Grid) -> list[str]:
    return [image["name"] for image in grid.read("image", "list")["images"]]


@pytest.fixture
def desks(grid: Grid) -> Iterator[list[Desk]]:
    code = grid.code("agent", uses=4)
    made = [Desk(grid, f"pc-{n}", code, "ova" if n == 3 else "qcow2") for n in range(4)]
    for desk in made:
        assert desk.say() is None, "nothing was pushed"
    yield made
    for desk in made:
        desk.connection.close()


def test_an_image_is_pushed_fetched_accepted_and_the_next_one_rolled_back(
    grid: Grid, desks: list[Desk], tmp_path: Path
) -> None:
    assert "No image was pushed yet" in grid.ok("image", "list")
    grid.ok("image", "rollout", "--soak", "1s", "--stages", "25%,100%")
    first = build(tmp_path / "b1", "grid-1")
    said = grid.run("image", "push", str(first))
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("grid-1 is version 1: rolling.")
    assert "MB sent" in said.stderr
    for desk in desks:
        order = desk.say()
        assert order is not None, "the first image goes to all at once"
        if desk.format == "ova" or desk is desks[0]:
            assert desk.fetch(order) == (first / f"grid-1.{desk.format}").read_bytes()
        desk.say(order, "good", running=order.id)
    wait_for(lambda: "current" in grid.ok("image", "list"), "it is accepted", 15)

    view = json.loads(grid.ok("image", "push", str(build(tmp_path / "b2", "grid-2")), "--json"))
    assert (view["version"], view["state"], view["share"]) == (2, "rolling", 0.25)
    told = {desk.name: desk.told() for desk in desks}
    assert sorted(told.values()) == ["grid-1", "grid-1", "grid-1", "grid-2"]
    [canary] = [desk for desk in desks if told[desk.name] == "grid-2"]
    order = canary.say()
    canary.say(order, "fetching", done_bytes=30, total_bytes=120, running=None)
    assert "25%" in grid.ok("image", "show", "2")
    canary.say(order, "failed", text="The worker was not heard of after 2 boots.")
    assert canary.told() == "grid-1"

    def listed() -> dict[str, Any]:
        return dict(grid.read("image", "list")["images"][0])

    wait_for(lambda: listed()["state"] == "rolled_back", "one failure of one is enough", 10)
    text = grid.ok("image", "list")
    row = next(line.split() for line in text.splitlines() if "grid-2" in line)
    assert row[:8] == ["2", "grid-2", "rolled", "back", "0%", "0", "0", "1"]
    assert f"first {canary.name}: The worker was not heard of after 2 boots" in text
    shown = grid.ok("image", "show", "grid-2")
    assert canary.name in shown
    assert "php, python" in shown
    refused = grid.run("image", "rollout", "2", "--pause")
    assert refused.returncode == 1
    assert "is rolled back" in refused.stderr
    grid.ok("image", "rollout", "2", "--resume")
    order = canary.say()
    assert order is not None
    assert (order.name, order.retry) == ("grid-2", True)
    grid.ok("image", "rollout", "2", "--finish")
    assert {desk.told() for desk in desks} == {"grid-2"}
    with grid.browser("admin") as browser:
        metrics = browser.get("/metrics").text
    assert 'officegrid_image_share{version="2"} 1.0' in metrics
    assert 'officegrid_image_desks{state="good",version="1"} 4.0' in metrics


def test_a_push_that_was_killed_goes_on_where_it_was(one: Grid, tmp_path: Path) -> None:
    folder = build(tmp_path / "b", "killed-1", 40)
    total = sum(path.stat().st_size for path in folder.iterdir())
    one.join("ann", "admin")
    with Proxy(one.port, up_bytes_per_s=20_000_000) as proxy:
        one.redirect("ann", proxy.port)
        first = one.begin("push", "image", "push", str(folder), home="ann")
        wait_for(lambda: proxy.up_bytes > 16 * MB, "a good part is there", 30)
        first.kill()
        assert "killed-1" not in names(one)
        before = proxy.up_bytes
        done = one.run("image", "push", str(folder), home="ann")
        assert done.returncode == 0, done.stderr
        assert proxy.up_bytes - before < total - 8 * MB
    assert "killed-1" in names(one)


def test_a_push_outlives_a_broken_connection(one: Grid, tmp_path: Path) -> None:
    folder = build(tmp_path / "b", "cut-1", 30)
    one.join("ann", "admin")
    with Proxy(one.port, up_bytes_per_s=20_000_000) as proxy:
        one.redirect("ann", proxy.port)
        running = one.begin("push", "image", "push", str(folder), home="ann")
        for mark in (6 * MB, 14 * MB):
            wait_for(lambda mark=mark: proxy.up_bytes > mark, "it is under way", 30)
            proxy.cut()
            proxy.weather = "fine"
        assert running.wait(60) == 0, running.text()
    image = one.connection().call("GET", "/v1/images/cut-1", reply=ImageView)
    assert image.sizes["qcow2"] == 30 * MB


def test_damaged_builds_are_refused_before_anything_travels(one: Grid, tmp_path: Path) -> None:
    folder = build(tmp_path / "b", "damaged-1")
    disk = folder / "damaged-1.qcow2"
    good = disk.read_bytes()
    disk.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    bad = one.run("image", "push", str(folder))
    assert bad.returncode == 1
    assert "is not the file that was built" in bad.stderr
    with one.browser("admin") as browser:
        first = hashlib.sha256(good[:CHUNK_BYTES]).hexdigest()
        answer = browser.post("/v1/objects/missing", json={"digests": [first]})
        assert answer.json()["missing"] == [first], "nothing was sent"
    disk.unlink()
    gone = one.run("image", "push", str(folder))
    assert gone.returncode == 2
    assert "There is no file" in gone.stderr
    (folder / "image.json").write_text('{"name": "../x", "files": {}}')
    wrong = one.run("image", "push", str(folder))
    assert wrong.returncode == 2
    assert "image.json is wrong at" in wrong.stderr
    nothing = one.run("image", "push", str(tmp_path))
    assert nothing.returncode == 2
    assert "no built image" in nothing.stderr
    described = {"name": "damaged-1", "files": {"qcow2": {"name": "../b/x", "size": 1}}}
    described["files"]["qcow2"]["sha256"] = hashlib.sha256(b"x").hexdigest()  # type: ignore[index]
    (folder / "x").write_bytes(b"x")
    (folder / "image.json").write_text(json.dumps(described))
    outside = one.run("image", "push", str(folder))
    assert outside.returncode == 2, "a name is no path"


def test_a_full_disk_of_the_coordinator_takes_no_half_image(one: Grid, tmp_path: Path) -> None:
    """Files of the coordinator may not grow, then they may."""
    folder = build(tmp_path / "b", "full-1")
    server = one.coordinator().pid
    profile = load_profile(one.home("admin"))
    connection = Connection(profile.url, profile.ca_pem, profile.token, retry_s=0)
    before = resource.prlimit(server, resource.RLIMIT_FSIZE)
    seen: list[PushProgress] = []
    with connection:
        try:
            resource.prlimit(server, resource.RLIMIT_FSIZE, (400_000, before[1]))
            with pytest.raises(UnavailableError, match="Run the same command again"):
                push(connection, folder)
        finally:
            resource.prlimit(server, resource.RLIMIT_FSIZE, before)
        assert "full-1" not in names(one)
        view = push(connection, folder, seen.append)
    assert (view.name, view.sizes["qcow2"]) == ("full-1", 9 * MB)
    assert seen[-1].done
    assert seen[-1].stored_bytes == seen[-1].total_bytes == 13 * MB + 3
    assert seen[-1].sent_bytes == 9 * MB + 3, "what both files have is sent once"


def test_only_whole_images_are_taken(one: Grid, tmp_path: Path) -> None:
    plain = read_spec(build(tmp_path / "b", "half-1")).model_dump()
    with one.browser("admin") as browser:
        answer = browser.post("/v1/images", json=plain)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "missing_block")
        for size in (9 * MB - 1, 9 * MB + 1, 8 * MB, 13 * MB):
            file = {**plain["files"]["qcow2"], "size": size}
            for chunk in range(3):
                piece = (tmp_path / "b" / "half-1.qcow2").read_bytes()[chunk * CHUNK_BYTES :]
                piece = piece[:CHUNK_BYTES]
                browser.put(f"/v1/objects/{file['chunks'][chunk]}", content=piece)
            answer = browser.post("/v1/images", json={**plain, "files": {"qcow2": file}})
            assert answer.status_code == 422, size
    assert "half-1" not in names(one)


def test_who_may_do_what(one: Grid, tmp_path: Path) -> None:
    one.ok("image", "push", str(build(tmp_path / "b", "roles-1", 1)))
    view = one.connection().call("GET", "/v1/images/roles-1", reply=ImageView)
    spec = read_spec(tmp_path / "b")
    chunk = spec.files["qcow2"].chunks[0]
    other = hashlib.sha256(b"no chunk").hexdigest()
    with one.browser("admin") as browser:
        browser.put(f"/v1/objects/{other}", content=b"no chunk")
        assert browser.get(f"/v1/image-chunks/{other}").status_code == 404
        part = browser.get(f"/v1/image-chunks/{chunk}", headers={"Range": "bytes=10-19"})
        assert (part.status_code, len(part.content)) == (206, 10)
        assert browser.get("/v1/images/7").status_code == 404
    asked = [
        ("GET", "/v1/images", None), ("GET", f"/v1/images/{view.id}", None),
        ("GET", f"/v1/images/{view.id}/spec", None), ("GET", f"/v1/image-chunks/{chunk}", None),
        ("POST", "/v1/images", spec.model_dump()),
        ("POST", f"/v1/images/{view.id}/rollout", {"action": "pause"}),
        ("PUT", "/v1/image-rollout", {"soak_s": 1800}),
    ]  # fmt: skip
    allowed = {
        "viewer": [200, 200, 200, 403, 403, 403, 403],
        "submitter": [200, 200, 200, 403, 403, 403, 403],
        "worker": [403, 403, 403, 403, 403, 403, 403],
        "agent": [403, 403, 200, 200, 403, 403, 403],
        "admin": [200, 200, 200, 200, 201, 200, 200],
    }
    for role, expected in allowed.items():
        if role != "admin":
            one.join(role, role)
        with one.browser(role) as browser:
            found = [browser.request(how, path, json=body) for how, path, body in asked]
            assert [answer.status_code for answer in found] == expected, role
    refused = one.run("image", "push", str(tmp_path / "b"), home="viewer")
    assert refused.returncode == 1
    assert "joined as viewer" in refused.stderr


def test_the_way_images_go_out_is_an_admins_to_say(one: Grid) -> None:
    assert one.read("image", "rollout") == {
        "stages": [0.01, 0.1, 1.0], "soak_s": 1800.0, "good_share": 0.8, "failed_share": 0.2,
    }  # fmt: skip
    text = one.ok("image", "rollout", "--soak", "10m", "--failed-share", "5%")
    assert "10 min" in text
    assert one.read("image", "rollout")["failed_share"] == 0.05
    for arguments, words in (
        (["--stages", "10%,1%"], "Stages grow"),
        (["--stages", "10%"], "Stages grow"),
        (["--soak", "soon"], "not a duration"),
        (["--good-share", "200%"], "--good-share is wrong"),
        (["--pause"], "Which image"),
        (["1", "--soak", "1m"], "for all images"),
    ):
        # In this process: each would start an interpreter of its own.
        done = CliRunner(env={"OFFICEGRID_HOME": str(one.home("admin"))}).invoke(
            cli, ["image", "rollout", *arguments]
        )
        assert isinstance(done.exception, UsageError), arguments
        assert words in str(done.exception)
    assert one.read("image", "rollout")["stages"] == [0.01, 0.1, 1.0]
    one.ok("image", "rollout", "--soak", "30m", "--failed-share", "0.2")
