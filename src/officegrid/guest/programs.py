"""Running the few programs of the system that the guest needs.

`subprocess` is imported at the first use: the guest is ready before it needs any of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from officegrid.core.errors import UnavailableError

TIMEOUT_S = 30.0


def has(program: str) -> bool:
    """Is it on the PATH? (`shutil.which` would bring every packer of the standard library.)"""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in folders)


def run(*argv: str, given: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """What the program wrote; `given` is its input.

    Raises UnavailableError when it is not there, fails, or takes longer than `timeout_s`.
    """
    import subprocess

    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, text=True, errors="replace", check=False,
            timeout=timeout_s,
        )  # fmt: skip
    except OSError as error:
        raise _failed(argv, f"{error.strerror or error}.") from None
    except subprocess.TimeoutExpired:
        raise _failed(argv, f"It took longer than {timeout_s:g} s.") from None
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise _failed(argv, said[:500])
    return done.stdout


def _failed(argv: Sequence[str], why: str) -> UnavailableError:
    fix = "The image may be damaged: make the virtual machine anew from it."
    return UnavailableError(f"`{' '.join(argv)[:200]}` failed in the guest.", why, fix)
