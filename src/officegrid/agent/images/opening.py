"""What an agent works with about images, put together: a paced connection of its own, store, life.

Reports and orders go over another connection: a download must not hold them up.
"""

from __future__ import annotations

from collections.abc import Callable

from officegrid.agent.files import Folders
from officegrid.agent.images.fetch import MB, Pace, PacedConnection
from officegrid.agent.images.hygiene import Tell
from officegrid.agent.images.switch import Images
from officegrid.transport.profile import Profile


def open_images(
    profile: Profile,
    folders: Folders,
    *,
    tell: Tell,
    hurry: Callable[[], None],
    rate_mb_s: Callable[[], float],
) -> Images:
    """`rate_mb_s`: megabytes (10^6) per second that may be received just now."""
    pace = Pace(lambda: rate_mb_s() * MB)
    line = PacedConnection(profile.url, profile.ca_pem, profile.token, pace)
    return Images(folders, line, pace, tell=tell, hurry=hurry)
