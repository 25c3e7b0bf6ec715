"""A real agent makes its VM anew: with a real coordinator's end of the line, a driver that keeps
its VM in memory, and orders and troubles that come at the worst moment."""

from __future__ import annotations

import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from officegrid.agent import loop as loop_module
from officegrid.agent import main as main_module
from officegrid.agent import registry
from officegrid.agent import watch as watch_module
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.images import hygiene as hygiene_module
from officegrid.agent.images import switch as switch_module
from officegrid.agent.main import Agent
from officegrid.coordinator.pki import ensure_pki
from officegrid.core import repair
from officegrid.core.errors import UnavailableError
from officegrid.core.imageevents import Held, Order
from officegrid.core.vm import (
    Capabilities,
    DriverError,
    Health,
    HealthLevel,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)
from officegrid.transport.profile import Profile
from officegrid.wire.agent import AgentOrders, AgentReport, DeskRules, WorkerCodeReply
from officegrid.wire.images import ImageOrder
from unit.agent.desk_kit import quicken, wait_for
from unit.agent.image_kit import TOKEN, Shelf
from unit.transport.loopback_servers import HEADERS, running

S = VmState
SIZE = 100_000
RULES = DeskRules(
    idle_s=1, settle_s=0, cpu_idle_s=0, cpu_busy_share=1.0, cpu_idle_share=1.0, saves_per_hour=100,
    memory_free_mb=0, save_delay_s=0,
)  # fmt: skip


class Machine:
    """The VM, and how its hypervisor behaves. It outlives drivers and watches."""

    def __init__(self) -> None:
        self.state = S.ABSENT
        self.made_from: Path | None = None
        self.breaks: set[str] = set()
        """Digests of images with which it crashes at once."""
        self.stubborn = False
        """Nothing that gives memory back works."""
        self.deleting: Callable[[], object] = lambda: None
        self.built = 0


class Driver:
    """Made by the registry, as a shipped one is."""

    name = "process"
    machine = Machine()

    def __init__(self, settings: VmSettings) -> None:
        self.settings = settings
        self.machine.built += 1

    def capabilities(self) -> Capabilities:
        repairs = frozenset({RepairStep.RETRY, RepairStep.EMERGENCY_STOP, RepairStep.DISCARD})
        return Capabilities(saves=True, imports=True, image_format="qcow2", repairs=repairs)

    def detect(self) -> Health:
        return Health(HealthLevel.GOOD, "It works.", version="1")

    def state(self) -> VmStatus:
        return VmStatus(self.machine.state)

    def import_image(self) -> None:
        image = self.settings.image
        if image is None or not image.exists():
            raise DriverError(Trouble.IMAGE, f"The image {image} is missing.")
        self.machine.state, self.machine.made_from = S.OFF, image

    def start(self, cancel: threading.Event) -> None:
        image = self.machine.made_from
        assert image is not None
        self.machine.state = S.BROKEN if image.stem in self.machine.breaks else S.RUNNING

    def _give_back(self, state: S) -> None:
        if self.machine.stubborn:
            raise DriverError(Trouble.TIMEOUT, "The hypervisor does not answer.")
        self.machine.state = state

    def pause(self) -> None:
        self._give_back(S.PAUSED)

    def resume(self) -> None:
        self.machine.state = S.RUNNING

    def save(self) -> None:
        self._give_back(S.SAVED)

    def stop(self) -> None:
        self._give_back(S.OFF)

    def discard(self) -> None:
        self.machine.state = S.OFF

    def delete(self) -> None:
        self.machine.deleting()
        self.machine.state, self.machine.made_from = S.ABSENT, None

    def repair(self, step: RepairStep) -> None:
        if step is RepairStep.EMERGENCY_STOP:
            self._give_back(S.OFF)


class Office:
    """The coordinator as far as this PC goes, and the PC."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.shelf = Shelf(ensure_pki(folder / "pki", [], time.time()))
        self.order: Order | None = None
        self.reports: list[AgentReport] = []
        self.machine = Driver.machine = Machine()
        self.idle_s = 99999.0
        self.fault: BaseException | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    async def report(self, request: Request) -> Response:
        self.reports.append(AgentReport.model_validate_json(await request.body()))
        order = self.order
        said = None if order is None else ImageOrder(
            id=order.id, version=order.version, name=order.name
        )  # fmt: skip
        seen_s = 0.0 if self.machine.state is S.RUNNING else None
        orders = AgentOrders(
            rules=RULES, report_every_s=0.2, worker_joined=True, worker_seen_ago_s=seen_s,
            image=said,
        )  # fmt: skip
        return Response(orders.model_dump_json(), headers=HEADERS)

    async def code(self, request: Request) -> Response:
        reply = WorkerCodeReply(code="OG-AAAA-BBBB", expires_at=time.time() + 9999)
        return Response(reply.model_dump_json(), headers=HEADERS)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/machine/report", self.report, methods=["POST"]),
                Route("/v1/machine/worker-code", self.code, methods=["POST"]),
                Route("/v1/images/{id}/spec", self.shelf.spec),
                Route("/v1/image-chunks/{sha256}", self.shelf.chunk),
            ]
        )

    def open(self) -> None:
        self._present()
        (self.home / "agent.toml").write_text(
            '[vm]\ndriver="process"\nmemory_mb=64\nboot_deadline_s=10\n'
            f'[sensors]\nkind="file"\nfile="{self.home}/presence.json"\n'
        )
        pki = self.shelf.pki
        self.agent = Agent(
            Profile(self.shelf.url, pki.ca_pem, TOKEN, "m1", "agent", "pc1"), self.home
        )
        for work in (self._keep_present, self._run):
            thread = threading.Thread(target=work, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        self.machine.stubborn = False
        self.agent.stop()
        self._stopping.set()
        for thread in self._threads:
            thread.join(20.0)

    def _run(self) -> None:
        try:
            self.agent.run()
        except BaseException as error:
            self.fault = error

    def _keep_present(self) -> None:
        while not self._stopping.wait(0.2):
            self._present()

    def _present(self) -> None:
        path, draft = self.home / "presence.json", self.home / "presence.tmp"
        draft.write_text(
            json.dumps({"at": time.time(), "idle_s": self.idle_s, "locked": False})
        )  # fmt: skip
        draft.replace(path)

    # --- for the tests

    @property
    def said(self) -> str | None:
        """The state of the ordered image, as last reported."""
        report = self.reports[-1].image if self.reports else None
        return report.state if report is not None else None

    def put(self, number: int) -> tuple[Order, Held]:
        return self.shelf.put(number, SIZE)

    def wait_runs(self, held: Held) -> None:
        def runs() -> bool:
            image = self.machine.made_from
            return self.machine.state is S.RUNNING and image is not None and (
                image.stem == held.sha256
            )  # fmt: skip

        wait_for(runs, f"the VM runs {held.name} ({self.fault or self.machine.state})", 30.0)

    def adopt(self, order: Order, held: Held) -> None:
        self.order = order
        self.wait_runs(held)
        wait_for(lambda: self.said == "good", "it is good")

    def somebody_comes(self) -> None:
        self.idle_s = 0.0
        wait_for(lambda: self.machine.state is not S.RUNNING, "the PC is given back", 30.0)

    def everybody_leaves(self) -> None:
        self.idle_s = 99999.0


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    module: Any = types.ModuleType("kept_vm_driver")
    module.make = Driver
    monkeypatch.setitem(sys.modules, "kept_vm_driver", module)
    monkeypatch.setitem(registry.MODULES, "process", "kept_vm_driver")
    monkeypatch.setattr(hygiene_module, "OVERLAY_BYTES", 0)
    monkeypatch.setattr(main_module, "TURN_S", 0.05)
    monkeypatch.setattr(loop_module, "AFTER_ERROR_S", 0.5)
    quicken(monkeypatch)
    made = Office(tmp_path)
    with running(made.app(), made.shelf.pki) as port:
        made.shelf.url = f"https://127.0.0.1:{port}"
        made.open()
        try:
            yield made
        finally:
            made.close()
    assert made.fault is None, "the agent has ended by itself"


def test_an_order_while_the_vm_is_deleted_leaves_a_pc_that_works(office: Office) -> None:
    order, good = office.put(1)
    office.adopt(order, good)
    images = office.agent._images

    def change_its_mind() -> None:
        if images.life.trial is not None:
            office.order = order
            wait_for(lambda: images.life.trial is None, "the order has come")

    office.machine.deleting = change_its_mind
    office.order = office.put(2)[0]
    wait_for(lambda: office.said == "ready", "the new one has come")
    office.somebody_comes()
    wait_for(lambda: images.life.ordered == order and images.life.remake == "", "all is decided")
    office.everybody_leaves()
    office.wait_runs(good)
    wait_for(lambda: office.said == "good", "and the coordinator hears so")


def test_a_new_image_that_breaks_its_vm_is_left(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "RETRY_AFTER_S", 0.5)
    order, good = office.put(1)
    office.adopt(order, good)
    order, broken = office.put(2)
    office.machine.breaks.add(broken.sha256)
    office.order = order
    wait_for(lambda: office.said == "ready", "the new one has come")
    office.somebody_comes()
    office.everybody_leaves()
    wait_for(lambda: office.said == "failed", "two boots in vain", 60.0)
    built = office.machine.built
    office.wait_runs(good)
    assert office.said == "failed"
    assert office.machine.built <= built + 1, "it went back at the first attempt"


@pytest.mark.parametrize("trouble", ["build", "release"])
def test_a_switch_by_the_clock_that_does_not_succeed_leaves_the_agent_at_work(
    office: Office, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(switch_module, "SWITCH_WITHIN_S", 0.3)
    monkeypatch.setattr(switch_module, "LEAVE_WITHIN_S", 0.3)
    monkeypatch.setattr(switch_module, "AGAIN_S", 0.5)
    order, good = office.put(1)
    office.adopt(order, good)
    order, new = office.put(2)
    agent, tried = office.agent, threading.Event()
    if trouble == "build":
        build = agent._build

        def full_once(config: Any) -> Any:
            if not tried.is_set():
                tried.set()
                raise UnavailableError("The agent's folder cannot be used.", "No space left.")
            return build(config)

        monkeypatch.setattr(agent, "_build", full_once)
    else:
        monkeypatch.setattr(main_module, "STOP_WITHIN_S", 1.0)
        release = watch_module.Watch.release

        def release_once(watch: Any, within_s: float) -> bool:
            office.machine.stubborn = not tried.is_set()
            try:
                return release(watch, within_s)
            finally:
                office.machine.stubborn = False
                tried.set()

        monkeypatch.setattr(watch_module.Watch, "release", release_once)
    office.order = order
    wait_for(tried.is_set, "it was tried in vain", 30.0)
    office.wait_runs(new)
