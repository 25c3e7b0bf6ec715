"""Submit a job: pack the program, cut the input into blocks, upload what the coordinator lacks.

An upload that was cut off is resumed by submitting again: blocks are named by their content, so
only the missing ones travel.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from officegrid.bundles.pack import PackedBundle, pack_folder
from officegrid.client import data
from officegrid.client.catalogue import pick, versions
from officegrid.client.leftout import PROGRAM, OnLeftOut, silent
from officegrid.core.errors import OfficeGridError, UsageError
from officegrid.data.blocks import PackedBlock, pack_block
from officegrid.data.sources import Chunk, ReadOptions, Source, open_source
from officegrid.transport.http import Connection
from officegrid.wire.catalogue import CodeRef, DataRef, VersionView
from officegrid.wire.data import BlockSlice, DatasetSpec, Format
from officegrid.wire.gitref import GitAddress
from officegrid.wire.jobfile import JobFile, parse_job_file
from officegrid.wire.jobs import (
    DatasetReply,
    JobCheck,
    JobSpec,
    JobView,
    MissingReply,
    MissingRequest,
)

GROUP_CHUNKS = 16  # chunks that are checked and uploaded together
UPLOADERS = 2
GROUPS_AHEAD = 4
GIT_WITHIN_S = 900.0  # a large repository for the first time


@dataclass
class UploadProgress:
    """How far an upload is; `bytes_read` of `bytes_total` of the input files."""

    bytes_read: int = 0
    bytes_total: int = 0
    bytes_sent: int = 0
    records: int = 0
    done: bool = False
    warnings: list[str] = field(default_factory=list)


OnProgress = Callable[[UploadProgress], None]


def _silent(_: UploadProgress) -> None:
    return


def load_job_file(path: Path) -> JobFile:
    """Read and check a job file. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"There is no job file {path}.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder.", fix="Name the job file in it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The job file {path} cannot be read: {error}.") from None
    return parse_job_file(text, path.name)


def submit(
    connection: Connection, path: Path, on_progress: OnProgress = _silent,
    on_left_out: OnLeftOut = silent,
) -> JobView:  # fmt: skip
    """Upload everything the job file names and create the job."""
    job = load_job_file(path)
    base = path.resolve().parent
    check_output(job, base)
    for name in job.after:
        connection.call("GET", f"/v1/jobs/{name}", reply=JobView)
    check_data(job, base)
    check_module(job, base)
    check_names(connection, job)
    check_with_coordinator(connection, job)
    code = job.code_ref()
    address = job.git_address()
    if address is not None:
        code = CodeRef(name=from_git(connection, address).name)
    bundle = pack_code(job, base, on_left_out) if code is None else None
    spec = JobSpec(
        name=job.name,
        code=code,
        data={**job.data_refs(), **push_data(connection, job, base, on_left_out)},
        program=job.program("csv"),
        after=job.after,
        input_job=job.input.output_of,
        query=job.query(),
        table=job.table(),
        output_path=str((base / job.output.path).resolve()) if job.output.path else "",
        limits=job.limits(),
        policy=job.job_policy(),
    )
    input_format: Format = "csv"
    source = open_input(job, base) if job.input.path is not None else None
    if bundle is not None:
        upload_bundle(connection, bundle)
    if source is not None:
        input_format = source.layout.format
        spec.dataset = upload_dataset(connection, source, on_progress).id
    elif spec.query is not None:
        input_format = spec.query.format
    else:
        input_format = _output_format_of(connection, job.input.output_of or "")
    spec.bundle = None if bundle is None else bundle.sha256
    spec.program = job.program(input_format)
    spec.output = job.output_spec(input_format)
    spec.output_file_format = job.file_format(input_format)
    return connection.call("POST", "/v1/jobs", body=spec, reply=JobView, retry=False)


def check_module(job: JobFile, base: Path) -> None:
    """Raises UsageError where the folder has no such module, and no package could bring it."""
    folder = base / job.code
    if job.python is None or not folder.is_dir() or (folder / "requirements.txt").exists():
        return
    name = job.python.partition(":")[0].partition(".")[0]
    if name in sys.stdlib_module_names or any(
        (folder / one).exists() for one in (f"{name}.py", name)
    ):
        return
    known = [path.stem for path in folder.glob("*.py")]
    close = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"python = {job.python!r}: there is no module {name!r} in {folder}.",
        f"Modules there: {', '.join(sorted(known)) or 'none'}.",
        f"Did you mean {close[0]!r}?" if close else "Correct `python` or `code` in the job file.",
    )


def check_names(connection: Connection, job: JobFile) -> None:
    """Are the versions there that the job file names? Raises NotFoundError, ConflictError; before
    anything is uploaded."""
    code = job.code_ref()
    if code is not None:
        pick(versions(connection, "code", code.name), code.n)
    for ref in job.data_refs().values():
        pick(versions(connection, "data", ref.name), ref.n)


def check_with_coordinator(connection: Connection, job: JobFile) -> None:
    """What only the coordinator knows: its databases, whether the schedule ever comes in its time
    zone. Raises what creating the job would raise; before anything is uploaded."""
    asked = JobCheck(policy=job.job_policy(), query=job.query(), table=job.table())
    try:
        connection.call("POST", "/v1/jobs/check", body=asked, reply=JobCheck)
    except OfficeGridError as error:
        if error.code not in ("not_found", "http"):
            raise
        # A coordinator of the release before knows no such question, and asks itself in the end.


def check_data(job: JobFile, base: Path) -> None:
    """Raises UsageError for a path under [data] that is not there."""
    for key, entry in job.data.items():
        if entry.path is not None and not (base / entry.path).exists():
            raise UsageError(
                f"[data] {key}: there is no file or folder {base / entry.path}.",
                fix='Correct the path; data that was pushed is written "data:NAME".',
            )


def push_data(
    connection: Connection, job: JobFile, base: Path, on_left_out: OnLeftOut = silent
) -> dict[str, DataRef]:
    """Files and folders under [data] become versions named after the job and their key."""
    found = {}
    for key, entry in job.data.items():
        if entry.path is not None:
            name = f"{job.name}.{key}"
            view = data.push(connection, name, base / entry.path, on_left_out=on_left_out)
            n = None if job.policy.follow_latest else view.n
            found[key] = DataRef(name=view.name, n=n, load=entry.load or "")
    return found


def check_output(job: JobFile, base: Path) -> None:
    """What would only be found out when the job has ended. Raises UsageError."""
    if job.output.path is None:
        return
    folder = (base / job.output.path).resolve().parent
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} for the output.", fix="Create it first.")
    if job.file_format("csv") == "parquet" and importlib.util.find_spec("duckdb") is None:
        raise UsageError(
            "Parquet files need a part of officegrid that is not installed here.",
            "The package duckdb is missing.",
            "Run `pip install 'officegrid[parquet]'`.",
        )


def _output_format_of(connection: Connection, name: str) -> Format:
    other = connection.call("GET", f"/v1/jobs/{name}", reply=JobView)
    spec = JobSpec.model_validate(other.spec)
    return spec.output.format


def pack_code(job: JobFile, base: Path, on_left_out: OnLeftOut = silent) -> PackedBundle:
    """The program folder as a bundle, without the job's own input and output files."""
    code = (base / job.code).resolve()
    if not code.is_dir():
        raise UsageError(f"code = {job.code!r} is not a folder.", f"There is no folder {code}.")
    bundle = pack_folder(code, exclude=files_of(job, base))
    on_left_out(PROGRAM, bundle.left_out)
    return bundle


def files_of(job: JobFile, base: Path) -> list[Path]:
    """The job's own input, data and output: no part of its program."""
    left_out: list[Path] = []
    if job.input.path is not None:
        paths = [job.input.path] if isinstance(job.input.path, str) else job.input.path
        for pattern in paths:
            left_out += _matches(base, pattern)
    left_out += [base / one.path for one in job.data.values() if one.path is not None]
    if job.output.path is not None:
        left_out.append((base / job.output.path).resolve())
    return left_out


def bundle_of(
    connection: Connection, job: JobFile, base: Path, on_left_out: OnLeftOut = silent
) -> str:
    """The digest of the job's code as it is now: its folder, uploaded, or the version it names."""
    ref, address = job.code_ref(), job.git_address()
    if address is not None:
        return from_git(connection, address).digest
    if ref is None:
        bundle = pack_code(job, base, on_left_out)
        upload_bundle(connection, bundle)
        return bundle.sha256
    return pick(versions(connection, "code", ref.name), ref.n).digest


def from_git(connection: Connection, address: GitAddress) -> VersionView:
    """The newest version of what is at that address, fetched by the coordinator if it is new."""
    return connection.call(
        "POST", "/v1/code/git", body=address, reply=VersionView, timeout_s=GIT_WITHIN_S, retry=False
    )


def _matches(base: Path, pattern: str) -> list[Path]:
    if Path(pattern).is_absolute():
        return [Path(pattern)]
    return [path.resolve() for path in base.glob(pattern)]


def upload_bundle(connection: Connection, bundle: PackedBundle) -> None:
    request = MissingRequest(digests=[bundle.sha256])
    reply = connection.call("POST", "/v1/objects/missing", body=request, reply=MissingReply)
    if reply.missing:
        connection.upload(f"/v1/objects/{bundle.sha256}", bundle.payload, timeout_s=300)


def open_input(job: JobFile, base: Path) -> Source:
    """The job's input files, ready to be read. Raises InputError, UsageError."""
    section = job.input
    paths = [section.path] if isinstance(section.path, str) else list(section.path or [])
    options = ReadOptions(
        format=section.format,
        delimiter=section.delimiter,
        quote=section.quote,
        header=section.header,
        encoding=section.encoding,
        max_record_bytes=section.max_record,
    )
    return open_source([base / path for path in paths], options)


def upload_dataset(
    connection: Connection, source: Source, on_progress: OnProgress = _silent
) -> DatasetReply:
    """Read the source once, upload the blocks that are missing, register the dataset."""
    progress = UploadProgress(bytes_total=source.total_bytes)
    blocks: list[BlockSlice] = []
    waiting: list[tuple[int, Future[tuple[list[BlockSlice], int]]]] = []

    def collect(most_waiting: int) -> None:
        while len(waiting) > most_waiting:
            bytes_read, upload = waiting.pop(0)
            slices, sent = upload.result()
            blocks.extend(slices)
            progress.bytes_sent += sent
            progress.bytes_read = bytes_read
            progress.records += sum(one.records for one in slices)
            on_progress(progress)

    with ThreadPoolExecutor(UPLOADERS, thread_name_prefix="upload") as pool:
        try:
            for group in _groups(source.chunks()):
                upload = pool.submit(_upload_group, connection, group)
                waiting.append((source.bytes_read, upload))
                collect(GROUPS_AHEAD)
            collect(0)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.warnings = list(source.warnings)
    progress.bytes_read, progress.done = progress.bytes_total, True
    on_progress(progress)
    spec = DatasetSpec(
        layout=source.layout, records=progress.records, source=_names(source), blocks=blocks
    )
    return connection.call("POST", "/v1/datasets", body=spec, reply=DatasetReply, timeout_s=300)


def _names(source: Source) -> str:
    names = [file.name for file in source.files]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _groups(chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
    group: list[Chunk] = []
    for chunk in chunks:
        group.append(chunk)
        if len(group) == GROUP_CHUNKS:
            yield group
            group = []
    if group:
        yield group


def _upload_group(connection: Connection, group: list[Chunk]) -> tuple[list[BlockSlice], int]:
    packed: list[PackedBlock] = [pack_block(chunk.data, chunk.records) for chunk in group]
    request = MissingRequest(digests=[one.slice.sha256 for one in packed])
    reply = connection.call("POST", "/v1/objects/missing", body=request, reply=MissingReply)
    missing, sent = set(reply.missing), 0
    for one in packed:
        if one.slice.sha256 in missing:
            connection.upload(f"/v1/objects/{one.slice.sha256}", one.payload, timeout_s=120)
            missing.discard(one.slice.sha256)
            sent += len(one.payload)
    return [one.slice for one in packed], sent
