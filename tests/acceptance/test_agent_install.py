"""`officegrid agent install | uninstall` into a folder tree, and the service that it makes: its
real command line, and its real unit under a real systemd, with a real QEMU beside the agent."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, wait_for
from officegrid.wire.agent import DeskRules
from parts import need, without

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the installation on Linux"
)

EAGER = DeskRules(
    idle_s=1, cpu_busy_share=1, cpu_idle_share=1, cpu_idle_s=0, settle_s=0, memory_free_mb=16,
    on_battery=True,
)  # fmt: skip
UNIT = "etc/systemd/system/officegrid-agent.service"
HOME = "var/lib/officegrid"


def snapshot(tree: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in sorted(tree.rglob("*")):
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


def unit_lines(tree: Path) -> list[str]:
    return (tree / UNIT).read_text().splitlines()


class Office:
    """A grid, and the folder tree of one PC."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.tree = grid.folder / "pc"

    def install(self, *options: str, env: dict[str, str] | None = None) -> str:
        done = self.grid.run("agent", "install", "--root", str(self.tree), *options, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def uninstall(self, *options: str) -> str:
        done = self.grid.run("agent", "uninstall", "--root", str(self.tree), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def office(make_grid: MakeGrid) -> Office:
    return Office(make_grid())


def test_a_dry_run_shows_everything_and_changes_nothing(office: Office) -> None:
    said = office.install("--driver", "qemu", "--memory", "2GB", "--dry-run")
    assert not office.tree.exists()
    office.install("--driver", "qemu", "--memory", "2GB")
    for path, content in snapshot(office.tree).items():
        if path.endswith("install.json"):
            continue
        assert path in said
        lines = content.splitlines() if isinstance(content, bytes) else [content.encode()]
        assert all(line.decode() in said for line in lines)
    before = snapshot(office.tree)
    changed = office.install("--memory", "3GB", "--dry-run")
    assert "-memory_mb = 2000" in changed
    assert "+memory_mb = 3000" in changed
    assert snapshot(office.tree) == before
    gone = office.uninstall("--purge", "--dry-run")
    assert str(office.tree / UNIT) in gone
    assert snapshot(office.tree) == before


def test_again_nothing_changes_and_purge_leaves_nothing(office: Office) -> None:
    office.install("--driver", "qemu", "--idle", "7m")
    before = snapshot(office.tree)
    assert "Nothing to change." in office.install()
    assert snapshot(office.tree) == before
    assert "--purge takes it too" in office.uninstall()
    # What a later purge needs to know stays: the list, and the settings of the VM.
    kept = {office.tree / "etc/officegrid/install.json", office.tree / HOME / "agent.toml"}
    assert {Path(path) for path in snapshot(office.tree)} == kept
    office.install("--driver", "qemu")
    office.uninstall("--purge")
    assert snapshot(office.tree) == {}
    again = office.grid.run("agent", "uninstall", "--root", str(office.tree))
    assert again.returncode == 1
    assert "not installed" in again.stderr


def test_what_the_admin_changed_stays(office: Office) -> None:
    office.install("--driver", "qemu")
    settings = office.tree / HOME / "agent.toml"
    settings.write_text('[vm]\ndriver = "process"\n')
    assert "somebody has changed it" in office.install("--memory", "3GB")
    assert settings.read_text() == '[vm]\ndriver = "process"\n'
    office.uninstall()
    assert settings.exists()


def test_a_home_that_others_may_write_is_refused_and_left_alone(office: Office) -> None:
    home = office.tree / HOME
    home.mkdir(parents=True)
    settings = home / "agent.toml"
    settings.write_text('[vm]\ndriver = "process"\n[vm.options]\npython = "/tmp/mine"\n')
    settings.chmod(0o666)
    before = snapshot(office.tree)
    for more in ((), ("--dry-run",)):
        refused = office.grid.run("agent", "install", "--root", str(office.tree), *more)
        assert refused.returncode == 1
        assert "agent.toml is there already, and the agent may not trust it" in refused.stderr
    assert snapshot(office.tree) == before
    settings.chmod(0o644)
    home.chmod(0o700)
    assert "kept" in office.install()  # the admin's own, put there beforehand
    home.chmod(0o777)
    purge = office.grid.run("agent", "uninstall", "--root", str(office.tree), "--purge")
    assert purge.returncode == 1
    assert "may not trust it" in purge.stderr
    assert settings.exists()


def test_a_unit_of_somebody_else_is_not_overwritten(office: Office) -> None:
    unit = office.tree / UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    refused = office.grid.run("agent", "install", "--root", str(office.tree))
    assert refused.returncode == 1
    assert "not as we wrote it" in refused.stderr
    assert list(snapshot(office.tree)) == [str(unit)]


def test_an_installation_that_broke_off_is_completed_or_taken_back(office: Office) -> None:
    blocker = office.tree / "etc/systemd/system/multi-user.target.wants"
    blocker.parent.mkdir(parents=True)
    blocker.write_text("a file where a folder must be")
    broken = office.grid.run("agent", "install", "--root", str(office.tree))
    assert broken.returncode == 1
    assert "run this again" in broken.stderr
    kept = snapshot(office.tree)
    assert str(office.tree / UNIT) in kept
    blocker.unlink()
    assert "The agent is installed." in office.install()
    office.uninstall("--purge")
    assert snapshot(office.tree) == {}
    blocker.rmdir()
    blocker.write_text("in the way again")
    assert office.grid.run("agent", "install", "--root", str(office.tree)).returncode == 1
    blocker.unlink()
    office.uninstall("--purge")
    assert snapshot(office.tree) == {}


def test_another_version_is_not_replaced_unasked(office: Office) -> None:
    office.install()
    manifest = office.tree / "etc/officegrid/install.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**told, "version": "0.0.1"}))
    refused = office.grid.run("agent", "install", "--root", str(office.tree))
    assert refused.returncode == 1
    assert "Office Grid 0.0.1 is installed" in refused.stderr
    assert "--upgrade" in refused.stderr
    office.install("--upgrade")
    assert json.loads(manifest.read_text())["version"] != "0.0.1"


@pytest.mark.parametrize(("options", "said"), [
    (("--image", "grid.qcow2"), "not a full path"),
    (("--memory", "2048"), "no unit"),
    (("--idle", "soon"), "idle"),
    (("--vm", "../x"), "vm.name"),
])  # fmt: skip
def test_wrong_options_change_nothing(office: Office, options: tuple[str, ...], said: str) -> None:
    done = office.grid.run("agent", "install", "--root", str(office.tree), *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert not office.tree.exists()


@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="gives up root's rights")
def test_without_root_it_is_refused() -> None:
    # Imported first: this Python may lie where nobody else can read it.
    script = (
        "import os, officegrid.cli.agent_install, officegrid.agent.install.machine\n"
        "from officegrid.cli.main import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main(['agent', 'install'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Installing needs root." in done.stderr


def test_systemd_takes_the_unit(office: Office) -> None:
    need("systemd-analyze")
    for options in (("--driver", "qemu"), ("--driver", "process"), ("--driver", "virtualbox")):
        office.install(*options)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(office.tree / UNIT)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "officegrid-agent.service" not in done.stderr, done.stderr


class Presence:
    """A file that says that nobody is here, kept fresh."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._over = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._over.wait(0.2):
            self._write()

    def _write(self) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"at": time.time(), "idle_s": 1000, "locked": False}))
        draft.replace(self.path)

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)


@pytest.fixture
def joined(office: Office) -> Iterator[Office]:
    """An installed PC that has joined, where nobody sits."""
    grid = office.grid
    grid.start()
    grid.connection().call("PUT", "/v1/desk-rules", body=EAGER, reply=DeskRules)
    code = grid.code("agent")
    options = ("--driver", "qemu", "--url", grid.url, "--name", "pc1")
    shown = office.install(*options, "--dry-run", env={"OFFICEGRID_CODE": code})
    assert grid.url in shown
    said = office.install(*options, env={"OFFICEGRID_CODE": code})
    assert code not in said + shown
    assert all(code.encode() not in str(c).encode() for c in snapshot(office.tree).values())
    presence = Presence(grid.folder / "presence.json")
    settings = office.tree / HOME / "agent.toml"
    image = grid.folder / "blank.qcow2"
    need("qemu-img", "qemu-system-x86_64")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "16M"], check=True)
    settings.write_text(
        f'[vm]\ndriver = "qemu"\nimage = "{image}"\nmemory_mb = 64\ncpus = 1\n'
        '[vm.options]\naccelerator = "tcg"\ncode_cache_mb = 16\n'
        f'[sensors]\nkind = "file"\nfile = "{presence.path}"\n'
    )
    yield office
    presence.close()


def test_the_command_line_of_the_service_runs_the_agent(joined: Office) -> None:
    assert "Nothing to change." in joined.install("--url", joined.grid.url)
    lines = dict(line.partition("=")[::2] for line in unit_lines(joined.tree) if "=" in line)
    (environment,) = shlex.split(lines["Environment"])
    name, _, home = environment.partition("=")
    command = shlex.split(lines["ExecStart"])
    folder = joined.tree / home.lstrip("/")
    assert (folder / "profile.json").stat().st_mode & 0o077 == 0
    log = joined.grid.folder / "agent.log"
    with log.open("wb") as said:
        agent = subprocess.Popen(
            command, cwd="/", env={"PATH": os.environ["PATH"], name: str(folder)}, stderr=said,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        wait_for(lambda: "desk.running" in log.read_text(), "the VM runs")
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0
    finally:
        agent.kill()
        agent.wait()
    assert not (folder / "agent/vm/qemu.pid").exists()


SYSTEMD = "/lib/systemd/systemd"
INSIDE = r"""
mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir -p -m 700 /run/u /run/systemd/system
umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup || exit 9
mkdir /sys/fs/cgroup/$1 && echo $$ > /sys/fs/cgroup/$1/cgroup.procs || exit 9
export HOME=$2 XDG_RUNTIME_DIR=/run/u
@SYSTEMD@ --user --log-target=console --unit=basic.target > $2/systemd.log 2>&1 &
echo ready
while read -r line; do eval "$line" 2>&1; echo "==END $?"; done
"""


class Systemd:
    """A systemd of our own, in name spaces of its own; commands are run beside it."""

    def __init__(self, folder: Path) -> None:
        need("unshare", "systemctl", "mount")
        if os.geteuid() != 0 or not Path(SYSTEMD).exists():
            without("a systemd of one's own needs root and systemd")
        self.group = f"officegrid-test-{os.getpid()}"
        (folder / ".config/systemd/user").mkdir(parents=True)
        self.process = subprocess.Popen(
            ["unshare", "-m", "-p", "-f", "--mount-proc", "--kill-child", "bash", "-c",
             INSIDE.replace("@SYSTEMD@", SYSTEMD), "bash", self.group, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            self.close()
            without("no control groups of version 2 can be had here")

    def run(self, command: str) -> tuple[int, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"timeout 150 {command}\n")
        self.process.stdin.flush()
        said = []
        for line in self.process.stdout:
            if line.startswith("==END "):
                return int(line.split()[1]), "".join(said)
            said.append(line)
        raise AssertionError(f"{command} ended the shell: {''.join(said)}")

    def ok(self, command: str) -> str:
        code, said = self.run(command)
        if code != 0:
            state = self.run("systemctl --user status --no-pager officegrid-agent.service")[1]
            raise AssertionError(f"{command}: {said}\n{state}")
        return said.strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


# A manager of a user has no other users and makes its folders elsewhere; a container has no
# kernel settings and log to close. All else is as written.
_NOT_FOR_USERS = (
    "User=", "SupplementaryGroups=", "After=", "Wants=", "StateDirectory", "ProtectKernelTunables",
    "ProtectKernelLogs",
)  # fmt: skip


def test_the_vm_survives_a_restart_and_a_crash_of_the_service(joined: Office) -> None:
    folder = joined.grid.folder / "manager"
    manager = Systemd(folder)
    home = joined.tree / HOME
    lines = [line for line in unit_lines(joined.tree) if not line.startswith(_NOT_FOR_USERS)]
    text = "\n".join(lines).replace("/var/lib/officegrid", str(home))
    (folder / ".config/systemd/user/officegrid-agent.service").write_text(text)
    service = "officegrid-agent.service"

    def vm() -> tuple[str, str]:
        """Process number and birth of QEMU, by the kernel."""
        pid = (home / "agent/vm/qemu.pid").read_text().strip()
        return pid, manager.ok(f"cut -d' ' -f22 /proc/{pid}/stat")

    def agent() -> str:
        return manager.ok(f"systemctl --user show -p MainPID --value {service}")

    def vm_word() -> str:
        code, said = manager.run(
            f"env OFFICEGRID_HOME={home} OFFICEGRID_AGENT_SOCKET=/run/u/officegrid/agent.sock "
            f"{sys.executable} -m officegrid agent status --json"
        )
        return str(json.loads(said)["vm"]) if code == 0 else ""

    try:
        wait_for(lambda: manager.run("systemctl --user daemon-reload")[0] == 0, "systemd")
        manager.ok(f"systemctl --user start {service}")
        wait_for(lambda: vm_word() == "running", "the VM runs", 60)
        first_agent, first_vm = agent(), vm()
        # Of every thread of both: the agent's before ordinary programs, none of the VM's. The one
        # that fetches images is in nobody's way.
        nice = "sh -c 'cut -d\" \" -f19 /proc/$0/task/*/stat' "
        of_agent = manager.ok(nice + first_agent).split()
        assert set(of_agent) <= {"-5", "19"}
        assert of_agent.count("19") <= 1
        assert min(map(int, manager.ok(nice + first_vm[0]).split())) > 0

        manager.ok(f"systemctl --user restart {service}")
        wait_for(lambda: vm_word() == "running", "the next agent has found it", 60)
        second_agent = agent()
        assert second_agent not in ("0", first_agent)
        assert vm() == first_vm

        manager.ok(f"kill -9 {second_agent}")
        wait_for(lambda: agent() not in ("0", second_agent), "systemd starts it again", 30)
        wait_for(lambda: vm_word() == "running", "it has found the VM", 60)
        assert vm() == first_vm

        manager.ok(f"systemctl --user stop {service}")
        code, _ = manager.run(f"test -d /proc/{first_vm[0]}")
        assert code == 1, "a stop saves the VM"
        assert (home / "agent/vm/state.json").exists()
    finally:
        manager.close()
        group = Path("/sys/fs/cgroup") / manager.group
        if group.exists():
            group.rmdir()
