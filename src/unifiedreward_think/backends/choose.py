"""From command line arguments to a backend; the one place where a backend is constructed."""

from __future__ import annotations

import argparse

from unifiedreward_think.backends import Backend


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `make_backend` reads."""
    add = parser.add_argument
    add("--model", help="folder or Hub name of the model")
    add("--batch-size", type=int, default=8, help="pairs in one batch")
    add("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto", help="of the weights")
    add("--attn-implementation", help="attention kernel")
    add("--min-pixels", type=int, help="smaller pictures are scaled up to this area (default: the model's)")
    add("--max-pixels", type=int, help="larger pictures are scaled down to this area (default: the model's)")


def make_backend(args: argparse.Namespace) -> Backend:
    """Return the backend that the arguments ask for."""
    from unifiedreward_think.backends.transformers import TransformersBackend

    return TransformersBackend(
        args.model,
        batch_size=args.batch_size,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
    )
