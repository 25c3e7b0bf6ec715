"""All verbs of `api.Tx` on one SQLite connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from officegrid.storage.catalogue_sql import CatalogueVerbs
from officegrid.storage.images_sql import ImageVerbs
from officegrid.storage.jobs_sql import JobVerbs
from officegrid.storage.keeping_sql import KeepingVerbs
from officegrid.storage.ledger_sql import LedgerVerbs
from officegrid.storage.versions_sql import VersionVerbs
from officegrid.storage.work_sql import WorkVerbs

if TYPE_CHECKING:
    from officegrid.storage.api import Tx


class SqliteTx(
    JobVerbs, LedgerVerbs, WorkVerbs, CatalogueVerbs, ImageVerbs, VersionVerbs, KeepingVerbs
):
    """One transaction, or one operation of a group commit; see `api.Tx` for the contract."""


if TYPE_CHECKING:

    def _implements_the_contract(tx: SqliteTx) -> Tx:
        return tx
