"""How the worker is started: its environment, cron's table, the flag of the service."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from guest_kit import GuestFiles

from officegrid.guest import ntp, start
from officegrid.guest.place import Place
from officegrid.guest.settings import Settings


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    made = GuestFiles(tmp_path)
    (tmp_path / "run/officegrid").mkdir()
    return made


def test_the_environment_means_the_same_to_a_shell_and_to_systemd(guest: GuestFiles) -> None:
    settings = Settings(slots=3, proxy="http://[2001:db8::1]:3128", peers_port=8444)
    start.prepare(guest.place, settings, "abc")
    script = f'set -a; . {guest.place.worker_env}; env | grep -E "^(OFFICEGRID|HTTPS)_" | sort'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env={})
    # systemd.exec(5), EnvironmentFile: KEY=VALUE lines; nothing here needs quotes.
    assert done.stdout == "".join(sorted(guest.read("run/officegrid/worker.env").splitlines(True)))
    assert done.stdout.splitlines() == [
        "HTTPS_PROXY=http://[2001:db8::1]:3128", "OFFICEGRID_HARDWARE_ID=abc",
        f"OFFICEGRID_HOME={guest.place.home}", "OFFICEGRID_PEERS_PORT=8444",
        f"OFFICEGRID_SEED={guest.place.join}", "OFFICEGRID_SLOTS=3",
    ]  # fmt: skip
    plain = start.worker_env(guest.place, Settings(), "abc")
    assert "HTTPS_PROXY" not in plain
    assert "PEERS" not in plain


def test_a_service_or_cron_and_never_both(guest: GuestFiles) -> None:
    cron, flag = Path(guest.place.cron), Path(guest.place.start_service)
    start.prepare(guest.place, Settings(), "abc")
    assert (flag.exists(), cron.exists()) == (True, False)
    start.prepare(guest.place, Settings(start="cron"), "abc")
    assert (flag.exists(), cron.exists()) == (False, True)
    start.prepare(guest.place, Settings(), "abc")
    assert (flag.exists(), cron.exists()) == (True, False)


def test_the_table_of_cron() -> None:
    """crontab(5): five fields, the user, the command; % would end the command."""
    for init in ("systemd", "small"):
        settings = Settings(start="cron", every_minutes=7, init=init)
        table = start.cron_table(Place(), settings)
        assert table.endswith("\n")
        *variables, line = table.splitlines()
        assert all("=" in variable for variable in variables)
        fields = line.split(None, 6)
        assert fields[:6] == ["*/7", "*", "*", "*", "*", "grid"]
        assert fields[6].endswith("/usr/bin/officegrid worker --drain")
        assert "%" not in table
        assert ("systemd-cat" in table) is (init == "systemd")
        subprocess.run(["sh", "-n", "-c", fields[6]], check=True)


LEASE = """# This is private data. Do not parse.
ADDRESS=10.77.0.57
SERVER_ADDRESS=10.77.0.1
NTP=10.77.0.1 2001:db8::123 $(reboot)
DNS=10.77.0.1
"""


def test_time_servers_of_the_lease() -> None:
    assert ntp.from_lease(LEASE) == ["10.77.0.1", "2001:db8::123"]
    assert ntp.from_lease("DNS=1.2.3.4\n") == []
    assert ntp.sources(["a", "b", "a"]) == "server a iburst\nserver b iburst\n"


def test_chrony_is_told_once_and_again_when_the_lease_names_others(
    guest: GuestFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(ntp.programs, "run", lambda *argv, **_: ran.append(argv))
    servers = ntp.TimeServers(guest.place, [])
    servers.tick()
    assert ran == [], "no server, no chrony"
    guest.put("run/systemd/netif/leases/2", LEASE)
    servers.tick()
    servers.tick()
    assert ran == [("systemctl", "start", "--no-block", "chrony.service")]
    guest.put("run/chrony/chronyd.sock", "")
    guest.put("run/systemd/netif/leases/2", "NTP=10.77.0.2\n")
    servers.tick()
    assert ran[1:] == [("chronyc", "-n", "reload", "sources")]
    assert Path(guest.place.chrony_sources).read_text() == "server 10.77.0.2 iburst\n"


def test_the_seed_s_time_servers_come_first(
    guest: GuestFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ntp.programs, "run", lambda *_, **__: None)
    guest.put("run/systemd/netif/leases/2", LEASE)
    ntp.TimeServers(guest.place, ["time.firm"]).tick()
    assert Path(guest.place.chrony_sources).read_text() == "server time.firm iburst\n"
