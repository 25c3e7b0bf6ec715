"""A release of this program as a wheel: made from what is installed, looked into, unpacked.

Nothing that a wheel says is trusted: names, sizes and digests are checked, and only what belongs to
this program is taken. A wheel that pip would install can be used, and one made here can be
installed by pip.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from officegrid.bundles.durable import make_durable
from officegrid.core.errors import InputError, LimitError, UnavailableError
from officegrid.core.versions import key

PACKAGE = "officegrid"
MAX_BYTES = 256 * 1024 * 1024
MAX_FILES = 20_000
STARTER = "officegrid/worker/release_start.py"
"""What makes a release able to replace another one, see there."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = (stat.S_IFREG | 0o644) << 16
_VERSION_LINE = re.compile(r"""^__version__ *= *["']([^"']+)["']""", re.MULTILINE)
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class WheelFacts:
    """`requires`: the lines of Requires-Dist. `requires_python`: "" when it does not say."""

    version: str
    requires: tuple[str, ...]
    requires_python: str


# --- making one


def build_wheel(package: Path, version: str, metadata: str) -> bytes:
    """The package in this folder as a wheel; the same folder gives the same bytes.

    `metadata`: what its METADATA says, of which name and version are replaced. Raises
    UnavailableError where a file cannot be read.
    """
    about = f"{PACKAGE}-{version}.dist-info"
    files: dict[str, bytes] = {}
    try:
        for path in sorted(package.rglob("*")):
            inside = path.relative_to(package)
            if not path.is_file() or "__pycache__" in inside.parts or path.suffix == ".pyc":
                continue
            files[f"{PACKAGE}/{inside.as_posix()}"] = path.read_bytes()
    except OSError as error:
        raise UnavailableError(
            f"The program in {package} cannot be read.", error.strerror or str(error)
        ) from None
    header, _, body = metadata.partition("\n\n")
    kept = [line for line in header.splitlines() if not line.startswith(("Name:", "Version:"))]
    head = "\n".join([kept[0], f"Name: {PACKAGE}", f"Version: {version}", *kept[1:]])
    files[f"{about}/METADATA"] = f"{head}\n\n{body}".encode()
    files[f"{about}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: officegrid\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{about}/entry_points.txt"] = (
        f"[console_scripts]\nofficegrid = {PACKAGE}.cli.main:main\n".encode()
    )
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    rows.writerows((name, _hash(data), len(data)) for name, data in files.items())
    rows.writerow((f"{about}/RECORD", "", ""))
    files[f"{about}/RECORD"] = record.getvalue().encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            item = zipfile.ZipInfo(name, _EPOCH)
            item.external_attr = _MODE
            item.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(item, data)
    return out.getvalue()


def installed_wheel() -> bytes:
    """The officegrid that runs here, as a wheel. Raises UnavailableError."""
    import importlib.metadata

    import officegrid

    try:
        metadata = importlib.metadata.distribution(PACKAGE).read_text("METADATA")
    except importlib.metadata.PackageNotFoundError:
        metadata = None
    if not metadata:
        raise UnavailableError(
            "The officegrid that runs here does not know what it needs.",
            "It has no METADATA: it was copied, not installed.",
            "Install it with pip, or name a wheel.",
        )
    return build_wheel(Path(officegrid.__file__).parent, officegrid.__version__, metadata)


def _hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"


# --- looking into one


def inspect_wheel(payload: bytes | Path) -> WheelFacts:
    """What a wheel is. Raises InputError for one that is damaged, is not of this program, or is of
    a release that cannot update itself; LimitError for one that is too large."""
    try:
        with _opened(payload) as wheel:
            return _inspect(wheel)
    except _BAD_ZIP as error:
        raise _refused(f"It is damaged, or no wheel: {error}.") from None


def _opened(payload: bytes | Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(payload) if isinstance(payload, bytes) else payload)


def _inspect(wheel: zipfile.ZipFile) -> WheelFacts:
    names = _checked_names(wheel)
    abouts = {name.split("/")[0] for name in names if ".dist-info/" in name}
    if len(abouts) != 1 or f"{PACKAGE}/__init__.py" not in names:
        raise _refused(f"It is not a wheel of {PACKAGE}.")
    about = abouts.pop()
    for needed in ("METADATA", "WHEEL", "RECORD"):
        if f"{about}/{needed}" not in names:
            raise _refused(f"It has no {about}/{needed}.")
    if STARTER not in names:
        raise _refused("It is of a release that cannot update itself: it is too old.")
    fields = _fields(wheel.read(f"{about}/METADATA"))
    version = fields.get("version", [""])[0]
    code = wheel.read(f"{PACKAGE}/__init__.py").decode("utf-8", "replace")
    found = _VERSION_LINE.search(code)
    if key(version) is None or about != f"{PACKAGE}-{version}.dist-info":
        raise _refused(f"Its version is {version[:64]!r}, and its folder {about[:100]!r}.")
    if found is None or found[1] != version:
        stated = found[1][:64] if found else "none"
        raise _refused(f"Its METADATA says version {version}, its program says {stated}.")
    _check_record(wheel, names, about)
    return WheelFacts(
        version, tuple(fields.get("requires-dist", [])), fields.get("requires-python", [""])[0]
    )


def _checked_names(wheel: zipfile.ZipFile) -> frozenset[str]:
    left, seen = MAX_BYTES, set[str]()
    for item in wheel.infolist():
        name = item.filename
        if item.is_dir():
            continue
        kind = stat.S_IFMT(item.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _refused(f"{name!r} is not a file.")
        path = PurePosixPath(name)
        top = path.parts[0] if path.parts else ""
        ours = top == PACKAGE or (top.startswith(f"{PACKAGE}-") and top.endswith(".dist-info"))
        if (
            path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name
            or "\0" in name or len(path.parts) < 2 or not ours
        ):  # fmt: skip
            raise _refused(f"The name {name[:200]!r} does not belong into it.")
        if name in seen:
            raise _refused(f"{name} comes twice.")
        seen.add(name)
        left -= item.file_size
        if left < 0 or len(seen) > MAX_FILES:
            raise LimitError(
                "The release is too large.",
                f"It has more than {MAX_BYTES // 1024**2} MB or {MAX_FILES} files.",
            )
    return frozenset(seen)


def _fields(metadata: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for line in metadata.decode("utf-8", "replace").partition("\n\n")[0].splitlines():
        name, separator, value = line.partition(":")
        if separator and not line[0].isspace():
            fields.setdefault(name.strip().lower(), []).append(value.strip())
    return fields


def _check_record(wheel: zipfile.ZipFile, names: frozenset[str], about: str) -> None:
    """Every file is listed with its digest, and has it."""
    listed = _record(wheel.read(f"{about}/RECORD"))
    for name in sorted(names - {f"{about}/RECORD"}):
        if listed.get(name) != _hash(wheel.read(name)):
            raise _refused(f"{name} is not what the wheel's own RECORD says.")


def _record(text: bytes) -> dict[str, str]:
    rows = csv.reader(io.StringIO(text.decode("utf-8", "replace")))
    return {row[0]: row[1] for row in rows if len(row) >= 2}


def _refused(why: str) -> InputError:
    return InputError(
        "This is not a release that workers can run.",
        why,
        "Name a wheel of officegrid, as `python -m build --wheel` makes it, or none at all: then "
        "the installed one is pushed.",
    )


# --- unpacking one


def unpack_wheel(payload: bytes, target: Path) -> WheelFacts:
    """Unpack a wheel as the new folder `target`, which can then be given to Python as a program.

    The folder appears complete or not at all, also after a power cut. Raises what `inspect_wheel`
    does, and UnavailableError when the disk cannot take it.
    """
    facts = inspect_wheel(payload)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with _opened(payload) as wheel:
            for item in wheel.infolist():
                if not item.is_dir():
                    path = draft / item.filename
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(wheel.read(item))
        shutil.copyfile(
            Path(__file__).parents[1] / "worker/release_start.py", draft / "__main__.py"
        )
        make_durable(draft)
        os.rename(draft, target)
    except OSError as error:
        raise UnavailableError(
            f"The release cannot be unpacked to {target}.",
            error.strerror or str(error),
            "Check the space and the permissions of that folder.",
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return facts


def is_whole(folder: Path) -> bool:
    """Are all files of an unpacked wheel there, as they were when it was unpacked?"""
    try:
        (path,) = folder.glob("*.dist-info/RECORD")
        listed = _record(path.read_bytes())
        for name, digest in listed.items():
            if digest and _hash((folder / name).read_bytes()) != digest:
                return False
        return STARTER in listed and (folder / "__main__.py").stat().st_size > 0
    except (OSError, ValueError):
        return False
