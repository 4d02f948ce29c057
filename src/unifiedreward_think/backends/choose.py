"""The one place where a backend is made, from what a command line, a YAML file or Python asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from inspect import signature
from typing import Any, Literal

from unifiedreward_think.backends import Backend, BackendError, Numbers
from unifiedreward_think.backends.padding import BATCH_TOKENS
from unifiedreward_think.flags import Count, Positive, Whole, check_ranges, option

# Backend -> its class. Each module is imported when it is chosen; the class takes what its signature names.
BACKENDS = {
    "transformers": "TransformersBackend",
    "server": "ServerBackend",
    "vllm": "VllmBackend",
    "replay": "ReplayBackend",
}
NAMES = ("backend", "model")


@dataclass(kw_only=True)
class BackendArguments:
    """Where completions come from. What is None is left to the backend's own default."""

    backend: Literal["transformers", "server", "vllm", "replay"] = option("what answers", default="transformers")
    model: str | None = option(
        "folder or Hub name of the model; server: its name there; replay: a judgments.jsonl", default=None
    )
    batch_size: Count | None = option(
        "pairs in one batch (default: 8; server: 4 x concurrency; others: 256)", default=None
    )
    batch_tokens: Count | None = option(
        "of the prompts in one batch of transformers, each padded to the longest; a longer one is answered alone "
        f"(default: {BATCH_TOKENS:,})",
        default=None,
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = option(
        "of the weights (default: auto)", default=None
    )
    attn_implementation: str | None = option("attention kernel of transformers", default=None)
    device: str | None = option("of transformers: cuda, cpu ... (default: cuda if there is one)", default=None)
    min_pixels: Count | None = option(
        "smaller pictures are scaled up to this area (default: the model's)", default=None
    )
    max_pixels: Count | None = option(
        "larger pictures are scaled down to this area (default: the model's)", default=None
    )
    cache_mib: Whole | None = option(
        "of features of pictures that transformers keeps (default: 1024; 0: none)", default=None
    )
    server: list[str] | str | None = option(
        "addresses of OpenAI-compatible APIs of one model (default: http://127.0.0.1:8000/v1); key: OPENAI_API_KEY",
        default=None,
    )
    concurrency: Count | None = option("requests in flight, for each server (default: 16)", default=None)
    timeout: Positive | None = option("seconds for one request (default: 600)", default=None)
    max_retries: Whole | None = option("of a request that the server failed (default: 4)", default=None)
    stop: bool | None = option("ask a vLLM or SGLang server to stop at the answer tag", default=None)
    max_images: Whole | None = option("vllm: pictures and frames in one prompt (default: 16)", default=None)
    tensor_parallel_size: Count | None = option("vllm: GPUs that share the model (default: 1)", default=None)
    max_model_len: Count | None = option("vllm: tokens of prompt and completion (default: the model's)", default=None)

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            InputError: names the first of them.
        """
        check_ranges(self)

    def given(self) -> dict[str, Any]:
        """Return the arguments that are set, besides the backend and its model."""
        return {key: value for key, value in asdict(self).items() if value is not None and key not in NAMES}


def make_backend(
    args: BackendArguments,
    *,
    kind: Callable[..., Backend] | None = None,
    thinking: bool = True,
    numbers: Numbers | None = None,
    **more: Any,
) -> Backend:
    """Return the backend that the arguments ask for.

    Args:
        args: what to make.
        kind: makes it in place of the backend's own class, such as a teacher of a server.
        thinking: whether the model may think where its chat template has a switch; nothing to stored completions.
        numbers: where completions say the numbers whose probabilities are wanted; None: none are.
        more: what comes from no flag, such as a model in memory.

    Raises:
        BackendError: no model is named, an argument is given that this backend would ignore, or it knows no
            probabilities.
    """
    if args.model is None:
        raise BackendError("name a --model")
    make: Any = getattr(import_module(f"unifiedreward_think.backends.{args.backend}"), BACKENDS[args.backend])
    takes = signature(make).parameters.keys()
    if foreign := sorted(args.given().keys() - takes):
        flag = f"--{foreign[0].replace('_', '-')}"
        raise BackendError(f"{flag} means nothing to --backend {args.backend}; leave it out, or set it to none")
    if numbers is not None and "numbers" not in takes:
        raise BackendError(
            f"--backend {args.backend} tells no probabilities for --expectation: use transformers, server"
        )
    if numbers is not None:
        more["numbers"] = numbers
    if "thinking" in takes:
        more["thinking"] = thinking
    return (kind or make)(args.model, **args.given(), **more)
