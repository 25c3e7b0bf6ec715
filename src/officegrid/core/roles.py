"""Who may do what: the roles a join code can give, and the permissions of each.

    role        for                              permissions
    worker      the process that runs units      work
    agent       the process on a desktop         work, host
    submitter   a batch developer                submit, read_jobs, control_jobs, read_output,
                                                 read_machines
    viewer      a dashboard, a curious colleague read_jobs, read_machines
    admin       the grid admin                   all of a submitter's, and manage

An agent has `work` because its process driver may run a native worker under the agent's identity,
and `host` to report its desktop and to get the join code of the one worker in its VM. An admin is
a person and never claims units, so a leaked machine token and a leaked admin token open different
doors. A viewer does not get `read_output`: records are other people's data.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    WORKER = "worker"
    AGENT = "agent"
    SUBMITTER = "submitter"
    VIEWER = "viewer"
    ADMIN = "admin"


class Permission(StrEnum):
    WORK = "work"  # claim, renew, commit, release, report own machine's events
    HOST = "host"  # report a desktop, get the join code of its worker
    SUBMIT = "submit"  # upload bundles and datasets, create jobs
    READ_JOBS = "read_jobs"
    CONTROL_JOBS = "control_jobs"  # cancel, hold, release, retry
    READ_OUTPUT = "read_output"  # output and quarantined records
    READ_MACHINES = "read_machines"
    MANAGE = "manage"  # make join codes, revoke and drain machines, set the rules of desktops


ROLES: tuple[str, ...] = tuple(Role)

_SUBMITTER = frozenset(
    {
        Permission.SUBMIT,
        Permission.READ_JOBS,
        Permission.CONTROL_JOBS,
        Permission.READ_OUTPUT,
        Permission.READ_MACHINES,
    }
)

PERMISSIONS: dict[str, frozenset[Permission]] = {
    Role.WORKER: frozenset({Permission.WORK}),
    Role.AGENT: frozenset({Permission.WORK, Permission.HOST}),
    Role.SUBMITTER: _SUBMITTER,
    Role.VIEWER: frozenset({Permission.READ_JOBS, Permission.READ_MACHINES}),
    Role.ADMIN: _SUBMITTER | {Permission.MANAGE},
}


def allows(role: str, permission: str) -> bool:
    """May `role` do `permission`? Anything unknown is denied."""
    return permission in PERMISSIONS.get(role, frozenset())


def role_with(permission: str) -> Role:
    """The role that may do this and the least besides."""
    able = [role for role in Role if allows(role, permission)]
    return min(able, key=lambda role: len(PERMISSIONS[role]), default=Role.ADMIN)
