"""Runs the programs a build needs: one log of all they say, progress lines, plain errors.

What a program prints goes to the log; when it fails, its last lines are in the error. Programs
that belong into the guest run in a chroot inside mount and process namespaces of their own, so
that neither a mount nor a process of theirs outlives them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from officegrid.core.errors import OfficeGridError

_SHOWN_LINES = 25
_FULL = ("No space left on device", "You don't have enough free space")
# $1 is the root, the rest the command. Only harmless devices; /run and /tmp vanish at the end.
_IN_ROOT = """
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for name in null zero full random urandom tty; do
    : >"$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm" "$root/dev/pts"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
exec chroot "$root" "$@"
"""


class BuildError(OfficeGridError):
    """An image cannot be built."""


class Runner:
    """`say` gets the progress lines; `epoch_s` is SOURCE_DATE_EPOCH of what is run."""

    def __init__(self, log: Path, say: Callable[[str], None], scratch: Path) -> None:
        self.log = log
        self._say = say
        self._scratch = scratch
        self._started = time.monotonic()
        self.epoch_s = 0
        self.file: IO[bytes] = log.open("wb", buffering=0)

    def close(self) -> None:
        self.file.close()

    def step(self, text: str) -> None:
        """A line for people: the seconds so far, and what begins now."""
        line = f"[{time.monotonic() - self._started:4.0f} s] {text}"
        self._say(line)
        self.file.write(f"--- {line}\n".encode())

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of every program: the caller's, in one language, with times from the build's epoch."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "LC_", "DEBIAN_", "OFFICEGRID_"))
        }
        return {
            **kept, "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "TZ": "UTC",
            "TMPDIR": str(self._scratch), "SOURCE_DATE_EPOCH": str(self.epoch_s),
            "E2FSPROGS_FAKE_TIME": str(self.epoch_s), "DEBIAN_FRONTEND": "noninteractive",
            "MTOOLS_SKIP_CHECK": "1", **(extra or {}),
        }  # fmt: skip

    def run(
        self, command: Sequence[str], what: str, fix: str = "", *, stdin: str = "",
        env: Mapping[str, str] | None = None, cwd: Path | None = None,
    ) -> str:  # fmt: skip
        """Run to the end; gives stdout. Raises BuildError that begins with `what`."""
        return self._run(command, what, fix, stdin, self.environment(env), cwd)

    def run_in_root(
        self, root: Path, command: Sequence[str], what: str, fix: str = "", *, stdin: str = ""
    ) -> str:
        """The same inside the guest's root; the program sees nothing of this machine's files."""
        wrapped = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts",
            "sh", "-c", _IN_ROOT, "sh", str(root), *command,
        ]  # fmt: skip
        environment = {
            name: value
            for name, value in self.environment().items()
            if name in ("LC_ALL", "LANG", "TZ", "SOURCE_DATE_EPOCH", "DEBIAN_FRONTEND")
            or name.lower().endswith("_proxy")
        }
        environment |= {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
        }
        return self._run(wrapped, what, fix, stdin, environment, None)

    def _run(
        self, command: Sequence[str], what: str, fix: str, stdin: str,
        environment: Mapping[str, str], cwd: Path | None,
    ) -> str:  # fmt: skip
        shown = " ".join(command) if len(command) < 12 else " ".join(command[:12]) + " …"
        self.file.write(f"$ {shown}\n".encode())
        mark = self.file.tell()
        output = self._scratch / "stdout"
        with output.open("wb") as stdout:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=stdout, stderr=self.file,
                    env=dict(environment), cwd=cwd, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise BuildError(what, f"{command[0]}: {error.strerror}.", fix) from None
            try:
                process.communicate(stdin.encode())
            except BaseException:
                _end(process)
                raise
        text = output.read_text(errors="replace")
        if process.returncode:
            self.file.write(text.encode())
            raise self._error(what, fix, command[0], process.returncode, mark)
        return text

    def _error(self, what: str, fix: str, program: str, code: int, mark: int) -> BuildError:
        with self.log.open("rb") as log:
            log.seek(mark)
            lines = log.read().decode(errors="replace").strip().splitlines()
        said = "\n    ".join(["", *lines[-_SHOWN_LINES:]])
        if any(full in line for full in _FULL for line in lines):
            free_mb = shutil.disk_usage(self._scratch).free // 1_000_000
            fix = (
                f"Free some disk space ({free_mb} MB are left in {self._scratch.parent}), or name "
                "a roomier folder with --work."
            )
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return BuildError(what, f"{program} {ended}. It said:{said}", fix)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its whole session; first politely, because mmdebstrap has mounts to undo."""
    for number, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience_s)
            return
        except subprocess.TimeoutExpired:
            continue
