"""Start the reward server.

    bash scripts/serve.sh                                                   # the toy model, no GPU
    python -m unifiedreward_think.serving --model MODEL                     # a model in this process
    python -m unifiedreward_think.serving --backend server --server http://127.0.0.1:8000/v1 --model NAME

A key that requests must bring is read from UNIFIEDREWARD_API_KEY. Without one the server answers this machine only.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.data.arguments import PROMPTS
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Amount, Count, Parser, Port, Positive, Span, Whole, ranged, read
from unifiedreward_think.interrupts import kept
from unifiedreward_think.judging.settings import JudgingArguments, set_up
from unifiedreward_think.ranking import WAYS
from unifiedreward_think.serving import MODEL_NAMES
from unifiedreward_think.serving.hosts import loopback, own_hosts
from unifiedreward_think.serving.key import KEY, own_key
from unifiedreward_think.serving.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

# Clients drop idle connections after a few seconds (httpx: 5). A server that does so first cuts requests on their way.
KEEP_ALIVE = 75
# The fields of `Limits` that are flags, with --limit- before them: --frames and --limit-frames are two things.
LIMITS = {
    "deadline": (Positive, "seconds a request may take"),
    "media": (Count, "that one question is about"),
    "candidates": (Annotated[int, Span(2)], "of one ranking, or of one request for scores"),
    "scores": (Count, "of one request, candidates x samples"),
    "frames": (Count, "of one video in a request; --frames of them are shown"),
    "body_bytes": (Count, "of one request"),
    "medium_bytes": (Count, "of one encoded picture"),
    "pixels": (Count, "of one picture"),
    "request_pixels": (Count, "of all pictures of a request"),
    "prompt_chars": (Count, "characters of a prompt with its answers, or of a chat"),
    "chat_tokens": (Count, "of all answers of one chat"),
    "json_depth": (Count, "levels of JSON in a request"),
    "json_skeleton": (Count, "bytes of JSON in a request besides its strings"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop; then answer what is in flight, and end, also where the backend hangs.

    Raises:
        InputError: the arguments do not fit together, the port is taken, or a package is missing.
    """
    args = _parser().parse_args(arguments)
    if not own_key() and not loopback(args.host):
        raise InputError(f"--host {args.host} is open to other machines: set {KEY} to a key that requests must bring")
    try:
        import uvicorn
    except ImportError as error:
        raise InputError("the server needs more packages: pip install -e '.[serve]'") from error

    _must_be_free(args.host, args.port)
    app = make_app(args)
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        access_log=not args.quiet,
        lifespan="on",
        timeout_graceful_shutdown=args.drain_seconds,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        backlog=4096,
    )
    server = uvicorn.Server(config)
    try:
        with kept(lambda: "what was in flight is answered; the same command serves again"):
            server.run()
    finally:
        if app.state.batcher.given_up:
            os._exit(1)  # Python would wait for the thread that hangs
    if not server.started:
        raise SystemExit(1)  # uvicorn has said why


def _must_be_free(host: str, port: int) -> None:
    """Look before the model is loaded, which may take minutes."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((host, port))
        except OSError as error:
            fix = "choose another --port (with serve.sh: PORT=...)"
            raise InputError(f"cannot listen on {host}:{port} ({error.strerror}); {fix}") from error


def make_app(args: argparse.Namespace) -> FastAPI:
    """Return the application that the arguments describe."""
    from unifiedreward_think.serving.app import create_app
    from unifiedreward_think.serving.questions import Compute, Settings

    judging = read(args, JudgingArguments)
    points = judging.point_config()
    config, backend = set_up(judging, read(args, BackendArguments))
    settings = Settings(
        config,
        points=points,
        limits=Limits(**{name: getattr(args, f"limit_{name}") for name in LIMITS}),
        names=tuple(args.names),
        canary_deadline=args.canary_deadline,
        compute=Compute(by=args.compute_by, orders=args.compute_orders, group=args.compute_group),
    )
    return create_app(
        backend,
        settings,
        api_key=own_key(),
        hosts=own_hosts(args.host, args.allow_hosts),
        fetch_hosts=args.fetch_hosts,
        max_wait=args.max_wait,
        max_queue=args.max_queue,
        parallel=args.parallel,
        drain_seconds=args.drain_seconds,
    )


def _parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help=f"address to listen on; another machine's needs {KEY} (default: loopback)")
    add("--port", type=ranged(Port), default=8080, help="0 takes a free one (default: 8080)")
    add(
        "--allow-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names by which requests may call the server besides its own, behind a proxy for example",
    )
    add(
        "--drain-seconds",
        type=ranged(Whole),
        default=300,
        help="for what is in flight when told to stop (default: 300)",
    )
    add("--quiet", action="store_true", help="no line for each request")
    add("--names", nargs="+", default=MODEL_NAMES, help="of the model, in chats")
    add(
        "--fetch-hosts",
        nargs="+",
        default=[],
        metavar="HOST",
        help="fetch pictures by https from these (default: none)",
    )
    add = parser.add_argument_group("rewards for Flow-Factory, at /compute").add_argument
    add("--compute-by", choices=WAYS, default="pairs", help="what the reward is made of (default: pairs)")
    add("--compute-orders", choices=("one", "both"), default="both", help="of each pair (default: both)")
    whole = "candidates of a group; others are refused (default: 0, whatever comes in one request)"
    add("--compute-group", type=ranged(Whole), default=0, metavar="N", help=whole)
    add = parser.add_argument_group("queue and limits").add_argument
    seconds = "seconds a question waits for a fuller batch (default: 0.01)"
    add("--max-wait", type=ranged(Amount), default=0.01, help=seconds)
    add("--max-queue", type=ranged(Count), default=4096, help="questions that may wait; over it, 429 (default: 4096)")
    batches = "batches at a time; 2 or more only in front of a server (default: 1)"
    add("--parallel", type=ranged(Count), default=1, help=batches)
    seconds = "seconds after which /health gives up (default: 180)"
    add("--canary-deadline", type=ranged(Positive), default=180, help=seconds)
    for name, (kind, about) in LIMITS.items():
        default = getattr(Limits(), name)
        told = {"default": default, "type": ranged(kind), "help": f"{about} (default: {default})"}
        add(f"--limit-{name.replace('_', '-')}", metavar="N", **told)
    parser.add(JudgingArguments, *PROMPTS, "frames", "temperature", "top_p", "max_new_tokens", "seed", "order_seed")
    parser.add(BackendArguments)
    return parser


if __name__ == "__main__":
    run_main(main)
