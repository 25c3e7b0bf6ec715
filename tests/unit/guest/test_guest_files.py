"""The files of the image's root fit each other, the code, and the programs that read them."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest

from officegrid.guest.place import Place
from officegrid.guest.start import SERVICE
from parts import need

FILES = Path(__file__).resolve().parents[3] / "src/officegrid/image/files"
UNITS = FILES / "usr/lib/systemd/system"
PLACE = Place()


def unit(path: Path) -> configparser.RawConfigParser:
    """A unit file whose keys stand once each."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return parser


def test_units_are_as_the_guest_program_expects() -> None:
    worker = unit(UNITS / SERVICE)
    assert worker["Unit"]["ConditionPathExists"] == PLACE.start_service
    assert worker["Unit"]["After"] == "officegrid-guest.service"
    assert worker["Service"]["EnvironmentFile"] == PLACE.worker_env
    assert worker["Service"]["ReadWritePaths"].split() == [PLACE.home, PLACE.run_worker]
    assert worker["Service"]["Restart"] == "always"
    assert float(worker["Service"]["RestartSec"]) <= 2
    assert worker["Service"]["User"] == "grid"
    guest = unit(UNITS / "officegrid-guest.service")
    assert guest["Service"]["Type"] == "notify"
    assert "nftables.service" in guest["Unit"]["Requires"]
    chrony = unit(FILES / "etc/systemd/system/chrony.service.d/officegrid.conf")
    assert chrony["Unit"]["ConditionPathExists"] == PLACE.chrony_sources
    sources = (FILES / "etc/chrony/chrony.conf").read_text()
    assert f"sourcedir {Path(PLACE.chrony_sources).parent}" in sources


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    need("systemd-analyze")
    for path in UNITS.glob("*.service"):
        # In the image the wrapper is in place; here it is not.
        text = path.read_text().replace("/usr/bin/officegrid worker", "/bin/true")
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.glob("*.service"))],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "officegrid" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("name", ["enabled.txt", "disabled.txt", "masked.txt"])
def test_lists_name_units(name: str) -> None:
    lines = (FILES / name).read_text().splitlines()
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert re.fullmatch(r"[a-z0-9@_-]+\.(service|timer|mount|automount|socket)", line), line


def test_no_unit_is_in_two_lists() -> None:
    names = ("enabled", "disabled", "masked")
    enabled, disabled, masked = (set((FILES / f"{n}.txt").read_text().split()) for n in names)
    assert not enabled & disabled
    assert not enabled & masked
    assert not disabled & masked
    assert {path.name for path in UNITS.iterdir()} <= enabled


def test_the_command_runs_the_image_s_own_packages(tmp_path: Path) -> None:
    wrapper = FILES / "usr/bin/officegrid"
    assert os.access(wrapper, os.X_OK)
    package = tmp_path / "lib/officegrid"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text("import json, sys; print(sys.argv[1:], __file__)")
    # What a job has laid into the folder that it runs in.
    jobs = tmp_path / "job"
    (jobs / "officegrid").mkdir(parents=True)
    for name in ("officegrid/__init__.py", "officegrid/__main__.py", "runpy.py", "json.py"):
        (jobs / name).write_text("print('not ours')")
    copy = tmp_path / "wrapper"
    copy.write_text(wrapper.read_text().replace("/opt/officegrid/lib", str(tmp_path / "lib")))
    done = subprocess.run(["sh", str(copy), "worker", "a b"], capture_output=True, text=True,
                          check=True, cwd=jobs)  # fmt: skip
    assert done.stdout.startswith("['worker', 'a b']")
    assert str(package) in done.stdout
