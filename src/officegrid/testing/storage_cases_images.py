"""Conformance cases: worker images, their chunks, and what desktops say about them."""

from __future__ import annotations

from dataclasses import replace
from operator import methodcaller

import pytest

from officegrid.core.errors import OfficeGridError
from officegrid.storage.api import Image, ImageUse, Machine, Storage, Tx


def _image(number: int, **changes: object) -> Image:
    spec = {"name": f"grid-{number}", "files": {"qcow2": {"size": number, "ü": [1.5, None]}}}
    image = Image(
        f"{number:064x}", number, f"grid-{number}", "rolling", spec, 5.5, "ann", {"share": 0.01}
    )
    return replace(image, **changes)  # type: ignore[arg-type]


def _use(image: int, machine: str, **changes: object) -> ImageUse:
    use = ImageUse(f"{image:064x}", machine, "fetching", 7.5, "3 min left", 2**33, 2**34)
    return replace(use, **changes)  # type: ignore[arg-type]


class ImageCases:
    """The verbs about images."""

    def test_images_by_id_and_newest_first(self, storage: Storage) -> None:
        for number in (2, 1, 3):
            storage.write(methodcaller("put_image", _image(number)))

        def look(tx: Tx) -> None:
            assert tx.image(_image(2).id) == _image(2)
            assert tx.image("f" * 64) is None
            assert tx.images() == [_image(3), _image(2), _image(1)]
            assert tx.images(limit=2) == [_image(3), _image(2)]

        storage.read(look)

    def test_an_image_that_is_put_again_keeps_its_chunks(self, storage: Storage) -> None:
        chunks = ["a" * 64, "b" * 64]
        storage.write(lambda tx: tx.put_image(_image(1), iter(chunks)))
        storage.write(lambda tx: tx.put_image(_image(2), ["b" * 64, "b" * 64]))
        later = _image(1, state="current", rollout={"share": 1.0, "before": None}, name="other")
        storage.write(lambda tx: tx.put_image(later, ["c" * 64]))

        def look(tx: Tx) -> None:
            assert tx.image(later.id) == later
            assert [tx.is_image_chunk(name * 64) for name in "abcd"] == [True, True, True, False]

        storage.read(look)

    def test_two_images_of_one_version_are_refused(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.put_image(_image(1)))
        with pytest.raises(OfficeGridError):
            storage.write(lambda tx: tx.put_image(_image(2, version=1), ["a" * 64]))
        assert storage.read(lambda tx: tx.images()) == [_image(1)]
        assert not storage.read(lambda tx: tx.is_image_chunk("a" * 64))

    def test_what_desktops_say_is_kept_once_per_image_and_desktop(self, storage: Storage) -> None:
        said = [_use(1, "m2"), _use(1, "m1"), _use(2, "m1", state="ready", text="")]
        for use in said:
            storage.write(methodcaller("put_image_use", use))
        good = _use(1, "m2", state="good", at=9.0, text="", done_bytes=0, total_bytes=0)
        storage.write(lambda tx: tx.put_image_use(good))

        def look(tx: Tx) -> None:
            assert tx.image_uses(_image(1).id) == [said[1], good]
            assert tx.image_uses(_image(2).id) == [said[2]]
            assert tx.image_uses(_image(3).id) == []

        storage.read(look)

    def test_an_operation_that_fails_leaves_no_image(self, storage: Storage) -> None:
        def fail(tx: Tx) -> None:
            tx.put_image(_image(1), ["a" * 64])
            tx.put_image_use(_use(1, "m1"))
            raise RuntimeError

        with pytest.raises(RuntimeError):
            storage.write(fail)

        def look(tx: Tx) -> None:
            assert tx.images() == []
            assert not tx.is_image_chunk("a" * 64)
            assert tx.image_uses(_image(1).id) == []

        storage.read(look)

    def test_a_worker_knows_which_machine_it_is_a_copy_of(self, storage: Storage) -> None:
        original = Machine("m1", "pc-1/vm", "worker", "hash-1", 3.0)
        copy = Machine("m2", "pc-1/vm-ab12cd", "worker", "hash-2", 4.0, cloned_from="m1")
        for machine in (original, copy):
            storage.write(methodcaller("put_machine", machine))
        assert storage.read(lambda tx: tx.machine("m2")) == copy
        storage.write(lambda tx: tx.touch_machine("m1", cloned_from="m2"))
        assert storage.read(lambda tx: tx.machine("m1")) == replace(original, cloned_from="m2")
