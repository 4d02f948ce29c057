"""Pictures of a request: from data URLs (or allowed hosts) to RGB images in memory, within limits, never via the disk.

Equal content is decoded once and kept for a while: the candidates of a ranking meet many times, and the picture of a
question is sent with each of its answers.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import re
import struct
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from unifiedreward_think.media import MediaError, frame_indices, open_image
from unifiedreward_think.serving.fetch import Fetcher
from unifiedreward_think.serving.limits import Budget, Limits, Refused, Share
from unifiedreward_think.serving.telemetry import Telemetry

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Flow-GRPO's client leaves the format out; it is told by the content anyway.
_DATA_URL = re.compile(r"data:image(?:/[a-z0-9.+-]{1,32})?;base64,")


class Picture(NamedTuple):
    """A decoded picture and the hash of the bytes it came from."""

    sha256: str
    image: Image


class Intake:
    """Decode the pictures of requests.

    Args:
        limits: of the server.
        fetcher: for addresses.
        telemetry: counts decoded and remembered pictures.
        cache_bytes: of decoded pictures that are kept.
        cache_pictures: that are kept; small ones take memory that their pixels do not show.
    """

    def __init__(
        self,
        limits: Limits,
        fetcher: Fetcher,
        telemetry: Telemetry,
        *,
        cache_bytes: int = 2**28,
        cache_pictures: int = 1024,
    ) -> None:
        self.limits = limits
        self._fetcher = fetcher
        self._telemetry = telemetry
        self._cache_bytes = cache_bytes
        self._cache_pictures = cache_pictures
        self._kept: OrderedDict[str, Image] = OrderedDict()
        self._kept_bytes = 0
        self._decoding: dict[str, asyncio.Task[Image]] = {}
        self._pixels = Budget(limits.flying_pixels, "pixels")
        telemetry.watch_held("pixels", lambda: self._pixels.held)

    @contextmanager
    def request(self) -> Iterator[RequestMedia]:
        """Yield what opens the pictures of one request; what they hold is given back at the end."""
        with self._pixels.share() as take:
            yield RequestMedia(self, take)

    async def bytes_of(self, source: str, where: str) -> bytes:
        """Return the bytes behind a data URL or an address.

        Raises:
            Refused: it is neither, or too large.
        """
        if source.startswith(("http://", "https://")):
            return await self._fetcher(source)
        head = _DATA_URL.match(source)
        if head is None:
            raise Refused(f"{where}: expected data:image/...;base64,... or an address of an allowed host")
        if (len(source) - head.end()) * 3 // 4 > self.limits.medium_bytes:
            raise Refused(f"{where}: a picture of more than {self.limits.medium_bytes} bytes", status=413)
        try:
            return base64.b64decode(source[head.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(f"{where}: not valid base64 ({error})") from error

    async def decoded(self, sha256: str, decode: Callable[[], Image]) -> Image:
        """Return what `decode` returns, in a thread; whoever asks for the same picture meanwhile waits for that.

        One that leaves does not stop it for the others.
        """
        if (task := self._decoding.get(sha256)) is None:
            task = self._decoding[sha256] = asyncio.create_task(asyncio.to_thread(decode))
            task.add_done_callback(lambda done: self._keep(sha256, done))
        else:
            self._telemetry.media.labels("shared").inc()
        return await asyncio.shield(task)

    def known(self, sha256: str) -> Image | None:
        """Return a picture that was decoded before."""
        if (image := self._kept.get(sha256)) is not None:
            self._kept.move_to_end(sha256)
            self._telemetry.media.labels("hit").inc()
        return image

    def _keep(self, sha256: str, done: asyncio.Task[Image]) -> None:
        """Remember a picture, and forget those not used for longest when there are too many."""
        del self._decoding[sha256]
        if done.cancelled() or done.exception():
            return
        self._telemetry.media.labels("miss").inc()
        self._kept[sha256] = done.result()
        self._kept_bytes += _size(done.result())
        while self._kept_bytes > self._cache_bytes or len(self._kept) > self._cache_pictures:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


class RequestMedia:
    """The pictures of one request."""

    def __init__(self, intake: Intake, take: Share) -> None:
        self._intake = intake
        self._take = take

    async def picture(self, source: str, where: str) -> Picture:
        """Open one picture.

        Args:
            source: a data URL, or an address of an allowed host.
            where: names it in a message.

        Raises:
            Refused: it is malformed, of a format not in FORMATS, or over a limit.
        """
        content = await self._intake.bytes_of(source, where)
        sha256 = hashlib.sha256(content).hexdigest()
        if (image := self._intake.known(sha256)) is None:
            # The header first: the pixels count before any of them is decoded.
            self._count(self._declared(content, where), where)
            try:
                image = await self._intake.decoded(sha256, lambda: self._decode(content))
            except MediaError as error:  # named here: it may be another request that had it decoded
                raise Refused(f"{where}: {error}") from error
        else:
            self._count(image.width * image.height, where)
        return Picture(sha256, image)

    async def video(self, sources: Sequence[str], where: str, *, frames: int) -> list[Picture]:
        """Open the frames of a video, thinned to as many as the model is shown by the rule of all videos.

        Raises:
            Refused: there are too many, or one cannot be used.
        """
        if len(sources) > self._intake.limits.frames:
            raise Refused(f"{where}: {len(sources)} frames; the limit is {self._intake.limits.frames}")
        return [await self.picture(sources[i], f"{where}[{i}]") for i in frame_indices(len(sources), frames)]

    def _declared(self, content: bytes, where: str) -> int:
        """Return how many pixels the header declares."""
        width, height = _declared_size(content, where)
        short, long = sorted((width, height))
        if short < 1 or long > self._intake.limits.aspect * short:
            raise Refused(f"{where}: {width}x{height} is too narrow; the limit is {self._intake.limits.aspect}:1")
        if width * height > self._intake.limits.pixels:
            raise Refused(f"{where}: {width}x{height} pixels; the limit is {self._intake.limits.pixels}", status=413)
        return width * height

    def _decode(self, content: bytes) -> Image:
        return open_image(io.BytesIO(content), name="picture", limit=self._intake.limits.pixels, formats=FORMATS)

    def _count(self, pixels: int, where: str) -> None:
        if self._take.taken + pixels > self._intake.limits.request_pixels:
            raise Refused(f"{where}: more than {self._intake.limits.request_pixels} pixels in one request", status=413)
        self._take(pixels)


@asynccontextmanager
async def opening(until: float) -> AsyncIterator[None]:
    """Allow the pictures of a request to be opened until a time of the monotonic clock, and refuse it then."""
    try:
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            yield
    except TimeoutError as error:
        raise Refused("the deadline passed while the pictures were opened", status=504) from error


def _declared_size(content: bytes, where: str) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise Refused(f"{where}: no picture of the formats {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise Refused(f"{where}: not a readable picture ({error})") from error


def _size(image: Image) -> int:
    return image.width * image.height * 4  # Pillow keeps RGB in four bytes
