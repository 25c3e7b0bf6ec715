"""Reports to the coordinator: in order, once each, through outages, never in the loop's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from officegrid.agent import reporter as reporter_module
from officegrid.agent.reporter import MOST_TEXT_CHARS, Reporter, Waiting
from officegrid.core.errors import UnavailableError
from officegrid.wire.agent import AgentOrders, AgentReport, DeskEvent, DeskRules, DeskStatus
from unit.agent.desk_kit import wait_for


class Coordinator:
    """The other end of the line; `away` makes it unreachable, `slow_s` slow."""

    def __init__(self) -> None:
        self.away = False
        self.slow_s = 0.0
        self.reports: list[AgentReport] = []
        self.answer = AgentOrders(report_every_s=60.0)
        self.calls = 0

    def call(
        self, method: str, path: str, *, body: AgentReport, reply: type[AgentOrders],
        timeout_s: float, retry: bool,
    ) -> AgentOrders:  # fmt: skip
        assert (method, path, retry) == ("POST", "/v1/machine/report", False)
        self.calls += 1
        time.sleep(self.slow_s)
        if self.away:
            raise UnavailableError("The coordinator cannot be reached.")
        self.reports.append(AgentReport.model_validate_json(body.model_dump_json()))
        return self.answer

    def events(self) -> list[DeskEvent]:
        return [event for report in self.reports for event in report.events]


def status() -> DeskStatus:
    return DeskStatus(decision="yield", rule="input", sentence="Somebody is here.")


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    monkeypatch.setattr(reporter_module, "BACKOFF_CAP_S", 0.01)
    monkeypatch.setattr(reporter_module, "BACKOFF_BASE_S", 0.001)
    return Coordinator()


@pytest.fixture
def orders() -> list[AgentOrders]:
    return []


@pytest.fixture
def reporter(line: Coordinator, orders: list[AgentOrders]) -> Iterator[Reporter]:
    made = Reporter(line, "r1", status, orders.append, version="1.2")
    yield made
    made.close(5.0)


def test_events_arrive_once_in_order_and_orders_come_back(
    reporter: Reporter, line: Coordinator, orders: list[AgentOrders]
) -> None:
    line.answer = AgentOrders(drain=True, rules=DeskRules(idle_s=600), report_every_s=60)
    reporter.start()
    reporter.add("idle", text="Nobody is here.")
    reporter.add("starting")
    reporter.add("running", ran_s=2.5)
    wait_for(lambda: len(line.events()) == 3, "three events")
    reporter.hurry()
    wait_for(lambda: line.calls >= 2 and not len(reporter.waiting), "another report")
    assert [event.number for event in line.events()] == [1, 2, 3]
    assert [event.kind for event in line.events()] == ["idle", "starting", "running"]
    assert orders[-1].drain
    assert orders[-1].rules.idle_s == 600
    assert line.reports[0].run_id == "r1"
    assert line.reports[0].status.rule == "input"
    assert line.reports[0].version == "1.2"


def test_an_outage_delays_events_but_loses_none_and_tells_how_old_they_are(
    reporter: Reporter, line: Coordinator
) -> None:
    line.away = True
    reporter.start()
    reporter.add("user_back", time.monotonic() - 5.0)
    wait_for(lambda: reporter.trouble, "the outage is known")
    for _ in range(250):
        reporter.add("idle")
    wait_for(lambda: line.calls >= 3, "it tries again")
    line.away = False
    wait_for(lambda: len(line.events()) == 251, "all events")
    assert [event.number for event in line.events()] == list(range(1, 252))
    assert line.events()[0].ago_s >= 5.0
    assert reporter.trouble == ""


def test_adding_never_waits_for_the_coordinator(reporter: Reporter, line: Coordinator) -> None:
    line.slow_s = 1.0
    reporter.start()
    reporter.add("idle")
    wait_for(lambda: line.calls, "a report is under way")
    began_s = time.monotonic()
    for _ in range(1000):
        reporter.add("paused", ran_s=1.0)
    assert time.monotonic() - began_s < 0.5
    line.slow_s = 0.0


def test_the_last_words_are_sent_at_the_end(reporter: Reporter, line: Coordinator) -> None:
    reporter.start()
    wait_for(lambda: line.reports, "the first report")
    reporter.add("stopped", text="The agent ends.")
    reporter.close(5.0)
    assert line.events()[-1].text == "The agent ends."


def test_the_end_does_not_wait_for_a_coordinator_that_is_away(
    line: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "BACKOFF_BASE_S", 1000.0)
    monkeypatch.setattr(reporter_module, "BACKOFF_CAP_S", 1000.0)
    line.away = True
    reporter = Reporter(line, "r1", status, lambda _: None)
    reporter.start()
    wait_for(lambda: reporter.trouble, "the outage is known")
    began_s = time.monotonic()
    reporter.close(5.0)
    assert time.monotonic() - began_s < 2.0
    assert "reporter" not in {thread.name for thread in threading.enumerate()}


def test_a_status_that_cannot_be_made_does_not_end_the_reports(line: Coordinator) -> None:
    broken = [True]

    def faulty() -> DeskStatus:
        if broken.pop() if broken else False:
            raise KeyError("a bug")
        return status()

    reporter = Reporter(line, "r1", faulty, lambda _: None)
    reporter.start()
    wait_for(lambda: line.reports, "a report after the fault", 10.0)
    reporter.close(5.0)


def test_a_text_that_is_too_long_is_cut_rather_than_refused() -> None:
    waiting = Waiting()
    event = waiting.add("trouble", 0.0, text="x" * 5000)
    assert len(event.message(1.0).text) == MOST_TEXT_CHARS


def test_too_many_events_keep_the_last_of_each_kind_and_all_hours() -> None:
    waiting = Waiting(most=10)
    waiting.add("trouble", 0.0, text="only one")
    for index in range(1000):
        waiting.add("saved" if index % 2 else "running", float(index), ran_s=float(index % 2))
    kept = waiting.first(100)
    assert len(kept) == 10
    assert [event.number for event in kept] == sorted(event.number for event in kept)
    assert kept[0].text == "only one"
    assert kept[-1].number == 1001
    assert sum(event.ran_s for event in kept) == 500


def test_what_is_under_way_is_not_merged_into_what_comes_later() -> None:
    waiting = Waiting(most=3)
    for index in range(3):
        waiting.add("saved", float(index), ran_s=1.0)
    sent = waiting.first(2)
    for index in range(5):
        waiting.add("saved", 10.0 + index, ran_s=1.0)
    waiting.acknowledge(sent[-1].number)
    assert sum(event.ran_s for event in waiting.first(100)) == 6
