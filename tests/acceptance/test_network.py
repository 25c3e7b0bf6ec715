"""The network between worker and coordinator is cut, or swallows everything, and comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acceptance.grid import LEASE_S, Grid, wait_for
from acceptance.projects import double_job, expected_output
from acceptance.proxy import Proxy


def _cut(proxy: Proxy) -> None:
    proxy.cut()


def _swallow(proxy: Proxy) -> None:
    proxy.weather = "blackhole"


@pytest.mark.parametrize("storm", [_cut, _swallow], ids=["cut", "blackhole"])
def test_a_worker_without_network_for_longer_than_its_lease_does_no_harm(
    grid: Grid, tmp_path: Path, storm: Callable[[Proxy], None]
) -> None:
    job_file = double_job(tmp_path / "p", records=1500, pause_s=0.005, bad_every=200)
    expected = expected_output(job_file)
    grid.join("w1", "worker")
    with Proxy(grid.port) as proxy:
        grid.redirect("w1", proxy.port)
        job_id = grid.submit(job_file)
        w1 = grid.worker("w1")
        grid.wait_done(job_id, 60)
        storm(proxy)
        expired = wait_for(
            lambda: [line for line in grid.story(job_id) if "w1 went silent" in line],
            "the lease of w1 expires",
            LEASE_S + 10,
        )
        assert expired
        grid.worker("w2")
        before = grid.job(job_id).done
        grid.wait_done(job_id, before + 20)
        proxy.weather = "fine"
        view = grid.wait_job(job_id)
        assert view.done + view.quarantined == view.total == expected.records
        assert grid.output(job_id, tmp_path / "out.csv") == expected.output
        # w1 is of use again, without having been started anew
        second = double_job(tmp_path / "q", records=200, name="second", pause_s=0.005)
        calm = grid.submit(second)
        wait_for(lambda: f"job={calm}" in w1.text(), "w1 commits units of the next job", 30)
        assert grid.wait_job(calm).done == 200
        assert w1.running


def test_a_network_that_is_cut_again_and_again_only_slows_a_job_down(
    grid: Grid, tmp_path: Path
) -> None:
    job_file = double_job(tmp_path / "p", records=600, pause_s=0.002)
    grid.join("w1", "worker")
    with Proxy(grid.port) as proxy:
        grid.redirect("w1", proxy.port)
        job_id = grid.submit(job_file)
        grid.worker("w1")
        for records in (10, 100, 250):
            grid.wait_done(job_id, records)
            proxy.cut()
            proxy.connections = 0
            proxy.weather = "fine"
            wait_for(lambda: proxy.connections, "w1 connects again")
        assert grid.wait_job(job_id).done == 600
        assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output
