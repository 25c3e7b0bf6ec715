"""Addresses of code in git: `git+https://host/repo.git@branch#folder`.

Such an address ends up on the command line of a program, in a path, and before people. So only
what is plainly an address passes, and its password is never part of what is shown.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

from pydantic import Field, model_validator

from officegrid.core.errors import UsageError
from officegrid.wire.data import Message

PREFIX = "git+"
_URL = re.compile(
    r"(?P<scheme>https|ssh|file)://"
    r"(?:(?P<user>[A-Za-z0-9._~%+][A-Za-z0-9._~%+=,-]*)(?::(?P<password>[A-Za-z0-9._~%+=,!$-]*))?@)?"
    r"(?P<host>(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)?"
    r"(?P<path>/[A-Za-z0-9._~%+=,/-]+)"
)
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_READABLE = 60  # characters of a name before its mark


class GitAddress(Message):
    """`ref`: a branch, a tag or a whole commit id; empty: the default branch. `folder`: below the
    top of the repository; empty: all of it."""

    url: str = Field(max_length=1000, repr=False)
    ref: str = Field(default="", max_length=200)
    folder: str = Field(default="", max_length=500)

    @model_validator(mode="after")
    def _plain(self) -> GitAddress:
        problem = _url_problem(self.url) or _ref_problem(self.ref) or _folder_problem(self.folder)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def bare_url(self) -> str:
        """Without password, and but for ssh without user: what git is called with."""
        found = _parts(self.url)
        user = f"{found['user']}@" if found["user"] and self.scheme == "ssh" else ""
        return f"{self.scheme}://{user}{(found['host'] or '').lower()}{found['path']}"

    @property
    def credentials(self) -> tuple[str, str] | None:
        """(user, password) as written in the address, decoded; None if there are none."""
        found = _parts(self.url)
        if not found["user"] or self.scheme != "https":
            return None
        return unquote(found["user"]), unquote(found["password"] or "")

    @property
    def commit(self) -> str | None:
        """The commit, if that is what `ref` names."""
        return self.ref if _COMMIT.fullmatch(self.ref) else None

    @property
    def shown(self) -> str:
        """For people and logs: without credentials."""
        ref, folder = self.ref and f"@{self.ref}", self.folder and f"#{self.folder}"
        return f"{self.bare_url}{ref}{folder}"

    @property
    def name(self) -> str:
        """The name that its versions get: to be read by people, the same for ever."""
        repository = self.bare_url.rstrip("/").rpartition("/")[2].removesuffix(".git")
        words = "-".join(word for word in (repository, self.ref, self.folder) if word)
        readable = re.sub(r"[^A-Za-z0-9._+]+", "-", words).strip("-._+")[:_READABLE]
        mark = hashlib.sha256(self.shown.encode()).hexdigest()[:8]
        return f"{readable or 'git'}-{mark}"

    def allowed_by(self, prefixes: list[str]) -> bool:
        """Does the address begin with one of these? Whole names count: `https://host/team` allows
        `https://host/team/x.git` and not `https://host/teamwork.git`."""
        for prefix in prefixes:
            head, rest = self.bare_url[: len(prefix)], self.bare_url[len(prefix) :]
            if prefix and head == prefix and (prefix.endswith("/") or rest[:1] in ("", "/")):
                return True
        return False


def parse_git_address(text: str) -> GitAddress | None:
    """`git+URL[@REF][#FOLDER]`; None for anything that does not begin like that.

    Raises UsageError."""
    if not text.startswith(PREFIX):
        return None
    address, _, folder = text.removeprefix(PREFIX).partition("#")
    head, slashes, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    path, at, ref = path.rpartition("@") if "@" in path else (path, "", "")
    problem = "a branch, tag or commit follows the @" if at and not ref else ""
    url = f"{head}{slashes}{host}{slash}{path}"
    problem = problem or _url_problem(url) or _ref_problem(ref) or _folder_problem(folder)
    if problem:
        raise UsageError(
            "code names no git repository that can be used.",
            f"{problem[0].upper()}{problem[1:]}.",
            'Write it like "git+https://host/repo.git@branch" or '
            '"git+ssh://git@host/repo.git@tag"; for a folder in it, add "#folder".',
        )
    return GitAddress(url=url, ref=ref, folder=folder.strip("/"))


def _parts(url: str) -> dict[str, str | None]:
    found = _URL.fullmatch(url)
    assert found is not None  # checked when the address was made
    return found.groupdict()


# What is wrong is said without the address: it may hold a password.


def _url_problem(url: str) -> str:
    found = _URL.fullmatch(url)
    if found is None:
        return "an address begins with https://, ssh:// or file:// and has no unusual characters"
    scheme, host, path = found["scheme"], found["host"], found["path"]
    if (host is None) != (scheme == "file"):
        return "a file:// address has three slashes" if host else f"{scheme}:// needs a host"
    if found["password"] is not None and scheme != "https":
        return f"{scheme}:// addresses have no password; use a key"
    if found["user"] is not None and scheme == "file":
        return "file:// addresses have no user"
    if any(part in ("..", ".") for part in unquote(path).split("/")):
        return "the path goes up"
    return ""


def _ref_problem(ref: str) -> str:
    if not ref:
        return ""
    plain = _REF.fullmatch(ref) and ".." not in ref and "//" not in ref
    if not plain or ref.endswith(("/", ".", ".lock")):
        return f"{ref[:60]!r} is no name of a branch or tag"
    return ""


def _folder_problem(folder: str) -> str:
    parts = folder.strip("/").split("/")
    if folder and (any(part in ("", ".", "..", ".git") for part in parts) or "\0" in folder):
        return f"{folder[:60]!r} is no folder in a repository"
    return ""
