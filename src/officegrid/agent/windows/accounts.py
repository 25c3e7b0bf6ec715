"""Accounts, tokens and security descriptors of Windows, as texts.

A SID text ("S-1-5-18") names an account whatever it is called in the language of the PC.
Sources: Microsoft's pages "Well-known SIDs", "Security Descriptor String Format" and
GetTokenInformation.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import wintypes
from dataclasses import dataclass

from officegrid.agent.windows import api
from officegrid.agent.windows.api import BOOL, DWORD, HANDLE, Function, Handle

LOCAL_SYSTEM_SID = "S-1-5-18"
ADMINISTRATORS_SID = "S-1-5-32-544"

TOKEN_QUERY = 0x8
_TOKEN_USER, _TOKEN_SESSION_ID, _TOKEN_ELEVATION = 1, 12, 20
_OWNER, _KERNEL_OBJECT = 1, 6

_POINTER = ctypes.POINTER
_PVOID = ctypes.c_void_p


class SecurityAttributes(ctypes.Structure):
    """SECURITY_ATTRIBUTES; the child never inherits."""

    _fields_ = (("size", DWORD), ("descriptor", _PVOID), ("inherit", BOOL))


_this_process = Function("kernel32", "GetCurrentProcess", HANDLE)
_process_token = Function("advapi32", "OpenProcessToken", BOOL, HANDLE, DWORD, _POINTER(HANDLE))
_token_information = Function(
    "advapi32", "GetTokenInformation", BOOL, HANDLE, ctypes.c_int, _PVOID, DWORD, _POINTER(DWORD)
)
_sid_text = Function("advapi32", "ConvertSidToStringSidW", BOOL, _PVOID, _POINTER(_PVOID))
_sid_from = Function("advapi32", "ConvertStringSidToSidW", BOOL, wintypes.LPCWSTR, _POINTER(_PVOID))
_is_member = Function("advapi32", "CheckTokenMembership", BOOL, HANDLE, _PVOID, _POINTER(BOOL))
_descriptor_from = Function(
    "advapi32", "ConvertStringSecurityDescriptorToSecurityDescriptorW", BOOL,
    wintypes.LPCWSTR, DWORD, _POINTER(_PVOID), _PVOID,
)  # fmt: skip
_security_info = Function(
    "advapi32", "GetSecurityInfo", DWORD, HANDLE, ctypes.c_int, DWORD, _POINTER(_PVOID),
    _PVOID, _PVOID, _PVOID, _POINTER(_PVOID),
)  # fmt: skip
_lookup_name = Function(
    "advapi32", "LookupAccountNameW", BOOL, wintypes.LPCWSTR, wintypes.LPCWSTR, _PVOID,
    _POINTER(DWORD), wintypes.LPWSTR, _POINTER(DWORD), _POINTER(ctypes.c_int),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Who a token speaks for."""

    sid: str
    session: int
    """Logon session number of the token; only the system can change it."""


def own_token() -> Handle:
    """The token of this process. Raises OSError."""
    token = HANDLE()
    _process_token.check(_this_process(), TOKEN_QUERY, ctypes.byref(token))
    return Handle(token.value or 0)


def own_sid() -> str:
    with own_token() as token:
        return token_facts(token).sid


def is_elevated() -> bool:
    """Does this process have full administrator rights?"""
    with own_token() as token:
        return bool(ctypes.c_uint32.from_buffer_copy(_fact(token, _TOKEN_ELEVATION)).value)


def token_facts(token: Handle) -> TokenFacts:
    """Raises OSError."""
    user = _fact(token, _TOKEN_USER)
    sid = ctypes.c_void_p.from_buffer(user).value  # points into `user` itself
    session = ctypes.c_uint32.from_buffer_copy(_fact(token, _TOKEN_SESSION_ID)).value
    return TokenFacts(sid=sid_text(sid), session=int(session))


def is_administrator(impersonation: Handle) -> bool:
    """Is the caller behind this impersonation token an administrator with that right switched on?

    The token of an administrator who did not elevate holds the group for denials only, and does
    not count. Raises OSError.
    """
    member = BOOL(False)
    with _sid(ADMINISTRATORS_SID) as sid:
        _is_member.check(impersonation.value, sid, ctypes.byref(member))
    return bool(member.value)


def owner_sid(handle: Handle) -> str:
    """The owner of the kernel object behind a handle that may be read. Raises OSError."""
    owner, descriptor = _PVOID(), _PVOID()
    code = _security_info(
        handle.value, _KERNEL_OBJECT, _OWNER, ctypes.byref(owner), None, None, None,
        ctypes.byref(descriptor),
    )  # fmt: skip
    if code:
        raise api.failure("GetSecurityInfo", code)
    try:
        return sid_text(owner.value)
    finally:
        api.local_free(descriptor)


def account_sid(account: str) -> str:
    """The SID of an account name such as ".\\gridagent", "LocalSystem", "NT SERVICE\\X".

    Raises OSError when there is no such account.
    """
    if account.lower() == "localsystem":
        return LOCAL_SYSTEM_SID
    size, domain_size, use = DWORD(68), DWORD(256), ctypes.c_int()
    sid = ctypes.create_string_buffer(size.value)
    domain = ctypes.create_unicode_buffer(domain_size.value)
    _lookup_name.check(
        None, account.removeprefix(".\\"), sid, ctypes.byref(size), domain,
        ctypes.byref(domain_size), ctypes.byref(use),
    )  # fmt: skip
    return sid_text(ctypes.addressof(sid))


def sid_text(sid: int | None) -> str:
    """ "S-1-…" of a SID in memory. Raises OSError."""
    text = _PVOID()
    _sid_text.check(sid, ctypes.byref(text))
    try:
        return ctypes.wstring_at(text.value or 0)
    finally:
        api.local_free(text)


@contextlib.contextmanager
def security_attributes(sddl: str) -> Iterator[SecurityAttributes]:
    """A security descriptor from its text form, for the time of a call. Raises OSError."""
    descriptor = _PVOID()
    _descriptor_from.check(sddl, 1, ctypes.byref(descriptor), None)
    try:
        yield SecurityAttributes(ctypes.sizeof(SecurityAttributes), descriptor, False)
    finally:
        api.local_free(descriptor)


@contextlib.contextmanager
def _sid(text: str) -> Iterator[ctypes.c_void_p]:
    sid = _PVOID()
    _sid_from.check(text, ctypes.byref(sid))
    try:
        yield sid
    finally:
        api.local_free(sid)


def _fact(token: Handle, kind: int) -> ctypes.Array[ctypes.c_char]:
    size = DWORD(0)
    _token_information(token.value, kind, None, 0, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 8))
    _token_information.check(token.value, kind, buffer, len(buffer), ctypes.byref(size))
    return buffer
