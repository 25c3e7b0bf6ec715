"""Conformance cases: what the clean-up asks of a database."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Any

from officegrid.core.jobs import JobState
from officegrid.core.model import Span, SpanState
from officegrid.storage.api import (
    Dataset,
    Delivery,
    Image,
    JobMark,
    JobPin,
    PinnedData,
    PlacedBlock,
    Quarantined,
    Rate,
    Storage,
    Tx,
)
from officegrid.testing import storage_edits as edits
from officegrid.wire.data import Layout

Walk = Callable[[Tx, tuple[Any, ...]], tuple[list[str], tuple[Any, ...] | None]]


def _dataset(name: str, at: float, blocks: int = 3) -> tuple[Dataset, list[PlacedBlock]]:
    first = int.from_bytes(name.encode()) * 1000
    placed = [PlacedBlock(10 * n, edits.new_block(first + n)) for n in range(blocks)]
    return Dataset(name, Layout(), 10 * blocks, 99, blocks, "", at), placed


def _add(storage: Storage, name: str, at: float, blocks: int = 3) -> list[str]:
    dataset, placed = _dataset(name, at, blocks)
    storage.write(lambda tx: tx.add_dataset(dataset, placed))
    return [one.slice.sha256 for one in placed]


def _walk(storage: Storage, walk: Walk) -> list[str]:
    """All pages, each in a read of its own."""
    found: list[str] = []
    after: tuple[Any, ...] | None = ()
    while after is not None:
        page, after = storage.read(lambda tx, after=after: walk(tx, after))  # type: ignore[misc]
        found += page
    return found


class KeepingCases:
    """The verbs of the clean-up."""

    def test_marks_tell_of_every_job_what_decides(self, storage: Storage) -> None:
        data = {"x": PinnedData("x", 1, "d" * 64)}

        def build(tx: Tx) -> None:
            tx.add_job(edits.new_job("j2", 0, state=JobState.FINISHED, ended_at=7.5, bundle="b"))
            tx.add_job(edits.new_job("j1", 5, dataset="ds"))
            tx.add_pin(JobPin("j1", 0, "b" * 64, 1, data, 1.0, ""))

        storage.write(build)
        one = JobMark("j1", JobState.RUNNING, None, 0, "ds", None)
        two = JobMark("j2", JobState.FINISHED, 7.5, 0, None, "b")

        def look(tx: Tx) -> None:
            assert tx.job_marks() == [one, two]
            assert tx.job_marks(using="d" * 64) == [one]
            assert tx.job_marks(using="b" * 64) == [one]
            assert tx.job_marks(using="b") == []
            assert tx.jobs_archives() == [("j1", "b" * 64), ("j1", "d" * 64)]

        storage.read(look)

    def test_settings_are_all_told(self, storage: Storage) -> None:
        for key, value in (("b", "1"), ("a", "ü"), ("b", "2")):
            storage.write(methodcaller("put_setting", key, value))
        assert storage.read(lambda tx: tx.settings()) == [("a", "ü"), ("b", "2")]

    def test_every_object_is_met_on_pages_of_any_size(self, storage: Storage) -> None:
        blocks = [*_add(storage, "ds1", 1.0), *_add(storage, "ds2", 1.0)]
        image = Image("i", 1, "i", "rolling", {}, 1.0, "ann")

        def build(tx: Tx) -> None:
            for job in ("j1", "j2"):
                tx.add_job(edits.new_job(job, 100))
                for start in (0, 10, 20):
                    tx.add_part(edits.new_part(job, start, start + 10, f"{job}-{start}"))
            tx.add_part(edits.new_part("j1", 0, 10, "again", 1))
            tx.put_image(image, ["a" * 64, "b" * 64, "c" * 64])

        storage.write(build)

        def parts(tx: Tx) -> list[str]:
            found = [part for job in ("j1", "j2") for part in tx.parts(job)]
            return [block.sha256 for part in found for block in part.blocks]

        expected = storage.read(parts)
        for size in (1, 2, 3, 7, 1000):
            assert _walk(storage, lambda tx, at, n=size: tx.objects_of_parts(at, n)) == expected  # type: ignore[misc]
            found = _walk(storage, lambda tx, at, n=size: tx.objects_of_datasets(at, n))  # type: ignore[misc]
            assert found == blocks
            some = _walk(storage, lambda tx, at, n=size: tx.objects_of_datasets(at, n, {"ds1"}))  # type: ignore[misc]
            assert some == blocks[3:]
            chunks = _walk(storage, lambda tx, at, n=size: tx.objects_of_images(at, n))  # type: ignore[misc]
            assert chunks == ["a" * 64, "b" * 64, "c" * 64]

    def test_only_old_datasets_that_no_job_uses_are_dropped(self, storage: Storage) -> None:
        for name, at in (("old", 1.0), ("young", 9.0), ("used", 1.0), ("asked", 1.0)):
            _add(storage, name, at)
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 5, dataset="used")))
        storage.write(lambda tx: tx.touch_dataset("asked", 8.0))
        storage.write(lambda tx: tx.touch_dataset("young", 3.0))
        assert storage.read(lambda tx: tx.unused_datasets(5.0)) == ["old"]
        dropped = [
            storage.write(methodcaller("drop_dataset", name, 5.0))
            for name in ("old", "young", "used", "asked", "nobody")
        ]
        assert dropped == [True, False, False, False, False]
        assert storage.read(lambda tx: tx.dataset("old")) is None

    def test_blocks_of_a_dropped_dataset_go_in_steps(self, storage: Storage) -> None:
        for name in ("a", "b", "c"):
            _add(storage, name, 1.0, blocks=5)
        for name in ("a", "c"):
            storage.write(methodcaller("drop_dataset", name, 5.0))
        assert storage.read(lambda tx: tx.left_over_datasets()) == ["a", "c"]
        steps = [storage.write(lambda tx: tx.drop_left_over_blocks("a", 2)) for _ in range(4)]
        assert steps == [2, 2, 1, 0]
        assert storage.write(lambda tx: tx.drop_left_over_blocks("b", 9)) == 0
        assert storage.read(lambda tx: tx.left_over_datasets()) == ["c"]
        # One that is registered anew half-way is whole, and is not eaten up.
        storage.write(lambda tx: tx.drop_left_over_blocks("c", 2))
        _add(storage, "c", 2.0, blocks=5)
        assert storage.write(lambda tx: tx.drop_left_over_blocks("c", 9)) == 0
        assert storage.read(lambda tx: tx.left_over_datasets()) == []
        assert len(storage.read(lambda tx: tx.blocks_over("c", 0, 50))) == 5

    def test_a_job_goes_with_all_its_rows_and_no_other_has_less(self, storage: Storage) -> None:
        def build(tx: Tx) -> None:
            for job in ("j1", "j2"):
                tx.add_job(edits.new_job(job, 40))
                tx.add_pin(JobPin(job, 0, "b" * 64, 1, {}, 1.0, ""))
                tx.put_delivery(Delivery(job, 0, "done"))
                tx.put_rate(Rate("m1", job, 1.0, 1, 1))
                tx.put_setting(f"columns:{job}", "[]")
                tx.add_event(1.0, job, "started", "started")
                tx.add_event(1.0, job, "removed", "removed")
                for start in (0, 10):
                    tx.add_part(edits.new_part(job, start, start + 10, f"{job}-{start}"))
                lease = edits.new_lease(f"lease-{job}", 20, 30)
                tx.apply(job, edits.claim(Span(0, 40, SpanState.PENDING), lease))
                rows = [Quarantined(job, n, "bad", 1, b"", False, "m1", 1.0) for n in range(3)]
                tx.put_quarantined(rows)

        storage.write(build)
        assert storage.write(lambda tx: tx.drop_left_over_of_job("j1", 5)) == 0
        assert storage.read(lambda tx: tx.lone_leases()) == []
        storage.write(lambda tx: tx.drop_job("j1"))
        steps = 0
        while dropped := storage.write(lambda tx: tx.drop_left_over_of_job("j1", 2)):
            assert dropped <= 2
            steps += 1
        assert steps == 1 + 2 + 2 + 1  # two parts, three records, three spans, an event
        assert storage.read(lambda tx: tx.lone_leases()) == ["lease-j1"]
        storage.write(lambda tx: tx.drop_leases(["lease-j1", "lease-j2"]))

        def look(tx: Tx) -> None:
            assert [mark.id for mark in tx.job_marks()] == ["j2"]
            assert [event.kind for event in tx.events("j1")] == ["removed"]
            assert (tx.pin("j1"), tx.delivery("j1", 0), tx.setting("columns:j1")) == (None,) * 3
            assert (tx.parts("j1"), tx.quarantined("j1"), list(tx.spans("j1"))) == ([], [], [])
            assert (tx.lease_owner("lease-j1"), tx.rates_of_job("j1")) == (None, [])
            assert tx.jobs_archives() == [("j2", "b" * 64)]
            assert tx.lease_owner("lease-j2") is not None
            assert len(tx.parts("j2")) == 2
            assert len(tx.quarantined("j2")) == len(list(tx.spans("j2"))) == 3
            assert len(tx.events("j2")) == 2
            assert tx.setting("columns:j2") == "[]"
            assert tx.delivery("j2", 0) is not None
            assert len(tx.rates_of_job("j2")) == 1

        storage.read(look)
