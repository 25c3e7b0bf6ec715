"""What this (virtual) computer is, as the kernel tells it under /sys."""

from __future__ import annotations

import os

from officegrid.core.identity import hardware_id
from officegrid.guest.place import Place, read_text


def find_hardware_id(place: Place) -> str:
    """See `core.identity.hardware_id`; "" when the computer has neither UUID nor network card."""
    return hardware_id(read_text(os.path.join(place.dmi, "product_uuid")), mac_addresses(place))


def mac_addresses(place: Place) -> list[str]:
    """Of real (emulated) cards only: what the system makes up itself has no `device`."""
    try:
        names = os.listdir(place.cards)
    except OSError:
        return []
    return [
        read_text(os.path.join(place.cards, name, "address"))
        for name in names
        if os.path.exists(os.path.join(place.cards, name, "device"))
    ]


def chip_follows_host(place: Place) -> bool:
    """Does the clock chip show the host's time also after a saved machine was restored?

    VirtualBox restores its chip with the rest of the machine and counts on from there (VirtualBox
    sources, DevRTC.cpp); QEMU and Hyper-V ask the host.
    """
    return os.path.exists(place.chip) and "virtualbox" not in read_text(place.hypervisor).lower()
