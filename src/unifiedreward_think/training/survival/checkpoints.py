"""Checkpoints that a run can be sure of: sealed when they are whole, and passed over when they are not.

The seal is written last, when every process has written its share and all of it is on the disk. It names each file with
its size, and how many processes and rows a step had.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unifiedreward_think.writing import write_whole

SEAL = "complete.json"
PREFIX = "checkpoint-"  # transformers' name


def seal(checkpoint: Path, shape: Mapping[str, Any]) -> None:
    """Declare a checkpoint whole.

    Args:
        checkpoint: folder that every process has finished writing to.
        shape: of the run (`run_shape`).

    Raises:
        OutputError: the seal cannot be written; the checkpoint does not count then.
    """
    files = {}
    # Hidden files are not its own: NFS has some for an instant, macOS for as long as a folder is looked at.
    for file in sorted(path for path in checkpoint.rglob("[!.]*") if path.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        files[str(file.relative_to(checkpoint))] = file.stat().st_size
    write_whole(checkpoint / SEAL, json.dumps({**shape, "files": files}, indent=1) + "\n")


def flaw(checkpoint: Path) -> str:
    """Return why a checkpoint cannot be trusted, nothing if it can."""
    if not (checkpoint / SEAL).is_file():
        return f"it was not finished (no {SEAL})"
    for name, size in read_seal(checkpoint)["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if (length := file.stat().st_size) != size:
            return f"{name} has {length} bytes of {size}"
    return ""


def read_seal(checkpoint: Path) -> dict[str, Any]:
    """Return what the seal of a checkpoint says."""
    seal: dict[str, Any] = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    return seal


def by_step(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first, whole or not."""
    folders = {
        int(match[1]): path
        for path in folder.glob(f"{PREFIX}*")
        if path.is_dir() and (match := re.fullmatch(rf"{PREFIX}(\d+)", path.name))
    }
    return [folders[step] for step in sorted(folders, reverse=True)]


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a run, and which newer ones were passed over and why."""
    passed_over: list[str] = []
    for checkpoint in by_step(folder):
        if not (problem := flaw(checkpoint)):
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} is passed over: {problem}")
    return None, passed_over


def rotate(folder: Path, keep: int, best: str | None) -> None:
    """Delete all checkpoints but the newest `keep` whole ones; the best one is among them, and never the only one.

    The rule of transformers' `save_total_limit`.
    """
    prized = [path for path in by_step(folder) if path.name == Path(best or "").name]
    newest = [path for path in by_step(folder) if path not in prized and not flaw(path)]
    kept = prized + newest[: max(1, keep - len(prized))]
    for path in by_step(folder):
        if path not in kept:
            discard(path)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, if there is one."""
    if checkpoint.is_dir():
        (checkpoint / SEAL).unlink(missing_ok=True)  # first: half a checkpoint must not look whole
        shutil.rmtree(checkpoint)


def run_shape(args: Any) -> dict[str, Any]:
    """Return what of a run decides whether it can go on from another run's checkpoint.

    Args:
        args: the trainer's arguments.
    """
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    sharded = bool(args.deepspeed or args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true")
    return {
        "processes": args.world_size,
        "rows a step": rows,
        "rows a rollout": getattr(args, "generation_batch_size", None),
        "optimizer in pieces": sharded,
    }


def misfit(checkpoint: Path, shape: Mapping[str, Any]) -> str:
    """Return why a run of this shape cannot go on from a whole checkpoint, nothing if it can.

    With another number of processes a step must have as many rows as before, so that every row is seen as often and the
    learning rate is where it should be. Random numbers are drawn per process: the run is as good, not the same bit by
    bit. What DeepSpeed and FSDP save of the optimizer is one piece for each process and fits that number only.
    """
    saved = read_seal(checkpoint)
    before, now = saved["processes"], shape["processes"]
    if before == now:
        return ""
    where = f"{checkpoint} was saved by {before} processes, and this run has {now}"
    if saved["optimizer in pieces"] or shape["optimizer in pieces"]:
        return (
            f"{where}: the optimizer is stored in {before} pieces. Start {before} processes; or begin a new run from "
            f"its weights, with --model_name_or_path {checkpoint} and another output_dir"
        )
    for key in ("rows a step", "rows a rollout"):
        if saved[key] != shape[key]:
            return (
                f"{where}, with {shape[key]} {key} instead of {saved[key]}: change per_device_train_batch_size, "
                f"gradient_accumulation_steps or steps_per_generation to make it {saved[key]} again"
            )
    return ""
