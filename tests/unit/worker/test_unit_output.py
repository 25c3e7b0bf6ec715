"""What a unit commits: blocks in order, bad records with their place, whatever their text holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from officegrid.data.blocks import unpack_block
from officegrid.wire.work import CommitRequest
from officegrid.worker.link import Link
from officegrid.worker.runner import BadRecord, ChunkResult, OutputPiece
from officegrid.worker.unit_output import UnitOutput


class Shelf:
    """Stands where the coordinator's store would be; everything else is the real thing."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def for_unit(self, _: str, request: Callable[[], Any], wanted: Callable[[], bool]) -> Any:
        assert wanted()
        return request()

    def upload(self, sha256: str, payload: bytes) -> None:
        self.objects[sha256] = payload


def test_any_error_text_can_be_committed() -> None:
    output = UnitOutput(cast(Link, Shelf()), "lease")
    output.add(ChunkResult([BadRecord(7, "bad \ud800 text" + "x" * 5000, 3, b"raw\n")]))
    blocks, bad = output.finish()
    request = CommitRequest(
        session_id="s", lease_id="l", job_id="j", start=7, end=8, blocks=blocks, quarantined=bad
    )
    assert (
        "\\ud800"
        in CommitRequest.model_validate_json(request.model_dump_json()).quarantined[0].error
    )


def test_a_gap_lies_exactly_between_the_outputs_around_it() -> None:
    shelf = Shelf()
    output = UnitOutput(cast(Link, shelf), "lease")
    before, after = OutputPiece(b"a\nb\n", 2, ["x"]), OutputPiece(b"d\n", 1, ["x"])
    output.add(ChunkResult([before, BadRecord(2, "bad", 1, b"c\n"), after]))
    blocks, bad = output.finish()
    data = b"".join(unpack_block(shelf.objects[one.sha256], one) for one in blocks)
    assert data == b"a\nb\nd\n"
    assert (bad[0].block, bad[0].offset, bad[0].rows_before) == (0, 4, 2)


def test_masses_of_bad_records_stay_small_enough_to_commit() -> None:
    output = UnitOutput(cast(Link, Shelf()), "lease")
    for start in range(0, 20_000, 1000):
        bad: list[OutputPiece | BadRecord] = [
            BadRecord(n, "e" * 3000, 3, b"r" * 100_000) for n in range(start, start + 1000)
        ]
        output.add(ChunkResult(bad))
    _, quarantined = output.finish()
    assert len(quarantined) == 20_000
    assert sum(len(one.raw) + len(one.error) for one in quarantined) < 40_000_000
