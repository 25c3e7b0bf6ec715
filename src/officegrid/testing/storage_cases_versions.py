"""Conformance cases: versions of code and data, archives, pins of jobs, deliveries."""

from __future__ import annotations

from dataclasses import replace
from operator import methodcaller

import pytest

from officegrid.core.errors import ConflictError
from officegrid.core.model import LeaseState, Span, SpanState
from officegrid.storage.api import (
    Archive,
    Delivery,
    Delta,
    JobPin,
    PinnedData,
    Storage,
    Tx,
    Version,
)
from officegrid.testing import storage_edits as edits


def _version(n: int, **changes: object) -> Version:
    version = Version("code", "clean", n, f"{n:064x}", 5.5 + n, "ann", "folder ü")
    return replace(version, **changes)  # type: ignore[arg-type]


def _archive(number: int) -> Archive:
    spec = {"kind": "file", "pieces": [{"sha256": "a" * 64, "ü": None}]}
    return Archive(f"{number:064x}", "file", 2**33, 2**32, spec, 7.25)


def _delta(new: int, old: int) -> Delta:
    return Delta(f"{new:064x}", f"{old:064x}", {"object": "d" * 64}, 17)


class VersionCases:
    """The verbs about versions, and what jobs pin of them."""

    def test_the_newest_version_is_the_last_that_is_not_gone(self, storage: Storage) -> None:
        for n in (1, 2, 3):
            storage.write(methodcaller("add_version", _version(n)))
        storage.write(lambda tx: tx.add_version(_version(1, kind="data", digest="e" * 64)))
        storage.write(lambda tx: tx.add_version(_version(1, name="other")))
        storage.write(lambda tx: tx.set_version_gone("code", "clean", 3))

        def look(tx: Tx) -> None:
            assert tx.version("code", "clean") == _version(2)
            assert tx.version("code", "clean", 3) == _version(3, gone=True)
            assert tx.version("code", "clean", 4) is None
            assert tx.version("code", "nobody") is None
            newest_first = [_version(3, gone=True), _version(2), _version(1)]
            assert tx.versions("code", name="clean") == newest_first
            assert tx.versions("code") == [*newest_first, _version(1, name="other")]
            assert tx.versions("code", limit=1) == newest_first[:1]
            assert tx.versions_with(f"{1:064x}") == [_version(1), _version(1, name="other")]

        storage.read(look)

    def test_a_number_is_given_once(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_version(_version(1)))
        with pytest.raises(ConflictError):
            storage.write(lambda tx: tx.add_version(_version(1, digest="f" * 64)))
        assert storage.read(lambda tx: tx.version("code", "clean")) == _version(1)

    def test_archives_go_with_their_deltas(self, storage: Storage) -> None:
        for number in (1, 2, 3):
            storage.write(methodcaller("put_archive", _archive(number)))
        for delta in (_delta(2, 1), _delta(3, 2), _delta(3, 1)):
            storage.write(methodcaller("put_delta", delta))
        better = replace(_archive(2), stored_bytes=1)
        storage.write(lambda tx: tx.put_archive(better))

        def look(tx: Tx) -> None:
            assert tx.archive(better.digest) == better
            assert tx.archive("9" * 64) is None
            assert tx.archives() == [_archive(1), better, _archive(3)]
            assert tx.deltas_to(_archive(3).digest) == [_delta(3, 1), _delta(3, 2)]

        storage.read(look)
        storage.write(lambda tx: tx.drop_archive(_archive(2).digest))

        def after(tx: Tx) -> None:
            assert tx.archives() == [_archive(1), _archive(3)]
            assert tx.deltas() == [_delta(3, 1)]

        storage.read(after)

    def test_pins_of_a_job_in_order(self, storage: Storage) -> None:
        data = {"codes": PinnedData("postcodes", 7, "d" * 64, "dump.sql", "mariadb")}
        first = JobPin("j", 0, "a" * 64, 1, {}, 1.5, "started")
        second = JobPin("j", 1, "b" * 64, None, data, 2.5, "code 1 → 2")
        none = JobPin("k", 0, None, None, {}, 3.5, "started")
        for pin in (first, second, none):
            storage.write(methodcaller("add_pin", pin))
        with pytest.raises(ConflictError):
            storage.write(lambda tx: tx.add_pin(replace(first, why="again")))

        def look(tx: Tx) -> None:
            assert tx.pin("j") == second
            assert tx.pin("j", 0) == first
            assert tx.pin("j", 2) is None
            assert tx.pin("nobody") is None
            assert tx.pins("j") == [first, second]
            assert tx.pins("k") == [none]
            assert tx.jobs_with_archive("d" * 64) == ["j"]
            assert tx.jobs_with_archive("a" * 64) == ["j"]
            assert tx.jobs_with_archive("e" * 64) == []

        storage.read(look)

    def test_a_live_lease_opens_what_any_pin_of_its_job_names(self, storage: Storage) -> None:
        def build(tx: Tx) -> None:
            tx.add_job(edits.new_job("j", 30))
            data = {"codes": PinnedData("postcodes", 7, "d" * 64)}
            tx.add_pin(JobPin("j", 0, "a" * 64, 1, data, 1.5, "started"))
            tx.add_pin(JobPin("j", 1, "b" * 64, 2, {}, 2.5, "switched"))
            tx.apply("j", edits.claim(Span(0, 30, SpanState.PENDING), edits.new_lease("l", 5, 12)))

        storage.write(build)

        def allowed(machine: str) -> list[bool]:
            return storage.read(lambda tx: [tx.lease_may_use(machine, x * 64) for x in "abde"])

        assert allowed("m1") == [True, True, True, False]
        assert not any(allowed("m2"))

        def end(tx: Tx) -> None:
            view = tx.ledger("j")
            tx.apply("j", edits.release(view, view.live_leases()[0], LeaseState.RELEASED, 0))

        storage.write(end)
        assert not any(allowed("m1"))

    def test_deliveries_by_state(self, storage: Storage) -> None:
        one = Delivery("j1", 0, "pending", at=2.0)
        two = Delivery("j2", 1, "failed", 3, 2**40, "no such table", 1.0)
        for delivery in (one, two):
            storage.write(methodcaller("put_delivery", delivery))
        done = replace(one, state="done", rows=5, at=3.0)

        def look(tx: Tx) -> None:
            assert tx.delivery("j1", 0) == one
            assert tx.delivery("j1", 1) is None
            assert tx.deliveries(["pending", "failed"]) == [two, one]

        storage.read(look)
        storage.write(lambda tx: tx.put_delivery(done))
        assert storage.read(lambda tx: tx.deliveries(["pending"])) == []
        assert storage.read(lambda tx: tx.delivery("j1", 0)) == done
