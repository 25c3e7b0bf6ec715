"""`officegrid agent run`: the life of the agent on one PC, whoever starts it.

    agent = Agent(profile, home); agent.run()          blocks until stopped
    agent.stop() / agent.stop(shutdown=True) / agent.reload()      from signals, a service, tests

On stop the VM is paused, saved and gone before the agent ends. At a shutdown of the PC it is
powered off at once, because nobody should wait for us; the coordinator is told, so that its work
goes elsewhere. A killed agent leaves the VM running; the next one finds it and goes on watching.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from officegrid import __version__
from officegrid.agent.building import Built, build, first_settings, keep, last_driver
from officegrid.agent.channel.hub import Hub, Peer
from officegrid.agent.config import AgentConfig, kept_config, load_config
from officegrid.agent.door import open_door
from officegrid.agent.files import Folders, read_json
from officegrid.agent.images.opening import open_images
from officegrid.agent.joining import Joining
from officegrid.agent.journal import Journal
from officegrid.agent.log import get_logger
from officegrid.agent.orders import KeptOrders
from officegrid.agent.parts import DOUBTFUL, Ending
from officegrid.agent.policy import effective_policy
from officegrid.agent.reporter import Reporter
from officegrid.agent.sampler import Wishes
from officegrid.agent.sensors.host import open_host_sensor
from officegrid.agent.status import StatusFile, Surroundings, desk_status, full_status
from officegrid.agent.userpause import UserPause
from officegrid.agent.watch import Context, Watch
from officegrid.core.errors import InternalError, OfficeGridError, UnavailableError
from officegrid.core.vm import HOLDS_MEMORY
from officegrid.core.vmlife import Action
from officegrid.transport.http import Connection
from officegrid.transport.profile import Profile
from officegrid.transport.single_instance import single_instance
from officegrid.wire.agent import AgentOrders, DeskStatus

log = get_logger("agent")

STOP_WITHIN_S = 90.0
"""Saving may take this long when the agent is stopped; then the VM is powered off."""
SHUTDOWN_WITHIN_S = 2.0
LAST_REPORT_WITHIN_S = 3.0
LAST_WORD_WITHIN_S = 0.5
"""The last report at a shutdown of the PC."""
LOOK_AGAIN_S = 300.0
"""While no hypervisor can be used."""
LOOK_AGAIN_SOON_S = 30.0
"""The same, where a VM of ours may be in one."""
TURN_S = 1.0


class Agent:
    """See the module. Raises UsageError for settings that cannot be read, unless there are older
    ones that could."""

    def __init__(self, profile: Profile, home: Path) -> None:
        self._profile = profile
        self._folders = Folders(home)
        self._run_id = secrets.token_hex(8)
        # A SimpleQueue may be filled from a signal handler; locks may not be taken there.
        self._commands: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._config, self._settings_trouble = first_settings(self._folders)
        self._orders = KeptOrders(self._folders.orders)
        self._rules_lock = threading.Lock()
        self._rules = effective_policy(self._orders.latest.rules, self._config.rules)
        self._pause = UserPause(self._folders.pause)
        self._watch: Watch | None = None
        self._last_report_s = LAST_REPORT_WITHIN_S

    # --- for signals, services, tests

    def stop(self, *, shutdown: bool = False) -> None:
        """End soon; with `shutdown` the PC goes down and must not be kept waiting."""
        self._commands.put("shutdown" if shutdown else "stop")

    def reload(self) -> None:
        """Read agent.toml again."""
        self._commands.put("reload")

    def run(self) -> None:
        """Blocks until stopped. Raises ConflictError when an agent runs already."""
        fix = "Nothing to do: one agent per PC is enough. See `officegrid agent status`."
        with single_instance(self._folders.agent, "agent", fix):
            self._open()
            try:
                self._begin_watch(self._first_built())
                self._images.start()
                self._reporter.start()
                self._live()
            finally:
                self._close()

    # --- beginning and end

    def _open(self) -> None:
        profile, kept = self._profile, read_json(self._folders.status) or {}
        self._connection = Connection(profile.url, profile.ca_pem, profile.token, retry_s=0.0)
        self._reporter = Reporter(
            self._connection, self._run_id, self._desk_status, self._obey, version=__version__,
            image=lambda: self._images.report(),
        )  # fmt: skip
        today, unsent_s = kept.get("today"), kept.get("unsent_s")
        self._journal = Journal(
            self._reporter,
            today=today if isinstance(today, dict) else None,
            unsent_s=unsent_s if isinstance(unsent_s, int | float) else 0.0,
        )
        self._images = open_images(
            profile, self._folders, tell=self._journal.trouble, hurry=self._reporter.hurry,
            rate_mb_s=self._rate_mb_s,
        )  # fmt: skip
        self._status_file = StatusFile(self._folders.status)
        self._hub = Hub(
            clock=time.monotonic, status=self._full_status, pause=self._pause_wanted,
            unpause=self._unpause_wanted, fast=self._is_up, paused_by=self._pause.by,
        )  # fmt: skip
        self._host = open_host_sensor()
        self._door: Any = None
        try:
            self._door = open_door(self._hub, self._folders.agent)
        except OfficeGridError as error:  # works without: nobody can look or pause, that is all
            log.error("no_door", what=error.what, why=error.why)
            self._journal.trouble(f"{error.what} {error.why}")
        if self._settings_trouble:
            self._journal.trouble(self._settings_trouble)
        log.info("started", version=__version__, run=self._run_id, coordinator=profile.url)

    def _build(self, config: AgentConfig) -> Built:
        return build(config, self._folders, self._hub, self._images.path())

    def _begin_watch(
        self, built: Built, before: Watch | None = None, *, new_vm: bool = False
    ) -> None:
        choice = built.choice
        for sentence in choice.refused:
            log.info("driver_refused", why=sentence)
        log.info("driver", name=choice.driver.name, health=choice.health.level)
        if not choice.usable:
            self._journal.trouble(choice.health.sentence, once=True)
        self._config = built.config
        self._merge_rules()
        watch = self._watch = self._watch_with(built, before, new_vm=new_vm)
        self._images.use(built.config, choice.driver, lambda: watch.loop.view().vm.state)
        watch.start()
        self._began_s = time.monotonic()
        keep(built, self._folders)

    def _watch_with(
        self, built: Built, before: Watch | None = None, *, new_vm: bool = False
    ) -> Watch:
        self._joining = Joining(
            self._folders, self._profile, self._connection, self._orders,
            built.config.vm.coordinator_url, settings=built.config.vm.guest.stated(),
            in_touch_since_s=lambda: self._reporter.in_touch_since_s,
            vm_name=built.settings.name,
        )  # fmt: skip
        context = Context(
            sessions=built.sessions,
            host=self._host,
            journal=self._journal,
            policy=lambda: self._rules.policy,
            wishes=lambda: Wishes(self._pause.until_s(), self._orders.latest.drain),
            prepare=self._prepare,
            heard=self._joining.heard,
            joined=self._heard,
            changed=self._reporter.hurry,
            unheard_s=self._joining.unheard_s,
            hold=lambda: self._orders.replaced,
            waits=self._images.hold,
            ended=self._images.ended,
        )
        return Watch(
            built.choice, built.settings, context,
            boot_deadline_s=built.config.vm.boot_deadline_s,
            memory=self._joining.memory(before.loop.memory if before and not new_vm else None),
            idle=before.loop.idle if before else None,
        )  # fmt: skip

    def _first_built(self) -> Built:
        """By agent.toml; by the last good settings where that goes wrong, or where the VM of those
        cannot be given back first."""
        kept = kept_config(self._folders.settings)
        try:
            built = self._build(self._config)
        except OfficeGridError as error:
            if kept is None or kept == self._config:
                raise
            self._use_last_good(error)
            return self._build(kept)
        if kept is None or kept.vm == built.config.vm or self._gave_back(kept):
            return built
        built.close()
        why = "The VM of the settings before could not be given back."
        self._use_last_good(UnavailableError("The new settings are not used yet.", why))
        return self._build(kept)

    def _use_last_good(self, error: OfficeGridError) -> None:
        log.error("settings_refused", what=error.what, why=error.why)
        self._settings_trouble = f"{error.what} {error.why} The last good settings are used."
        self._journal.trouble(self._settings_trouble)

    def _gave_back(self, kept: AgentConfig) -> bool:
        """The VM of the settings before is given back before another is begun."""
        try:
            old = self._build(kept)
        except OfficeGridError as error:  # gone with its settings: an image, a presence file
            log.warning("old_settings", what=error.what, why=error.why)
            return True
        if old.choice.driver.state().state not in HOLDS_MEMORY | DOUBTFUL:
            old.close()
            return True
        log.info("giving_back", vm=old.settings.name, driver=old.choice.driver.name)
        # While it is wound up, it is what `status` shows.
        watch = self._watch = self._watch_with(old)
        watch.start()
        try:
            return watch.release(STOP_WITHIN_S)
        finally:
            watch.close()
            self._watch = None

    def _live(self) -> None:
        while True:
            try:
                command = self._commands.get(timeout=TURN_S)
            except queue.Empty:
                self._housekeep()
                continue
            if command != "reload":
                self._leave(shutdown=command == "shutdown")
                return
            self._reload()

    def _housekeep(self) -> None:
        watch, now_s = self._the_watch(), time.monotonic()
        self._status_file.write(self.status(), now_s)
        if watch.over:
            watch.power_off()
            why = str(watch.fault) if watch.fault else ""
            raise InternalError("The agent's loop has ended.", why, "Report this with its log.")
        self._images.housekeep(now_s)
        if self._images.due(up=watch.loop.up):
            self._make_anew()
        soon = watch.empty and last_driver(self._folders)
        look_again_s = LOOK_AGAIN_SOON_S if soon else LOOK_AGAIN_S
        if watch.empty and now_s - self._began_s > look_again_s:
            self._look_again()

    def _look_again(self) -> None:
        self._began_s = time.monotonic()
        if built := self._build_again("look_again"):
            self._replace_watch(built)

    def _build_again(self, log_as: str) -> Built | None:
        try:
            return self._build(self._config)
        except OfficeGridError as error:
            log.error(log_as, what=error.what, why=error.why)
            return None

    def _reload(self) -> None:
        built: Built | None = None
        try:
            config = load_config(self._folders.config)
            effective_policy(self._orders.latest.rules, config.rules)
            vm_changed = config.vm != self._config.vm
            # All that can be wrong with them shows before the old watch is touched.
            built = self._build(config)
            if vm_changed and not self._the_watch().release(STOP_WITHIN_S):
                what = "The VM of the settings before could not be given back."
                raise UnavailableError(what, fix="Try again when it is gone.")
        except OfficeGridError as error:
            log.error("reload_refused", what=error.what, why=error.why)
            self._settings_trouble = f"{error.what} {error.why} The settings stay as they were."
            if built is not None:
                built.close()
                self._replace_watch(self._build(self._config))
            return
        self._settings_trouble = ""
        log.info("reloaded", vm_changed=vm_changed)
        self._replace_watch(built, forget=vm_changed)

    def _replace_watch(self, built: Built, *, forget: bool = False) -> None:
        before = self._the_watch()
        before.end(Ending.LEAVE, STOP_WITHIN_S)
        before.close()
        self._begin_watch(built, None if forget else before)

    def _make_anew(self) -> None:
        """The VM goes, and the next one is made from the image that is wanted by then."""
        before = self._the_watch()
        # All that can go wrong with the next one shows before the old watch is touched.
        if not self._images.choose() or (built := self._build_again("make_anew")) is None:
            return
        if before.loop.up and not before.release(STOP_WITHIN_S):
            self._replace_watch(built)
            return
        before.end(Ending.LEAVE, STOP_WITHIN_S)
        deleted = self._images.make_anew(before.choice.driver, built.settings.image)
        before.close()
        self._begin_watch(built, before, new_vm=deleted)

    def _leave(self, *, shutdown: bool) -> None:
        watch = self._the_watch()
        log.info("stopping", shutdown=shutdown)
        self._images.leaving()
        self._last_report_s = LAST_WORD_WITHIN_S if shutdown else LAST_REPORT_WITHIN_S
        if not shutdown:
            watch.release(STOP_WITHIN_S)
        elif not watch.end(Ending.SHUTDOWN, SHUTDOWN_WITHIN_S):
            log.warning("not_released", within_s=SHUTDOWN_WITHIN_S)

    def _close(self) -> None:
        if self._watch is not None:
            self._status_file.write(self.status() | {"trouble": "stopped"}, time.monotonic())
            self._watch.close()
        self._images.close()
        self._reporter.close(self._last_report_s)
        if self._door is not None:
            self._door.close()
        self._connection.close()
        log.info("ended")

    # --- what others ask

    def status(self) -> dict[str, Any]:
        """Everything there is to say, as JSON values."""
        watch = self._the_watch()
        around = Surroundings(
            run_id=self._run_id, driver=watch.choice.driver.name, health=watch.observer.health,
            refused=watch.choice.refused, rules=self._rules, today=self._journal.today(),
            coordinator=self._profile.url, coordinator_trouble=self._reporter.trouble,
            events_waiting=len(self._reporter.waiting), pause_until_s=self._pause.until_s(),
            orders=self._orders.latest, sensor_trouble=watch.sensor_trouble,
            settings_trouble=self._settings_trouble, unsent_s=self._journal.unsent_s(),
            replaced=self._orders.replaced, waits=self._images.waits(), image=self._images.report(),
        )  # fmt: skip
        return full_status(watch.loop.view(), around, time.monotonic())

    def _full_status(self) -> dict[str, Any]:
        """For who asks just now: asking the sensors costs too much for every second."""
        return self.status() | {"sensors": self._the_watch().explain_sensors()}

    def _desk_status(self) -> DeskStatus:
        watch = self._the_watch()
        name, health = watch.choice.driver.name, watch.observer.health
        now_s, waits = time.monotonic(), self._images.waits()
        return desk_status(watch.loop.view(), name, health, now_s, waits=waits)

    def _is_up(self) -> bool:
        return self._watch is not None and self._watch.loop.up

    def _rate_mb_s(self) -> float:
        """Whatever keeps the grid off this PC, somebody may be at work on it."""
        run = self._watch is not None and self._watch.may_run
        return self._config.images.rate_now_mb_s(in_use=not run)

    def _heard(self) -> None:
        self._joining.has_joined()
        self._images.heard()

    def _obey(self, orders: AgentOrders) -> None:
        if not orders.replaced:
            self._images.obey(orders.image)
        if self._orders.take(orders):
            self._merge_rules()
            log.info("orders", drain=orders.drain)

    def _merge_rules(self) -> None:
        # Orders and a reload may come at the same moment, on two threads.
        with self._rules_lock:
            self._rules = effective_policy(self._orders.latest.rules, self._config.rules)

    def _prepare(self, action: Action) -> None:
        state = self._the_watch().loop.view().vm.state
        self._images.prepared(action, state)
        self._joining.prepare(action, state)

    def _pause_wanted(self, until_s: float | None, peer: Peer) -> None:
        self._pause.set(until_s, peer.user)
        log.info("user_pause", by=peer.user, until_s=until_s if until_s is not None else "ever")

    def _unpause_wanted(self, peer: Peer) -> None:
        self._pause.clear()
        log.info("user_pause_off", by=peer.user)

    def _the_watch(self) -> Watch:
        if self._watch is None:
            raise UnavailableError("The agent is just starting.", "", "Ask again in a moment.")
        return self._watch
