"""What an alarm tells an admin to do is what works on a PC with an installed agent."""

from __future__ import annotations

import pytest

from officegrid.core.whyidentity import Alarm, AlarmKind, why_alarm


@pytest.mark.parametrize(
    ("kind", "name", "role", "revoke", "anew"),
    [
        (AlarmKind.CLONED, "pc-7/vm", "worker", "`officegrid revoke pc-7`", True),
        (AlarmKind.TURNS, "pc-7/vm", "worker", "`officegrid revoke pc-7`", True),
        (AlarmKind.CLONED, "rack-1", "worker", "`officegrid revoke rack-1`", False),
        (AlarmKind.TURNS, "rack-1", "worker", "`officegrid revoke rack-1`", False),
        (AlarmKind.AGENTS, "pc-7", "agent", "`officegrid join-code --role agent`", True),
    ],
)
def test_the_remedy(kind: AlarmKind, name: str, role: str, revoke: str, anew: bool) -> None:
    told = " ".join(why_alarm(name, role, Alarm(kind, 0.0, 10.0), 20.0))
    assert revoke in told
    assert ("`officegrid join URL --install --anew`" in told) is anew
