"""`officegrid join` on a desktop: one command from nothing to an installed agent, which may be
run again. It installs into folder trees, never into the system that the tests run on."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from officegrid.core.errors import AuthError
from officegrid.transport.profile import Profile, load_profile

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the installation on Linux"
)

UNIT = "etc/systemd/system/officegrid-agent.service"
ENABLED = "etc/systemd/system/multi-user.target.wants/officegrid-agent.service"
HOME = "var/lib/officegrid"


def snapshot(tree: Path) -> dict[str, bytes | str]:
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(tree.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


class Pc:
    """The folder tree of one PC, and the home of the administrator who sits there."""

    def __init__(self, grid: Grid, name: str) -> None:
        self.grid = grid
        self.name = name
        self.tree = grid.folder / name

    @property
    def own_home(self) -> Path:
        """Where a join without an installation leaves its profile."""
        return self.grid.home(self.name)

    def join(
        self, *options: str, code: str = "", url: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.grid.run(
            "join", url or self.grid.url, "--root", str(self.tree), *options, home=self.name,
            env={"OFFICEGRID_CODE": code, **(env or {})},
        )  # fmt: skip

    def ok(self, *options: str, code: str = "") -> str:
        done = self.join(*options, code=code)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not code or code not in done.stdout + done.stderr
        return done.stdout

    def profile(self) -> Profile:
        """Of the installed agent."""
        return load_profile(self.tree / HOME)


def agents(grid: Grid) -> set[tuple[str, str]]:
    """Ids and names."""
    return {(m["id"], m["name"]) for m in grid.read("machines") if m["role"] == "agent"}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One for all tests here."""
    made = Grid(tmp_path_factory.mktemp("join") / "grid")
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def pc(grid: Grid, request: pytest.FixtureRequest) -> Pc:
    return Pc(grid, request.node.name)


def test_one_command_makes_a_desktop_and_a_second_one_nothing(pc: Pc) -> None:
    grid, code, before = pc.grid, pc.grid.code("agent"), agents(pc.grid)
    said = pc.ok("--install", "--driver", "process", code=code)
    made = snapshot(pc.tree)
    for path in made:
        if not path.endswith(("install.json", "profile.json")):
            assert path in said, "every change is printed"
    assert (pc.tree / ENABLED).is_symlink()
    own = {(pc.profile().machine_id, socket.gethostname())}
    assert agents(grid) - before == own
    assert all(code.encode() not in str(content).encode() for content in made.values())
    assert not pc.own_home.exists(), "the identity is in one place only"

    # The very same command, as a start-up script repeats it, and once the code is gone.
    for again in (code, ""):
        assert "Nothing to change." in pc.ok("--install", code=again)
    assert snapshot(pc.tree) == made
    assert agents(grid) - before == own

    # What it installed is an agent that the coordinator hears.
    lines = (pc.tree / UNIT).read_text().splitlines()
    command = next(line.partition("=")[2] for line in lines if line.startswith("ExecStart="))
    log = grid.folder / "agent.log"
    with log.open("wb") as file:
        agent = subprocess.Popen(
            shlex.split(command), env={**grid.environment(pc.tree / HOME)}, stderr=file,
            stdin=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
    try:

        def heard() -> bool:
            desk = grid.machine(pc.profile().machine_id).desk
            return desk is not None and desk.heard_ago_s is not None

        wait_for(heard, "the desktop reports to the coordinator", 40)
    finally:
        agent.terminate()
        assert agent.wait(60) == 0, log.read_text()


def test_a_code_for_ten_makes_ten_machines_and_no_eleventh(grid: Grid) -> None:
    code, before = grid.code("agent", uses=10), agents(grid)
    pcs = [Pc(grid, f"pc{number}") for number in range(11)]
    with ThreadPoolExecutor(3) as several:
        list(several.map(lambda pc: pc.ok("--install", code=code), pcs[:10]))
    ten = agents(grid) - before
    assert [name for _, name in ten] == [socket.gethostname()] * 10
    assert {id_ for id_, _ in ten} == {pc.profile().machine_id for pc in pcs[:10]}
    assert len({pc.profile().token for pc in pcs[:10]}) == 10
    last = pcs[10]
    refused = last.join("--install", code=code)
    assert refused.returncode == 1
    assert "used up" in refused.stderr
    with pytest.raises(AuthError):
        last.profile()
    # With a code that is good, the broken-off installation is completed.
    last.ok("--install", "--name", "eleventh", code=grid.code("agent"))
    assert (last.profile().machine_id, "eleventh") in agents(grid)
    assert "Nothing to change." in last.ok("--install")


def test_after_an_uninstallation_no_second_code_is_needed(pc: Pc) -> None:
    pc.ok("--install", "--driver", "qemu", code=pc.grid.code("agent"))
    before = pc.profile()
    pc.grid.ok("agent", "uninstall", "--root", str(pc.tree))
    assert not (pc.tree / UNIT).exists()
    pc.ok("--install")
    assert (pc.tree / UNIT).exists()
    assert pc.profile() == before
    assert 'driver = "qemu"' in (pc.tree / HOME / "agent.toml").read_text()
    pc.grid.ok("agent", "uninstall", "--purge", "--root", str(pc.tree))
    assert snapshot(pc.tree) == {}


def test_a_code_of_another_role_installs_no_agent(pc: Pc) -> None:
    refused = pc.join("--install", code=pc.grid.code("worker"))
    assert refused.returncode == 1
    assert "role worker, not an agent" in refused.stderr
    assert not (pc.tree / HOME / "profile.json").exists()
    assert not pc.own_home.exists()
    assert "has joined" in pc.ok("--install", code=pc.grid.code("agent"))


def test_what_would_stop_the_installation_costs_no_code(pc: Pc) -> None:
    code = pc.grid.code("agent")
    home = pc.tree / HOME
    home.mkdir(parents=True)
    home.chmod(0o777)
    refused = pc.join("--install", code=code)
    assert refused.returncode == 1
    assert "may not trust it" in refused.stderr
    home.rmdir()
    pc.ok("--install", code=code)


def test_in_a_script_it_joins_and_tells_the_command_that_installs(pc: Pc) -> None:
    before = agents(pc.grid)
    said = pc.ok(code=pc.grid.code("agent"))
    assert not pc.tree.exists()
    joined = load_profile(pc.own_home)
    (told,) = [line for line in said.splitlines() if "--install" in line]
    words = shlex.split(told.partition(": ")[2])
    assert words[0] == "officegrid"
    assert words[1:3] == ["--home", str(pc.own_home)]
    done = pc.grid.run(*words[1:], home="nobody")
    assert done.returncode == 0, done.stderr
    assert f"moved   {pc.own_home / 'profile.json'}" in done.stdout
    assert pc.profile() == joined, "the same machine: no second code was needed"
    assert not (pc.own_home / "profile.json").exists()
    assert len(agents(pc.grid) - before) == 1


def test_no_install_and_other_roles_only_join(grid: Grid) -> None:
    pc = Pc(grid, "quiet")
    said = pc.ok("--no-install", code=grid.code("agent"))
    assert "--install" not in said
    assert load_profile(pc.own_home).role == "agent"
    said = Pc(grid, "desk").ok(code=grid.code("submitter"))
    assert "service" not in said
    wrong = pc.join("--driver", "qemu", code="x")
    assert wrong.returncode == 2
    assert "Add --install" in wrong.stderr


def test_a_second_join_on_a_desktop_uses_no_code(pc: Pc) -> None:
    pc.ok("--install", code=pc.grid.code("agent"))
    before, code, known = pc.profile(), pc.grid.code("agent"), agents(pc.grid)
    # No home is named: it is this PC that joins.
    here = {"OFFICEGRID_HOME": "", "HOME": str(pc.own_home), "XDG_CONFIG_HOME": ""}
    again = pc.join(code=code, env=here)
    assert again.returncode == 0, again.stderr
    assert f"already as agent {before.name!r} ({before.machine_id})" in again.stdout
    assert pc.profile() == before
    assert agents(pc.grid) == known
    elsewhere = pc.join("--install", url=f"https://localhost:{pc.grid.port}", code=code)
    assert elsewhere.returncode == 1
    assert f"belongs to the grid at {pc.grid.url}" in elsewhere.stderr

    # The code is still good for the one thing that a copied disk needs.
    said = pc.ok("--install", "--anew", code=code)
    assert "a new identity" in said
    assert pc.profile().machine_id != before.machine_id
    assert len(agents(pc.grid) - known) == 1


def test_a_revoked_identity_is_replaced_where_a_code_is_given(pc: Pc) -> None:
    pc.ok("--install", "--driver", "process", code=pc.grid.code("agent"))
    stolen, known = pc.profile(), agents(pc.grid)
    pc.grid.ok("revoke", stolen.machine_id)
    # Without a code there is nothing to replace it with.
    assert "Nothing to change." in pc.ok("--install")
    assert pc.profile() == stolen
    used_up = pc.join("--install", code=pc.grid.code("worker"))
    assert used_up.returncode == 1
    assert pc.profile() == stolen

    said = pc.ok("--install", code=pc.grid.code("agent"))
    assert f"({stolen.machine_id}) is not accepted any more" in said
    mended = pc.profile()
    assert (mended.machine_id, mended.name) in agents(pc.grid) - known
    # The same from the PC itself, without --install.
    pc.grid.ok("revoke", mended.machine_id)
    here = {"OFFICEGRID_HOME": "", "HOME": str(pc.own_home), "XDG_CONFIG_HOME": ""}
    done = pc.join(code=pc.grid.code("agent"), env=here)
    assert done.returncode == 0, done.stderr
    assert f"({mended.machine_id}) is not accepted any more" in done.stdout
    assert pc.profile().machine_id not in (stolen.machine_id, mended.machine_id)
    assert 'driver = "process"' in (pc.tree / HOME / "agent.toml").read_text()
    # And what it has now is left alone.
    again = pc.profile()
    assert "Nothing to change." in pc.ok("--install", code=pc.grid.code("agent"))
    assert pc.profile() == again


def test_a_coordinator_that_is_away_replaces_nothing(tmp_path: Path) -> None:
    grid = Grid(tmp_path / "grid")
    try:
        grid.start()
        pc, code = Pc(grid, "pc"), grid.code("agent", uses=2)
        pc.ok("--install", code=code)
        before = pc.profile()
        grid.coordinator().stop()
        said = pc.ok("--install", code=code)
        assert "could not be asked" in said
        assert "Nothing to change." in said
        assert pc.profile() == before
    finally:
        grid.close()


def test_a_code_counts_more_than_what_an_earlier_join_left(pc: Pc) -> None:
    pc.ok(code=pc.grid.code("agent"))
    left = load_profile(pc.own_home)
    pc.ok("--install", code=pc.grid.code("agent"))
    assert pc.profile().machine_id != left.machine_id
    assert load_profile(pc.own_home) == left, "not this command's to delete"


def test_scripts_get_json(pc: Pc) -> None:
    told = json.loads(pc.ok("--install", "--json", code=pc.grid.code("agent")))
    assert told["machine_id"] == pc.profile().machine_id
    assert told["installed"] is True
    assert any(UNIT in line for line in told["changed"])
    again = json.loads(pc.ok("--install", "--json"))
    assert (again["machine_id"], again["changed"]) == (told["machine_id"], [])


def at_terminal(pc: Pc, code: str, answer: str) -> str:
    """Join at a terminal, and answer the one question; what it showed."""
    command = [sys.executable, "-m", "officegrid", "join", pc.grid.url, "--root", str(pc.tree)]
    main, side = pty.openpty()
    environment = {**pc.grid.environment(pc.own_home), "OFFICEGRID_CODE": code, "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    shown, answered, deadline = b"", False, time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([main], [], [], 1)[0]:
                continue
            try:
                part = os.read(main, 4096)
            except OSError:  # EIO: the other side has ended
                break
            shown += part
            if b"[Y/n]" in shown and not answered:
                os.write(main, answer.encode() + b"\n")
                answered = True
        assert process.wait(30) == 0, shown.decode()
        assert answered, shown.decode()
        return shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(main)


def test_at_a_terminal_it_asks(grid: Grid) -> None:
    no, yes = Pc(grid, "no"), Pc(grid, "yes")
    shown = at_terminal(no, grid.code("agent"), "n")
    assert "Later: " in shown
    assert not no.tree.exists()
    assert load_profile(no.own_home).role == "agent"
    shown = at_terminal(yes, grid.code("agent"), "")
    assert "The agent is installed." in shown
    assert yes.profile().role == "agent"
    assert not (yes.own_home / "profile.json").exists()


@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="gives up root's rights")
def test_without_rights_it_says_the_next_command(grid: Grid) -> None:
    # Not below pytest's folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        _join_without_rights(grid, Path(folder))


def _join_without_rights(grid: Grid, home: Path) -> None:
    code, before = grid.code("agent"), agents(grid)

    def as_anna(*words: str) -> subprocess.CompletedProcess[str]:
        # Imported first: this Python may lie where nobody else can read it.
        script = (
            "import encodings.idna, os, psutil, sys\n"
            "import officegrid.agent.install.machine, officegrid.cli.join\n"
            "from officegrid.cli.main import main\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534); main(sys.argv[1:])"
        )
        return subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60,
            check=False, env={**grid.environment(home), "OFFICEGRID_CODE": code},
        )  # fmt: skip

    refused = as_anna("join", grid.url, "--install")
    assert refused.returncode == 1
    assert "Installing needs root." in refused.stderr
    assert agents(grid) == before
    done = as_anna("join", grid.url)
    assert done.returncode == 0, done.stderr
    told = f"as administrator: sudo officegrid --home {home} join {grid.url} --install"
    assert told in done.stdout
    assert len(agents(grid) - before) == 1
