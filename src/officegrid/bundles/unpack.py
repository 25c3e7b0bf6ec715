"""Bundles back to folders, trusting nothing that a bundle says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backports import zstd

from officegrid.bundles.untar import MIB, Words, unpack_stream

_WORDS = Words(
    "bundle",
    "Submit the job again from the program folder; `officegrid submit` makes good bundles.",
    "Keep data out of the program folder: name it under [data] in the job file.",
)


def unpack_bundle(
    payload: bytes | Path, target: Path, *, max_bytes: int = 1024 * MIB, max_entries: int = 200_000
) -> None:
    """Unpack a bundle (its bytes, or a file that holds them) as the new folder `target`.

    Whole or not at all, and with nothing outside of it: see `unpack_stream` for what is refused
    and how.
    """

    @contextmanager
    def opened() -> Iterator[zstd.ZstdFile]:
        file = io.BytesIO(payload) if isinstance(payload, bytes) else payload.open("rb")
        with file, zstd.ZstdFile(file, "rb") as plain:
            yield plain

    unpack_stream(opened, target, max_bytes=max_bytes, max_entries=max_entries, words=_WORDS)
