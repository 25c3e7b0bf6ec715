"""What every service function shares: settings, id maker, and advisory memory.

The services are plain functions of `(grid, tx, …, now)`. All state that matters is in the
database; what `Grid` remembers is only advice (live progress, turn-taking) and may be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from officegrid.core.rollout import Offer
from officegrid.storage.api import Dataset, Job, Machine, Tx
from officegrid.wire.data import BlockSlice


@dataclass(frozen=True, slots=True)
class GridSettings:
    """`lease_s`: a unit whose worker is not heard of for so long goes to another one."""

    lease_s: float = 30.0
    leases_per_slot: int = 3  # one computing, one ready, one being uploaded
    online_s: float = 150.0  # a machine heard of within this time is shown as online

    @property
    def renew_every_s(self) -> float:
        return self.lease_s / 3

    @property
    def silent_s(self) -> float:
        """No renewal for this long makes a last unit worth duplicating."""
        return self.lease_s * 2 / 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a machine gave a unit back and rests; times as the coordinator's clock has them."""

    at: float
    rests_until: float
    reason: str


@dataclass
class Grid:
    new_id: Callable[[], str]
    read_object: Callable[[BlockSlice], bytes]
    """Raw bytes of a block slice from the object store."""
    settings: GridSettings = field(default_factory=GridSettings)
    last_served: dict[str, float] = field(default_factory=dict)
    progress: dict[str, int] = field(default_factory=dict)
    """Records finished inside running units, by lease id, as last reported."""
    trial_for: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By job: the machine that runs empty to try suspicious records alone, and since when."""
    troubles: dict[str, dict[str, Trouble]] = field(default_factory=dict)
    """By machine, then by job, see `service.troubles`."""
    work_version: int = 0
    """Grows whenever work may have become available; waiting claims look again."""

    desks_counted: tuple[float, int] = (float("-inf"), 0)
    """When agents were last counted, and how many there were."""

    image_offers: tuple[str, tuple[Offer, ...]] = ("", ())
    """The images that desktops may be told to run, and the mark of the last change to any."""

    image_news: int = 0
    """In so many of the next seconds upkeep looks whether a rollout moves on; otherwise once a
    minute. More than one, because news are noted before they are committed."""

    _datasets: dict[str, Dataset] = field(default_factory=dict)

    def dataset(self, tx: Tx, dataset_id: str) -> Dataset | None:
        """A dataset; it never changes, so it is read once."""
        found = self._datasets.get(dataset_id) or tx.dataset(dataset_id)
        if found is not None:
            if len(self._datasets) >= 1000:
                self._datasets.clear()
            self._datasets[dataset_id] = found
        return found

    def work_appeared(self) -> None:
        self.work_version += 1


def next_number(tx: Tx, counter: str) -> int:
    """The next value of a counter kept in the database, from 1."""
    number = int(tx.setting(counter) or "0") + 1
    tx.put_setting(counter, str(number))
    return number


def story(tx: Tx, now: float, job: Job, kind: str, text: str, **facts: object) -> None:
    tx.add_event(now, job.id, kind, text, facts)


SEEN_EVERY_S = 20.0  # how often "last seen" is written down


def note_seen(tx: Tx, machine: Machine, now: float) -> None:
    if machine.state != "working" or now - machine.last_seen > SEEN_EVERY_S:
        tx.touch_machine(machine.id, last_seen=now, state="working")
