"""Who a guest is: the same machine as before, a new one, or a copy of one that had joined.

An image has no identity. A guest gets one from a join code on its seed disk, and keeps it on its
own disk together with the *hardware id* of the (virtual) computer it joined on. A disk that wakes
up on other hardware is a copy: it must not go on under the identity it was copied with.

Tuples instead of dataclasses: a guest decides this while it boots, and the import of the
dataclasses module alone costs an emulated processor 0.2 s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

_MARK = "office grid hardware"
_HARDWARE_ID_CHARS = 32
_UUID_DIGITS = 32


class Choice(StrEnum):
    """What a guest does about its identity at a boot."""

    KEEP = "keep"
    JOIN = "join"
    CLONE = "clone"
    WAIT = "wait"


class KeptIdentity(NamedTuple):
    """What `identity.json` says: under which seed, and on which hardware, this disk joined.
    Either is "" where it was not known."""

    instance_id: str
    hardware_id: str


class SeedFacts(NamedTuple):
    """What of a seed disk counts here."""

    instance_id: str
    has_code: bool


class Decision(NamedTuple):
    """`is_copy`: this disk was copied; what else tells machines apart must be made anew.
    `adopt`: what `identity.json` has to say from now on; None: it stays as it is.
    `why` is a sentence for the console."""

    choice: Choice
    why: str
    is_copy: bool = False
    adopt: KeptIdentity | None = None


def hardware_id(product_uuid: str, mac_addresses: Iterable[str]) -> str:
    """32 hexadecimal digits that are the same as long as the (virtual) computer is the same.

    From the computer's own UUID (SMBIOS specification, System Information, "UUID"; all 0 or all F
    mean that there is none), else from its network cards; "" when there is neither.
    """
    digits = [char for char in product_uuid.lower() if char in "0123456789abcdef"]
    if len(digits) == _UUID_DIGITS and not set(digits) <= {"0"} and not set(digits) <= {"f"}:
        return _digest(product_uuid.strip().lower())
    cards = sorted(mac.strip().lower() for mac in mac_addresses if mac.strip(" 0:\n"))
    return _digest(",".join(cards)) if cards else ""


def _digest(text: str) -> str:
    return hashlib.sha256(f"{_MARK}{text}".encode()).hexdigest()[:_HARDWARE_ID_CHARS]


def decide(
    has_profile: bool, kept: KeptIdentity | None, hardware_id: str, seed: SeedFacts | None
) -> Decision:
    """The rules, in order. `hardware_id` is today's; "" (unknown) counts as unchanged.

    A code is of use once: with the instance id that this disk has joined under, it has been used.
    So a copied virtual machine whose seed disk was copied with it asks for an identity as a copy.
    """
    moved = bool(kept and kept.hardware_id and hardware_id and kept.hardware_id != hardware_id)
    if not has_profile:
        if seed is None or not seed.has_code:
            missing = "no disk named CIDATA" if seed is None else "no join code on the seed disk"
            return Decision(Choice.WAIT, f"This guest has not joined, and there is {missing}.")
        return Decision(Choice.JOIN, "This guest has not joined yet.", moved)
    if kept is None:
        # Joined before identities were kept, or the power went between the two files: the code of
        # the present seed may be used up, the profile is good.
        now = KeptIdentity(seed.instance_id if seed else "", hardware_id)
        return Decision(Choice.KEEP, "This guest has joined before.", False, now)
    if seed is not None and seed.has_code and seed.instance_id != kept.instance_id:
        if not kept.instance_id and not moved:
            now = KeptIdentity(seed.instance_id, hardware_id)
            return Decision(Choice.KEEP, "This guest has joined before.", False, now)
        return Decision(Choice.JOIN, "The seed disk says that this is a new machine.", moved)
    if moved:
        why = "This disk joined on other hardware: it is a copy and becomes a machine of its own."
        return Decision(Choice.CLONE, why, True)
    if hardware_id and not kept.hardware_id:
        now = KeptIdentity(kept.instance_id, hardware_id)
        return Decision(Choice.KEEP, "This guest has joined before.", False, now)
    return Decision(Choice.KEEP, "This guest has joined before, on this hardware.")
