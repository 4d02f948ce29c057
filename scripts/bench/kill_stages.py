"""The stages that kills.py kills: their commands on a tiny random model, and what of their output must be the same."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from unifiedreward_think.writing import write_whole

REPO = Path(__file__).parents[2]
PROMPTS = REPO / "configs" / "toy" / "prompts"
STEPS = 4  # of a training run
CLOCK = ("time", "per_second", "memory")


@dataclass
class Stage:
    """A command, what it leaves behind, and how often it was killed."""

    name: str
    module: str
    arguments: list
    results: object  # output folder -> what must be the same
    ranks: int = 1
    asks: bool = False  # SIGTERM saves and ends with status 0
    seconds: float = 0.0  # of processor time, undisturbed
    expected: object = None
    killed: int = 0
    asked: int = 0
    survived: int = 0
    half_written: int = 0  # kills that left a checkpoint without its seal
    runs: int = 0
    finished: list = field(default_factory=list)  # results of the runs that were killed
    moments: list = field(default_factory=list)  # share of the undisturbed run at each kill
    problems: list = field(default_factory=list)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trained(folder):
    assert json.loads((folder / "run.json").read_text())["finished"]
    return {"weights": sha256(folder / "model.safetensors")}


def logged(folder):
    rows = json.loads((folder / "log_history.json").read_text())
    return [{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in rows if "loss" in row]


def judged(folder):
    """Every line of judgments.jsonl without its time: a lost or doubled one shows."""
    rows = [json.loads(line) for line in (folder / "judgments.jsonl").read_text().splitlines()]
    keys = [(row["record_id"], row["order"], row["sample"]) for row in rows]
    return {"judgments": len(keys), "doubled": len(keys) - len(set(keys)), "rows": [{**r, "seconds": 0} for r in rows]}


def sampled(folder):
    return {**judged(folder), "kept": sha256(folder / "kept.jsonl"), "hard": sha256(folder / "hard.jsonl")}


def evaluated(folder):
    return {**judged(folder), "results": (folder / "results.json").exists()}


def imported(folder):
    """Every file of an import or a split; not the commit, which can change while kills.py runs."""
    found = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    for path in folder.rglob("manifest.json"):
        found[str(path.relative_to(folder))] = {**json.loads(path.read_text()), "commit": None, "sum": None}
    return found


def make_inputs(root):
    """Draw a toy world and a random model."""
    from unifiedreward_think.models import tiny
    from unifiedreward_think.prompting import load_prompts
    from unifiedreward_think.toy import dataset

    dataset.write(root / "toy", cold_start=8, train=12, heldout=4)
    tiny.build("qwen2_5_vl", root / "model", corpus=load_prompts("cot", path=PROMPTS).values())


def make_pairs(folder):
    """Draw pairs to import."""
    from PIL import Image

    folder.mkdir()
    rows = []
    for i in range(400):
        names = [f"{i % 40}-{side}.png" for side in "ab"]
        rows.append({"prompt": f"picture {i}", "image_a": names[0], "image_b": names[1], "winner": "ab"[i % 2]})
        for k, name in enumerate(names if i < 40 else ()):
            Image.new("RGB", (8, 8), (i, k * 99, 9)).save(folder / name)
    write_whole(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def flags(options):
    return [part for key, value in options.items() for part in (f"--{key}", value)]


def stages(root):
    """Return all stages, their arguments without the output folder."""
    common = {"prompts": PROMPTS, "frames": 4, "frame_cache": root / "frames", "dtype": "float32"}
    training = {
        **{**common, "model_name_or_path": root / "model", "limit": 4, "use_cpu": "true", "bf16": "false"},
        **{"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "logging_steps": 1},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3},
        **{"activation_checkpointing": "false", "disable_tqdm": "true", "report_to": "none"},
    }
    sft = {**training, "max_length": "null", "train_files": root / "toy/cold_start.jsonl"}
    grpo = {**training, "train_files": root / "toy/train.jsonl", "num_generations": 2, "beta": 0.04}
    grpo |= {"max_completion_length": 8, "reward_funcs": "bench_rewards.mean_token"}
    sampling = {**common, "model_name_or_path": root / "model", "train_files": root / "toy/train.jsonl", "samples": 2}
    sampling |= {"max_new_tokens": 6, "batch_size": 2, "require_correct": "false", "require_strict": "false"}
    judging = {"model": root / "model", "input": root / "toy/train.jsonl", "orders": "both", "prompts": PROMPTS}
    judging |= {"frames": 4, "frame-cache": root / "frames", "dtype": "float32", "max-new-tokens": 6, "batch-size": 2}
    reading = {"source": REPO / "configs/data/own_data.yaml", "input": root / "pairs/pairs.jsonl", "part-rows": 40}
    train, data = "unifiedreward_think.training.", "unifiedreward_think.data.__main__"
    two = {"gradient_accumulation_steps": 1}
    found = [
        Stage("sft", f"{train}sft", flags(sft), trained, asks=True),
        Stage("grpo", f"{train}grpo", flags(grpo), trained, asks=True),
        Stage("grpo_stock", f"{train}grpo", flags({**grpo, "shared_prefix": "false"}), trained, asks=True),
        Stage("rejection_sampling", f"{train}rejection_sampling", flags(sampling), sampled),
        Stage("judging", "unifiedreward_think.evaluation.__main__", flags(judging), evaluated),
        Stage("import", data, ["import", *flags(reading)], imported),
        Stage("split", data, ["split", "--input", root / "undisturbed/import"], imported),
        Stage("sft_2_ranks", f"{train}sft", flags({**sft, **two}), logged, ranks=2),
        Stage("grpo_2_ranks", f"{train}grpo", flags({**grpo, **two}), logged, ranks=2),
    ]
    return {stage.name: stage for stage in found}
