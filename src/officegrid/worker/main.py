"""Start a worker: one per machine, stopped cleanly by SIGTERM."""

from __future__ import annotations

import secrets
import signal
import threading
from pathlib import Path
from types import FrameType

from officegrid.transport.http import Connection
from officegrid.transport.profile import Profile
from officegrid.transport.single_instance import single_instance
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger
from officegrid.worker.memory import keep_memory_small
from officegrid.worker.worker import Worker

log = get_logger("worker")


def run_worker(profile: Profile, folder: Path, *, slots: int, drain: bool) -> None:
    """Work until stopped, or with `drain` until nothing is left. Raises OfficeGridError.

    `folder` holds this machine's lock, bundles, environments and scratch space.
    """
    fix = "Nothing to do: one worker per machine is enough; use --slots for more at once."
    with single_instance(folder, "worker", fix):
        keep_memory_small()
        stopping = threading.Event()

        def stop(signum: int, _: FrameType | None) -> None:
            log.info("stopping", signal=signal.Signals(signum).name)
            stopping.set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, stop)
        session_id = secrets.token_hex(12)
        # Retries are the link's business: it waits for hours, and stops when the worker does.
        with Connection(profile.url, profile.ca_pem, profile.token, retry_s=0.0) as connection:
            link = Link(connection, session_id, stopping)
            Worker(link, stopping, folder, slots=slots, drain=drain).run()
