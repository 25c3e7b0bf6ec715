"""Job files: what is right is read with its defaults, what is wrong is named."""

from __future__ import annotations

import contextlib

import pytest

from officegrid.core.errors import OfficeGridError, UsageError
from officegrid.wire.jobfile import JobFile, parse_job_file

GOOD = """
name = "normalise-customers"
run = ["php", "normalise.php"]
[input]
path = "customers.csv"
[output]
path = "customers-clean.csv"
[policy]
unit_seconds = 30
attempts = 3
quarantine_limit = "1%"
record_timeout = "10s"
memory = "512MB"
"""


def _wrong(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_job_file(text)
    assert caught.value.fix
    assert caught.value.what.startswith("job.toml ")
    return caught.value.what


def _with(line: str, section: str = "policy") -> str:
    """The good file with one more line in a section ("" is the top)."""
    if not section:
        return line + "\n" + GOOD
    return GOOD.replace(f"[{section}]\n", f"[{section}]\n{line}\n")


def test_a_good_file_is_read() -> None:
    job = parse_job_file(GOOD)
    assert job.name == "normalise-customers"
    assert job.input.path == "customers.csv"
    limits = job.limits()
    assert (limits.attempts, limits.record_timeout_s, limits.memory_mb) == (3, 10.0, 512)
    assert job.job_policy().quarantine_limit == "1%"
    assert job.file_format("csv") == "csv"
    assert job.program("csv").stdin == "csv"


@pytest.mark.parametrize(
    ("line", "section", "key", "meant"),
    [
        ("unit_second = 3", "policy", "unit_second", "unit_seconds"),
        ("attemps = 3", "policy", "attemps", "attempts"),
        ("quarantine_limt = 3", "policy", "quarantine_limt", "quarantine_limit"),
        ('pth = "x"', "input", "pth", "path"),
        ('delimeter = ";"', "input", "delimeter", "delimiter"),
        ('formt = "csv"', "output", "formt", "format"),
        ('naem = "x"', "", "naem", "name"),
    ],
)
def test_a_typo_is_named_and_the_right_key_suggested(
    line: str, section: str, key: str, meant: str
) -> None:
    what = _wrong(_with(line, section))
    assert key in what
    assert f"did you mean {meant!r}?" in what
    if section:
        assert f"[{section}] {key}" in what


@pytest.mark.parametrize(
    ("line", "section", "belongs"),
    [
        ("attempts = 3", "input", "[policy]"),
        ('delimiter = ";"', "policy", "[input]"),
        ("columns = []", "policy", "[output]"),
        ('after = ["x"]', "policy", "at the top of the file"),
        ('memory = "1GB"', "", "[policy]"),
    ],
)
def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(
    line: str, section: str, belongs: str
) -> None:
    assert f"it belongs {'in ' if belongs[0] == '[' else ''}{belongs}" in _wrong(
        _with(line, section)
    )


def test_a_misspelt_section_is_named() -> None:
    what = _wrong(GOOD.replace("[policy]", "[polcy]"))
    assert "'polcy'" in what
    assert "'policy'" in what


@pytest.mark.parametrize(
    ("line", "section", "words"),
    [
        ('attempts = "often"', "policy", "[policy] attempts"),
        ("attempts = 0", "policy", "[policy] attempts"),
        ("unit_seconds = -1", "policy", "[policy] unit_seconds"),
        ("priority = 1000", "policy", "[policy] priority"),
        ('delimiter = ";;"', "input", "[input] delimiter"),
        ('header = "maybe"', "input", "[input] header"),
        ('format = "xlsx"', "output", "[output] format"),
        ('columns = "a,b"', "output", "[output] columns"),
        ("env = {A = 1}", "", "env"),
        ("path = 5", "input", "[input] path"),
        ('call = "sometimes"', "", "call"),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_key(line: str, section: str, words: str) -> None:
    text = _with(line, section)
    for old in (
        "unit_seconds = 30\n",
        "attempts = 3\n",
        'path = "customers.csv"\n',
    ):  # the key is there already
        if old.split()[0] == line.split()[0]:
            text = text.replace(old, "")
    assert words in _wrong(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [("record_timeout", '"soon"'), ("memory", '"much"'), ("quarantine_limit", '"a few"')],
)
def test_a_quantity_that_is_none_is_shown_with_an_example(key: str, value: str) -> None:
    text = "\n".join(
        f"{key} = {value}" if line.startswith(key) else line for line in GOOD.splitlines()
    )
    what = _wrong(text)
    assert f"[policy] {key}" in what
    assert value.strip('"') in what
    assert "rite " in what, "an example of how to write it"


def test_every_problem_is_named_a_line_each() -> None:
    what = _wrong(_with("attemps = 1").replace('path = "customers.csv"', "pth = 1"))
    assert "attemps" in what
    assert "pth" in what
    assert what.count("\n  - ") >= 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'name' is missing"),
        ("", "'input' is missing"),
        (GOOD.replace('run = ["php", "normalise.php"]\n', ""), "exactly one of 'python'"),
        ('python = "a:b"\n' + GOOD, "exactly one of 'python'"),
        (GOOD.replace('["php", "normalise.php"]', "[]"), "'run' is empty"),
        (GOOD.replace('run = ["php", "normalise.php"]', 'python = "tidy"'), "module:function"),
        (GOOD.replace('path = "customers.csv"', ""), "exactly one of 'path'"),
        (_with('output_of = "other"', "input"), "exactly one of 'path'"),
        (GOOD.replace("normalise-customers", "no spaces please"), "name"),
    ],
)
def test_what_is_missing_or_too_much_is_named(text: str, words: str) -> None:
    assert words in _wrong(text)


def test_broken_toml_says_where() -> None:
    assert "line 2" in _wrong('name = "x"\nrun = ]\n')


@pytest.mark.parametrize(
    ("path", "file_format"),
    [
        ("o.csv", "csv"), ("o.tsv.gz", "csv"), ("o.JSONL.zst", "ndjson"), ("o.log", "lines"),
        ("o.parquet", "parquet"), ("o.unknown", "csv"),
    ],
)  # fmt: skip
def test_the_output_format_follows_the_file_name(path: str, file_format: str) -> None:
    job = parse_job_file(GOOD.replace("customers-clean.csv", path))
    assert job.file_format("csv") == file_format


@pytest.mark.parametrize(
    "line",
    [
        'record_timeout = "0s"',
        'output_limit = "0"',
        'memory = "0"',
    ],
)
def test_zero_is_refused_or_made_usable_never_a_crash(line: str) -> None:
    key = line.split()[0]
    text = "\n".join(one for one in GOOD.splitlines() if not one.startswith(key))
    with contextlib.suppress(OfficeGridError):
        job: JobFile = parse_job_file(text.replace("[policy]", f"[policy]\n{line}"))
        assert job.limits().memory_mb > 0
