"""Data sets that the coordinator keeps fresh: it looks at their source and pushes what is new.

A source that is down changes nothing: jobs go on with the last good version, and the trouble is
told once, in the log, in the story of the name, and in `officegrid data list`.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx2
from cronsim import CronSim

from officegrid.bundles.archive import DEFAULT_MAX_BYTES, make_archive
from officegrid.bundles.pieces import cut
from officegrid.coordinator.aside import Threads
from officegrid.coordinator.config import DataConfig
from officegrid.coordinator.log import get_logger
from officegrid.coordinator.publish import Published, add_data, is_lost, repair
from officegrid.coordinator.sources import source_of
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import (
    ConflictError,
    InputError,
    LimitError,
    NotFoundError,
    OfficeGridError,
    UnavailableError,
)
from officegrid.storage.api import Tx
from officegrid.wire.archives import ArchiveSpec

log = get_logger("refresh")

CHECK_EVERY_S = 5.0
FETCH_TIMEOUT_S = 60.0
BY = "coordinator"


@dataclass(frozen=True, slots=True)
class Known:
    """What was found out last: when it was looked, what is wrong, what the server called the
    version that it gave (so that it need not send it again), and which content the source had (so
    that what was rolled back since does not come back by itself)."""

    looked_at: float = 0.0
    trouble: str = ""
    etag: str = ""
    digest: str = ""


def known(tx: Tx, name: str) -> Known:
    text = tx.setting(f"refresh:{name}")
    return Known() if text is None else Known(**json.loads(text))


def _remember(tx: Tx, name: str, found: Known) -> None:
    tx.put_setting(f"refresh:{name}", json.dumps(asdict(found)))


async def run(here: Coordinator) -> None:
    """Until stopped: refresh what is due, one after the other. Never raises."""
    while not here.stopping.is_set():
        for name, source in here.config.data.items():
            try:
                if not here.stopping.is_set() and await _is_due(here, name, source):
                    await refresh(here, name)
            except OfficeGridError as error:
                log.debug("not_refreshed", data=name, what=error.what)  # told already
            except Exception as error:  # one data set's fault must not stop the others
                log.error("unexpected_error", data=name, error=repr(error), exc_info=error)
        try:
            await asyncio.wait_for(here.stopping.wait(), CHECK_EVERY_S)
        except TimeoutError:
            continue


async def _is_due(here: Coordinator, name: str, source: DataConfig) -> bool:
    last = (await here.read(lambda tx: known(tx, name))).looked_at
    now = here.clock()
    if not last or last > now:  # never, or the clock was set back
        return True
    # Without a zone on purpose: 19:00 stays 19:00 when summer time begins or ends.
    return next(CronSim(source.schedule, datetime.fromtimestamp(last))).timestamp() <= now


async def refresh(here: Coordinator, name: str) -> Published | None:
    """Look at the source of `name` now; None when there is nothing new.

    Raises NotFoundError for a name without a source, and what is wrong with the source."""
    source = here.config.data.get(name)
    if source is None:
        raise NotFoundError(
            f"The coordinator does not refresh any data {name!r}.",
            fix=f"Give it a source in coordinator.toml: [data.{name}].",
        )
    if name in here.refreshing:
        raise ConflictError(f"{name} is being refreshed right now.")
    here.refreshing.add(name)
    try:
        before = await here.read(lambda tx: known(tx, name))
        try:
            published, now = await _look(here, name, source, before)
        except Exception as error:
            told = error if isinstance(error, OfficeGridError) else _explained(name, error)
            if not here.stopping.is_set():
                trouble = f"{told.what} {told.why}".strip()
                await _note(here, name, before, replace(before, trouble=trouble))
            raise told from None
        await _note(here, name, before, replace(now, trouble=""))
    finally:
        here.refreshing.discard(name)
    return published


def _explained(name: str, error: Exception) -> OfficeGridError:
    """The text of an error that is not ours may hold an address with its password."""
    if isinstance(error, OSError):
        why = error.strerror or type(error).__name__
        return UnavailableError(f"The content of {name} cannot be read or stored.", f"{why}.")
    log.error("unexpected_error", data=name, error=type(error).__name__)
    return InputError(
        f"The content of {name} cannot be read or stored.", f"Unexpected {type(error).__name__}.",
        "Look at its address in the settings.",
    )  # fmt: skip


async def _note(here: Coordinator, name: str, before: Known, found: Known) -> None:
    now, trouble = here.clock(), found.trouble

    def write(tx: Tx) -> None:
        _remember(tx, name, replace(found, looked_at=now))
        if trouble != before.trouble:
            text = f"cannot be refreshed: {trouble}" if trouble else "can be refreshed again"
            tx.add_event(now, name, "refresh", f"Data set {name} {text}", {"ok": not trouble})

    await here.write(write)
    if trouble and trouble != before.trouble:
        log.warning("source_failed", data=name, why=trouble)


async def _look(
    here: Coordinator, name: str, source: DataConfig, before: Known
) -> tuple[Published | None, Known]:
    newest = await here.read(lambda tx: tx.version("data", name))
    lost = newest is not None and await here.read(partial(is_lost, here, newest.digest))
    etag = "" if newest is None or lost else before.etag  # else it is wanted in any case
    threads = Threads("refresh", 1)
    with tempfile.TemporaryDirectory(dir=here.folder, prefix=".refresh-") as folder:
        got = await threads.run(lambda: _get(here, name, source, Path(folder), etag))
        if got is None:
            return None, before
        spec = await threads.run(lambda: _store(here, got.path, Path(folder), name))
        now = Known(etag=got.etag, digest=spec.digest)
        if newest is not None and spec.digest in (newest.digest, before.digest):
            if spec.digest == newest.digest and lost:
                await repair(here, spec)
            return None, now
        file_name = got.file_name if spec.kind == "file" else ""
        published = await add_data(here, name, spec, by=BY, origin=got.origin, file_name=file_name)
    log.info("refreshed", data=name, version=published.version.n)
    return published, now


@dataclass(frozen=True, slots=True)
class _Got:
    path: Path
    file_name: str
    origin: str
    etag: str = ""


def _get(here: Coordinator, name: str, source: DataConfig, folder: Path, etag: str) -> _Got | None:
    if source.path is not None:
        if not source.path.exists():
            raise InputError(
                f"{source.path} does not exist.", fix="Correct [data] in the settings."
            )
        return _Got(source.path, source.path.name, f"{source.path}")
    if source.url is not None:
        return _download(source.url, folder, etag)
    return _query(here, name, source, folder)


def _query(here: Coordinator, name: str, source: DataConfig, folder: Path) -> _Got:
    """What a query gives, as one file; a CSV file has a header."""
    assert source.source is not None
    from officegrid.data.sinks import OutputPiece, write_output
    from officegrid.data.sql.reading import read_query

    database = source_of(here.config, source.source)
    target = folder / f"{name}.{source.format}"
    with read_query(database, sql=source.sql, format=source.format) as found:
        pieces = (OutputPiece(c.data, checked_records=c.records) for c in found.chunks())
        write_output(target, pieces, found.layout, source.format, found.layout.columns)
        return _Got(target, target.name, found.title)


def _download(url: str, folder: Path, etag: str) -> _Got | None:
    """None when the server says that nothing has changed since `etag`."""
    try:
        parts = urlsplit(url)
    except ValueError:  # whose text quotes the address
        raise InputError("The address in the settings cannot be understood.") from None
    place = parts.netloc.rpartition("@")[2]
    shown = f"{parts.scheme}://{place}{parts.path}"  # neither password nor query
    headers = {"If-None-Match": etag} if etag else {}
    target = folder / "download"
    try:
        with (
            httpx2.Client(timeout=FETCH_TIMEOUT_S, follow_redirects=True) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code == 304:
                return None
            if response.status_code != 200:
                raise UnavailableError(
                    f"{shown} answers with status {response.status_code}.",
                    fix="Look at the address in the settings, and at that server.",
                )
            _save(response, target, shown)
            tag = response.headers.get("etag", "")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise UnavailableError(
            f"{shown} cannot be fetched.", f"{type(error).__name__}: {error}"
        ) from None
    return _Got(target, unquote(parts.path).rpartition("/")[2] or "data", shown, tag)


def _save(response: httpx2.Response, target: Path, shown: str) -> None:
    received = 0
    with target.open("xb") as file:
        for block in response.iter_bytes():
            received += len(block)
            if received > DEFAULT_MAX_BYTES:
                raise LimitError(f"{shown} sends more than {DEFAULT_MAX_BYTES} bytes.")
            file.write(block)


def _store(here: Coordinator, path: Path, folder: Path, name: str) -> ArchiveSpec:
    """Its pieces in the store, durably."""
    stream = folder / "stream"
    made = make_archive(path, stream, what=f"data {name}")
    if made.left_out:
        log.info(
            "left_out", data=name, files=made.left_out.files, because=made.left_out.ignore_file,
            always=", ".join(sorted(made.left_out.always)),
        )  # fmt: skip
    pieces = []
    for one in cut(stream):
        here.objects.put(one.piece.sha256, [one.payload], max_bytes=len(one.payload))
        pieces.append(one.piece)
    return ArchiveSpec(
        kind=made.kind, raw_bytes=made.raw_bytes, raw_sha256=made.raw_sha256, files=made.files,
        pieces=pieces,
    )  # fmt: skip
