"""Dumps loaded into this machine's own MariaDB (or MySQL), a database for each version.

The database is `grid_<this worker>_<first digits of the digest>`: workers that share a server, as
several on one machine do, keep out of each other's way. A table that is made last says that a
database is whole; one without it is what a killed worker left, and is loaded anew.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from backports import zstd

from officegrid.core.errors import ProgramError, UnavailableError
from officegrid.worker.link import GaveUp
from officegrid.worker.log import get_logger

log = get_logger("mariadb")

SOCKET_VARIABLE = "MYSQL_UNIX_PORT"  # the client library's own
DEFAULT_SOCKET = "/run/mysqld/mysqld.sock"
LOADED = "officegrid_loaded"
ASK_TIMEOUT_S = 60.0
_POLL_S = 0.2
_STEP_BYTES = 1024 * 1024
_AWAY = ("ERROR 2002", "ERROR 2003", "ERROR 2006", "ERROR 2013")
_CLASH = ("ERROR 1007", "ERROR 1008", "ERROR 1050")  # it is there already, or not any more
_FULL = ("ERROR 1021", "ERROR 1114", "errno: 28", '"No space left on device"')


def socket_path() -> str:
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


class Databases:
    """`folder` remembers which databases are ours: a file `<digest>` with the database's name.

    Whoever calls sees to it that a digest is loaded, used and dropped by one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        worker = f"{platform.node()}\0{folder.resolve()}"
        self._mark = hashlib.sha256(worker.encode("utf-8", "surrogateescape")).hexdigest()[:8]

    def ready(self, digest: str, dump: Path, wanted: Callable[[], bool]) -> str:
        """The name of the database that holds this dump; loads it if it is not there.

        Raises ProgramError for a dump that does not load, UnavailableError where there is no
        server or its disk is full, GaveUp when it is not wanted any more. Nothing half-loaded is
        ever taken for whole. Raises OSError.
        """
        name = self._name(digest)
        if self._is_loaded(name, digest):
            return name
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / digest
        if note.exists():
            self.drop(digest)  # it may have another name: the machine's has changed
        note.write_text(name)
        _ask(f"DROP DATABASE IF EXISTS `{name}`; CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        log.info("loading", dump=dump.name, bytes=dump.stat().st_size)
        _load(name, dump, wanted)
        tables = _ask(f"SELECT count(*) FROM information_schema.tables WHERE table_schema='{name}'")
        if tables.strip() == "0":
            raise ProgramError(
                f"The dump {dump.name} makes no tables.",
                "Perhaps it was made with --databases, and names a database of its own.",
                "Make it with `mariadb-dump DATABASE`, without --databases, and push it again.",
            )
        _ask(
            f"DROP TABLE IF EXISTS `{name}`.{LOADED}; "  # where the dump is of such a database
            f"CREATE TABLE `{name}`.{LOADED} (digest CHAR(64) PRIMARY KEY); "
            f"INSERT INTO `{name}`.{LOADED} VALUES ('{digest}')"
        )
        log.info("loaded", dump=dump.name, database=name)
        return name

    def known(self) -> list[str]:
        """Digests of the dumps that were loaded here, or begun to be."""
        return sorted(path.name for path in self._folder.iterdir())

    def drop(self, digest: str) -> None:
        """Drop its database. A server that is away is asked another time."""
        note = self._folder / digest
        with suppress(UnavailableError, ProgramError, OSError):
            _ask(f"DROP DATABASE IF EXISTS `{note.read_text() or self._name(digest)}`")
            note.unlink()

    def _name(self, digest: str) -> str:
        return f"grid_{self._mark}_{digest[:24]}"

    @staticmethod
    def _is_loaded(name: str, digest: str) -> bool:
        found = _ask(
            "SELECT count(*) FROM information_schema.tables "
            f"WHERE table_schema = '{name}' AND table_name = '{LOADED}'"
        )
        if found.strip() != "1":
            return False
        return _ask(f"SELECT digest FROM `{name}`.{LOADED}").strip() == digest


def _client() -> list[str]:
    program = shutil.which("mariadb") or shutil.which("mysql")
    if program is None:
        raise UnavailableError(
            "There is no MariaDB client on this machine.",
            "The job loads a dump into the worker's own database.",
            "Run the job in VMs made with `officegrid image build --with mariadb`, or install "
            "mariadb-server and mariadb-client here.",
        )
    return [
        program, f"--socket={socket_path()}", "--protocol=socket", "--batch",
        "--skip-column-names", "--default-character-set=utf8mb4",
    ]  # fmt: skip


def _ask(sql: str) -> str:
    try:
        done = subprocess.run(
            [*_client(), "-e", sql], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=ASK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _away("it did not answer in time") from None
    if done.returncode and any(mark in done.stderr for mark in _CLASH):
        raise UnavailableError(
            "Somebody else changes the databases of this worker.", " ".join(done.stderr.split()),
            "Give each worker a folder of its own.",
        )  # fmt: skip
    if done.returncode:
        raise _failed("The worker's database refused a statement.", done.stderr)
    return done.stdout


def _load(name: str, dump: Path, wanted: Callable[[], bool]) -> None:
    with tempfile.TemporaryFile() as errors, _opened(dump) as file:
        process = subprocess.Popen(
            [*_client(), name], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
        )
        feeder = _Feeder(file, cast("IO[bytes]", process.stdin))
        feeder.start()
        try:
            while process.poll() is None:
                if not wanted():
                    raise GaveUp
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            process.kill()
            process.wait()
            feeder.join()
        errors.seek(0)
        if process.returncode:
            raise _failed(
                f"The dump {dump.name} does not load.", errors.read().decode("utf-8", "replace")
            )
        if feeder.error is not None:
            raise ProgramError(
                f"The dump {dump.name} does not load.", f"It is damaged: {feeder.error}.",
                "Make it again and push it again.",
            )  # fmt: skip


class _Feeder(threading.Thread):
    """Copies the dump to the client. A client that ends early says itself why."""

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        super().__init__(name="dump", daemon=True)
        self._source, self._sink = source, sink
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while block := self._source.read(_STEP_BYTES):
                self._sink.write(block)
        except BrokenPipeError:
            return
        except (OSError, EOFError, zstd.ZstdError) as error:
            self.error = error
        finally:
            with suppress(OSError):
                self._sink.close()


def _opened(dump: Path) -> IO[bytes]:
    if dump.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(dump, "rb"))
    if dump.suffix == ".zst":
        return cast("IO[bytes]", zstd.ZstdFile(dump, "rb"))
    return dump.open("rb")


def _failed(what: str, stderr: str) -> ProgramError | UnavailableError:
    words = " ".join(stderr.split())[-600:]
    if any(mark in stderr for mark in _AWAY):
        return _away(words)
    if any(mark in stderr for mark in _FULL):
        return UnavailableError(
            "The disk of this machine's database is full.", words, "Free space on it."
        )
    return ProgramError(what, f"The server says: {words}", "Correct the dump and push it again.")


def _away(words: str) -> UnavailableError:
    return UnavailableError(
        "This machine's MariaDB does not answer.",
        f"{words} (socket {socket_path()})",
        f"Start it, or name its socket in {SOCKET_VARIABLE}.",
    )
