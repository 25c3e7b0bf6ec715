"""The system watches connections to the coordinator, directly and through a proxy."""

from __future__ import annotations

import re
import subprocess

import pytest
from loopback_servers import Grid, Told, connect_proxy

from officegrid.transport import client
from officegrid.transport.http import Connection
from parts import need


def probes_of(port: int) -> list[str]:
    """What the kernel does about each established connection to `port`."""
    need("ss")
    said = subprocess.run(
        ["ss", "-Htno", "state", "established", "dport", "=", f":{port}"],
        capture_output=True, text=True, check=True, timeout=10,
    ).stdout  # fmt: skip
    return [re.sub(r".*?(timer:\((\w+).*\))?$", r"\2", line) for line in said.splitlines()]


def test_a_connection_that_waits_is_probed(grid: Grid, connection: Connection) -> None:
    connection.call("GET", "/v1/claim", reply=Told)
    port = int(grid.url.rpartition(":")[2])
    assert probes_of(port) == ["keepalive"]


def test_so_is_one_through_a_proxy(grid: Grid, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "is_loopback", lambda url: False)
    seen: list[bytes] = []
    with connect_proxy(int(grid.url.rpartition(":")[2]), seen) as proxy_port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy_port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        with Connection(grid.url, grid.pki.ca_pem, token, retry_s=0) as connection:
            connection.call("GET", "/v1/claim", reply=Told)
            assert seen, "the proxy was not asked"
            assert probes_of(proxy_port) == ["keepalive"]
