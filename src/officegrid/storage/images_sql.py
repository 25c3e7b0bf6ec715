"""The verbs about worker images, as SQL. See `api.Tx` for what each promises."""

from __future__ import annotations

from collections.abc import Iterable

from officegrid.storage.api import Image, ImageUse
from officegrid.storage.rows import (
    Row,
    column_names,
    from_json,
    insert_sql,
    select_list,
    to_json,
    upsert_sql,
)
from officegrid.storage.verbs import Verbs

_IMAGE = f"SELECT {select_list(Image)} FROM images"
_PUT_IMAGE = upsert_sql("images", column_names(Image), ["id"])
_ADD_CHUNK = insert_sql("image_chunks", ["sha256", "image"], "INSERT OR IGNORE")
_USE = f"SELECT {select_list(ImageUse)} FROM image_uses"
_PUT_USE = upsert_sql("image_uses", column_names(ImageUse), ["image", "machine"])


class ImageVerbs(Verbs):
    """Part of `api.Tx`."""

    def put_image(self, image: Image, chunks: Iterable[str] = ()) -> None:
        """See `api.Tx`."""
        values = [getattr(image, name) for name in column_names(Image)]
        names = column_names(Image)
        for name in ("spec", "rollout"):
            values[names.index(name)] = to_json(getattr(image, name))
        self._run(_PUT_IMAGE, values)
        for sha256 in chunks:
            self._run(_ADD_CHUNK, (sha256, image.id))

    def image(self, image_id: str) -> Image | None:
        """See `api.Tx`."""
        row = self._one(f"{_IMAGE} WHERE id = ?", (image_id,))
        return None if row is None else _to_image(row)

    def images(self, *, limit: int = 100) -> list[Image]:
        """See `api.Tx`."""
        rows = self._all(f"{_IMAGE} ORDER BY version DESC LIMIT ?", (limit,))
        return [_to_image(row) for row in rows]

    def is_image_chunk(self, sha256: str) -> bool:
        """See `api.Tx`."""
        found = self._one("SELECT 1 FROM image_chunks WHERE sha256 = ? LIMIT 1", (sha256,))
        return found is not None

    def put_image_use(self, use: ImageUse) -> None:
        """See `api.Tx`."""
        self._run(_PUT_USE, [getattr(use, name) for name in column_names(ImageUse)])

    def image_uses(self, image_id: str) -> list[ImageUse]:
        """See `api.Tx`."""
        rows = self._all(f"{_USE} WHERE image = ? ORDER BY machine", (image_id,))
        return [ImageUse(*row) for row in rows]


def _to_image(row: Row) -> Image:
    a, b, c, d, spec, e, f, rollout = row
    return Image(a, b, c, d, from_json(spec), e, f, from_json(rollout))
