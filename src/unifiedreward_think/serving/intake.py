"""Pictures of a request: from data URLs (or allowed hosts) to RGB images in memory, within limits, never via the disk.

Equal content is decoded once and kept for a while: the candidates of a ranking meet many times, and the picture of a
question is sent with each of its answers. What may take long to decode goes to processes that have limits (`bounded`).
What a request has begun may outlive it; budgets count that until it ends.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from unifiedreward_think.bounded import DECODERS, PROCESSES, plain, quick
from unifiedreward_think.decoders import frame_indices
from unifiedreward_think.errors import MediaError
from unifiedreward_think.media import open_image
from unifiedreward_think.pixels import declared_size
from unifiedreward_think.serving.fetch import Fetcher
from unifiedreward_think.serving.limits import Budget, Limits, Refused, Share
from unifiedreward_think.serving.telemetry import Telemetry

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
NAME = "picture"  # in messages of what opens it, which put where it stands in front
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Flow-GRPO's client leaves the format out; it is told by the content anyway.
_DATA_URL = re.compile(r"data:image(?:/[a-z0-9.+-]{1,32})?;base64,")


class Picture(NamedTuple):
    """A decoded picture and the hash of the bytes it came from."""

    sha256: str
    image: Image


class _Job(Generic[T]):
    """Work that has begun, and how many wait for it; when the last one leaves, it is dropped unless it runs already.

    What it was begun for keeps what it has taken until the work ends, not only until nobody waits.
    """

    def __init__(self, work: Future[T], held: Sequence[Share]) -> None:
        self.work = work
        self.done = asyncio.wrap_future(work)
        self._waiting = 0
        self._held = [share.keep() for share in held]
        self.done.add_done_callback(self._end)

    async def result(self) -> T:
        """Return what the work returns; whoever leaves does not stop it for the others."""
        self._waiting += 1
        try:
            return await asyncio.shield(self.done)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.work.cancel()

    def _end(self, done: asyncio.Future[T]) -> None:
        for release in self._held:
            release()
        if not done.cancelled():
            done.exception()  # or it is logged where nobody waits


class Intake:
    """Decode the pictures of requests.

    Args:
        limits: of the server.
        fetcher: for addresses.
        telemetry: counts decoded and remembered pictures.
        flying: the bytes that all requests may hold.
        cache_bytes: of decoded pictures that are kept.
        cache_pictures: that are kept; small ones take memory that their pixels do not show.
    """

    def __init__(
        self,
        limits: Limits,
        fetcher: Fetcher,
        telemetry: Telemetry,
        *,
        flying: Budget | None = None,
        cache_bytes: int = 2**28,
        cache_pictures: int = 1024,
    ) -> None:
        self.limits = limits
        self.flying = flying or Budget(limits.flying_bytes, "bytes")
        self._fetcher = fetcher
        self._telemetry = telemetry
        self._cache_bytes = cache_bytes
        self._cache_pictures = cache_pictures
        self._kept: OrderedDict[str, Image] = OrderedDict()
        self._kept_bytes = 0
        self._decoding: dict[str, _Job[Image]] = {}
        self._pixels = Budget(limits.flying_pixels, "pixels")
        # Threads that wait for processes are others than those that decode: what is quick never waits for what is not.
        self._here = ThreadPoolExecutor(2, thread_name_prefix="decoding")
        self._apart = ThreadPoolExecutor(PROCESSES, thread_name_prefix="waiting for decoding")
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

    async def size(self, content: bytes, held: Share) -> tuple[int, int]:
        """Return the size that a picture declares.

        Raises:
            MediaError: it is none.
        """
        if plain(content):
            return declared_size(io.BytesIO(content), NAME, FORMATS)
        return await _Job(self._apart.submit(DECODERS.size, content, name=NAME, formats=FORMATS), [held]).result()

    async def decoded(self, sha256: str, content: bytes, pixels: int, held: Sequence[Share]) -> Image:
        """Return a picture; whoever asks for the same one meanwhile waits for that.

        Args:
            sha256: of the content.
            content: of the file.
            pixels: that it declares.
            held: what the request has taken for it.

        Raises:
            MediaError: it is broken, or takes too long.
        """
        if (image := self.known(sha256)) is not None:  # while the header was read
            return image
        job = self._decoding.get(sha256)
        if job is None or job.work.cancelled():
            job = self._decoding[sha256] = _Job(self._decode(content, pixels), held)
            job.done.add_done_callback(lambda _: self._keep(sha256, job))
        else:
            self._telemetry.media.labels("shared").inc()
        return await job.result()

    async def drawn(self, image: Image) -> Image:
        """Return a picture that was encoded and went the way of the slowest ones.

        Raises:
            MediaError: that way is closed.
        """
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return await _Job(self._decode(buffer.getvalue(), image.width * image.height, apart=True), []).result()

    def _decode(self, content: bytes, pixels: int, *, apart: bool = False) -> Future[Image]:
        limit = self.limits.pixels
        if quick(content, pixels) and not apart:
            return self._here.submit(open_image, io.BytesIO(content), name=NAME, limit=limit, formats=FORMATS)
        return self._apart.submit(DECODERS.open, content, name=NAME, pixels=pixels, limit=limit, formats=FORMATS)

    def known(self, sha256: str) -> Image | None:
        """Return a picture that was decoded before."""
        if (image := self._kept.get(sha256)) is not None:
            self._kept.move_to_end(sha256)
            self._telemetry.media.labels("hit").inc()
        return image

    def _keep(self, sha256: str, job: _Job[Image]) -> None:
        """Remember a picture, and forget those not used for longest when there are too many."""
        if self._decoding.get(sha256) is job:
            del self._decoding[sha256]
        if job.done.cancelled() or job.done.exception():
            return
        self._telemetry.media.labels("miss").inc()
        if sha256 not in self._kept:
            self._kept_bytes += _size(job.done.result())
        self._kept[sha256] = job.done.result()
        while self._kept_bytes > self._cache_bytes or len(self._kept) > self._cache_pictures:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


class RequestMedia:
    """The pictures of one request."""

    def __init__(self, intake: Intake, take: Share) -> None:
        self._intake = intake
        self.held = take

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
        if (image := self._intake.known(sha256)) is not None:
            self._count(image.width * image.height, where)
            return Picture(sha256, image)
        with self._intake.flying.share() as held:
            held(len(content))
            try:
                # The header first: the pixels count before any of them is decoded.
                pixels = self._declared(*await self._intake.size(content, held), where)
                self._count(pixels, where)
                image = await self._intake.decoded(sha256, content, pixels, [held, self.held])
            except MediaError as error:  # named here: it may be another request that had it decoded
                raise Refused(f"{where}: {error}") from error
        return Picture(sha256, image)

    async def video(self, sources: Sequence[str], where: str, *, frames: int) -> list[Picture]:
        """Open the frames of a video, thinned to as many as the model is shown by the rule of all videos.

        Raises:
            Refused: there are too many, or one cannot be used.
        """
        if len(sources) > self._intake.limits.frames:
            raise Refused(f"{where}: {len(sources)} frames; the limit is {self._intake.limits.frames}")
        return [await self.picture(sources[i], f"{where}[{i}]") for i in frame_indices(len(sources), frames)]

    def _declared(self, width: int, height: int, where: str) -> int:
        """Return how many pixels a header declares."""
        short, long = sorted((width, height))
        if short < 1 or long > self._intake.limits.aspect * short:
            raise Refused(f"{where}: {width}x{height} is too narrow; the limit is {self._intake.limits.aspect}:1")
        if width * height > self._intake.limits.pixels:
            raise Refused(f"{where}: {width}x{height} pixels; the limit is {self._intake.limits.pixels}", status=413)
        return width * height

    def _count(self, pixels: int, where: str) -> None:
        if self.held.taken + pixels > self._intake.limits.request_pixels:
            raise Refused(f"{where}: more than {self._intake.limits.request_pixels} pixels in one request", status=413)
        self.held(pixels)


@asynccontextmanager
async def opening(until: float) -> AsyncIterator[None]:
    """Allow the pictures of a request to be opened until a time of the monotonic clock, and refuse it then.

    The refusal has no cause: that would hold the task, which holds the refusal, and all pictures until Python looks for
    such circles.
    """
    try:
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            yield
        return
    except TimeoutError:
        pass
    raise Refused("the deadline passed while the pictures were opened", status=504)


def _size(image: Image) -> int:
    return image.width * image.height * 4  # Pillow keeps RGB in four bytes
