"""The stand-in's command line: `--modes FILE -- ARGUMENTS`, as powershell.exe from there on.

`-Command -` reads standard input line by line and runs each line as soon as it is complete;
`-Command SCRIPT` runs one script. Errors that no script catches go to standard error, as text.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from officegrid.testing.hyperv.basics import Basics, Output
from officegrid.testing.hyperv.cmdlets import Machines
from officegrid.testing.hyperv.evaluator import Evaluator
from officegrid.testing.hyperv.host import Host
from officegrid.testing.hyperv.modes import load_modes
from officegrid.testing.hyperv.power import Power
from officegrid.testing.hyperv.values import Ended, PsError

_SWITCHES = ("-nologo", "-noprofile", "-noninteractive")


def main(arguments: list[str]) -> int:
    modes_file = Path(arguments[arguments.index("--modes") + 1]).absolute()
    words = arguments[arguments.index("--") + 1 :]
    script = _script(words)
    modes = load_modes(modes_file)
    # Counted like a cmdlet, so that a test can tell how often PowerShell was started.
    Host(modes, modes_file).planned("session" if script == "-" else "one-shot")
    time.sleep(modes.start_s)
    if modes.bom:
        sys.stdout.buffer.write(b"\xef\xbb\xbf")
    if modes.noise:
        sys.stdout.buffer.write(modes.noise.encode("utf-8"))
    try:
        if script != "-":
            return _run(modes_file, script)
        if not modes.sessions:
            return 1
        for line in iter(sys.stdin.buffer.readline, b""):
            if line.strip():
                _run(modes_file, line.decode("ascii"))
    except Ended:
        return 1
    return 0


def _script(words: list[str]) -> str:
    """Refuses what powershell.exe does not know, so that a misspelt option is seen."""
    at = 0
    while words[at].lower() in (*_SWITCHES, "-executionpolicy"):
        at += 2 if words[at].lower() == "-executionpolicy" else 1
    if words[at].lower() != "-command" or len(words) != at + 2:
        raise SystemExit(f"the stand-in does not know {words[at]}")
    return words[at + 1]


def _run(modes_file: Path, script: str) -> int:
    """The modes are read for each script: tests change them while a session is open."""
    modes = load_modes(modes_file)
    host = Host(modes, modes_file)
    output = Output(modes.crlf)
    basics = Basics(host, output)
    cmdlets = {**basics.signatures()}
    if modes.module:
        cmdlets |= {**Machines(host).signatures(), **Power(host).signatures()}
    shell = Evaluator(cmdlets, {}, basics.globals())
    shell.types = basics.types(shell)
    try:
        for value in shell.run(script):
            output.line(value)
    except PsError as error:
        sys.stderr.write(f"{error.message}\n    + {error.category}: {error.error_id}\n")
        sys.stderr.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
