"""The demo page in a browser: judge pairs, watch the reasoning, swap and ask again, score one, judge a file.

    python gradio/app.py --toy                                            # no weights, no network, no GPU
    python gradio/app.py --model CodeGoat24/UnifiedReward-Think-qwen-7b
    python gradio/app.py --backend server --server http://127.0.0.1:8000/v1 --model NAME --stop
    python gradio/app.py --backend replay --model RUN/judgments.jsonl --examples RUN/records.jsonl    # a stored run

--toy takes the trained toy judge of the package, which judges drawings of the toy world.
"""

import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from threading import Event

from unifiedreward_think.backends import BackendError
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.data.arguments import FRAMES, PROMPTS
from unifiedreward_think.entry import run_main
from unifiedreward_think.flags import Parser, Port, ranged, read
from unifiedreward_think.interrupts import kept
from unifiedreward_think.judging.settings import JudgingArguments, set_up
from unifiedreward_think.tasks import TASKS

ROOT = Path(__file__).parents[1]
TOY_JUDGE = str(ROOT / "src/unifiedreward_think/toy/judge")
TOY = {
    "model": TOY_JUDGE,
    "prompts": str(ROOT / "configs/toy/prompts"),
    "frames": 4,
    "max_new_tokens": 192,
    "dtype": "float32",
}
TOY["decoder"] = "pyav"  # which every machine has
EXAMPLES = 12  # of a task
QUEUE, UPLOAD = 64, "256mb"  # questions that may wait, and the largest file: memory and disk are this machine's
TOY_LIMITS = (
    "A toy of 1 M parameters, trained through all stages on drawings and clips of the toy world. It knows nothing "
    "else: of photographs and other pictures it says nothing sensible. It has learnt to compare, not to score."
)
TOY_PROMPTS = "It is asked as models of the toy world are, which know its drawings and nothing else."


def arguments():
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--toy", action="store_true", help="the toy model, its prompts and frames; other arguments still win")
    add("--examples", type=Path, help=f"record file (.jsonl) of pairs to try: the first {EXAMPLES} of each task")
    root = "media of an uploaded file lie below this folder (default: ., with --toy the folder of the drawn examples)"
    add("--media-root", type=Path, help=root)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 serves the whole network")
    add(
        "--allow-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names by which browsers may call the page besides its own, behind a proxy for example",
    )
    add("--port", type=ranged(Port), help="port (default: the first free one from 7860)")
    parser.add(JudgingArguments, *PROMPTS, *FRAMES, "max_new_tokens")
    parser.add(BackendArguments)
    return parser


def parse(words=None):
    """Return the arguments; with --toy, the toy's are the defaults."""
    parser = arguments()
    if parser.parse_args(words).toy:
        parser.set_defaults(**TOY)
    args = parser.parse_args(words)
    if args.model is None:
        raise BackendError("name a --model, or try the page with --toy")
    return args


def drawn_examples(folder):
    """Draw pairs of the toy world: up to three of each task, no caption or question twice."""
    from unifiedreward_think.toy.dataset import make_split

    (folder / "media").mkdir(parents=True)
    chosen = {}
    for record, _ in make_split(folder, "heldout", 40, seed=0):
        if sum(task == record.task for task, _ in chosen) < 3:
            media = tuple(tuple(str(folder / path) for path in entry) for entry in record.media)
            chosen.setdefault((record.task, record.prompt), replace(record, media=media))
    return list(chosen.values())


def first_examples(file):
    """Return the first pairs of each task of a record file."""
    from unifiedreward_think.data.formats.loading import load_records

    rows = load_records([str(file)], need_label=False).rows
    return [row for task in TASKS for row in [row for row in rows if row.task == task][:EXAMPLES]]


def end_by_signals():
    """Let a signal to end do so by an exception, so that the folder of this run is removed."""

    def end(number, _):
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, end)


def limits(args):
    """Return what is known of the model's limits, '' for nothing in particular."""
    return TOY_LIMITS if args.model == TOY_JUDGE else TOY_PROMPTS if args.toy else ""


def serve(args, work):
    """Serve the page, with its files in the folder `work`."""
    from unifiedreward_think.demo.about import about
    from unifiedreward_think.demo.asking import Setup, by_content
    from unifiedreward_think.demo.page import build_demo, look, only_named

    drawn = work / "examples"
    examples = first_examples(args.examples) if args.examples else drawn_examples(drawn)
    judging = read(args, JudgingArguments, frame_cache=str(work / "frames"))
    answering = read(args, BackendArguments)
    points = judging.point_config()
    config, backend = set_up(judging, answering)
    judge, note = about(answering, backend, limits=limits(args))
    setup = Setup(
        backend=backend,
        config=config,
        media_root=args.media_root or (drawn if args.toy and not args.examples else Path()),
        work=work,
        examples=examples,
        known=by_content(examples),
        judge=judge,
        note=note,
        points=points,
    )
    page = build_demo(setup).queue(max_size=QUEUE)
    try:
        with kept(lambda: "what was uploaded and asked is not kept; the same command shows the page again"):
            page.launch(
                server_name=args.host,
                server_port=args.port,
                max_file_size=UPLOAD,
                app_kwargs=only_named(args.host, args.allow_hosts),
                prevent_thread_lock=True,  # Gradio's own waiting takes Ctrl-C for itself
                **look(),
            )
            Event().wait()
    finally:
        page.close(verbose=False)


def main():
    """Serve the page until it is interrupted."""
    args = parse()
    end_by_signals()
    with tempfile.TemporaryDirectory(prefix="unifiedreward-demo-") as folder:
        work = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(work / "gradio")  # Gradio reads it on import: uploads go with the rest
        serve(args, work)


if __name__ == "__main__":
    run_main(main)
