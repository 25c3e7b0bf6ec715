"""Conformance cases: parts, quarantine, rates."""

from __future__ import annotations

from dataclasses import replace
from operator import methodcaller

import pytest

from officegrid.core.errors import InternalError, NotFoundError
from officegrid.storage.api import Gap, Part, Quarantined, Rate, Storage, Tx
from officegrid.testing import storage_edits as edits


def _bad(job: str, record: int, error: str = "boom") -> Quarantined:
    return Quarantined(job, record, error, 2, bytes(range(256)), True, "m1", 4.5)


class WorkCases:
    """What units leave behind."""

    def test_a_part_comes_back_as_it_was_added(self, storage: Storage) -> None:
        columns = [["a", 'quo"te', "ü\n"], ["a"], None, [], ["a", 'quo"te', "ü\n"]]
        blocks = tuple(edits.new_block(i, i, names) for i, names in enumerate(columns))
        part = replace(
            edits.new_part("j", 0, 10, "l1"),
            bundle="b",
            blocks=blocks,
            gaps=(Gap(3, 0, 120, 2), Gap(9, 5, 0, 0)),
        )
        bare = replace(edits.new_part("j", 10, 20, "l2"), blocks=(), records_out=0)

        def add(tx: Tx) -> None:
            tx.add_job(edits.new_job("j", 100))
            tx.add_part(part)
            tx.add_part(bare)

        storage.write(add)
        assert storage.read(lambda tx: tx.part_of_lease("l1")) == part
        assert storage.read(lambda tx: tx.part_of_lease("l3")) is None
        assert storage.read(lambda tx: tx.parts("j")) == [part, bare]
        job = storage.read(lambda tx: tx.job("j"))
        assert job is not None
        assert (job.records_out, job.units) == (10, 2)

    def test_parts_are_paged_by_start_and_retries_are_apart(self, storage: Storage) -> None:
        first = [edits.new_part("j", s, s + 10, f"l{s}") for s in (20, 0, 10)]
        again = [
            edits.new_part("j", s, s + 1, f"r{s}{g}", g) for s, g in ((12, 2), (12, 1), (5, 1))
        ]
        wide = edits.new_part("j", 8, 13, "wide", 3)

        def add(tx: Tx) -> None:
            tx.add_job(edits.new_job("j", 100))
            for part in (*first, *again, wide):
                tx.add_part(part)

        storage.write(add)

        def ids(parts: list[Part]) -> list[str]:
            return [part.lease_id for part in parts]

        def look(tx: Tx) -> None:
            starts = ["l0", "r51", "wide", "l10", "r121", "r122", "l20"]
            assert ids(tx.parts("j")) == starts
            assert ids(tx.parts("j", from_start=10, limit=1)) == ["l10"]
            assert ids(tx.parts("j", from_start=13)) == ["l20"]
            assert ids(tx.retried_parts("j", 0, 100)) == ["r51", "wide", "r121", "r122"]
            assert ids(tx.retried_parts("j", 10, 20)) == ["r121", "r122"]
            assert ids(tx.retried_parts("j", 0, 12)) == ["r51", "wide"]  # ends outside
            assert tx.machines_of_job("j") == [("m1", 7, 38)]

        storage.read(look)

    def test_the_same_output_cannot_be_added_twice(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 100)))
        storage.write(lambda tx: tx.add_part(edits.new_part("j", 0, 10, "l1")))
        for twice in (edits.new_part("j", 0, 10, "l2"), edits.new_part("j", 50, 60, "l1")):
            with pytest.raises(InternalError):
                storage.write(methodcaller("add_part", twice))
        with pytest.raises(NotFoundError):
            storage.write(lambda tx: tx.add_part(edits.new_part("nowhere", 0, 1, "l9")))
        job = storage.read(lambda tx: tx.job("j"))
        assert job is not None
        assert (job.records_out, job.units) == (10, 1)

    def test_machines_of_a_job(self, storage: Storage) -> None:
        def add(tx: Tx) -> None:
            tx.add_job(edits.new_job("j", 100))
            for start, machine in ((0, "m2"), (10, "m1"), (20, "m2")):
                part = edits.new_part("j", start, start + 10, f"l{start}")
                tx.add_part(replace(part, machine=machine))

        storage.write(add)
        found = storage.read(lambda tx: tx.machines_of_job("j"))
        assert sorted(found) == [("m1", 1, 10), ("m2", 2, 20)]
        assert storage.read(lambda tx: tx.machines_of_job("k")) == []

    def test_quarantined_records(self, storage: Storage) -> None:
        rows = [_bad("j", record) for record in (7, 3, 5, 9)]
        storage.write(lambda tx: tx.put_quarantined([*rows, _bad("k", 4)]))
        storage.write(lambda tx: tx.put_quarantined([_bad("j", 5, "newer")]))
        storage.write(lambda tx: tx.put_quarantined([]))

        def look(tx: Tx) -> None:
            found = tx.quarantined("j")
            assert found == [_bad("j", 3), _bad("j", 5, "newer"), _bad("j", 7), _bad("j", 9)]
            assert found[0].raw_cut is True
            assert [x.record for x in tx.quarantined("j", from_record=5, limit=2)] == [5, 7]

        storage.read(look)
        storage.write(lambda tx: tx.drop_quarantined("j", 5, 9))
        assert [x.record for x in storage.read(lambda tx: tx.quarantined("j"))] == [3, 9]
        assert storage.read(lambda tx: tx.quarantined("k")) == [_bad("k", 4)]

    def test_rates(self, storage: Storage) -> None:
        def add(tx: Tx) -> None:
            tx.put_rate(Rate("m2", "j", 1.0, 10, 20))
            tx.put_rate(Rate("m1", "j", 2.0, 11, 21))
            tx.put_rate(Rate("m1", "k", 3.0, 12, 22))
            tx.put_rate(Rate("m2", "j", 4.0, 13, 23))

        storage.write(add)
        assert storage.read(lambda tx: tx.rate("m2", "j")) == Rate("m2", "j", 4.0, 13, 23)
        assert storage.read(lambda tx: tx.rate("m2", "k")) is None
        found = storage.read(lambda tx: tx.rates_of_job("j"))
        assert sorted(rate.machine for rate in found) == ["m1", "m2"]
