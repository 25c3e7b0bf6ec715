"""How the worker is started: always on, as a service, or every few minutes by cron.

The service is enabled in the image and starts once the flag file is there. Cron's table is
written at each boot: whichever way is not chosen is taken away.
"""

from __future__ import annotations

import os

from officegrid.guest import programs
from officegrid.guest.place import Place, make_folder, remove, write_file
from officegrid.guest.settings import Settings

SERVICE = "officegrid-worker.service"
WORKER = "/usr/bin/officegrid worker"
ONCE = "officegrid-worker-once"


def worker_env(place: Place, settings: Settings, hardware_id: str) -> str:
    """The worker's environment, for systemd's EnvironmentFile and for a shell alike: no value has
    a character that either reads in its own way. Holds no secret."""
    values = {
        "OFFICEGRID_HOME": place.home,
        "OFFICEGRID_SEED": place.join,
        "OFFICEGRID_HARDWARE_ID": hardware_id,
        "OFFICEGRID_SLOTS": str(settings.slots),
    }
    if settings.proxy:
        values["HTTPS_PROXY"] = settings.proxy
    if settings.peers_port:
        values["OFFICEGRID_PEERS_PORT"] = str(settings.peers_port)
    return "".join(f"{key}={value}\n" for key, value in values.items())


def cron_table(place: Place, settings: Settings) -> str:
    """crontab(5), with the user's column of /etc/cron.d. That a run is still going is normal: the
    new one says so in one line and ends with 0."""
    to_journal = "" if settings.init == "small" else "systemd-cat -t officegrid-worker "
    command = f"set -a; . {place.worker_env}; exec {to_journal}{WORKER} --drain"
    return (
        "SHELL=/bin/sh\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        f"*/{settings.every_minutes} * * * * {settings.user} {command}\n"
    )


def prepare(place: Place, settings: Settings, hardware_id: str) -> None:
    """Write the files; nothing is started yet. Raises UnavailableError."""
    write_file(place.worker_env, worker_env(place, settings, hardware_id), 0o644)
    if settings.start == "cron":
        remove(place.start_service)
        make_folder(os.path.dirname(place.cron), 0o755)
        write_file(place.cron, cron_table(place, settings), 0o644)
    else:
        remove(place.cron)
        write_file(place.start_service, "", 0o644)


def begin(place: Place, settings: Settings, *, late: bool) -> None:
    """Start what systemd does not start by itself: the first run under cron, so that nobody waits
    for the minute; or the service, when the boot went by it (`late`). Raises UnavailableError.
    """
    if settings.init != "systemd":
        return  # the small guest's init looks at the files
    if settings.start == "cron":
        programs.run(
            "systemd-run", "--quiet", "--no-block", "--collect", f"--unit={ONCE}",
            f"--uid={settings.user}", f"--property=EnvironmentFile={place.worker_env}",
            "--property=StandardOutput=journal+console", "--property=NoNewPrivileges=yes",
            *WORKER.split(), "--drain",
        )  # fmt: skip
    elif late:
        programs.run("systemctl", "start", "--no-block", SERVICE)
