"""Completions from an OpenAI-compatible server (vLLM, SGLang, `transformers serve`): many requests in flight.

    vllm serve MODEL --served-model-name judge
    python inference/image_generation.py --backend server --server http://127.0.0.1:8000/v1 --model judge ...

Pictures travel as PNG, so the server sees the very pixels a local model would. Each sample is a request of its own with
its own seed, because servers ignore `n` or draw it from one seed. With native video the file travels as it is and the
server samples it: vLLM takes the number of frames from the request, `transformers serve` refuses videos.

>>> read_reply('{"choices": [{"message": {"content": "<answer>"}, "finish_reason": "length"}]}')
Completion(text='<answer>', finish_reason='length', seconds=None)
>>> read_reply('{"choices": []}').reason
'the reply is no chat completion (IndexError): {"choices": []}'
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import mimetypes
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from unifiedreward_think.backends import BackendError, Completion, Failure, Video, end_at_tag, with_images
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.verdict import STOP_STRING

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Messages = list[dict[str, Any]]

QUOTED = 300  # characters of a server's reply in an error
SEEDS = 2**31  # servers seed numpy or a signed integer with it
CHECK_TIMEOUT = 10.0


class ServerBackend:
    """Ask a running server.

    Args:
        model: what the server calls the model.
        server: address of the API, with its /v1. A key is read from OPENAI_API_KEY.
        concurrency: requests in flight.
        batch_size: pairs in one batch; 4 for each request in flight by default, so that few wait for the slowest.
        timeout: seconds for one request.
        max_retries: how often the SDK tries again after a lost connection, a timeout, 408, 409, 429 or 5xx.
        stop: ask the server to stop at the closing answer tag (vLLM and SGLang; `transformers serve` answers 500).
            Completions end there either way; this only saves the time of writing on.

    Raises:
        BackendError: nobody answers there, or the key or the address is refused.
    """

    native_video = "file"

    def __init__(
        self,
        model: str,
        *,
        server: str = "http://127.0.0.1:8000/v1",
        concurrency: int = 16,
        batch_size: int | None = None,
        timeout: float = 600.0,
        max_retries: int = 4,
        stop: bool = False,
    ) -> None:
        self.model = model
        self.batch_size = batch_size or 4 * concurrency
        self.settings: Mapping[str, Any] = {"backend": "server"}
        self._concurrency = concurrency
        self._stop = {"stop": [STOP_STRING], "include_stop_str_in_output": True} if stop else {}
        self._client: dict[str, Any] = {
            "base_url": server,
            "api_key": os.environ.get("OPENAI_API_KEY", "none"),  # the SDK insists on one
            "timeout": timeout,
            "max_retries": max_retries,
        }
        self._check()

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        """Return len(seeds[i]) completions of prompt i; a request that finally fails gives its reason.

        Raises:
            BackendError: all requests failed, and the server is gone.
        """
        answers = _run(self._complete(prompts, sampling, seeds))
        if all(isinstance(answer, Failure) for mine in answers for answer in mine):
            self._check()
        return answers

    def _check(self) -> None:
        """Ask for the models: any reply will do (`transformers serve` may answer 500), save a refusal."""
        openai = _sdk()
        client = openai.OpenAI(**{**self._client, "timeout": CHECK_TIMEOUT, "max_retries": 0})
        where = self._client["base_url"]
        try:
            with client:
                client.models.with_raw_response.list()
        except openai.APIConnectionError as error:
            raise BackendError(f"{where}: no server answers ({error.__cause__ or error}); start it first") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise BackendError(f"{where}: the server refuses the key; set OPENAI_API_KEY") from error
        except openai.NotFoundError as error:
            raise BackendError(f"{where}: no OpenAI API there; does the address lack /v1?") from error
        except openai.APIStatusError:
            return

    def stream(
        self, prompt: Mapping[str, Any], *, sampling: Sampling, seed: int, on_text: Callable[[str], object]
    ) -> Completion | Failure:
        """Return one completion of one prompt, as `complete` asks for it; `on_text` takes each piece as it comes.

        An exception of `on_text` closes the connection, which ends the writing, and is passed on.

        Raises:
            BackendError: the request failed, and the server is gone.
        """
        import httpx

        openai = _sdk()
        messages = with_images(prompt, _image_part, _video_part)
        asked = self._request(messages, sampling, seed, {**self._stop, **_frames_asked(prompt)})
        try:
            with openai.OpenAI(**self._client) as client, client.chat.completions.create(**asked, stream=True) as said:
                answer = _listen(said, on_text)
        except openai.APIError as error:
            answer = self._failure(error)
        except httpx.TransportError as error:  # the SDK names only what goes wrong before the first piece
            answer = Failure(f"the connection to the server was lost ({error})")
        if isinstance(answer, Failure):
            self._check()
        return answer

    async def _complete(
        self, prompts: Sequence[Mapping[str, Any]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        gate = asyncio.Semaphore(self._concurrency)
        show = _once_each(prompts)
        async with _sdk().AsyncOpenAI(**self._client) as client:

            async def ask(messages: Messages, seed: int, extra: Mapping[str, Any]) -> Completion | Failure:
                async with gate:
                    return await self._ask(client, messages, sampling, seed, extra)

            async def samples(prompt: Mapping[str, Any], mine: Sequence[int]) -> list[Completion | Failure]:
                async with gate:
                    messages = await asyncio.to_thread(with_images, prompt, show, _video_part)
                extra = {**self._stop, **_frames_asked(prompt)}
                return await asyncio.gather(*(ask(messages, seed, extra) for seed in mine))

            return await asyncio.gather(*map(samples, prompts, seeds))

    async def _ask(
        self, client: Any, messages: Messages, sampling: Sampling, seed: int, extra: Mapping[str, Any]
    ) -> Completion | Failure:
        asked = self._request(messages, sampling, seed, extra)
        try:
            reply = await client.chat.completions.with_raw_response.create(**asked)
        except _sdk().APIError as error:
            return self._failure(error)
        return read_reply(reply.text)

    def _request(self, messages: Messages, sampling: Sampling, seed: int, extra: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed % SEEDS,
            "extra_body": extra,
        }

    def _failure(self, error: Exception) -> Failure:
        """Return what an error of the SDK says of a request."""
        openai = _sdk()
        if isinstance(error, openai.APIStatusError):
            return Failure(f"the server answered {error.status_code}: {error.response.text[:QUOTED]}")
        if isinstance(error, openai.APITimeoutError):
            return Failure(f"the server gave no answer within {self._client['timeout']:g} s")
        if isinstance(error, openai.APIConnectionError):
            return Failure(f"the connection to the server was lost ({error.__cause__ or error})")
        return Failure(f"the server broke off: {error}"[:QUOTED])  # an error among the pieces of a stream


def data_url(image: Image) -> str:
    """Return a picture as PNG in a data URL: no pixel changes on the way."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_reply(body: str) -> Completion | Failure:
    """Read the body of a chat completion; a body that is none is a failure that quotes it."""
    try:
        choice = json.loads(body)["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        text, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Failure(f"the reply is no chat completion ({type(error).__name__}): {body[:QUOTED]}")
    return _completion(text, thoughts, reason)


def _completion(text: Any, thoughts: Any, reason: Any) -> Completion | Failure:
    if thoughts:
        return Failure("the server splits the chain of thought off; start it without a reasoning parser")
    if not isinstance(text, str) or reason not in ("stop", "length"):
        return Failure(f"the server returned no text (finish reason {reason!r})")
    return end_at_tag(text, reason)


def _listen(said: Iterable[Any], on_text: Callable[[str], object]) -> Completion | Failure:
    """Read the pieces of a streamed chat completion, up to the closing answer tag."""
    text, thoughts, reason = "", "", None
    for chunk in said:
        for choice in chunk.choices:  # the last chunk of some servers has none
            delta = choice.delta.to_dict()
            thoughts += delta.get("reasoning_content") or delta.get("reasoning") or ""
            before, text = text, end_at_tag(text + (delta.get("content") or ""), "").text
            reason = choice.finish_reason or reason
            if len(text) > len(before):
                on_text(text[len(before) :])
        if text.endswith(STOP_STRING):
            return _completion(text, thoughts, "stop")
    return _completion(text, thoughts, reason)


def _once_each(prompts: Sequence[Mapping[str, Any]]) -> Callable[[Image], dict[str, Any]]:
    """Return what shows a picture to the server, encoding each only once while prompts of a batch still need it.

    The pairs of a group share their candidates: 8 pictures in both orders are shown 112 times.
    """
    left = Counter(id(image) for prompt in prompts for image in prompt["images"])
    locks = {key: Lock() for key in left}  # prompts are made in several threads
    encoded: dict[int, dict[str, Any]] = {}

    def show(image: Image) -> dict[str, Any]:
        key = id(image)  # the prompts keep it alive
        with locks[key]:
            part = encoded.pop(key, None) or _image_part(image)
            left[key] -= 1
            if left[key]:
                encoded[key] = part
        return part

    return show


def _image_part(image: Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def _video_part(video: Video) -> dict[str, Any]:
    kind = mimetypes.guess_type(video.clip.video)[0] or "video/mp4"
    data = base64.b64encode(video.clip.video.read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:{kind};base64,{data}"}}


def _frames_asked(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field of vLLM that says how many frames of each video to sample; nothing without videos."""
    counts = [len(video.clip.indices) for video in prompt.get("videos", ())]
    return {"media_io_kwargs": {"video": {"num_frames": max(counts)}}} if counts else {}


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own: the caller (a notebook, a server) may have an event loop already."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()


def _sdk() -> Any:
    try:
        import openai
    except ImportError as error:
        raise BackendError("the server backend needs the openai package: pip install -e '.[serve]'") from error
    return openai
