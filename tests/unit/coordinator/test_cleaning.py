"""The clean-up on a real database and object store: what is needed stays, the rest goes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from officegrid.coordinator import objects as objects_module
from officegrid.coordinator.api import jobs, work
from officegrid.coordinator.api import versions as versions_api
from officegrid.coordinator.app import open_coordinator
from officegrid.coordinator.chores import clean_is_due
from officegrid.coordinator.service import lifecycle, lineage, versions, views
from officegrid.core.errors import ConflictError, NotFoundError, OfficeGridError, UnavailableError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Delivery, Tx
from officegrid.wire.catalogue import CodeRef, DataRef
from officegrid.wire.data import BlockSlice
from officegrid.wire.jobs import JobPolicy, JobSpec, RetryRequest
from officegrid.wire.keeping import CleanReply
from officegrid.wire.work import CommitRequest, Program
from unit.coordinator.store_kit import DAY_S, Store

MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    made: list[Store] = []

    def make(name: str = "store", seed: int = 0, **keep: Any) -> Store:
        made.append(Store(tmp_path / name, seed, **keep))
        return made[-1]

    yield make
    for one in made:
        one.close()


def numbers(reply: CleanReply) -> list[tuple[str, int]]:
    return sorted((one.name, one.n) for one in reply.versions)


def why(reply: CleanReply, what: str = "objects") -> dict[str, int]:
    return {one.reason: one.count for one in reply.stay if one.what == what}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happened_nothing_needed_goes_and_everything_else_does(
    make_store: MakeStore, seed: int
) -> None:
    store = make_store(seed=seed, **({"jobs": "35d"} if seed % 2 else {}))
    store.begin()
    for _ in range(4):
        for _ in range(25):
            store.step()
        store.check()
        would = store.cleaner().run(dry_run=True)
        before = store.present()
        did = store.cleaner().run()
        store.check()
        assert would.jobs == did.jobs
        if not would.jobs:
            assert (numbers(would), would.datasets) == (numbers(did), did.datasets)
            assert (would.objects, would.bytes, would.stay) == (did.objects, did.bytes, did.stay)
        assert len(before - store.present()) == did.objects
    store.start_scheduled()
    store.check()
    store.pass_time(2 * DAY_S)
    store.cleaner().run()
    rest = {store.storage.read(lambda tx: tx.setting("worker_release")) or ""}
    kept = store.check() | {digest for text in rest for digest in store.present() if digest in text}
    images = {
        d for d in store.present() if store.storage.read(lambda tx, d=d: tx.is_image_chunk(d))
    }
    assert store.present() == kept | images
    assert store.rows_of_no_job() == {}
    assert store.cleaner().run().objects == 0


def test_a_clean_up_that_is_cut_off_anywhere_loses_nothing_and_is_made_up_for(
    make_store: MakeStore,
) -> None:
    """Cut off at its 1st, 2nd, … look up; the next one leaves what one in peace leaves."""
    store = make_store(seed=5, jobs="35d")
    store.begin()
    for _ in range(60):
        store.step()
    jobs = len(store.storage.read(lambda tx: tx.job_marks()))
    store.pass_time(40 * DAY_S)
    store.check()
    cut_offs = 0
    for most in range(1000):
        looks = iter(range(most))
        try:
            store.cleaner(lambda left=looks: next(left, None) is None).run()
            break
        except UnavailableError:
            cut_offs += 1
        store.check()
    assert cut_offs > 10
    store.check()
    again = store.cleaner().run()
    assert (again.versions, again.datasets, again.objects) == ([], 0, 0)
    assert store.storage.read(lambda tx: tx.left_over_datasets()) == []
    assert store.rows_of_no_job() == {}
    assert len(store.storage.read(lambda tx: tx.job_marks())) < jobs


def test_old_versions_go_but_for_those_that_jobs_and_quarantines_need(
    make_store: MakeStore,
) -> None:
    store = make_store(versions=1)
    store.push("code", "clean", "v1")
    bad = store.submit(code=CodeRef(name="clean"), policy=JobPolicy(quarantine_limit="50%"))
    store.commit(bad, bad=True)
    store.push("code", "clean", "v2")
    ended = store.submit(code=CodeRef(name="clean"))
    store.commit(ended)
    store.push("code", "clean", "v3")
    schedule = store.submit(code=CodeRef(name="clean", n=3), policy=JobPolicy(schedule="0 1 * * *"))
    for text in ("v4", "v5", "v6"):
        store.push("code", "clean", text)
    store.submit(code=CodeRef(name="clean", n=4))
    store.pass_time(20 * DAY_S)
    first = store.cleaner().run()
    assert numbers(first) == [("clean", 5)]
    assert why(first, "versions") == {
        "among the newest of its name": 1, "named by a job or schedule": 2,
        "of a job with quarantined records": 1, "of a job that ended lately": 1,
    }  # fmt: skip
    store.pass_time(20 * DAY_S)
    assert numbers(store.cleaner().run()) == [("clean", 2)]
    store.write(lambda tx: lifecycle.retry(store.grid, tx, _again(tx, bad.id), RetryRequest(), 1.0))
    store.commit(_now(store, bad.id))
    store.write(lambda tx: lifecycle.cancel(store.grid, tx, _again(tx, schedule.id), time.time()))
    store.pass_time(40 * DAY_S)
    assert numbers(store.cleaner().run()) == [("clean", 1), ("clean", 3)]
    with pytest.raises(ConflictError, match="Version 2 of clean is gone"):
        store.write(lambda tx: lineage.rerun(store.grid, tx, _again(tx, ended.id), "ann", 1.0))
    with pytest.raises(ConflictError, match="is gone"):
        store.submit(code=CodeRef(name="clean", n=1))
    with pytest.raises(ConflictError, match="is gone"):
        store.write(lambda tx: versions.roll_back(tx, "code", "clean", 2, by="ann", now=1.0))
    store.push("code", "clean", "v1")  # the content may come back, under a new number
    told = [event.text for event in store.storage.read(lambda tx: tx.events("clean"))]
    assert told[-3:] == [
        "bundle clean: version 1 was cleaned up", "bundle clean: version 3 was cleaned up",
        "bundle clean: version 7 by ann",
    ]  # fmt: skip
    store.check()


def _again(tx: Tx, job_id: str) -> Any:
    return tx.job(job_id)


def _now(store: Store, job_id: str) -> Any:
    return store.storage.read(lambda tx: tx.job(job_id))


def test_old_jobs_go_with_all_that_is_theirs_if_that_is_wished(make_store: MakeStore) -> None:
    store = make_store(jobs="90d")
    first, bad = store.submit(bundle=store.put()), store.submit(bundle=store.put())
    store.commit(first)
    store.commit(bad)
    waited = store.submit(name="waited", bundle=store.put())
    late = store.submit(name="late", bundle=store.put())
    for job in (waited, late):
        store.commit(job)
    chain = {"dataset": None, "input_job": "waited", "policy": JobPolicy(schedule="0 1 * * *")}
    store.submit(name="chain", bundle=store.put(), **chain)
    store.write(lambda tx: tx.put_delivery(Delivery(late.id, 0, "failed")))
    running = store.submit(bundle=store.put())
    store.pass_time(80 * DAY_S)
    assert store.cleaner().run().jobs == []
    before = store.present()
    store.pass_time(20 * DAY_S)
    assert store.cleaner().run(dry_run=True).jobs == [first.id, bad.id]
    reply = store.cleaner().run()
    assert (reply.jobs, reply.datasets) == ([first.id, bad.id], 2)
    assert len(before - store.present()) == reply.objects >= 6  # two blocks in, one out, each
    assert store.rows_of_no_job() == {}
    store.check()
    with pytest.raises(NotFoundError, match="any more") as gone:
        store.storage.read(lambda tx: views.find_job(tx, first.id))
    assert "was removed with its output" in gone.value.why
    store.commit(running)
    store.write(lambda tx: tx.put_delivery(Delivery(late.id, 0, "done")))
    assert store.cleaner().run().jobs == [late.id]


def test_going_back_keeps_the_content_under_all_its_numbers(make_store: MakeStore) -> None:
    store = make_store(versions=2)
    for text in ("one", "two", "three", "four"):
        store.push("data", "codes", text)
    store.write(lambda tx: versions.roll_back(tx, "data", "codes", 1, by="ann", now=time.time()))
    store.pass_time(2 * DAY_S)
    reply = store.cleaner().run()
    assert numbers(reply) == [("codes", 2), ("codes", 3)]
    assert why(reply, "versions")["same content as another that stays"] == 1
    with store.storage._reader() as connection:
        assert connection.execute("SELECT count(*) FROM archives").fetchone() == (2,)
    store.submit(data={"x": DataRef(name="codes", n=1)})
    assert {one for one in store.check() if store.objects.size(one) is None} == set()


def test_a_difference_that_was_made_while_its_end_went_does_not_outlive_its_files(
    make_store: MakeStore,
) -> None:
    store = make_store(versions=1)
    for text in ("one", "two", "three"):
        store.push("data", "codes", text)
    before = store.storage.read(lambda tx: tx.deltas())
    assert len(before) == 2
    store.pass_time(2 * DAY_S)
    store.cleaner().run()
    assert store.storage.read(lambda tx: tx.deltas()) == []
    late = before[1]
    store.write(lambda tx: tx.put_delta(late))
    store.cleaner().run()
    assert store.storage.read(lambda tx: tx.deltas()) == []
    store.check()


def test_uploads_and_inputs_that_belong_to_nothing_yet_have_their_time(
    make_store: MakeStore,
) -> None:
    store = make_store(objects="2h")
    lone, dataset = store.put(), store.dataset(time.time())
    store.pass_time(3600)
    reply = store.cleaner().run()
    assert (reply.objects, reply.datasets) == (0, 0)
    assert why(reply) == {"younger than [keep] objects": 3}
    store.pass_time(3601)
    assert store.objects.missing([lone]) == []  # asked for again
    reply = store.cleaner().run()
    assert (reply.objects, reply.datasets) == (2, 1)
    assert store.present() == {lone}
    with pytest.raises(NotFoundError, match="Submit the job again"):
        store.submit(dataset=dataset)
    store.pass_time(7201)
    assert store.cleaner().run().objects == 3
    assert store.present() == set()


def test_a_file_with_a_time_to_come_stays_and_strangers_in_the_folder_too(
    make_store: MakeStore, tmp_path: Path
) -> None:
    """The clock was set back; somebody put a note there."""
    store = make_store()
    later, old = store.put("later"), store.put("old")
    store.pass_time(3 * DAY_S)
    os.utime(store.objects.path(later), (time.time() + 1e6, time.time() + 1e6))
    note = store.objects.path(old).parent / "README"
    note.write_text("do not touch")
    os.utime(note, (1, 1))
    store.cleaner().run()
    assert store.present() == {later}
    assert note.exists()


def test_an_object_that_is_asked_for_while_it_is_taken_away_is_there_or_said_to_be_missing(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clean-up has looked at its age and is about to remove it when a client asks."""
    store = make_store()
    digest = store.put("wanted")
    store.pass_time(3 * DAY_S)
    answers: list[list[str]] = []
    asking = threading.Thread(target=lambda: answers.append(store.objects.missing([digest])))
    replace = os.replace

    def slowly(source: Any, target: Any) -> None:
        asking.start()
        asking.join(0.3)  # long enough for an answer that nothing holds up
        replace(source, target)

    monkeypatch.setattr(objects_module.os, "replace", slowly)
    store.cleaner().run()
    monkeypatch.undo()
    asking.join(10)
    assert answers == [[digest]]
    assert store.objects.size(digest) is None
    assert store.put("wanted") == digest
    assert store.cleaner().run().objects == 0


def test_submits_beside_a_clean_up_that_never_rests_lose_nothing(make_store: MakeStore) -> None:
    """Clients find old contents in the store and use them, just when those are to go."""
    store = make_store()
    people, each = 4, 15
    contents = [f"{person} {n}" for person in range(people) for n in range(each)]
    digests = [store.put(text) for text in contents]
    store.pass_time(3 * DAY_S)
    stop, failures, cleaned = threading.Event(), [], []

    def clean() -> None:
        while not stop.is_set():
            cleaned.append(store.cleaner().run().objects)

    def use(person: int) -> None:
        try:
            for n in range(each):
                store.submit(name=f"p{person}", bundle=store.put(f"{person} {n}"))
        except OfficeGridError as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(person,)) for person in range(people)]
    janitor = threading.Thread(target=clean)
    for thread in [*threads, janitor]:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    janitor.join(60)
    assert failures == []
    assert set(digests) <= store.check()
    assert len(cleaned) > 1


def test_one_clean_up_at_a_time(make_store: MakeStore) -> None:
    store = make_store()
    inside, go_on, replies = threading.Event(), threading.Event(), []

    def stopping() -> bool:
        inside.set()
        go_on.wait(30)
        return False

    cleaner = store.cleaner(stopping)
    store.put()
    store.pass_time(3 * DAY_S)
    first = threading.Thread(target=lambda: replies.append(cleaner.run()))
    first.start()
    assert inside.wait(30)
    with pytest.raises(ConflictError, match="under way"):
        cleaner.run(dry_run=True)
    go_on.set()
    first.join(30)
    assert replies[0].objects == 1


def test_bundles_of_jobs_from_before_versions_stay_with_their_job(make_store: MakeStore) -> None:
    store = make_store()
    job = store.submit(bundle=store.put("old code"))
    store.commit(job)
    digest = _now(store, job.id).bundle
    spec = {**_now(store, job.id).spec, "code": None}

    def as_migrated(tx: Tx) -> None:
        tx.update_job(job.id, spec=spec)
        tx._run("DELETE FROM versions")  # type: ignore[attr-defined]
        tx._run("UPDATE job_pins SET code_version = NULL")  # type: ignore[attr-defined]

    store.write(as_migrated)
    store.pass_time(400 * DAY_S)
    store.cleaner().run()
    assert store.objects.size(digest) is not None
    again = store.write(
        lambda tx: lineage.rerun(store.grid, tx, _again(tx, job.id), "ann", time.time())
    )
    assert again.state is JobState.RUNNING
    store.check()


def test_the_daily_one_is_due_a_day_after_the_last(make_store: MakeStore) -> None:
    store = make_store()

    def due(now: float) -> bool:
        return store.storage.read(lambda tx: clean_is_due(tx, now))

    assert due(1000.0)
    store.write(lambda tx: tx.put_setting("cleaned", '{"at": 1000.0}'))
    assert [due(1000.0), due(1000 + DAY_S - 1), due(1000 + DAY_S), due(900.0)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_who_is_about_to_refer_to_an_object_makes_it_young(tmp_path: Path) -> None:
    """A worker that was frozen for days commits; a client submits what it uploaded last week."""
    here = open_coordinator(tmp_path / "data", names=[])
    try:
        content = [f"object {n}".encode() for n in range(4)]
        block, bundle, newer, nobodys = (here.objects.put_bytes(one) for one in content)
        for digest in (block, bundle, newer, nobodys):
            os.utime(here.objects.path(digest), (1.0, 1.0))
        size = len(content[0])
        slice_ = BlockSlice(sha256=block, stored_bytes=size, raw_bytes=size, length=size, records=1)
        commit = CommitRequest(
            session_id="s",
            lease_id="l",
            job_id="j1",
            start=0,
            end=1,
            blocks=[slice_],
            compute_s=1.0,
        )
        work._check_content(here, commit)
        program = Program(python="m:f")
        spec = JobSpec(name="a", program=program, input_job="b", bundle=bundle)
        asyncio.run(jobs._check_spec(here, spec))
        versions_api._check_stored(here, newer)
        assert here.cleaner.run().objects == 1
        assert {name for name, _, _ in here.objects.all()} == {block, bundle, newer}
        assert here.objects.hold(nobodys) is None
    finally:
        here.git.close()
        here.writer.stop()
        here.storage.close()
