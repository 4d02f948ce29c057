"""SFT on chains of thought: stage 0 on the teacher's (cold start), stage 1 on the model's own correct ones.

    accelerate launch -m unifiedreward_think.training.sft --config configs/qwen2_5_vl_7b/cold_start.yaml
    python -m unifiedreward_think.training.sft --config configs/toy/cold_start.yaml --check_data

The loss falls on the completion alone.
"""

from __future__ import annotations

from typing import Any

from unifiedreward_think.data.loading import load_checked_traces, report_left_out
from unifiedreward_think.data.rows import sft_row, to_dataset
from unifiedreward_think.entry import run_main
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, TrainingExtras
from unifiedreward_think.training.output import finish
from unifiedreward_think.training.watch import HeldOut, Watched, load_held_out, trainer_arguments

STAGE = "sft"


def main() -> None:
    """Train from a config file and the command line."""
    run.own_help(__doc__, (DataArguments, TrainingExtras), ("trl.SFTConfig", "trl.ModelConfig"))
    from trl import ModelConfig, SFTConfig

    data, extras, args, model_args = run.parse(DataArguments, TrainingExtras, SFTConfig, ModelConfig)
    run.refuse(args, model_args)
    rows, counts = load_rows(data)
    held_out = load_held_out(data, extras, args)
    if data.check_data:
        print(f"data checked: {counts}")
        return
    checkpoint = run.start(args, model_args, data, extras, stage=STAGE)
    train(rows, counts, data, extras, args, model_args, checkpoint, held_out)


def load_rows(data: DataArguments) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the SFT rows of all data files and what was counted."""
    loaded = load_checked_traces(
        data.train_files, sampling=data.sampling, media_root=data.media_root, skip_bad=data.skip_bad
    )
    report_left_out(loaded.bad)
    rows = [sft_row(trace, data.prompts, data.sampling) for trace in loaded.rows[: data.limit]]
    return rows, {"traces": len(rows), "bad rows left out": len(loaded.bad)}


def train(
    rows: list[dict[str, Any]],
    counts: dict[str, int],
    data: DataArguments,
    extras: TrainingExtras,
    args: Any,
    model_args: Any,
    checkpoint: str | None,
    held_out: HeldOut | None = None,
) -> None:
    """Run TRL's SFTTrainer on the rows and save the result."""
    from trl import SFTTrainer

    from unifiedreward_think.models.loading import ReloadOnResume
    from unifiedreward_think.training.faults import FaultTolerant

    class Trainer(FaultTolerant, Watched, ReloadOnResume, SFTTrainer):  # type: ignore[misc]
        """TRL's trainer with a resume that restores the weights, and a loss that is a mean over all tokens of a step.

        The Qwen-VL models declare that their own loss takes no token count, whereupon transformers averages over
        micro-batches and ranks, and a batch trains differently for each way to split it. The loss is TRL's, however.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = True

    model, processor, peft_config = run.load(model_args, data, extras, counts)
    trainer = Trainer(
        model=model,
        args=trainer_arguments(args, held_out),
        train_dataset=to_dataset(rows),
        processing_class=processor,
        peft_config=peft_config,
    )
    trainer.watch(args, extras, held_out)
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, processor, args, model_args, data, extras, stage=STAGE, counts=counts)


if __name__ == "__main__":
    run_main(main)
