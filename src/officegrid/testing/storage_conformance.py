"""The contract of `storage.api.Storage` as tests, for any database.

Subclass `StorageConformance` in a test module and give it a `storage_factory` fixture: a function
that opens the same database each time it is called, empty at the first call:

    class TestMyDatabase(StorageConformance):
        @pytest.fixture
        def storage_factory(self, tmp_path):
            return lambda: MyStorage(tmp_path / "my.db")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from officegrid.storage.api import Storage
from officegrid.testing.storage_cases_catalogue import CatalogueCases
from officegrid.testing.storage_cases_images import ImageCases
from officegrid.testing.storage_cases_keeping import KeepingCases
from officegrid.testing.storage_cases_ledger import AllLedgerCases
from officegrid.testing.storage_cases_transactions import TransactionCases
from officegrid.testing.storage_cases_versions import VersionCases
from officegrid.testing.storage_cases_work import WorkCases
from officegrid.testing.storage_oracle import compare_with_oracle

StorageFactory = Callable[[], Storage]


class StorageConformance(
    AllLedgerCases,
    WorkCases,
    CatalogueCases,
    ImageCases,
    VersionCases,
    KeepingCases,
    TransactionCases,
):
    """All cases. Each runs on a database of its own."""

    @pytest.fixture
    def storage_factory(self) -> StorageFactory:
        """Override: opens the database of this test."""
        raise NotImplementedError("give the subclass a storage_factory fixture")

    @pytest.fixture
    def storage(self, storage_factory: StorageFactory) -> Iterator[Storage]:
        """The open database of one test."""
        opened = storage_factory()
        yield opened
        opened.close()

    def test_random_edits_agree_with_the_memory_ledger(self, storage: Storage) -> None:
        compare_with_oracle(storage)

    def test_what_was_written_is_there_after_reopening(
        self, storage_factory: StorageFactory
    ) -> None:
        first = storage_factory()
        first.write(lambda tx: tx.put_setting("kept", "yes"))
        first.close()
        second = storage_factory()
        try:
            assert second.read(lambda tx: tx.setting("kept")) == "yes"
        finally:
            second.close()
