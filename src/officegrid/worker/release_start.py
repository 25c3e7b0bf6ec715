"""Starts a release that a worker has fetched, and goes back to the installed program if that does
not work. It lies as `__main__.py` in the release's folder, copied there by the release before.

    python <home>/worker/releases/<digest> worker --slots 2

Standard library only, and nothing of the release before it is known to load. What it was started
with is in OFFICEGRID_RELEASE_START, see `worker.bootstrap`. When it gives up it writes
`ended.json` beside the releases, and becomes the installed program again: same process, same lock.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "OFFICEGRID_RELEASE_START"
TRIAL_VARIABLE = "OFFICEGRID_TRIAL_S"
TRIAL_S = 60.0
"""So long a release may take until the coordinator has answered it."""
PROBE_WITHIN_S = 60.0
MOST_CHARS = 900
INTERRUPTED = 130


class Start:
    """One start of a release. `told`: {"base", the command that starts the installed program,
    "digest", "lock", a file descriptor}."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._base = [str(word) for word in told["base"]]
        self._digest = str(told["digest"])
        self._releases = Path(__file__).parent.parent
        self._lock: int | None = None
        self._returning = threading.Lock()
        if told.get("lock") is not None:
            # A second handle: the lock is held until both are closed.
            self._lock = os.dup(int(told["lock"]))

    def run(self) -> None:
        if self.on_trial():
            threading.Thread(target=self._watch, name="trial", daemon=True).start()
        try:
            # By name: the command line of a release is above the worker of another one.
            importlib.import_module("officegrid.cli.main").main()
        except SystemExit as end:
            self._ended(end)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # One that the coordinator has answered before may still have lost a library.
            if not self.on_trial() and not isinstance(error, ImportError | SyntaxError):
                raise
            traceback.print_exc()
            self.go_back(f"It broke: {type(error).__name__}: {error}")

    def _ended(self, end: SystemExit) -> None:
        if not self.on_trial():
            raise end
        if end.code in (None, 0, INTERRUPTED):
            self._note({"digest": self._digest, "stopped": True})
            raise end
        self.go_back(f"It ended with exit code {end.code}. The worker's log says why.")

    def on_trial(self) -> bool:
        """Has the coordinator not answered this release yet?"""
        try:
            life = json.loads((self._releases / "state.json").read_bytes())
            return bool(life["trial"]["digest"] == self._digest)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _watch(self) -> None:
        """Give up when nothing comes of it, although the coordinator is there. Counted in ticks: a
        computer that was frozen is not blamed on the release."""
        limit_s, waited_s = _trial_s(), 0.0
        while self.on_trial():
            time.sleep(0.5)
            waited_s += 0.5
            if waited_s < limit_s:
                continue
            waited_s = 0.0
            if not self._coordinator_answers():
                _say(f"release {self._digest[:12]} stays on trial: the coordinator is away")
            elif self.on_trial():
                self.go_back(
                    f"Within {limit_s:g} s the coordinator has heard nothing of it, although it "
                    "answers the program that is installed."
                )

    def _coordinator_answers(self) -> bool:
        """As the installed program sees it."""
        command = [sys.executable, "-P", "-m", "officegrid.worker.release_probe"]
        try:
            done = subprocess.run(
                [*command, str(self._releases.parent.parent)], cwd="/", check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=PROBE_WITHIN_S,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0

    def go_back(self, why: str) -> NoReturn:
        """Become the installed program. The other threads end with that, wherever they are."""
        with self._returning:  # never opened again: the first reason counts
            _say(f"release {self._digest[:12]} is given up: {why}")
            self._note({"digest": self._digest, "why": why[:MOST_CHARS]})
            told: dict[str, Any] = {"base": self._base}
            if self._lock is not None:
                os.set_inheritable(self._lock, True)
                told["lock"] = self._lock
            os.environ[VARIABLE] = json.dumps(told)
            os.execv(self._base[0], self._base)

    def _note(self, note: dict[str, Any]) -> None:
        """Where the disk is full it is not written, and the start counts as one in vain."""
        path = self._releases / "ended.json"
        draft = path.with_name(f".ended.{os.getpid()}")
        try:
            draft.write_text(json.dumps(note), encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            _say(f"{path} cannot be written: {error}")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _trial_s() -> float:
    try:
        return max(1.0, float(os.environ.get(TRIAL_VARIABLE, TRIAL_S)))
    except ValueError:
        return TRIAL_S


def main() -> None:
    told = json.loads(os.environ.get(VARIABLE, "{}"))
    if "base" not in told or "digest" not in told:
        sys.exit("This is a part of a worker: start it with `officegrid worker`.")
    Start(told).run()


if __name__ == "__main__":
    main()
