"""Jobs from a query into a table, with real servers: all records, once, whatever breaks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, wait_for
from acceptance.projects import numbered, write_job
from databases import PASSWORD, Server
from officegrid.core.errors import OfficeGridError, UsageError
from officegrid.wire.jobs import JobSpec

PROGRAM = """
def record(row):
    if row["name"] == "bad":
        raise ValueError("nothing to be done")
    return {"id": row["id"], "upper": row["name"].upper()}
"""
ROWS = 500
Query = Callable[[str], list[tuple[Any, ...]]]


def _job(folder: Path, *, query: str, output: str, name: str = "upper") -> Path:
    job = f"""
        name = "{name}"
        python = "program:record"
        [input]
        source = "crm"
        {query}
        [output]
        source = "crm"
        {output}
        [policy]
        unit_seconds = 0.3
        quarantine_limit = "50%"
    """
    return write_job(folder, job, {"program.py": PROGRAM})


def _start(make_grid: MakeGrid, url: str, write: str = "true") -> Grid:
    grid = make_grid()
    grid.data.mkdir(parents=True)
    settings = grid.data / "coordinator.toml"
    settings.write_text(f'[sources.crm]\nurl = "{url}"\nwrite = {write}\n')
    grid.start()
    grid.join("me", "submitter")
    return grid


@pytest.fixture
def lite(tmp_path: Path) -> tuple[str, Query]:
    path = tmp_path / "crm.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("create table people (id integer primary key, name text)")
        names = [(n, "bad" if n == 77 else f"näme {n}") for n in range(ROWS)]
        base.executemany("insert into people values (?, ?)", names)

    def query(sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(path) as base:
            return base.execute(sql).fetchall()

    return f"sqlite:///{path}", query


def test_a_query_in_a_table_out_and_a_retry_adds_what_was_missing(
    make_grid: MakeGrid, tmp_path: Path, lite: tuple[str, Query]
) -> None:
    url, query = lite
    grid = _start(make_grid, url)
    grid.worker("w1")
    job = _job(
        tmp_path / "job", query='sql = "select id, name from people order by id"',
        output='table = "upper"',
    )  # fmt: skip
    done = grid.watch_submit(job)
    assert done.returncode == 3, done.stderr
    assert f"Delivered: {ROWS - 1} records into table upper of crm." in done.stdout
    rows = query("select id, upper from upper order by cast(id as int)")
    assert len(rows) == ROWS - 1
    assert rows[3] == ("3", "NÄME 3")
    assert ("77",) not in query("select id from upper")
    job_id = grid.jobs()[0].id
    (job.parent / "program.py").write_text(PROGRAM.replace('"bad"', '"worse"'))
    grid.ok("retry", job_id, "--job-file", str(job), home="me")
    wait_for(
        lambda: (d := grid.job(job_id).delivery) and d.state == "done" and d.rows == ROWS,
        "the record that was retried is delivered",
    )
    assert len(query("select id from upper")) == ROWS, "nothing twice"
    assert query("select upper from upper where id = '77'") == [("BAD",)]
    found = grid.read("lineage", job_id, home="me")
    assert found["input_source"] == "crm: select id, name from people order by id"
    # The table is there now, so the same job cannot make it.
    again = grid.watch_submit(job)
    assert again.returncode == 1
    assert "Not delivered into table upper of crm" in again.stderr
    newest = grid.jobs()[0].id
    why = grid.ok("why", newest, home="me")
    assert "Its output is not in crm.upper" in why
    assert f"officegrid deliver {newest}" in why
    failed = grid.run("deliver", newest, home="me")
    assert (failed.returncode, "Not delivered" in failed.stderr) == (1, True)
    query("drop table upper")
    done = grid.run("deliver", newest, home="me")
    assert done.returncode == 0
    assert "Delivered" in done.stdout
    assert len(query("select id from upper")) == ROWS
    assert grid.run("deliver", newest, home="me").returncode == 1


def test_a_schema_that_changed_holds_the_job_until_somebody_accepts_it(
    make_grid: MakeGrid, tmp_path: Path, lite: tuple[str, Query]
) -> None:
    url, query = lite
    grid = _start(make_grid, url)
    grid.worker("w1")
    job = _job(tmp_path / "job", query='table = "people"', output='table = "u1"\nmode = "append"')
    query("create table u1 (id text, upper text)")
    grid.wait_job(grid.submit(job))
    query("alter table people add column since text")
    second = grid.submit(job)
    held = grid.wait_job(second, "held")
    assert "the columns of its input changed since the last run" in held.reason
    assert "column since" in held.reason
    assert "officegrid release" in "\n".join(grid.read("why", second, home="me")["sentences"])
    grid.ok("release", second, home="me")
    grid.wait_job(second)
    third = grid.submit(job)
    grid.wait_job(third)
    wait_for(lambda: grid.job(third).delivery.state == "done", "delivered")  # type: ignore[union-attr]
    assert len(query("select id from u1")) == 3 * (ROWS - 1)


def test_what_is_not_allowed_or_not_there_is_said_at_once(
    make_grid: MakeGrid, tmp_path: Path, lite: tuple[str, Query]
) -> None:
    url, _ = lite
    grid = _start(make_grid, url, write="false")
    job = _job(tmp_path / "job", query='table = "people"', output='table = "u"')
    refused = grid.run("submit", str(job), home="me")
    assert refused.returncode == 1
    assert "Jobs may not write to source 'crm'" in refused.stderr
    reading = job.read_text().replace('source = "crm"\ntable = "u"\n', "")
    assert reading.count("crm") == 1
    for old, new, words, code in [
        ('source = "crm"', 'source = "erp"', "The coordinator knows no source 'erp'", 2),
        ('table = "people"', "", "exactly one of 'sql' and 'table'", 2),
        ('source = "crm"', 'source = "crm"\npath = "x.csv"', "exactly one of 'path'", 2),
    ]:
        job.write_text(reading.replace(old, new, 1))
        done = grid.run("submit", str(job), home="me")
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    for sql, words in [
        ('table = "nobody"', "nobody"),
        ('sql = "select nothing from people"', "nothing"),
        ('sql = "delete from people"', "only a statement that reads may run"),
    ]:
        job.write_text(reading.replace('table = "people"', sql))
        held = grid.wait_job(grid.submit(job), "held")
        assert "its input cannot be read" in held.reason
        assert words in held.reason


def test_what_could_never_be_delivered_is_refused_before_anything_is_uploaded(
    make_grid: MakeGrid, tmp_path: Path, lite: tuple[str, Query]
) -> None:
    url, _ = lite
    grid = _start(make_grid, url)
    settings = grid.data / "coordinator.toml"
    settings.write_text(f'{settings.read_text()}[sources.shut]\nurl = "{url}"\n')
    grid.coordinator().kill()
    grid.start()
    job = """
        name = "upper"
        python = "program:record"
        [input]
        path = "in.csv"
        [data]
        codes = "codes.txt"
        [output]
        source = "crm"
        table = "u"
        [policy]
        quarantine_limit = "50%"
    """
    files = {"in.csv": numbered(3), "program.py": PROGRAM, "codes.txt": "x"}
    path = write_job(tmp_path / "job", job, files)
    text = path.read_text()
    for old, new, words, code in [
        ('source = "crm"', 'source = "erp"', "The coordinator knows no source 'erp'", 2),
        ('source = "crm"', 'source = "shut"', "Jobs may not write to source 'shut'", 1),
        ('table = "u"', 'table = "u"\ntypes = { id = "INT); --" }', "cannot be used", 2),
        ('table = "u"', 'table = "u"\nmode = "upsert"', "'key' names the columns", 2),
        ("[policy]", '[policy]\nschedule = "61 * * * *"', "not a cron line that ever comes", 2),
    ]:
        path.write_text(text.replace(old, new, 1))
        done = grid.run("submit", str(path), home="me")
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert [one for one in (grid.data / "objects").rglob("*") if one.is_file()] == []
    # Who asks without the command is told the same, of what the job file would not let through.
    spec = JobSpec.model_validate({
        "name": "x", "program": {"python": "m:f"}, "input_job": "y",
        "table": {"source": "crm", "table": "u", "mode": "upsert"},
    })  # fmt: skip
    for place in ("/v1/jobs", "/v1/jobs/check"):
        with pytest.raises(UsageError, match="needs a key"):
            grid.connection().call("POST", place, body=spec)
    # What a coordinator of the release before answers to the question it does not know.
    with pytest.raises(OfficeGridError) as unknown:
        grid.connection().call("POST", "/v1/jobs/no-such-question")
    assert unknown.value.code == "http"


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_servers_that_are_down_or_killed_cost_time_and_no_record(
    make_grid: MakeGrid, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    query, name = _database(server, tmp_path)
    grid = _start(make_grid, server.url(name))
    query("create table people (id int primary key, name varchar(40))")
    for start in range(0, 20_000, 1000):
        values = ", ".join(f"({n}, 'p{n}')" for n in range(start, start + 1000))
        query(f"insert into people values {values}")
    query("create table upper_names (id int primary key, upper varchar(40))")
    query("insert into upper_names values (1, 'OLD'), (999999, 'KEPT')")
    job = _job(
        tmp_path / "job", query='table = "people"',
        output='table = "upper_names"\nmode = "upsert"\nkey = ["id"]',
    )  # fmt: skip
    job_id = grid.submit(job)
    grid.worker("w1", "--slots", "2")
    # kill -9 of the coordinator while the output is on its way into the table, three times
    for _ in range(3):
        wait_for(lambda: grid.job(job_id).delivery or grid.job(job_id).state == "finished", "done")
        grid.coordinator().kill()
        grid.start()
    grid.wait_job(job_id)
    wait_for(lambda: (d := grid.job(job_id).delivery) and d.state != "pending", f"{kind}: an end")
    delivery = grid.job(job_id).delivery
    assert delivery is not None
    assert delivery.text == ""
    assert delivery.state == "done"
    assert query("select count(*) from upper_names") == [(20_001,)]
    assert query("select upper from upper_names where id = 1") == [("P1",)]
    assert query("select upper from upper_names where id = 999999") == [("KEPT",)]
    log = (grid.folder / "serve.log").read_text()
    assert "Geh" not in log, "no password in the log"
    assert "Geh" not in json.dumps(grid.read("job", job_id, home="me"))


def _database(server: Server, folder: Path) -> tuple[Query, str]:
    """A fresh database of this test, and a way to ask it."""
    name = f"test_{abs(hash(folder)) % 10**9}"
    if server.kind == "mariadb":
        import pymysql

        def ask(sql: str, database: str | None = name) -> list[tuple[Any, ...]]:
            with pymysql.connect(
                host="127.0.0.1", port=server.port, user="grid", password=PASSWORD,
                database=database, autocommit=True,
            ) as base, base.cursor() as cursor:  # fmt: skip
                cursor.execute(sql)
                return list(cursor.fetchall())

        ask(f"create database {name}", None)
        return ask, name
    import psycopg

    def ask_postgres(sql: str, database: str = name) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host="127.0.0.1", port=server.port, user="grid", password=PASSWORD, dbname=database,
            autocommit=True,
        ) as base:  # fmt: skip
            cursor = base.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    ask_postgres(f"create database {name}", "postgres")
    return ask_postgres, name
