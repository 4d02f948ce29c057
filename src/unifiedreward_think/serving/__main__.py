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
from dataclasses import replace
from typing import TYPE_CHECKING

from unifiedreward_think.backends.choose import add_arguments, make_backend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.serving import MODEL_NAMES
from unifiedreward_think.serving.hosts import loopback, own_hosts
from unifiedreward_think.serving.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

KEY = "UNIFIEDREWARD_API_KEY"
# Clients drop idle connections after a few seconds (httpx: 5). A server that does so first cuts requests on their way.
KEEP_ALIVE = 75


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop; then answer what is in flight, and end, also where the backend hangs.

    Raises:
        InputError: the arguments do not fit together, the port is taken, or a package is missing.
    """
    args = _parser().parse_args(arguments)
    if not loopback(args.host) and not os.environ.get(KEY):
        raise InputError(f"--host {args.host} is open to other machines: set {KEY} to a key that requests must bring")
    try:
        import uvicorn
    except ImportError as error:
        raise InputError("the server needs more packages: pip install -e '.[serve]'") from error

    _must_be_free(args.host, args.port)
    app = make_app(args)
    uvicorn.run(
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
    if app.state.batcher.given_up:
        os._exit(1)  # Python would wait for the thread that hangs


def _must_be_free(host: str, port: int) -> None:
    """Look before the model is loaded, which may take minutes."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((host, port))
        except OSError as error:
            mend = "choose another --port (with serve.sh: PORT=...)"
            raise InputError(f"cannot listen on {host}:{port} ({error.strerror}); {mend}") from error


def make_app(args: argparse.Namespace) -> FastAPI:
    """Return the application that the arguments describe."""
    from unifiedreward_think.serving.app import create_app
    from unifiedreward_think.serving.questions import Settings

    sampling = Sampling(
        temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens, seed=args.seed
    )
    limits = {name: value for name in Limits.__slots__ if (value := getattr(args, name, None)) is not None}
    settings = Settings(
        prompts=load_prompts(args.style, layout=args.layout, folder=args.prompt_dir),
        style=args.style,
        sampling=sampling,
        frames=args.frames,
        order_seed=args.order_seed,
        limits=replace(Limits(), **limits),
        names=tuple(args.names),
        canary_deadline=args.canary_deadline,
    )
    return create_app(
        make_backend(args),
        settings,
        api_key=os.environ.get(KEY, ""),
        hosts=own_hosts(args.host, args.allow_hosts),
        fetch_hosts=args.fetch_hosts,
        max_wait=args.max_wait,
        max_queue=args.max_queue,
        parallel=args.parallel,
        drain_seconds=args.drain_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help=f"address to listen on; another machine's needs {KEY} (default: loopback)")
    add("--port", type=int, default=8080, help="0 takes a free one (default: 8080)")
    add(
        "--allow-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names by which requests may call the server besides its own, behind a proxy for example",
    )
    add("--drain-seconds", type=int, default=300, help="for what is in flight when told to stop (default: 300)")
    add("--quiet", action="store_true", help="no line for each request")
    add("--names", nargs="+", default=MODEL_NAMES, help="of the model, in chats")
    add(
        "--fetch-hosts",
        nargs="+",
        default=[],
        metavar="HOST",
        help="fetch pictures by https from these (default: none)",
    )
    add = parser.add_argument_group("judging").add_argument
    add("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add("--layout", choices=["one_line", "three_line"], default="one_line", help="form of a dimension in the prompt")
    add("--prompt-dir", help="folder of prompt templates of your own")
    add("--frames", type=int, default=8, help="of each video that the model is shown (default: 8)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-p", type=float, default=1.0, help="nucleus (default: 1)")
    add("--max-new-tokens", type=int, default=2048, help="limit of a judgment (default: 2048)")
    add("--seed", type=int, default=0, help="of sampling")
    add("--order-seed", type=int, default=0, help="decides the order of a pair that is shown once")
    add = parser.add_argument_group("queue and limits").add_argument
    add("--max-wait", type=float, default=0.01, help="seconds a question waits for a fuller batch (default: 0.01)")
    add("--max-queue", type=int, default=4096, help="questions that may wait; over it, 429 (default: 4096)")
    add("--parallel", type=int, default=1, help="batches at a time; 2 or more only in front of a server (default: 1)")
    add("--canary-deadline", type=float, default=180, help="seconds after which /health gives up (default: 180)")
    for name, about in {
        "deadline": "seconds a request may take",
        "candidates": "of one ranking",
        "body_bytes": "of one request",
        "medium_bytes": "of one encoded picture",
        "pixels": "of one picture",
        "request_pixels": "of all pictures of a request",
    }.items():
        default = getattr(Limits(), name)
        flag = f"--limit-{name.replace('_', '-')}"
        add(flag, dest=name, type=type(default), metavar="N", help=f"{about} (default: {default})")
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
