"""What versions there are of code and data, and picking one."""

from __future__ import annotations

from urllib.parse import quote

from officegrid.core.errors import ConflictError, NotFoundError
from officegrid.transport.http import Connection
from officegrid.wire.catalogue import VersionList, VersionView

LISTS = {"code": "officegrid bundles", "data": "officegrid data list"}


def versions_path(kind: str, name: str) -> str:
    return f"/v1/versions/{kind}/{quote(name, safe='')}"


def versions(connection: Connection, kind: str, name: str | None = None) -> list[VersionView]:
    """Of one name all, newest first; else the newest of each. Raises NotFoundError for a name
    without any."""
    found = catalogue(connection, kind, name)
    if name is not None and not found.versions:
        trouble = "".join(f" {one.trouble}" for one in found.sources)
        raise NotFoundError(
            f"There is no version of the data {name} yet.",
            f"The coordinator gets it from a source, which has given nothing so far.{trouble}",
            f"When that is mended, `officegrid data refresh {name}` looks there at once.",
        )
    return found.versions


def catalogue(connection: Connection, kind: str, name: str | None = None) -> VersionList:
    """The same, with the sources of data that have given no version yet."""
    params = {} if name is None else {"name": name}
    return connection.call("GET", f"/v1/versions/{kind}", params=params, reply=VersionList)


def pick(known: list[VersionView], n: int | None) -> VersionView:
    """Version `n` of these (all of one name), else the newest. Raises NotFoundError,
    ConflictError if its content was cleaned up."""
    name = known[0].name
    if n is None and not any(one.newest for one in known):
        raise ConflictError(
            f"No version of {name} is there any more.", "Their contents were cleaned up.",
            "Push it again.",
        )  # fmt: skip
    chosen = next((one for one in known if (one.newest if n is None else one.n == n)), None)
    if chosen is None:
        raise NotFoundError(
            f"There is no version {n} of {name}.", fix=f"See `{LISTS[known[0].kind]} {name}`."
        )
    if chosen.gone:
        raise ConflictError(
            f"Version {chosen.n} of {name} is gone.", "Its content was cleaned up.",
            f"See `{LISTS[known[0].kind]} {name}` for those that are kept.",
        )  # fmt: skip
    return chosen
