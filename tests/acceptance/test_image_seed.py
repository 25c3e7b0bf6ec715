"""`officegrid image seed`: the disk for a VM without an agent, read back as the guest reads it."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from acceptance.grid import Grid, wait_for
from officegrid.core.joincode import format_code
from officegrid.guest import seed as guest_seed
from officegrid.guest.settings import merge
from parts import need

CODE = format_code(b"fifteen bytes!!", b"a fingerprint of thirty-two byte")
URL = "https://grid.example.com:8443"


def run(
    folder: Path, *options: str, code: str = CODE, url: str = URL
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OFFICEGRID")}
    return subprocess.run(
        [sys.executable, "-m", "officegrid", "image", "seed", "--url", url, *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        cwd=folder, env={**kept, "OFFICEGRID_CODE": code},
    )  # fmt: skip


def files_on(disk: Path) -> dict[str, bytes]:
    """By their Rock Ridge and by their Joliet names, which must say the same."""
    found: list[dict[str, bytes]] = []
    iso: Any = pycdlib.PyCdlib()
    iso.open(str(disk))
    try:
        for way in ("rr_path", "joliet_path"):
            files = {}
            for name in ("meta-data", "user-data", "officegrid.json"):
                content = io.BytesIO()
                iso.get_file_from_iso_fp(content, **{way: f"/{name}"})
                files[name] = content.getvalue()
            found.append(files)
    finally:
        iso.close()
    assert found[0] == found[1]
    return found[0]


def test_the_guest_reads_what_was_said(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--name", "pc-1", "--proxy", "http://proxy.example.com:3128", "--ntp",
        "time.example.com", "--allow", "10.1.0.0/16:3306", "--allow", "db.example.com:5432",
        "--slots", "3", "--start", "cron",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert CODE not in done.stdout + done.stderr
    disk = tmp_path / "seed.iso"
    assert disk.stat().st_mode & 0o777 == 0o600, "the code in it is a secret"
    assert guest_seed.volume(disk.read_bytes()[:34816]) == ("iso9660", "CIDATA")
    files = files_on(disk)
    told = guest_seed.parse(files["officegrid.json"])
    assert (told.name, told.url, told.code) == ("pc-1", URL, CODE)
    settings, complaints = merge({"slots": 1}, told.settings)
    assert complaints == []
    assert (settings.slots, settings.start) == (3, "cron")
    assert settings.proxy == "http://proxy.example.com:3128"
    assert settings.ntp == ("time.example.com",)
    assert settings.allow == ("10.1.0.0/16:3306", "db.example.com:5432")
    # What cloud-init would read; JSON is YAML.
    meta = json.loads(files["meta-data"])
    assert meta == {"instance-id": told.instance_id, "local-hostname": "pc-1"}
    assert files["user-data"].startswith(b"#cloud-config\n")


def test_each_disk_is_for_another_machine(tmp_path: Path) -> None:
    names = ("a.iso", "b.iso")
    for name in names:
        assert run(tmp_path, "-o", name).returncode == 0
    first, second = (
        guest_seed.parse(files_on(tmp_path / name)["officegrid.json"]) for name in names
    )
    assert first.instance_id != second.instance_id
    assert first.name != second.name
    assert first.settings == {}, "what is not said stays as the image has it"


def test_another_reader_of_discs_sees_the_same(tmp_path: Path) -> None:
    need("isoinfo")
    assert run(tmp_path, "--name", "pc-1").returncode == 0

    def isoinfo(*words: str) -> str:
        done = subprocess.run(
            ["isoinfo", "-i", str(tmp_path / "seed.iso"), *words],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        return done.stdout

    assert "Volume id: CIDATA" in isoinfo("-d")
    for names in ("-R", "-J"):
        listed = {line.removeprefix("/") for line in isoinfo(names, "-f").split()}
        assert listed == {"meta-data", "user-data", "officegrid.json"}
        assert json.loads(isoinfo(names, "-x", "/officegrid.json"))["code"] == CODE


@pytest.mark.parametrize(("options", "code", "url", "said"), [
    (("--proxy", "proxy:3128"), CODE, URL, "'proxy'"),
    (("--allow", "db.example.com"), CODE, URL, "'allow'"),
    (("--slots", "0"), CODE, URL, "'slots'"),
    ((), CODE[:-1], URL, "join code"),
    ((), CODE, "http://grid", "plain http"),
    ((), CODE, "https://127.0.0.1:8443", "means the VM itself"),
])  # fmt: skip
def test_what_a_vm_could_not_use_is_refused(
    tmp_path: Path, options: tuple[str, ...], code: str, url: str, said: str
) -> None:
    done = run(tmp_path, *options, code=code, url=url)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_there_is_kept(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    before = (tmp_path / "seed.iso").read_bytes()
    refused = run(tmp_path)
    assert refused.returncode == 1
    assert "there already" in refused.stderr
    assert (tmp_path / "seed.iso").read_bytes() == before
    nowhere = run(tmp_path, "-o", "no/such/folder.iso")
    assert nowhere.returncode == 1
    assert "cannot be written" in nowhere.stderr


def test_the_code_can_be_typed_and_is_not_shown(tmp_path: Path) -> None:
    main, side = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OFFICEGRID")}
    process = subprocess.Popen(
        [sys.executable, "-m", "officegrid", "image", "seed", "--url", URL],
        stdin=side, stdout=side, stderr=side, cwd=tmp_path, env=kept, start_new_session=True,
    )  # fmt: skip
    os.close(side)
    try:
        shown = b""
        while b"Join code:" not in shown:
            shown += os.read(main, 4096)
        os.write(main, CODE.encode() + b"\n")
        assert process.wait(30) == 0
        while True:
            try:
                shown += os.read(main, 4096)
            except OSError:  # EIO: the other side has ended
                break
        assert CODE.encode() not in shown
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert guest_seed.parse(files_on(tmp_path / "seed.iso")["officegrid.json"]).code == CODE


def test_with_what_is_on_the_disk_a_worker_joins(grid: Grid, tmp_path: Path) -> None:
    # By a name of this computer that is not its loopback address, as a VM would use.
    url = f"https://grid.test:{grid.port}"
    done = run(tmp_path, "--name", "pc-1", code=grid.code("worker"), url=url)
    assert done.returncode == 0, done.stderr
    told = guest_seed.parse(files_on(tmp_path / "seed.iso")["officegrid.json"])
    # This test has no name service: the same address, the disk's code and name.
    grid.ok("join", grid.url, "--code", told.code, "--name", told.name, home="vm")
    (worker,) = [m for m in grid.read("machines") if m["role"] == "worker"]
    assert worker["name"] == "pc-1"
    again = grid.run("join", grid.url, "--code", told.code, home="second")
    assert again.returncode == 1, "the disk's code was good for one machine"
    running = grid.begin("vm", "worker", home="vm")
    wait_for(lambda: "worker.started" in running.text(), "the worker starts")
