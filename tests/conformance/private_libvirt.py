"""A libvirt of the tests' own: real daemons that share nothing with the machine's.

As root: virtlogd and libvirtd in a mount namespace in which every folder of libvirt is one of
ours; QEMU runs as the user that the distribution chose. As anybody else: the daemons of a
session, started by virsh itself, with all of the user's folders moved.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parts import need, without

FOLDERS = {
    "run": "/run/libvirt",
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
_SESSION = {
    "XDG_RUNTIME_DIR": "run",
    "XDG_CONFIG_HOME": "etc",
    "XDG_CACHE_HOME": "cache",
    "XDG_DATA_HOME": "lib",
}


class PrivateLibvirt:
    """`uri` is its address, `saves` the folder of its saved states."""

    def __init__(self) -> None:
        need("virsh", "libvirtd", "virtlogd", "qemu-system-x86_64", "qemu-img", "unshare")
        # Short: the path of a socket has room for 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ogl-", dir="/tmp"))
        self.folder.chmod(0o711)
        for name in FOLDERS:
            (self.folder / name).mkdir()
        self._daemons: subprocess.Popen[bytes] | None = None
        self._environ = dict(os.environ)
        if os.geteuid() == 0:
            self.uri = f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"
            self.saves = self.folder / "lib" / "qemu" / "save"
            self._start_system()
        else:
            self.uri = "qemu:///session"
            self.saves = self.folder / "etc" / "libvirt" / "qemu" / "save"
            os.environ.update({key: str(self.folder / sub) for key, sub in _SESSION.items()})

    def virsh(self, *words: str) -> str:
        """Run one command that must succeed."""
        finished = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words],
            capture_output=True, text=True, timeout=120, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def daemon_pid(self) -> int:
        """The process of libvirtd."""
        if self._daemons is not None:
            return self._daemons.pid  # the shell has become libvirtd
        return int((self.folder / "run" / "libvirt" / "libvirtd.pid").read_text())

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """While open, saved states go to a disk of one megabyte."""
        assert self._daemons is not None
        # The daemons' namespace is the only place that sees this mount.
        inside = ["nsenter", "-t", str(self._daemons.pid), "-m"]
        place = FOLDERS["lib"] + "/qemu/save"
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", place]
        subprocess.run([*inside, *mount], check=True)
        try:
            yield
        finally:
            subprocess.run([*inside, "umount", place], check=True)

    def close(self) -> None:
        """End the daemons; the VMs must have been deleted before."""
        if self._daemons is not None:
            os.killpg(self._daemons.pid, signal.SIGTERM)
            self._daemons.wait(20)
        else:
            end_session(self.folder / "run")
            os.environ.clear()
            os.environ.update(self._environ)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_system(self) -> None:
        shutil.copytree("/etc/libvirt", self.folder / "etc", dirs_exist_ok=True)
        for networks in (self.folder / "etc" / "qemu").glob("**/*.xml"):
            networks.unlink()
        (self.folder / "etc" / "qemu.conf").write_text('security_driver = "none"\n')
        (self.folder / "etc" / "libvirtd.conf").write_text(
            'auth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n'
        )
        mounts = "".join(
            f"mkdir -p {there} && mount --bind {self.folder / here} {there} || exit 1\n"
            for here, there in FOLDERS.items()
        )
        run = FOLDERS["run"]
        if Path("/dev/kvm").exists():
            # Where libvirt may use the device and QEMU's user may not, libvirt tries every QEMU
            # anew, for a minute, before it defines anything.
            node = self.folder / "kvm"
            os.mknod(node, stat.S_IFCHR | 0o666, os.stat("/dev/kvm").st_rdev)
            node.chmod(0o666)
            mounts += f"mount --bind {node} /dev/kvm || exit 1\n"
        self._daemons = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c",
             f"{mounts}virtlogd -p {run}/virtlogd.pid & exec libvirtd -p {run}/libvirtd.pid"],
            stdin=subprocess.DEVNULL, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not (self.folder / "run" / "libvirt-sock").exists():
            if self._daemons.poll() is not None or time.monotonic() > deadline:
                self.close()
                without("libvirtd does not start on this machine")
            time.sleep(0.02)


def end_session(runtime: Path) -> None:
    """End the daemons that virsh has started for the session with this XDG_RUNTIME_DIR."""
    notes = [runtime / "libvirt" / f"{name}.pid" for name in ("libvirtd", "virtlogd")]
    for note in notes:
        with suppress(OSError, ValueError):
            os.kill(int(note.read_text()), signal.SIGTERM)
    # They clean up behind themselves, which must not meet a removal of the folder.
    deadline = time.monotonic() + 10
    while any(note.exists() for note in notes) and time.monotonic() < deadline:
        time.sleep(0.02)
