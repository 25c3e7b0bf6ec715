"""The stand-in says what the real VBoxManage 7.1.8 said: a recording is replayed and compared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from officegrid.testing.vboxmanage.install import StandIn
from officegrid.testing.vboxmanage.store import Home

RECORDING = Path(__file__).resolve().parents[2] / "data" / "vboxmanage-7.1.8.txt"


@dataclass(frozen=True)
class Step:
    line_number: int
    words: list[str]
    keep: str
    """Only lines of stdout that match were recorded; "" means all."""
    stdout: str
    stderr: str
    exit_code: int
    is_call: bool


def read_recording(text: str) -> Iterator[Step]:
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(("$ ", "@ "))]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        command, _, keep = lines[start][2:].partition(" | ")
        parts = {"stdout": "", "stderr": ""}
        exit_code, part = 0, ""
        for line in lines[start + 1 : end]:
            if line in ("[stdout]", "[stderr]"):
                part = line.strip("[]")
            elif match := re.fullmatch(r"\[exit (\d+)\]", line):
                exit_code, part = int(match[1]), ""
            elif part:
                parts[part] += line + "\n"
        yield Step(
            start + 1, shlex.split(command), keep, parts["stdout"], parts["stderr"], exit_code,
            lines[start].startswith("$ "),
        )  # fmt: skip


STEPS = list(read_recording(RECORDING.read_text(encoding="utf-8")))


def alike(text: str, root: Path) -> list[str]:
    """What two runs cannot have in common is made alike: ids, times, places, this PC's hardware."""
    text = text.replace(str(root), "/home/grid")
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "{uuid}", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d[:-]\d\d[:-]\d\d[0-9.-]*Z?", "{time}", text)
    text = re.sub(r"timestamp: \d+", "timestamp: {time}", text)
    text = re.sub(r'(macaddress\d)="\w+"', r'\1="{mac}"', text)
    text = re.sub(
        r"(?m)^(Host time|Processor[^:]*|Memory [a-z]+|Operating [a-z ]+):.*", r"\1", text
    )
    text = re.sub(r"\(the (whole )?usage text.*\)", "(the usage text)", text)
    rows = [row.rstrip() for row in text.splitlines()]
    return [row for row in rows if row and not row.startswith("Processor#")]


class Replay:
    """The machine on which it was recorded: three registries, one after another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.standin = StandIn(root / "standin", version="7.1.8r168469")
        (root / "rescue.iso").write_bytes(b"a rescue CD")
        self.registry = "first"
        self.change_registry("first", "w1")
        assert self.call(["startvm", "w1", "--type", "headless"]) == 0

    def change_registry(self, name: str, machine: str) -> None:
        self.registry = name
        assert (
            self.call(["createvm", "--name", machine, "--ostype", "Debian_64", "--register"]) == 0
        )

    def run(self, words: list[str]) -> tuple[int, str, str]:
        words = [word.replace("/home/grid", str(self.root)) for word in words]
        done = self.standin.run(*words, home=self.root / self.registry, ipc=self.registry)
        return done.returncode, done.stdout, done.stderr

    def call(self, words: list[str]) -> int:
        return self.run(words)[0]

    def act(self, words: list[str]) -> None:
        home = self.root / self.registry
        uuid = Home(home).find(words[1]) if len(words) == 2 else None
        match words[0], uuid:
            case "registry", None:
                self.change_registry(words[1], words[2])
            case "truncate-state", str(found):
                path = self.standin.state_file(home, found)
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            case "delete-state", str(found):
                self.standin.state_file(home, found).unlink()
            case "kill-vm", str(found):
                self.standin.kill_vm(home, found)
            case "terminate-vm", str(found):
                self.standin.terminate_vm(home, found)
            case "kill-service", None:
                self.standin.kill_service(self.registry)
            case _:
                raise ValueError(f"unknown action {words}")


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[Replay]:
    replay = Replay(tmp_path)
    try:
        yield replay
    finally:
        replay.standin.close()


def test_the_stand_in_says_what_virtualbox_said(replay: Replay) -> None:
    assert len(STEPS) > 90, "the recording is cut"
    for step in STEPS:
        if not step.is_call:
            replay.act(step.words)
            continue
        exit_code, stdout, stderr = replay.run(step.words[1:])
        if step.keep:
            stdout = "\n".join(row for row in stdout.splitlines() if re.match(step.keep, row))
        where = f"{RECORDING.name}:{step.line_number}: {' '.join(step.words)}"
        assert exit_code == step.exit_code, f"{where}\n{stdout}{stderr}"
        assert alike(stdout, replay.root) == alike(step.stdout, replay.root), where
        assert alike(stderr, replay.root) == alike(step.stderr, replay.root), where


def test_the_recording_can_tell_a_difference(replay: Replay) -> None:
    replay.standin.set(version="6.1.36r152435")
    step = next(step for step in STEPS if step.words[1:3] == ["createvm", "--name"])
    assert replay.call(step.words[1:]) == 0
    info = next(step for step in STEPS if "--machinereadable" in step.words)
    _, stdout, _ = replay.run(info.words[1:])
    assert alike(stdout, replay.root) != alike(info.stdout, replay.root)
