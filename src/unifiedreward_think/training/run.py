"""What a training run does around the trainer: arguments, resuming, and an output folder that loads anywhere."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from unifiedreward_think.training.arguments import DataArguments, TrainingExtras

VERSIONED = ("unifiedreward-think", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed")
RUN_FILE = "run.json"


def own_help(module_doc: str | None, own: Sequence[type], trl: Sequence[str]) -> None:
    """Print this project's arguments and exit when the command line asks for `--help`; TRL's are named, not listed.

    Importing TRL takes seconds, which a help text should not; `--help_all` lists everything.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    parser = argparse.ArgumentParser(
        description=module_doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Every field of {', '.join(trl)} is a flag too; --help_all lists them.",
    )
    parser.add_argument("--config", metavar="YAML", help="file with any of these arguments; the command line wins")
    for cls in own:
        for field in dataclasses.fields(cls):
            text = str(field.metadata.get("help", "")).replace("%", "%%")
            default = "" if field.default in (dataclasses.MISSING, None) else f" (default: {field.default})"
            parser.add_argument(f"--{field.name}", metavar=field.name.upper(), help=text + default)
    parser.parse_args(["--help"])


def parse(*types: type) -> tuple[Any, ...]:
    """Parse YAML and command line into dataclasses with TrlParser; unknown keys fail."""
    from trl import TrlParser

    argv = ["--help" if arg == "--help_all" else arg for arg in sys.argv[1:]]
    _prepare_deepspeed_on_cpu(argv)
    return TrlParser(types).parse_args_and_config(argv)


def start(args: Any, data: DataArguments, extras: TrainingExtras, stage: str) -> str | None:
    """Prepare `output_dir` and return the checkpoint to go on from, if any.

    Raises:
        SystemExit: the run is already finished (status 0), or output_dir holds another run and `resume: never` came
            without `overwrite`.
    """
    folder = Path(args.output_dir)
    record = folder / RUN_FILE
    if extras.resume == "never" and folder.exists() and any(folder.iterdir()):
        if not extras.overwrite:
            raise SystemExit(f"{folder} is not empty: choose another output_dir, or add --overwrite true to delete it")
        if args.process_index == 0:
            shutil.rmtree(folder)
    if record.exists() and json.loads(record.read_text(encoding="utf-8")).get("finished"):
        print(f"{stage}: {folder} is finished already; --resume never --overwrite true trains it again")
        raise SystemExit(0)
    from transformers.trainer_utils import get_last_checkpoint

    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if args.process_index == 0:
        write_run(folder, args, data, extras, stage=stage, finished=False)
    return checkpoint


def write_run(folder: Path, args: Any, *others: Any, stage: str, finished: bool, **results: Any) -> None:
    """Write run.json: the resolved arguments, versions and commit, and the results so far."""
    arguments: dict[str, Any] = {}
    for part in (args, *others):
        arguments |= part.to_dict() if hasattr(part, "to_dict") else dataclasses.asdict(part)
    row = {
        "stage": stage,
        "finished": finished,
        "arguments": arguments,
        "versions": {name: metadata.version(name) for name in VERSIONED},
        "commit": _commit(),
        **results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{RUN_FILE}.new"
    scratch.write_text(json.dumps(row, indent=1, default=str, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(folder / RUN_FILE)


def finish(trainer: Any, processor: Any, args: Any, *others: Any, stage: str, counts: dict[str, Any]) -> None:
    """Save a folder that loads directly in inference and vLLM, then push it to the Hub if asked.

    An adapter is merged into its base first, so that no loader needs to know about PEFT.
    """
    from unifiedreward_think.models.loading import prune_key_renames

    folder = Path(args.output_dir)
    prune_key_renames(trainer.accelerator.unwrap_model(trainer.model))
    if hasattr(trainer.model, "merge_and_unload") and not trainer.is_deepspeed_enabled:
        trainer.model.merge_and_unload().save_pretrained(folder)
    else:
        trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        processor.save_pretrained(folder)
        (folder / "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")
        write_run(folder, args, *others, stage=stage, finished=True, counts=counts)
        (folder / "README.md").write_text(model_card(folder), encoding="utf-8")
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.end()


def model_card(folder: Path) -> str:
    """Return the model card of a finished run: base model, data, arguments, last logged values."""
    run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    log = [row for row in json.loads((folder / "log_history.json").read_text(encoding="utf-8")) if "loss" in row]
    arguments = run["arguments"]
    shown = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
             "lr_scheduler_type", "warmup_steps", "beta", "num_generations", "loss_type", "seed", "freeze_vision")
    settings = "\n".join(f"| {key} | {arguments[key]} |" for key in shown if key in arguments)
    counts = "\n".join(f"| {key} | {value} |" for key, value in run["counts"].items())
    last = "\n".join(f"| {key} | {value} |" for key, value in (log[-1] if log else {}).items())
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
base_model: {arguments.get("model_name_or_path")}
tags: [reward-model, chain-of-thought, unifiedreward-think, {run["stage"]}]
---
# {folder.name}

A multimodal chain-of-thought reward model, stage *{run["stage"]}* of UnifiedReward-Think (arXiv 2505.03318), trained with
unifiedreward-think {run["versions"]["unifiedreward-think"]} (commit {run["commit"]}) from `{arguments.get("model_name_or_path")}`.

It compares two candidates and ends with `<answer>Image 1 is better</answer>` (or Video, Answer; 1 or 2).

## Data
Files: {", ".join(f"`{file}`" for file in arguments["train_files"])}

| rows | |
|---|---|
{counts}

## Arguments
The complete list is in `{RUN_FILE}`.

| argument | value |
|---|---|
{settings}

## Last logged values
| metric | value |
|---|---|
{last}

How well it judges is not known from these: run `python -m unifiedreward_think.evaluation` on a held-out set.
"""


def _prepare_deepspeed_on_cpu(argv: Sequence[str]) -> None:
    """Initialise deepspeed.comm before the trainer arguments exist, where DeepSpeed runs without a GPU.

    transformers initialises torch.distributed but not deepspeed.comm on the CPU, and DeepSpeed then miscounts the
    ranks. The shared-memory op is switched off because it would be compiled for a minute and is not needed.
    """
    import yaml

    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--deepspeed")
    known.add_argument("--config")
    flags, _ = known.parse_known_args(list(argv))
    settings = yaml.safe_load(Path(flags.config).read_text(encoding="utf-8")) if flags.config else {}
    if not (flags.deepspeed or (settings or {}).get("deepspeed")) or "RANK" not in os.environ:
        return
    import torch

    if torch.cuda.is_available():
        return
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")


def _commit() -> str:
    root = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
