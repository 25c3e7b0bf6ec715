"""The API under schema-driven fuzzing: whatever comes in, never a 5xx; errors have our shape.

Valid and invalid requests are generated from the coordinator's own OpenAPI description, the same
ones in every run. Replay one operation with `-k` and its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from acceptance.grid import Grid
from acceptance.projects import double_job
from officegrid.transport.profile import load_profile
from officegrid.wire.join import ErrorBody

EXAMPLES = int(os.environ.get("OFFICEGRID_FUZZ_EXAMPLES", "10"))
"""Of valid and of invalid requests each, per operation and role."""
SEED = 20260301
STREAMS = "/v1/jobs/{job_id}/events"  # goes on for as long as its job


@pytest.fixture(scope="module")
def coordinator(shared: Grid, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """The shared grid with something in it to be found: a finished and a held job, a machine."""
    folder = tmp_path_factory.mktemp("jobs")
    job_id = shared.submit(double_job(folder / "p", records=50, bad_every=10), watch=True)
    assert job_id == "j1"
    held = shared.submit(double_job(folder / "q", records=5000, pause_s=1, name="held"))
    shared.ok("hold", held)
    # Now, as made-up join codes will close the door to newcomers for a while.
    shared.join("strange", "worker")
    shared.join("desk", "agent")
    return shared


class Api:
    """The operations of the API, called as one role."""

    def __init__(self, grid: Grid, role: str) -> None:
        self._grid = grid
        profile = load_profile(grid.home(role))
        self._headers = {"Authorization": f"Bearer {profile.token}"}
        self._session = requests.Session()
        self._session.trust_env = False
        self._ca = str(grid.data / "pki" / "ca.pem")
        with grid.browser("admin") as browser:
            raw = browser.get("/v1/openapi.json").json()
        self.schema = schemathesis.openapi.from_dict(raw)
        self.answers: dict[int, int] = {}

    def operations(self) -> list[Any]:
        return [result.ok() for result in self.schema.get_all_operations()]  # type: ignore[union-attr]

    def check(self, case: Case[Any]) -> None:
        if isinstance(case.body, dict) and "wait_s" in case.body:
            case.body["wait_s"] = 0  # a long poll would only wait
        if case.path == STREAMS:
            case.path_parameters = {"job_id": "nosuch"}
        answer = case.call(
            base_url=self._grid.url, session=self._session, headers=self._headers,
            verify=self._ca, timeout=20,
        )  # fmt: skip
        status = answer.status_code
        self.answers[status] = self.answers.get(status, 0) + 1
        shown = f"{case.as_curl_command()[:600]}\n→ {status} {answer.text[:300]}"
        assert status < 500, shown
        if status >= 400:
            assert ErrorBody.model_validate_json(answer.content).error.what, shown

    def close(self) -> None:
        self._session.close()


@pytest.fixture(params=["admin", "w1", "desk"], ids=["as-admin", "as-worker", "as-agent"])
def api(request: pytest.FixtureRequest, coordinator: Grid) -> Iterator[Api]:
    made = Api(coordinator, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_makes_the_coordinator_fail(
    api: Api, coordinator: Grid, mode: GenerationMode
) -> None:
    operations = api.operations()
    assert len(operations) > 25
    for operation in operations:
        try:
            _fuzz(api, operation, operation.as_strategy(generation_mode=mode))
        except Unsatisfiable:  # an operation without parameters has no invalid request
            assert mode is GenerationMode.NEGATIVE, operation.path
    assert coordinator.coordinator().running
    assert "unexpected_error" not in coordinator.coordinator().text()
    assert "internal_error" not in coordinator.coordinator().text()
    assert sum(api.answers.values()) > 300, api.answers
    assert len(api.answers) > 2, f"every request was answered alike: {api.answers}"
    assert coordinator.job("j1").state == "finished"


def _fuzz(api: Api, operation: Any, strategy: Any) -> None:
    @seed(SEED)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=strategy)
    def run(case: Case[Any]) -> None:
        api.check(case)

    try:
        run()
    except AssertionError as error:
        raise AssertionError(f"{operation.method} {operation.path}: {error}") from None


# What generated strings do not hit by themselves: names that exist, and borders.
@pytest.mark.parametrize("job", ["j1", "double", "held", "%00", "j1%2Foutput", "😀", "x" * 3000])
@pytest.mark.parametrize(
    "path", ["", "/output", "/output/slices", "/quarantine", "/cancel", "/release", "/retry"]
)
def test_every_job_route_survives_every_kind_of_name(
    coordinator: Grid, job: str, path: str
) -> None:
    with coordinator.browser("admin") as browser:
        for body in (None, {"quarantine_limit": "7%"}):
            method = "get" if body is None else "post"
            answer = browser.request(method, f"/v1/jobs/{job}{path}", json=body)
            assert answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    "record", ["-1", "0", "1e9", "9223372036854775807", "9223372036854775808", "1" * 400, "x", ""]
)
def test_record_numbers_at_the_borders_are_taken_or_refused(coordinator: Grid, record: str) -> None:
    with coordinator.browser("admin") as browser:
        for path in ("output/slices?from_record=", "quarantine?from_record="):
            assert browser.get(f"/v1/jobs/j1/{path}{record}").status_code in (200, 422)
        assert browser.get(f"/v1/story/j1?after={record}").status_code in (200, 422)


def _commit(**changes: object) -> dict[str, object]:
    return {
        "session_id": "s", "lease_id": "l", "job_id": "j1", "start": 0, "end": 1, **changes
    }  # fmt: skip


BLOCK = {"sha256": "0" * 64, "stored_bytes": 1, "raw_bytes": 1, "length": 1, "records": 1}
HUGE = 10**30


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/commit", _commit(end=HUGE)),
        ("/v1/commit", _commit(start=2**63, end=2**64)),
        ("/v1/commit", _commit(blocks=[BLOCK])),
        ("/v1/commit", _commit(compute_s=1e308)),
        ("/v1/commit", _commit(job_id="\x00", lease_id="\ud800")),
        ("/v1/claim", {"session_id": "\x00"}),
        ("/v1/claim", {"session_id": "s", "prefer_job": "x" * 100_000}),
        ("/v1/renew", {"session_id": "s", "leases": [{"lease_id": "l", "records_done": HUGE}]}),
        ("/v1/release", {"session_id": "s", "leases": ["\x00", "l" * 100_000]}),
        ("/v1/fail", {"session_id": "s", "lease_id": "'; drop table jobs; --", "error": ""}),
        ("/v1/machine/events", {"kind": "idle", "text": "\x00\u202e"}),
    ],
)
def test_messages_of_a_strange_worker_are_taken_or_refused(
    coordinator: Grid, path: str, body: dict[str, object]
) -> None:
    with coordinator.browser("strange") as browser:
        answer = browser.post(
            path, content=json.dumps(body), headers={"content-type": "application/json"}
        )
    assert answer.status_code < 500, answer.text


def _report(event: dict[str, object] | None = None, **status: object) -> dict[str, object]:
    said = {"decision": "yield", "rule": "input", "sentence": "Somebody is here.", **status}
    events = [] if event is None else [{"number": 1, "kind": "paused", **event}]
    return {"run_id": f"r-{sorted(status)}-{event}"[:64], "status": said, "events": events}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (_report(), 200),
        (_report({}), 200),
        (_report({"ago_s": 1e9, "ran_s": 1e9, "cpu_back_ms": 1e12}), 200),
        (_report(numbers={"a": 1, "b": None, "c": "x", "d": True, "e": 1e300}), 200),
        (_report(numbers={"for ever": float("inf"), "nan": float("nan")}), 200),
        (_report(rule="new", vm="a state of the future"), 200),
        (_report({"number": HUGE}), 422),
        (_report({"number": 0}), 422),
        (_report({"ran_s": float("inf")}), 422),
        (_report({"ago_s": float("nan")}), 422),
        (_report({"text": "x" * 1025}), 422),
        (_report({"text": "\x00"}), 200),
        (_report({"text": "\ud800"}), 422),
        (_report({"kind": "worker_started"}), 422),
        (_report(numbers={f"n{n}": n for n in range(65)}), 422),
        (_report(numbers={"deep": {"er": [1]}}), 422),
        (_report(numbers={"x": "y" * 257}), 422),
        (_report(numbers={"n" * 65: 1}), 422),
        (_report(decision="perhaps"), 422),
        ({**_report(), "run_id": ""}, 422),
        ({**_report(), "run_id": "r" * 65}, 422),
        ({**_report(), "events": [{"number": n + 1, "kind": "idle"} for n in range(1001)]}, 422),
        ({"run_id": "r" * 3_000_000}, 413),
    ],
)
def test_reports_of_a_strange_agent_are_taken_or_refused(
    coordinator: Grid, body: dict[str, object], status: int
) -> None:
    with coordinator.browser("desk") as browser:
        answer = browser.post(
            "/v1/machine/report", content=json.dumps(body),
            headers={"content-type": "application/json"},
        )  # fmt: skip
    assert answer.status_code == status, answer.text
    with coordinator.browser("admin") as browser:
        for path in ("/v1/machines", "/v1/machines/desk", "/v1/why/desk", "/v1/story/desk"):
            assert browser.get(path).status_code == 200, "what was stored can be read again"
        assert browser.get("/metrics").status_code == 200


@pytest.mark.parametrize("name", ["desk", "desk/vm", "nobody/vm", "%00", "a%2Fb", "/", "x" * 3000])
@pytest.mark.parametrize("path", ["", "/drain", "/revoke/x"])
def test_every_machine_route_survives_every_kind_of_name(
    coordinator: Grid, name: str, path: str
) -> None:
    with coordinator.browser("admin") as browser:
        method = "post" if path else "get"
        answer = browser.request(method, f"/v1/machines/{name}{path}", json={"drain": False})
        assert answer.status_code < 500, answer.text
        assert browser.get(f"/v1/why/{name}").status_code < 500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/datasets", {"layout": {}, "records": HUGE, "blocks": []}),
        ("/v1/datasets", {"layout": {}, "records": 2**63, "blocks": []}),
        ("/v1/join-codes", {"role": "worker", "ttl_s": 1e-300}),
        ("/v1/jobs/held/release", {"quarantine_limit": "9" * 30}),
        ("/v1/jobs/held/release", {"quarantine_limit": "nan%"}),
        ("/v1/jobs/held/release", {"quarantine_limit": "²"}),
        ("/v1/jobs/held/hold", {"reason": "\x00"}),
    ],
)
def test_messages_of_a_strange_submitter_are_taken_or_refused(
    coordinator: Grid, tmp_path: Path, path: str, body: dict[str, object]
) -> None:
    with coordinator.browser("admin") as browser:
        answer = browser.post(path, json=body)
        assert answer.status_code < 500, answer.text
        assert browser.get("/v1/jobs").status_code == 200, "what was stored can be read again"
        assert browser.get("/v1/jobs/held").status_code == 200
        browser.post("/v1/jobs/held/hold", json={})
