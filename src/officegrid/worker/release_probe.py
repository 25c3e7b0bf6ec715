"""Does the coordinator answer here? Run by a release on trial that has not got anywhere, with the
installed program: `python -m officegrid.worker.release_probe HOME`. Exit code 0: it does."""

from __future__ import annotations

import sys
from pathlib import Path

from officegrid.core.errors import OfficeGridError, VersionError
from officegrid.transport.http import Connection
from officegrid.transport.profile import load_profile

WITHIN_S = 20.0


def answers(home: Path) -> bool:
    """Also when it says that this program is too old for it."""
    try:
        profile = load_profile(home)
        with Connection(profile.url, profile.ca_pem, profile.token, retry_s=0.0) as connection:
            connection.call("GET", "/v1/health", timeout_s=WITHIN_S)
    except VersionError:
        return True
    except OfficeGridError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(0 if answers(Path(sys.argv[1])) else 1)
