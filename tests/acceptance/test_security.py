"""Who may do what, and where secrets must never be found."""

from __future__ import annotations

import json
import stat
from functools import partial
from pathlib import Path

import psutil
import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, answered, wait_for
from acceptance.projects import double_job, write_job
from officegrid.coordinator.app import make_app, open_coordinator
from officegrid.coordinator.tokens import hash_token, new_token
from officegrid.core.errors import ForbiddenError
from officegrid.core.joincode import parse_code
from officegrid.transport.profile import load_profile
from officegrid.wire.work import ClaimReply, ClaimRequest, ReleaseRequest, Unit

OPEN = {("get", "/v1/ca"), ("get", "/v1/health"), ("post", "/v1/join")}
REPORTED = {"decision": "run", "rule": "away", "sentence": "Nobody is here."}
SOMETHING = "0" * 64  # fits every path parameter: a digest, a job, a machine


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(method, path) of everything that the coordinator answers, from its own schema."""
    coordinator = open_coordinator(tmp_path_factory.mktemp("schema"), names=[])
    paths = make_app(coordinator).openapi()["paths"]
    coordinator.writer.stop()
    coordinator.storage.close()
    found = [(method, path) for path, methods in paths.items() for method in methods]
    assert len(found) > 25
    assert set(found) > OPEN
    return [*found, ("get", "/v1/openapi.json")]


def _filled_in(path: str) -> str:
    path = path.replace("{kind}", "code")
    for name in ("sha256", "job_id", "name_or_id", "subject", "image", "name", "archive"):
        path = path.replace("{" + name + "}", SOMETHING)
    assert "{" not in path
    return path


@pytest.mark.parametrize("token", [None, "ogt_made-up", "", "Bearer"])
def test_nothing_but_the_way_in_answers_without_a_known_token(
    shared: Grid, operations: list[tuple[str, str]], token: str | None
) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}".strip()}
    with shared.browser(**headers) as browser:
        found = {
            (method, path): browser.request(method, _filled_in(path)).status_code
            for method, path in operations
        }
    assert {one: status for one, status in found.items() if status != 401 and one not in OPEN} == {}
    assert found["get", "/v1/ca"] == found["get", "/v1/health"] == 200


def test_a_token_of_another_scheme_or_a_hash_of_a_token_opens_nothing(shared: Grid) -> None:
    token = load_profile(shared.home("me")).token
    for value in (f"Basic {token}", token, f"Bearer {hash_token(token)}", f"Bearer {token}x"):
        with shared.browser(Authorization=value) as browser:
            assert browser.get("/v1/jobs").status_code == 401
    with shared.browser(Authorization=f"bearer {token}") as browser:
        assert browser.get("/v1/jobs").status_code == 200, "the right token does open it"


@pytest.fixture
def two_jobs(grid: Grid, tmp_path: Path) -> tuple[Grid, dict[str, str]]:
    """Two jobs with different code and input that nobody works on; a joined machine `m`."""
    jobs = {}
    for name, records in (("one", 20), ("two", 30)):
        folder = tmp_path / name
        job_file = double_job(folder, records=records, name=name)
        (folder / "mark.txt").write_text(name)
        jobs[name] = grid.submit(job_file)
    grid.join("m", "worker")
    return grid, jobs


def _claim(grid: Grid, machine: str) -> Unit:
    with grid.connection_of(machine) as connection:
        request = ClaimRequest(session_id="s", units=1)
        return connection.call("POST", "/v1/claim", body=request, reply=ClaimReply).units[0]


def test_a_machine_reads_only_what_its_unit_needs_and_only_while_it_has_it(
    two_jobs: tuple[Grid, dict[str, str]],
) -> None:
    grid, _ = two_jobs
    grid.join("other", "worker")
    mine, theirs = _claim(grid, "m"), _claim(grid, "other")
    assert mine.job_id != theirs.job_id, "jobs take turns"
    assert mine.bundle != theirs.bundle
    readable = [mine.bundle, *(block.sha256 for block in mine.input)]
    foreign = [theirs.bundle, *(block.sha256 for block in theirs.input)]
    with grid.browser("m") as browser:
        assert [browser.get(f"/v1/objects/{name}").status_code for name in readable] == [200, 200]
        assert [browser.get(f"/v1/objects/{name}").status_code for name in foreign] == [403, 403]
        assert browser.get(f"/v1/objects/{SOMETHING}").status_code == 403
    with grid.connection_of("other") as other:
        stolen = ReleaseRequest(session_id="s", leases=[mine.lease_id])
        other.call("POST", "/v1/release", body=stolen)
    assert grid.machine("m").units_running == 1, "another machine gave it back"
    with grid.connection_of("m") as connection:
        release = ReleaseRequest(session_id="s", leases=[mine.lease_id])
        connection.call("POST", "/v1/release", body=release)
        for name in readable:
            late = answered(partial(connection.download, f"/v1/objects/{name}"))
            assert isinstance(late, ForbiddenError)


def test_a_machine_sees_no_jobs_and_changes_none(two_jobs: tuple[Grid, dict[str, str]]) -> None:
    grid, jobs = two_jobs
    before = [job.model_dump() for job in grid.jobs()]
    job = jobs["one"]
    spec = {"name": "x", "program": {"python": "m:f"}, "dataset": SOMETHING}
    dataset = {"layout": {}, "records": 0, "blocks": []}
    # fmt: off
    forbidden = [
        ("get", "/v1/jobs", None), ("get", f"/v1/jobs/{job}", None),
        ("get", f"/v1/jobs/{job}/output", None), ("get", f"/v1/jobs/{job}/output/slices", None),
        ("get", f"/v1/jobs/{job}/quarantine", None), ("get", f"/v1/jobs/{job}/events", None),
        ("post", f"/v1/jobs/{job}/cancel", None), ("post", f"/v1/jobs/{job}/hold", {}),
        ("post", f"/v1/jobs/{job}/release", {}), ("post", f"/v1/jobs/{job}/retry", {}),
        ("get", f"/v1/why/{job}", None), ("get", f"/v1/story/{job}", None),
        ("post", "/v1/jobs", spec), ("post", "/v1/datasets", dataset),
        ("put", f"/v1/objects/{SOMETHING}", None),
        ("get", "/v1/machines", None), ("get", "/v1/machines/m", None),
        ("post", "/v1/machines/m/revoke", None), ("post", "/v1/join-codes", {"role": "admin"}),
        ("post", "/v1/machines/m/drain", {"drain": True}), ("put", "/v1/desk-rules", {}),
        ("get", "/v1/desk-rules", None), ("post", "/v1/machine/worker-code", None),
        ("post", "/v1/machine/report", {"run_id": "r", "status": REPORTED}),
        ("get", "/v1/images", None), ("get", f"/v1/images/{SOMETHING}", None),
        ("get", f"/v1/images/{SOMETHING}/spec", None),
        ("get", f"/v1/image-chunks/{SOMETHING}", None),
        ("post", f"/v1/images/{SOMETHING}/rollout", {"action": "finish"}),
        ("get", "/metrics", None), ("get", "/v1/openapi.json", None),
    ]
    # fmt: on
    with grid.browser("m") as browser:
        found = {
            f"{method} {path}": browser.request(method, path, json=body).status_code
            for method, path, body in forbidden
        }
    assert {one: status for one, status in found.items() if status != 403} == {}
    assert [job.model_dump() for job in grid.jobs()] == before


def test_people_cannot_work_and_viewers_cannot_read_records(shared: Grid, tmp_path: Path) -> None:
    job = shared.submit(double_job(tmp_path, records=20, bad_every=10, name="seen"), watch=True)
    shared.join("viewer", "viewer")
    claim = {"session_id": "s"}
    with shared.browser("me") as me:
        page = me.get(f"/v1/jobs/{job}/output/slices").json()
        name = page["slices"][0]["sha256"]
        assert me.get(f"/v1/objects/{name}").status_code == 200
        assert me.get(f"/v1/jobs/{job}/quarantine").status_code == 200
        assert me.post("/v1/claim", json=claim).status_code == 403
        assert me.post("/v1/join-codes", json={"role": "viewer"}).status_code == 403
    with shared.browser("viewer") as viewer:
        assert viewer.get(f"/v1/jobs/{job}").status_code == 200
        assert viewer.get("/v1/machines").status_code == 200
        for path in ("output", "output/slices", "quarantine"):
            assert viewer.get(f"/v1/jobs/{job}/{path}").status_code == 403
        assert viewer.get(f"/v1/objects/{name}").status_code == 403
        assert viewer.put(f"/v1/objects/{SOMETHING}", content=b"x").status_code == 403
        assert viewer.post(f"/v1/jobs/{job}/cancel").status_code == 403
        assert viewer.post("/v1/claim", json=claim).status_code == 403
    with shared.browser("admin") as admin:
        assert admin.post("/v1/claim", json=claim).status_code == 403


# --- secrets


def _files_with(folder: Path, secret: str) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def test_secrets_are_in_no_log_no_database_and_no_list_of_processes(
    grid: Grid, tmp_path: Path
) -> None:
    job = """
        name = "spy"
        python = "program:record"
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        """
    code = (
        "import json, os, time\n"
        "def record(row):\n"
        "    time.sleep(0.05)\n"
        "    return {'environment': json.dumps(dict(os.environ))}\n"
    )
    rows = "id\n" + "".join(f"{n}\n" for n in range(60))
    job_file = write_job(tmp_path / "p", job, {"program.py": code, "in.csv": rows})
    codes = [grid.code("worker"), grid.code("submitter", uses=2), grid.code("viewer")]
    grid.ok("join", grid.url, "--code", codes[0], "--name", "w1", home="w1")
    grid.run("join", grid.url, "--code", codes[0], "--name", "again", home="again")
    grid.ok("join", grid.url, "--code", codes[1], "--name", "me", home="me")
    worker = grid.worker("w1")
    job_id = grid.submit(job_file)
    wait_for(lambda: worker.children(), "a program runs")
    wait_for(lambda: len(_alive(grid.processes())) >= 4, "coordinator, worker, warden, program")
    seen = [(p.pid, " ".join(p.cmdline())) for p in _alive(grid.processes())]
    grid.wait_job(job_id)
    environment = grid.output(job_id, tmp_path / "out.csv").decode()
    assert "OFFICEGRID_JOB" in environment
    assert "OFFICEGRID_HOME" not in environment
    worker.stop()
    grid.coordinator().stop()

    tokens = {name: load_profile(grid.home(name)).token for name in ("admin", "w1", "me")}
    secrets = [*tokens.values(), *codes, *(parse_code(code).secret_text for code in codes)]
    for secret in secrets:
        assert secret not in environment
        assert not [pid for pid, command in seen if secret in command]
        found = _files_with(grid.folder, secret)
        assert [path for path in found if Path(path).name != "profile.json"] == []
    for token in tokens.values():
        assert len(_files_with(grid.folder, token)) == 1, "its own profile"
        assert "data/officegrid.db" in " ".join(_files_with(grid.folder, hash_token(token))), (
            "the search must look into the database"
        )


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running()]


def test_private_files_are_private_and_exposed_ones_refused(grid: Grid) -> None:
    grid.join("me", "submitter")
    private = [grid.home("me") / "profile.json", grid.home("admin") / "profile.json"]
    private += [grid.data / "pki" / name for name in ("ca-key.pem", "server-key.pem")]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in private} == {
        path.name: 0o600 for path in private
    }
    assert stat.S_IMODE(grid.data.stat().st_mode) == 0o700
    private[0].chmod(0o644)
    done = grid.run("jobs", home="me")
    assert done.returncode == 1
    assert "chmod 600" in done.stderr
    assert load_profile(grid.home("admin")).token not in done.stderr


def test_another_coordinator_cannot_pose_as_the_one_that_was_joined(
    make_grid: MakeGrid, tmp_path: Path
) -> None:
    real, impostor = make_grid("real"), make_grid("impostor")
    real.start()
    impostor.start()
    real.join("me", "submitter")
    token = load_profile(real.home("me")).token
    real.redirect("me", impostor.port)
    done = real.run("jobs", home="me")
    assert done.returncode == 1
    assert "not the one this machine joined" in done.stderr
    code = real.code("worker")
    done = real.run("join", impostor.url, "--code", code, "--name", "victim", home="victim")
    assert done.returncode == 1
    assert "not the one this join code was made for" in done.stderr
    assert not (real.home("victim") / "profile.json").exists()
    assert "victim" not in json.dumps(impostor.read("machines"))
    for secret in (token, parse_code(code).secret_text):
        assert _files_with(impostor.folder, secret) == []
    done = real.run("join", real.url, "--code", code, "--name", "victim", home="victim")
    assert done.returncode == 0, "the code was not used up by the attempt"


def test_plain_http_gets_no_answer(shared: Grid) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as plain:
        plain.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = plain.recv(1000)
    assert b"officegrid" not in answer
    assert b"200" not in answer


# --- sizes and nonsense


@pytest.mark.parametrize(
    ("method", "path", "megabytes"),
    [
        ("post", "/v1/jobs", 3),
        ("post", "/v1/claim", 3),
        ("post", "/v1/join", 3),
        ("post", "/v1/objects/missing", 5),
        ("post", "/v1/datasets", 65),
    ],
)
@pytest.mark.parametrize("stated", [True, False], ids=["length-stated", "chunked"])
def test_bodies_that_are_too_large_are_refused(
    shared: Grid, method: str, path: str, megabytes: int, stated: bool
) -> None:
    piece = b" " * 1_048_576
    body = piece * megabytes if stated else iter([piece] * megabytes)
    with shared.browser("me") as browser:
        answer = browser.request(method, path, content=body)
    assert answer.status_code == 413
    assert "At most" in answer.json()["error"]["why"]
    assert shared.coordinator().running


def test_an_object_under_a_wrong_name_is_refused_and_not_kept(shared: Grid) -> None:
    with shared.browser("me") as browser:
        answer = browser.put(f"/v1/objects/{SOMETHING}", content=b"something else")
        assert answer.status_code == 422
        assert "not those of object" in answer.json()["error"]["what"]
        missing = browser.post("/v1/objects/missing", json={"digests": [SOMETHING]}).json()
        assert missing == {"missing": [SOMETHING]}
        for name in ("..%2F..%2Fofficegrid.db", "A" * 64, "tmp", "0" * 63 + "%0a"):
            assert browser.get(f"/v1/objects/{name}").status_code in (404, 422)
    assert list((shared.data / "objects" / "tmp").iterdir()) == []


def test_guessing_join_codes_is_slowed_down(grid: Grid) -> None:
    with grid.browser() as browser:
        body = {"secret": new_token().text, "name": "guesser"}
        answers = [browser.post("/v1/join", json=body).status_code for _ in range(70)]
    assert answers[0] == 401
    assert answers[-1] == 413
    assert set(answers) == {401, 413}
