"""Python programs in the real harness process: results, bad records, deaths, limits."""

from __future__ import annotations

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

RECORD = Program(python="work:record")
BATCH = Program(python="work:batch", call="batch")


def test_dict_list_and_none(tmp_path: Path) -> None:
    source = """
def record(row):
    n = int(row["n"])
    if n == 1:
        return None
    if n == 2:
        return [{"n": 2, "part": "a"}, {"n": 2, "part": "b"}]
    if n == 3:
        return ({"n": 3, "part": str(i)} for i in range(3))
    return {"n": n * 10, "part": None}
"""
    with runner_for(tmp_path, RECORD, work=source) as runner:
        result = runner.process(numbers(5))
    assert outline(result) == ["0,", "2,a", "2,b", "3,0", "3,1", "3,2", "40,"]
    assert [p.rows for p in result.pieces if isinstance(p, OutputPiece)] == [7]
    assert result.pieces[0].columns == ["n", "part"]


def test_one_process_lives_for_many_chunks(tmp_path: Path) -> None:
    source = "import os\ndef record(row): return {'pid': os.getpid()}"
    with runner_for(tmp_path, RECORD, work=source) as runner:
        pids = {text_of(runner.process(numbers(2, first=n))).split()[0] for n in (0, 2, 4)}
    assert len(pids) == 1


def test_columns_widen_piece_by_piece_and_start_again_in_each_chunk(tmp_path: Path) -> None:
    source = """
def record(row):
    return {"n": row["n"], **({"extra": "x"} if row["n"] == "2" else {})}
"""
    with runner_for(tmp_path, RECORD, work=source) as runner:
        first = runner.process(numbers(4))
        second = runner.process(numbers(2))
    assert [(p.columns, p.data) for p in first.pieces] == [
        (["n"], b"0\n1\n"),
        (["n", "extra"], b"2,x\n3,\n"),
    ]
    assert [p.columns for p in second.pieces] == [["n"]]


def test_output_columns_are_kept_in_order_and_others_refused(tmp_path: Path) -> None:
    source = """
def record(row):
    n = int(row["n"])
    return {"b": 1.5, "a": 'say "é", ok'} if n else {"a": 1, "typo": 2}
"""
    output = OutputSpec(format="csv", columns=["a", "b", "c"])
    with runner_for(tmp_path, RECORD, output=output, work=source) as runner:
        result = runner.process(numbers(2))
    assert bad_ones(result)[0].error == "column 'typo' is not in [output] columns"
    assert text_of(result) == '"say ""é"", ok",1.5,\n'
    assert result.pieces[-1].columns == ["a", "b", "c"]


def test_raising_records_are_tried_again_with_a_fresh_copy(tmp_path: Path) -> None:
    source = """
tries = {}
def record(row):
    n = row.pop("n")
    tries[n] = tries.get(n, 0) + 1
    if n == "1" and tries[n] < 3:
        raise OSError("busy")
    if n == "2":
        raise ValueError("no such é")
    return {"n": n, "tries": tries[n]}
"""
    limits = FAST.model_copy(update={"attempts": 3})
    with runner_for(tmp_path, RECORD, limits=limits, work=source) as runner:
        result = runner.process(numbers(4, first=100))
    assert outline(result) == ["0,1", "1,3", 102, "3,1"]
    bad = bad_ones(result)[102]
    assert bad.attempts == 3
    assert bad.raw == b"2\n"
    assert bad.error.startswith("ValueError: no such é\n")
    assert 'work.py, line 9, in record: raise ValueError("no such é")' in bad.error


def test_malformed_rows_never_reach_the_program(tmp_path: Path) -> None:
    source = "def record(row): return {'a': row['a'].upper(), 'len': len(row)}"
    data = b'x,1\nonly\n"two\nlines",2\n\n\xff,1\n"q"q,1\nlast,3'
    with runner_for(tmp_path, RECORD, work=source) as runner:
        result = runner.process(chunk_of(data, 7, "a", "b"))
    assert text_of(result) == 'X,2\n"TWO\nLINES",2\nLAST,2\n'
    bad = bad_ones(result)
    assert {n: b.attempts for n, b in bad.items()} == {1: 1, 3: 1, 4: 1, 5: 1}
    assert bad[1].error == "the row has 1 field, the header has 2"
    assert bad[3].error == "the row is empty"
    assert bad[4].raw == b"\xff,1\n"


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    source = """
def record(row):
    return [7, {"n": "\\ud800"}, {}, {1: 2}, {"n": 1}][int(row["n"])]
"""
    with runner_for(tmp_path, RECORD, work=source) as runner:
        result = runner.process(numbers(5))
    errors = [bad.error for bad in bad_ones(result).values()]
    assert errors[0] == "returned int; CSV output needs dict, list of dicts or None"
    assert errors[1].startswith("UnicodeEncodeError")
    assert errors[2:] == ["returned a dict without any column", "column name 1 is not text"]
    assert outline(result) == [0, 1, 2, 3, "1"]


def test_ndjson(tmp_path: Path) -> None:
    source = """
def record(value):
    if value == 3:
        return {1, 2}
    if value == 4:
        return float("nan")
    return {"é": value, "list": [1, None]}
"""
    with runner_for(tmp_path, RECORD, form="ndjson", work=source) as runner:
        result = runner.process(chunk_of('{"a": 1}\n3\n4\nnope\n"s"\n', 5))
    assert outline(result) == [
        '{"é":{"a":1},"list":[1,null]}',
        1,
        2,
        3,
        '{"é":"s","list":[1,null]}',
    ]
    assert result.pieces[0].columns is None
    assert "cannot be written as JSON" in bad_ones(result)[1].error


def test_lines(tmp_path: Path) -> None:
    source = "def record(line): return line * 2 if line != 'b' else 'two\\nlines'"
    with runner_for(tmp_path, RECORD, form="lines", work=source) as runner:
        result = runner.process(chunk_of("a\nb\n\nc", 4))
    assert outline(result) == ["aa", 1, "", "cc"]


def test_other_delimiter_and_no_column_names(tmp_path: Path) -> None:
    source = "def record(row): return {'all': '+'.join(row)}"
    layout = Layout(format="csv", delimiter=";", quote="'", header=False)
    with runner_for(tmp_path, RECORD, layout=layout, work=source) as runner:
        result = runner.process(chunk_of("'a;b';c\nd\n", 2))
    assert text_of(result) == "a;b+c\nd\n"


def test_batches(tmp_path: Path) -> None:
    source = """
sizes = []
def batch(rows):
    sizes.append(len(rows))
    if any(row["n"] == "5" for row in rows):
        raise ValueError("five")
    out = [{"n": row.pop("n"), "sizes": str(sizes[:2])} for row in rows]
    out[0] = None
    if any(row["n"] == "12" for row in out if row) and len(out) > 1:
        out.pop()
    return out
"""
    limits = FAST.model_copy(update={"batch_records": 10})
    with runner_for(tmp_path, BATCH, limits=limits, work=source) as runner:
        result = runner.process(numbers(13))
    bad = bad_ones(result)
    assert set(bad) == {5}
    assert bad[5].error.startswith("ValueError: five")
    assert bad[5].attempts == 2
    assert "[10, 5]" in text_of(result)


def test_batch_with_the_wrong_number_of_results(tmp_path: Path) -> None:
    source = "def batch(rows): return [r for r in rows if r['n'] != '3'] or 5"
    with runner_for(tmp_path, BATCH, work=source) as runner:
        result = runner.process(numbers(6))
    assert outline(result) == ["0", "1", "2", 3, "4", "5"]
    assert bad_ones(result)[3].error == "returned int; a batch function returns one item per record"


@pytest.mark.parametrize(
    ("deed", "error"),
    [
        (
            "import ctypes; ctypes.string_at(0)",
            "the program was killed by signal 11 (segmentation fault) on this record",
        ),
        ("import os; os._exit(3)", "the program ended with exit code 3 on this record"),
        ("while True: pass", "took longer than 1 s on this record"),
        ("import sys; sys.exit(4)", "SystemExit: 4"),
        ("x = bytearray(10**9)", "needed more than 256 MB of memory"),
    ],
)
@pytest.mark.parametrize("call", ["record", "batch"])
def test_deadly_records_are_found_and_all_others_processed(
    tmp_path: Path, deed: str, error: str, call: str
) -> None:
    source = f"""
def record(row):
    if row["n"] in ("3", "40"):
        {deed}
    return {{"n": row["n"]}}
def batch(rows):
    return [record(row) for row in rows]
"""
    limits = FAST.model_copy(update={"batch_records": 8})
    if "while" in deed and call == "batch":
        limits = limits.model_copy(update={"attempts": 1, "record_timeout_s": 0.3})
        error = error.replace("1 s", "0.3 s")
    program = RECORD if call == "record" else BATCH
    with runner_for(tmp_path, program, limits=limits, work=source) as runner:
        result = runner.process(numbers(50))
        assert runner.records_done == 50
    assert outline(result) == [n if n in (3, 40) else str(n) for n in range(50)]
    for bad in bad_ones(result).values():
        assert bad.error.startswith(error), bad.error
        assert bad.attempts == limits.attempts


def test_columns_do_not_depend_on_deaths(tmp_path: Path) -> None:
    source = """
import os
def record(row):
    n = int(row["n"])
    if n == 2:
        os._exit(1)
    return {"first": n} if n == 0 else {"n": n}
"""
    with runner_for(tmp_path, RECORD, work=source) as runner:
        result = runner.process(numbers(4))
    assert [p.columns for p in result.pieces if isinstance(p, OutputPiece)] == [
        ["first"],
        ["first", "n"],
        ["first", "n"],
    ]


def test_memory_of_child_processes_counts(tmp_path: Path) -> None:
    source = """
import os, time
def record(row):
    if row["n"] == "1":
        for _ in range(4):
            if os.fork() == 0:
                hog = bytearray(os.urandom(1)) * (45 * 2**20)
                time.sleep(60)
        time.sleep(60)
    return row
"""
    limits = Limits(attempts=1, record_timeout_s=30, memory_mb=128)
    with runner_for(tmp_path, RECORD, limits=limits, work=source) as runner:
        result = runner.process(numbers(3))
    assert outline(result) == ["0", 1, "2"]
    assert bad_ones(result)[1].error == "needed more than 128 MB of memory on this record"


def test_endless_printing_does_no_harm(tmp_path: Path) -> None:
    source = """
import sys, os
def record(row):
    print("x" * 100_000)
    sys.stderr.write("y" * 100_000 + "\\nlast words\\n")
    if row["n"] == "20":
        os._exit(9)
    return row
"""
    with runner_for(tmp_path, RECORD, work=source) as runner:
        result = runner.process(numbers(30))
    assert [line for line in outline(result) if not isinstance(line, str)] == [20]
    error = bad_ones(result)[20].error
    assert error.endswith("last words")
    assert len(error) < 1200


@pytest.mark.parametrize(
    ("target", "source", "why"),
    [
        ("absent:record", "", "No module named 'absent'"),
        ("work:absent", "", "has no attribute 'absent'"),
        ("work:record", "def record(:", "SyntaxError"),
        ("work:record", "record = 5", "is not a function"),
        ("work:record", "import os; os._exit(7)", ""),
        ("work", "", ""),
    ],
)
def test_programs_that_cannot_start(tmp_path: Path, target: str, source: str, why: str) -> None:
    with (
        runner_for(tmp_path, Program(python=target), work=source) as runner,
        pytest.raises(ProgramError) as caught,
    ):
        runner.process(numbers(3))
    assert target in caught.value.what
    assert why in caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize(
    ("source", "why", "fix"),
    [
        ("def recrod(row): return row", "has no attribute 'record'", "Check `python`"),
        ("TABLE = {}\nTABLE['x']", "KeyError: 'x'\n  work.py, line 2, in <module>: TABLE['x']",
         "Correct that place"),
        ("def record(row:\n", "SyntaxError", "Correct that place"),
        ("import nosuchpackage", "work.py, line 1", "requirements.txt"),
    ],
)  # fmt: skip
def test_a_program_that_cannot_start_says_where_in_its_own_files(
    tmp_path: Path, source: str, why: str, fix: str
) -> None:
    with (
        runner_for(tmp_path, RECORD, work=source) as runner,
        pytest.raises(ProgramError) as caught,
    ):
        runner.process(numbers(1))
    assert why in caught.value.why
    assert fix in caught.value.fix
    assert "harness" not in str(caught.value), "our own frames tell nobody anything"


def test_an_error_at_import_shows_the_line(tmp_path: Path) -> None:
    with (
        runner_for(tmp_path, RECORD, work="1 / 0") as runner,
        pytest.raises(ProgramError, match="ZeroDivisionError") as caught,
    ):
        runner.process(numbers(1))
    assert "1 / 0" in caught.value.why


def test_a_wrong_count_is_refused(tmp_path: Path) -> None:
    with (
        runner_for(tmp_path, RECORD, work="def record(row): return row") as runner,
        pytest.raises(InputError, match="2 records where 3 were announced"),
    ):
        runner.process(chunk_of("1\n2\n", 3, "n"))


def test_environment_and_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    source = """
import os, sys, child, helper
def record(row):
    return {"secret": os.environ.get("SECRET_TOKEN"), "job": os.environ["OFFICEGRID_JOB"],
            "own": os.environ["MODE"], "mine": child.NAME, "stdin": sys.stdin.read(),
            "worker": any(p.endswith("officegrid/worker") for p in sys.path)}
"""
    program = Program(python="work:record", env={"MODE": "x"})
    facts = {"OFFICEGRID_JOB": "j1"}
    files = {"work": source, "child": "NAME = 'mine'", "helper": ""}
    with runner_for(tmp_path, program, facts=facts, **files) as runner:
        result = runner.process(numbers(1))
    assert text_of(result) == ",j1,x,mine,,False\n"
    assert not list((tmp_path / "bundle").rglob("__pycache__"))


def test_stop_ends_a_running_chunk_at_once(tmp_path: Path) -> None:
    source = """
import time, subprocess
def record(row):
    if row["n"] == "2":
        subprocess.run(["sleep", "1000"])
    return row
"""
    limits = FAST.model_copy(update={"record_timeout_s": 100.0})
    with runner_for(tmp_path, RECORD, limits=limits, work=source) as runner:
        caught: list[BaseException] = []

        def work() -> None:
            try:
                runner.process(numbers(5))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: runner.records_done == 2, "two records are done")
        me = psutil.Process()
        wait_until(lambda: _sleepers(me) != [], "the program has started its own child")
        sleepers = _sleepers(me)
        begun = time.monotonic()
        runner.stop()
        thread.join(5)
        assert time.monotonic() - begun < 2
        assert [type(error) for error in caught] == [Stopped]
        wait_until(lambda: not any(_alive(p) for p in sleepers), "its child is dead too")
        with pytest.raises(Stopped):
            runner.process(numbers(1))


def _sleepers(me: psutil.Process) -> list[psutil.Process]:
    return [p for p in me.children(recursive=True) if _command(p)[:1] == ["sleep"]]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_died_between_chunks_is_replaced(tmp_path: Path) -> None:
    source = "import os\ndef record(row): return {'pid': os.getpid()}"
    with runner_for(tmp_path, RECORD, work=source) as runner:
        pid = int(text_of(runner.process(numbers(1))))
        victim = psutil.Process(pid)
        victim.kill()
        wait_until(lambda: not _alive(victim), "the idle process is dead")
        result = runner.process(numbers(3))
    assert not bad_ones(result)
    assert int(text_of(result).split()[0]) != pid
