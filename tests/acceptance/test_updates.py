"""Old programs: no units below the floor; workers update themselves, and go back by themselves."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.new_release import CRASH, HANG, IMPORT_ERROR, make_wheel
from acceptance.projects import double_job, expected_output
from officegrid import __version__
from officegrid.client.updates import push as push_release
from officegrid.wire.jobs import WhyReply
from officegrid.wire.updates import FloorSettings, ReleaseView, UpdateList

VERSIONS = itertools.count(2)


@pytest.fixture
def version() -> str:
    """One that no test has pushed before: one version is one content."""
    return f"0.{next(VERSIONS)}.0"


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    made = Grid(tmp_path_factory.mktemp("updates") / "grid")
    try:
        made.start()
        made.join("me", "submitter")
        yield made
    finally:
        made.close()


@pytest.fixture
def grid(office: Grid) -> Iterator[Grid]:
    """The grid of all tests here, without a floor or a release in force, and its worker w1 as it
    was installed."""
    call = office.connection().call
    while any(one.state == "in force" for one in _updates(office)):
        call("POST", "/v1/updates/roll-back")
    call("PUT", "/v1/floor", body=FloorSettings(worker="", agent="", image=0))
    yield office
    for one in office.background:
        if one.running and one is not office.server:
            one.kill()
    shutil.rmtree(releases_of(office), ignore_errors=True)


def _updates(grid: Grid) -> list[ReleaseView]:
    return grid.connection().call("GET", "/v1/updates", reply=UpdateList).releases


def push(grid: Grid, wheel: Path) -> ReleaseView:
    return push_release(grid.connection(), wheel).releases[0]


def facts(grid: Grid) -> dict[str, Any]:
    return grid.machine("w1").facts


def wait_version(grid: Grid, version: str) -> dict[str, Any]:
    return wait_for(
        lambda: found if (found := facts(grid)).get("version") == version else None,
        f"it runs {version} (it runs {facts(grid)})",
    )


def wait_failed(grid: Grid, version: str) -> str:
    def failure() -> str | None:
        found = facts(grid).get("update_failed") or {}
        return str(found["why"]) if found.get("version") == version else None

    return wait_for(failure, f"it says why {version} failed")


def why(grid: Grid, subject: str) -> str:
    reply = grid.connection().call("GET", f"/v1/why/{subject}", reply=WhyReply)
    return " ".join(reply.sentences)


def releases_of(grid: Grid) -> Path:
    return grid.home("w1") / "worker" / "releases"


def test_a_worker_changes_over_between_units_and_back(
    grid: Grid, tmp_path: Path, version: str
) -> None:
    job_file = double_job(
        tmp_path / "p", records=1200, pause_s=0.004, bad_every=100, name="job-over"
    )
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1", "--slots", "2")
    grid.wait_done(job_id, 40)
    pushed = push(grid, make_wheel(tmp_path, version))
    found = wait_version(grid, version)
    assert grid.job(job_id).state == "running", "the change must be in the middle of the job"
    assert found["release"] == pushed.digest
    assert w1.running, "it is the same process"
    assert "worker.changes_over" in w1.text()
    assert _updates(grid)[0].running == 1
    grid.connection().call("POST", "/v1/updates/roll-back")
    assert "release" not in wait_version(grid, __version__)
    assert w1.running
    view = grid.wait_job(job_id)
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output
    assert view.quarantined == 12
    story = grid.story(job_id)
    assert not [line for line in story if "come back" in line], "a unit was lost"
    assert any(f"now runs {version}" in line for line in grid.story("w1"))
    assert f"local admin: release {version} is in force" in grid.story("updates")[-2:], "who"
    assert w1.stop() == 0
    kept = sorted(path.name for path in releases_of(grid).iterdir())
    assert kept == sorted([pushed.digest, "state.json"]), "the way forward needs no download"


def test_below_the_floor_there_is_no_work_until_the_worker_has_updated_itself(
    grid: Grid, tmp_path: Path, version: str
) -> None:
    w1 = grid.worker("w1")
    nonsense = grid.run("floor", "--worker", "newest")
    assert nonsense.returncode == 2
    assert "'newest' is not a version" in nonsense.stderr
    shown = grid.ok("floor", "--worker", "0.1.5")
    assert "0.1.5" in shown
    assert "below the floor 0.1.5" in w1.wait_text("update.below_floor")
    job_file = double_job(tmp_path / "p", records=60, name="job-waits")
    job_id = grid.submit(job_file)
    said = why(grid, "w1")
    assert f"officegrid {__version__}, which is below the floor 0.1.5" in said
    assert "officegrid update push" in said
    assert "below the floor" in why(grid, job_id)
    assert "TOO OLD: w1" in grid.ok("machines")
    below = len(grid.read("floor")["below"])
    with grid.browser("admin") as browser:
        metrics = browser.get("/metrics").text
    assert below
    assert f"officegrid_machines_below_floor {below}.0" in metrics
    assert grid.job(job_id).units_running == 0

    lacking = make_wheel(tmp_path / "lacking", "0.1.6", requires="no-such-library>=3")
    push(grid, lacking)
    assert "no-such-library>=3 (not installed)" in wait_failed(grid, "0.1.6")
    assert "no-such-library" in why(grid, "w1")
    assert w1.text().count("update.update_ordered") == 1, "it is not tried over and over"
    assert grid.job(job_id).done == 0

    push(grid, make_wheel(tmp_path, version))
    grid.wait_job(job_id)
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output
    assert facts(grid)["version"] == version
    assert "update_failed" not in facts(grid)
    assert "floor" not in why(grid, "w1")
    assert "update_failed" not in facts(grid)
    by_cron = grid.run("worker", "--drain", home="w1")
    assert "already running" in by_cron.stderr, "the same process holds the lock"
    assert str(w1.pid) in (grid.home("w1") / "worker" / "worker.lock").read_text()


def test_a_release_that_does_not_come_up_is_given_up_by_itself(
    grid: Grid, tmp_path: Path, version: str
) -> None:
    """One that cannot be loaded, and one that gets nowhere."""
    job_file = double_job(tmp_path / "p", records=400, pause_s=0.005, name="job-broken")
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1", env={"OFFICEGRID_TRIAL_S": "1"})
    push(grid, make_wheel(tmp_path, version, IMPORT_ERROR))
    assert "no_such_library" in wait_failed(grid, version)
    assert facts(grid)["version"] == __version__
    assert f"Its update to {version} did not work there" in why(grid, "w1")
    assert [one.name for one in _updates(grid)[0].failed] == ["w1"]
    assert w1.text().count("update.update_ordered") == 1, "it is not tried over and over"
    assert "did not work on w1" in grid.ok("update", "retry")
    wait_for(lambda: w1.text().count("releases.release_failed") == 2, "it tried again")

    hangs = f"{version}.post1"
    push(grid, make_wheel(tmp_path, hangs, HANG))
    said = wait_failed(grid, hangs)
    assert "Within 1 s the coordinator has heard nothing of it" in said
    grid.wait_job(job_id)
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output
    assert w1.running, "the same process all the time"


def test_a_release_that_dies_at_once_is_given_up_after_two_starts(
    grid: Grid, tmp_path: Path, version: str
) -> None:
    job_file = double_job(tmp_path / "p", records=200, pause_s=0.005, name="job-dies")
    job_id = grid.submit(job_file)
    first = grid.worker("w1")
    push(grid, make_wheel(tmp_path, version, CRASH))
    assert first.wait() == 7
    second = grid.begin("w1", "worker", home="w1")  # as systemd or cron would
    assert second.wait() == 7
    third = grid.begin("w1", "worker", home="w1")
    assert "started 2 times" in wait_failed(grid, version)
    grid.wait_job(job_id)
    assert third.running
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output


@pytest.mark.parametrize("moment", ["update_ordered", "worker.changes_over"])
def test_killed_in_the_middle_of_an_update_it_still_arrives(
    grid: Grid, tmp_path: Path, version: str, moment: str
) -> None:
    job_file = double_job(tmp_path / "p", records=150, pause_s=0.004, name=f"job-{version}")
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1")
    release = push(grid, make_wheel(tmp_path, version)).digest
    w1.wait_text(moment)
    w1.kill()
    again = grid.begin("w1", "worker", home="w1")
    wait_version(grid, version)
    grid.wait_job(job_id)
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output
    assert again.running
    left = [path.name for path in releases_of(grid).iterdir()]
    assert not [each for each in left if each.startswith(".")]

    if moment == "update_ordered":
        return  # the rest is the same
    again.wait_text("release_good")
    again.kill()
    damaged = releases_of(grid) / release / "officegrid" / "worker" / "slot.py"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"#")
    third = grid.begin("w1", "worker", home="w1")
    third.wait_text("files_lost")
    third.wait_text("release_good")
    assert damaged.read_bytes()[-1:] == b"\n", "it was fetched again"


def test_only_an_admin_pushes_and_only_workers_fetch_and_only_what_is_in_force(
    grid: Grid, tmp_path: Path, version: str
) -> None:
    grid.join("w1", "worker")
    wheel = make_wheel(tmp_path, version)
    refused = grid.run("update", "push", str(wheel), home="me")
    assert refused.returncode == 1
    assert "may not do this" in refused.stderr
    other = tmp_path / "other.whl"
    other.write_bytes(wheel.read_bytes()[:-200])
    assert "It is damaged, or no wheel" in grid.run("update", "push", str(other)).stderr
    digest = push(grid, wheel).digest
    path = f"/v1/release/{digest}"
    with grid.browser("me") as me, grid.browser("w1") as worker:
        for route in ("/v1/updates", "/v1/updates/roll-back", "/v1/updates/retry"):
            assert me.post(route, json={"digest": digest}).status_code == 403
        assert me.put("/v1/floor", json={"worker": "1.0"}).status_code == 403
        assert me.get(path).status_code == 403
        assert worker.get(path).content == wheel.read_bytes()
        assert worker.get(f"/v1/objects/{digest}").status_code == 403, "no general hole"
        grid.connection().call("POST", "/v1/updates/roll-back")
        assert worker.get(path).status_code == 404
    push(grid, wheel)
    by_cron = grid.run("worker", "--drain", home="w1")
    assert by_cron.returncode == 0, by_cron.stderr
    assert facts(grid)["release"] == digest, "with --drain it updates before it ends"
    grid.connection().call("POST", "/v1/updates/roll-back")
    own = grid.read("update", "push")
    assert own["releases"][0]["version"] == __version__, "what runs here, as a wheel"


def test_while_the_coordinator_is_away_no_release_is_blamed_and_a_stop_is_no_failure(
    grid: Grid, tmp_path: Path, version: str
) -> None:
    w1 = grid.worker("w1", env={"OFFICEGRID_TRIAL_S": "1"})
    push(grid, make_wheel(tmp_path, version, HANG))
    w1.wait_text("worker.changes_over")  # only then: it waits for a coordinator that is away
    grid.coordinator().kill()
    try:
        w1.wait_text("stays on trial: the coordinator is away")
        w1.send(signal.SIGTERM)
        assert w1.wait(20) == 0
    finally:
        grid.start()
    assert "is given up" not in w1.text()
    note = (releases_of(grid) / "ended.json").read_text()
    assert "stopped" in note
