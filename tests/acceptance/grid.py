"""A whole grid of real processes: a coordinator, workers and commands, each with its own home.

Everything runs as `python -m officegrid …` with files below one folder. Whatever has that folder
in its environment, command line or working directory belongs to the grid; `close` kills it and
fails when something was left that nobody had to kill.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx2
import psutil

from officegrid.core.errors import OfficeGridError
from officegrid.core.quantities import parse_duration_s
from officegrid.transport.client import tls_context
from officegrid.transport.facts import machine_facts
from officegrid.transport.http import Connection
from officegrid.transport.join import join as join_grid
from officegrid.transport.profile import Profile, load_profile, save_profile
from officegrid.wire.jobs import (
    JobList,
    JobView,
    JoinCodeReply,
    JoinCodeRequest,
    MachineView,
    StoryReply,
)

T = TypeVar("T")

LEASE_S = 3
TAIL_CHARS = 3000
POLL_S = 0.05
START_WITHIN_S = 30.0


def wait_for(condition: Callable[[], T | None], what: str, within_s: float = 30.0) -> T:
    """The first true value of `condition`; AssertionError naming `what` after the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {within_s:g} s still not: {what}")
        time.sleep(POLL_S)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A command that runs in the background, in a process group of its own, with a log."""

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, env: Mapping[str, str],
        cwd: Path | None = None, wrapper: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.name = name
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._file: IO[bytes] = log.open("ab")
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "officegrid", *arguments],
            stdin=subprocess.DEVNULL, stdout=self._file, stderr=subprocess.STDOUT,
            env=dict(env), cwd=cwd, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def text(self) -> str:
        """What this process, and not an earlier one of that name, has written."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode("utf-8", "replace")

    def wait_text(self, words: str, within_s: float = 30.0) -> str:
        def said() -> str:
            text = self.text()
            if words not in text and not self.running:
                raise AssertionError(f"{self.name} ended without saying {words!r}:\n{text}")
            return text if words in text else ""

        return wait_for(said, f"{self.name} says {words!r}", within_s)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within_s: float = 30.0) -> int:
        """The exit code."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {within_s:g} s") from None
        finally:
            if self.process.poll() is not None:
                self._file.close()

    def stop(self, within_s: float = 15.0) -> int:
        self.send(signal.SIGTERM)
        return self.wait(within_s)

    def kill(self) -> None:
        """`kill -9` of this one process; what it started must notice by itself."""
        if self.running:
            self.process.kill()
        self.wait()

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


class Grid:
    """See the module. `start` the coordinator first; most verbs speak as the local admin."""

    def __init__(
        self, folder: Path, *, lease_s: float = LEASE_S, names: Sequence[str] = (),
        listen: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.lease_s = lease_s
        self.listen = listen
        self.names = tuple(names)
        """Further addresses of the coordinator: a guest reaches its host as 10.0.2.2."""
        self.server: Running | None = None
        self.background: list[Running] = []
        self._connection: Connection | None = None
        folder.mkdir(parents=True, exist_ok=True)

    # --- processes

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def home(self, name: str) -> Path:
        return self.data / "admin" if name == "admin" else self.folder / "homes" / name

    def environment(self, home: Path) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OFFICEGRID")}
        return {**kept, "OFFICEGRID_HOME": str(home), "PYTHONUNBUFFERED": "1"}

    def start(self, *, wrapper: Sequence[str] = ()) -> Running:
        """Start the coordinator, on the same folder and port each time, and wait for it."""
        arguments = ["serve", "--data", str(self.data), "--listen", f"{self.listen}:{self.port}"]
        arguments += ["--lease-seconds", str(self.lease_s)]
        for name in self.names:
            arguments += ["--name", name]
        log = self.folder / "serve.log"
        env = self.environment(self.home("admin"))
        self.server = Running("serve", arguments, log, env, wrapper=wrapper)
        self.background.append(self.server)
        self.server.wait_text("listening", START_WITHIN_S)
        return self.server

    def coordinator(self) -> Running:
        assert self.server is not None
        return self.server

    def begin(
        self, name: str, *arguments: str, home: str = "me", cwd: Path | None = None,
        env: Mapping[str, str] | None = None, wrapper: Sequence[str] = (),
    ) -> Running:  # fmt: skip
        """Run a command in the background."""
        everything = {**self.environment(self.home(home)), **(env or {})}
        log = self.folder / f"{name}.log"
        made = Running(name, arguments, log, everything, cwd, wrapper)
        self.background.append(made)
        return made

    def run(
        self, *arguments: str, home: str = "admin", within_s: float = 60.0,
        cwd: Path | None = None, env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command to its end; nothing is checked."""
        return subprocess.run(
            [sys.executable, "-m", "officegrid", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=within_s,
            env={**self.environment(self.home(home)), **(env or {})}, cwd=cwd,
            encoding="utf-8", errors="backslashreplace", start_new_session=True,
        )  # fmt: skip

    def ok(self, *arguments: str, home: str = "admin", within_s: float = 60.0) -> str:
        """Run a command that must succeed; its standard output."""
        done = self.run(*arguments, home=home, within_s=within_s)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stderr}"
        return done.stdout

    def read(self, *arguments: str, home: str = "admin") -> Any:
        """Run a list or show command with --json."""
        return json.loads(self.ok(*arguments, "--json", home=home))

    # --- people and machines

    def code(self, role: str, uses: int = 1, ttl: str = "1h") -> str:
        request = JoinCodeRequest.model_validate(
            {"role": role, "uses": uses, "ttl_s": parse_duration_s(ttl)}
        )
        made = self.connection().call(
            "POST", "/v1/join-codes", body=request, reply=JoinCodeReply, retry=False
        )
        return made.code

    def join(self, name: str, role: str) -> Path:
        """Give `name` a home with the credentials of `role`, as the commands `join-code` and `join`
        do it, without starting two processes each time."""
        home = self.home(name)
        if not (home / "profile.json").exists():
            profile = join_grid(self.url, self.code(role), name=name, facts=machine_facts())
            save_profile(profile, home)
        return home

    def worker(self, name: str, *options: str, env: Mapping[str, str] | None = None) -> Running:
        """Start a worker, joined under `name` on first use, and wait until it has started."""
        self.join(name, "worker")
        made = self.begin(name, "worker", *options, home=name, env=env)
        made.wait_text("worker.started", START_WITHIN_S)
        return made

    def redirect(self, name: str, port: int) -> None:
        """Let the machine reach the coordinator through another port of this computer."""
        home = self.home(name)
        old = load_profile(home)
        url = f"https://127.0.0.1:{port}"
        save_profile(Profile(url, old.ca_pem, old.token, old.machine_id, old.role, old.name), home)

    # --- jobs

    def submit(self, job_file: Path, *, home: str = "me", watch: bool = False) -> str:
        """Submit; the job's id. With `watch`, also wait until it has ended."""
        self.join(home, "submitter")
        extra = ["--watch"] if watch else []
        done = self.run("submit", str(job_file), *extra, "--json", home=home, within_s=100)
        assert done.stdout, f"submit: exit {done.returncode}\n{done.stderr}"
        return str(json.loads(done.stdout)["id"])

    def watch_submit(self, job_file: Path, home: str = "me") -> subprocess.CompletedProcess[str]:
        """`officegrid submit --watch`."""
        self.join(home, "submitter")
        return self.run("submit", str(job_file), "--watch", home=home, within_s=100)

    def connection(self, retry_s: float = 10.0) -> Connection:
        """A connection as the local admin, for looking often without starting a process."""
        if self._connection is None:
            profile = load_profile(self.home("admin"))
            self._connection = Connection(
                profile.url, profile.ca_pem, profile.token, retry_s=retry_s
            )
        return self._connection

    def connection_of(self, name: str) -> Connection:
        profile = load_profile(self.home(name))
        return Connection(profile.url, profile.ca_pem, profile.token, retry_s=0)

    def browser(self, name: str | None = None, **headers: str) -> httpx2.Client:
        """A plain HTTPS client, with the token of `name` if given, that takes any answer."""
        profile = load_profile(self.home(name or "admin"))
        if name is not None:
            headers["Authorization"] = f"Bearer {profile.token}"
        context = tls_context(profile.ca_pem)
        return httpx2.Client(
            base_url=self.url, verify=context, headers=headers, trust_env=False, timeout=30
        )

    def job(self, job_id: str) -> JobView:
        return self.connection().call("GET", f"/v1/jobs/{job_id}", reply=JobView)

    def jobs(self) -> list[JobView]:
        return self.connection().call("GET", "/v1/jobs", reply=JobList).jobs

    def machine(self, name: str) -> MachineView:
        return self.connection().call("GET", f"/v1/machines/{name}", reply=MachineView)

    def story(self, subject: str) -> list[str]:
        reply = self.connection().call("GET", f"/v1/story/{subject}", reply=StoryReply)
        return [event.text for event in reply.events]

    def wait_job(self, job_id: str, state: str = "finished", within_s: float = 50.0) -> JobView:
        return wait_for(
            lambda: view if (view := self.job(job_id)).state == state else None,
            f"{job_id} is {state} (it is {self.job(job_id).state})",
            within_s,
        )

    def wait_done(self, job_id: str, records: int, within_s: float = 40.0) -> JobView:
        """Until at least so many records are committed, and the job has not ended by then."""
        view = wait_for(
            lambda: view if (view := self.job(job_id)).done >= records else None,
            f"{records} records of {job_id} are done",
            within_s,
        )
        assert view.state != "finished", f"{job_id} ended too soon for this test: {view}"
        return view

    def output(self, job_id: str, path: Path, home: str = "me") -> bytes:
        self.ok("output", job_id, "-o", str(path), home=home)
        return path.read_bytes()

    def quarantine(self, job_id: str) -> dict[int, dict[str, Any]]:
        rows = self.read("quarantine", job_id, "--limit", "0")
        return {row["record"]: row for row in rows}

    # --- the end

    def processes(self) -> list[psutil.Process]:
        """Every living process that belongs to this grid."""
        mark = str(self.folder)
        return [p for p in psutil.process_iter() if p.pid != os.getpid() and _bears(p, mark)]

    def tails(self) -> str:
        """The ends of all logs, for people who look into a failure."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            text = log.read_text("utf-8", "replace")
            parts.append(f"--- {log.name}\n{text[-TAIL_CHARS:]}")
        return "\n".join(parts)

    def close(self) -> None:
        """Kill what was started; AssertionError when children of it outlive that."""
        if self._connection is not None:
            self._connection.close()
        for one in self.background:
            if one.running:
                one.send(signal.SIGCONT)
                one.kill()
            else:
                one.wait()
        try:
            wait_for(lambda: not self.processes(), f"no process of {self.folder} is left", 10)
        except AssertionError as error:
            left = self.processes()
            described = "; ".join(_describe(process) for process in left)
            for process in left:
                _kill(process)
            raise AssertionError(f"{error}: {described}") from None


def _bears(process: psutil.Process, mark: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if any(mark in word for word in process.cmdline()):
            return True
        return mark in process.cwd() or any(mark in v for v in process.environ().values())
    except (psutil.Error, OSError):
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"{process.pid}: ended"


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def answered(ask: Callable[[], object]) -> OfficeGridError | None:
    """The error that a request ends with, None when it succeeds."""
    try:
        ask()
    except OfficeGridError as error:
        return error
    return None
