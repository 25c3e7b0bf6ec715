"""Executables: real awk, sh and php processes over real batches."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from program_runs import (
    FAST,
    bad_ones,
    chunk_of,
    numbers,
    outline,
    runner_for,
    text_of,
    wait_until,
)

from officegrid.core.errors import InputError, ProgramError
from officegrid.wire.data import Layout
from officegrid.wire.work import Limits, OutputSpec, Program
from officegrid.worker.programs import OutputPiece, Stopped

SAME = OutputSpec(format="lines", count="same")


def shell(script: str, **more: object) -> Program:
    return Program.model_validate({"run": ["sh", "-c", script], **more})


def lines(*values: object) -> str:
    return "".join(f"{value}\n" for value in values)


def test_csv_with_headers_in_batches(tmp_path: Path) -> None:
    program = Program(run=["awk", "-F,", 'NR==1{print "double," $0} NR>1{print $1*2 "," $0}'])
    limits = FAST.model_copy(update={"batch_records": 4})
    output = OutputSpec(format="csv", count="same")
    with runner_for(tmp_path, program, output=output, limits=limits) as runner:
        result = runner.process(numbers(10))
        assert runner.records_done == 10
    assert text_of(result) == "".join(f"{n * 2},{n}\n" for n in range(10))
    assert [(p.rows, p.columns) for p in result.pieces if isinstance(p, OutputPiece)] == [
        (4, ["double", "n"]),
        (4, ["double", "n"]),
        (2, ["double", "n"]),
    ]


def test_csv_without_headers(tmp_path: Path) -> None:
    output = OutputSpec(format="csv", columns=["x"])
    with runner_for(tmp_path, Program(run=["cat"], header=False), output=output) as runner:
        result = runner.process(numbers(3))
    assert text_of(result) == "0\n1\n2\n"
    assert result.pieces[0].columns == ["x"]


def test_any_number_of_records(tmp_path: Path) -> None:
    program = shell("awk '$1 % 2 {print; print}'")
    with runner_for(tmp_path, program, form="lines") as runner:
        result = runner.process(chunk_of(lines(*range(5)), 5))
        nothing = runner.process(chunk_of(lines(0), 1))
    assert outline(result) == ["1", "1", "3", "3"]
    assert nothing.pieces == []


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("awk '$1==7{exit 1} {print}'", "the program ended with exit code 1"),
        ('awk \'$1==7{print "no 7" > "/dev/stderr"; exit 3} {print}\'', "no 7"),
        ("awk '$1!=7{print}'", "the program printed 0 records for 1"),
        ("awk '{print} $1==7{print}'", "the program printed 2 records for 1"),
        ("exec awk '$1==7{system(\"kill -9 $PPID\")} {print}'", "was killed by signal 9"),
    ],
)
def test_the_guilty_record_is_found(tmp_path: Path, script: str, error: str) -> None:
    with runner_for(tmp_path, shell(script), form="lines", output=SAME) as runner:
        result = runner.process(chunk_of(lines(*range(20)), 20, first=1000))
    assert outline(result) == [1007 if n == 7 else str(n) for n in range(20)]
    bad = bad_ones(result)[1007]
    assert error in bad.error
    assert (bad.attempts, bad.raw) == (2, b"7\n")


@pytest.mark.skipif(
    shutil.which("php") is None and not os.environ.get("CI"), reason="php is not installed"
)
def test_php_with_quotes_newlines_and_malformed_rows(tmp_path: Path) -> None:
    source = """<?php
$head = fgetcsv(STDIN); fputcsv(STDOUT, $head);
while (($row = fgetcsv(STDIN)) !== false) {
    $row[0] = strtoupper($row[0]);
    fputcsv(STDOUT, $row);
}
"""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "work.php").write_text(source)
    data = b'"\xc3\xa4\nb",1\nonly\nx,2\n\xff,1\n"q"q,1\n"say ""hi""",3\n'
    program = Program(run=["php", "work.php"])
    output = OutputSpec(format="csv", count="same")
    with runner_for(tmp_path, program, output=output) as runner:
        result = runner.process(chunk_of(data, 6, "a", "b", first=10))
    found = [p.data if isinstance(p, OutputPiece) else p.record for p in result.pieces]
    assert found == [b'"\xc3\xa4\nB",1\n', 11, b"X,2\n", 13, 14, b'"SAY ""HI""",3\n']
    assert bad_ones(result)[11].error == "the row has 1 field, the header has 2"
    assert all(bad.attempts == 1 for bad in bad_ones(result).values())


def test_malformed_rows_follow_their_batch_when_any_count_is_allowed(tmp_path: Path) -> None:
    with runner_for(tmp_path, Program(run=["cat"])) as runner:
        result = runner.process(chunk_of("1\n1,2\n3\n", 3, "n"))
    assert outline(result) == ["1", "3", 1]


def test_only_malformed_rows(tmp_path: Path) -> None:
    with runner_for(tmp_path, Program(run=["false"])) as runner:
        result = runner.process(chunk_of("1,2\n3,4\n", 2, "n"))
    assert outline(result) == [0, 1]


def test_conversion_both_ways(tmp_path: Path) -> None:
    program = shell("cat", stdin="ndjson", stdout="ndjson")
    with runner_for(tmp_path, program, output=OutputSpec(format="csv")) as runner:
        result = runner.process(chunk_of('"x,y",é\n3,4\n', 2, "a", "b"))
    assert text_of(result) == '"x,y",é\n3,4\n'
    assert result.pieces[0].columns == ["a", "b"]


def test_csv_speaks_the_delimiter_of_the_input(tmp_path: Path) -> None:
    layout = Layout(format="csv", delimiter=";")
    program = Program(run=["awk", "-F;", '{print $2 ";" $1}'])
    with runner_for(tmp_path, program, layout=layout) as runner:
        result = runner.process(chunk_of("1,5;b\n", 1, "n", "t"))
    assert result.pieces == [OutputPiece(b'b,"1,5"\n', 1, ["t", "n"])]


def test_an_output_row_that_is_not_well_formed(tmp_path: Path) -> None:
    program = Program(run=["awk", "-F,", '{print $1 ($1 == 3 ? ",x" : "")}'])
    output = OutputSpec(format="csv", count="same")
    with runner_for(tmp_path, program, output=output) as runner:
        result = runner.process(numbers(6))
    assert outline(result) == ["0", "1", "2", 3, "4", "5"]
    assert "the row has 2 fields, the header has 1" in bad_ones(result)[3].error


def test_a_wrong_column_gives_up_the_batch_without_a_search(tmp_path: Path) -> None:
    log = tmp_path / "starts"
    program = shell(f"echo x >> {log}; cat")
    output = OutputSpec(format="csv", columns=["other"])
    with runner_for(tmp_path, program, output=output) as runner:
        result = runner.process(numbers(50))
    assert len(bad_ones(result)) == 50
    assert bad_ones(result)[49].error == "column 'n' is not in [output] columns"
    assert log.read_text() == "x\n"


def test_a_hanging_program_is_killed_with_its_children(tmp_path: Path) -> None:
    program = shell("grep -q 3 && { sleep 1000 & sleep 1000; }; exit 0")
    limits = Limits(attempts=1, record_timeout_s=0.4)
    with runner_for(tmp_path, program, form="lines", limits=limits) as runner:
        result = runner.process(chunk_of(lines(1, 2, 3, 4), 4))
    assert list(bad_ones(result)) == [2]
    assert "neither read nor printed anything for 0.4 s" in bad_ones(result)[2].error
    wait_until(lambda: not _running("sleep", "1000"), "what was killed is gone")


def test_children_left_behind_by_a_successful_program_are_killed(tmp_path: Path) -> None:
    program = shell("cat; sleep 1001 &")
    begun = time.monotonic()
    with runner_for(tmp_path, program, form="lines") as runner:
        result = runner.process(chunk_of(lines(1, 2), 2))
    assert outline(result) == ["1", "2"]
    assert time.monotonic() - begun < 5
    wait_until(lambda: not _running("sleep", "1001"), "the left-over child is dead")


def test_a_program_that_needs_much_memory(tmp_path: Path) -> None:
    hog = f"{sys.executable} -c 'x = bytearray(300 * 2**20); print(1)'"
    program = shell(f"read n; if [ $n = 2 ]; then {hog}; else echo $n; fi")
    limits = Limits(attempts=1, batch_records=1, memory_mb=100)
    with runner_for(tmp_path, program, form="lines", output=SAME, limits=limits) as runner:
        result = runner.process(chunk_of(lines(1, 2, 3), 3))
    assert outline(result) == ["1", 1, "3"]
    assert "MemoryError" in bad_ones(result)[1].error


def test_printing_without_end_is_cut_off(tmp_path: Path) -> None:
    limits = Limits(attempts=1, output_mb=1)
    with runner_for(tmp_path, Program(run=["yes"]), form="lines", limits=limits) as runner:
        result = runner.process(chunk_of(lines(1, 2), 2))
    assert [b.error for b in bad_ones(result).values()] == [
        "the program printed more than 1 MB"
    ] * 2


def test_messages_without_end_are_drained_and_not_progress(tmp_path: Path) -> None:
    much = "head -c 3000000 /dev/zero | tr '\\0' x >&2; cat"
    with runner_for(tmp_path, shell(much), form="lines") as runner:
        assert outline(runner.process(chunk_of(lines(1), 1))) == ["1"]
    limits = Limits(attempts=1, record_timeout_s=0.4)
    with runner_for(tmp_path, shell("yes >&2"), form="lines", limits=limits) as runner:
        bad = bad_ones(runner.process(chunk_of(lines(1), 1)))[0]
    assert "hung" in bad.error
    assert len(bad.error) < 4500


def test_large_input_and_output_do_not_deadlock(tmp_path: Path) -> None:
    data = lines(*("x" * 1000 for _ in range(8000)))
    with runner_for(tmp_path, Program(run=["cat"]), form="lines", output=SAME) as runner:
        assert text_of(runner.process(chunk_of(data, 8000))) == data


def test_a_program_need_not_read_its_input(tmp_path: Path) -> None:
    data = lines(*("x" * 1000 for _ in range(5000)))
    with runner_for(tmp_path, Program(run=["head", "-n", "1"]), form="lines") as runner:
        assert text_of(runner.process(chunk_of(data, 5000))) == "x" * 1000 + "\n"


def test_programs_that_cannot_start(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "plain.sh").write_text("cat\n")
    (bundle / "odd").write_bytes(b"\x00\x01\x02not a program")
    (bundle / "odd").chmod(0o755)
    for name, what in (
        ("no-such-command", "'no-such-command' was not found"),
        ("plain.sh", "not marked as executable"),
        ("odd", "Exec format error"),
    ):
        with (
            runner_for(tmp_path, Program(run=[name])) as runner,
            pytest.raises(ProgramError, match=what) as caught,
        ):
            runner.process(numbers(1))
        assert caught.value.fix


def test_an_executable_of_the_bundle_comes_first(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    script = bundle / "cat"
    script.write_text("#!/bin/sh\nwhile read x; do echo mine $x; done\n")
    script.chmod(0o755)
    with runner_for(tmp_path, Program(run=["cat"]), form="lines") as runner:
        assert outline(runner.process(chunk_of(lines(1), 1))) == ["mine 1"]


def test_the_environment_is_minimal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    program = Program(run=["env"], env={"MODE": "x"})
    with runner_for(tmp_path, program, form="lines", facts={"OFFICEGRID_JOB": "j"}) as runner:
        found = dict(line.split("=", 1) for line in outline(runner.process(chunk_of("1\n", 1))))  # type: ignore[attr-defined]
    assert "SECRET_TOKEN" not in found
    assert (found["MODE"], found["OFFICEGRID_JOB"]) == ("x", "j")
    assert found["HOME"] == str(tmp_path / "scratch")
    assert set(found) <= {
        *("PATH", "HOME", "TMPDIR", "LANG", "TZ", "MODE", "OFFICEGRID_JOB"),
        *("PYTHONHASHSEED", "PYTHONPYCACHEPREFIX", "PWD", "SHLVL", "_"),
    }


def test_a_wrong_count_is_refused(tmp_path: Path) -> None:
    with (
        runner_for(tmp_path, Program(run=["cat"]), form="lines") as runner,
        pytest.raises(InputError, match="2 records where 5 were announced"),
    ):
        runner.process(chunk_of("1\n2\n", 5))


def test_stop_kills_at_once(tmp_path: Path) -> None:
    limits = FAST.model_copy(update={"record_timeout_s": 100.0})
    program = shell("sleep 1002")
    with runner_for(tmp_path, program, form="lines", limits=limits) as runner:
        caught: list[BaseException] = []

        def work() -> None:
            try:
                runner.process(chunk_of("1\n", 1))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: _running("sleep", "1002"), "the program runs")
        begun = time.monotonic()
        runner.stop()
        thread.join(5)
        assert time.monotonic() - begun < 2
        assert [type(error) for error in caught] == [Stopped]
        assert not _running("sleep", "1002")


PARENT = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from program_runs import chunk_of, runner_for, Program
from officegrid.wire.work import Limits
from officegrid.worker.limits import warden
program = Program.model_validate_json({program!r})
limits = Limits(record_timeout_s=100)
guard = warden.guard
def guard_and_tell(group):
    guard(group)
    Path({folder!r}, "guarded").touch()
warden.guard = guard_and_tell
source = "import subprocess\\ndef record(x): subprocess.run(['sleep', {mark!r}])"
with runner_for(Path({folder!r}), program, form="lines", limits=limits, work=source) as runner:
    runner.process(chunk_of("1\\n", 1))
"""


@pytest.mark.parametrize("kind", ["python", "run"])
def test_kill_9_of_the_worker_kills_programs_and_their_children(tmp_path: Path, kind: str) -> None:
    mark = f"10{os.getpid()}" + ("1" if kind == "python" else "2")
    program = Program(python="work:record")
    if kind == "run":
        program = shell(f"trap '' TERM HUP PIPE; sleep {mark} & sleep {mark}")
    script = PARENT.format(
        paths=[str(Path(__file__).parent), *sys.path],
        program=program.model_dump_json(),
        mark=mark,
        folder=str(tmp_path),
    )
    worker = subprocess.Popen([sys.executable, "-c", script])
    try:
        # A program that was started a moment ago is not guarded yet.
        wait_until((tmp_path / "guarded").exists, "the program is guarded")
        wait_until(lambda: _running("sleep", mark), "the program runs")
        family = psutil.Process(worker.pid).children(recursive=True)
        assert len(family) >= 3
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    wait_until(lambda: not any(_alive(p) for p in family), "all of its processes are gone")


def _running(*command: str) -> bool:
    return any(p.info["cmdline"] == list(command) for p in psutil.process_iter(["cmdline"]))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
