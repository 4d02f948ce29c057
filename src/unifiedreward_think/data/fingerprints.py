"""What a media file looks like: size, a hash of its pixels, and a perceptual hash that small changes keep.

>>> distance("f0f0f0f0f0f0f0f0", "f0f0f0f0f0f0f0f1")
1
>>> near = NearIndex(3)
>>> near.add("f0f0f0f0f0f0f0f0"), near.add("f0f0f0f0f0f0f0f1"), near.add("0f0f0f0f0f0f0f0f")
('f0f0f0f0f0f0f0f0', 'f0f0f0f0f0f0f0f0', '0f0f0f0f0f0f0f0f')
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from unifiedreward_think.media import FrameSampling, MediaError, image_paths, open_image, pixel_sha256

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
    """

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self._bands: defaultdict[tuple[int, int, int], list[str]] = defaultdict(list)
        self._found: dict[str, str] = {}

    def add(self, phash: str) -> str:
        """Return the first hash near `phash`, itself if there is none; it is known from now on."""
        if phash not in self._found:
            near = self.find(phash)
            self._found[phash] = near or phash
            if near is None:
                for band in self._split(phash):
                    self._bands[band].append(phash)
        return self._found[phash]

    def find(self, phash: str) -> str | None:
        """Return a hash near `phash`, None if there is none."""
        frames = max(1, len(phash) * 4 // BITS)
        for band in self._split(phash):
            for other in self._bands.get(band, ()):
                if distance(phash, other) <= self._reach * frames:
                    return other
        return None

    def _split(self, phash: str) -> list[tuple[int, int, int]]:
        """Return the bands of a hash as (its length, number of the band, bits)."""
        bits, count = 4 * len(phash), self._reach * max(1, len(phash) * 4 // BITS) + 1
        value = int(phash or "0", 16)
        edges = [bits * i // count for i in range(count + 1)]
        return [(bits, i, value >> low & (1 << high - low) - 1) for i, (low, high) in enumerate(pairwise(edges))]
