"""Push a built image: check its files, upload the chunks that the coordinator lacks, announce it.

A push that was cut off is resumed by pushing again: chunks are named by their content, so only
the missing ones travel. However large the files are, only a few chunks are in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from officegrid.core.errors import InputError, UnavailableError, UsageError
from officegrid.transport.http import Connection
from officegrid.wire.data import Message
from officegrid.wire.images import CHUNK_BYTES, ImageFile, ImageFormat, ImageSpec, ImageView
from officegrid.wire.jobs import MissingReply, MissingRequest
from officegrid.wire.mistakes import mistakes

DESCRIPTION = "image.json"
ASK_CHUNKS = 256  # a gigabyte of a file per question
UPLOADERS = 2
CHUNKS_AHEAD = 4
CHUNK_TIMEOUT_S = 120.0


@dataclass
class PushProgress:
    """How far a push is, in bytes of all files: first each is read and `checked_bytes` grows to
    `total_bytes`, then `stored_bytes` does; `sent_bytes` of those had to travel."""

    total_bytes: int = 0
    checked_bytes: int = 0
    stored_bytes: int = 0
    sent_bytes: int = 0
    done: bool = False


OnProgress = Callable[[PushProgress], None]


def _silent(_: PushProgress) -> None:
    return


class _BuiltFile(Message):
    name: str
    size: int
    sha256: str


class _Built(Message):
    """`image.json` as a build leaves it, before its files are cut into chunks."""

    name: str
    worker_version: str = ""
    built_at: float = 0.0
    about: dict[str, str] = Field(default_factory=dict)
    files: dict[ImageFormat, _BuiltFile] = Field(min_length=1)

    @field_validator("about", mode="before")
    @classmethod
    def _texts(cls, about: Any) -> Any:
        if not isinstance(about, dict):
            return about
        return {str(key): _text(value) for key, value in about.items()}


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def push(connection: Connection, folder: Path, on_progress: OnProgress = _silent) -> ImageView:
    """Push the image in `folder` (see `read_spec`) and begin to roll it out.

    Raises UsageError, InputError for a damaged build, UnavailableError when the coordinator is
    away for longer than the connection is patient, or its disk is full: then push again.
    """
    progress = PushProgress()
    spec = read_spec(folder, progress, on_progress)
    try:
        for file in spec.files.values():
            _upload(connection, folder / file.name, file, progress, on_progress)
        view = connection.call("POST", "/v1/images", body=spec, reply=ImageView, timeout_s=120)
    except UnavailableError as error:
        again = "Run the same command again then: what has arrived is not sent again."
        fix = f"{error.fix} {again}" if error.fix else again
        raise UnavailableError(error.what, error.why, fix, code=error.code) from None
    progress.done = True
    on_progress(progress)
    return view


def read_spec(
    folder: Path, progress: PushProgress | None = None, on_progress: OnProgress = _silent
) -> ImageSpec:
    """What is to be pushed: `image.json` of a build, with each file's chunks.

    Reads all files once. Raises UsageError when there is no build in `folder`, InputError when a
    file has not the size and digest that the build wrote down.
    """
    built = _read_description(folder)
    progress = progress or PushProgress()
    progress.total_bytes = sum(_size(folder / file.name) for file in built.files.values())
    files = {}
    for name, file in built.files.items():
        chunks, sha256 = [], hashlib.sha256()
        for piece in _pieces(folder / file.name):
            sha256.update(piece)
            chunks.append(hashlib.sha256(piece).hexdigest())
            progress.checked_bytes += len(piece)
            on_progress(progress)
        size = _size(folder / file.name)
        if (size, sha256.hexdigest()) != (file.size, file.sha256):
            raise InputError(
                f"{folder / file.name} is not the file that was built.",
                f"It has {size} bytes and the SHA-256 {sha256.hexdigest()[:12]}…; {DESCRIPTION} "
                f"says {file.size} bytes and {file.sha256[:12]}….",
                "Copy the folder again, or build the image again.",
            )
        files[name] = {**file.model_dump(), "chunks": chunks}
    return _checked(folder, {**built.model_dump(), "files": files})


def _read_description(folder: Path) -> _Built:
    path = folder / DESCRIPTION
    try:
        return _Built.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"There is no built image in {folder}.",
            f"It has no {DESCRIPTION}.",
            "Name the folder that `officegrid image build -o DIR` wrote.",
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise _wrong(path, error) from None


def _checked(folder: Path, plain: dict[str, Any]) -> ImageSpec:
    try:
        return ImageSpec.model_validate(plain)
    except ValidationError as error:
        raise _wrong(folder / DESCRIPTION, error) from None


def _wrong(path: Path, error: ValidationError) -> UsageError:
    first = mistakes(error)[0]
    return UsageError(
        f"{path} is wrong at {first.key or 'its beginning'}.",
        first.sentence,
        "Build the image again, with the release of officegrid that pushes it.",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise UsageError(
            f"There is no file {path}.",
            f"{DESCRIPTION} beside it names it.",
            "Copy the folder as a whole.",
        ) from None


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _upload(
    connection: Connection,
    path: Path,
    file: ImageFile,
    progress: PushProgress,
    on_progress: OnProgress,
) -> None:
    """Upload those chunks of one file that the coordinator lacks."""
    waiting: list[tuple[int, Future[None]]] = []

    def collect(most_waiting: int) -> None:
        while len(waiting) > most_waiting:
            length, upload = waiting.pop(0)
            upload.result()
            progress.stored_bytes += length
            progress.sent_bytes += length
            on_progress(progress)

    with path.open("rb") as source, ThreadPoolExecutor(UPLOADERS, "push") as pool:
        try:
            for start in range(0, len(file.chunks), ASK_CHUNKS):
                asked = file.chunks[start : start + ASK_CHUNKS]
                missing = _missing(connection, asked)
                for number, sha256 in enumerate(asked, start):
                    length = min(CHUNK_BYTES, file.size - number * CHUNK_BYTES)
                    if sha256 not in missing:
                        progress.stored_bytes += length
                        continue
                    missing.discard(sha256)  # a file may have the same chunk twice
                    source.seek(number * CHUNK_BYTES)
                    piece = source.read(length)
                    if hashlib.sha256(piece).hexdigest() != sha256:
                        raise InputError(
                            f"{path} has changed while it was pushed.",
                            fix="Push it again when nothing writes to it.",
                        )
                    waiting.append((length, pool.submit(_send, connection, sha256, piece)))
                    collect(CHUNKS_AHEAD)
                on_progress(progress)
            collect(0)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _missing(connection: Connection, digests: list[str]) -> set[str]:
    request = MissingRequest(digests=digests)
    reply = connection.call("POST", "/v1/objects/missing", body=request, reply=MissingReply)
    return set(reply.missing)


def _send(connection: Connection, sha256: str, piece: bytes) -> None:
    connection.upload(f"/v1/objects/{sha256}", piece, timeout_s=CHUNK_TIMEOUT_S)
