"""Versions made of what is in git, over real repositories: new commits, trouble, who follows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from officegrid.coordinator.app import open_coordinator
from officegrid.coordinator.config import CoordinatorConfig, GitConfig
from officegrid.coordinator.service import gitcode, lifecycle, versions, views
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import ForbiddenError, NotFoundError
from officegrid.storage.api import Dataset, Job, Tx, Version
from officegrid.wire.catalogue import CodeRef
from officegrid.wire.data import Layout
from officegrid.wire.gitref import GitAddress
from officegrid.wire.jobs import JobPolicy, JobSpec
from officegrid.wire.work import Program
from parts import need
from unit.coordinator.git_kit import Repository

EMPTY = Dataset("e" * 64, Layout(columns=["a"]), 5, 0, 0, "", 1.0)


@pytest.fixture
def origin(tmp_path: Path) -> Repository:
    need("git")
    made = Repository(tmp_path / "allowed" / "tools")
    made.commit(program__py="one = 1\n")
    return made


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Coordinator]:
    config = CoordinatorConfig(git=GitConfig(allow=[f"file://{tmp_path}/allowed"]))
    made = open_coordinator(tmp_path / "data", names=[], config=config)
    made.storage.write(lambda tx: tx.add_dataset(EMPTY, []))
    yield made
    made.git.close()
    made.writer.stop()
    made.storage.close()


def push(here: Coordinator, address: GitAddress) -> tuple[Version, bool]:
    version, new, _ = asyncio.run(here.git.push(address, "ann"))
    assert here.objects.size(version.digest) is not None
    return version, new


def submit(here: Coordinator, name: str, **policy: object) -> Job:
    spec = JobSpec(
        name="job", program=Program(python="m:f"), dataset=EMPTY.id, code=CodeRef(name=name),
        policy=JobPolicy.model_validate(policy),
    )  # fmt: skip
    return here.writer.submit(
        lambda tx: lifecycle.create(here.grid, tx, spec, "ann", here.clock())
    ).result()


def told(here: Coordinator, job: Job, kind: str = "git") -> list[str]:
    events = here.storage.read(lambda tx: tx.events(job.id))
    return [event.text for event in events if event.kind == kind]


def why(here: Coordinator, job: Job) -> str:
    return " ".join(here.storage.read(lambda tx: views.why(here.grid, tx, job.id, here.clock()))[1])


def newest(here: Coordinator, name: str) -> Version:
    return here.storage.read(lambda tx: versions.find(tx, "code", name))


def test_each_commit_with_other_content_is_a_version(here: Coordinator, origin: Repository) -> None:
    address = GitAddress(url=origin.url, ref="main")
    first, new = push(here, address)
    assert (first.n, new, first.pushed_by) == (1, True, "ann")
    commit = origin.git("rev-parse", "--short=12", "HEAD")
    assert first.origin == f"commit {commit} of {origin.url}@main"
    assert push(here, address) == (first, False)
    origin.commit_all()  # another commit of the same files
    assert push(here, address) == (first, False)
    origin.commit(program__py="two = 2\n")
    second, new = push(here, address)
    assert (second.n, new) == (2, True)
    # Going back by hand stays until the branch moves.
    here.writer.submit(
        lambda tx: versions.roll_back(tx, "code", address.name, None, by="ann", now=1.0)
    ).result()
    assert push(here, address)[0].n == 3
    origin.commit(program__py="four = 4\n")
    assert push(here, address)[0].n == 4


def test_only_allowed_addresses_and_what_is_there(
    here: Coordinator, origin: Repository, tmp_path: Path
) -> None:
    secret = Repository(tmp_path / "allowed-not" / "x")
    secret.commit(program__py="one = 1\n")
    with pytest.raises(ForbiddenError, match="not an address that code may come from"):
        push(here, GitAddress(url=secret.url, ref="main"))
    with pytest.raises(NotFoundError, match="no branch or tag"):
        push(here, GitAddress(url=origin.url, ref="nowhere"))
    assert here.storage.read(lambda tx: tx.versions("code")) == []
    assert [key for key, _ in here.storage.read(lambda tx: tx.settings()) if "git" in key] == []


def test_what_live_jobs_and_schedules_name_is_looked_after(
    here: Coordinator, origin: Repository
) -> None:
    followed, kept, done = (GitAddress(url=origin.url, ref=ref) for ref in ("main", "b", "c"))
    for ref in ("b", "c"):
        origin.git("branch", ref)
    for address in (followed, kept, done):
        push(here, address)
    runs = submit(here, followed.name, follow_latest=True)
    submit(here, kept.name, schedule="0 1 * * *")
    ended = submit(here, done.name)
    here.writer.submit(lambda tx: lifecycle.cancel(here.grid, tx, ended, 1.0)).result()
    origin.commit(program__py="two = 2\n")
    for ref in ("b", "c"):
        origin.git("branch", "--force", ref, "main")
    asyncio.run(here.git.refresh())
    assert [newest(here, one.name).n for one in (followed, kept, done)] == [2, 2, 1]
    assert newest(here, kept.name).pushed_by == "the coordinator"
    assert "version 1 → 2" in told(here, runs, "switched")[0]
    pin = here.storage.read(lambda tx: tx.pin(runs.id))
    assert pin is not None
    assert (pin.pin, pin.code_version) == (1, 2)


def test_a_repository_that_is_gone_is_told_once_and_jobs_go_on(
    here: Coordinator, origin: Repository
) -> None:
    address = GitAddress(url=origin.url, ref="main")
    push(here, address)
    job = submit(here, address.name, follow_latest=True)
    schedule = submit(here, address.name, schedule="0 1 * * *")
    away = origin.folder.rename(origin.folder.with_name("away"))
    for _ in range(3):
        asyncio.run(here.git.refresh())
    for one in (job, schedule):
        [text] = told(here, one)
        assert f"code from {origin.url}@main cannot be fetched" in text
        assert "version 1 stays in use" in text
        assert "could not be fetched for" in why(here, one)
    away.rename(origin.folder)
    asyncio.run(here.git.refresh())
    assert told(here, job)[1:] == [f"code from {origin.url}@main can be fetched again"]
    assert "could not be fetched" not in why(here, job)
    origin.git("checkout", "--quiet", "--detach")
    origin.git("branch", "--delete", "--force", "main")
    asyncio.run(here.git.refresh())
    assert "There is no branch or tag 'main'" in told(here, job)[2]
    assert newest(here, address.name).n == 1
    origin.git("branch", "main")
    (origin.folder / "link").symlink_to("/etc/passwd")
    origin.git("checkout", "--quiet", "main")
    origin.commit_all()
    asyncio.run(here.git.refresh())  # there again, and useless in another way
    assert len(told(here, job)) == 3
    (origin.folder / "link").unlink()
    origin.commit_all()
    asyncio.run(here.git.refresh())
    assert told(here, job)[3:] == [f"code from {origin.url}@main can be fetched again"]


def test_a_password_in_an_address_is_nowhere_to_be_read(here: Coordinator) -> None:
    """An https server that is not there: what people and logs are told of it."""
    need("git")
    url = "https://bob:s3cret@127.0.0.1:1/a.git"
    address = GitAddress(url=url, ref="main")
    here.config.git.allow.append("https://127.0.0.1:1/")

    def as_if_fetched(tx: Tx) -> None:
        gitcode.took(here.grid, tx, address, "c" * 40, "d" * 64, "ann", 1.0)

    here.writer.submit(as_if_fetched).result()
    job = submit(here, address.name)
    asyncio.run(here.git.refresh())
    [text] = told(here, job)
    assert "https://127.0.0.1:1/a.git" in text
    version = newest(here, address.name)
    for words in (text, why(here, job), version.origin, version.name, str(job.spec)):
        assert "s3cret" not in words
        assert "bob" not in words
    state = here.storage.read(lambda tx: gitcode.state_of(tx, address.name))
    assert state is not None
    assert state.address.credentials == ("bob", "s3cret")
