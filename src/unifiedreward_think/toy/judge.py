"""Ship the judge that a quick start has trained, with its card and log, as package data.

    bash scripts/quickstart.sh 0
    python -m unifiedreward_think.toy.judge --run outputs/toy/seed0 --output src/unifiedreward_think/toy/judge

What the demo, the server, the examples of the README and CI ask before anybody has trained anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.tasks import TASK_NAMES
from unifiedreward_think.writing import write_whole

FILES = (
    *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
)
STAGES = ("cold_start", "rejection_sft", "grpo")
LOGGED = ("step", "loss", "learning_rate", "reward", "kl", "parse_rate", "mean_token_accuracy")
CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [reward-model, chain-of-thought, unifiedreward-think, toy]
---
# The trained toy judge

A Qwen2.5-VL of about 1 M parameters that judges drawn pictures and clips of the toy world, and nothing else. It went
through all stages by `bash scripts/quickstart.sh {seed}` at commit {commit} ({versions}). Its log is
`training_log.json`; its prompts are `configs/toy/prompts`, with 4 frames of a clip.

Held-out pairs in both orders, with 95% intervals (`python -m unifiedreward_think.evaluation` of that run):

| | pairs | accuracy of the base | after the cold start | after rejection sampling | after GRPO: this model |
|---|---|---|---|---|---|
{rows}
"""


def ship(run: Path, output: Path) -> None:
    """Copy the model of a finished quick start and write its card and log.

    Raises:
        InputError: a stage of the run, or its judgments of the held-out pairs, is missing.
    """
    names = ("base", *STAGES)
    needed = [run / "grpo" / file for file in FILES] + [run / "eval" / name / "results.json" for name in names]
    if missing := [file for file in needed if not file.is_file()]:
        raise InputError(f"{missing[0]}: no such file; finish the run first: bash scripts/quickstart.sh")
    output.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copyfile(run / "grpo" / file, output / file)
    results = {name: json.loads((run / "eval" / name / "results.json").read_bytes()) for name in names}
    described = json.loads((run / "grpo" / "run.json").read_bytes())
    seed = json.loads((run / "data" / "manifest.json").read_bytes())["seed"]
    versions = {name: described["versions"][name] for name in ("torch", "transformers", "trl")}
    log = {"seed": seed, "commit": described["commit"], "versions": versions, "held out": _accuracies(results)}
    log |= {stage: _history(run / stage / "log_history.json") for stage in STAGES}
    write_whole(output / "training_log.json", json.dumps(log) + "\n")
    write_whole(output / "README.md", _card(log, results["grpo"]))


def _accuracies(results: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return stage -> task or "overall" -> accuracy and its interval."""

    def of(block: dict[str, Any]) -> list[float]:
        return [round(block["accuracy"][key], 4) for key in ("value", "low", "high")]

    return {
        stage: {"overall": of(result["overall"]), **{task: of(result["tasks"][task]) for task in TASK_NAMES}}
        for stage, result in results.items()
    }


def _history(file: Path) -> list[dict[str, float]]:
    rows = [{key: row[key] for key in LOGGED if key in row} for row in json.loads(file.read_bytes())]
    return [row for row in rows if len(row) > 1]


def _card(log: dict[str, Any], final: dict[str, Any]) -> str:
    rows = []
    for task in ("overall", *TASK_NAMES):
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*stage[task]) for stage in log["held out"].values()]
        block = final["overall"] if task == "overall" else final["tasks"][task]
        rows.append(f"| {task.replace('_', ' ')} | {block['accuracy']['total'] // 2} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in log["versions"].items())
    return CARD.format(seed=log["seed"], commit=log["commit"], versions=versions, rows="\n".join(rows))


def main() -> None:
    """Ship the judge of a run."""
    parser = argparse.ArgumentParser(description="Ship the judge that a quick start has trained.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished quick start")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, its card and log")
    args = parser.parse_args()
    ship(args.run, args.output)


if __name__ == "__main__":
    run_main(main)
