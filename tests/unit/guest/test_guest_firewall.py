"""The guest's firewall: what it is told, whether nft takes it, and whether packets stay inside.

Most of it runs in network namespaces of its own: the real rules, the real nft, real sockets.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from officegrid.core.errors import UnavailableError
from officegrid.guest import firewall_text
from officegrid.guest.firewall import Firewall
from officegrid.guest.place import Place
from officegrid.guest.settings import Settings, Target, peers
from parts import need, without

RULES = Path(__file__).resolve().parents[3] / "src/officegrid/image/files/etc/nftables.conf"
GUEST, HOST = "10.91.0.2", "10.91.0.1"


def run(*argv: str, given: str = "", fails: bool = False) -> str:
    done = subprocess.run(
        argv, input=given, capture_output=True, text=True, check=False, timeout=30
    )
    assert fails or done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def guest_net() -> Iterator[str]:
    """A namespace with the guest's rules, joined by a cable to another one, "…h", the host."""
    need("ip", "nft")
    if os.geteuid() != 0:
        without("network namespaces need root")
    name = f"og{secrets.token_hex(3)}"
    host = f"{name}h"
    try:
        for one in (name, host):
            run("ip", "netns", "add", one)
            run("ip", "-n", one, "link", "set", "lo", "up")
        run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1",
            "netns", host)  # fmt: skip
        for one, card, address in ((name, "eth0", GUEST), (host, "eth1", HOST)):
            run("ip", "-n", one, "addr", "add", f"{address}/24", "dev", card)
            run("ip", "-n", one, "link", "set", card, "up")
        run("ip", "netns", "exec", name, "nft", "-f", str(RULES))
        yield name
    finally:
        for one in (name, host):
            run("ip", "netns", "del", one, fails=True)


def apply_in(net: str, *, check_only: bool = False) -> Callable[[str], None]:
    def apply(text: str) -> None:
        options = ["-c"] if check_only else []
        run("ip", "netns", "exec", net, "nft", *options, "-f", "-", given=text)

    return apply


LISTEN = """
import socket, sys
kind, port = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_INET, getattr(socket, kind)) as server:
    server.bind(("0.0.0.0", port))
    if kind == "SOCK_STREAM":
        server.listen()
        print("listening", flush=True)
        while True:
            server.accept()[0].close()
    print("listening", flush=True)
    print("got", server.recvfrom(64)[0].decode(), flush=True)
"""
CONNECT = """
import socket, sys, time
began = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("open")
except OSError as error:
    print("closed", type(error).__name__, "fast" if time.monotonic() - began < 3 else "slow")
"""


@contextlib.contextmanager
def listening(net: str, port: int, kind: str = "SOCK_STREAM") -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        ["ip", "netns", "exec", net, sys.executable, "-c", LISTEN, kind, str(port)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "listening\n"
        yield server
    finally:
        server.kill()
        server.stdout.close()
        server.wait(10)


def connect(net: str, address: str, port: int) -> str:
    return run("ip", "netns", "exec", net, sys.executable, "-c", CONNECT, address, str(port))


# --- the text


def test_the_sets_are_replaced_in_one_transaction() -> None:
    text = firewall_text.commands(
        [("10.0.2.2", 8443), ("2001:db8::1", 8443), ("not an address", 1), ("10.0.2.9", 0)],
        ["10.0.2.3", "fe80::1%eth0", "nonsense"],
        ["10.0.2.4", "10.0.2.4", "fd00::123"],
        [("10.0.0.0/8", 8444)],
    )
    assert text.splitlines() == [
        "flush set inet officegrid open4",
        "add element inet officegrid open4 { 10.0.2.2/32 . 8443 }",
        "flush set inet officegrid peer4",
        "add element inet officegrid peer4 { 10.0.0.0/8 . 8444 }",
        "flush set inet officegrid resolver4",
        "add element inet officegrid resolver4 { 10.0.2.3 }",
        "flush set inet officegrid ntp4",
        "add element inet officegrid ntp4 { 10.0.2.4 }",
        "flush set inet officegrid open6",
        "add element inet officegrid open6 { 2001:db8::1/128 . 8443 }",
        "flush set inet officegrid peer6",
        "flush set inet officegrid resolver6",
        "add element inet officegrid resolver6 { fe80::1 }",
        "flush set inet officegrid ntp6",
        "add element inet officegrid ntp6 { fd00::123 }",
    ]


def test_elements_never_overlap() -> None:
    found = firewall_text.collapse(
        [("10.1.2.3", 3306), ("10.1.0.0/16", 3306), ("10.1.2.3", 443), ("10.1.2.3", 443)]
    )
    assert [(str(net), port) for net, port in found] == [
        ("10.1.2.3/32", 443), ("10.1.0.0/16", 3306),
    ]  # fmt: skip


def test_an_address_stays_open_for_a_while_after_its_name_has_moved() -> None:
    old, new = ("10.0.0.1", 8443), ("10.0.0.2", 8443)
    seen = firewall_text.still_open({}, [old], 0.0)
    seen = firewall_text.still_open(seen, [new], 60.0)
    assert set(seen) == {old, new}
    seen = firewall_text.still_open(seen, [new], 60.0 + firewall_text.KEEP_ADDRESS_S)
    assert set(seen) == {new}


def test_resolvers_are_read_as_the_system_reads_them() -> None:
    text = "# nameserver 9.9.9.9\nsearch firm\nnameserver 10.0.2.3\nnameserver\n nameserver ::1 x\n"
    assert firewall_text.nameservers(text) == ["10.0.2.3", "::1"]


# --- when it is told


class Names:
    """A resolver whose answers the test writes."""

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    def resolve(self, host: str, _port: int) -> list[str]:
        self.asked.append(host)
        if host not in self.addresses:
            raise OSError("no such name")
        return self.addresses[host]


def place(tmp_path: Path, resolver: str = "10.0.2.3") -> Place:
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/resolv.conf").write_text(f"nameserver {resolver}\n")
    return Place(str(tmp_path))


def test_the_way_to_the_resolvers_opens_before_names_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    names = Names(grid=["10.5.0.1"])

    def resolve(host: str, port: int) -> list[str]:
        assert told, "asked while the resolver was out of reach"
        assert "10.0.2.3" in told[-1]
        return names.resolve(host, port)

    Firewall(place(tmp_path), [Target("grid", 8443)], resolve=resolve, apply=told.append).tick()
    assert "10.5.0.1/32 . 8443" in told[-1]
    assert "GRID-FIREWALL open: 10.5.0.1/32 port 8443" in capsys.readouterr().out


def test_trouble_is_tried_again_soon_and_a_new_lease_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("officegrid.guest.firewall.uptime_s", lambda: now_s)
    told: list[str] = []
    names = Names()
    wall = Firewall(place(tmp_path), [Target("grid", 8443)], resolve=names.resolve,
                    apply=told.append)  # fmt: skip
    wall.tick()
    assert "not found yet: grid" in capsys.readouterr().out
    now_s += 1
    wall.tick()
    assert len(names.asked) == 1
    now_s += 5
    names.addresses["grid"] = ["10.5.0.1"]
    wall.tick()
    assert "10.5.0.1" in told[-1]
    assert len(names.asked) == 2
    # All is well: once a minute.
    now_s += 30
    wall.tick()
    assert len(names.asked) == 2
    # Another lease with another resolver.
    place(tmp_path, "10.0.9.9")
    wall.tick()
    assert len(names.asked) == 3
    assert "10.0.9.9" in told[-1]
    # The machine was away.
    wall.hurry()
    wall.tick()
    assert len(names.asked) == 4
    assert "not found" not in capsys.readouterr().out


def test_when_nft_fails_it_is_told_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("officegrid.guest.firewall.uptime_s", lambda: now_s)
    told: list[str] = []

    def apply(text: str) -> None:
        told.append(text)
        if len(told) < 3:
            raise UnavailableError("`nft` failed in the guest.", "busy")

    wall = Firewall(place(tmp_path), [Target("10.5.0.1", 8443)], apply=apply)
    wall.tick()
    assert "GRID-TROUBLE `nft` failed" in capsys.readouterr().out
    now_s += 6
    wall.tick()
    assert "GRID-FIREWALL open" in capsys.readouterr().out
    assert told[-1] == told[-2]


# --- with real rules, real packets


def test_nft_takes_the_rules_and_every_kind_of_element(guest_net: str) -> None:
    apply = apply_in(guest_net, check_only=True)
    everything = firewall_text.commands(
        [("10.0.2.2", 8443), ("10.1.0.0/16", 3306), ("10.1.2.3", 3306), ("2001:db8::/32", 443)],
        ["10.0.2.3", "2001:db8::53"], ["10.0.2.4", "2001:db8::123"],
        peers(Settings(peers_port=8444)),
    )  # fmt: skip
    apply(everything)
    apply(firewall_text.commands([], []))
    assert "elements" not in run("ip", "netns", "exec", guest_net, "nft", "list", "ruleset")


def test_peers_come_in_and_are_reached_on_their_port_only(guest_net: str, tmp_path: Path) -> None:
    host, apply = f"{guest_net}h", apply_in(guest_net)
    both = ((guest_net, 8444), (guest_net, 8445), (host, 8444), (host, 8445))
    with contextlib.ExitStack() as stack:
        for net, port in both:
            stack.enter_context(listening(net, port))
        Firewall(place(tmp_path), [], apply=apply).tick()
        assert connect(host, GUEST, 8444).startswith("closed")
        Firewall(place(tmp_path), [], apply=apply, peers=peers(Settings(peers_port=8444))).tick()
        assert connect(host, GUEST, 8444) == "open\n"
        assert connect(guest_net, HOST, 8444) == "open\n"
        assert connect(host, GUEST, 8445).startswith("closed")
        assert connect(guest_net, HOST, 8445).startswith("closed")


def test_only_what_was_opened_can_be_reached(guest_net: str, tmp_path: Path) -> None:
    with listening(f"{guest_net}h", 8443), listening(f"{guest_net}h", 8444):
        assert connect(guest_net, HOST, 8443).startswith("closed"), "it is closed from the start"
        wall = Firewall(place(tmp_path), [Target(HOST, 8443)], apply=apply_in(guest_net))
        wall.tick()
        assert connect(guest_net, HOST, 8443) == "open\n"
        # Another port of the same host, say a service that trusts this PC's own address.
        refused = connect(guest_net, HOST, 8444)
        assert refused.startswith("closed")
        assert "fast" in refused, "a program must not wait for its time-out"


def test_nothing_comes_in(guest_net: str, tmp_path: Path) -> None:
    with listening(guest_net, 8080):
        Firewall(place(tmp_path), [Target(HOST, 8443)], apply=apply_in(guest_net)).tick()
        assert connect(f"{guest_net}h", GUEST, 8080).startswith("closed TimeoutError")
        assert connect(guest_net, "127.0.0.1", 8080) == "open\n"


def test_names_are_asked_of_the_known_resolvers_only(guest_net: str, tmp_path: Path) -> None:
    ask = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'q', ('%s', 53))"
    asking = ("ip", "netns", "exec", guest_net, sys.executable, "-W", "ignore", "-c", ask % HOST)
    with listening(f"{guest_net}h", 53, "SOCK_DGRAM") as server:
        Firewall(place(tmp_path, "10.0.2.3"), [], apply=apply_in(guest_net)).tick()
        assert "PermissionError" in run(*asking, fails=True)
        Firewall(place(tmp_path, HOST), [], apply=apply_in(guest_net)).tick()
        run(*asking)
        assert server.stdout is not None
        assert server.stdout.readline() == "got q\n"


def test_the_time_is_asked_of_the_known_servers_only(guest_net: str, tmp_path: Path) -> None:
    ask = (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'q', ('%s', 123))"
    )
    asking = ("ip", "netns", "exec", guest_net, sys.executable, "-W", "ignore", "-c", ask % HOST)
    names = Names(time=[HOST])
    steps: list[str] = []
    with listening(f"{guest_net}h", 123, "SOCK_DGRAM") as server:
        wall = Firewall(place(tmp_path), [Target("10.9.9.9", 123)], resolve=names.resolve,
                        apply=apply_in(guest_net), alive=lambda: steps.append("name"))  # fmt: skip
        wall.tick()
        assert "PermissionError" in run(*asking, fails=True), "nobody has named a time server"
        assert steps == []
        wall.time_servers(["time"])
        wall.tick()
        assert steps == ["name"], "the watchdog learns of each step that may take long"
        run(*asking)
        assert server.stdout is not None
        assert server.stdout.readline() == "got q\n"
        assert connect(guest_net, HOST, 123).startswith("closed"), "by UDP only"
