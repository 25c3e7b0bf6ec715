"""The job file: what a batch developer writes, checked with the words of its own keys.

`parse_job_file(text)` gives a `JobFile` or a UsageError that names the wrong key, its place in the
file and the key that was probably meant.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import replace
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from officegrid.core.errors import UsageError
from officegrid.core.quantities import parse_duration_s, parse_limit, parse_size_bytes
from officegrid.wire.catalogue import CodeRef, DataKey, DataRef, VersionName, colliding
from officegrid.wire.data import FileFormat, Format
from officegrid.wire.gitref import GitAddress, parse_git_address
from officegrid.wire.jobs import SUSPENDED_LEASE_MOST_S, JobPolicy
from officegrid.wire.mistakes import Mistake, mistakes
from officegrid.wire.sql import (
    ColumnTypes,
    KeyColumns,
    NullText,
    QueryInput,
    SqlText,
    TableName,
    TableOutput,
)
from officegrid.wire.work import Limits, OutputSpec, Program


def _quantity(parse: Any) -> BeforeValidator:
    def checked(value: object) -> Any:
        try:
            return parse(value)
        except UsageError as error:
            raise PydanticCustomError(
                "quantity", "{text}", {"text": f"{error.what} {error.fix}"}
            ) from None

    return BeforeValidator(checked)


Size = Annotated[int, _quantity(parse_size_bytes)]


def _positive_duration_s(text: object) -> float:
    seconds = parse_duration_s(text)
    if seconds <= 0:
        raise UsageError(f"{text!r} is no time at all.", fix='Write it like "10s".')
    return seconds


def _limit_text(value: object) -> str:
    parse_limit(value)
    return str(value).strip()


Duration = Annotated[float, _quantity(_positive_duration_s)]
LimitText = Annotated[str, _quantity(_limit_text)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputSection(_Section):
    path: str | list[str] | None = None
    output_of: str | None = None
    source: VersionName | None = None
    sql: SqlText | None = None
    table: TableName | None = None
    null: NullText = ""
    schema_change: Literal["hold", "accept"] = "hold"
    format: FileFormat | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str = Field(default='"', min_length=1, max_length=1)
    header: bool = True
    encoding: str = "utf-8"
    max_record: Size = 64 * 1024 * 1024

    @model_validator(mode="after")
    def _one_source(self) -> InputSection:
        if sum(one is not None for one in (self.path, self.output_of, self.source)) != 1:
            raise PydanticCustomError(
                "one_source",
                "give exactly one of 'path' (files), 'output_of' (another job) and 'source' (a "
                "database)",
            )
        queries = sum(one is not None for one in (self.sql, self.table))
        if queries != (self.source is not None):
            raise PydanticCustomError(
                "one_query", "'source' needs exactly one of 'sql' and 'table', and they need it"
            )
        if self.source is not None and self.format not in (None, "csv", "ndjson"):
            raise PydanticCustomError("query_format", "records of a query are csv or ndjson")
        return self


class OutputSection(_Section):
    path: str | None = None
    source: VersionName | None = None
    table: TableName | None = None
    mode: Literal["create", "append", "upsert", "replace"] = "create"
    key: KeyColumns = Field(default_factory=list)
    null: NullText = ""
    types: ColumnTypes = Field(default_factory=dict)
    format: FileFormat | None = None
    columns: list[str] | None = None
    count: Literal["same", "any"] | None = None

    @model_validator(mode="after")
    def _table_of_a_source(self) -> OutputSection:
        if (self.source is None) != (self.table is None):
            raise PydanticCustomError("table_output", "'source' and 'table' go together")
        if (self.mode == "upsert") != bool(self.key):
            raise PydanticCustomError(
                "upsert_key", "'key' names the columns that mode = \"upsert\" finds rows by, and "
                "goes with no other mode"
            )  # fmt: skip
        return self


class DataSection(_Section):
    path: str | None = None
    name: str | None = None
    load: Literal["mariadb"] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> DataSection:
        if (self.path is None) == (self.name is None):
            raise PydanticCustomError(
                "one_place", "give exactly one of 'path' (a file or folder here) and 'name' (data "
                "that was pushed)"
            )  # fmt: skip
        return self


def _data_entry(value: object) -> object:
    """`"postcodes.sqlite"` is a path, `"data:postcodes"` a name."""
    if not isinstance(value, str):
        return value
    head, colon, name = value.partition(":")
    return {"name": name} if head == "data" and colon else {"path": value}


DataEntry = Annotated[DataSection, BeforeValidator(_data_entry)]


class PolicySection(_Section):
    unit_seconds: Annotated[float, Field(gt=0, le=86400)] = 30.0
    suspended_lease: Annotated[Duration, Field(le=SUSPENDED_LEASE_MOST_S)] = 7200.0
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    quarantine_limit: LimitText = "1%"
    record_timeout: Duration = 60.0
    memory: Size = 1024 * 1000 * 1000
    output_limit: Size = 256 * 1000 * 1000
    batch_records: Annotated[int, Field(ge=1)] = 10_000
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    schedule: str | None = None
    follow_latest: bool = False


class JobFile(_Section):
    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    code: str = "."
    python: str | None = None
    call: Literal["record", "batch"] = "record"
    run: list[str] | None = None
    stdin: Format | None = None
    stdout: Format | None = None
    header: bool = True
    env: dict[str, str] = Field(default_factory=dict)
    after: list[str] = Field(default_factory=list)
    input: InputSection
    data: dict[DataKey, DataEntry] = Field(default_factory=dict)
    output: OutputSection = Field(default_factory=OutputSection)
    policy: PolicySection = Field(default_factory=PolicySection)

    @field_validator("data")
    @classmethod
    def _keys_apart(cls, value: dict[str, DataSection]) -> dict[str, DataSection]:
        if words := colliding(value):
            raise PydanticCustomError("data_keys", "{words}", {"words": words})
        return value

    @field_validator("python")
    @classmethod
    def _entry_point(cls, value: str | None) -> str | None:
        if value is not None:
            module, _, function = value.partition(":")
            if not module or not function:
                raise PydanticCustomError(
                    "entry_point", 'write it as "module:function", like "normalise:record"'
                )
        return value

    @model_validator(mode="after")
    def _one_program(self) -> JobFile:
        if (self.python is None) == (self.run is None):
            raise PydanticCustomError(
                "one_program",
                "give exactly one of 'python' (\"module:function\") and 'run' (a command)",
            )
        if self.run is not None and not self.run:
            raise PydanticCustomError("empty_run", "'run' is empty: name the command to run")
        return self

    def file_format(self, input_format: Format) -> FileFormat:
        """Format of the output file: as stated, else by the file's name, else like the input."""
        stated = self.output.format or format_of_path(self.output.path)
        return stated or (self.stdout if self.run else None) or input_format

    def program(self, input_format: Format) -> Program:
        """The program with every default spelled out, for input in `input_format`."""
        if self.run is None:
            return Program(python=self.python, call=self.call, env=self.env)
        stdin = self.stdin or input_format
        return Program(
            run=self.run,
            stdin=stdin,
            stdout=self.stdout or self._stdout_default(stdin),
            header=self.header,
            env=self.env,
        )

    def _stdout_default(self, stdin: Format) -> Format:
        stated = self.output.format or format_of_path(self.output.path)
        if stated in get_args(Format):
            return stated  # type: ignore[return-value]
        return "ndjson" if stated == "parquet" and stdin == "ndjson" else stdin

    def output_spec(self, input_format: Format) -> OutputSpec:
        """How the workers store output records: as the program prints, or as the file wants."""
        file_format = self.file_format(input_format)
        stored: Format
        if self.run is not None:
            stored = self.program(input_format).stdout or "csv"
        else:
            stored = "ndjson" if file_format == "parquet" else file_format
        count = self.output.count or ("same" if self.run is not None else "any")
        return OutputSpec(format=stored, columns=self.output.columns, count=count)

    def limits(self) -> Limits:
        policy = self.policy
        return Limits(
            attempts=policy.attempts,
            record_timeout_s=policy.record_timeout,
            memory_mb=max(16, policy.memory // 1_000_000),
            batch_records=policy.batch_records,
            output_mb=max(1, policy.output_limit // 1_000_000),
        )

    def job_policy(self) -> JobPolicy:
        policy = self.policy
        return JobPolicy(
            unit_seconds=policy.unit_seconds,
            suspended_lease_s=policy.suspended_lease,
            quarantine_limit=policy.quarantine_limit,
            priority=policy.priority,
            schedule=policy.schedule,
            follow_latest=policy.follow_latest,
        )

    def code_ref(self) -> CodeRef | None:
        """`code = "bundle:NAME"` or `"bundle:NAME@3"`; None for a folder. Raises UsageError."""
        head, colon, text = self.code.partition(":")
        return _reference(text, self.code) if head == "bundle" and colon else None

    def query(self) -> QueryInput | None:
        """What the coordinator reads as input; None for files and other jobs."""
        section = self.input
        if section.source is None:
            return None
        return QueryInput(
            source=section.source, sql=section.sql, table=section.table,
            format="ndjson" if section.format == "ndjson" else "csv", null=section.null,
            schema_change=section.schema_change, max_record_bytes=section.max_record,
        )  # fmt: skip

    def table(self) -> TableOutput | None:
        """Where the coordinator puts the output, if into a table."""
        section = self.output
        if section.source is None or section.table is None:
            return None
        return TableOutput(
            source=section.source, table=section.table, mode=section.mode, key=section.key,
            null=section.null, types=section.types,
        )  # fmt: skip

    def git_address(self) -> GitAddress | None:
        """`code = "git+https://…@branch"`; None for anything else. Raises UsageError."""
        return parse_git_address(self.code)

    def data_refs(self) -> dict[str, DataRef]:
        """The entries of [data] that name pushed data. Raises UsageError."""
        found = {}
        for key, entry in self.data.items():
            if entry.name is not None:
                ref = _reference(entry.name, f"data:{entry.name}")
                found[key] = DataRef(name=ref.name, n=ref.n, load=entry.load or "")
        return found


def _reference(text: str, whole: str) -> CodeRef:
    name, at, number = text.partition("@")
    try:
        return CodeRef(name=name, n=int(number) if at else None)
    except ValueError:  # pydantic's ValidationError is one
        raise UsageError(
            f"{whole!r} names no version.",
            "A name has letters, digits and ._+- in it; a version is a number from 1.",
            'Write it like "bundle:clean" (the newest one) or "bundle:clean@3".',
        ) from None


_SUFFIXES: dict[str, FileFormat] = {
    ".csv": "csv", ".tsv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson",
    ".txt": "lines", ".log": "lines", ".parquet": "parquet",
}  # fmt: skip


def format_of_path(path: str | None) -> FileFormat | None:
    """The format that a file's name stands for, compressed or not; None if it says nothing."""
    if path is None:
        return None
    name = PurePath(path.lower())
    if name.suffix in (".gz", ".zst"):
        name = name.with_suffix("")
    return _SUFFIXES.get(name.suffix)


_SECTIONS: dict[str, type[BaseModel]] = {
    "": JobFile, "input": InputSection, "output": OutputSection, "policy": PolicySection,
    "data": DataSection,
}  # fmt: skip


def parse_job_file(text: str, name: str = "job.toml") -> JobFile:
    """Read a job file. Raises UsageError with every problem found, a line each."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{name} is not valid TOML: {error}.", fix="Correct the line named above."
        ) from None
    try:
        return JobFile.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(one) for one in mistakes(error, raw)]
        raise UsageError(
            f"{name} has {'a mistake' if len(problems) == 1 else f'{len(problems)} mistakes'}:\n"
            + "\n".join(f"  - {problem}" for problem in problems),
            fix="See docs/job-files.md for every key.",
        ) from None


def _problem(mistake: Mistake) -> str:
    place = mistake.place
    key = place[-1] if place else ""
    section = place[0] if len(place) > 1 else ""
    where = mistake.key
    if section in _SECTIONS and section not in ("", "data"):  # that one has sections of its own
        where = f"[{section}] {replace(mistake, place=place[1:]).key}"
    if mistake.kind == "unknown":
        return f"unknown key {where!r}{_suggestion(section, key)}"
    if mistake.kind == "missing":
        return f"{where!r} is missing" + (" (a [input] section)" if key == "input" else "")
    return f"{where}: {mistake.words}" if where else mistake.words


def _suggestion(section: str, key: str) -> str:
    for other, model in _SECTIONS.items():
        if other != section and key in model.model_fields:
            return f": it belongs in [{other}]" if other else ": it belongs at the top of the file"
    known = list(_SECTIONS.get(section, JobFile).model_fields)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f": did you mean {close[0]!r}?"
    for other, model in _SECTIONS.items():
        close = difflib.get_close_matches(key, list(model.model_fields), n=1, cutoff=0.75)
        if close:
            return f": did you mean {close[0]!r} in [{other}]?"
    return f" (known keys: {', '.join(known)})"
