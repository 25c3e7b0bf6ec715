"""Gets the worker in the VM to join: a code from the coordinator, handed over on the seed disk.

The agent and its VM's worker are two identities. A fresh code is asked for before each cold boot
for as long as the worker has not joined, and after the VM was made anew.

A guest that was set up for another identity of this agent (`join --anew`), or for a computer of
another UUID (the PC's id, the VM's name or its folder has changed), joins again as this agent's
worker: its saved state is not gone on with, and the next cold boot is that of a new machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from officegrid.agent.files import Folders
from officegrid.agent.host_id import vm_uuid
from officegrid.agent.log import get_logger
from officegrid.agent.orders import KeptOrders
from officegrid.agent.seed import Guest, Seed, write_seed
from officegrid.core.errors import OfficeGridError
from officegrid.core.vm import DriverError, RepairStep, Trouble, VmState
from officegrid.core.vmlife import Action, Memory, Verb
from officegrid.transport.profile import Profile
from officegrid.wire.agent import WorkerCodeReply

log = get_logger("joining")

WORKER_CODE_PATH = "/v1/machine/worker-code"
CODE_TIMEOUT_S = 15.0
FINDS_BACK_S = 120.0
"""After an outage of the coordinator, so long until a living worker has surely tried again."""


class Line(Protocol):
    """A way to the coordinator: `transport.http.Connection`."""

    def call(
        self, method: str, path: str, *, reply: type[WorkerCodeReply], timeout_s: float,
        retry: bool,
    ) -> WorkerCodeReply: ...  # fmt: skip


class Joining:
    """`prepare` runs on the operator's thread, the rest on the loop's."""

    def __init__(
        self,
        folders: Folders,
        profile: Profile,
        line: Line,
        orders: KeptOrders,
        url: str = "",
        *,
        vm_name: str,
        settings: dict[str, Any] | None = None,
        in_touch_since_s: Callable[[], float | None],
    ) -> None:
        """`url` is where the guest finds the coordinator, if not where this PC does; `settings`
        are those of `[vm.guest]`.
        `in_touch_since_s`: monotonic time since when the coordinator has answered every report."""
        self._in_touch_since_s = in_touch_since_s
        self._url = url or profile.url
        self._settings = settings or {}
        self._folders = folders
        self._profile = profile
        self._line = line
        self._orders = orders
        hardware = str(vm_uuid(folders.vm, vm_name))
        self._guest = Guest(folders.guest, profile.machine_id, hardware)
        try:
            self._guest.adopt()
        except OfficeGridError as error:
            log.warning("not_kept", what=error.what, why=error.why)
        self._booted_s: float | None = None
        """When the last cold boot was prepared; monotonic."""

    def memory(self, before: Memory | None) -> Memory | None:
        """What a watch begins with: a running VM whose worker is not this agent's is of no use."""
        if not self._guest.is_anothers:
            return before
        log.info("guest_of_another", instance=self._guest.instance_id)
        return replace(before or Memory(), must_stop=True)

    def heard(self, since_s: float) -> bool | None:
        """Has the coordinator heard of the VM's worker since this monotonic time? None: the
        coordinator has not been reached since, is away, or has come back only just now."""
        received_s, ago_s = self._orders.received_s, self._orders.latest.worker_seen_ago_s
        if received_s is None or self._orders.latest.replaced:
            return None
        if ago_s is not None and received_s - ago_s >= since_s:
            return True
        touch_s = self._in_touch_since_s()
        if touch_s is None or received_s <= since_s:
            return None
        settled = touch_s <= since_s or time.monotonic() - touch_s >= FINDS_BACK_S
        return False if settled else None

    def unheard_s(self) -> float | None:
        """For how long the coordinator has not heard the worker, without the time in which the
        coordinator was away; None: it is away, or does not say."""
        received_s, touch_s = self._orders.received_s, self._in_touch_since_s()
        if received_s is None or touch_s is None or self._orders.latest.replaced:
            return None
        now_s, ago_s = time.monotonic(), self._orders.latest.worker_seen_ago_s
        silent_s = math.inf if ago_s is None else ago_s + max(0.0, now_s - received_s)
        return max(0.0, min(silent_s, now_s - touch_s))

    def has_joined(self) -> None:
        """The worker has been heard."""
        try:
            self._guest.has_joined()
        except OfficeGridError as error:
            log.warning("not_kept", what=error.what, why=error.why)

    def prepare(self, action: Action, state: VmState) -> None:
        """Before a verb: see to it that a guest that boots cold finds what it needs. Raises
        OfficeGridError when it would boot in vain, DriverError (SAVED_STATE) when its saved state
        must go first."""
        anew = action.verb is Verb.IMPORT_IMAGE or action.step is RepairStep.REIMPORT
        if action.verb is Verb.START and self._guest.is_anothers:
            self._make_ours(state)
        if anew:
            self._guest.made_anew()
            self._booted_s = None
            # Drivers may attach the disk now; what counts is on it at the first start.
            self._write(None)
        elif action.verb is Verb.START and state is not VmState.SAVED:
            # It may have been heard for the first time just when it was stopped.
            if self._booted_s is not None and self.heard(self._booted_s):
                self.has_joined()
            self._write(None if self._guest.joined else self._fresh_code())
            self._booted_s = time.monotonic()

    def _make_ours(self, state: VmState) -> None:
        if state is VmState.SAVED:
            raise DriverError(
                Trouble.SAVED_STATE,
                "The saved VM is not gone on with: it was set up for another identity.",
                "This PC has joined anew since, or its id, the VM's name or its folder changed.",
                "Nothing to do: it boots cold, and its worker joins as the one of this PC.",
            )
        self._guest.made_anew()
        self._booted_s = None

    def _fresh_code(self) -> str:
        reply = self._line.call(
            "POST", WORKER_CODE_PATH, reply=WorkerCodeReply, timeout_s=CODE_TIMEOUT_S, retry=False
        )
        log.info("worker_code", instance=self._guest.instance_id)
        return reply.code

    def _write(self, code: str | None) -> None:
        name = f"{self._profile.name}-vm"
        seed = Seed(self._guest.instance_id, name, self._url, code, self._settings)
        write_seed(self._folders.seed, self._folders.seed_iso, seed)
