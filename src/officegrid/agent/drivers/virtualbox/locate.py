"""Where VBoxManage is, on Windows, Linux and macOS.

On Windows the installer leaves VBOX_MSI_INSTALL_PATH in the environment and InstallDir in the
registry (HKLM\\SOFTWARE\\Oracle\\VirtualBox); services started before the installation do not see
the first, so both are asked.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_LINUX_FOLDERS = ("/usr/bin", "/usr/local/bin", "/usr/lib/virtualbox", "/opt/VirtualBox")
_MAC_FOLDER = "/Applications/VirtualBox.app/Contents/MacOS"


def find_vboxmanage(chosen: str | None, environ: Mapping[str, str] | None = None) -> Path | None:
    """The program, or None. `chosen` is the option `vboxmanage`: a file, used as it is."""
    if chosen:
        path = Path(chosen)
        return path if path.is_file() else None
    environ = os.environ if environ is None else environ
    for path in _candidates(environ):
        if path.is_file():
            return path
    return None


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    program = "VBoxManage.exe" if sys.platform == "win32" else "VBoxManage"
    for variable in ("VBOX_INSTALL_PATH", "VBOX_MSI_INSTALL_PATH"):
        for folder in environ.get(variable, "").split(os.pathsep):
            if folder:
                yield Path(folder) / program
    if sys.platform == "win32":
        installed = _registry_folder()
        if installed:
            yield Path(installed) / program
        for variable in ("ProgramW6432", "ProgramFiles"):
            if environ.get(variable):
                yield Path(environ[variable]) / "Oracle" / "VirtualBox" / program
    elif sys.platform == "darwin":
        yield Path(_MAC_FOLDER) / program
    else:
        for folder in _LINUX_FOLDERS:
            yield Path(folder) / program
    on_path = shutil.which(program, path=environ.get("PATH"))
    if on_path:
        yield Path(on_path)


def _registry_folder() -> str | None:
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(
            winreg.HKEY_LOCAL_MACHINE,
            r"SOFTWARE\Oracle\VirtualBox",
            0,
            winreg.KEY_READ | winreg.KEY_WOW64_64KEY,
        ) as key:
            value, _ = winreg.QueryValueEx(key, "InstallDir")
    except OSError:
        return None
    return str(value)
