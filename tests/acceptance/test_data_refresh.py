"""Data that the coordinator keeps fresh by itself, from a file and from a server that goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, wait_for
from acceptance.projects import numbered, write_job

JOB = """
    name = "j"
    python = "program:record"
    [input]
    path = "in.csv"
    [data]
    rates = "data:rates"
"""
PROGRAM = (
    "import os\nRATES = open(os.environ['OFFICEGRID_DATA_RATES']).read()\n"
    "def record(row): return {'rates': RATES.strip()}\n"
)


class _Rates(BaseHTTPRequestHandler):
    """Answers with `server.content`, or with nothing new to who has it already."""

    server: RatesServer

    def do_GET(self) -> None:
        if self.server.content is None:
            self.send_error(503)
            return
        tag = f'"{len(self.server.content)}"'
        self.server.asked.append(self.headers.get("If-None-Match", ""))
        unchanged = self.headers.get("If-None-Match") == tag
        self.send_response(304 if unchanged else 200)
        self.send_header("ETag", tag)
        self.end_headers()
        if not unchanged:
            self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        return


class RatesServer(HTTPServer):
    content: bytes | None = b"usd,1.1\n"
    asked: list[str]


@pytest.fixture
def rates() -> Iterator[RatesServer]:
    server = RatesServer(("127.0.0.1", 0), _Rates)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _grid(make_grid: MakeGrid, folder: Path, rates: RatesServer) -> Grid:
    made = make_grid()
    made.data.mkdir(parents=True)
    (made.data / "coordinator.toml").write_text(
        f'[data.codes]\npath = "{folder}"\nschedule = "0 3 1 1 *"\n'
        f'[data.rates]\nurl = "http://127.0.0.1:{rates.server_port}/eu/rates.csv?key=hidden-key"\n'
        'schedule = "0 3 1 1 *"\n'
    )
    made.start()
    made.join("me", "submitter")
    return made


def test_sources_are_looked_at_and_one_that_is_down_changes_nothing(
    make_grid: MakeGrid, tmp_path: Path, rates: RatesServer
) -> None:
    codes = tmp_path / "codes"
    codes.mkdir()
    (codes / "a.txt").write_text("one")
    content, rates.content = rates.content, None
    grid = _grid(make_grid, codes, rates)
    shown = f"http://127.0.0.1:{rates.server_port}/eu/rates.csv"

    def all_looked_at() -> bool:
        return all(one.get("looked_at", 1) for one in grid.read("data", "list", home="me"))

    # Never looked at before: at once, and not only when the schedule says so.
    wait_for(all_looked_at, "both sources were looked at")
    never = {one["name"]: one for one in grid.read("data", "list", home="me")}["rates"]
    assert (never["n"], never["digest"], never["newest"]) == (None, None, False)
    assert never["trouble"] == f"{shown} answers with status 503."
    for listed in (grid.run("data", "list"), grid.run("data", "list", "rates")):
        assert listed.returncode == 0
        assert "rates  none yet" in listed.stdout
        assert "rates has no version yet: its source was looked at" in listed.stderr
        assert f"ago. {shown} answers with status 503." in listed.stderr
    files = {"in.csv": numbered(2), "program.py": PROGRAM}
    job = write_job(tmp_path / "job", JOB, files)
    early = grid.run("submit", str(job), home="me")
    assert (early.returncode, "Traceback" in early.stderr) == (1, False)
    assert "There is no version of the data rates yet." in early.stderr
    assert f"has given nothing so far. {shown} answers with status 503." in early.stderr
    rates.content = content
    assert grid.read("data", "refresh", "rates", home="me")["n"] == 1
    first = {one["name"]: one for one in grid.read("data", "list", home="me")}
    assert (first["codes"]["n"], first["codes"]["pushed_by"]) == (1, "coordinator")
    assert first["rates"]["file_name"] == "rates.csv"
    assert "hidden-key" not in str(first)
    (codes / "a.txt").write_text("two")
    assert grid.read("data", "refresh", "codes", home="me")["n"] == 2
    assert "nothing has changed; version 2" in grid.ok("data", "refresh", "codes", home="me")
    assert "nothing has changed; version 1" in grid.ok("data", "refresh", "rates", home="me")
    assert rates.asked[-1] == '"8"', "what it has is not sent again"
    rates.content = None
    for _ in range(2):
        failed = grid.run("data", "refresh", "rates", home="me")
        assert failed.returncode == 1
        assert "answers with status 503" in failed.stderr
    listed = grid.run("data", "list", home="me")
    assert f"rates was not refreshed: {shown} answers" in listed.stderr
    grid.worker("w1")
    job_id = grid.submit(job)
    grid.wait_job(job_id)
    assert b"usd,1.1" in grid.output(job_id, tmp_path / "got.csv"), "the last good version"
    rates.content = b"usd,1.25\n"
    assert grid.read("data", "refresh", "rates", home="me")["n"] == 2
    assert grid.run("data", "list", home="me").stderr == ""
    (codes / "a.txt").write_text("three")
    pushed = grid.run("data", "push", "codes", str(codes), home="me")
    assert "The coordinator itself keeps codes fresh" in pushed.stderr
    assert "version 1 by coordinator" in grid.ok("story", "rates", home="me")
    nobody = grid.run("data", "refresh", "nobody", home="me")
    assert "does not refresh any data 'nobody'" in nobody.stderr
    log = grid.coordinator().text()
    assert log.count("source_failed") == 2, "told once each time, not at every look"
    assert "hidden-key" not in log


def test_wrong_settings_stop_the_coordinator_with_the_key(
    make_grid: MakeGrid, tmp_path: Path
) -> None:
    grid = make_grid()
    settings = tmp_path / "settings.toml"
    settings.write_text('[data.codes]\nschedule = "never"\n')
    arguments = ["serve", "--data", str(grid.data), "--config", str(settings)]
    done = grid.run(*arguments)
    assert done.returncode == 2
    assert "data.codes" in done.stderr
    settings.write_text('[sources.crm]\nurl = "oracle://grid:secret-word@db/crm"\n')
    done = grid.run(*arguments)
    assert done.returncode == 2
    assert "The URL of source 'crm' is wrong" in done.stderr
    assert "secret-word" not in done.stderr
    missing = grid.run(*arguments[:-1], str(tmp_path / "none.toml"))
    assert "There is no settings file" in missing.stderr
