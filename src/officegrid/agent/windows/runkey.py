"""The registry value that starts the session helper with every logon at this PC."""

from __future__ import annotations

import sys

from officegrid.agent.windows.service_plan import RUN_KEY, RunKeyPlan
from officegrid.core.errors import ForbiddenError, UsageError


def write(plan: RunKeyPlan) -> None:
    """Raises ForbiddenError without administrator rights."""
    if sys.platform != "win32":
        raise UsageError("There is no registry on this system.")
    import winreg

    try:
        with winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, RUN_KEY, 0, _access()) as key:
            winreg.SetValueEx(key, plan.value_name, 0, winreg.REG_SZ, plan.value)
    except PermissionError as error:
        raise _forbidden(error) from None


def read(value_name: str) -> str | None:
    """The command line that is started at logon; None: none of that name."""
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, RUN_KEY, 0, _reading()) as key:
            value, _ = winreg.QueryValueEx(key, value_name)
            return str(value)
    except FileNotFoundError:
        return None


def remove(value_name: str) -> bool:
    """True when there was such a value. Raises ForbiddenError without administrator rights."""
    if sys.platform != "win32":
        return False
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, RUN_KEY, 0, _access()) as key:
            winreg.DeleteValue(key, value_name)
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise _forbidden(error) from None
    return True


def _access() -> int:
    """The 64-bit view, whatever Python we are."""
    if sys.platform != "win32":
        return 0
    import winreg

    return winreg.KEY_SET_VALUE | winreg.KEY_WOW64_64KEY


def _reading() -> int:
    if sys.platform != "win32":
        return 0
    import winreg

    return winreg.KEY_QUERY_VALUE | winreg.KEY_WOW64_64KEY


def _forbidden(error: OSError) -> ForbiddenError:
    return ForbiddenError(
        "Windows does not let you change what starts at logon.",
        str(error),
        "Run this in a terminal that was opened with 'Run as administrator'.",
    )
