"""From the address of code in git to a bundle: which commit is it, fetch it, export it, pack it.

<data>/git/<mark>.git   the newest commit of one repository, fetched shallow
<data>/git/tmp…         a tree being exported
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from officegrid.bundles.pack import MIB, PackedBundle, pack_folder
from officegrid.coordinator import gitrun
from officegrid.coordinator.gitrun import GitError
from officegrid.core.errors import InputError, LimitError, NotFoundError, UnavailableError
from officegrid.wire.gitref import GitAddress

LOOK_WITHIN_S = 60.0
FETCH_WITHIN_S = 600.0
LOCAL_WITHIN_S = 120.0
MOST_FILES = 100_000
NO_SUCH_REF = 2  # of `ls-remote --exit-code`


@dataclass(frozen=True, slots=True)
class _File:
    path: PurePosixPath
    mode: str
    blob: str
    size: int


class Repositories:
    """Safe for any number of threads; each repository is fetched by one at a time."""

    def __init__(
        self, folder: Path, *, most_fetched_bytes: int = 1024 * MIB, most_bytes: int = 512 * MIB
    ) -> None:
        self.folder = folder
        self._most_fetched_bytes = most_fetched_bytes
        self._most_bytes = most_bytes
        self._locks: dict[str, threading.Lock] = {}

    def commit_of(self, address: GitAddress) -> str:
        """Which commit the address stands for now.

        Raises NotFoundError (no such branch), UnavailableError (no git, no answer)."""
        if address.commit is not None:
            return address.commit
        return self._look(address)[1]

    def _look(self, address: GitAddress) -> tuple[str, str]:
        """(full name of the ref, commit)."""
        names = [f"refs/heads/{address.ref}", f"refs/tags/{address.ref}"] if address.ref else []
        wanted = [*names, f"{names[1]}^{{}}"] if names else ["HEAD"]
        try:
            told = gitrun.run(
                address, ["ls-remote", "--quiet", "--exit-code", "--", address.bare_url, *wanted],
                within_s=LOOK_WITHIN_S,
            )  # fmt: skip
        except GitError as error:
            if error.code == NO_SUCH_REF:
                raise _no_ref(address) from None
            raise _unreachable(address, error) from None
        lines = [line.split("\t") for line in told.decode("utf-8", "replace").splitlines()]
        found = {line[1]: line[0] for line in lines if len(line) == 2}
        for name in names or ["HEAD"]:
            if name in found:  # a branch before a tag; of a tag with a message what it points to
                return name, found.get(f"{name}^{{}}", found[name])
        raise _no_ref(address)

    def bundle_of(self, address: GitAddress) -> tuple[str, PackedBundle]:
        """(commit, the bundle of its tree or of the folder in it).

        Raises NotFoundError, UnavailableError, LimitError, InputError."""
        place = self._place(address)
        with self._alone(place.name):
            commit = self._fetch(address, place)
            try:
                return commit, self._packed(address, place, commit)
            except GitError as error:
                raise UnavailableError(
                    f"The copy of {address.bare_url} cannot be read.", error.text
                ) from None

    def _alone(self, name: str) -> threading.Lock:
        return self._locks.setdefault(name, threading.Lock())

    def _place(self, address: GitAddress) -> Path:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        mark = hashlib.sha256(address.bare_url.encode()).hexdigest()[:16]
        return self.folder / f"{mark}.git"

    def _fetch(self, address: GitAddress, place: Path) -> str:
        source = address.commit or self._look(address)[0]
        try:
            # Nothing is collected in the copy: it starts afresh when it has grown too large.
            fresh = not place.exists() or gitrun.size_of(place) > self._most_fetched_bytes
            if not fresh:
                with contextlib.suppress(GitError):  # left half-way by a crash, perhaps
                    return self._fetch_into(address, place, source)
            shutil.rmtree(place, ignore_errors=True)
            start = ["init", "--quiet", "--bare", "--template=", "--", str(place)]
            gitrun.run(address, start, within_s=LOCAL_WITHIN_S)
            return self._fetch_into(address, place, source)
        except GitError as error:
            raise _unreachable(address, error) from None
        except LimitError:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _fetch_into(self, address: GitAddress, place: Path, source: str) -> str:
        arguments = [
            "fetch", "--quiet", "--no-tags", "--depth=1", "--force", "--no-recurse-submodules",
            "--no-write-fetch-head", "--no-auto-maintenance", "--", address.bare_url,
            f"+{source}:refs/officegrid/newest",
        ]  # fmt: skip
        gitrun.run(
            address, arguments, within_s=FETCH_WITHIN_S, folder=place,
            most_bytes=2 * self._most_fetched_bytes,
        )  # fmt: skip
        asked = ["rev-parse", "--verify", "--quiet", "refs/officegrid/newest^{commit}"]
        found = gitrun.run(address, asked, within_s=LOCAL_WITHIN_S, folder=place).decode().strip()
        os.utime(place)
        return found

    # --- the tree

    def _packed(self, address: GitAddress, place: Path, commit: str) -> PackedBundle:
        files = self._files(address, place, commit)
        total = sum(one.size for one in files)
        if len(files) > MOST_FILES:
            raise LimitError(
                f"The code in {address.shown} has {len(files):,} files.",
                f"At most {MOST_FILES:,} are taken.", "Name a folder in it (#folder).",
            )  # fmt: skip
        if total > self._most_bytes:
            largest = max(files, key=lambda one: one.size)
            raise LimitError(
                f"The code in {address.shown} is too large: {total / MIB:.1f} MB; the limit is "
                f"{self._most_bytes / MIB:.1f} MB.",
                f"The largest file is {largest.path} ({largest.size / MIB:.1f} MB).",
                "Name a folder in it (#folder), or take what the program does not need out of it; "
                "data belongs in [data].",
            )
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="tmp") as made:
            root = Path(made) / "code"
            root.mkdir()
            self._export(address, place, files, root)
            return pack_folder(root, max_bytes=self._most_bytes)

    def _files(self, address: GitAddress, place: Path, commit: str) -> list[_File]:
        tree = f"{commit}:{address.folder}" if address.folder else commit
        try:
            listed = gitrun.run(
                address, ["ls-tree", "-r", "-l", "-z", "--full-tree", tree],
                within_s=LOCAL_WITHIN_S, folder=place,
            )  # fmt: skip
        except GitError:
            raise NotFoundError(
                f"There is no folder {address.folder!r} in {address.bare_url}.",
                f"Commit {commit[:12]} has none.",
                "Correct what follows the # in the job file.",
            ) from None
        found = []
        for entry in listed.split(b"\0"):
            if not entry:
                continue
            facts, _, name = entry.partition(b"\t")
            mode, kind, blob, size = facts.decode("ascii").split()
            if kind == "blob":  # the other kind is a submodule, whose files are elsewhere
                found.append(_File(_checked(name, address), mode, blob, int(size)))
        return found

    def _export(self, address: GitAddress, place: Path, files: list[_File], root: Path) -> None:
        """Links come last, so that no file is ever written through one."""
        with gitrun.blobs(address, place) as process:
            for one in sorted(files, key=lambda one: one.mode == "120000"):
                content = gitrun.read_blob(process, one.blob)
                target = root / one.path
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if one.mode == "120000":
                        os.symlink(os.fsdecode(content), target)
                        continue
                    with target.open("xb") as file:
                        file.write(content)
                    if one.mode == "100755":
                        target.chmod(0o755)
                except (FileExistsError, NotADirectoryError, ValueError):
                    raise _odd(address, str(one.path)) from None
                except OSError as error:
                    raise UnavailableError(
                        f"The code in {address.shown} cannot be written to the coordinator's disk.",
                        error.strerror or str(error),
                    ) from None

    def sweep(self, used: Collection[GitAddress], older_than_s: float) -> int:
        """Remove copies that were not used for so long, and exports that a crash left."""
        kept = {self._place(address).name for address in used}
        before, removed = time.time() - older_than_s, 0
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            with self._alone(entry.name), contextlib.suppress(FileNotFoundError):
                if entry.name not in kept and entry.stat().st_mtime < before:
                    shutil.rmtree(entry.path, ignore_errors=True)
                    removed += 1
        return removed


def _checked(name: bytes, address: GitAddress) -> PurePosixPath:
    """A path in the tree. Git itself makes no such ones, but a tree can be made by hand."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise _odd(address, repr(name)) from None
    parts = text.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise _odd(address, text)
    return PurePosixPath(text)


def _odd(address: GitAddress, path: str) -> InputError:
    return InputError(
        f"The code in {address.shown} cannot be used.",
        f"Its path {path[:200]!r} cannot be a file in a folder.",
        "Rename or remove it.",
    )


def _no_ref(address: GitAddress) -> NotFoundError:
    what = f"branch or tag {address.ref!r}" if address.ref else "default branch"
    return NotFoundError(
        f"There is no {what} in {address.bare_url}.",
        fix="Correct what follows the @ in the job file.",
    )


def _unreachable(address: GitAddress, error: GitError) -> UnavailableError:
    return UnavailableError(
        f"{address.bare_url} cannot be fetched.",
        error.text,
        "Check the address, and that the coordinator may read it: its user's keys for ssh, a "
        "token for https.",
    )
