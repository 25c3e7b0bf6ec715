"""Clones of one image in an office network: real DHCP and DNS, two subnets, leases that change.

One boot of three guests serves the whole module; each test leaves them working.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import digest_job, double_job, expected_output
from officegrid.wire.peers import PeerList
from vm.guest import Guest
from vm.netlab import COORDINATOR, UP_WITHIN_S, A, B, Lab, LabGuest

PEERS_PORT = 8444


@dataclass
class Office:
    """Two desktops in subnet A, where all is well, and one in B, where DHCP does not answer yet."""

    lab: Lab
    grid: Grid
    twins: list[LabGuest]
    late: LabGuest

    def wait_connected(self, guest: LabGuest, address: str, within_s: float = 30) -> None:
        """Until the guest has a connection to the coordinator from this address."""
        wait_for(
            lambda: self.lab.connections_of(address),
            f"{guest.name} speaks from {address}",
            within_s,
        )

    def workers(self) -> set[str]:
        machines = self.grid.read("machines")
        return {machine["name"] for machine in machines if machine["role"] == "worker"}


@pytest.fixture(scope="module")
def office(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    with Lab(folder) as lab:
        lab.serve_dhcp(A)
        grid = lab.grid(folder / "grid", settings="[peers]\nallow = true\n")
        shares = {"peers_port": PEERS_PORT}
        late = lab.guest(grid, guest, B, "pc-b1", guest_settings=shares)
        twins = [lab.guest(grid, guest, A, f"pc-a{n}", guest_settings=shares) for n in (1, 2)]
        yield Office(lab, grid, twins, late)
        lab.tell()  # shown when a test failed


def run_exactly(
    office: Office, folder: Path, name: str, everybody: list[LabGuest], records: int = 400
) -> None:
    """A job in which all these guests must have a part, byte by byte what a plain run gives."""
    job_file = double_job(folder / name, records=records, pause_s=0.02, bad_every=90, name=name)
    job = office.grid.submit(job_file)
    finish_exactly(office, folder, job, job_file)
    for guest in everybody:
        assert guest.committed(job), f"{guest.name} had no part in {name}"


def finish_exactly(office: Office, folder: Path, job: str, job_file: Path) -> None:
    view = office.grid.wait_job(job, within_s=UP_WITHIN_S)
    plain = expected_output(job_file)
    assert view.done + view.quarantined == view.total == plain.records
    assert office.grid.output(job, folder / f"{job}.csv") == plain.output
    assert sorted(office.grid.quarantine(job)) == plain.bad


def test_clones_get_addresses_of_their_own_and_share_a_job(office: Office, tmp_path: Path) -> None:
    for guest in office.twins:
        guest.says("worker.started")
    addresses = [guest.address() for guest in office.twins]
    assert len(set(addresses)) == 2
    assert all(one.startswith(f"{A.prefix}.") for one in addresses), addresses
    # Each speaks from the address that was given to it, and to the coordinator by its DNS name.
    for guest, address in zip(office.twins, addresses, strict=True):
        office.wait_connected(guest, address)
        assert f"query[A] {COORDINATOR} from {address}" in office.lab.dhcp_log(A)
    run_exactly(office, tmp_path, "twins", office.twins)


def _run_alone(office: Office, idle: LabGuest, folder: Path, right: str) -> None:
    """A job over the data set `big`, in which one of the twins has no part."""
    office.grid.ok("drain", idle.name)
    job_id = office.grid.submit(digest_job(folder, records=5), home="admin")
    office.grid.wait_job(job_id, within_s=UP_WITHIN_S)
    lines = office.grid.output(job_id, folder / "got.csv", home="admin").decode().split()
    assert lines[1:] == [f"{n},{right}" for n in range(5)]
    office.grid.ok("drain", idle.name, "--off")


def test_one_twin_gets_from_the_other_what_that_one_has_fetched(
    office: Office, tmp_path: Path
) -> None:
    one, other = office.twins
    big = os.urandom(2_000_000)
    (tmp_path / "big").write_bytes(big)
    office.grid.ok("data", "push", "big", str(tmp_path / "big"))
    right = hashlib.sha256(big).hexdigest()

    def peers() -> PeerList:
        return office.grid.connection().call("GET", "/v1/peers", reply=PeerList)

    _run_alone(office, other, tmp_path / "one", right)
    sharer = wait_for(lambda: next(iter(peers().peers), None), f"{one.name} shares")
    assert (sharer.name, sharer.address, sharer.port) == (one.name, one.address(), PEERS_PORT)
    _run_alone(office, one, tmp_path / "other", right)
    wait_for(lambda: peers().got_objects == 1, f"{other.name} got it from there")
    assert "peers.from_peer" in other.console()


def test_a_lease_that_changes_under_a_working_worker_costs_no_record(
    office: Office, tmp_path: Path
) -> None:
    lab = office.lab
    for guest in office.twins:
        guest.says("worker.started")
    old = {guest.name: guest.address() for guest in office.twins}
    job_file = double_job(tmp_path / "p", records=4500, pause_s=0.02, bad_every=100, unit_seconds=2)
    job = office.grid.submit(job_file)
    for guest in office.twins:
        wait_for(lambda g=guest: g.committed(job), f"{guest.name} works", 60)
    # The network is renumbered: the old addresses are refused when the guests ask for more time.
    lab.serve_dhcp(A, 150, 199)
    for guest in office.twins:
        new = wait_for(guest.address, f"{guest.name} has a new address", UP_WITHIN_S)
        assert new != old[guest.name]
        # It lets go of the connections from its old address, long before an answer would be late.
        office.wait_connected(guest, new, 45)
    assert "DHCPNAK" in lab.dhcp_log(A)
    finish_exactly(office, tmp_path, job, job_file)
    run_exactly(office, tmp_path, "renumbered", office.twins)
    for guest in office.twins:
        assert guest.console().count("worker.started") == 1, "the very same worker went on"


def test_a_guest_that_found_no_dhcp_server_joins_once_there_is_one(
    office: Office, tmp_path: Path
) -> None:
    late = office.late
    late.says("GRID-")  # it is up
    assert late.name not in office.workers()
    assert late.address() == ""
    office.lab.serve_dhcp(B)
    late.says("worker.started")
    assert late.name in office.workers()
    # From another subnet, through the router.
    address = late.address()
    assert address.startswith(f"{B.prefix}.")
    office.wait_connected(late, address)
    run_exactly(office, tmp_path, "subnets", [late])
