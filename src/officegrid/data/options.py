"""How input files are to be read, and what their names say about that."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from officegrid.core.errors import UsageError
from officegrid.data.records import one_byte
from officegrid.wire.data import FileFormat

MIB = 1024 * 1024
COMPRESSIONS = (".gz", ".zst")
_FORMATS: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".txt": "lines",
    ".log": "lines",
    ".parquet": "parquet",
}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the job file says about its input. Sizes are in bytes after decompression.

    `format=None` goes by the file extension, `delimiter=None` is a tab for .tsv and a comma
    otherwise. Raises UsageError for values that cannot work.
    """

    format: FileFormat | None = None
    delimiter: str | None = None
    quote: str = '"'
    header: bool = True
    encoding: str = "utf-8"
    chunk_bytes: int = 1 * MIB
    max_record_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        one_byte(self.quote, "quote")
        if self.delimiter is not None and one_byte(self.delimiter, "delimiter") == b'"':
            raise UsageError(
                "The CSV delimiter cannot be a quote.",
                fix="Set delimiter to one character such as ',' ';' '|' or a tab.",
            )
        if self.delimiter == self.quote or (self.delimiter is None and self.quote in ",\t"):
            raise UsageError(
                "The CSV delimiter and quote are the same character.",
                f"Both are {self.quote!r}, so a quoted field cannot be told from an empty one.",
                "Give them different values.",
            )
        if self.chunk_bytes < 1 or self.max_record_bytes < 1:
            raise UsageError(
                "chunk_bytes and max_record_bytes must be at least 1.",
                f"They are {self.chunk_bytes} and {self.max_record_bytes}.",
                "Leave them out to use the defaults, 1 MB and 64 MB.",
            )
        codec_name(self.encoding)


def codec_name(encoding: str) -> str:
    """The codec's canonical name; every spelling of UTF-8, with or without BOM, is "utf-8".

    Raises UsageError if Python knows no text encoding of that name.
    """
    try:
        codec = codecs.lookup(encoding)
        b" ".decode(encoding, "replace")  # LookupError if it is a codec, but not of text
        if codec.incrementaldecoder is None:
            raise LookupError
    except (LookupError, UnicodeError, ValueError):
        raise UsageError(
            f"The encoding {encoding!r} is not known.",
            "It is not one of the text encodings that can be read piece by piece.",
            'Use a name such as "utf-8", "latin-1", "cp1252" or "utf-16".',
        ) from None
    return "utf-8" if codec.name in ("utf-8", "utf-8-sig") else codec.name


def compression_of(path: Path) -> str:
    """ ".gz", ".zst" or ""."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def bare_suffix(path: Path) -> str:
    """The extension that tells the format, that of the compression stripped: ".csv" in x.csv.gz."""
    return (path.with_suffix("") if compression_of(path) else path).suffix.lower()


def format_of(path: Path, *, key: str = "input") -> FileFormat:
    """The format that the file's name stands for. Raises UsageError if it tells nothing."""
    found = _FORMATS.get(bare_suffix(path))
    if found is None:
        raise UsageError(
            f"Cannot tell the format of {path.name}.",
            f"Its extension is none of {', '.join(_FORMATS)} (plus .gz or .zst).",
            f'Set [{key}] format = "csv", "ndjson", "lines" or "parquet", or rename the file.',
        )
    return found


def delimiter_of(path: Path) -> str:
    """A tab for .tsv files, a comma for all others."""
    return "\t" if bare_suffix(path) == ".tsv" else ","
