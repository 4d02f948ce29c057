"""Judge a file of labelled pairs with a model and report.

    python -m unifiedreward_think.evaluation --model outputs/toy/grpo --data outputs/toy/data/heldout.jsonl \
        --orders both --output outputs/toy/eval/grpo

Writes judgments.jsonl (a rerun goes on from it), records.jsonl and results.json into the output folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from unifiedreward_think.backends import Sampling
from unifiedreward_think.data.loading import load_checked_records
from unifiedreward_think.judge import Protocol, judge
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.metrics import summarize
from unifiedreward_think.tasks import load_prompts


def main() -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of the model")
    parser.add_argument("--data", nargs="+", required=True, help="record files (JSONL)")
    parser.add_argument("--output", type=Path, required=True, help="folder for judgments and results")
    parser.add_argument("--orders", choices=["one", "both"], default="both", help="orders each pair is shown in")
    parser.add_argument("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    parser.add_argument("--prompt-dir", help="folder of prompt templates of your own")
    parser.add_argument("--frames", type=int, default=8, help="frames of each video")
    parser.add_argument("--decoder", choices=["decord", "pyav"], default="decord", help="reads the videos")
    parser.add_argument("--frame-cache", type=Path, default=Path("outputs/frames"), help="keeps decoded frames")
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="limit of an answer")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs in one batch")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--limit", type=int, help="only the first N pairs")
    args = parser.parse_args()
    sampling = FrameSampling(frames=args.frames, cache=args.frame_cache, decoder=args.decoder)
    records = load_checked_records(args.data, sampling=sampling).rows[: args.limit]
    from unifiedreward_think.backends.transformers import TransformersBackend

    backend = TransformersBackend(args.model, batch_size=args.batch_size, dtype=args.dtype)
    protocol = Protocol(
        prompts=load_prompts(args.style, folder=args.prompt_dir),
        style=args.style,
        sampling=Sampling(max_new_tokens=args.max_new_tokens),
        frames=sampling,
        orders=args.orders,
    )
    judgments = judge(records, backend, protocol, args.output / "judgments.jsonl", label=f"judging with {args.model}")
    lines = "".join(json.dumps(record.to_json()) + "\n" for record in records)
    (args.output / "records.jsonl").write_text(lines, encoding="utf-8")
    results = summarize(judgments)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{len(judgments)} judgments -> {args.output / 'results.json'}")


if __name__ == "__main__":
    main()
