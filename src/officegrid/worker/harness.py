"""Runs a user's Python program, in a process of its own.

Started as `python harness.py REQUEST_FD REPLY_FD COUNTER_FD` in the folder of the bundle. Frames
go over two pipes: two big-endian 8-byte lengths, a JSON header, a payload of bytes. The first
frame configures; each later one is a run of records; each is answered by one frame:

    {"columns", "seen", "records"} + records   →   {"items": [...], "seen"} + output bytes
        items, in record order: ["out", bytes, rows, columns], or
        ["bad", index, error, attempts, start, end] with its byte range in the request

The counter file holds three 8-byte integers: the record in work (-1 before the first one, the
number of records after the last), how many records are in work at once, and a tick that moves
with every attempt. The parent reads them when this process dies or hangs.

Standard library only, and no import of the `officegrid` package: the user's Python has none. And
little of the library: this runs at each start of a program, before its first record.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import mmap
import os
import struct
import sys
from collections.abc import Callable
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import GeneratorType, ModuleType
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">QQ")
IN_WORK, WIDTH, TICK = 0, 1, 2
COUNTER_BYTES = 24
MEGABYTE = 1_000_000  # as job files and their documentation count
ERROR_CHARS = 2000


def _load(path: str, name: str) -> ModuleType:
    """A module by its path: this folder must never be on the user's import path."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class BundleLoader(SourceFileLoader):
    """Loads modules of the bundle, and keeps what it compiles in a folder of its own."""

    compiled = ""

    def get_data(self, path: str) -> bytes:
        return super().get_data(self.compiled + path if path.endswith(".pyc") else path)

    def set_data(self, path: str, data: Any, **options: Any) -> None:
        super().set_data(self.compiled + path, data, **options)


def keep_compiled(folder: str, compiled: str) -> None:
    """Modules in or below `folder` are compiled into `compiled`, an absolute path outside it: the
    bundle is shared, and never written to.

    PYTHONPYCACHEPREFIX alone would do that for all modules, so that this process would have to
    compile the standard library and the packages of the environment as well, which lie there
    compiled. The processes that the program starts are left to it.
    """
    BundleLoader.compiled = compiled
    in_folder = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (BundleLoader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )

    def finder(path: str) -> Any:
        if path != folder and not path.startswith(folder + os.sep):
            raise ImportError
        return in_folder(path)

    sys.path_hooks.insert(0, finder)
    os.environ["PYTHONPYCACHEPREFIX"] = compiled


class WrongBatchError(Exception):
    """A batch function did not return one item per record."""


class Harness:
    """The user's function, and the records of one run after the other."""

    def __init__(self, config: dict[str, Any], counter: memoryview) -> None:
        here = os.path.dirname(os.path.realpath(__file__))
        core = os.path.join(os.path.dirname(here), "core")
        self._rowcheck = _load(os.path.join(here, "rowcheck.py"), "_officegrid_rowcheck")
        self._rowwrite = _load(os.path.join(here, "rowwrite.py"), "_officegrid_rowwrite")
        self._isolate = _load(os.path.join(core, "isolate.py"), "_officegrid_isolate")
        self._config = config
        self._counter = counter
        self._attempts: int = config["attempts"]
        self._call = self._find(config["target"])
        self._malformed = self._rowcheck.Malformed

    def _find(self, target: str) -> Callable[[Any], Any]:
        module_name, _, path = target.partition(":")
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
        if not callable(found):
            raise TypeError(f"{target} is not a function")
        return found  # type: ignore[no-any-return]

    def run(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytearray]:
        columns = request["columns"]
        shape = self._rowcheck.Shape(
            self._config["format"],
            self._config["delimiter"],
            self._config["quote"],
            None if columns is None else tuple(columns),
        )
        output = self._rowwrite.output_for(
            self._config["output_format"], self._config["output_columns"], request["seen"]
        )
        self._shape, self._data = shape, data
        self._offsets: list[int] | None = None
        self._place = self._rowcheck.Place(data)
        work = self._run_batches if self._config["call"] == "batch" else self._run_records
        found = work(self._rowcheck.read(data, shape, self._place), output)
        self._counter[IN_WORK] = found
        output.finish()
        reply = {"items": output.items, "seen": output.columns, "found": found}
        return reply, output.payload

    def _run_records(self, values: Any, output: Any) -> int:
        counter, call, add, malformed = self._counter, self._call, output.add, self._malformed
        index = -1
        for index, value in enumerate(values):
            if value.__class__ is malformed:
                output.bad(index, value.error, 1, *self._place.span())
                continue
            counter[IN_WORK] = index
            try:
                result = call(value)
                if result.__class__ is GeneratorType:
                    result = list(result)
            except BaseException as error:
                failure, result = self._again(error)
                if failure is not None:
                    output.bad(index, failure, self._attempts, *self._place.span())
                    continue
            try:
                add(result)
            except BaseException as error:
                output.bad(index, self._sentence(error), 1, *self._place.span())
        return index + 1

    def _again(self, error: BaseException) -> tuple[str | None, Any]:
        """Try a failed record until its attempts are used up: (error, None) or (None, result)."""
        for _ in range(self._attempts - 1):
            self._counter[TICK] += 1
            try:
                # a fresh copy: the failed attempt may have changed the record
                result = self._call(self._value(self._place.span()))
                return None, list(result) if isinstance(result, GeneratorType) else result
            except BaseException as latest:
                error = latest
        return self._sentence(error), None

    def _value(self, span: tuple[int, int]) -> Any:
        return self._rowcheck.read_one(self._data[slice(*span)], self._shape)

    def _span(self, index: int) -> tuple[int, int]:
        """Where any record of the run is; `Place` knows only the one read last."""
        if self._offsets is None:
            self._offsets = self._rowcheck.boundaries(self._data, self._shape)
        return self._offsets[index], self._offsets[index + 1]

    def _run_batches(self, values: Any, output: Any) -> int:
        size = self._config["batch_records"]
        batch: list[Any] = []
        index = -1
        for index, value in enumerate(values):
            batch.append(value)
            if len(batch) == size:
                self._run_batch(index + 1 - size, batch, output)
                batch = []
        if batch:
            self._run_batch(index + 1 - len(batch), batch, output)
        return index + 1

    def _run_batch(self, first: int, batch: list[Any], output: Any) -> None:
        """Call the program on a batch; a failing one is divided down to the records that fail."""
        malformed = self._malformed
        self._counter[WIDTH] = len(batch)
        self._counter[IN_WORK] = first
        good = [i for i, value in enumerate(batch, first) if value.__class__ is not malformed]
        outcomes: dict[int, tuple[str, Any, int]] = {
            i: ("bad", value.error, 1)
            for i, value in enumerate(batch, first)
            if value.__class__ is malformed
        }
        search = self._isolate.Isolation(0, len(good), self._attempts)
        first_try = [batch[i - first] for i in good]
        while (part := search.next()) is not None:
            self._counter[TICK] += 1
            chosen = good[part.start : part.end]
            try:
                results = self._call(first_try or [self._value(self._span(i)) for i in chosen])
                results = self._fitting(results, len(chosen))
            except BaseException as error:
                gone = search.failed(part, self._sentence(error))
                if gone is not None:
                    outcomes[good[gone.record]] = ("bad", gone.error, gone.attempts)
            else:
                search.succeeded(part)
                for i, result in zip(chosen, results, strict=True):
                    outcomes[i] = ("ok", result, 0)
            first_try = []
        for i in range(first, first + len(batch)):
            kind, result, attempts = outcomes[i]
            if kind == "bad":
                output.bad(i, result, attempts, *self._span(i))
                continue
            try:
                output.add(result)
            except BaseException as error:
                output.bad(i, self._sentence(error), 1, *self._span(i))

    @staticmethod
    def _fitting(results: Any, wanted: int) -> list[Any]:
        if isinstance(results, GeneratorType):
            results = list(results)
        if not isinstance(results, (list, tuple)):
            kind = type(results).__name__
            raise WrongBatchError(f"returned {kind}; a batch function returns one item per record")
        if len(results) != wanted:
            raise WrongBatchError(f"returned {len(results)} results for {wanted} records")
        return list(results)

    def _sentence(self, error: BaseException) -> str:
        if isinstance(error, (self._rowwrite.UnfitResultError, WrongBatchError)):
            return str(error)
        if isinstance(error, MemoryError):
            return f"needed more than {self._config['memory_mb']} MB of memory" + where(error)
        try:
            text = str(error)
        except BaseException:
            text = "(its message cannot be shown)"
        return f"{type(error).__name__}: {text[: ERROR_CHARS // 2]}" + where(error)


def where(error: BaseException) -> str:
    """The last places inside the user's folder that an error went through, one per line."""
    import linecache
    import traceback

    folder = os.getcwd() + os.sep
    lines = []
    with contextlib.suppress(Exception):
        for frame, number in traceback.walk_tb(error.__traceback__):
            code = frame.f_code
            name = os.path.abspath(code.co_filename)
            # Python's own frozen modules have no path, and would get one in the folder.
            if name.startswith(folder) and not code.co_filename.startswith("<"):
                source = linecache.getline(name, number).strip()
                place = name.removeprefix(folder)
                lines.append(f"\n  {place}, line {number}, in {code.co_name}: {source}"[:300])
    return "".join(lines[-3:])


def limit_resources(memory_mb: int) -> None:
    """No core dumps, and no more private memory than the job allows."""
    try:
        import resource
    except ImportError:  # not a POSIX system: the parent's watchdog is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = memory_mb * MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, or None when the other side has gone."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_bytes, payload_bytes = LENGTHS.unpack(lengths)
    header = stream.read(header_bytes)
    payload = stream.read(payload_bytes)
    return None if len(payload) < payload_bytes else (json.loads(header), payload)


def write_frame(stream: BinaryIO, header: dict[str, Any], payload: bytes | bytearray = b"") -> None:
    text = json.dumps(header).encode()
    stream.write(LENGTHS.pack(len(text), len(payload)) + text)
    stream.write(payload)
    stream.flush()


def start(config: dict[str, Any], counter: memoryview) -> Harness:
    """Load the user's program. Raises whatever its import raises."""
    import faulthandler

    faulthandler.enable()
    limit_resources(config["memory_mb"])
    folder = os.getcwd()
    keep_compiled(folder, config["compiled"])
    sys.path.insert(0, folder)
    sys.argv = [config["target"].partition(":")[0]]
    return Harness(config, counter)


def main(request_fd: int, reply_fd: int, counter_fd: int) -> None:
    for fd in (request_fd, reply_fd, counter_fd):
        os.set_inheritable(fd, False)
    requests, replies = os.fdopen(request_fd, "rb"), os.fdopen(reply_fd, "wb")
    counter = memoryview(mmap.mmap(counter_fd, COUNTER_BYTES)).cast("q")
    first = read_frame(requests)
    if first is None:
        return
    try:
        harness = start(first[0], counter)
    except BaseException as error:
        import traceback

        # What went wrong and where in the user's own files; our frames tell nobody anything.
        places = where(error)
        own = bool(places) or isinstance(error, SyntaxError)
        text = "".join(traceback.format_exception_only(error)).strip() + places
        reply = {"cannot_start": text[-ERROR_CHARS:], "in_its_code": own}
        write_frame(replies, {**reply, "error_type": type(error).__name__})
        return
    write_frame(replies, {"ready": True})
    while (frame := read_frame(requests)) is not None:
        counter[IN_WORK], counter[WIDTH] = -1, 1
        try:
            reply, payload = harness.run(*frame)
        except BaseException as error:  # e.g. the output did not fit into memory
            reply, payload = {"failed": harness._sentence(error)}, bytearray()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        write_frame(replies, reply, payload)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
