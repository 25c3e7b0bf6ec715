"""The stand-in's VBoxSVC: it is there while VMs run or clients call, and leaves a while after.

Its death is what matters: the sessions are void then, and every VM process of it ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, os.environ["VBOX_STANDIN_SOURCE"])

from officegrid.testing.vboxmanage.store import RESTING, Home, read_json


def main() -> int:
    home = Home(Path(os.environ["VBOX_STANDIN_HOME"]))
    instance = Path(os.environ["VBOX_STANDIN_INSTANCE"])
    idle_s = float(os.environ["VBOX_STANDIN_IDLE_S"])
    while True:
        time.sleep(0.1)
        if not home.folder.exists() or not instance.exists():
            return 0
        with contextlib.suppress(OSError, ValueError), home.locked():
            if int(read_json(instance).get("pid", 0)) not in (os.getpid(), 0):
                return 0
            # A stuck session keeps the real one too.
            sessions = read_json(home.session_file).values()
            busy = any(one.get("state", "poweroff") not in RESTING for one in sessions)
            if not busy and time.time() - instance.stat().st_mtime > idle_s:
                instance.unlink(missing_ok=True)
                return 0


if __name__ == "__main__":
    sys.exit(main())
