"""What a media file looks like: size, a hash of its pixels, and a perceptual hash that small changes keep.

>>> distance("f0f0f0f0f0f0f0f0", "f0f0f0f0f0f0f0f1")
1
>>> near = NearIndex(3)
>>> near.add("f0f0f0f0f0f0f0f0"), near.add("f0f0f0f0f0f0f0f1"), near.add("0f0f0f0f0f0f0f0f")
(0, 0, 1)
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from unifiedreward_think.errors import MediaError
from unifiedreward_think.media import FrameSampling, image_paths, open_image, pixel_sha256

if TYPE_CHECKING:
    from PIL.Image import Image

BITS = 64


class Fingerprint(NamedTuple):
    """Of one media entry.

    Attributes:
        sha256: of the pixels, the same for the same picture in any lossless format; of a video, of its frames.
        phash: perceptual hash in hexadecimal; of a video, of its frames one after the other.
        width, height: in pixels, of a video those of its first frame.
        error: why it cannot be opened; the rest is empty then.
    """

    sha256: str = ""
    phash: str = ""
    width: int = 0
    height: int = 0
    error: str = ""


def fingerprint(paths: Sequence[str], kind: str, sampling: FrameSampling) -> Fingerprint:
    """Return the fingerprint of a media entry; what cannot be opened gives one with the reason."""
    try:
        images = [open_image(path) for path in image_paths(paths, kind, sampling)]
    except MediaError as error:
        return Fingerprint(error=str(error)[:500])
    hashes = [pixel_sha256(image) for image in images]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Fingerprint(sha256, "".join(map(perceptual_hash, images)), *images[0].size)


def perceptual_hash(image: Image) -> str:
    """Return the 64-bit pHash of a picture in hexadecimal (Zauner 2010, as `imagehash` computes it)."""
    from imagehash import phash

    return str(phash(image))


def distance(one: str, other: str) -> int:
    """Return in how many bits two hashes differ; hashes of different length differ in all."""
    if len(one) != len(other):
        return 4 * max(len(one), len(other))
    return (int(one, 16) ^ int(other, 16)).bit_count()


class NearIndex:
    """Finds the first hash within a distance, of those added before; a video's frames may each differ as much.

    Two hashes that differ in at most d bits agree in at least one of d + 1 bands: only hashes that share a band are
    compared.

    Args:
        reach: bits in which hashes of one picture may differ.
        database: keeps the hashes, in a table of this index; by default one in memory.
    """

    def __init__(self, reach: int, database: sqlite3.Connection | None = None) -> None:
        self._reach, self._count = reach, 0
        self._database = database or sqlite3.connect(":memory:", isolation_level=None)
        columns = "band TEXT, number INTEGER, phash TEXT, PRIMARY KEY (band, number)"
        self._database.execute(f"CREATE TABLE bands ({columns}) WITHOUT ROWID")

    def add(self, phash: str) -> int:
        """Return the number of the first hash near `phash`; it gets the next number itself if there is none."""
        near = self.find(phash)
        if near is not None:
            return near
        rows = [(band, self._count, phash) for band in self._split(phash)]
        self._database.executemany("INSERT INTO bands VALUES (?, ?, ?)", rows)
        self._count += 1
        return self._count - 1

    def find(self, phash: str) -> int | None:
        """Return the number of the first hash near `phash`, None if there is none."""
        reach = self._reach * max(1, len(phash) * 4 // BITS)
        near = (
            number
            for band in self._split(phash)
            for number, other in self._database.execute("SELECT number, phash FROM bands WHERE band = ?", [band])
            if distance(phash, other) <= reach
        )
        return min(near, default=None)

    def _split(self, phash: str) -> list[str]:
        """Return the bands of a hash: its length, the number of the band, its bits."""
        bits, count = 4 * len(phash), self._reach * max(1, len(phash) * 4 // BITS) + 1
        value = int(phash or "0", 16)
        edges = [bits * i // count for i in range(count + 1)]
        return [f"{bits}.{i}.{value >> low & (1 << high - low) - 1:x}" for i, (low, high) in enumerate(pairwise(edges))]
