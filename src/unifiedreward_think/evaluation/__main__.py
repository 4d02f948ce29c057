r"""Judge a file of labelled pairs with a model and report.

    python -m unifiedreward_think.evaluation --data outputs/toy/seed0/data/heldout.jsonl --orders both \
        --model outputs/toy/seed0/grpo --prompt-dir configs/toy/prompts --frames 4 --output outputs/toy/seed0/eval/grpo

Writes config.yaml, judgments.jsonl (a rerun goes on from it), records.jsonl and results.json into the output folder,
and prints accuracy and parse rate with their 95% intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unifiedreward_think.data.formats.loading import load_checked_records, report_left_out
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.entry import run_main
from unifiedreward_think.evaluation.tables import headline
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.protocol import Protocol
from unifiedreward_think.judging.store import write_evaluation
from unifiedreward_think.media import DECODERS, FrameSampling
from unifiedreward_think.metrics import summarize
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.provenance import config_yaml


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub name of the model")
    add("--data", nargs="+", required=True, help="record files (JSONL), or released files")
    add("--output", type=Path, required=True, help="folder for judgments and results")
    add("--media-root", help="folder that relative media paths start from (default: the data file's)")
    add("--skip-bad", action="store_true", help="leave bad rows out, counted and listed, instead of stopping")
    add("--limit", type=int, help="only the first N pairs")
    add("--orders", choices=["one", "both"], default="both", help="orders each pair is shown in")
    add("--order-seed", type=int, default=0, help="decides the order shown, where it is one")
    add("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add("--layout", choices=["one_line", "three_line"], default="one_line", help="how the prompt asks for a dimension")
    add("--prompt-dir", help="folder of prompt templates of your own")
    add("--frames", type=int, default=8, help="frames of each video")
    add("--decoder", choices=DECODERS, default="decord", help="reads the videos")
    add("--frame-cache", type=Path, default=Path("outputs/frames"), help="keeps decoded frames")
    add("--native-video", action="store_true", help="show videos as videos, not as pictures: released Qwen checkpoints")
    add("--min-pixels", type=int, help="smaller pictures are scaled up to this area (default: the model's)")
    add("--max-pixels", type=int, help="larger pictures are scaled down to this area (default: the model's)")
    add("--max-new-tokens", type=int, default=2048, help="limit of an answer")
    add("--batch-size", type=int, default=8, help="pairs in one batch")
    add("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto", help="of the weights")
    add("--attn-implementation", help="attention kernel")
    return parser


def main() -> None:
    """Evaluate from the command line."""
    args = arguments().parse_args()
    sampling = FrameSampling(frames=args.frames, cache=args.frame_cache, decoder=args.decoder)
    loaded = load_checked_records(
        args.data, sampling=sampling, media_root=args.media_root, skip_bad=args.skip_bad, limit=args.limit
    )
    report_left_out(loaded.bad)
    records = loaded.rows
    protocol = Protocol(
        prompts=load_prompts(args.style, layout=args.layout, folder=args.prompt_dir),
        style=args.style,
        sampling=Sampling(max_new_tokens=args.max_new_tokens),
        frames=sampling,
        orders=args.orders,
        order_seed=args.order_seed,
        native_video=args.native_video,
    )
    from unifiedreward_think.backends.transformers import TransformersBackend

    backend = TransformersBackend(
        args.model,
        batch_size=args.batch_size,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
    )
    judgments = judge(
        records,
        backend,
        protocol,
        args.output / "judgments.jsonl",
        label=f"judging with {args.model}",
        config=config_yaml(vars(args)),
    )
    results = summarize(judgments)
    write_evaluation(args.output, records, results)
    failed = [row for row in judgments if row.error]
    if failed:
        print(f"{len(failed)} judgments failed, a rerun tries them again; the first: {failed[0].error}")
    print(f"{headline(results)} -> {args.output / 'results.json'}")


if __name__ == "__main__":
    run_main(main)
