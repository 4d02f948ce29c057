"""Pictures of training rows: opened as judging opens them (`media.open_image`), where `datasets` keeps their mode.

TRL and the processors then call `convert("RGB")`, which makes 16-bit grey black and white, and drops transparency.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Features, Image, List
from datasets.features.features import register_feature
from PIL import Image as Pillow

from unifiedreward_think.media import open_image
from unifiedreward_think.pixels import FORMATS


@dataclass
class Picture(Image):  # type: ignore[misc]  # an untyped library
    """A column like `datasets.Image` whose pictures are 8-bit RGB."""

    _type: str = field(default="Picture", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: Mapping[str, Any] | None = None) -> Any:
        """Return the picture of a path or of bytes; one that is open already is returned as it is."""
        if not isinstance(value, Mapping):
            return value
        stored = value["bytes"]
        return open_image(value["path"]) if stored is None else open_image(io.BytesIO(stored), name="picture")


register_feature(Picture, "Picture")


def with_pictures(dataset: Any) -> Any:
    """Return a dataset whose `images` are decoded when a row is read."""
    return dataset.cast_column("images", List(Picture()))


def with_bytes(dataset: Any) -> Any:
    """Return a dataset whose pictures are inside, so that any reader of `datasets.Image` sees what we see.

    Files are taken as they are where that holds, else as a PNG of what we make of them.
    """
    plain = dataset.cast_column("images", List(Image(decode=False)))
    features = Features({**plain.features, "images": List(Image())})
    return plain.map(lambda row: {"images": [_stored(one["path"]) for one in row["images"]]}, features=features)


def _stored(path: str) -> dict[str, Any]:
    with Pillow.open(path, formats=FORMATS) as image:
        as_it_is = image.mode in ("RGB", "L") and not image.has_transparency_data
    if as_it_is:
        return {"bytes": Path(path).read_bytes(), "path": Path(path).name}
    buffer = io.BytesIO()
    open_image(path).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{Path(path).stem}.png"}
