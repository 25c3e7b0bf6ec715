"""The golden image with a worker that cron starts: beside a run, after a leap of the clock, again.

A file of its own: it mostly waits for minutes to pass, while the other tests of the image compute.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from acceptance.grid import Grid
from acceptance.projects import double_job, expected_output
from image.golden import BOOTS_WITHIN_S, Golden, survives_a_crash_of_its_worker, workers_of
from image.looking import look

pytestmark = pytest.mark.timeout(1500)


def test_cron_starts_the_worker_again_and_again(image: Path, grid: Grid, tmp_path: Path) -> None:
    guest = Golden.make("pc-3", tmp_path, grid, image, {"start": "cron", "every_minutes": 1})
    try:
        guest.start()
        guest.says("GRID-READY")
        facts = look(grid, tmp_path / "look", 9, within_s=BOOTS_WITHIN_S)
        assert "officegrid" in facts["cron"]
        assert "*/1 * * * * grid" in facts["cron"]
        assert facts["worker"] != "active"
        # A run that outlasts a minute: cron fires beside it, and finds the work in hand.
        project = double_job(tmp_path / "long", records=320, pause_s=0.2, unit_seconds=5)
        job = grid.submit(project)
        grid.wait_done(job, 10, within_s=150)
        # The clock leaps: the VM is saved for a while, and goes on.
        guest.driver.save()
        threading.Event().wait(15)
        guest.start()
        grid.wait_job(job, within_s=500)
        assert grid.output(job, tmp_path / "long.csv") == expected_output(project).output
        # Nothing is left: the worker has ended. The next one comes by itself; it is killed by its
        # own job, and the one after that does the rest.
        survives_a_crash_of_its_worker(grid, tmp_path)
        assert [worker["name"] for worker in workers_of(grid)] == ["pc-3"]
    finally:
        guest.close()
