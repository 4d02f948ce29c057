"""What a training run does around the trainer: check arguments, load the model, prepare `output_dir`, end."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from unifiedreward_think.entry import run_main
from unifiedreward_think.in_use import LOCK, hold
from unifiedreward_think.interrupts import INTERRUPTED
from unifiedreward_think.judging.ranks import met
from unifiedreward_think.old_names import current, current_words
from unifiedreward_think.terminal import libraries_to_log, log_to, note, say
from unifiedreward_think.training.arguments import DataArguments, TrainingExtras
from unifiedreward_think.training.lora import adapter_settings, whole_start, whole_weights
from unifiedreward_think.training.output import RUN_FILE, begin_run, describe
from unifiedreward_think.training.survival.checkpoints import misfit, newest, run_shape

SWITCHES = {"resume", "overwrite", "check_data"}  # arguments that do not change what a run computes
LOG_FILE = "run.log"
ERROR_DELAY = 5.0  # seconds


def run_stage(main: Callable[[], object]) -> None:
    """Run the main function of a stage as `run_main` does, what libraries print kept from the terminal.

    A rank ends at once, well or not: what is registered for the end is run, and nothing is taken apart. Gloo's thread
    drops the tensors of the last collective when it comes to it. If Python takes itself apart just then, the process
    aborts, and a good run counts as failed (pytorch/pytorch#179291); if the group is being destroyed, which waits for
    that thread and holds the lock that it needs, the process hangs for ever. So no group is destroyed either.

    Raises:
        SystemExit: see `run_main`; not on a rank of several.
    """
    asks_help = bool({"-h", "--help", "--help-all"} & set(current_words(sys.argv[1:])))
    alone = "RANK" not in os.environ
    status: object = 0
    try:
        with nullcontext() if asks_help else libraries_to_log():
            run_main(main)
    except SystemExit as stop:
        if alone:
            raise
        status = stop.code or 0
    except Exception as error:
        if alone:
            raise
        status = error
    if not alone:
        _end(status)


def _end(status: object) -> NoReturn:
    """End this rank as Python would with this status, message or error, but take nothing apart."""
    if status not in (0, INTERRUPTED):
        _let_the_first_rank_speak()
    if isinstance(status, Exception):
        sys.excepthook(type(status), status, status.__traceback__)
    elif not isinstance(status, int):
        print(status, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def _let_the_first_rank_speak() -> None:
    """Wait where another rank may have the same error: the launcher ends this one as soon as the first has told it."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(ERROR_DELAY)


def refuse(args: Any, model_args: Any, extras: TrainingExtras) -> None:
    """Refuse options that would silently do something else than they say.

    Raises:
        SystemExit: names the options and what to use.
    """
    rollout = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)
    fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    micro_steps = args.gradient_accumulation_steps
    splits_rollout = args.save_strategy == "steps" and rollout > micro_steps and args.save_steps * micro_steps % rollout
    refused = {
        "fsdp with use_cpu: would be plain data parallelism; use deepspeed": fsdp and args.use_cpu,
        "load_in_4bit, load_in_8bit: would be ignored; use use_peft with bfloat16 weights": quantized,
        "freeze_vision: false with use_peft: no adapter is on the tower; name its layers in lora_target_modules too, "
        "or leave freeze_vision out": (
            model_args.use_peft and not extras.freeze_vision and model_args.lora_target_modules is None
        ),
        "model_init_kwargs: would be ignored; use dtype, attn_implementation, model_revision": args.model_init_kwargs,
        "max_length: would cut the end of long completions; set it to null and lower max_pixels or frames": (
            getattr(args, "max_length", None)
        ),
        "save_steps inside a rollout: a resumed run would lose the rest of the rollout; save at multiples of "
        f"{rollout} / gradient_accumulation_steps": splits_rollout,
        "include_num_input_tokens_seen: would count tokens twice; num_tokens is logged anyway": (
            args.include_num_input_tokens_seen != "no"
        ),
        "save_only_model: no run could go on from such checkpoints; leave it out": args.save_only_model,
        "push_to_hub during training: would push unfinished folders; set hub_strategy to end": (
            args.push_to_hub and args.hub_strategy != "end"
        ),
    }
    if problems := [text for text, applies in refused.items() if applies]:
        raise SystemExit("these options are refused:\n- " + "\n- ".join(problems))


def load(
    model_args: Any, data: DataArguments, extras: TrainingExtras, args: Any, counts: dict[str, int]
) -> tuple[Any, Any, Any]:
    """Return the model, its processor and the LoRA settings (None without `use_peft`); count what is frozen."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    from unifiedreward_think.models.chat_template import answer_alone
    from unifiedreward_think.models.loading import freeze_vision, load_model, load_processor, must_be_complete

    with met().together():
        path, revision = whole_start(model_args, args)
        if is_deepspeed_zero3_enabled():  # under which `load_model` cannot tell
            with whole_weights(args):
                must_be_complete(path, revision)
    model = load_model(
        path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation, revision=revision
    )
    processor = load_processor(
        model_args.model_name_or_path,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        revision=model_args.model_revision,
    )
    answer_alone(processor, model_args.model_name_or_path)
    if extras.freeze_vision:
        counts["vision parameters frozen"] = freeze_vision(model)
    peft_config = adapter_settings(model, model_args, freeze=extras.freeze_vision) if model_args.use_peft else None
    if peft_config is not None:
        peft_config.revision = revision
    return model, processor, peft_config


def start(args: Any, *others: Any, stage: str) -> str | None:
    """Prepare `output_dir` and return the checkpoint to go on from, if any.

    Args:
        args: the trainer's arguments.
        others: the other arguments of the run, its TrainingExtras among them.
        stage: name of the stage.

    What ends one rank here ends all, where the caller is in a `together` block.

    Raises:
        SystemExit: the run is already finished (status 0, unless with other arguments), `output_dir` holds something
            else, `resume: never` came without `overwrite`, or the checkpoint does not fit the number of processes.
        InputError: another live run writes into `output_dir`.
    """
    folder = Path(args.output_dir)
    extras = next(part for part in others if isinstance(part, TrainingExtras))
    row = describe(args, *others, stage=stage, finished=False)
    afresh = extras.resume == "never"
    _check_folder(folder, row, afresh=afresh, overwrite=extras.overwrite)
    ranks = met()
    if ranks.rank == 0:
        hold(folder / LOCK)
    ranks.wait()  # every process looks before the first one changes anything
    if ranks.rank == 0:
        if afresh and folder.exists():
            _empty(folder)
        begin_run(folder, row)
    log_to(folder / LOG_FILE)
    ranks.wait()
    return _checkpoint(folder, args)


def _checkpoint(folder: Path, args: Any) -> str | None:
    """Return the newest whole checkpoint that this run can go on from, saying which ones are passed over."""
    checkpoint, passed_over = newest(folder)
    if checkpoint is not None and (problem := misfit(checkpoint, run_shape(args))):
        raise SystemExit(problem)
    if args.process_index == 0:
        for line in passed_over:
            note(line)
        if checkpoint is not None or passed_over:
            note(f"going on from {checkpoint or 'the start'}")
    return None if checkpoint is None else str(checkpoint)


def _empty(folder: Path) -> None:
    """Delete what a folder holds, run.json last: a run killed in between is still known as ours."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RUN_FILE):
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_folder(folder: Path, row: dict[str, Any], *, afresh: bool, overwrite: bool) -> None:
    # A run killed at its very start leaves run.json under its scratch name.
    if not folder.exists() or not {path.name for path in folder.iterdir()} - {f"{RUN_FILE}.new", LOCK}:
        return
    if not (folder / RUN_FILE).exists():
        raise SystemExit(f"{folder} is not empty and holds no run of ours: choose another output_dir")
    if afresh:
        if not overwrite:
            raise SystemExit(f"{folder} is not empty: choose another output_dir, or add --overwrite true to delete it")
        return
    before = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    old, new = current(before["arguments"], note=False), row["arguments"]
    names = [key for key in sorted({*old, *new} - SWITCHES) if old.get(key) != new.get(key)]
    changed = "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in names)
    if before["finished"] and changed:
        raise SystemExit(
            f"{folder} is finished already, with other arguments ({changed}): "
            "choose another output_dir, or add --resume never --overwrite true"
        )
    if before["finished"]:
        say(f"{row['stage']}: {folder} is finished already; --resume never --overwrite true trains it again")
        raise SystemExit(0)
    if changed:
        say(f"{row['stage']}: going on in {folder} with other arguments ({changed})")
