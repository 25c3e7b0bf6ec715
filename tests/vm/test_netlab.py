"""The network that the tests here are made in leaves nothing behind, not even after `kill -9`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from vm.netlab import A, Lab

KILLED = """
import os, signal, sys
from pathlib import Path
from vm.netlab import A, Lab
lab = Lab(Path(sys.argv[1]))
lab.__enter__()
lab.serve_dhcp(A)
print(lab.room, lab._dhcp[A].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def namespaces() -> set[str]:
    return set(os.listdir("/run/netns")) if Path("/run/netns").is_dir() else set()


def test_the_lab_of_a_killed_test_run_is_removed_by_the_next(tmp_path: Path) -> None:
    here = os.readlink("/proc/thread-self/ns/net")
    with Lab(tmp_path / "mine") as lab:
        lab.serve_dhcp(A)
        mine = {lab.room, lab.router}
        assert mine <= namespaces()
        tests = Path(__file__).resolve().parents[1]
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / "killed")], capture_output=True,
            text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": str(tests)},
        )  # fmt: skip
        room, dnsmasq = killed.stdout.split()
        assert room in namespaces(), killed.stderr
        assert psutil.pid_exists(int(dnsmasq))
        with Lab(tmp_path / "next"):
            assert room not in namespaces()
            assert f"{room}r" not in namespaces()
            assert mine <= namespaces(), "it belongs to a test run that lives"
        gone = not psutil.pid_exists(int(dnsmasq))
        assert gone or psutil.Process(int(dnsmasq)).status() == psutil.STATUS_ZOMBIE
    assert not mine & namespaces()
    assert os.readlink("/proc/thread-self/ns/net") == here
