"""Input files: finding them, and reading them as one stream of UTF-8 bytes.

Each layer is what one kind of trouble needs: the file, its compression, its encoding, its BOM.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import glob
import gzip
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from backports import zstd

from officegrid.core.errors import InputError, UsageError
from officegrid.data.options import codec_name, compression_of

_BOM = codecs.BOM_UTF8


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that `paths` (names or globs, `**` included) stand for.

    Globs are sorted by name; a file named twice is read once. Raises InputError, with the
    closest names there are, if a name or a glob matches nothing or is not a regular file.
    """
    if not paths:
        raise UsageError("No input file is named.", fix='Set [input] path = "records.csv".')
    found: dict[Path, Path] = {}
    for path in paths:
        for file in _matches(path):
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _matches(path: str | Path) -> list[Path]:
    text = str(path)
    # A file whose real name has a bracket or a star in it is meant literally.
    if not glob.has_magic(text) or Path(text).exists():
        _check_regular(Path(text))
        return [Path(text)]
    files = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
    files = [file for file in files if not file.is_dir()]
    if not files:
        raise InputError(
            f"No file matches {text}.",
            _folder_sentence(Path(text)),
            "Correct the pattern; relative names start at the folder of the job file.",
        )
    for file in files:
        _check_regular(file)
    return files


def _folder_sentence(path: Path) -> str:
    folder = path.parent
    if glob.has_magic(str(folder)):
        return "The pattern was searched, folders included."
    if not folder.is_dir():
        return f"The folder {folder} does not exist."
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return f"The folder {folder} is empty."
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"The folder {folder} holds {len(names)} entries: {shown}."


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _cannot_open(path, error) from None
    if stat.S_ISDIR(mode):
        raise InputError(
            f"{path} is a folder, not a file.",
            "Input is read from files.",
            f'Name the files in it with a pattern, for example "{path}/*.csv".',
        )
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{path} is not a regular file.",
            "Input is read more than once, which a pipe or a device does not allow.",
            "Write the records to a file first.",
        )


def _cannot_open(path: Path, error: OSError) -> InputError:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return InputError(
            f"{path} cannot be opened.",
            f"The system says: {error.strerror or error}.",
            "Check the permissions of the file and of its folder.",
        )
    fix = "Check the spelling; relative names start at the folder of the job file."
    if path.parent.is_dir():
        names = [entry.name for entry in path.parent.iterdir()]
        close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
        if close:
            fix = f"Did you mean {' or '.join(close)}?"
        return InputError(f"{path} does not exist.", f"{path.parent} has no such file.", fix)
    return InputError(
        f"{path} does not exist.", f"The folder {path.parent} does not exist either.", fix
    )


class ByteReader:
    """One input file as UTF-8 bytes: decompressed, transcoded, without its BOM.

    Raises InputError, naming file and place, for what cannot be opened, inflated or decoded.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self._codec = codec_name(encoding)
        self._encoding = encoding
        try:
            self._file: IO[bytes] = path.open("rb")
        except OSError as error:
            raise _cannot_open(path, error) from None
        self._stream = self._decompressor()
        self._decoder = (
            None if self._codec == "utf-8" else codecs.getincrementaldecoder(self._codec)("strict")
        )
        self._at_start = True
        self._bytes_decoded = 0
        self._lines_decoded = 0

    def _decompressor(self) -> IO[bytes] | gzip.GzipFile | zstd.ZstdFile:
        match compression_of(self.path):
            case ".gz":
                return gzip.GzipFile(fileobj=self._file, mode="rb")
            case ".zst":
                return zstd.ZstdFile(self._file, mode="rb")
            case _:
                return self._file

    @property
    def stored_position(self) -> int:
        """Bytes of the file itself, as stored, that have been read so far."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """About `size` bytes; empty only at the end of the file. Raises InputError."""
        while True:
            block = self._read_stored(size)
            text = block if self._decoder is None else self._transcode(block)
            if self._at_start and (text or not block):
                text = text.removeprefix(_BOM)
                self._at_start = False
            if text or not block:
                return text

    def _read_stored(self, size: int) -> bytes:
        # Three bytes at least, so that a BOM is never cut in two.
        size = max(size, 3)
        try:
            return self._stream.read(size)
        except EOFError:
            raise self._corrupt("it ends before its compressed data does") from None
        except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise self._corrupt(str(error)) from None
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read to its end.",
                f"The system says: {error.strerror or error}.",
                "Check the disk or the network drive that holds it, then try again.",
            ) from None

    def _corrupt(self, detail: str) -> InputError:
        return InputError(
            f"{self.path} cannot be decompressed.",
            f"The file is truncated or damaged: {detail}.",
            "Copy or create the file again; "
            f"`{'gzip' if compression_of(self.path) == '.gz' else 'zstd'} -t` checks it.",
        )

    def _transcode(self, block: bytes) -> bytes:
        assert self._decoder is not None
        held = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(block, final=not block)
            encoded = text.encode("utf-8")
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(self._codec, "ignore")
            raise self._undecodable(
                self._bytes_decoded - len(held) + error.start,
                self._lines_decoded + before.count("\n") + 1,
                f"{error.object[error.start : error.end].hex(' ')}: {error.reason}",
            ) from None
        except UnicodeError as error:
            raise self._undecodable(
                self._bytes_decoded, self._lines_decoded + 1, str(error)
            ) from None
        self._bytes_decoded += len(block)
        self._lines_decoded += encoded.count(b"\n")
        return encoded

    def _undecodable(self, offset: int, line: int, detail: str) -> InputError:
        return InputError(
            f"{self.path} is not {self._encoding} text: line {line}, byte offset {offset}.",
            f"The decoder cannot read {detail}.",
            "Set the encoding that the file was written with, for example "
            'encoding = "utf-8", "cp1252" or "latin-1".',
        )

    def close(self) -> None:
        if self._stream is not self._file:
            self._stream.close()
        self._file.close()

    def __enter__(self) -> ByteReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
