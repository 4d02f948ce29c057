"""SFT on chains of thought: stage 0 on the teacher's (cold start), stage 1 on the model's own correct ones.

    accelerate launch -m unifiedreward_think.training.sft --config configs/qwen2_5_vl_7b/cold_start.yaml
    python -m unifiedreward_think.training.sft --config configs/toy/cold_start.yaml --check_data

The loss falls on the completion alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.loading import load_checked_traces, report_left_out
from unifiedreward_think.data.rows import sft_row, to_dataset
from unifiedreward_think.data.tokens import TokenCounter, picture_size
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, StreamArguments, TrainingExtras
from unifiedreward_think.training.monitor.held_out import HeldOut, load_held_out, trainer_arguments
from unifiedreward_think.training.output import finish

STAGE = "sft"


def main() -> None:
    """Train from a config file and the command line."""
    own = (DataArguments, TrainingExtras, StreamArguments)
    run.own_help(__doc__, own, ("trl.SFTConfig", "trl.ModelConfig"))
    from trl import ModelConfig, SFTConfig

    data, extras, stream, args, model_args = run.parse(*own, SFTConfig, ModelConfig)
    run.refuse(args, model_args)
    rows, counts = load_rows(data)
    held_out = load_held_out(data, extras, args)
    if data.check_data:
        print(f"data checked: {counts}")
        return
    checkpoint = run.start(args, model_args, data, extras, stream, stage=STAGE)
    train(rows, counts, data, extras, args, model_args, checkpoint, stream, held_out)


def load_rows(data: DataArguments) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the SFT rows of all data files and what was counted."""
    loaded = load_checked_traces(
        data.train_files, sampling=data.sampling, media_root=data.media_root, skip_bad=data.skip_bad
    )
    report_left_out(loaded.bad)
    rows = [sft_row(trace, data.prompts, data.sampling) for trace in loaded.rows[: data.limit]]
    return rows, {"traces": len(rows), "bad rows left out": len(loaded.bad)}


def trainer_class(
    rows: Sequence[Mapping[str, Any]], processor: Any, stream: StreamArguments, args: Any
) -> Callable[..., Any]:
    """Return the trainer that `shared_prefix` names, told what it must know of the rows."""
    from unifiedreward_think.training.trainers.sft import SFTTrainer
    from unifiedreward_think.training.trainers.shared_prefix_sft import SharedPrefixSFTTrainer

    if stream.shared_prefix:
        numbers: dict[Any, int] = {}
        keys = [(str(row["prompt"]), *row["images"]) for row in rows]
        return functools.partial(SharedPrefixSFTTrainer, prompts=[numbers.setdefault(k, len(numbers)) for k in keys])
    if args.train_sampling_strategy == "group_by_length":
        return functools.partial(SFTTrainer, lengths=row_lengths(rows, processor))
    return SFTTrainer


def row_lengths(rows: Sequence[Mapping[str, Any]], processor: Any) -> list[int]:
    """Return the tokens of each row, from the headers of its pictures, without the end of the last turn.

    LLaVA-OneVision's processor counts a picture as if it came alone, so its rows of several pictures are told too long.
    """
    counter = TokenCounter(processor)
    return [
        counter.count(
            row["prompt"][0]["content"],
            [picture_size(Path(image)) for image in row["images"]],
            row["completion"][0]["content"][0]["text"],
        )
        for row in rows
    ]


def train(
    rows: list[dict[str, Any]],
    counts: dict[str, int],
    data: DataArguments,
    extras: TrainingExtras,
    args: Any,
    model_args: Any,
    checkpoint: str | None,
    stream: StreamArguments = StreamArguments(),  # noqa: B008 - read only
    held_out: HeldOut | None = None,
) -> None:
    """Run SFT on the rows and save the result."""
    model, processor, peft_config = run.load(model_args, data, extras, counts)
    trainer = trainer_class(rows, processor, stream, args)(
        model=model,
        args=trainer_arguments(args, held_out),
        train_dataset=to_dataset(rows),
        processing_class=processor,
        peft_config=peft_config,
    )
    trainer.watch(args, extras, held_out)
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, processor, args, model_args, data, extras, stream, stage=STAGE, counts=counts)


if __name__ == "__main__":
    run.run_stage(main)
