"""What a training run leaves behind: a folder that loads anywhere, its model card, and run.json."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import default_of
from unifiedreward_think.in_use import LOCK, release
from unifiedreward_think.judging.ranks import met
from unifiedreward_think.models.adapters import base_of, write_base
from unifiedreward_think.models.loading import load_model
from unifiedreward_think.provenance import data_files, now, provenance
from unifiedreward_think.terminal import say
from unifiedreward_think.training.lora import START
from unifiedreward_think.writing import whole, write_whole

RUN_FILE = "run.json"
IN_CARD = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "beta",
    "num_generations",
    "loss_type",
    "seed",
    "freeze_vision",
)


def describe(args: Any, *others: Any, stage: str, finished: bool, **results: Any) -> dict[str, Any]:
    """Return what run.json says: the resolved arguments, versions and commit, and the results so far.

    `defaults` holds those of the arguments that have another value.
    """
    arguments: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for part in (args, *others):
        arguments |= part.to_dict() if hasattr(part, "to_dict") else dataclasses.asdict(part)
        defaults |= _other_defaults(part)
    row = {
        "stage": stage,
        "finished": finished,
        "arguments": arguments,
        "defaults": defaults,
        **provenance(),
        **results,
    }
    plain: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return plain


def _other_defaults(part: Any) -> dict[str, Any]:
    """Return the defaults of the fields that have another value; not of what a library made of them, as an object."""
    plain = (str, int, float, bool, list, dict, NoneType)
    other = {}
    for field in dataclasses.fields(part):
        default, value = default_of(field), getattr(part, field.name)
        if isinstance(value, plain) and _meant(value) != _meant(default):
            other[field.name] = None if default is dataclasses.MISSING else default
    return other


def _meant(value: Any) -> Any:
    """Return a value, all that means off alike: dataclasses read None, "", [] and "false" as one another."""
    return False if not value or value == "false" else value


def begin_run(folder: Path, row: dict[str, Any]) -> None:
    """Write run.json of a run that starts or goes on: with when, and with what its data files hold now."""
    files = [file for key in ("train_files", "eval_files") for file in row["arguments"].get(key) or ()]
    write_run(folder, {**row, "started": now(), "data": data_files(files)})


def write_run(folder: Path, row: dict[str, Any]) -> None:
    """Write run.json, complete or not at all."""
    write_whole(folder / RUN_FILE, json.dumps(row, indent=1, sort_keys=True) + "\n")


def must_be_finished(model: str) -> None:
    """Refuse the folder of a run that was stopped before its end, by a signal for example, as a model.

    Raises:
        InputError: the run is not finished.
    """
    file = Path(model) / RUN_FILE
    if file.is_file() and not json.loads(file.read_text(encoding="utf-8"))["finished"]:
        raise InputError(f"{model}: its run is not finished; run its command again, which goes on where it was stopped")


def finish(trainer: Any, processor: Any, args: Any, *others: Any, stage: str, counts: dict[str, Any]) -> None:
    """Save a folder that loads directly in inference and vLLM, then push it to the Hub if asked."""
    folder = Path(args.output_dir)
    with met().together():
        best = best_of(trainer, args)
        model_args = next(part for part in others if hasattr(part, "model_name_or_path"))
        save_model(trainer, model_args, folder, best["checkpoint"] if best and best["loaded"] else None)
        if trainer.is_world_process_zero():
            processor.save_pretrained(folder)
            log = trainer.state.log_history
            write_whole(folder / "log_history.json", json.dumps(log, indent=1) + "\n")
            file = folder / RUN_FILE
            begun = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}  # none: trained from Python
            since = {key: begun.get(key) for key in ("started", "data")} | {"ended": now()}
            row = describe(args, *others, stage=stage, finished=True, counts=counts, best=best, **since)
            write_whole(folder / "README.md", model_card(folder.name, row, log))
            write_run(folder, row)  # last: it says that the folder is complete
            release(folder / LOCK)
            say(f"{stage}: finished -> {folder}")
            if args.push_to_hub:
                push(folder, trainer.hub_model_id)


def push(folder: Path, name: str) -> None:
    """Upload a finished folder to the Hub, without what it takes to go on from it."""
    from huggingface_hub import upload_folder

    upload_folder(repo_id=name, folder_path=folder, ignore_patterns=["checkpoint-*/**", f"{START}/**"])


def best_of(trainer: Any, args: Any) -> dict[str, Any] | None:
    """Return the judged step that was best, and whether the saved weights are its; None where none was judged."""
    state, metric = trainer.state, trainer.args.metric_for_best_model
    if state.best_metric is None:
        return None
    kept = state.best_model_checkpoint
    loaded = bool(args.load_best_model_at_end and kept)
    return {"metric": metric, "value": state.best_metric, "checkpoint": kept, "loaded": loaded}


def save_model(trainer: Any, model_args: Any, folder: Path, best: str | None) -> None:
    """Save the trained weights, those of a checkpoint if it is named, under the released key names.

    An adapter is kept in `adapter/` and merged into its base, so that no loader needs to know about PEFT. The base is
    loaded again for that: under ZeRO-3 the one in training is in pieces.
    """
    trained = folder / "adapter" if model_args.use_peft else folder
    trainer.save_model(str(trained), _internal_call=True)
    if best and trainer.is_world_process_zero():
        for file in Path(best).glob("*.safetensors*"):
            with whole(trained / file.name) as scratch:
                shutil.copyfile(file, scratch)
    if not model_args.use_peft:
        if trainer.is_world_process_zero():
            shutil.rmtree(folder / START, ignore_errors=True)
        return
    from transformers.integrations import unset_hf_deepspeed_config

    if trainer.is_world_process_zero():
        unset_hf_deepspeed_config()
        base, revision = base_of(folder / "adapter")
        write_base(folder / "adapter", load_model(base, dtype=model_args.dtype, revision=revision))
        load_model(folder / "adapter", dtype=model_args.dtype).save_pretrained(folder)


def model_card(name: str, row: dict[str, Any], log: Sequence[dict[str, Any]]) -> str:
    """Return the model card of a finished run: base model, data, arguments, last logged values."""
    arguments = row["arguments"]
    base = arguments["model_name_or_path"]
    logged = [values for values in log if "loss" in values][-1:]
    settings = _table({key: arguments[key] for key in IN_CARD if key in arguments})
    hub_base = "" if Path(base).exists() else f"base_model: {base}\n"
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
{hub_base}tags: [reward-model, chain-of-thought, unifiedreward-think, {row["stage"]}]
---
# {name}

A multimodal chain-of-thought reward model, stage *{row["stage"]}* of UnifiedReward-Think (arXiv 2505.03318), trained
with unifiedreward-think {row["versions"]["unifiedreward-think"]} (commit {row["commit"]}) from `{base}`.

It compares two candidates and ends with `<answer>Image 1 is better</answer>` (or Video, Answer; 1 or 2).

## Data
Files: {", ".join(f"`{file}`" for file in arguments["train_files"])}

| rows | |
|---|---|
{_table(row["counts"])}

## Arguments
The complete list is in `{RUN_FILE}`.

| argument | value |
|---|---|
{settings}

## Last logged values
| metric | value |
|---|---|
{_table(logged[0] if logged else {})}

{_held_out(row, log)}"""


def _held_out(row: dict[str, Any], log: Sequence[dict[str, Any]]) -> str:
    """Return what the card says of held-out pairs."""
    judged = {values["step"]: f"{values['eval_accuracy']:.3f}" for values in log if "eval_accuracy" in values}
    if not judged:
        return (
            "How well it judges is not known from these: "
            "run `python -m unifiedreward_think.evaluation` on a held-out set.\n"
        )
    step = "best" if row["best"] and row["best"]["loaded"] else "last"
    table = f"| step | accuracy |\n|---|---|\n{_table(judged)}"
    return f"## On held-out pairs\n{table}\n\nThe weights are those of the {step} step.\n"


def _table(cells: dict[Any, Any]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in cells.items())
