"""The demo page in a browser: judge pairs, watch the reasoning, swap and ask again, judge a file.

    python gradio/app.py --toy                                            # no weights, no network, no GPU
    python gradio/app.py --model CodeGoat24/UnifiedReward-Think-qwen-7b
    python gradio/app.py --backend server --server http://127.0.0.1:8000/v1 --model NAME --stop
    python gradio/app.py --backend replay --model RUN/judgments.jsonl --examples RUN/records.jsonl    # a stored run

--toy takes the model that scripts/quickstart.sh trained (outputs/toy/seed0/grpo), before that the pretrained toy base.
"""

import argparse
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

from unifiedreward_think.backends import BackendError
from unifiedreward_think.backends.choose import add_arguments, make_backend
from unifiedreward_think.entry import run_main
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.tasks import TASKS

ROOT = Path(__file__).parents[1]
TOY_MODELS = (ROOT / "outputs/toy/seed0/grpo", ROOT / "src/unifiedreward_think/toy/base")
TOY = {"prompt_dir": ROOT / "configs/toy/prompts", "frames": 4, "max_new_tokens": 192, "dtype": "float32"}
TOY["decoder"] = "pyav"  # which every machine has
EXAMPLES = 12  # of a task
QUEUE, UPLOAD = 64, "256mb"  # questions that may wait, and the largest file: memory and disk are this machine's
BASE_NOTE = "This is the pretrained toy base: it only answers. It learns to think by: bash scripts/quickstart.sh"


def arguments():
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--toy", action="store_true", help="the toy model, its prompts and frames; other arguments still win")
    add("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add("--layout", choices=["one_line", "three_line"], default="one_line", help="how the prompt asks for a dimension")
    add("--prompt-dir", type=Path, help="folder of prompt templates of your own")
    add("--frames", type=int, help="frames of each video (default: 8)")
    add("--decoder", choices=["decord", "pyav"], help="reads the videos (default: decord, for the toy model pyav)")
    add("--max-new-tokens", type=int, help="limit of an answer (default: 2048)")
    add("--examples", type=Path, help=f"record file (.jsonl) of pairs to try: the first {EXAMPLES} of each task")
    add("--media-root", type=Path, default=Path(), help="media of an uploaded file lie below this folder (default: .)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 serves the whole network")
    add(
        "--allow-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names by which browsers may call the page besides its own, behind a proxy for example",
    )
    add("--port", type=int, help="port (default: the first free one from 7860)")
    add_arguments(parser)
    return parser


def settle(args):
    """Fill in what the command line left open, and return what is to be said of the model."""
    defaults = TOY if args.toy else {"frames": 8, "max_new_tokens": 2048, "decoder": "decord"}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.toy and args.model is None:
        args.model = str(next(folder for folder in TOY_MODELS if (folder / "model.safetensors").is_file()))
    if args.model is None:
        raise BackendError("name a --model, or try the page with --toy")
    return BASE_NOTE if Path(args.model) == TOY_MODELS[1] else ""


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


def serve(args, note, work):
    """Serve the page, with its files in the folder `work`."""
    from unifiedreward_think.demo.asking import Setup, by_content
    from unifiedreward_think.demo.page import build_demo, look, only_named
    from unifiedreward_think.media import FrameSampling

    examples = first_examples(args.examples) if args.examples else drawn_examples(work)
    setup = Setup(
        backend=make_backend(args),
        prompts=load_prompts(args.style, layout=args.layout, folder=args.prompt_dir),
        style=args.style,
        frames=FrameSampling(frames=args.frames, cache=work / "frames", decoder=args.decoder),
        max_new_tokens=args.max_new_tokens,
        media_root=args.media_root,
        work=work,
        examples=examples,
        known=by_content(examples),
        note=note,
    )
    page = build_demo(setup).queue(max_size=QUEUE)
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=UPLOAD,
            app_kwargs=only_named(args.host, args.allow_hosts),
            **look(),
        )
    finally:
        page.close()


def main():
    """Serve the page until it is interrupted."""
    args = arguments().parse_args()
    note = settle(args)
    end_by_signals()
    with tempfile.TemporaryDirectory(prefix="unifiedreward-demo-") as folder:
        work = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(work / "gradio")  # Gradio reads it on import: uploads go with the rest
        serve(args, note, work)


if __name__ == "__main__":
    run_main(main)
