"""The agent's side of the pipe: prints what is known of the sessions, ten times a second."""

from __future__ import annotations

import json
import sys
import time

from officegrid.agent.channel import pipe
from officegrid.agent.channel.hub import Hub

hub = Hub(
    clock=time.monotonic, status=dict, pause=lambda until_s, peer: None,
    unpause=lambda peer: None, fast=lambda: True,
)  # fmt: skip
server = pipe.serve(hub, sys.argv[1])
while True:
    for session in hub.sessions():
        told = {key: getattr(session, key) for key in ("id", "age_s", "idle_s", "locked", "user")}
        print(json.dumps(told), flush=True)
    time.sleep(0.1)
