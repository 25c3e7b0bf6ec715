"""A small office network in network namespaces: two subnets, a router, real DHCP and DNS servers.

    with Lab(folder) as lab:                       # everything in the block runs in that network
        lab.serve_dhcp(A)
        grid = lab.grid(folder / "grid")           # the coordinator, at https://COORDINATOR:port
        pc = lab.guest(grid, built_guest(), A, "pc-1")

    server room (the namespace of the test)           router (a namespace of its own)
    COORDINATOR 10.77.0.1, officegrid serve
    A: bridge 10.77.1.1/24, dnsmasq, taps ─────────── 10.77.1.254
    B: bridge without an address, taps  ───────────── 10.77.2.1/24, dnsmasq

The calling thread enters the server room, and so does every process that it starts from there:
the coordinator, its commands, QEMU. Nothing of it is seen in the network of the computer. `close`
ends what was started; what a killed test run left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from acceptance.grid import Grid, wait_for
from officegrid.agent.drivers.qemu.arguments import mac_address
from officegrid.agent.drivers.qemu.driver import QemuDriver
from officegrid.agent.seed import Seed, write_seed
from parts import need, without
from vm.guest import Guest

COORDINATOR = "grid.office.test"
COORDINATOR_ADDRESS = "10.77.0.1"
UP_WITHIN_S = 150.0
"""A boot under emulation takes ten seconds on a quiet machine."""
NEVER = threading.Event()
_CLONE_NEWNET = 0x40000000
_PREFIX = "oglab"
_counter = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Subnet:
    """`prefix` is the first three bytes of its addresses; `gateway` serves DHCP and DNS too."""

    letter: str
    prefix: str
    gateway: str
    behind_router: bool


A = Subnet("a", "10.77.1", "10.77.1.1", False)
B = Subnet("b", "10.77.2", "10.77.2.1", True)


class Lab:
    """See the module. Needs root. One at a time in a process."""

    def __init__(self, folder: Path) -> None:
        need("ip", "nft", "ss", "dnsmasq", "qemu-system-x86_64")
        if os.geteuid() != 0:
            without("network namespaces need root")
        self.folder = folder
        self.room = f"{_PREFIX}-{os.getpid()}-{next(_counter)}"
        self.router = f"{self.room}r"
        self._dhcp: dict[Subnet, subprocess.Popen[bytes]] = {}
        self._taps = itertools.count()
        self._grids: list[Grid] = []
        self.guests: list[LabGuest] = []
        self._home = -1

    def __enter__(self) -> Lab:
        _sweep()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            for name in (self.room, self.router):
                run("ip", "netns", "add", name)
            enter = os.open(f"/run/netns/{self.room}", os.O_RDONLY)
            try:
                _set_namespace(enter)
            finally:
                os.close(enter)
            self._wire()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if error is not None or kind is not None:
            self.tell()
        self.close()

    def _wire(self) -> None:
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", f"{COORDINATOR_ADDRESS}/32", "dev", "lo")
        run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for subnet in (A, B):
            name = subnet.letter
            run("ip", "link", "add", f"br-{name}", "type", "bridge")
            run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", f"net-{name}",
                "netns", self.router)  # fmt: skip
            run("ip", "link", "set", f"to-{name}", "master", f"br-{name}", "up")
            run("ip", "link", "set", f"br-{name}", "up")
            self.at_router("ip", "link", "set", f"net-{name}", "up")
        run("ip", "address", "add", f"{A.gateway}/24", "dev", "br-a")
        self.at_router("ip", "link", "set", "lo", "up")
        self.at_router("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.at_router("ip", "address", "add", f"{A.prefix}.254/24", "dev", "net-a")
        self.at_router("ip", "address", "add", f"{B.gateway}/24", "dev", "net-b")
        self.at_router("ip", "route", "add", "default", "via", A.gateway)
        run("ip", "route", "add", f"{B.prefix}.0/24", "via", f"{A.prefix}.254")

    def at_router(self, *words: str) -> str:
        return run("ip", "netns", "exec", self.router, *words)

    # --- DHCP and DNS

    def serve_dhcp(self, subnet: Subnet, first: int = 50, last: int = 99) -> None:
        """Start this subnet's server, or start it anew without a memory of its leases.

        It knows COORDINATOR, and refuses addresses outside its range. A lease lasts two minutes,
        the least that dnsmasq gives; a guest asks for it again after one.
        """
        self.stop_dhcp(subnet)
        with contextlib.suppress(FileNotFoundError):
            self.lease_file(subnet).unlink()
        log = self.folder / f"dnsmasq-{subnet.letter}.log"
        card = "net-b" if subnet.behind_router else "br-a"
        where = ["ip", "netns", "exec", self.router] if subnet.behind_router else []
        with log.open("ab") as file:
            self._dhcp[subnet] = subprocess.Popen(
                [*where, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root",
                 "--pid-file=", "--bind-interfaces", f"--interface={card}", "--except-interface=lo",
                 "--no-resolv", "--no-hosts", "--no-ping", "--log-dhcp", "--log-queries",
                 "--log-facility=-",
                 f"--host-record={COORDINATOR},{COORDINATOR_ADDRESS}",
                 f"--dhcp-range={subnet.prefix}.{first},{subnet.prefix}.{last},2m",
                 "--dhcp-authoritative", f"--dhcp-leasefile={self.lease_file(subnet)}"],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def stop_dhcp(self, subnet: Subnet) -> None:
        process = self._dhcp.pop(subnet, None)
        if process is not None:
            process.kill()
            process.wait(10)

    def lease_file(self, subnet: Subnet) -> Path:
        return self.folder / f"leases-{subnet.letter}"

    def leases(self, subnet: Subnet) -> dict[str, str]:
        """Addresses by MAC, from dnsmasq's own file: `expiry mac address name client-id`."""
        try:
            lines = self.lease_file(subnet).read_text().splitlines()
        except FileNotFoundError:
            return {}
        return {line.split()[1]: line.split()[2] for line in lines}

    def dhcp_log(self, subnet: Subnet) -> str:
        return (self.folder / f"dnsmasq-{subnet.letter}.log").read_text("utf-8", "replace")

    # --- what runs in it

    def grid(self, folder: Path, *, lease_s: float = 5.0, settings: str = "") -> Grid:
        """A coordinator in the server room, reachable under its name from both subnets. `settings`
        is its coordinator.toml."""
        made = Grid(folder, lease_s=lease_s, names=[COORDINATOR], listen="0.0.0.0")
        made.data.mkdir(mode=0o700, exist_ok=True)
        (made.data / "coordinator.toml").write_text(settings)
        self._grids.append(made)
        made.start()
        return made

    def guest(
        self, grid: Grid, guest: Guest, subnet: Subnet, name: str, *,
        guest_settings: dict[str, Any] | None = None, memory_mb: int = 320, **options: Any,
    ) -> LabGuest:  # fmt: skip
        """A clone of the image on a tap in the subnet, started with a join code of its own."""
        tap = f"tap{next(self._taps)}"
        run("ip", "tuntap", "add", tap, "mode", "tap")
        run("ip", "link", "set", tap, "master", f"br-{subnet.letter}", "up")
        folder = self.folder / name
        url = f"https://{COORDINATOR}:{grid.port}"
        seed = Seed(f"iid-{name}", name, url, grid.code("worker"), guest_settings or {})
        write_seed(folder / "seed", folder / "seed.iso", seed)
        options = {"accelerator": "tcg", "code_cache_mb": 64, "network": f"tap:{tap}", **options}
        settings = guest.settings(
            name, folder / "vm", seed_iso=folder / "seed.iso", memory_mb=memory_mb, **options
        )
        made = LabGuest(name, subnet, self, QemuDriver(settings), tap)
        self.guests.append(made)
        made.driver.import_image()
        made.driver.start(NEVER)
        return made

    def connections_of(self, address: str) -> set[int]:
        """Ports at the guest's end of its established connections into the server room."""
        said = run("ss", "-Htn", "state", "established", "dst", address)
        return {int(port) for port in re.findall(rf"{re.escape(address)}\]?:(\d+)", said)}

    def rule(self, chain: str, *words: str) -> None:
        """Add a rule to the server room's firewall, in chain `input` or `forward`."""
        for kind in ("input", "forward"):
            run("nft", "add", "table", "inet", "lab")
            run("nft", "add", "chain", "inet", "lab", kind,
                f"{{ type filter hook {kind} priority 0; }}")  # fmt: skip
        run("nft", "add", "rule", "inet", "lab", chain, *words)

    # --- the end

    def tell(self) -> None:
        """What everybody said, for people who look into a failure."""
        for guest in self.guests:
            print(f"--- console of {guest.name}\n{guest.console()[-6000:]}")
        for log in sorted(self.folder.glob("dnsmasq-*.log")):
            print(f"--- {log.name}\n{log.read_text('utf-8', 'replace')[-1500:]}")
        for grid in self._grids:
            print(grid.tails())

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            # The last thing first: an ExitStack goes backwards, and stops at no error.
            for name in (self.room, self.router):
                stack.callback(_remove_namespace, name)
            stack.callback(self._leave)
            for subnet in (A, B):
                stack.callback(self.stop_dhcp, subnet)
            for grid in self._grids:
                stack.callback(grid.close)
            for guest in self.guests:
                stack.callback(guest.driver.delete)
            self._grids, self.guests = [], []

    def _leave(self) -> None:
        if self._home >= 0:
            _set_namespace(self._home)
            os.close(self._home)
            self._home = -1


@dataclass
class LabGuest:
    """A VM in the lab."""

    name: str
    subnet: Subnet
    lab: Lab
    driver: QemuDriver
    tap: str
    mac: str = field(init=False)

    def __post_init__(self) -> None:
        self.mac = mac_address(self.driver.settings)

    def console(self) -> str:
        try:
            return self.driver.files.console.read_text("utf-8", "replace")
        except OSError:
            return ""

    def says(self, words: str, within_s: float = UP_WITHIN_S) -> None:
        wait_for(lambda: words in self.console(), f"{self.name} says {words!r}", within_s)

    def address(self) -> str:
        """What the DHCP server gave it; "" before."""
        return self.lab.leases(self.subnet).get(self.mac, "")

    def committed(self, job_id: str) -> list[tuple[int, int]]:
        """Spans [start, end) of the job that the guest's worker says it committed, in order."""
        found = re.findall(
            rf"worker\.committed job={job_id} start=(\d+) end=(\d+)", self.console()
        )  # fmt: skip
        return [(int(start), int(end)) for start, end in found]


def run(*words: str) -> str:
    """A command that must succeed; its standard output."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, f"{' '.join(words)}: exit {done.returncode}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def dropped(lab: Lab, address: str) -> Iterator[set[int]]:
    """The connections that a guest has now are forgotten on the way, as by a NAT router: neither
    side hears of it. For as long as the block lasts."""
    ports = lab.connections_of(address)
    assert ports, f"{address} has no connection"
    listed = ", ".join(str(port) for port in sorted(ports))
    lab.rule("input", f"ip saddr {address} tcp sport {{ {listed} }} counter drop")
    yield ports
    run("nft", "delete", "table", "inet", "lab")


def _set_namespace(descriptor: int) -> None:
    """setns(2), for the calling thread; os.setns comes with Python 3.12 only."""
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _sweep() -> None:
    """Remove the labs of test runs that do not live any more."""
    for name in os.listdir("/run/netns") if Path("/run/netns").is_dir() else ():
        found = re.fullmatch(rf"{_PREFIX}-(\d+)-\d+r?", name)
        if found and not psutil.pid_exists(int(found[1])):
            _remove_namespace(name)


def _remove_namespace(name: str) -> None:
    """With all that still runs in it."""
    listed = subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, check=False, timeout=30
    )
    for pid in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            if int(pid) != os.getpid():
                os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=30)
