"""What Windows says about a session, as our words. Pure: numbers and bytes in, facts out.

Sources: Microsoft's pages on GetLastInputInfo, WTSINFOEX_LEVEL1_W, SHQueryUserNotificationState,
WM_WTSSESSION_CHANGE and SYSTEM_POWER_STATUS.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

TICKS = 1 << 32
"""GetTickCount counts milliseconds in 32 bits: it starts anew every 49.7 days."""
BACKWARDS_MS = 60_000
"""How far the tick of the last input may lie in the future: the system does not promise that it
never does. Beyond this the difference is a wrap."""

SESSION_LOCKED = 0
SESSION_UNLOCKED = 1
WINDOWS_7 = (6, 1)


class SessionChange(IntEnum):
    """wParam of WM_WTSSESSION_CHANGE, and the event type of a service's SESSIONCHANGE control."""

    CONSOLE_CONNECT = 1
    CONSOLE_DISCONNECT = 2
    REMOTE_CONNECT = 3
    REMOTE_DISCONNECT = 4
    LOGON = 5
    LOGOFF = 6
    LOCK = 7
    UNLOCK = 8
    REMOTE_CONTROL = 9


class SessionState(IntEnum):
    """WTS_CONNECTSTATE_CLASS."""

    ACTIVE = 0
    CONNECTED = 1
    CONNECT_QUERY = 2
    SHADOW = 3
    DISCONNECTED = 4
    IDLE = 5
    LISTEN = 6
    RESET = 7
    DOWN = 8
    INIT = 9


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The part of WTSINFOEX that we use."""

    session: int
    state: int
    locked: bool | None
    user: str


def idle_s(last_input_tick: int, now_tick: int) -> float:
    """Seconds since the last input, from two 32-bit millisecond ticks.

    The later one may have wrapped. A last input slightly ahead of now means now.
    """
    ahead_ms = (last_input_tick - now_tick) % TICKS
    if 0 < ahead_ms <= BACKWARDS_MS:
        return 0.0
    return ((now_tick - last_input_tick) % TICKS) / 1000


def locked(session_flags: int, windows: tuple[int, int]) -> bool | None:
    """The lock state in WTSINFOEX's SessionFlags; Windows 7 and Server 2008 R2 have it reversed.

    None when the system says that it does not know (0xFFFFFFFF), or anything undocumented.
    """
    if session_flags not in (SESSION_LOCKED, SESSION_UNLOCKED):
        return None
    says_locked = session_flags == SESSION_LOCKED
    return not says_locked if windows == WINDOWS_7 else says_locked


def presenting(notification_state: int) -> bool | None:
    """QUERY_USER_NOTIFICATION_STATE: is something full-screen, or a presentation, shown?

    2 a full-screen program, 3 a full-screen game, 4 presentation settings are on. 1 (nobody
    present), 5 (accepts notifications), 6 (quiet time) and 7 (a Store app) are not.
    """
    if notification_state in (2, 3, 4):
        return True
    return False if notification_state in (1, 5, 6, 7) else None


def on_battery(ac_line_status: int) -> bool | None:
    """SYSTEM_POWER_STATUS.ACLineStatus: 0 is battery, 1 is mains, 255 not known."""
    return {0: True, 1: False}.get(ac_line_status)


def session_info(raw: bytes, windows: tuple[int, int]) -> SessionInfo | None:
    """Read a WTSINFOEXW of level 1, as WTSQuerySessionInformationW(WTSSessionInfoEx) returns it.

    Layout: DWORD Level; padding to 8; DWORD SessionId; DWORD SessionState; LONG SessionFlags;
    WCHAR WinStationName[33], UserName[21], DomainName[18]; then times, which we do not use
    (the console's LastInputTime is not reliable). None when it is short or of another level.
    """
    names = struct.calcsize("<Ixxxx3I") + 2 * 33
    if len(raw) < names + 2 * (21 + 18) or struct.unpack_from("<I", raw)[0] != 1:
        return None
    session, state, flags = struct.unpack_from("<3I", raw, 8)
    user = _text(raw[names : names + 2 * 21])
    domain = _text(raw[names + 2 * 21 : names + 2 * (21 + 18)])
    return SessionInfo(
        session=session, state=state, locked=locked(flags, windows),
        user=f"{domain}\\{user}" if domain and user else user,
    )  # fmt: skip


def _text(raw: bytes) -> str:
    return raw.decode("utf-16-le", errors="replace").partition("\0")[0]
