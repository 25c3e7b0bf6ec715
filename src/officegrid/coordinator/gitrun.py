"""The system's `git`, run so that nothing that comes from a repository or an address is executed.

No prompt, no hook, no submodule, no filter, no redirect; one transport; its own process group,
which is killed at a deadline or when the folder gets too large. A password travels in the
environment, never on a command line, where every user of the computer could read it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from officegrid.core.errors import LimitError, UnavailableError
from officegrid.wire.gitref import GitAddress

MIB = 1024 * 1024
LOOK_EVERY_S = 0.1
MOST_SAID_BYTES = 64 * MIB  # the names of half a million files
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "TMPDIR", "SYSTEMROOT",
         "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE",
         "GIT_SSL_CAINFO")  # fmt: skip
_CONFIG = (
    ("core.hooksPath", os.devnull), ("core.fsmonitor", "false"),
    ("credential.interactive", "false"),
    ("fetch.recurseSubmodules", "no"), ("http.followRedirects", "false"),
    ("gc.auto", "0"), ("maintenance.auto", "false"), ("protocol.version", "2"),
)  # fmt: skip


class GitError(Exception):
    """Git ended with `code`; `text` is what it said, in one line."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def program() -> str:
    """Path of git. Raises UnavailableError."""
    found = shutil.which("git")
    if found is None:
        raise UnavailableError(
            "The coordinator has no git.",
            "Code straight from a repository needs the program git on its PATH.",
            "The grid admin installs it (apt install git, dnf install git).",
        )
    return found


def environment(address: GitAddress) -> dict[str, str]:
    """Of every git that has to do with this repository."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    config = list(_CONFIG)
    if address.credentials is not None:
        token = base64.b64encode(":".join(address.credentials).encode()).decode()
        config.append(("http.extraHeader", f"Authorization: Basic {token}"))
    for number, (key, value) in enumerate(config):
        env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
    return {
        **env, "GIT_CONFIG_COUNT": str(len(config)), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
        "GIT_ALLOW_PROTOCOL": address.scheme, "GIT_ASKPASS": "", "SSH_ASKPASS": "",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes", "GIT_NO_REPLACE_OBJECTS": "1",
    }  # fmt: skip


def run(
    address: GitAddress, arguments: Sequence[str], *, within_s: float,
    folder: Path | None = None, most_bytes: int | None = None,
) -> bytes:  # fmt: skip
    """What git prints. `folder`: its repository; `most_bytes`: how large that may get meanwhile.

    Raises GitError, UnavailableError (no git, too slow), LimitError."""
    place = [] if folder is None else [f"--git-dir={folder}"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [program(), *place, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
            env=environment(address), start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, address, within_s, out, folder, most_bytes)
        finally:
            _end(process)
        if process.returncode:
            raise GitError(process.returncode, _said(errors, address))
        out.seek(0)
        return out.read()


def _wait(
    process: subprocess.Popen[bytes], address: GitAddress, within_s: float, out: IO[bytes],
    folder: Path | None, most_bytes: int | None,
) -> None:  # fmt: skip
    deadline = time.monotonic() + within_s
    ended = False
    while not ended:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_EVERY_S)
            ended = True
        if folder is not None and most_bytes is not None and size_of(folder) > most_bytes:
            raise LimitError(
                f"The repository {address.bare_url} is too large.",
                f"More than {most_bytes / MIB:.0f} MB would be fetched for one version.",
                "Take what the program does not need out of it; data belongs in [data].",
            )
        if os.fstat(out.fileno()).st_size > MOST_SAID_BYTES:
            raise LimitError(f"The repository {address.bare_url} has too many files or branches.")
        if not ended and time.monotonic() > deadline:
            raise UnavailableError(
                f"{address.bare_url} does not answer.", f"git did not end within {within_s:.0f} s."
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what still runs, helpers of git too."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()


def _said(errors: IO[bytes], address: GitAddress) -> str:
    """The last lines of its complaint as one, without secrets and control characters."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4000))
    lines = errors.read().decode("utf-8", "replace").splitlines()
    told = [line.strip() for line in lines if line.startswith(("fatal:", "error:", "remote:"))]
    text = "; ".join(told or [line.strip() for line in lines])[:400]
    for secret in address.credentials or ():
        text = text.replace(secret, "***") if secret else text
    return "".join(c if c.isprintable() else " " for c in text) or "git says nothing"


def size_of(folder: Path) -> int:
    """Bytes of all files below; those that come and go meanwhile may count or not."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


@contextlib.contextmanager
def blobs(address: GitAddress, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`git cat-file --batch` on the repository; see `read_blob`."""
    process = subprocess.Popen(
        [program(), f"--git-dir={folder}", "cat-file", "--batch"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment(address), start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        _end(process)


def read_blob(process: subprocess.Popen[bytes], digest: str) -> bytes:
    """The content of one blob. Raises GitError."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(digest.encode() + b"\n")
    process.stdin.flush()
    head = process.stdout.readline().split()
    if len(head) != 3 or head[1] != b"blob":
        raise GitError(1, f"{digest} is no file in the repository")
    content = process.stdout.read(int(head[2]) + 1)
    if len(content) != int(head[2]) + 1:
        raise GitError(1, "the repository is damaged")
    return content[:-1]
