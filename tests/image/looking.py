"""Looking into a golden guest by a job: a shell script prints what it finds."""

from __future__ import annotations

from pathlib import Path

from acceptance.grid import Grid
from acceptance.projects import write_job

LOOK = r"""
cat >/dev/null
fact() { printf '%s=%s\n' "$1" "$(eval "$2" 2>/dev/null | tr '\n' ' ')"; }
fact user 'id -un'
fact host 'hostname'
fact listens 'ss -Hltnu | grep -v ":68 "'
fact failed 'systemctl --failed --plain --no-legend'
fact state 'systemctl is-system-running'
fact times 'systemd-analyze time | head -1'
fact slow 'systemd-analyze blame | head -8'
fact chain 'systemd-analyze critical-chain --no-pager | head -12'
fact shells 'getent passwd | grep -v "nologin\|/bin/false\|/bin/sync" | cut -d: -f1'
fact release '. /etc/os-release; echo $ID $VERSION_ID'
fact php 'php -r "echo PHP_MAJOR_VERSION;"'
fact extensions 'php -m'
fact python 'python3 -c "import sys; print(sys.version_info[0])"'
fact other_port 'timeout 3 bash -c "</dev/tcp/10.0.2.2/@OTHER@" && echo open'
fact cron 'cat /etc/cron.d/officegrid'
fact worker 'systemctl is-active officegrid-worker.service'
fact machine 'cat /etc/machine-id'
fact clock 'date -u +%s'
fact memory 'free -m | sed -n 2p'
"""


def look(grid: Grid, folder: Path, other_port: int, within_s: float = 120.0) -> dict[str, str]:
    """What the guest that takes this job says of itself."""
    script = LOOK.replace("@OTHER@", str(other_port))
    job_file = write_job(
        folder,
        """
        name = "look"
        run = ["bash", "look.sh"]
        [input]
        path = "in.txt"
        format = "lines"
        [output]
        path = "out.txt"
        format = "lines"
        count = "any"
        [policy]
        record_timeout = "100s"
        """,
        {"look.sh": script, "in.txt": "look\n"},
    )
    job = grid.submit(job_file)
    grid.wait_job(job, within_s=within_s)
    lines = grid.output(job, folder / "got.txt").decode().splitlines()
    return {key: value.strip() for key, _, value in (line.partition("=") for line in lines)}
