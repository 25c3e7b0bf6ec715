"""A real rsync daemon on 127.0.0.1, what its clients pull, and what CPU it took."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

RSYNC = shutil.which("rsync")
WITHIN_S = 30.0


@dataclass(frozen=True)
class Pull:
    sent_bytes: int
    received_bytes: int

    @property
    def bytes(self) -> int:
        """Both ways: the list of checksums travels too."""
        return self.sent_bytes + self.received_bytes


class Daemon:
    """Serves `root` to clients until it is stopped."""

    def __init__(self, folder: Path, root: Path) -> None:
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        ids = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.getuid() == 0 else ""
        (folder / "conf").write_text(
            f"{ids}use chroot = no\naddress = 127.0.0.1\nreverse lookup = no\n"
            f"[files]\npath = {root}\nread only = yes\n"
        )
        self._cpu_s = 0.0
        self._log = (folder / "log").open("wb")
        command = [
            str(RSYNC), "--daemon", "--no-detach", f"--config={folder / 'conf'}",
            f"--port={self._port}", f"--log-file={folder / 'rsync.log'}",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def __enter__(self) -> Daemon:
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                return self
            except OSError:
                if time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.02)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def pull(self, new: Path, target: Path, options: list[str]) -> Pull:
        """Make `target` like `new`, which lies in the root."""
        slash = "/" if new.is_dir() else ""
        command = [
            str(RSYNC), "-a", "--delete", "--stats", *options,
            f"rsync://127.0.0.1:{self._port}/files/{new.name}{slash}", f"{target}{slash}",
        ]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        sent, received = (
            int(re.findall(rf"Total bytes {way}: ([\d,]+)", done.stdout)[0].replace(",", ""))
            for way in ("sent", "received")
        )
        return Pull(sent, received)

    def stop(self) -> float:
        """End it; returns the CPU in seconds of all its processes."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            # It waits for the processes that serve its clients, so what they took is in here.
            _, status, used = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._cpu_s = used.ru_utime + used.ru_stime
        self._log.close()
        return self._cpu_s
