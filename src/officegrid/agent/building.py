"""What one set of settings makes, before it is watched with: a driver for the VM and the sensors.

Everything that can be wrong with settings shows here, while the watch before is still untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from officegrid.agent.channel.hub import Hub
from officegrid.agent.config import AgentConfig, keep_config, kept_config, load_config
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.files import Folders, read_json, write_json
from officegrid.agent.log import get_logger
from officegrid.agent.registry import Choice, Nothing, choose
from officegrid.agent.sensors.combine import Sensors, open_sensors
from officegrid.agent.watch import vm_settings
from officegrid.core.errors import OfficeGridError, UnavailableError, UsageError

log = get_logger("agent")

DRIVER_FILE = "driver.json"
"""In the agent's folder: {"driver": the one that handled the VM last}."""


@dataclass(slots=True)
class Built:
    """See the module."""

    config: AgentConfig
    settings: VmSettings
    choice: Choice
    sessions: Sensors

    def close(self) -> None:
        """Give up what was opened; the VM stays as it is."""
        self.sessions.close()
        close_driver = getattr(self.choice.driver, "close", None)
        if close_driver is not None:
            close_driver()


def build(config: AgentConfig, folders: Folders, hub: Hub, image: Path | None = None) -> Built:
    """`image`: the one to make the VM from where the settings name none.

    Raises UsageError for settings that are wrong, UnavailableError for a folder that cannot be
    used; then nothing is open."""
    try:
        settings = vm_settings(config, folders, image)
    except OSError as error:
        raise UnavailableError(
            f"The agent's folder {folders.vm} cannot be used.",
            error.strerror or str(error),
            "Make it writable, or set OFFICEGRID_HOME to one that is.",
        ) from None
    sessions = open_sensors(config.sensors.kind, config.sensors.file, hub)
    try:
        choice = choose(config.vm.driver, settings, last_driver(folders))
    except OfficeGridError:
        sessions.close()
        raise
    return Built(config, settings, choice, sessions)


def first_settings(folders: Folders) -> tuple[AgentConfig, str]:
    """(settings, what is wrong with agent.toml). A VM of the last agent may be running: with
    settings that cannot be read it is watched by those it was started with. Raises UsageError
    where there are none."""
    try:
        return load_config(folders.config), ""
    except UsageError as error:
        kept = kept_config(folders.settings)
        if kept is None:
            raise
        log.error("settings_refused", what=error.what, why=error.why)
        return kept, f"{error.what} {error.why} The last good settings are used."


def last_driver(folders: Folders) -> str:
    """Which driver handled the VM last, and may hold one now; empty if none ever did."""
    return str((read_json(folders.agent / DRIVER_FILE) or {}).get("driver", ""))


def keep(built: Built, folders: Folders) -> None:
    """Remember what the agent works with from now on, for its next life."""
    try:
        keep_config(built.config, folders.settings)
        if not isinstance(built.choice.driver, Nothing):
            write_json(folders.agent / DRIVER_FILE, {"driver": built.choice.driver.name})
    except OSError as error:
        log.warning("settings_not_kept", why=error.strerror or error)
