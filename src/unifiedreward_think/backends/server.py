"""Completions from an OpenAI-compatible server (vLLM, SGLang, `transformers serve`): many requests in flight.

    vllm serve MODEL --served-model-name judge
    python inference/image_generation.py --backend server --server http://127.0.0.1:8000/v1 --model judge ...
    ... --server http://node1:8000/v1 http://node2:8000/v1     # several: backends/addresses.py

Pictures travel as PNG (`backends/parts.py`). Each sample is a request of its own with
its own seed, because servers ignore `n` or draw it from one seed. With native video the file travels as it is and the
server samples it: vLLM takes the number of frames from the request, `transformers serve` refuses videos.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from unifiedreward_think.backends import BackendError, Completion, Failure, Numbers, with_images
from unifiedreward_think.backends.addresses import Addresses, models_of, must_be_one_model
from unifiedreward_think.backends.parts import frames_asked, image_part, once_each, video_part
from unifiedreward_think.backends.placement import placement_settings
from unifiedreward_think.backends.server_replies import QUOTED, listen, read_reply
from unifiedreward_think.backends.server_template import AS_WRITTEN, agreed, served
from unifiedreward_think.blocks import STOP_STRING
from unifiedreward_think.engine.sampling import Sampling

T = TypeVar("T")
Messages = list[dict[str, Any]]

SEEDS = 2**31  # servers seed numpy or a signed integer with it
CHECK_TIMEOUT = 10.0
TOP = 20  # tokens in a place: as many as OpenAI and vLLM tell


class ServerBackend:
    """Ask a running server, or several of the same model.

    Args:
        model: what the server calls the model.
        server: address of the API, with its /v1, or those of several. A key is read from OPENAI_API_KEY.
        concurrency: requests in flight, for each server.
        batch_size: pairs in one batch; 4 for each request in flight by default, so that few wait for the slowest.
        timeout: seconds for one request.
        max_retries: how often the SDK tries again after a lost connection, a timeout, 408, 409, 429 or 5xx.
        stop: ask the server to stop at the closing answer tag (vLLM and SGLang; `transformers serve` answers 500).
            Completions end there either way; this only saves the time of writing on.
        thinking: whether a chat template that has a switch lets the model think (vLLM).
        numbers: where a completion says the numbers whose probabilities it is to bring, by the server's top tokens;
            None: none are asked for.

    Raises:
        BackendError: nobody answers there, the key or the address is refused, the server moves pictures, or several
            do not serve the same model.
    """

    native_video = "file"

    def __init__(
        self,
        model: str,
        *,
        server: str | Sequence[str] = "http://127.0.0.1:8000/v1",
        concurrency: int = 16,
        batch_size: int | None = None,
        timeout: float = 600.0,
        max_retries: int = 4,
        stop: bool = False,
        thinking: bool = True,
        numbers: Numbers | None = None,
    ) -> None:
        self.model = model
        self.numbers = numbers
        self._addresses = Addresses([server] if isinstance(server, str) else server)
        self._concurrency = concurrency * len(self._addresses.all)
        self.batch_size = batch_size or 4 * self._concurrency
        self._client: dict[str, Any] = {
            "api_key": os.environ.get("OPENAI_API_KEY", "none"),  # the SDK insists on one
            "timeout": timeout,
            "max_retries": max_retries,
        }
        must_be_one_model(model, {url: self._models(url) for url in self._addresses.all})
        settings: dict[str, Any] = {"backend": "server"}
        templates = {}
        for url in self._addresses.all:
            with self._checking(url) as client:
                placement = placement_settings(client, model, image_part)
                templates[url] = AS_WRITTEN if placement else served(client, model, thinking)
            settings |= placement
        self._served = agreed(templates)
        self.settings: Mapping[str, Any] = {**settings, **self._served.settings}
        stops = {"stop": [STOP_STRING], "include_stop_str_in_output": True} if stop else {}
        self._extra: dict[str, Any] = {**stops, **self._served.options}

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        """Return len(seeds[i]) completions of prompt i; a request that finally fails gives its reason.

        Raises:
            BackendError: all requests failed, and the server is gone.
        """
        answers = _run(self._complete(prompts, sampling, seeds))
        if all(isinstance(answer, Failure) for samples in answers for answer in samples):
            self._check()
        return answers

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses that are asked."""
        return self._addresses.all

    def _check(self) -> None:
        """Raise if no server is left."""
        problems = [self._problem(url) for url in self._addresses.all]
        if all(problems):
            raise BackendError("; ".join(problems))

    def _problem(self, url: str) -> str:
        """Return why a server cannot be asked; nothing where it can."""
        try:
            self._models(url)
        except BackendError as error:
            return str(error)
        return ""

    def _models(self, url: str) -> list[dict[str, Any]]:
        with self._checking(url) as client:
            return models_of(client)

    def _checking(self, url: str) -> Any:
        return _sdk().OpenAI(**{**self._client, "base_url": url, "timeout": CHECK_TIMEOUT, "max_retries": 0})

    def _elsewhere(self, url: str, tried: set[str]) -> bool:
        """Whether a request that failed may go to another server: this one is gone, and there is one not tried yet."""
        tried.add(url)
        if len(tried) == len(self._addresses.all) or not (problem := self._problem(url)):
            return False
        self._addresses.leave_out(url, problem)
        return True

    def stream(
        self, prompt: Mapping[str, Any], *, sampling: Sampling, seed: int, on_text: Callable[[str], object]
    ) -> Completion | Failure:
        """Return one completion of one prompt, as `complete` asks for it; `on_text` takes each piece as it comes.

        An exception of `on_text` closes the connection, which ends the writing, and is passed on.

        Raises:
            BackendError: the request failed, and the server is gone.
        """
        request = self._request(
            with_images(prompt, image_part, video_part), sampling, seed, {**self._extra, **frames_asked(prompt)}
        )
        chunks: list[str] = []
        tried: set[str] = set()

        def pass_on(piece: str) -> None:
            chunks.append(piece)
            on_text(piece)

        while True:
            with self._addresses.nearest(but=tried) as url:
                answer = self._streamed(url, request, pass_on)
            if not isinstance(answer, Failure):
                return answer
            if chunks or not self._elsewhere(url, tried):  # what was passed on cannot be taken back
                self._check()
                return answer

    def _streamed(self, url: str, request: Mapping[str, Any], on_text: Callable[[str], object]) -> Completion | Failure:
        import httpx

        openai = _sdk()
        try:
            with (
                openai.OpenAI(**self._client, base_url=url) as client,
                client.chat.completions.create(**request, stream=True) as chunks,
            ):
                return listen(chunks, on_text, self._served)
        except openai.APIError as error:
            return self._failure(error)
        except httpx.TransportError as error:  # the SDK names only what goes wrong before the first piece
            return Failure(f"the connection to the server was lost ({error})")

    async def _complete(
        self, prompts: Sequence[Mapping[str, Any]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        gate = asyncio.Semaphore(self._concurrency)
        show = once_each(prompts)
        async with AsyncExitStack() as stack:
            clients = {
                url: await stack.enter_async_context(_sdk().AsyncOpenAI(**self._client, base_url=url))
                for url in self._addresses.all
            }

            async def samples(prompt: Mapping[str, Any], prompt_seeds: Sequence[int]) -> list[Completion | Failure]:
                async with gate:
                    messages = await asyncio.to_thread(with_images, prompt, show, video_part)
                extra = {**self._extra, **frames_asked(prompt)}
                usual: dict[str, str] = {}

                async def ask(seed: int) -> Completion | Failure:
                    async with gate:
                        return await self._ask_nearest(clients, usual, messages, sampling, seed, extra)

                return await asyncio.gather(*map(ask, prompt_seeds))

            return await asyncio.gather(*map(samples, prompts, seeds))

    async def _ask_nearest(
        self, clients: Mapping[str, Any], usual: dict[str, str], messages: Messages, *how: Any
    ) -> Completion | Failure:
        """Ask the server that has a prompt's other samples, named in `usual`, or another where that is gone."""
        tried: set[str] = set()
        while True:
            with self._addresses.nearest(usual.get("url"), tried) as url:
                usual["url"] = url
                answer = await self._ask(clients[url], messages, *how)
            if not isinstance(answer, Failure) or not await asyncio.to_thread(self._elsewhere, url, tried):
                return answer

    async def _ask(
        self, client: Any, messages: Messages, sampling: Sampling, seed: int, extra: Mapping[str, Any]
    ) -> Completion | Failure:
        request = self._request(messages, sampling, seed, extra)
        try:
            reply = await client.chat.completions.with_raw_response.create(**request)
        except _sdk().APIError as error:
            return self._failure(error)
        return read_reply(reply.text, self._served, self.numbers)

    def _request(self, messages: Messages, sampling: Sampling, seed: int, extra: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed % SEEDS,
            **({"logprobs": True, "top_logprobs": TOP} if self.numbers is not None else {}),
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


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine here, where Ctrl-C ends it; where there is an event loop already (a notebook), in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()


def _sdk() -> Any:
    try:
        import openai
    except ImportError as error:
        raise BackendError("the server backend needs the openai package: pip install -e '.[serve]'") from error
    return openai
