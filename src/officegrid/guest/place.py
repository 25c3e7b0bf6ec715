"""Where things are in a guest, and how its files are read and written.

Programs of jobs run as the worker's user, who owns some of these folders. So files there are never
followed through links, and never written in place: a draft is made, given away, and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import Any

from officegrid.core.errors import UnavailableError

_MOST_BYTES = 256 * 2**10


class Place:
    """Paths below `root`, which is "/" but in tests."""

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self.run = self._in("run/officegrid")
        self.run_worker = self._in("run/officegrid/worker")
        self.join = self._in("run/officegrid/worker/join.json")
        self.worker_env = self._in("run/officegrid/worker.env")
        self.start_service = self._in("run/officegrid/start-service")
        self.clock_checked = self._in("run/officegrid/clock-checked")
        self.chrony_sources = self._in("run/chrony-dhcp/officegrid.sources")
        self.chrony_socket = self._in("run/chrony/chronyd.sock")
        self.seed = self._in("run/officegrid/seed")
        self.home = self._in("var/lib/officegrid")
        self.profile = self._in("var/lib/officegrid/profile.json")
        self.identity = self._in("var/lib/officegrid/identity.json")
        self.seeded = self._in("var/lib/officegrid-guest/seeded.json")
        self.baked = self._in("etc/officegrid/guest.json")
        self.cron = self._in("etc/cron.d/officegrid")
        self.machine_id = self._in("etc/machine-id")
        self.dbus_machine_id = self._in("var/lib/dbus/machine-id")
        self.host_name = self._in("etc/hostname")
        self.resolv_conf = self._in("etc/resolv.conf")
        self.own_addresses4 = self._in("proc/net/fib_trie")
        self.own_addresses6 = self._in("proc/net/if_inet6")
        self.udhcpc_pids = self._in("run/udhcpc")
        self.leases = self._in("run/systemd/netif/leases")
        self.udev_queue = self._in("run/udev/queue")
        self.ready_port = self._in("dev/virtio-ports/grid.ready.0")
        self.devices = self._in("dev")
        self.dmi = self._in("sys/class/dmi/id")
        self.cards = self._in("sys/class/net")
        self.chip = self._in("sys/class/rtc/rtc0/since_epoch")
        self.hypervisor = self._in("sys/class/dmi/id/product_name")

    def _in(self, path: str) -> str:
        return os.path.join(self.root, path)


def read_text(path: str) -> str:
    """The file's text, 256 KiB of it at most; "" when it is not there, cannot be read, or is no
    plain file: a pipe that a job has laid there would be waited on for ever."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        with open(os.open(path, flags), encoding="utf-8", errors="replace") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            return file.read(_MOST_BYTES)
    except OSError:
        return ""


def read_json(path: str) -> dict[str, Any] | None:
    """The object in the file; None when there is none, or it is damaged."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError):  # the latter: nested without end
        return None
    return found if isinstance(found, dict) else None


def write_file(path: str, text: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Write the file whole or not at all, durably; `owner` is (uid, gid).

    Raises UnavailableError.
    """
    draft = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(draft, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise UnavailableError(
            f"The guest cannot write {path}.",
            f"{error.strerror or error}.",
            "Its disk is full or damaged: make the virtual machine anew from the image.",
        ) from None


def make_folder(path: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """See to it that this folder is there, with this owner and mode. Raises UnavailableError."""
    try:
        os.makedirs(path, exist_ok=True)
        if os.path.islink(path):
            raise NotADirectoryError(f"{path} is a link")
        if owner is not None:
            os.chown(path, *owner)
        os.chmod(path, mode)
    except OSError as error:
        raise UnavailableError(
            f"The guest cannot make the folder {path}.",
            f"{error.strerror or error}.",
            "Its disk is full or damaged: make the virtual machine anew from the image.",
        ) from None


def remove(path: str) -> None:
    """Remove the file if it is there."""
    with contextlib.suppress(OSError):
        os.unlink(path)
