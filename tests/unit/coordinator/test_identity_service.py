"""Copies and alarms as the coordinator decides them, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_desks_service import Office, event

from officegrid.cli.machine_text import machine_lines, machine_table
from officegrid.coordinator.service import claims, identity, machines
from officegrid.coordinator.service.context import Grid
from officegrid.core.errors import (
    AuthError,
    ConflictError,
    ForbiddenError,
    LimitError,
    OfficeGridError,
)
from officegrid.storage.api import Job, Machine, Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.storage.sqlite_tx import SqliteTx
from officegrid.wire.work import ClaimReply, ClaimRequest, MachineEvent

HERE, THERE = "a" * 32, "b" * 32


class Twins(Office):
    """A grid on which machines are copied."""

    def worker(self, name: str = "vm", hardware: str = "") -> Machine:
        facts = {"hardware_id": hardware} if hardware else {}
        return self.do(
            lambda grid, tx: machines.add_machine(
                tx, role="worker", name=name, token_hash=f"token-{name}", facts=facts, now=self.now
            )
        )

    def ask(self, machine: Machine, session: str, hardware: str = "") -> ClaimReply:
        """A claim as the API serves it: a refusal is noted in a transaction of its own."""
        request = ClaimRequest(session_id=session, units=1, hardware_id=hardware)
        try:
            return self.do(
                lambda grid, tx: claims.claim(grid, tx, self.look(machine), request, self.now)
            )
        except ConflictError as error:
            code = error.code
            self.do(lambda grid, tx: identity.note_refused(tx, machine, code, self.now))
            raise

    def clone(self, original: Machine, hardware: str, token: str = "new") -> Machine:
        return self.do(
            lambda grid, tx: identity.clone(
                grid, tx, self.look(original), hardware=hardware, token_hash=token, facts={},
                now=self.now,
            )
        )  # fmt: skip

    def refused(self, machine: Machine, session: str, hardware: str = "") -> str:
        with pytest.raises(ConflictError) as caught:
            self.ask(machine, session, hardware)
        return caught.value.code

    def blamed(self, job: Job) -> int:
        """How many units went back as lost with their machine."""
        events = self.storage.read(lambda tx: tx.events(job.id))
        return sum(one.kind == "lost" for one in events)

    def alarm(self, machine: Machine) -> str:
        return self.view(machine).alarm or ""


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    storage = SqliteStorage(tmp_path / "grid.db")
    yield Twins(storage)
    storage.close()


# --- hardware


def test_the_first_hardware_that_is_told_is_the_machines(twins: Twins) -> None:
    machine = twins.worker()
    twins.ask(machine, "s1")
    assert "hardware_id" not in twins.look(machine).facts
    twins.ask(machine, "s2", HERE)
    assert twins.look(machine).facts["hardware_id"] == HERE
    assert twins.refused(machine, "s3", THERE) == "cloned"
    twins.ask(machine, "s4")  # one that cannot tell is believed
    assert twins.look(machine).facts["hardware_id"] == HERE


def test_a_copy_is_refused_and_the_original_goes_on_untouched(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    twins.submit()
    unit = twins.ask(machine, "s", HERE).units[0]
    before = twins.look(machine)
    twins.now += 5
    assert twins.refused(machine, "copy", THERE) == "cloned"
    assert twins.look(machine) == before
    assert "a copy on other hardware" in twins.alarm(machine)
    assert twins.commit(machine, unit).outcome == "committed"
    assert twins.ask(machine, "s", HERE).units, "its session is still the one that counts"


def test_what_a_copy_tells_is_not_the_originals_state(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    twins.ask(machine, "s", HERE)
    before = twins.look(machine)
    twins.now += 5
    said = MachineEvent(kind="worker_stopped", session_id="copy")
    twins.do(lambda grid, tx: machines.note_event(grid, tx, before, said, twins.now))
    assert twins.look(machine) == before
    assert "another worker" in twins.story(machine)[-1]


# --- copies


def test_a_copy_becomes_a_machine_of_its_own(twins: Twins) -> None:
    machine = twins.worker("pc-7/vm", HERE)
    twins.refused(machine, "copy", THERE)
    made = twins.clone(machine, THERE)
    assert (made.name, made.role, made.host) == ("pc-7/vm-bbbbbb", "worker", None)
    assert (made.cloned_from, made.facts["hardware_id"]) == (machine.id, THERE)
    assert made.id != machine.id
    assert twins.view(made).cloned_from == machine.id
    assert twins.look(machine).token_hash == "token-pc-7/vm"
    assert not twins.alarm(machine), "the copy has an identity: that was all"
    assert any(line.startswith("cloned:") for line in twins.story(machine))
    twins.ask(made, "s", THERE)
    twins.ask(machine, "t", HERE)


def test_the_same_hardware_asking_again_is_the_same_machine_with_a_new_token(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    twins.submit()
    first = twins.clone(machine, THERE, "one")
    assert twins.ask(first, "s", THERE).units
    again = twins.clone(machine, THERE, "two")
    assert again.id == first.id
    assert twins.view(first).units_running == 0, "the units of the one before go to others"
    assert twins.storage.read(lambda tx: tx.machine_by_token("one")) is None
    assert twins.clone(machine, "c" * 32, "three").id != first.id


def test_a_copy_of_a_copy_is_a_third_machine(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    copy = twins.clone(machine, THERE)
    third = twins.clone(copy, "c" * 32, "third")
    assert third.cloned_from == copy.id
    assert third.name == "vm-bbbbbb-cccccc"
    twins.do(lambda grid, tx: machines.revoke(grid, tx, twins.look(machine), twins.now))
    assert [twins.look(one).revoked for one in (machine, copy, third)] == [True, True, True]


def test_revoking_a_copy_leaves_the_original_and_keeps_the_copy_out(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    copy = twins.clone(machine, THERE)
    twins.do(lambda grid, tx: machines.revoke(grid, tx, twins.look(copy), twins.now))
    assert not twins.look(machine).revoked
    with pytest.raises(ForbiddenError, match="was revoked"):
        twins.clone(machine, THERE, "again")


def test_revoking_an_agent_revokes_its_worker_and_the_copies_of_it(twins: Twins) -> None:
    agent, worker = twins.desktop()
    copy = twins.clone(worker, THERE)
    assert copy.host is None, "it is in no desktop that is known"
    twins.do(lambda grid, tx: machines.revoke(grid, tx, twins.look(agent), twins.now))
    assert twins.look(worker).revoked
    assert twins.look(copy).revoked


def test_the_machine_itself_is_not_a_copy(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    with pytest.raises(ConflictError) as caught:
        twins.clone(machine, HERE)
    assert caught.value.code == "not_a_copy"
    assert twins.look(machine).token_hash == "token-vm"


def test_an_agents_copy_needs_a_code(twins: Twins) -> None:
    agent, _ = twins.desktop()
    with pytest.raises(ForbiddenError, match="only a worker's copy"):
        twins.clone(agent, THERE)


def test_there_is_an_end_to_copies(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MOST_CLONES", 3)
    machine = twins.worker(hardware=HERE)
    made = [twins.clone(machine, f"{number}" * 32, f"t{number}") for number in range(3)]
    with pytest.raises(LimitError) as caught:
        twins.clone(machine, THERE, "t9")
    assert caught.value.code == "too_many_copies"
    assert twins.clone(machine, "2" * 32, "t2 again").id == made[2].id


def tree(machine: Machine, *links: int) -> list[Machine]:
    """Copies with the ids 1, 2, … of which `links` name the originals; 0 is `machine`."""
    ids = [machine.id, *(f"copy-{number}" for number in range(1, len(links) + 1))]
    return [
        replace(
            machine, id=ids[number], name=f"vm-{number}", token_hash=f"token-{number}",
            facts={"hardware_id": f"{number:032x}"}, cloned_from=ids[link],
        )
        for number, link in enumerate(links, 1)
    ]  # fmt: skip


def put(twins: Twins, copies: list[Machine]) -> None:
    def write(grid: Grid, tx: Tx) -> None:
        for copy in copies:
            tx.put_machine(copy)

    twins.do(write)


def refused_copy(twins: Twins, original: Machine, hardware: str = THERE) -> str:
    with pytest.raises(LimitError) as caught:
        twins.clone(original, hardware, f"token of {hardware}")
    assert caught.value.code == "too_many_copies"
    return f"{caught.value.what} {caught.value.why} {caught.value.fix}"


@pytest.mark.parametrize("shape", ["a chain", "side by side", "pairs"])
def test_revoking_reaches_two_thousand_copies(
    twins: Twins, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = twins.worker(hardware=HERE)
    bystander = twins.worker("bystander")
    above = {"a chain": lambda n: n - 1, "side by side": lambda n: 0, "pairs": lambda n: n // 2}
    copies = tree(machine, *(above[shape](number) for number in range(1, 2001)))
    copies[-1] = replace(copies[-1], revoked=True)  # before, by an admin
    put(twins, copies)
    twins.submit()
    assert twins.ask(copies[-2], "s").units
    lists: list[int] = []
    right = SqliteTx.machines

    def counted(tx: SqliteTx) -> list[Machine]:
        found = right(tx)
        lists.append(len(found))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(SqliteTx, "machines", counted)
        twins.do(lambda grid, tx: machines.revoke(grid, tx, machine, twins.now))
    assert lists == [2002], "all machines are read once, however many go"
    left = [one.id for one in twins.storage.read(lambda tx: tx.machines()) if not one.revoked]
    assert left == [bystander.id]
    assert twins.view(copies[-2]).units_running == 0, "its units went back"
    assert sum(line.startswith("revoked:") for line in twins.story(copies[-2])) == 1
    assert not any(line.startswith("revoked:") for line in twins.story(copies[-1]))


def test_a_copy_below_a_revoked_one_goes_too(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    copies = tree(machine, 0, 1)
    put(twins, [replace(copies[0], revoked=True), copies[1]])
    twins.do(lambda grid, tx: machines.revoke(grid, tx, machine, twins.now))
    assert twins.look(copies[1]).revoked


def test_links_that_go_round_or_nowhere_end(twins: Twins) -> None:
    """No copy makes such, but a database that was mended by hand may have them."""
    machine = twins.worker(hardware=HERE)
    first, second = tree(machine, 2, 1)
    lost = replace(first, id="lost", name="lost", token_hash="lost", cloned_from="nobody")
    put(twins, [first, second, lost])
    assert twins.clone(first, THERE, "a").cloned_from == first.id
    assert twins.clone(lost, THERE, "b").cloned_from == lost.id
    twins.do(lambda grid, tx: machines.revoke(grid, tx, second, twins.now))
    assert [twins.look(one).revoked for one in (machine, first, second, lost)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_a_copy_of_a_copy_is_made_so_often_and_not_more(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    line = [machine]
    for number in range(8):
        line.append(twins.clone(line[-1], f"{number:032x}", f"t{number}"))
    said = refused_copy(twins, line[8])
    assert "8 copies away from vm, and 8 are allowed" in said
    assert "officegrid join-code" in said
    assert twins.clone(line[7], f"{7:032x}", "t7 again").id == line[8].id
    assert twins.clone(line[7], THERE, "t8").cloned_from == line[7].id


def test_a_copy_that_is_there_asks_again_however_deep_it_is(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    copies = tree(machine, *range(40))
    put(twins, copies)
    assert twins.clone(copies[-2], f"{40:032x}", "again").id == copies[-1].id
    assert "40 copies away from vm" in refused_copy(twins, copies[-1])


def test_a_thousand_copies_are_counted_with_the_copies_of_copies(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    other = twins.worker("other", "e" * 32)
    copies = tree(machine, *([0] * 9), *(1 + number % 9 for number in range(990)))
    assert len(copies) == 999
    put(twins, copies)
    last = twins.clone(copies[500], THERE, "the thousandth")
    for original in (machine, copies[3], copies[700], last):
        said = refused_copy(twins, original, "c" * 32)
        assert "vm has been copied 1000 times" in said
        assert "officegrid revoke vm`" in said
    assert twins.clone(copies[500], THERE, "again").id == last.id
    assert twins.clone(other, THERE, "of another").cloned_from == other.id


def test_odd_hardware_ids_give_plain_names() -> None:
    assert identity.clone_name("vm", "x\n\x1b[2J-12") == "vm-x2J12"
    assert identity.clone_name("vm", "---") == "vm-copy"
    assert len(identity.clone_name("n" * 255, "a" * 64)) <= 255


def test_a_vm_made_anew_is_the_same_machine_on_new_hardware(twins: Twins) -> None:
    agent, worker = twins.desktop()
    twins.ask(worker, "s1", HERE)
    twins.do(
        lambda grid, tx: tx.put_machine(replace(twins.look(worker), facts={"hardware_id": HERE}))
    )
    anew = twins.join_worker(agent, "second")
    assert anew.id == worker.id
    assert "hardware_id" not in anew.facts
    twins.ask(anew, "s2", THERE)
    assert twins.look(worker).facts["hardware_id"] == THERE
    assert twins.refused(anew, "s3", HERE) == "cloned", "the VM from before"


def test_a_revoked_token_cannot_clone(twins: Twins) -> None:
    from officegrid.coordinator.api.common import fresh

    machine = twins.worker(hardware=HERE)
    twins.do(lambda grid, tx: machines.revoke(grid, tx, machine, twins.now))
    with pytest.raises(AuthError):
        twins.do(
            lambda grid, tx: identity.clone(
                grid, tx, fresh(tx, machine), hardware=THERE, token_hash="x", facts={}, now=1.0
            )
        )
    assert len(twins.storage.read(lambda tx: tx.machines())) == 1


# --- alarms


def test_two_that_take_turns_raise_an_alarm_and_their_records_are_not_blamed(twins: Twins) -> None:
    machine = twins.worker()
    job = twins.submit(attempts=2)
    for turn in range(12):
        twins.now += 3
        assert twins.ask(machine, f"s{turn}").units
        if turn:
            assert twins.refused(machine, f"s{turn - 1}") == "session_replaced"
    assert twins.blamed(job) == 1, "the first time it looks like a crash"
    assert not twins.job(job).quarantined
    assert "two workers take turns under this identity (11 times" in twins.alarm(machine)
    lines = [line for line in twins.story(machine) if line.startswith("identity_alarm:")]
    assert len(lines) == 1, "one line an hour"
    why = twins.why(machine)
    assert why.startswith("ALARM for vm: two workers take turns")
    assert "officegrid join-code --role worker" in why


def test_an_alarm_is_told_again_after_an_hour_and_ends_a_day_after_the_last_time(
    twins: Twins,
) -> None:
    machine = twins.worker(hardware=HERE)

    def lines() -> int:
        return sum(line.startswith("identity_alarm:") for line in twins.story(machine))

    for minutes, told in ((0, 1), (30, 1), (29, 1), (2, 2), (59, 2), (2, 3)):
        twins.now += 60.0 * minutes
        twins.refused(machine, "copy", THERE)
        assert lines() == told
    twins.now += 86_399
    assert twins.alarm(machine)
    twins.now += 2
    assert not twins.alarm(machine)
    twins.refused(machine, "copy", THERE)
    assert "times" not in twins.alarm(machine), "counted anew"


def test_a_real_crash_after_the_turns_is_blamed_again(twins: Twins) -> None:
    machine = twins.worker()
    job = twins.submit()
    for session in ("one", "two"):
        twins.ask(machine, session)
    twins.refused(machine, "one")
    assert twins.blamed(job) == 1
    twins.ask(machine, "three")
    assert twins.blamed(job) == 1
    twins.now += identity.TURNS_S + 1
    twins.ask(machine, "four")
    assert twins.blamed(job) == 2


def test_a_new_token_ends_the_alarm(twins: Twins) -> None:
    agent, worker = twins.desktop()
    twins.ask(worker, "one")
    twins.ask(worker, "two")
    twins.refused(worker, "one")
    assert twins.alarm(worker)
    assert "ALARM for pc-1/vm" in twins.why(agent), "the desktop tells for its worker"
    twins.join_worker(agent, "anew")
    assert not twins.alarm(worker)


def test_the_list_marks_the_desktop_whose_worker_is_in_two_places(twins: Twins) -> None:
    agent, worker = twins.desktop("pc-1")
    calm, its_worker = twins.desktop("pc-2")
    twins.ask(worker, "one", HERE)
    twins.refused(worker, "copy", THERE)
    views = [twins.view(one) for one in (agent, worker, calm, its_worker)]
    lines = machine_table(views).splitlines()
    marked = [line for line in lines if "ALARM" in line]
    assert len(lines) == 5, "two rows below the head, the alarm, and where to read more"
    assert marked[0].startswith(f"{agent.id} ")
    assert marked[1].startswith(f"ALARM: pc-1/vm ({worker.id}): a copy on other hardware")
    assert "ALARM" not in machine_table(views[2:])


def test_a_revoked_machine_has_no_alarm(twins: Twins) -> None:
    machine = twins.worker(hardware=HERE)
    twins.refused(machine, "copy", THERE)
    twins.do(lambda grid, tx: machines.revoke(grid, tx, twins.look(machine), twins.now))
    assert not twins.alarm(machine)


def test_two_agents_of_one_identity_are_an_alarm(twins: Twins) -> None:
    agent, _ = twins.desktop()
    twins.report(agent, event(1, "idle"), run_id="one")
    twins.report(agent, event(1, "idle"), run_id="two")
    assert not twins.alarm(agent), "it was restarted"
    twins.report(agent, run_id="one")
    assert "two agents report as this desktop" in twins.alarm(agent)
    assert "officegrid join-code --role agent" in twins.why(agent)


def test_other_errors_are_no_alarm(twins: Twins) -> None:
    machine = twins.worker()
    twins.do(lambda grid, tx: identity.note_refused(tx, machine, "conflict", twins.now))
    assert not twins.alarm(machine)
    assert OfficeGridError.code not in ("cloned", "session_replaced")


def test_people_are_listed_apart_from_machines_and_are_never_offline(twins: Twins) -> None:
    agent, worker = twins.desktop("pc-1")
    people = [
        twins.do(
            lambda grid, tx, name=name, role=role: machines.add_machine(
                tx, role=role, name=name, token_hash=name, facts={}, now=twins.now
            )
        )
        for name, role in (("ann", "submitter"), ("bob", "admin"))
    ]
    twins.do(lambda grid, tx: machines.revoke(grid, tx, people[1], twins.now))
    twins.now += 86_400
    views = [twins.view(one) for one in (people[0], agent, people[1], worker)]
    above, below = machine_table(views).split("\n\n")
    assert [line.split()[1] for line in above.splitlines()] == ["name", "pc-1"]
    rows = [line.split()[:4] for line in below.splitlines()]
    assert rows == [
        ["id", "name", "role", "access"],
        [people[0].id, "ann", "submitter", "yes"],
        [people[1].id, "bob", "admin", "revoked"],
    ]
    assert machine_table(views[:1]).startswith("No machine has joined yet.\n\nid")
    alone = "\n".join(machine_lines(views[0]))
    assert "access        yes" in alone
    assert "offline" not in alone
    assert [one.role for one in views] == ["submitter", "agent", "admin", "worker"]
