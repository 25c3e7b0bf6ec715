"""A whole grid on this machine: real coordinator and worker processes, real TLS, in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from officegrid.core.errors import UnavailableError
from officegrid.transport.http import Connection
from officegrid.transport.profile import load_profile
from officegrid.wire.jobs import ServerInfo

START_WITHIN_S = 30.0
STOP_WITHIN_S = 15.0


class LocalGrid:
    """Use as a context manager: leaving it ends every process and removes the folder."""

    def __init__(self, folder: Path, *, lease_s: float = 5.0) -> None:
        self._folder = folder
        self._lease_s = lease_s
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = _free_port()
        self.url = f"https://127.0.0.1:{self._port}"

    def __enter__(self) -> LocalGrid:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start(
                "coordinator", None, "serve", "--data", str(self._data),
                "--listen", f"127.0.0.1:{self._port}", "--lease-seconds", str(self._lease_s),
            )  # fmt: skip
            self._wait_until_up()
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_all()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._folder / "coordinator"

    def connection(self) -> Connection:
        """As the local admin, who may do everything a submitter may."""
        profile = load_profile(self._data / "admin")
        return Connection(profile.url, profile.ca_pem, profile.token)

    def start_worker(self, name: str) -> int:
        """Join a machine of that name and start its worker; returns the process id."""
        code = self._run(self._data / "admin", "join-code", "--role", "worker").strip()
        self._run(self._folder / name, "join", self.url, "--code", code, "--name", name)
        return self._start(name, self._folder / name, "worker")

    def kill_worker(self, name: str) -> None:
        """kill -9: no goodbye, as in a power cut."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def log_tail(self, name: str, lines: int = 15) -> str:
        path = self._folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    # --- inside

    def _start(self, name: str, home: Path | None, *arguments: str) -> int:
        options = ["--home", str(home)] if home is not None else []
        command = [sys.executable, "-m", "officegrid", *options, *arguments]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        self._processes[name] = process
        return process.pid

    def _run(self, home: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", "officegrid", "--home", str(home), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"`officegrid {arguments[0]}` failed.", done.stderr.strip())
        return done.stdout

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            if self._processes["coordinator"].poll() is not None:
                break
            with contextlib.suppress(Exception), self.connection() as connection:
                connection.call("GET", "/v1/health", reply=ServerInfo, timeout_s=2, retry=False)
                return
            time.sleep(0.1)
        raise UnavailableError("The coordinator did not start.", self.log_tail("coordinator"))

    def _end_all(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
