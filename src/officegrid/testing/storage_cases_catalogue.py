"""Conformance cases: datasets, machines, join codes, events, settings."""

from __future__ import annotations

from dataclasses import replace
from operator import methodcaller

import pytest

from officegrid.core.errors import ConflictError, InternalError, NotFoundError
from officegrid.core.model import LeaseState, Span, SpanState
from officegrid.storage.api import Dataset, JobPin, JoinCode, Machine, PlacedBlock, Storage, Tx
from officegrid.testing import storage_edits as edits
from officegrid.wire.data import Layout


def _dataset(dataset_id: str, records: int) -> Dataset:
    layout = Layout(format="csv", delimiter=";", columns=["x", "y"])
    return Dataset(dataset_id, layout, records, 1000, 4, "file.csv", 2.0)


def _blocks() -> list[PlacedBlock]:
    """Records 0-9, an empty block, 10-19, 20-29; the last one with other columns."""
    names = [["x", "y"], None, ["x", "y"], ["y", "x"]]
    starts = [(0, 10), (10, 0), (10, 10), (20, 10)]
    return [
        PlacedBlock(start, edits.new_block(i, records, names[i]))
        for i, (start, records) in enumerate(starts)
    ]


def _machine(machine_id: str, **changes: object) -> Machine:
    machine = Machine(machine_id, f"name-{machine_id}", "worker", f"hash-{machine_id}", 3.0)
    return replace(machine, **changes)  # type: ignore[arg-type]


class CatalogueCases:
    """Everything that is neither a job nor its work."""

    def test_datasets_and_their_blocks(self, storage: Storage) -> None:
        blocks = _blocks()
        full = [blocks[0], blocks[2], blocks[3]]
        storage.write(lambda tx: tx.add_dataset(_dataset("d", 30), blocks))
        storage.write(lambda tx: tx.add_dataset(_dataset("d", 30), iter(blocks)))

        def look(tx: Tx) -> None:
            assert tx.dataset("d") == _dataset("d", 30)
            assert tx.dataset("e") is None
            assert tx.blocks_over("d", 0, 30) == full
            assert tx.blocks_over("d", 9, 11) == full[:2]
            assert tx.blocks_over("d", 10, 20) == full[1:2]
            assert tx.blocks_over("d", 29, 1000) == full[2:]
            assert tx.blocks_over("d", 30, 40) == tx.blocks_over("d", 5, 5) == []
            assert tx.blocks_over("e", 0, 30) == []

        storage.read(look)

    def test_lease_may_read_its_bundle_and_its_own_input_only(self, storage: Storage) -> None:
        blocks = _blocks()

        def build(tx: Tx) -> None:
            tx.add_dataset(_dataset("d", 30), blocks)
            tx.add_job(edits.new_job("j", 30, dataset="d", bundle="f" * 64))
            tx.add_pin(JobPin("j", 0, "f" * 64, None, {}, 1.0, "started"))
            lease = edits.new_lease("l", 5, 12)
            tx.apply("j", edits.claim(Span(0, 30, SpanState.PENDING), lease))

        storage.write(build)

        def allowed(machine: str) -> list[bool]:
            names = [*(placed.slice.sha256 for placed in blocks), "f" * 64, "e" * 64]
            return storage.read(lambda tx: [tx.lease_may_read(machine, x) for x in names])

        assert allowed("m1") == [True, False, True, False, True, False]
        assert not any(allowed("m2"))

        def end(tx: Tx) -> None:
            view = tx.ledger("j")
            lease = view.live_leases()[0]
            tx.apply("j", edits.release(view, lease, LeaseState.RELEASED, 0))

        storage.write(end)
        assert not any(allowed("m1"))

    def test_machines(self, storage: Storage) -> None:
        full = _machine(
            "m1", facts={"cpus": [4]}, session="s", last_seen=5.5, revoked=True, host="m2",
            status={"run_id": "r", "ü": [1.5, None]}, stats={"starts": 3}, drain=True,
            cloned_from="m9",
        )  # fmt: skip
        storage.write(lambda tx: tx.put_machine(full))
        storage.write(lambda tx: tx.put_machine(_machine("m2")))
        assert storage.read(lambda tx: tx.machine("m1")) == full
        assert storage.read(lambda tx: tx.machine("m3")) is None
        assert storage.read(lambda tx: tx.machine_by_token("hash-m2")) == _machine("m2")
        assert storage.read(lambda tx: tx.machine_by_token("nothing")) is None
        storage.write(lambda tx: tx.put_machine(_machine("m2", token_hash="new")))
        assert storage.read(lambda tx: tx.machine_by_token("hash-m2")) is None
        found = storage.read(lambda tx: tx.machines())
        assert sorted(machine.id for machine in found) == ["m1", "m2"]

    def test_the_workers_of_a_desktop(self, storage: Storage) -> None:
        rows = {"m2": "m1", "m1": None, "m4": "m1", "m3": "m2"}
        machines = {name: _machine(name, host=host) for name, host in rows.items()}
        machines["m4"] = replace(machines["m4"], revoked=True)
        for machine in machines.values():
            storage.write(methodcaller("put_machine", machine))
        assert storage.read(lambda tx: tx.machines_on("m1")) == [machines["m2"], machines["m4"]]
        assert storage.read(lambda tx: tx.machines_on("m2")) == [machines["m3"]]
        assert storage.read(lambda tx: tx.machines_on("m9")) == []

    def test_touching_a_machine(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.put_machine(_machine("m1")))
        changes: dict[str, object] = {
            "session": "s2",
            "last_seen": 8.0,
            "state": "idle",
            "facts": {"a": {"b": 1}},
            "name": "other",
            "revoked": True,
            "status": {"number": 7},
            "stats": {"harvested_s": 1.5, "cpu_back_ms": [3.0, 4.0]},
            "drain": True,
            "cloned_from": "m3",
        }
        storage.write(lambda tx: tx.touch_machine("m1", **changes))
        assert storage.read(lambda tx: tx.machine("m1")) == _machine("m1", **changes)
        with pytest.raises(InternalError):
            storage.write(lambda tx: tx.touch_machine("m1", token_hash="stolen"))
        with pytest.raises(InternalError):
            storage.write(lambda tx: tx.touch_machine("m1", host="m2"))
        with pytest.raises(NotFoundError):
            storage.write(lambda tx: tx.touch_machine("m9", state="idle"))

    def test_join_codes_are_used_up_and_expire(self, storage: Storage) -> None:
        code = JoinCode("c", "worker", 2, 100.0, 1.0)
        storage.write(lambda tx: tx.add_join_code(code))
        with pytest.raises(ConflictError):
            storage.write(lambda tx: tx.add_join_code(code))

        def use(code_hash: str, now: float) -> JoinCode | None:
            return storage.write(lambda tx: tx.use_join_code(code_hash, now))

        assert use("unknown", 2.0) is None
        assert use("c", 100.0) is None
        first = use("c", 2.0)
        assert first is not None
        assert (first.role, first.expires_at) == ("worker", 100.0)
        assert use("c", 99.0) is not None
        assert use("c", 3.0) is None

    def test_join_codes_of_a_desktop_are_dropped_together(self, storage: Storage) -> None:
        for name, host in (("a", "m1"), ("b", "m1"), ("c", "m2"), ("d", None)):
            code = JoinCode(name, "worker", 1, 100.0, 1.0, host)
            storage.write(methodcaller("add_join_code", code))
        storage.write(lambda tx: tx.drop_join_codes("m1"))
        left = [storage.write(methodcaller("use_join_code", name, 2.0)) for name in "abcd"]
        assert [code and (code.code_hash, code.host) for code in left] == [
            None, None, ("c", "m2"), ("d", None),
        ]  # fmt: skip

    def test_events_are_a_story_in_order(self, storage: Storage) -> None:
        def add(tx: Tx) -> None:
            for i in range(6):
                tx.add_event(float(i), "even" if i % 2 == 0 else "odd", "k", f"text {i}", {"i": i})
            tx.add_event(9.0, "odd", "k", "no facts")

        storage.write(add)

        def look(tx: Tx) -> None:
            every = tx.events(None)
            assert [event.text for event in every[:2]] == ["text 0", "text 1"]
            numbers = [event.n for event in every]
            assert numbers == sorted(set(numbers))
            assert every[1].facts == {"i": 1}
            assert every[-1].facts == {}
            assert tx.events("even") == [every[0], every[2], every[4]]
            assert tx.events(None, after=every[2].n, limit=2) == every[3:5]
            assert tx.events(None, newest=True, limit=2) == every[-2:]
            assert tx.events("even", newest=True, limit=2) == [every[2], every[4]]
            assert tx.events("even", after=every[2].n, newest=True) == [every[4]]
            assert tx.events("nobody") == []

        storage.read(look)

    def test_settings(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.put_setting("k", "1"))
        storage.write(lambda tx: tx.put_setting("k", "2"))
        assert storage.read(lambda tx: tx.setting("k")) == "2"
        assert storage.read(lambda tx: tx.setting("other")) is None
