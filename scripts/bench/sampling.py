"""Rejection sampling through vLLM's CPU build against the transformers backend: tokens a second, on the toy judge.

    bash scripts/vllm_cpu.sh
    python scripts/bench/sampling.py --output results/sampling_vllm.json

Each round runs the stage's own command on the same pairs once a backend, in a process of its own: transformers here,
vLLM in `.venv-vllm`, its engine in the same process. Tokens are those of the completions; seconds are CPU time of that
process from the first prompt to the last judgment, all threads counted, and by the clock, which swings with what else
the machine does. Loading is not among them. The backends draw random numbers in ways of their own, so the shares of
correct answers stand beside the rates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib import metadata
from pathlib import Path

from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.models.loading import load_processor
from unifiedreward_think.toy import dataset
from unifiedreward_think.training import rejection_sampling
from unifiedreward_think.writing import write_whole

REPO = Path(__file__).parents[2]
JUDGE = REPO / "src/unifiedreward_think/toy/judge"
MAX_LENGTH = 4096
PYTHONS = {"transformers": Path(sys.executable), "vllm": REPO / ".venv-vllm/bin/python"}
FLAGS = {"transformers": (), "vllm": ("--backend", "vllm", "--max_model_len", MAX_LENGTH)}
# What the CPU build needs (tests/helpers/vllm_cpu.py says why).
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
CPU |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
ENGINE = {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": 2 * MAX_LENGTH}


def stage(backend, world, output, args):
    """Run the stage in a process of its own."""
    words = ["--config", "configs/toy/rejection_sampling.yaml", "--model_name_or_path", JUDGE, "--output_dir", output]
    words += ["--train_files", world / "train.jsonl", "--frame_cache", world / "frames", "--samples", args.samples]
    words += ["--batch_size", args.batch_size, "--seed", args.seed, *FLAGS[backend]]
    environ = {**os.environ, **CPU, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [PYTHONS[backend], __file__, "--stage", *words]
    subprocess.run(list(map(str, command)), cwd=REPO, env=environ, check=True)


def run_stage(words, sequences):
    """Be that process; vLLM gets what its CPU build needs, which no backend takes as a flag."""
    if "vllm" in words:
        import vllm

        vllm.LLM = partial(vllm.LLM, **ENGINE, max_num_seqs=sequences)
    judge = rejection_sampling.judge

    def timed(records, backend, config, output, **options):
        started = time.process_time(), time.perf_counter()
        found = judge(records, backend, config, output, **options)
        seconds = {"cpu": time.process_time() - started[0], "clock": time.perf_counter() - started[1]}
        output.with_name("seconds.json").write_text(json.dumps(seconds))
        return found

    rejection_sampling.judge = timed
    sys.argv = ["rejection_sampling", *words]
    rejection_sampling.main()


def measured(output, tokenizer):
    """Return the rate of a run, and what it is made of."""
    rows = load_judgments(output / "judgments.jsonl").values()
    tokens = sum(len(tokenizer(row.completion, add_special_tokens=False)["input_ids"]) for row in rows)
    seconds = json.loads((output / "seconds.json").read_text())
    rates = {f"tokens_per_{name}_second": round(tokens / spent, 1) for name, spent in seconds.items()}
    correct = sum(bool(row.correct) for row in rows) / len(rows)
    return {**rates, "tokens": tokens, "seconds": seconds, "completions": len(rows), "correct": round(correct, 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32, help="pairs at a time, for both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not PYTHONS["vllm"].exists():
        raise SystemExit("there is no .venv-vllm; make it with: bash scripts/vllm_cpu.sh")
    rounds = {backend: [] for backend in PYTHONS}
    tokenizer = load_processor(JUDGE).tokenizer
    with tempfile.TemporaryDirectory() as name:
        world = Path(name)
        dataset.write(world, cold_start=0, train=args.pairs, heldout=0)
        for number in range(args.rounds):
            for backend, found in rounds.items():
                output = world / f"{backend}-{number}"
                stage(backend, world, output, args)
                found.append(measured(output, tokenizer))
                print(backend, found[-1], flush=True)
    best = {backend: max(one["tokens_per_cpu_second"] for one in found) for backend, found in rounds.items()}
    report = {
        "settings": {key: value for key, value in vars(args).items() if key != "output"},
        "tokens_per_cpu_second": best,
        "vllm_times_transformers": round(best["vllm"] / best["transformers"], 2),
        "rounds": rounds,
        "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    write_whole(args.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        run_stage(sys.argv[2:], sequences=128)
    else:
        main()
