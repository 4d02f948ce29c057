"""What a training run does around the trainer: check arguments, load the model, prepare `output_dir`, end."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.files import read_yaml
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.training.arguments import DataArguments, TrainingExtras, check_values
from unifiedreward_think.training.output import RUN_FILE, describe, must_be_finished, write_run
from unifiedreward_think.training.survival.checkpoints import misfit, newest, run_shape

SWITCHES = {"resume", "overwrite"}  # arguments that do not change what a run computes
ON_THE_CPU = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--deepspeed", ""]


def run_stage(main: Callable[[], object]) -> None:
    """Run the main function of a stage that trains, as `run_main` does; a rank that is done ends at once.

    DeepSpeed keeps its process groups, so Gloo's threads live on after `destroy_process_group`. One that drops the
    tensors of its last collective while Python takes itself apart aborts the process, and a good run counts as failed
    (pytorch/pytorch#179291). So what is registered for the end is run, and nothing is taken apart.

    Raises:
        SystemExit: see `run_main`.
    """
    try:
        run_main(main)
    except SystemExit as stop:
        if stop.code or "RANK" not in os.environ:
            raise
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def own_help(module_doc: str | None, own: Sequence[type], trl: Sequence[str]) -> None:
    """Print this project's arguments and exit when the command line asks for `--help`; TRL's are named, not listed.

    Importing TRL takes seconds, which a help text should not; `--help_all` lists everything.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    parser = argparse.ArgumentParser(
        description=module_doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Every field of {', '.join(trl)} is a flag too; --help_all lists them." if trl else None,
    )
    parser.add_argument("--config", metavar="YAML", help="file with any of these arguments; the command line wins")
    for cls in own:
        for field in dataclasses.fields(cls):
            text = str(field.metadata.get("help", "")).replace("%", "%%")
            default = "" if field.default in (dataclasses.MISSING, None) else f" (default: {field.default})"
            parser.add_argument(f"--{field.name}", metavar=field.name.upper(), help=text + default)
    parser.parse_args(["--help"])


def parse(*types: type) -> tuple[Any, ...]:
    """Parse YAML and command line into dataclasses with TrlParser.

    With --check_data on the command line, a config for GPUs is read on a machine without one, too.

    Raises:
        InputError: the config cannot be read, a key is unknown, or a value cannot mean what it says.
        SystemExit: the command line is at fault (status 2).
    """
    from torch import cuda
    from trl import TrlParser

    argv = ["--help" if arg == "--help_all" else arg for arg in sys.argv[1:]]
    if _flags(argv).check_data and any(hasattr(each, "use_cpu") for each in types) and not cuda.is_available():
        argv += ON_THE_CPU
    _prepare_deepspeed(argv)
    origin = _flags(argv).config or "the command line"
    try:
        parsed: tuple[Any, ...] = TrlParser(types).parse_args_and_config(argv)
    except ValueError as error:  # what TRL, transformers and our own dataclasses refuse
        raise InputError(f"{origin}: {error}") from error
    for part in parsed:
        check_values(part, origin)
    return parsed


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    """Return what is needed before the rest can be parsed."""
    from transformers.hf_argparser import string_to_bool

    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--check_data", type=string_to_bool, nargs="?", const=True, default=False)
    known.add_argument("--deepspeed")
    known.add_argument("--config")
    return known.parse_known_args(list(argv))[0]


def refuse(args: Any, model_args: Any) -> None:
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
        "model_init_kwargs: would be ignored; use dtype, attn_implementation, model_revision": args.model_init_kwargs,
        "max_length: would cut the end of long completions; set it to null and lower max_pixels or frames": (
            getattr(args, "max_length", None)
        ),
        "save_steps inside a rollout: a resumed run would lose the rest of the rollout; save at multiples of "
        f"{rollout} / gradient_accumulation_steps": splits_rollout,
        "save_only_model: no run could go on from such checkpoints; leave it out": args.save_only_model,
        "push_to_hub during training: would push unfinished folders; set hub_strategy to end": (
            args.push_to_hub and args.hub_strategy != "end"
        ),
    }
    if problems := [text for text, applies in refused.items() if applies]:
        raise SystemExit("these options are refused:\n- " + "\n- ".join(problems))


def load(model_args: Any, data: DataArguments, extras: TrainingExtras, counts: dict[str, int]) -> tuple[Any, Any, Any]:
    """Return the model, its processor and the LoRA settings (None without `use_peft`); count what is frozen."""
    from trl import get_peft_config

    from unifiedreward_think.models.loading import VISION_TOWERS, freeze_vision, load_model, load_processor

    path, revision = model_args.model_name_or_path, model_args.model_revision
    must_be_finished(path)
    model = load_model(
        path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation, revision=revision
    )
    processor = load_processor(path, min_pixels=data.min_pixels, max_pixels=data.max_pixels, revision=revision)
    peft_config = get_peft_config(model_args)
    if extras.freeze_vision:
        counts["vision parameters frozen"] = freeze_vision(model)
        if peft_config is not None:
            # Layers of the tower have the same names (gate_proj, q_proj); their adapters would be trained and merged.
            peft_config.exclude_modules = re.escape(VISION_TOWERS[model.config.model_type]) + r"\..*"
    return model, processor, peft_config


def start(args: Any, *others: Any, stage: str) -> str | None:
    """Prepare `output_dir` and return the checkpoint to go on from, if any.

    Args:
        args: the trainer's arguments.
        others: the other arguments of the run, its TrainingExtras among them.
        stage: name of the stage.

    Raises:
        SystemExit: the run is already finished (status 0, unless with other arguments), `output_dir` holds something
            else, `resume: never` came without `overwrite`, or the checkpoint does not fit the number of processes.
    """
    folder = Path(args.output_dir)
    extras = next(part for part in others if isinstance(part, TrainingExtras))
    row = describe(args, *others, stage=stage, finished=False)
    afresh = extras.resume == "never"
    _check_folder(folder, row, afresh=afresh, overwrite=extras.overwrite)
    args.distributed_state.wait_for_everyone()  # every process looks before the first one changes anything
    if args.process_index == 0:
        if afresh and folder.exists():
            _empty(folder)
        write_run(folder, row)
    args.distributed_state.wait_for_everyone()
    return _checkpoint(folder, args)


def _checkpoint(folder: Path, args: Any) -> str | None:
    """Return the newest whole checkpoint that this run can go on from, saying which ones are passed over."""
    found, passed_over = newest(folder)
    if found is not None and (problem := misfit(found, run_shape(args))):
        raise SystemExit(problem)
    if args.process_index == 0:
        for line in passed_over:
            print(line, file=sys.stderr)
        if found is not None or passed_over:
            print(f"going on from {found or 'the start'}", file=sys.stderr)
    return None if found is None else str(found)


def _empty(folder: Path) -> None:
    """Delete what a folder holds, run.json last: a run killed in between is still known as ours."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RUN_FILE):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_folder(folder: Path, row: dict[str, Any], *, afresh: bool, overwrite: bool) -> None:
    # A run killed at its very start leaves run.json under its scratch name.
    if not folder.exists() or not {path.name for path in folder.iterdir()} - {f"{RUN_FILE}.new"}:
        return
    if not (folder / RUN_FILE).exists():
        raise SystemExit(f"{folder} is not empty and holds no run of ours: choose another output_dir")
    if afresh:
        if not overwrite:
            raise SystemExit(f"{folder} is not empty: choose another output_dir, or add --overwrite true to delete it")
        return
    before = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    old, new = before["arguments"], row["arguments"]
    names = [key for key in sorted({*old, *new} - SWITCHES) if old.get(key) != new.get(key)]
    changed = "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in names)
    if before["finished"] and changed:
        raise SystemExit(
            f"{folder} is finished already, with other arguments ({changed}): "
            "choose another output_dir, or add --resume never --overwrite true"
        )
    if before["finished"]:
        print(f"{row['stage']}: {folder} is finished already; --resume never --overwrite true trains it again")
        raise SystemExit(0)
    if changed:
        print(f"{row['stage']}: going on in {folder} with other arguments ({changed})")


def _prepare_deepspeed(argv: Sequence[str]) -> None:
    """Initialise deepspeed.comm before the trainer arguments exist, where DeepSpeed runs without a GPU.

    transformers initialises torch.distributed but not deepspeed.comm on the CPU, and DeepSpeed then miscounts the
    ranks. The shared-memory op is switched off because it would be compiled for a minute and is not needed.
    """
    flags = _flags(argv)
    settings = read_yaml(Path(flags.config)) if flags.config else {}
    if not (settings.get("deepspeed") if flags.deepspeed is None else flags.deepspeed):
        return
    if "RANK" not in os.environ:
        raise SystemExit("deepspeed needs a launcher, even for one process: torchrun --nproc_per_node 1 -m ...")
    import torch

    if torch.cuda.is_available():
        return
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
