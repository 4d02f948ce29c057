"""Scores on the toy world: the base learns them from cut traces, and its points order the held-out pairs.

    nice python scripts/bench/toy_points.py --seeds 0 1 2 --output results/toy_points.json

For each seed, with the commands of docs/scores.md: the world of the quick start, its 800 traces of pairs, their 1,600
halves; then SFT of the same base three times, on the pairs (stage 0 of the quick start), on scores with equal steps and
on scores with equal epochs. The judges of pairs see the 800 held-out pairs in both orders, those of scores every
candidate alone, all greedily. A pair is right where the preferred candidate has more points; equal points count half.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from unifiedreward_think.provenance import provenance
from unifiedreward_think.writing import write_whole

REPO = Path(__file__).parents[2]
RUNS = {
    "pairs": ("cold_start", []),
    "scores, equal steps": ("cold_start_points", ["--num_train_epochs", 2]),
    "scores, equal epochs": ("cold_start_points", []),
}
KEPT = ("pair_accuracy", "equal_points", "unscored", "candidates")


def call(*words):
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=REPO, env=environ, check=True)


def run(name, seed, out):
    """Train and judge once; return what is reported of it."""
    config, more = RUNS[name]
    model, judged = (
        out / name.replace(", ", "_").replace(" ", "_"),
        out / "eval" / name.replace(", ", "_").replace(" ", "_"),
    )
    traces = out / "data" / ("cold_start.jsonl" if name == "pairs" else "points.jsonl")
    words = ["--config", f"configs/toy/{config}.yaml", "--train_files", traces, "--output_dir", model, "--seed", seed]
    call("unifiedreward_think.training.sft", *words, "--order_seed", seed, "--frame_cache", out / "frames", *more)
    asked = ["--prompts", "configs/toy/prompts", "--orders", "both"]
    if name != "pairs":
        asked = ["--prompts", "configs/toy/prompts/pointwise", "--form", "pointwise"]
    words = ["--model", model, "--input", out / "data" / "heldout.jsonl", "--output", judged, *asked]
    words += ["--frames", 4, "--decoder", "pyav", "--frame-cache", out / "frames", "--dtype", "float32"]
    call("unifiedreward_think.evaluation", *words, "--max-new-tokens", 192, "--batch-size", 64)
    found = json.loads((judged / "results.json").read_text())
    rates = {key: found["overall"][key] for key in ("parse_rate", "readable_rate", "arithmetic_rate")}
    steps = json.loads((model / "log_history.json").read_text())[-1]["step"]
    if name == "pairs":
        return {"steps": steps, "accuracy": found["overall"]["accuracy"], **rates}
    return {"steps": steps, **{key: found["points"][key] for key in KEPT}, **rates}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--cold-start", type=int, help="traces of pairs (default: those of the quick start)")
    parser.add_argument("--heldout", type=int, help="pairs to judge (default: those of the quick start)")
    parser.add_argument(
        "--work", type=Path, default=REPO / "outputs" / "bench" / "toy_points", help="folder of the runs"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the numbers")
    args = parser.parse_args()
    found = {}
    for seed in args.seeds:
        out = args.work.absolute() / f"seed{seed}"
        sizes = {"--cold-start": args.cold_start, "--heldout": args.heldout}
        given = [word for name, value in sizes.items() if value is not None for word in (name, value)]
        call("unifiedreward_think.toy.dataset", "--output", out / "data", "--seed", seed, *given)
        traces = out / "data" / "points.jsonl"
        call("unifiedreward_think.data", "cut", "--input", out / "data" / "cold_start.jsonl", "--output", traces)
        found[f"seed {seed}"] = {}
        for name in args.runs:
            found[f"seed {seed}"][name] = run(name, seed, out)
            command = " ".join(["python", "scripts/bench/toy_points.py", *sys.argv[1:]])
            write_whole(args.output, json.dumps({"command": command, "runs": found, **provenance()}, indent=1) + "\n")
            print(seed, name, found[f"seed {seed}"][name], flush=True)


if __name__ == "__main__":
    main()
