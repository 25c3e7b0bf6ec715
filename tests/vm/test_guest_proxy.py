"""A guest whose only way to the coordinator is an HTTP proxy."""

from __future__ import annotations

from pathlib import Path

from acceptance.projects import double_job, expected_output
from vm.connect_proxy import ConnectProxy
from vm.guest import Guest
from vm.netlab import COORDINATOR, COORDINATOR_ADDRESS, UP_WITHIN_S, A, Lab, run


def test_a_guest_behind_a_proxy_joins_and_works(guest: Guest, tmp_path: Path) -> None:
    with (
        Lab(tmp_path / "lab") as lab,
        ConnectProxy(A.gateway, {COORDINATOR: COORDINATOR_ADDRESS}) as proxy,
    ):
        lab.serve_dhcp(A)
        grid = lab.grid(tmp_path / "grid")
        lab.rule("input", f"ip saddr {A.prefix}.0/24 tcp dport {grid.port} counter drop")
        pc = lab.guest(grid, guest, A, "pc-1", guest_settings={"proxy": proxy.url})
        job_file = double_job(tmp_path / "p", records=300, pause_s=0.01, bad_every=70)
        job = grid.submit(job_file)
        pc.says("worker.started")
        view = grid.wait_job(job, within_s=UP_WITHIN_S)
        plain = expected_output(job_file)
        assert view.done + view.quarantined == view.total == plain.records
        assert grid.output(job, tmp_path / "out.csv") == plain.output
        assert pc.committed(job)
        # All of it through the proxy, by name; nobody tried another way.
        assert set(proxy.asked) == {f"{COORDINATOR}:{grid.port}"}
        assert "counter packets 0 " in run("nft", "list", "table", "inet", "lab")
