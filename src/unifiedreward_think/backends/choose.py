"""From command line arguments to a backend."""

from __future__ import annotations

import argparse
from importlib import import_module

from unifiedreward_think.backends import Backend, BackendError

# Backend -> its class, and the arguments it takes beside the model. Each module is imported when it is chosen.
BACKENDS = {
    "transformers": (
        "TransformersBackend",
        {"batch_size", "dtype", "attn_implementation", "device", "min_pixels", "max_pixels", "cache_mib"},
    ),
    "server": ("ServerBackend", {"batch_size", "server", "concurrency", "timeout", "max_retries", "stop"}),
    "vllm": (
        "VllmBackend",
        {"batch_size", "dtype", "min_pixels", "max_pixels", "max_images", "tensor_parallel_size", "max_model_len"},
    ),
    "replay": ("ReplayBackend", {"batch_size"}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `make_backend` reads; what is not given is left to the backend's own default."""
    group = parser.add_argument_group("backend", "where completions come from")
    add = group.add_argument
    add("--backend", choices=list(BACKENDS), default="transformers", help="what answers (default: transformers)")
    add("--model", help="folder or Hub name of the model; server: its name there; replay: a judgments.jsonl")
    add("--batch-size", type=int, help="pairs in one batch (default: 8; server: 4 x concurrency; others: 256)")
    add("--dtype", choices=["auto", "bfloat16", "float16", "float32"], help="of the weights (default: auto)")
    add("--attn-implementation", help="attention kernel of transformers")
    add("--device", help="of transformers: cuda, cpu ... (default: cuda if there is one)")
    add("--min-pixels", type=int, help="smaller pictures are scaled up to this area (default: the model's)")
    add("--max-pixels", type=int, help="larger pictures are scaled down to this area (default: the model's)")
    add("--cache-mib", type=int, help="of features of pictures that transformers keeps (default: 1024; 0: none)")
    add("--server", help="address of an OpenAI-compatible API (default: http://127.0.0.1:8000/v1)")
    add("--concurrency", type=int, help="requests to the server in flight (default: 16)")
    add("--timeout", type=float, help="seconds for one request (default: 600)")
    add("--max-retries", type=int, help="of a request that the server failed (default: 4)")
    add("--stop", action="store_true", default=None, help="ask a vLLM or SGLang server to stop at the answer tag")
    add("--max-images", type=int, help="vllm: pictures and frames in one prompt (default: 16)")
    add("--tensor-parallel-size", type=int, help="vllm: GPUs that share the model (default: 1)")
    add("--max-model-len", type=int, help="vllm: tokens of prompt and completion (default: the model's)")


def make_backend(args: argparse.Namespace) -> Backend:
    """Return the backend that the arguments ask for.

    Raises:
        BackendError: no model is named, or an argument is given that this backend would ignore.
    """
    name, takes = BACKENDS[args.backend]
    if args.model is None:
        raise BackendError("name a --model")
    names = sorted(set.union(*(known for _, known in BACKENDS.values())))
    given = {key: value for key in names if (value := getattr(args, key)) is not None}
    if foreign := sorted(given.keys() - takes):
        option = foreign[0].replace("_", "-")
        raise BackendError(f"--{option} means nothing to --backend {args.backend}; leave it out")
    backend: Backend = getattr(import_module(f"unifiedreward_think.backends.{args.backend}"), name)(args.model, **given)
    return backend
