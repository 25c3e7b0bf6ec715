"""Start a worker: one per machine, joined first where it was told to, stopped by SIGTERM."""

from __future__ import annotations

import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from officegrid.core.errors import ForbiddenError, OfficeGridError
from officegrid.transport.facts import told_hardware_id
from officegrid.transport.http import Connection
from officegrid.transport.profile import Profile, load_profile
from officegrid.worker.bootstrap import Running
from officegrid.worker.joining import Joining, Stopped, seed_path
from officegrid.worker.limits import warden
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger
from officegrid.worker.memory import keep_memory_small
from officegrid.worker.updating import Updater
from officegrid.worker.worker import Worker

log = get_logger("worker")


class _Stop:
    """SIGTERM and SIGINT set `asked` for good. Each run of work has an event of its own: threads
    that one run left behind must not wake up in the next."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._run = self.asked
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(signum).name)
        self.asked.set()
        self._run.set()

    def new_run(self) -> threading.Event:
        self._run = threading.Event()
        if self.asked.is_set():
            self._run.set()
        return self._run


def run_worker(
    home: Path, running: Running, *, slots: int, drain: bool, peers_port: int | None = None
) -> None:
    """Work until stopped, or with `drain` until nothing is left. Raises OfficeGridError. Where the
    worker changes over to another release, this does not return.

    `home` holds the profile; `home/worker` this machine's lock, bundles, environments, releases and
    scratch space. Where OFFICEGRID_SEED names a file, the worker joins first. A worker that finds
    out that it is a copy of another one gets an identity of its own and goes on under it.
    `peers_port`: where to share data with other workers, 0 for any free port, None for not at all.
    """
    keep_memory_small()
    stop = _Stop()
    joining = Joining(home, stop.asked)
    hardware_id = told_hardware_id()
    try:
        seed = seed_path()
        if seed is not None:
            joining.from_seed(seed)
        work = partial(
            _is_copy, home, stop, running, hardware_id,
            slots=slots, drain=drain, peers_port=peers_port,
        )  # fmt: skip
        while work():
            joining.as_copy(hardware_id)
    except Stopped:
        return


@contextmanager
def _peers(link: Link, folder: Path, port: int | None) -> Iterator[None]:
    """Share with other workers meanwhile."""
    if port is None:
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier run shared
        yield
        return
    from officegrid.worker.peers.exchange import Peers

    try:
        peers = Peers(link, folder, port)
    except OSError as error:  # it is worth no worker
        log.warning("no_peers", why=str(error))
        yield
        return
    link.peers = peers
    peers.start()
    try:
        yield
    finally:
        peers.close()


def _is_copy(
    home: Path, stop: _Stop, running: Running, hardware_id: str,
    *, slots: int, drain: bool, peers_port: int | None,
) -> bool:  # fmt: skip
    """Work under the present identity until the end; True if it is not this machine's own."""
    profile = _own_profile(home)
    stopping = stop.new_run()
    session_id = secrets.token_hex(12)
    folder = home / "worker"
    # Retries are the link's business: it waits for hours, and stops when the worker does.
    with Connection(profile.url, profile.ca_pem, profile.token, retry_s=0.0) as connection:
        link = Link(connection, session_id, stopping, hardware_id)
        updater = Updater(running, link, stopping)
        try:
            with _peers(link, folder / "peers", peers_port):
                Worker(link, stopping, folder, updater, slots=slots, drain=drain).run()
        except OfficeGridError as error:
            if error.code != "cloned":
                raise
            log.warning("is_a_copy", what=error.what, why=error.why)
            return not stop.asked.is_set()
    if updater.ready.is_set() and not stop.asked.is_set():
        warden.stop()
        running.restart()
    return False


def _own_profile(home: Path) -> Profile:
    profile = load_profile(home)
    if profile.role not in ("worker", "agent"):
        raise ForbiddenError(
            f"This machine joined as {profile.role}, not as a worker.",
            fix="Join again with a code made by `officegrid join-code --role worker`.",
        )
    return profile
