"""Reference data: the version a job pinned is what its program reads, and little travels."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sqlite3
from pathlib import Path

from acceptance.grid import Grid, wait_for
from acceptance.projects import numbered, write_job
from databases import Server

PROGRAM = """
import os, sqlite3

places = dict(sqlite3.connect(os.environ["OFFICEGRID_DATA_CODES"]).execute("select * from codes"))
rules = os.environ["OFFICEGRID_DATA_RULES"]

def record(row):
    word = open(os.path.join(rules, "deep", "rule.txt")).read().strip()
    return {"id": row["id"], "place": places[int(row["id"]) % 100], "rule": word,
            "file": os.path.basename(os.environ["OFFICEGRID_DATA_CODES"])}
"""


def _codes(path: Path, version: str) -> Path:
    path.unlink(missing_ok=True)
    base = sqlite3.connect(path)
    base.execute("create table codes (code integer primary key, place text)")
    base.executemany("insert into codes values (?, ?)", [(n, f"{version}-{n}") for n in range(100)])
    base.commit()
    base.close()
    return path


def _rules(path: Path, word: str) -> Path:
    (path / "deep").mkdir(parents=True, exist_ok=True)
    (path / "deep" / "rule.txt").write_text(word)
    (path / "link").unlink(missing_ok=True)
    (path / "link").symlink_to("deep/rule.txt")
    return path


def _job(folder: Path, records: int, codes: str = "codes.sqlite") -> Path:
    job = f"""
        name = "places"
        python = "program:record"
        [input]
        path = "in.csv"
        [data]
        codes = "{codes}"
        rules = "data:rules"
        [output]
        path = "out.csv"
        [policy]
        unit_seconds = 0.3
    """
    return write_job(folder, job, {"in.csv": numbered(records), "program.py": PROGRAM})


def _rows(output: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output.decode())))


def test_a_program_reads_the_versions_its_job_pinned(grid: Grid, tmp_path: Path) -> None:
    grid.worker("w1")
    grid.join("me", "submitter")
    grid.ok("data", "push", "rules", str(_rules(tmp_path / "rules", "old")), home="me")
    job = _job(tmp_path / "job", 30)
    _codes(job.parent / "codes.sqlite", "a")
    first = grid.submit(job)
    grid.wait_job(first)
    told = grid.ok("data", "push", "rules", str(_rules(tmp_path / "rules", "new")), home="me")
    assert "rules: version 2" in told
    _codes(job.parent / "codes.sqlite", "b")
    second = grid.submit(job)
    grid.wait_job(second)
    again = grid.submit(job)
    grid.wait_job(again)
    for job_id, codes, rule in ((first, "a", "old"), (second, "b", "new"), (again, "b", "new")):
        rows = _rows(grid.output(job_id, tmp_path / f"{job_id}.csv"))
        assert [row["place"] for row in rows] == [f"{codes}-{n}" for n in range(30)]
        assert {(row["rule"], row["file"]) for row in rows} == {(rule, "codes.sqlite")}
    found = grid.read("lineage", second, home="me")["pins"][0]["data"]
    assert (found["codes"]["name"], found["codes"]["n"]) == ("places.codes", 2)
    assert (found["rules"]["name"], found["rules"]["n"]) == ("rules", 2)
    assert [one["n"] for one in grid.read("data", "list", "places.codes", home="me")] == [2, 1]
    assert "data     rules = rules version 2" in grid.ok("lineage", second, home="me")
    back = json.loads(grid.ok("data", "rollback", "rules", "--json", home="me"))
    assert (back["n"], back["origin"]) == (3, "back to version 1")
    rerun = json.loads(grid.ok("rerun", first, "--json", home="me"))["id"]
    grid.wait_job(rerun)
    assert grid.output(rerun, tmp_path / "rerun.csv") == grid.output(first, tmp_path / "1.csv")


def test_only_what_changed_travels_to_a_worker(grid: Grid, tmp_path: Path) -> None:
    worker = grid.worker("w1")
    grid.join("me", "submitter")
    grid.ok("data", "push", "rules", str(_rules(tmp_path / "rules", "r")), home="me")
    big = tmp_path / "big"
    big.mkdir()
    rng = random.Random(7)
    lines = [f"{rng.getrandbits(256):064x}\n" for _ in range(100_000)]
    (big / "rows.txt").write_text("".join(lines))
    for n in range(20):
        (big / f"small-{n}.txt").write_text(str(n))
    job = _job(tmp_path / "job", 10)
    _codes(job.parent / "codes.sqlite", "a")
    text = job.read_text().replace('rules = "data:rules"', 'rules = "data:rules"\nbig = "data:big"')
    job.write_text(text)
    grid.ok("data", "push", "big", str(big), home="me")
    grid.wait_job(grid.submit(job))
    for row in rng.sample(range(len(lines)), 1000):
        lines[row] = f"{rng.getrandbits(256):064x}\n"
    (big / "rows.txt").write_text("one more\n" + "".join(lines))
    (big / "small-3.txt").unlink()
    pushed = grid.read("data", "push", "big", str(big), home="me")
    (job.parent / "program.py").write_text(PROGRAM + "\n# corrected\n")
    second = grid.submit(job)
    grid.wait_job(second)
    updates = [line for line in worker.text().splitlines() if "updated" in line]
    sizes = {line.split("archive=")[1][:12]: int(line.split("bytes=")[1]) for line in updates}
    assert sizes.keys() == {pushed["digest"][:12], grid.job(second).bundle[:12]}  # type: ignore[index]
    assert sizes[pushed["digest"][:12]] < 0.05 * pushed["stored_bytes"]
    assert len(_rows(grid.output(second, tmp_path / "got.csv"))) == 10


def test_data_that_a_program_changed_is_fetched_anew(grid: Grid, tmp_path: Path) -> None:
    worker = grid.worker("w1")
    grid.join("me", "submitter")
    grid.ok("data", "push", "rules", str(_rules(tmp_path / "rules", "good")), home="me")
    spoil = PROGRAM.replace("    word =", "    path = os.path.join(rules, 'deep', 'rule.txt')\n"
        "    os.chmod(path, 0o644)\n    word =").replace(
        "    return", "    open(path, 'w').write('spoiled')\n    return", 1)  # fmt: skip
    job = _job(tmp_path / "job", 1)
    _codes(job.parent / "codes.sqlite", "a")
    (job.parent / "program.py").write_text(spoil)
    for _ in range(2):
        job_id = grid.submit(job)
        grid.wait_job(job_id)
        rows = _rows(grid.output(job_id, tmp_path / "got.csv"))
        assert [row["rule"] for row in rows] == ["good"]
    wait_for(lambda: "changed" in worker.text(), "the worker says that the data was changed")


def test_data_that_is_not_there_or_is_damaged_is_said(grid: Grid, tmp_path: Path) -> None:
    grid.join("me", "submitter")
    job = _job(tmp_path / "job", 3)
    missing = grid.run("submit", str(job), home="me")
    assert missing.returncode == 2
    assert "[data] codes: there is no file or folder" in missing.stderr
    _codes(job.parent / "codes.sqlite", "a")
    unknown = grid.run("submit", str(job), home="me")
    assert "There is no data set named 'rules'" in unknown.stderr
    refused = grid.run("data", "push", "rules", str(tmp_path / "nothing"), home="me")
    assert (refused.returncode, "does not exist" in refused.stderr) == (1, True)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "out").symlink_to("/etc/passwd")
    refused = grid.run("data", "push", "rules", str(tmp_path / "odd"), home="me")
    assert "leads out" in refused.stderr
    pushed = grid.read("data", "push", "rules", str(_rules(tmp_path / "rules", "r")), home="me")
    spec = grid.connection().call  # the pieces of that version, damaged in the store
    from officegrid.wire.catalogue import FetchWay

    way = spec("GET", f"/v1/archives/{pushed['digest']}/way", reply=FetchWay)
    assert way.spec is not None
    name = way.spec.pieces[0].sha256
    path = grid.data / "objects" / name[:2] / name[2:]
    path.write_bytes(bytes(len(path.read_bytes())))
    job_id = grid.submit(job)
    grid.worker("w1")
    held = grid.wait_job(job_id, "held")
    assert "The data 'rules' (rules version 1) cannot be used" in held.reason
    assert "is damaged" in held.reason
    assert held.quarantined == 0


PLACES = """
import os, subprocess, sys

def ask(sql):
    return subprocess.run(["mariadb", "--batch", "--skip-column-names",
        "--default-character-set=utf8mb4", "--socket=" + os.environ["MYSQL_UNIX_PORT"], "-e", sql,
        os.environ["OFFICEGRID_DATA_PLACES"]], capture_output=True, text=True, check=True).stdout

PLACES = dict(line.split("\\t") for line in ask("select code, place from places").splitlines())

def record(row):
    return {"id": row["id"], "place": PLACES[row["id"]]}
"""
DUMP = """
CREATE TABLE places (code INT PRIMARY KEY, place VARCHAR(40) CHARACTER SET utf8mb4);
INSERT INTO places VALUES (0, '{word} 0'), (1, '{word} 😀'), (2, 'x');
"""


LOADS_A_DUMP = """
    name = "places"
    python = "program:record"
    [input]
    path = "in.csv"
    [data]
    places = { name = "places", load = "mariadb" }
    [output]
    path = "out.csv"
"""


def test_why_says_which_machines_lack_a_database(grid: Grid, tmp_path: Path) -> None:
    files = {"in.csv": numbered(3), "program.py": PLACES}
    path = write_job(tmp_path / "job", LOADS_A_DUMP, files)
    (tmp_path / "places.sql").write_text(DUMP)
    grid.join("me", "submitter")
    grid.ok("data", "push", "places", str(tmp_path / "places.sql"), home="me")
    job_id = grid.submit(path)
    grid.worker("w1", env={"PATH": str(tmp_path / "nothing")})
    said = wait_for(
        lambda: text if "w1" in (text := grid.ok("why", job_id, home="me")) else "",
        "why names the worker that has no MariaDB",
    )
    assert "The only worker online could not run it when it last tried." in said
    assert "w1: There is no MariaDB client on this machine." in said
    assert "install mariadb-server and mariadb-client here." in said
    assert "should ask for a unit" not in said
    assert f"w1 could not run places ({job_id}): There is no MariaDB" in grid.ok("why", "w1")


def test_a_dump_is_loaded_into_the_workers_own_database(
    grid: Grid, tmp_path: Path, mariadb: Server
) -> None:
    files = {"in.csv": numbered(3), "program.py": PLACES}
    path = write_job(tmp_path / "job", LOADS_A_DUMP, files)
    grid.join("me", "submitter")
    socket = {"MYSQL_UNIX_PORT": str(mariadb.socket)}
    worker = grid.worker("w1", env=socket)
    for n, word in enumerate(("Ort", "Stadt"), 1):
        dump = tmp_path / "places.sql"
        dump.write_text(DUMP.format(word=word))
        if n == 2:
            dump = dump.rename(tmp_path / "places.sql.gz")
            dump.write_bytes(gzip.compress(dump.read_bytes()))
        grid.ok("data", "push", "places", str(dump), home="me")
        for _ in range(2):
            job_id = grid.submit(path)
            grid.wait_job(job_id)
            rows = _rows(grid.output(job_id, tmp_path / "got.csv"))
            assert [row["place"] for row in rows] == [f"{word} 0", f"{word} 😀", "x"]
        assert worker.text().count("mariadb.loaded") == n, "once for each version"
    for text, words in [
        ("INSERT INTO nowhere VALUES (1);", "nowhere"),
        ("CREATE DATABASE IF NOT EXISTS `grid_other`;", "makes no tables"),
    ]:
        (tmp_path / "bad.sql").write_text(text)
        grid.ok("data", "push", "places", str(tmp_path / "bad.sql"), home="me")
        held = grid.wait_job(grid.submit(path), "held")
        assert words in held.reason
        assert held.quarantined == 0


def test_a_piece_that_the_store_lost_comes_back_with_a_push(grid: Grid, tmp_path: Path) -> None:
    grid.join("me", "submitter")
    rates = tmp_path / "rates.csv"
    rates.write_text("usd,1\n" * 50)
    before = set((grid.data / "objects").rglob("*"))
    grid.ok("data", "push", "rates", str(rates), home="me")
    (piece,) = (p for p in set((grid.data / "objects").rglob("*")) - before if p.is_file())
    content = piece.read_bytes()
    piece.unlink()
    assert grid.read("data", "list", "rates", home="me")[0]["lost"]
    assert not grid.read("data", "push", "rates", str(rates), home="me")["new"]
    assert piece.read_bytes() == content
    assert not grid.read("data", "list", "rates", home="me")[0]["lost"]
