"""What people get wrong, as tables: what we do, the exit code, and the words that must be told.

Whatever happens: words on stderr that say what to do, never a traceback, and nothing lost.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import DOUBLE, double_job, write_job
from officegrid.coordinator.tokens import new_join_code
from officegrid.core.joincode import parse_code

ECHO = "def record(row):\n    return row\n"
JOB = """
name = "{name}"
{program}
[input]
path = "{path}"
{more}
[output]
path = "{output}"
[policy]
quarantine_limit = "100%"
"""


@dataclass(frozen=True)
class Bad:
    """A job folder with something wrong in it, and what `submit --watch` must say."""

    name: str
    files: dict[str, str | bytes]
    exit: int
    words: tuple[str, ...] = ()
    quarantined: dict[int, str] = field(default_factory=dict)  # record: words of its reason
    output: str | None = None
    program: str = 'python = "program:record"'
    path: str = "in.csv"
    more: str = ""
    output_path: str = "out.csv"
    edit: tuple[str, str] = ("", "")  # what a typo makes of the job file

    def job(self) -> str:
        text = JOB.format(
            name=self.name, program=self.program, path=self.path, more=self.more,
            output=self.output_path,
        )  # fmt: skip
        old, new = self.edit
        assert old in text
        return text.replace(old, new, 1) if old else text


# A crash of ours; a traceback of the user's own program comes as part of a sentence.
_CRASH = re.compile("^Traceback", re.MULTILINE)
LONG = "x" * 50_000_000

# fmt: off
RECORDS = [  # (name, files, exit code, words, quarantined records, output)
    Bad("wrong-quoting", {"in.csv": 'a,b\n1,2\n3,"x"y\n5,6\n'}, 3,
        quarantined={1: "wrong quoting"}, output="a,b\n1,2\n5,6\n"),
    Bad("open-quote", {"in.csv": 'a,b\n1,2\n3,"x\n5,6\n'}, 3, ("never closed",),
        quarantined={1: "never closed"}, output="a,b\n1,2\n"),
    Bad("missing-columns", {"in.csv": "a,b\n1,2\n3\n5,6\n7,8,9\n"}, 3,
        quarantined={1: "1 field, the header has 2", 3: "3 fields, the header has 2"},
        output="a,b\n1,2\n5,6\n"),
    Bad("undecodable", {"in.csv": b"a,b\n1,2\n3,M\xfcller\n5,6\n"}, 3, ("not UTF-8",),
        quarantined={1: "not valid UTF-8: byte 0xfc"}, output="a,b\n1,2\n5,6\n"),
    Bad("bad-json", {"in.ndjson": '{"a":1}\n{"a":\n\n{"a":4}\n'}, 3, path="in.ndjson",
        output_path="out.ndjson", quarantined={1: "not valid JSON", 2: "the line is empty"},
        output='{"a":1}\n{"a":4}\n'),
    Bad("header-only", {"in.csv": "a,b\n"}, 0, ("0 of 0 records",)),
    Bad("empty-lines", {"in.txt": ""}, 0, path="in.txt", output_path="out.txt", output=""),
    Bad("one-record", {"in.csv": "a,b\n1,2"}, 0, output="a,b\n1,2\n"),
    Bad("line-of-50-MB", {"in.csv": f"a,b\n1,{LONG}\n3,4\n"}, 0, output=f"a,b\n1,{LONG}\n3,4\n"),
]

REFUSED = [  # (name, files, exit code, words)
    Bad("empty-file", {"in.csv": ""}, 1, ("in.csv is empty", "names its columns")),
    Bad("duplicate-columns", {"in.csv": "a,b,a\n1,2,3\n"}, 1,
        ("names more than one column", '"a"', "Rename")),
    Bad("unnamed-column", {"in.csv": "a,,c\n1,2,3\n"}, 1, ("no name for column 2",)),
    Bad("line-over-the-limit", {"in.csv": f"a,b\n1,{'x' * 200_000}\n"}, 1,
        ("max_record",), more='max_record = "100kB"'),
    Bad("input-missing", {"imput.csv": "a\n1\n"}, 1,
        ("in.csv does not exist", "Did you mean imput.csv")),
    Bad("glob-without-files", {"other.txt": ""}, 1, ("No file matches", "data-*.csv"),
        path="data-*.csv"),
    Bad("different-headers", {"d1.csv": "a,b\n1,2\n", "d2.csv": "a,c\n1,2\n"}, 1,
        ("different columns", 'd2.csv lacks "b"'), path="d*.csv"),
    Bad("cut-gzip", {"in.csv.gz": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"}, 1,
        ("cannot be decompressed", "gzip -t"), path="in.csv.gz"),
    Bad("unknown-encoding", {"in.csv": "a\n1\n"}, 2, ("utf-9",), more='encoding = "utf-9"'),
    Bad("wrong-encoding", {"in.csv": b"a\n\xff\n"}, 1, ("is not ascii text", "line 2", "latin-1"),
        more='encoding = "ascii"'),
    Bad("typo-in-section", {}, 2, ("quarantine_limt", "did you mean 'quarantine_limit'"),
        edit=("quarantine_limit", "quarantine_limt")),
    Bad("typo-at-top", {}, 2, ("pyton", "did you mean 'python'"), edit=("python", "pyton")),
    Bad("key-in-wrong-section", {}, 2, ("'[input] unit_seconds'", "it belongs in [policy]"),
        more="unit_seconds = 3"),
    Bad("wrong-quantity", {}, 2, ("soon", "10s"),
        edit=("[policy]", '[policy]\nrecord_timeout = "soon"')),
    Bad("no-program", {}, 2, ("exactly one of 'python'", "'run'"), program=""),
    Bad("not-toml", {}, 2, ("not valid TOML", "line"), edit=("[input]", "[input")),
    Bad("code-folder-missing", {"in.csv": "a\n1\n"}, 2, ("'programs' is not a folder",),
        program='code = "programs"\npython = "program:record"'),
    Bad("output-folder-missing", {"in.csv": "a\n1\n"}, 2, ("no folder", "Create it first"),
        output_path="nowhere/out.csv"),
]

HELD = [  # what only a worker can find out: the job is held, with the reason
    Bad("unknown-module", {"in.csv": "a\n1\n"}, 1, ("Held:", "nosuch", "ModuleNotFoundError"),
        program='python = "xml.nosuch:record"'),
    Bad("unknown-function", {"in.csv": "a\n1\n"}, 1, ("Held:", "nosuch", "program"),
        program='python = "program:nosuch"'),
    Bad("syntax-error", {"in.csv": "a\n1\n", "program.py": "def record(row:\n"}, 1,
        ("Held:", "SyntaxError")),
    Bad("executable-missing", {"in.csv": "a\n1\n"}, 1,
        ("Held:", "'no-such-program' was not found", "PATH"), program='run = ["no-such-program"]'),
    Bad("not-executable", {"in.csv": "a\n1\n", "x.sh": "cat\n"}, 1,
        ("Held:", "not marked as executable", "chmod +x"), program='run = ["x.sh"]'),
]
# fmt: on


def _submit(grid: Grid, folder: Path, bad: Bad):  # type: ignore[no-untyped-def]
    files = {"program.py": ECHO, **bad.files}
    job_file = write_job(folder, bad.job(), files)
    done = grid.watch_submit(job_file)
    assert not _CRASH.search(done.stderr), done.stderr
    assert done.returncode == bad.exit, done.stderr
    for words in bad.words:
        assert words in done.stderr + done.stdout
    return done


@pytest.mark.parametrize("bad", RECORDS, ids=lambda bad: bad.name)
def test_bad_records_are_set_aside_and_good_ones_come_out(
    shared: Grid, tmp_path: Path, bad: Bad
) -> None:
    _submit(shared, tmp_path, bad)
    view = shared.job(bad.name)
    assert view.state == "finished"
    assert view.done + view.quarantined == view.total
    found = shared.quarantine(bad.name)
    assert list(found) == list(bad.quarantined)
    for record, words in bad.quarantined.items():
        assert words in found[record]["error"]
    if bad.output is not None:
        written = (tmp_path / bad.output_path).read_text()
        # No details of a difference: one of the outputs has 50 MB.
        assert (written == bad.output) is True, written[:200]


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: bad.name)
def test_what_cannot_work_is_refused_before_it_starts(
    shared: Grid, tmp_path: Path, bad: Bad
) -> None:
    done = _submit(shared, tmp_path, bad)
    assert done.stderr.startswith("Error: ") or "\nError: " in done.stderr
    assert not (tmp_path / bad.output_path).exists()


@pytest.mark.parametrize("bad", HELD, ids=lambda bad: bad.name)
def test_a_program_that_cannot_start_holds_the_job_with_its_reason(
    shared: Grid, tmp_path: Path, bad: Bad
) -> None:
    _submit(shared, tmp_path, bad)
    view = shared.job(bad.name)
    assert (view.state, view.done, view.quarantined) == ("held", 0, 0)
    assert bad.words[1] in shared.ok("why", bad.name)
    shared.ok("cancel", bad.name)


# --- commands: (name, what we do, exit code, words on stderr)


@dataclass(frozen=True)
class Command:
    name: str
    arguments: Callable[[Grid, Path], list[str]]
    exit: int
    words: tuple[str, ...]
    home: str = "me"


def _join(code: str | Callable[[Grid], str], url: str = "") -> Callable[[Grid, Path], list[str]]:
    def arguments(grid: Grid, _: Path) -> list[str]:
        text = code if isinstance(code, str) else code(grid)
        return ["join", url or grid.url, "--code", text, "--name", "newcomer"]

    return arguments


def _used_up(grid: Grid) -> str:
    code = grid.code("worker")
    grid.ok("join", grid.url, "--code", code, "--name", "first", home="first")
    return code


def _expired(grid: Grid) -> str:
    made = grid.read("join-code", "--role", "worker", "--ttl", "100ms")
    wait_for(lambda: time.time() > made["expires_at"] + 0.1, "the code expires")
    return str(made["code"])


def _unknown(grid: Grid) -> str:
    """A code for this very grid that the coordinator has never given out."""
    return new_join_code(parse_code(grid.code("worker")).fingerprint).text


def _typo(grid: Grid) -> str:
    code = grid.code("worker")
    return code[:10] + ("a" if code[10] != "a" else "b") + code[11:]


def _of_another_grid(grid: Grid) -> str:
    return new_join_code(b"\7" * 32).text


def _busy_port(grid: Grid, folder: Path) -> list[str]:
    return ["serve", "--data", str(folder / "d"), "--listen", f"127.0.0.1:{grid.port}"]


def _busy_folder(grid: Grid, _: Path) -> list[str]:
    return ["serve", "--data", str(grid.data), "--listen", "127.0.0.1:0"]


def _running_output(grid: Grid, folder: Path) -> list[str]:
    job_id = grid.submit(double_job(folder / "p", records=5000, pause_s=1, name="long"))
    return ["output", job_id, "-o", str(folder / "out.csv")]


def _finished_job(grid: Grid, folder: Path) -> str:
    return grid.submit(double_job(folder / "p", records=5, name="short"), watch=True)


def _output_nowhere(grid: Grid, folder: Path) -> list[str]:
    return ["output", _finished_job(grid, folder), "-o", str(folder / "no" / "out.csv")]


def _worker_submits(grid: Grid, folder: Path) -> list[str]:
    grid.join("machine", "worker")
    return ["submit", str(double_job(folder / "p", records=5, name="forbidden"))]


def _of_viewer(*arguments: str) -> Callable[[Grid, Path], list[str]]:
    def of_viewer(grid: Grid, _: Path) -> list[str]:
        grid.join("viewer", "viewer")
        return list(arguments)

    return of_viewer


def _revoked(*arguments: str) -> Callable[[Grid, Path], list[str]]:
    def revoked(grid: Grid, _: Path) -> list[str]:
        grid.join("outcast", "worker")
        if not grid.machine("outcast").revoked:
            grid.ok("revoke", "outcast")
        return list(arguments)

    return revoked


def _plain(*arguments: str) -> Callable[[Grid, Path], list[str]]:
    return lambda *_: list(arguments)


# fmt: off
COMMANDS = [
    Command("job-file-missing", lambda _, p: ["submit", str(p / "job.toml")], 2, ("no job file",)),
    Command("job-file-is-folder", lambda _, p: ["submit", str(p)], 2, ("is a folder",)),
    Command("unknown-job", _plain("job", "j999"), 1, ("no job 'j999'", "officegrid jobs")),
    Command("unknown-job-watched", _plain("watch", "nope"), 1, ("no job 'nope'",)),
    Command("unknown-job-cancelled", _plain("cancel", "nope"), 1, ("no job 'nope'",)),
    Command("unknown-machine", _plain("machine", "m999"), 1, ("no machine 'm999'",)),
    Command("unknown-command", _plain("sumbit"), 2, ("Did you mean 'submit'",)),
    Command("unknown-option", _plain("jobs", "--jason"), 2, ("--jason",)),
    Command("output-of-running-job", _running_output, 1, ("not complete yet", "watch")),
    Command("output-to-nowhere", _output_nowhere, 1, ("no folder", "Create it first")),
    Command("not-joined", _plain("jobs"), 1, ("has not joined", "officegrid join"), "stranger"),
    Command("worker-not-joined", _plain("worker"), 1, ("has not joined",), "stranger"),
    Command("submitter-works", _plain("worker"), 1, ("joined as submitter", "--role worker")),
    Command("worker-submits", _worker_submits, 1, ("joined as worker", "--role submitter"),
            "machine"),
    Command("viewer-cancels", _of_viewer("cancel", "x"), 1, ("joined as viewer",), "viewer"),
    Command("submitter-makes-codes", _plain("join-code", "--role", "admin"), 1,
            ("joined as submitter", "'manage'")),
    Command("revoked-worker", _revoked("worker", "--drain"), 1, ("revoked", "Join again"),
            "outcast"),
    Command("used-up-code", _join(_used_up), 1, ("not valid", "used up or expired"), "new"),
    Command("expired-code", _join(_expired), 1, ("not valid", "used up or expired"), "new"),
    Command("unknown-code", _join(_unknown), 1, ("not valid", "unknown"), "new"),
    Command("typo-in-code", _join(_typo), 2, ("typo", "Copy the whole code"), "new"),
    Command("half-a-code", _join(lambda g: g.code("worker")[:40]), 2, ("incomplete",), "new"),
    Command("no-code-at-all", _join("hello"), 2, ("not a join code", "og1-"), "new"),
    Command("code-of-another-grid", _join(_of_another_grid), 1,
            ("not the one this join code was made for", "Nothing secret was sent"), "new"),
    Command("plain-http", _join(_unknown, "http://127.0.0.1:1"), 2, ("https://",), "new"),
    Command("nobody-there", _join(_unknown, "https://127.0.0.1:9"), 1,
            ("cannot be reached", "firewall"), "new"),
    Command("port-in-use", _busy_port, 1, ("is in use", "--listen"), "server"),
    Command("folder-in-use", _busy_folder, 1, ("Another coordinator uses",), "server"),
    Command("address-without-port", _plain("serve", "--data", "d", "--listen", "here"), 2,
            ("'here' is not an address", "HOST:PORT"), "server"),
]
# fmt: on


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_that_cannot_work_says_why_and_what_to_do(
    shared: Grid, tmp_path: Path, command: Command
) -> None:
    arguments = command.arguments(shared, tmp_path)
    home = shared.home(command.home)
    before = sorted(home.rglob("profile.json"))
    done = shared.run(*arguments, home=command.home, cwd=tmp_path)
    assert done.returncode == command.exit, done.stderr
    for words in command.words:
        assert words in done.stderr
    assert not _CRASH.search(done.stderr), done.stderr
    assert done.stdout == ""
    assert sorted(home.rglob("profile.json")) == before
    with contextlib.suppress(AssertionError):  # only one of the cases leaves a job behind
        shared.ok("cancel", "long")


@pytest.mark.parametrize("stated", ["0", "99", "soon", ""])
def test_a_client_of_another_protocol_is_told_to_upgrade(shared: Grid, stated: str) -> None:
    with shared.browser("me", **{"officegrid-protocol": stated}) as browser:
        answer = browser.get("/v1/jobs")
    assert answer.status_code == 426
    error = answer.json()["error"]
    assert error["code"] == "version"
    assert "same protocol" in error["what"]
    assert "same release" in error["fix"]


def test_a_worker_that_is_revoked_at_work_ends_with_words_and_its_units_go_on(
    grid: Grid, tmp_path: Path
) -> None:
    job_id = grid.submit(double_job(tmp_path / "p", records=600, pause_s=0.005))
    outcast = grid.worker("outcast")
    grid.wait_done(job_id, 16)
    grid.ok("revoke", "outcast")
    assert outcast.wait(30) == 1
    assert "revoked" in outcast.text()
    assert "Join again" in outcast.text()
    grid.worker("w1")
    assert grid.wait_job(job_id).done == 600


def test_errors_of_json_commands_leave_stdout_empty(shared: Grid) -> None:
    done = shared.run("job", "nope", "--json", home="me")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(shared.ok("jobs", "--json", home="me")) is not None


def test_the_same_mistake_corrected_goes_through(shared: Grid, tmp_path: Path) -> None:
    files = {"program.py": DOUBLE, "in.csv": "id,text,id\n1,a,1\n"}
    text = JOB.format(
        name="corrected", program='python = "program:record"', path="in.csv", more="",
        output="out.csv",
    )  # fmt: skip
    job_file = write_job(tmp_path, text, files)
    assert shared.watch_submit(job_file).returncode == 1
    (tmp_path / "in.csv").write_text("id,text\n1,a\n")
    assert shared.watch_submit(job_file).returncode == 0
    assert (tmp_path / "out.csv").read_text() == "id,double,text\n1,2,A\n"
