"""Carries out what was decided about this guest's identity: who it is for itself, for the network
and for the worker, who does the joining.

`join.json` is the worker's order to join: {"kind": "join" | "clone", "instance_id", "name", "url",
"code" ("join" only), "hardware_id"}. The worker removes it when it is done.

The worker's profile belongs to the worker, and so to the programs it runs. It tells whether this
guest has joined, and by what name; whom root's firewall and clock trust, it does not tell.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from typing import Any, NamedTuple

from officegrid.core.errors import InputError, UnavailableError
from officegrid.core.identity import Choice, Decision, KeptIdentity, SeedFacts, decide
from officegrid.guest.console import say
from officegrid.guest.place import Place, make_folder, read_json, read_text, remove, write_file
from officegrid.guest.seed import Seed
from officegrid.guest.seeded import Seeded
from officegrid.guest.settings import address


class Persona(NamedTuple):
    """`url` is the coordinator's as the seed disk said, "" while nothing is known of it. `renamed`:
    what the network knows this guest by has changed, so its leases must be asked for anew.
    `host_name`: what it is called now."""

    decision: Decision
    hardware_id: str
    url: str
    renamed: bool = False
    host_name: str = ""


def kept_profile(place: Place) -> dict[str, Any] | None:
    """The worker's profile, if there is one that can be used."""
    profile = read_json(place.profile) or {}
    texts = [profile.get(key) for key in ("token", "url", "ca_pem", "name")]
    return profile if all(isinstance(text, str) and text for text in texts) else None


def kept_identity(place: Place) -> KeptIdentity | None:
    kept = read_json(place.identity)
    if kept is None:
        return None
    texts = [kept.get(key, "") for key in ("instance_id", "hardware_id")]
    return KeptIdentity(*(text if isinstance(text, str) else "" for text in texts))


def find_out(place: Place, seed: Seed | None, seeded: Seeded, hardware_id: str) -> Persona:
    """Decide, by the rules of `core.identity`; changes nothing. `seeded`: what the seed disk says
    or, without it, said."""
    facts = SeedFacts(seed.instance_id, bool(seed.code)) if seed is not None else None
    has_profile = kept_profile(place) is not None
    decision = decide(has_profile, kept_identity(place), hardware_id, facts)
    return Persona(decision, hardware_id, seeded.url, host_name=seeded.host_name)


def address_trouble(place: Place, persona: Persona) -> str:
    """What is wrong with the coordinator's address, for the console; "" when nothing is."""
    joined_url = str((kept_profile(place) or {}).get("url", ""))
    if persona.decision.choice not in (Choice.KEEP, Choice.CLONE):
        return ""
    if not persona.url:
        return (
            "No seed disk has told this guest the coordinator's address, so its firewall stays"
            " closed. What programs of jobs can change is not believed. Give it its seed disk"
            " once, or make the virtual machine anew."
        )
    if address(persona.url) != address(joined_url):
        return (
            f"The seed disk names the coordinator {persona.url}, but this guest joined another"
            " address. The firewall is open for the one on the disk only. Make the virtual machine"
            " anew, or put the old address back."
        )
    return ""


def owner_of(user: str) -> tuple[int, int]:
    """(uid, gid) of the worker's user. Raises InputError."""
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise InputError(
            f"The worker's user {user!r} does not exist in this guest.",
            "/etc/officegrid/guest.json names it.",
            "Build the image anew.",
        ) from None
    return found.pw_uid, found.pw_gid


def become(place: Place, persona: Persona, seed: Seed | None, owner: tuple[int, int]) -> Persona:
    """Make it so; returns the persona with `renamed` set. Raises UnavailableError.

    Each step can be repeated: the power may go between any two of them.
    """
    decision = persona.decision
    make_folder(place.run, 0o755)
    make_folder(place.run_worker, 0o700, owner)
    make_folder(place.home, 0o700, owner)
    renamed = False
    if decision.is_copy:
        _renew_machine_id(place)
        renamed = True
    host_name = _host_name(place, persona, seed)
    renamed |= _name_host(place, host_name)
    if decision.adopt is not None:
        text = json.dumps(decision.adopt._asdict()) + "\n"
        write_file(place.identity, text, 0o600, owner)
    if decision.choice is Choice.KEEP:
        remove(place.join)
    elif decision.choice in (Choice.JOIN, Choice.CLONE):
        order = _order(place, persona, seed)
        write_file(place.join, json.dumps(order) + "\n", 0o400, owner)
        if decision.choice is Choice.JOIN:
            say("SEED", order["instance_id"])
    return persona._replace(renamed=renamed, host_name=host_name)


def _order(place: Place, persona: Persona, seed: Seed | None) -> dict[str, str]:
    choice = persona.decision.choice
    profile = kept_profile(place) or {}
    kept = kept_identity(place)
    order = {
        "kind": str(choice),
        "instance_id": seed.instance_id if seed else kept.instance_id if kept else "",
        "name": seed.name if seed else profile.get("name", "worker"),
        "url": persona.url or profile.get("url", ""),
        "hardware_id": persona.hardware_id,
    }
    if choice is Choice.JOIN and seed is not None:
        order["code"] = seed.code
    return order


def _renew_machine_id(place: Place) -> None:
    """machine-id(5): 32 hexadecimal digits, of a random UUID. It is where DHCP identities and the
    journal's folder come from."""
    random = bytearray(os.urandom(16))
    random[6] = random[6] & 0x0F | 0x40
    random[8] = random[8] & 0x3F | 0x80
    write_file(place.machine_id, random.hex() + "\n", 0o444)
    if not os.path.islink(place.dbus_machine_id):
        remove(place.dbus_machine_id)
    say("IDENTITY", "new machine-id")


def _host_name(place: Place, persona: Persona, seed: Seed | None) -> str:
    """What the host should be called; "" leaves it as it is."""
    if persona.decision.choice is Choice.CLONE:
        name = str((kept_profile(place) or {}).get("name", ""))
        return host_label(f"{name[:50]}-{persona.hardware_id[:6]}") if name else ""
    if persona.decision.choice is Choice.KEEP and persona.host_name:
        return persona.host_name  # a copy's seed disk may still have the name of the original
    return host_label(seed.name) if seed is not None else ""


def host_label(name: str) -> str:
    """A host name made of what of `name` may be in one: letters, digits, inner hyphens; 63 at
    most (RFC 1123, 2.1)."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return plain[:63].strip("-")


def _name_host(place: Place, name: str) -> bool:
    """True when the name is new."""
    if not name or read_text(place.host_name).strip() == name:
        return False
    write_file(place.host_name, name + "\n", 0o644)
    if place.root == "/":
        try:
            socket.sethostname(name)
        except OSError as error:
            raise UnavailableError(
                "The guest cannot set its host name.", f"{error.strerror or error}."
            ) from None
    return True
