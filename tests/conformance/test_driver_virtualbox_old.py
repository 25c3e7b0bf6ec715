"""The driver contract over VirtualBox 6.1, on the stand-in."""

from __future__ import annotations

from typing import ClassVar

from test_driver_virtualbox import OnStandIn


class TestVirtualBox61(OnStandIn):
    modes: ClassVar = {"version": "6.1.36r152435"}
