"""Ask a reward server from Python, one call at a time or many at once.

    client = RewardClient("http://127.0.0.1:8080")
    reply = client.rank("image_generation", "a red kite", pictures, orders="both")
    rewards = [row["win_rate"] for row in reply["candidates"]]         # None where nothing could be read

    reply = await client.arank("image_generation", "a red kite", pictures)

Pictures are PIL images, arrays (height x width x 3, uint8), encoded bytes, or paths; a video is a list of them. They
travel as PNG, so the judge sees the very pixels of the generator. Needs httpx and Pillow, no torch.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx

from unifiedreward_think.errors import InputError, MediaError
from unifiedreward_think.pixels import to_rgb
from unifiedreward_think.serving.key import checked, own_key
from unifiedreward_think.tasks import TASKS

T = TypeVar("T")

RETRIED = (429, 503)  # the server is full or starting; whatever else it answers, it would answer again
LONGEST_PAUSE = 30.0


class RewardError(InputError):
    """The server refused a request, or could not be reached; the message holds its reason."""


class RewardClient:
    """A reward server.

    Args:
        url: where it is.
        api_key: its key; by default that of UNIFIEDREWARD_API_KEY.
        timeout: seconds for one attempt.
        retries: how often to come back when the server is full or the connection is lost.

    Raises:
        InputError: no header carries the key.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8080", *, api_key: str | None = None, timeout: float = 600, retries: int = 8
    ) -> None:
        key = own_key() if api_key is None else checked(api_key)
        self._options: dict[str, Any] = {
            "base_url": url,
            "timeout": timeout,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
        }
        self._retries = retries

    def compare(self, task: str, prompt: str, candidates: Sequence[Any], **more: Any) -> dict[str, Any]:
        """Judge a pair.

        Args:
            task: as in `records.TASK_NAMES`.
            prompt: the caption, or the question.
            candidates: two pictures, videos (lists of frames) or answers.
            more: `media`, what a question is about, as a list of pictures or videos; `orders`, `reasoning`, `deadline`.

        Raises:
            RewardError: the server refuses it, or cannot be reached.
        """
        return _run(self.acompare(task, prompt, candidates, **more))

    def rank(self, task: str, prompt: str, candidates: Sequence[Any], **more: Any) -> dict[str, Any]:
        """Judge a group; `more` may also hold `by`, `schedule`, `opponents`, `rounds` and `seed`. Else as `compare`."""
        return _run(self.arank(task, prompt, candidates, **more))

    def score(self, task: str, prompt: str, candidates: Sequence[Any], **more: Any) -> dict[str, Any]:
        """Score candidates, each alone.

        Args:
            task: as in `records.TASK_NAMES`.
            prompt: the caption, or the question.
            candidates: one or more pictures, videos (lists of frames) or answers.
            more: `samples` and their `temperature`; `media`, `reasoning` and `deadline` as for `compare`.

        Raises:
            RewardError: the server refuses it, or cannot be reached.
        """
        return _run(self.ascore(task, prompt, candidates, **more))

    async def acompare(self, task: str, prompt: str, candidates: Sequence[Any], **more: Any) -> dict[str, Any]:
        """Judge a pair, as `compare` does, without blocking the event loop."""
        return await self._post("/v1/compare", request_body(task, prompt, candidates, **more))

    async def arank(self, task: str, prompt: str, candidates: Sequence[Any], **more: Any) -> dict[str, Any]:
        """Judge a group, as `rank` does, without blocking the event loop."""
        return await self._post("/v1/rank", request_body(task, prompt, candidates, **more))

    async def ascore(self, task: str, prompt: str, candidates: Sequence[Any], **more: Any) -> dict[str, Any]:
        """Score candidates, as `score` does, without blocking the event loop."""
        return await self._post("/v1/score", request_body(task, prompt, candidates, **more))

    def rank_all(self, groups: Sequence[Mapping[str, Any]], *, concurrency: int = 32) -> list[dict[str, Any]]:
        """Judge many groups at once; each of `groups` holds the arguments of `rank`. Replies come in their order.

        Raises:
            RewardError: the server refuses one of them.
        """
        return self._all("/v1/rank", groups, concurrency)

    def score_all(self, requests: Sequence[Mapping[str, Any]], *, concurrency: int = 32) -> list[dict[str, Any]]:
        """Score many candidates at once; each of `requests` holds the arguments of `score`. Else as `rank_all`."""
        return self._all("/v1/score", requests, concurrency)

    def _all(self, path: str, requests: Sequence[Mapping[str, Any]], concurrency: int) -> list[dict[str, Any]]:
        async def work() -> list[dict[str, Any]]:
            limit = asyncio.Semaphore(concurrency)
            async with httpx.AsyncClient(**self._options) as http:

                async def one(arguments: Mapping[str, Any]) -> dict[str, Any]:
                    async with limit:
                        return await self._post(path, request_body(**arguments), http)

                return list(await asyncio.gather(*map(one, requests)))

        return _run(work())

    def health(self) -> dict[str, Any]:
        """Return what the server says of its health.

        Raises:
            RewardError: it is not healthy, or cannot be reached.
        """
        try:
            reply = httpx.get(f"{self._options['base_url'].rstrip('/')}/health", timeout=self._options["timeout"])
        except httpx.TransportError as error:
            raise _unreachable(self._options["base_url"], error) from error
        return _read(reply)

    async def _post(self, path: str, body: Mapping[str, Any], http: httpx.AsyncClient | None = None) -> dict[str, Any]:
        if http is None:
            async with httpx.AsyncClient(**self._options) as client:
                return await self._post(path, body, client)
        for attempt in range(self._retries + 1):
            try:
                reply = await http.post(path, json=body)
            except httpx.TransportError as error:
                if attempt == self._retries or isinstance(error, httpx.TimeoutException):
                    raise _unreachable(self._options["base_url"], error) from error
                await asyncio.sleep(_pause(None, attempt))
                continue
            if reply.status_code not in RETRIED or attempt == self._retries:
                return _read(reply)
            await asyncio.sleep(_pause(reply, attempt))
        raise AssertionError("unreachable: the last attempt returns or raises")


def request_body(
    task: str, prompt: str, candidates: Sequence[Any], *, media: Sequence[Any] = (), **more: Any
) -> dict[str, Any]:
    """Return the JSON body of a request."""
    answers = task in TASKS and not TASKS[task].compares_media  # the server refuses an unknown task
    items = [{"text": candidate} if answers else _medium(candidate) for candidate in candidates]
    about = {"media": [_medium(entry) for entry in media]} if media else {}
    return {"task": task, "prompt": prompt, "candidates": items, **about, **more}


def data_url(picture: Any) -> str:
    """Return a picture as a data URL: the bytes of a file as they are, pixels as PNG.

    Args:
        picture: a PIL image, an array of height x width x 3 bytes, encoded bytes, or a path.

    Raises:
        RewardError: it is none of these.
    """
    from PIL import Image

    if isinstance(picture, str) and picture.startswith(("data:", "https://")):
        return picture
    if isinstance(picture, str | Path):
        picture = Path(picture).read_bytes()
    if isinstance(picture, bytes):
        return "data:image/any;base64," + base64.b64encode(picture).decode()
    if hasattr(picture, "__array_interface__") and not isinstance(picture, Image.Image):
        try:
            picture = Image.fromarray(picture)
        except TypeError as error:
            form = f"{picture.dtype} array of shape {picture.shape}"
            raise RewardError(f"a {form} is no picture; give height x width x 3 bytes") from error
    if not isinstance(picture, Image.Image):
        raise RewardError(f"a {type(picture).__name__} is no picture; give a PIL image, an array, bytes or a path")
    buffer = io.BytesIO()
    try:
        to_rgb(picture).save(buffer, format="PNG", compress_level=1)
    except MediaError as error:
        raise RewardError(str(error)) from error
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine here, where Ctrl-C ends it; where there is an event loop already (a notebook), in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()


def _medium(entry: Any) -> dict[str, Any]:
    if isinstance(entry, list | tuple):
        return {"frames": [data_url(frame) for frame in entry]}
    return {"image": data_url(entry)}


def _pause(reply: httpx.Response | None, attempt: int) -> float:
    """Return the seconds to wait: what the server says, or ever longer."""
    header = "" if reply is None else reply.headers.get("retry-after", "")
    return min(LONGEST_PAUSE, float(header) if header.isdigit() else 0.5 * 2**attempt)


def _unreachable(url: str, error: Exception) -> RewardError:
    return RewardError(f"no answer from the reward server at {url} ({type(error).__name__}: {error})")


def _read(reply: httpx.Response) -> dict[str, Any]:
    """Return the body of a reply.

    Raises:
        RewardError: it is an error.
    """
    if reply.status_code != 200:
        raise RewardError(f"the reward server answered {reply.status_code}: {reply.text[:300]}")
    answer: dict[str, Any] = reply.json()
    return answer
