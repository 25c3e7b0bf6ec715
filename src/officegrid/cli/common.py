"""What the commands share: the connection, the --json option, exit codes."""

from __future__ import annotations

import click

from officegrid.transport.http import Connection
from officegrid.transport.profile import load_profile
from officegrid.wire.jobs import JobView

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def connect(retry_s: float = 10.0) -> Connection:
    """A connection with this machine's credentials. Raises AuthError when it has not joined."""
    profile = load_profile()
    return Connection(profile.url, profile.ca_pem, profile.token, retry_s=retry_s)


def job_exit_code(view: JobView) -> int:
    """0 done, 3 finished with quarantined records, 1 anything else."""
    if view.state != "finished" or (view.delivery and view.delivery.state == "failed"):
        return 1
    return 3 if view.quarantined else 0
