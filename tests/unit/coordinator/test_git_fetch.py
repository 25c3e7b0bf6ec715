"""Code from git: addresses that pass, and real repositories that move, break and attack."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from officegrid.bundles.pack import unpack_bundle
from officegrid.coordinator import gitrun
from officegrid.coordinator.gitfetch import Repositories
from officegrid.core.errors import (
    InputError,
    LimitError,
    NotFoundError,
    OfficeGridError,
    UnavailableError,
    UsageError,
)
from officegrid.wire.catalogue import NAME_PATTERN
from officegrid.wire.gitref import GitAddress, parse_git_address
from parts import need, without
from unit.coordinator.git_https import serving
from unit.coordinator.git_kit import Repository

# --- addresses


def parsed(text: str) -> GitAddress:
    found = parse_git_address(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "url", "ref", "folder"),
    [
        ("git+https://h.org/a/b.git@main", "https://h.org/a/b.git", "main", ""),
        ("git+https://h.org/a/b.git", "https://h.org/a/b.git", "", ""),
        ("git+https://h.org:8443/b@v1.2#sub/dir/", "https://h.org:8443/b", "v1.2", "sub/dir"),
        ("git+ssh://git@h.org/a.git@feature/x", "ssh://git@h.org/a.git", "feature/x", ""),
        ("git+https://bob:p%40ss@h.org/a.git@m", "https://bob:p%40ss@h.org/a.git", "m", ""),
        ("git+file:///srv/a.git@m#ü x", "file:///srv/a.git", "m", "ü x"),
        ("git+https://[::1]:99/a@m", "https://[::1]:99/a", "m", ""),
    ],
)
def test_addresses_are_read(text: str, url: str, ref: str, folder: str) -> None:
    found = parsed(text)
    assert (found.url, found.ref, found.folder) == (url, ref, folder)


@pytest.mark.parametrize(
    "text",
    [
        "git+http://h.org/a@m", "git+ext::sh -c id", "git+https://h.org", "git+https:///a@m",
        "git+ssh://-oProxyCommand=id/a@m", "git+ssh://-x@h/a@m", "git+ssh://a:b@h.org/a@m",
        "git+https://h.org/a@--upload-pack=id", "git+https://h.org/a@-x", "git+https://h.org/a@",
        "git+https://h.org/a@a..b", "git+https://h.org/a@a b", "git+https://h.org/a@x:y",
        "git+https://h.org/../a@m", "git+file:///srv/%2e%2e/a@m", "git+file://h/srv@m",
        "git+https://h.org/a\n@m", "git+https://h.org/a?x=y@m", "git+file://-x/a@m",
        "git+https://h.org/a@m#../x", "git+https://h.org/a@m#a//b", "git+https://h.org/a@m#.git",
        "git+git@h.org:a.git@m", "git+https://h.org\\@e.org/a@m",
    ],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError, match="no git repository"):
        parse_git_address(text)


def test_the_coordinator_checks_what_a_client_sends_by_itself() -> None:
    for values in ({"url": "ext::id"}, {"url": "https://h/a", "ref": "-x"},
                   {"url": "https://h/a", "folder": "../x"}):  # fmt: skip
        with pytest.raises(ValidationError):
            GitAddress.model_validate(values)


def test_a_password_is_never_shown() -> None:
    address = parsed("git+https://bob:s3cret@h.org/a.git@main#x")
    assert address.credentials == ("bob", "s3cret")
    for shown in (address.shown, address.bare_url, address.name, repr(address), str(address)):
        assert "s3cret" not in shown
        assert "bob" not in shown
    assert "s3cret" not in " ".join(f"{k} {v}" for k, v in gitrun.environment(address).items())
    with pytest.raises(UsageError) as refused:
        parse_git_address("git+ssh://bob:s3cret@h.org/a.git")
    assert "s3cret" not in str(refused.value)
    assert "no password" in str(refused.value)


def test_names_are_readable_stable_and_fit() -> None:
    one = parsed("git+https://h.org/team/tools.git@feature/x#ü/sub")
    assert one.name.startswith("tools-feature-x-sub-")
    assert one.name == parsed("git+https://u:p@H.org/team/tools.git@feature/x#ü/sub").name
    others = ["git+https://h.org/team/tools.git@feature-x#ü/sub", "git+https://i.org/tools.git",
              "git+file:///---/___", "git+https://h.org/" + "x" * 500]  # fmt: skip
    names = {one.name, *(parsed(text).name for text in others)}
    assert len(names) == 5
    assert all(re.fullmatch(NAME_PATTERN, name) and len(name) < 100 for name in names)


@pytest.mark.parametrize(
    ("text", "prefix", "allowed"),
    [
        ("git+https://h.org/team/a.git@m", "https://h.org/", True),
        ("git+https://h.org/team/a.git@m", "https://h.org", True),
        ("git+https://h.org/team/a.git@m", "https://h.org/team", True),
        ("git+https://h.org/teamwork.git@m", "https://h.org/team", False),
        ("git+https://h.org.evil.org/a@m", "https://h.org", False),
        ("git+https://h.org:x@evil.org/a@m", "https://h.org", False),
        ("git+https://bob:x@h.org/a@m", "https://h.org/", True),
        ("git+ssh://git@h.org/a@m", "ssh://git@h.org/", True),
        ("git+ssh://root@h.org/a@m", "ssh://git@h.org/", False),
        ("git+file:///srv/git/a@m", "file:///srv/git/", True),
        ("git+file:///srv/git2/a@m", "file:///srv/git", False),
        ("git+https://h.org/a@m", "", False),
    ],
)
def test_addresses_are_allowed_by_their_beginning(text: str, prefix: str, allowed: bool) -> None:
    assert parsed(text).allowed_by([prefix]) is allowed
    assert parsed(text).allowed_by([]) is False


# --- repositories


@pytest.fixture
def origin(tmp_path: Path) -> Repository:
    need("git")
    made = Repository(tmp_path / "origin")
    made.commit(program__py="one = 1\n")
    return made


@pytest.fixture
def repositories(tmp_path: Path) -> Repositories:
    return Repositories(tmp_path / "git", most_fetched_bytes=4_000_000, most_bytes=100_000)


def at(origin: Repository, ref: str = "main", folder: str = "") -> GitAddress:
    return GitAddress(url=origin.url, ref=ref, folder=folder)


def content(repositories: Repositories, address: GitAddress, tmp_path: Path) -> dict[str, str]:
    """Path → text, or where a link leads, of what workers would get."""
    target = tmp_path / f"unpacked{len(list(tmp_path.iterdir()))}"
    unpack_bundle(repositories.bundle_of(address)[1].payload, target)
    return {
        path.relative_to(target).as_posix():
            f"→ {os.readlink(path)}" if path.is_symlink() else path.read_text()
        for path in target.rglob("*") if not path.is_dir() or path.is_symlink()
    }  # fmt: skip


def test_a_branch_that_moves_or_is_forced_back_is_followed(
    origin: Repository, repositories: Repositories, tmp_path: Path
) -> None:
    first = origin.git("rev-parse", "HEAD")
    assert repositories.commit_of(at(origin)) == first
    one = repositories.bundle_of(at(origin))
    assert one[0] == first
    second = origin.commit(program__py="two = 2\n")
    assert repositories.commit_of(at(origin)) == second
    assert content(repositories, at(origin), tmp_path) == {"program.py": "two = 2\n"}
    origin.git("reset", "--quiet", "--hard", first)
    forced = origin.commit(program__py="three = 3\n")
    assert repositories.commit_of(at(origin)) == forced
    assert content(repositories, at(origin), tmp_path) == {"program.py": "three = 3\n"}
    assert repositories.bundle_of(at(origin, first))[1].sha256 == one[1].sha256


def test_tags_commits_folders_and_the_default_branch(
    origin: Repository, repositories: Repositories, tmp_path: Path
) -> None:
    (origin.folder / "sub").mkdir()
    (origin.folder / "sub/run.sh").write_text("#!/bin/sh\n")
    (origin.folder / "sub/run.sh").chmod(0o755)
    os.symlink("../program.py", origin.folder / "sub/link")
    (origin.folder / ".gitattributes").write_text("* text eol=crlf\nprogram.py export-ignore\n")
    tagged = origin.commit_all()
    origin.git("tag", "--annotate", "--message", "x", "v1")
    origin.git("tag", "plain")
    origin.git("branch", "v2")
    newer = origin.commit(program__py="new = 1\n")
    origin.git("tag", "v2")
    for ref, expected in (("v1", tagged), ("plain", tagged), ("v2", tagged), ("", newer),
                          (tagged, tagged)):  # fmt: skip
        assert repositories.commit_of(at(origin, ref)) == expected
        assert repositories.bundle_of(at(origin, ref))[0] == expected
    everything = content(repositories, at(origin, "v1"), tmp_path)
    assert everything["program.py"] == "one = 1\n"
    assert everything["sub/link"] == "→ ../program.py"
    with pytest.raises(InputError, match="leads"):  # out of the folder that was named
        repositories.bundle_of(at(origin, "v1", "sub"))
    (origin.folder / "sub/link").unlink()
    origin.commit_all()
    assert content(repositories, at(origin, "main", "sub"), tmp_path) == {"run.sh": "#!/bin/sh\n"}
    for folder in ("nowhere", "program.py"):
        with pytest.raises(NotFoundError, match="There is no folder"):
            repositories.bundle_of(at(origin, "main", folder))


def test_what_is_not_there_is_said(origin: Repository, repositories: Repositories) -> None:
    repositories.bundle_of(at(origin))
    origin.git("branch", "side")
    repositories.bundle_of(at(origin, "side"))
    origin.git("branch", "--delete", "--force", "side")
    with pytest.raises(NotFoundError, match="no branch or tag 'side'"):
        repositories.commit_of(at(origin, "side"))
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        repositories.bundle_of(at(origin, "f" * 40))
    shutil.rmtree(origin.folder)
    for ask in (repositories.commit_of, repositories.bundle_of):
        with pytest.raises(UnavailableError, match="cannot be fetched"):
            ask(at(origin))


@pytest.mark.parametrize(
    ("target", "words"),
    [("/etc/passwd", "leads out"), ("../../etc", "leads"), ("nowhere", "leads nowhere")],
)
def test_links_that_lead_out_are_refused(
    origin: Repository, repositories: Repositories, target: str, words: str
) -> None:
    os.symlink(target, origin.folder / "link")
    origin.commit_all()
    with pytest.raises(InputError, match=words):
        repositories.bundle_of(at(origin))
    assert [p.name for p in repositories.folder.iterdir() if p.name.startswith("tmp")] == []


def test_trees_made_by_hand_write_nothing_outside(
    origin: Repository, repositories: Repositories, tmp_path: Path
) -> None:
    evil, outside = origin.blob(b"evil"), tmp_path / "outside"
    outside.mkdir()
    below = origin.git("mktree", given=f"100644 blob {evil}\tfile\n".encode())
    link = origin.blob(str(outside).encode())
    trees = [
        [f"100644 blob {evil}\t.."],
        [f"040000 tree {below}\t.."],
        [f"040000 tree {below}\t.git"],
        [f"120000 blob {link}\ta", f"040000 tree {below}\ta"],
    ]
    for entries in trees:
        origin.commit_tree(*entries)
        with pytest.raises(OfficeGridError):
            repositories.bundle_of(at(origin))
    assert list(outside.iterdir()) == []
    assert not (repositories.folder / "file").exists()


def test_too_much_is_refused_before_it_is_written(
    origin: Repository, repositories: Repositories
) -> None:
    origin.commit(huge__bin=b"\0" * 5_000_000)  # a few kB in the repository
    with pytest.raises(LimitError, match=r"huge\.bin \(4\.8 MB\)"):
        repositories.bundle_of(at(origin))
    origin.git("rm", "--quiet", "huge.bin")
    origin.commit(noise__bin=os.urandom(9_000_000))
    with pytest.raises(LimitError, match=r"too large"):
        repositories.bundle_of(at(origin))
    assert gitrun.size_of(repositories.folder) < 9_000_000


def test_submodules_and_hooks_are_left_alone(
    origin: Repository, repositories: Repositories, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    hooks = origin.folder / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "reference-transaction", "post-update"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (hooks / name).chmod(0o755)
    blob = origin.blob(b"x = 1\n")
    ran.unlink(missing_ok=True)
    modules = origin.blob(f'[submodule "s"]\npath = s\nurl = {origin.url}\n'.encode())
    commit = origin.git("rev-parse", "HEAD")
    origin.commit_tree(
        f"100644 blob {modules}\t.gitmodules", f"160000 commit {commit}\ts",
        f"100644 blob {blob}\tx.py",
    )  # fmt: skip
    ran.unlink(missing_ok=True)
    assert set(content(repositories, at(origin), tmp_path)) == {".gitmodules", "x.py"}
    assert not ran.exists()


def test_a_copy_that_a_crash_left_half_way_is_made_afresh(
    origin: Repository, repositories: Repositories, tmp_path: Path
) -> None:
    repositories.bundle_of(at(origin))
    [copy] = repositories.folder.iterdir()
    (copy / "shallow.lock").write_text("")  # what a killed git leaves
    origin.commit(program__py="later = 1\n")
    assert content(repositories, at(origin), tmp_path) == {"program.py": "later = 1\n"}
    shutil.rmtree(copy / "objects")
    origin.commit(program__py="again = 1\n")
    assert content(repositories, at(origin), tmp_path) == {"program.py": "again = 1\n"}


def test_copies_go_when_they_are_not_used(origin: Repository, repositories: Repositories) -> None:
    repositories.bundle_of(at(origin))
    (repositories.folder / "tmpleft").mkdir()
    assert repositories.sweep([at(origin)], -10) == 1
    assert repositories.sweep([], 3600) == 0
    assert repositories.sweep([], -10) == 1
    assert list(repositories.folder.iterdir()) == []


def test_without_git_it_is_said(
    repositories: Repositories, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="has no git"):
        repositories.commit_of(GitAddress(url="file:///srv/a", ref="main"))


def test_a_git_that_hangs_is_ended_with_its_helpers() -> None:
    """A server that accepts and says nothing."""
    need("git")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = GitAddress(url=f"https://bob:s3cret@127.0.0.1:{port}/a.git", ref="main")
        with pytest.raises(UnavailableError, match="does not answer"):
            gitrun.run(address, ["ls-remote", "--", address.bare_url], within_s=0.5)
    left = [words for one in psutil.process_iter() if f":{port}/" in (words := _words(one))]
    assert left == []


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_over_https_with_a_password_that_nobody_sees(
    origin: Repository, repositories: Repositories, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not (Path(origin.git("--exec-path")) / "git-http-backend").exists():
        without("git has no http-backend here")
    with serving(tmp_path / "pki", tmp_path, "bob:s3cret") as (server, authority):
        url = f"https://bob:s3cret@{server.host}/origin"
        unknown = GitAddress(url=url, ref="main")
        with pytest.raises(UnavailableError, match="certificate"):
            repositories.commit_of(unknown)
        monkeypatch.setenv("GIT_SSL_CAINFO", str(authority))
        assert repositories.commit_of(unknown) == origin.git("rev-parse", "HEAD")
        assert content(repositories, unknown, tmp_path) == {"program.py": "one = 1\n"}
        origin.commit(program__py="two = 2\n")
        assert content(repositories, unknown, tmp_path) == {"program.py": "two = 2\n"}
        seen = "\n".join(server.command_lines)
        assert f"https://{server.host}/origin" in seen
        assert "s3cret" not in seen
        assert base64.b64encode(b"bob:s3cret").decode() not in seen
        for login in ("bob:wr0ng@", ""):
            wrong = GitAddress(url=f"https://{login}{server.host}/origin", ref="main")
            with pytest.raises(UnavailableError, match="cannot be fetched") as refused:
                repositories.commit_of(wrong)
            assert "wr0ng" not in str(refused.value)
        server.moved_to = f"https://localhost:{server.server_address[1]}"
        with pytest.raises(UnavailableError, match="cannot be fetched"):
            repositories.commit_of(unknown)
    stored = [path for path in repositories.folder.rglob("*") if path.is_file()]
    assert not [path for path in stored if b"s3cret" in path.read_bytes()]
