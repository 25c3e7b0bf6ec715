"""Workers of one network that fetch their data from one another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import httpx2
import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import digest_job
from officegrid.wire.peers import PeerList

PIECES = 3


def _peers(grid: Grid) -> PeerList:
    return grid.connection().call("GET", "/v1/peers", reply=PeerList)


def _run(grid: Grid, folder: Path, big: bytes) -> None:
    job_id = grid.submit(digest_job(folder, records=60, pause_s=0.05, unit_seconds=0.3))
    grid.wait_job(job_id)
    lines = grid.output(job_id, folder / "got.csv").decode().splitlines()[1:]
    right = hashlib.sha256(big).hexdigest()
    assert lines == [f"{n},{right}" for n in range(60)]


def test_the_second_worker_gets_the_data_from_the_first(grid: Grid, tmp_path: Path) -> None:
    grid.coordinator().stop()
    (grid.data / "coordinator.toml").write_text("[peers]\nallow = true\n")
    grid.start()
    grid.join("me", "submitter")
    big = os.urandom(20_000_000)
    (tmp_path / "big").write_bytes(big)
    grid.ok("data", "push", "big", str(tmp_path / "big"), home="me")
    first = grid.worker("w1", "--peers-port", "0")
    _run(grid, tmp_path / "one", big)
    one = wait_for(
        lambda: next((p for p in _peers(grid).peers if p.objects == PIECES), None), "it shares"
    )
    assert (one.name, one.address, one.network) == ("w1", "127.0.0.1", "127.0.0.0/24")
    with grid.browser("me") as stranger, pytest.raises(httpx2.TransportError):
        stranger.get(f"https://127.0.0.1:{one.port}/v1/objects/{'0' * 64}")

    second = grid.worker("w2", env={"OFFICEGRID_PEERS_PORT": "0"})
    _run(grid, tmp_path / "two", big)
    second.wait_text("peers.from_peer")
    wait_for(lambda: len(_peers(grid).peers) == 2, "both share")
    got = _peers(grid)
    assert (got.got_objects, got.got_bytes > len(big)) == (PIECES, True)
    text = grid.ok("peers")
    assert "w1" in text and f"From one another: {PIECES} objects" in text  # noqa: PT018
    with grid.browser("admin") as browser:
        metrics = dict(
            line.rsplit(" ", 1)
            for line in browser.get("/metrics").text.splitlines()
            if line.startswith("officegrid_peers")
        )
    assert float(metrics["officegrid_peers_got_bytes_total"]) == got.got_bytes
    assert float(metrics["officegrid_peers_sharing"]) == 2
    grid.ok("revoke", "w1")
    assert [p.name for p in _peers(grid).peers] == ["w2"]
    assert first.wait() != 0


def test_a_grid_that_does_not_allow_it_has_no_peers(grid: Grid) -> None:
    worker = grid.worker("w1", "--peers-port", "0")
    worker.wait_text("off: the coordinator does not allow it")
    assert "[peers] in coordinator.toml is off" in grid.ok("peers")
    assert grid.read("peers") == {"allowed": False, "peers": [], "got_objects": 0, "got_bytes": 0}
    assert [c.laddr.port for p in worker.children() for c in p.net_connections("tcp")] == []
