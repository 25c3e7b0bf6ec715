"""Real repositories for the tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_WHO = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "Ann"), ("EMAIL", "ann@example.org"))
}


class Repository:
    """A repository with a working tree, made in `folder`; its first branch is `main`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def git(self, *arguments: str, given: bytes | None = None) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments], input=given, capture_output=True,
            check=False, timeout=60, env={**os.environ, **_WHO, "GIT_CONFIG_GLOBAL": os.devnull},
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout.decode().strip()

    def commit(self, **files: str | bytes) -> str:
        """Write these files (`__` in a name stands for a dot); the commit that has them."""
        for name, content in files.items():
            path = self.folder / name.replace("__", ".")
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.commit_all()

    def commit_all(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "more")
        return self.git("rev-parse", "HEAD")

    def commit_tree(self, *entries: str) -> str:
        """A commit of a tree with these lines of `git mktree`, which no work tree could have."""
        listed = "".join(f"{entry}\n" for entry in entries).encode()
        tree = self.git("mktree", "--missing", given=listed)
        made = self.git("commit-tree", tree, "-m", "odd")
        self.git("update-ref", "refs/heads/main", made)
        return made

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", given=content)
