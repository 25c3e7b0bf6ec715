"""Leases after an absence, and connections of addresses that are gone: real processes, real ss."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_kit import GuestFiles

from officegrid.core.errors import UnavailableError
from officegrid.guest import leases
from officegrid.guest.leases import OwnAddresses, local4, local6, may_be_over, own_addresses
from officegrid.guest.place import Place
from parts import need, without

LEASE = "# This is private data. Do not parse.\nADDRESS=10.77.0.57\nT1=1800\nLIFETIME=3600\n"


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    return GuestFiles(tmp_path)


@pytest.mark.parametrize(
    ("lease", "away_s", "over"),
    [(LEASE, 60, False), (LEASE, 1799, False), (LEASE, 1800, True), (LEASE, -5, True),
     ("ADDRESS=10.77.0.57\n", 5, True), ("LIFETIME=infinity\n", 5, True)],
)  # fmt: skip
def test_a_lease_may_be_over(lease: str, away_s: float, over: bool) -> None:
    assert may_be_over(lease, away_s) is over


def test_networkd_is_told_by_card(guest: GuestFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(leases.programs, "run", lambda *argv, **_: ran.append(argv))
    leases.ask_again(guest.place, 60)
    assert ran == [], "no lease, nothing to renew"
    guest.put("run/systemd/netif/leases/2", LEASE)
    guest.put("run/systemd/netif/leases/3", LEASE.replace("3600", "100"))
    guest.put("run/systemd/netif/leases/.#2draft", LEASE)
    leases.ask_again(guest.place, 60)
    assert ran == [("networkctl", "reconfigure", "3"), ("networkctl", "renew", "2")]


def test_networkctl_knows_these_verbs() -> None:
    need("networkctl")
    said = subprocess.run(["networkctl", "--help"], capture_output=True, text=True, check=True)
    assert {"renew", "reconfigure"} <= set(said.stdout.split())


def test_the_small_guest_s_client_is_woken(guest: GuestFiles) -> None:
    """A process that goes by the name of the client; and one that does not, whose number is in an
    old file."""
    script = guest.put("udhcpc", f"#!{sys.executable}\n" + WAITS)
    other = guest.put("other", f"#!{sys.executable}\n" + WAITS)
    processes = []
    try:
        for path in (script, other):
            path.chmod(0o755)
            process = subprocess.Popen([str(path)], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            guest.put(f"run/udhcpc/{path.name}", f"{process.pid}\n")
        guest.put("run/udhcpc/eth9", "none")
        leases.ask_again(guest.place, 60)
        assert processes[0].wait(20) == 7
        assert processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


WAITS = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("waits", flush=True)
signal.sigwait([signal.SIGUSR1])
sys.exit(7)
"""


def test_own_addresses_as_the_kernel_tells_them() -> None:
    need("ip")
    listed = subprocess.run(
        ["ip", "-o", "addr", "show"], capture_output=True, text=True, check=True
    ).stdout
    words = (line.split() for line in listed.splitlines())
    expected = {
        one[3].partition("/")[0]
        for one in words
        if one[1] != "lo" and not one[3].startswith(("fe80", "127."))
    }
    assert own_addresses(Place("/")) == expected


def test_lists_of_the_kernel() -> None:
    trie = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 10.0.2.15
        /32 host LOCAL
     |-- 10.0.2.255
        /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
"""
    assert local4(trie.splitlines()) == {"10.0.2.15"}
    lines = ["20010db8000000000000000000000001 02 40 00 80     eth0", "", "zz",
             "00000000000000000000000000000001 01 80 10 80       lo",
             "fe800000000000005054 00ff:fe12 02 40 20 80     eth0",
             "fe80000000000000505400fffe123456 02 40 20 80     eth0"]  # fmt: skip
    assert local6(lines) == {"2001:db8::1"}


@pytest.fixture
def net() -> Iterator[str]:
    need("ip", "ss")
    if os.geteuid() != 0:
        without("network namespaces need root")
    name = f"og{secrets.token_hex(3)}"
    ip = ["ip", "-n", name]
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run([*ip, "link", "set", "lo", "up"], check=True)
        subprocess.run(
            [*ip, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"], check=True
        )
        for address in ("10.92.0.2/24", "10.93.0.3/24", "fd92::2/64"):
            option = ["nodad"] if ":" in address else []
            subprocess.run([*ip, "addr", "add", address, "dev", "eth0", *option], check=True)
        for card in ("eth0", "eth1"):
            subprocess.run([*ip, "link", "set", card, "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


# In a namespace: three connections of its own addresses; then the addresses go, and OwnAddresses
# looks. Printed: what it saw, and which connections still work.
LOSES = """
import socket, subprocess, sys
from officegrid.guest.leases import OwnAddresses
from officegrid.guest.place import Place

def pair(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family); server.bind((address, 0)); server.listen()
    near = socket.create_connection(server.getsockname()[:2], source_address=(address, 0))
    return address, near, server, server.accept()[0]

pairs = [pair(a) for a in ("10.92.0.2", "10.93.0.3", "fd92::2")]
own = OwnAddresses(Place("/"))
for address in ("10.92.0.2/24", "fd92::2/64"):
    subprocess.run(["ip", "addr", "del", address, "dev", "eth0"], check=True)
if "back" in sys.argv:
    own.tick()
    for address in ("10.92.0.2/24", "fd92::2/64"):
        subprocess.run(["ip", "addr", "add", address, "dev", "eth0"], check=True)
for _ in range(3):
    own.tick()
for address, near, *_ in pairs:
    try:
        near.setblocking(False)
        near.recv(1)
    except BlockingIOError:
        print("lives", address)
    except OSError as error:
        print("ended", address)
"""


def lose(net: str, *argv: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", net, sys.executable, "-W", "ignore", "-c", LOSES, *argv],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def test_connections_of_a_lost_address_end_at_once(net: str) -> None:
    said = lose(net).splitlines()
    assert said[-3:] == ["ended 10.92.0.2", "lives 10.93.0.3", "ended fd92::2"]
    assert sum(line.startswith("GRID-NETWORK") for line in said) == 2, "told once each"


def test_an_address_that_comes_back_in_a_moment_ends_nothing(net: str) -> None:
    assert lose(net, "back").splitlines() == ["lives 10.92.0.2", "lives 10.93.0.3", "lives fd92::2"]


def test_that_ss_failed_is_told(
    guest: GuestFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trie = guest.put("proc/net/fib_trie", "|-- 10.0.2.15\n/32 host LOCAL\n")
    own = OwnAddresses(guest.place)
    trie.write_text("")

    def fails(*_argv: str, **_: object) -> str:
        raise UnavailableError("`ss` failed in the guest.", "why")

    monkeypatch.setattr(leases.programs, "run", fails)
    own.tick()
    assert capsys.readouterr().out == ""
    own.tick()
    assert "GRID-TROUBLE `ss` failed" in capsys.readouterr().out
