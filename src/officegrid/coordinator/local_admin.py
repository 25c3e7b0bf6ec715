"""The first admin: whoever can read the coordinator's data folder.

A profile with an admin token lies in `DATA/admin`, readable by the coordinator's user only, so
that `officegrid --home DATA/admin join-code --role …` works without any other set-up. Reading the
folder already gives full control of the grid, so the token there gives nothing away.
"""

from __future__ import annotations

from pathlib import Path

from officegrid.coordinator.service import machines
from officegrid.coordinator.state import Coordinator
from officegrid.coordinator.tokens import hash_token, new_token
from officegrid.core.errors import AuthError
from officegrid.storage.api import Machine, Tx
from officegrid.transport.profile import Profile, load_profile, save_profile


def ensure_local_admin(coordinator: Coordinator, data: Path, port: int) -> Path:
    """Make or refresh the local admin's profile; returns the folder to pass as `--home`."""
    home = data / "admin"
    url = f"https://127.0.0.1:{port}"
    token = _known_token(coordinator, home)
    machine: Machine | None
    if token is None:
        fresh = new_token()
        token = fresh.text
        machine = coordinator.writer.submit(lambda tx: _add(tx, fresh.hash, coordinator)).result()
    else:
        machine = coordinator.storage.read(lambda tx: tx.machine_by_token(hash_token(token or "")))
    name, machine_id = (machine.name, machine.id) if machine else ("local admin", "")
    save_profile(Profile(url, coordinator.pki.ca_pem, token, machine_id, "admin", name), home)
    return home


def _known_token(coordinator: Coordinator, home: Path) -> str | None:
    try:
        token = load_profile(home).token
    except AuthError:
        return None
    machine = coordinator.storage.read(lambda tx: tx.machine_by_token(hash_token(token)))
    return token if machine is not None and not machine.revoked else None


def _add(tx: Tx, token_hash: str, coordinator: Coordinator) -> Machine:
    return machines.add_machine(
        tx, role="admin", name="local admin", token_hash=token_hash, facts={},
        now=coordinator.clock(),
    )  # fmt: skip
