"""SFT on chains of thought: stage 0 on the teacher's (cold start), stage 1 on the model's own correct ones.

    accelerate launch -m unifiedreward_think.training.sft --config configs/qwen2_5_vl_7b/cold_start.yaml
    python -m unifiedreward_think.training.sft --config configs/toy/cold_start.yaml --check_data

The loss falls on the completion alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.data.formats.files import report_left_out
from unifiedreward_think.data.formats.loading import load_checked_traces, settle
from unifiedreward_think.data.rows import sft_row, to_dataset
from unifiedreward_think.data.tokens import TokenCounter, picture_size
from unifiedreward_think.errors import RecordError
from unifiedreward_think.judging.ranks import met, together
from unifiedreward_think.records import Trace
from unifiedreward_think.terminal import say
from unifiedreward_think.traces.cutting import cut
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, StreamArguments, TrainingExtras
from unifiedreward_think.training.monitor.held_out import HeldOut, load_held_out, trainer_arguments
from unifiedreward_think.training.output import finish
from unifiedreward_think.training.parsing import parse
from unifiedreward_think.training.reading import Reading, reading_of

if TYPE_CHECKING:
    from unifiedreward_think.training.trainers.resume import EpochSampler

STAGE = "sft"


def main() -> None:
    """Train from a config file and the command line."""
    ours, trl = (DataArguments, TrainingExtras, StreamArguments), ("SFTConfig", "ModelConfig")
    with together(met):
        data, extras, stream, args, model_args = parse(*ours, about=__doc__, trl=trl)
        run.refuse(args, model_args, extras)
        reading = reading_of(model_args, data, args)
        rows, counts = load_rows(data, reading)
        held_out = load_held_out(data, extras, args, reading)
        if data.check_data:
            say(f"data checked: {counts}")
            return
        checkpoint = run.start(args, model_args, data, extras, stream, stage=STAGE)
    train(rows, counts, data, extras, args, model_args, checkpoint, stream, held_out)


def load_rows(data: DataArguments, reading: Reading | None = None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the SFT rows of all data files, those that a `reading` refuses left out, and what was counted.

    With `point_share`, traces of that share of the pairs are cut into one for each candidate.
    """
    loaded = load_checked_traces(
        data.train_files,
        sampling=data.frame_sampling,
        media_root=data.media_root,
        skip_bad=data.skip_bad,
        form=data.asked_form,
    ).only(limit=data.limit)
    loaded = settle(loaded.without([_why_not_cut(trace, data) for trace in loaded.rows]), skip_bad=data.skip_bad)
    prompts = data.all_templates()

    def rows_of(trace: Trace) -> list[dict[str, Any]]:
        form = data.form_of(trace.record)
        parts = [trace] if form is data.asked_form else cut(trace, data.layout)
        return [sft_row(part, prompts[form.name], data.frame_sampling, form=form) for part in parts]

    if reading is not None:
        loaded = reading.readable(loaded, rows_of)
    report_left_out(loaded.bad)
    rows = [row for trace in loaded.rows for row in rows_of(trace)]
    scored = {"traces of pairs cut into scores": len(rows) - len(loaded.rows)} if data.point_share else {}
    return rows, {"traces": len(rows), **scored, "bad rows left out": len(loaded.bad)}


def _why_not_cut(trace: Trace, data: DataArguments) -> str:
    """Return why a trace of which scores are to be learned cannot be cut; "" where it can or need not be."""
    if data.form_of(trace.record) is data.asked_form:
        return ""
    try:
        cut(trace, data.layout)
    except RecordError as error:
        return str(error)
    return ""


def trainer_class(stream: StreamArguments) -> Callable[..., Any]:
    """Return the trainer that `shared_prefix` names."""
    from unifiedreward_think.training.trainers.sft import SFTTrainer
    from unifiedreward_think.training.trainers.shared_prefix_sft import SharedPrefixSFTTrainer

    return SharedPrefixSFTTrainer if stream.shared_prefix else SFTTrainer


def row_sampler(
    rows: Sequence[Mapping[str, Any]], processor: Any, stream: StreamArguments, args: Any
) -> EpochSampler | None:
    """Return an order that keeps the answers of a prompt, or rows of similar length, together; None for transformers'.

    transformers' own grouping by length needs the length of a row before it is collated, which pictures do not have.
    """
    from torch.utils.data import RandomSampler
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from unifiedreward_think.training.trainers.resume import EpochSampler

    seed = args.seed if args.data_seed is None else args.data_seed
    if stream.shared_prefix:
        prompts: dict[Any, list[int]] = {}
        for number, row in enumerate(rows):
            prompts.setdefault((str(row["prompt"]), *row["images"]), []).append(number)
        several = len(prompts) < len(rows)
        return EpochSampler(RandomSampler(prompts), seed, list(prompts.values())) if several else None
    if args.train_sampling_strategy != "group_by_length":
        return None
    size = args.train_batch_size * args.gradient_accumulation_steps
    return EpochSampler(LengthGroupedSampler(size, lengths=row_lengths(rows, processor)), seed)


def row_lengths(rows: Sequence[Mapping[str, Any]], processor: Any) -> list[int]:
    """Return the tokens of each row, from the headers of its pictures, without the end of the last turn."""
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
    model, processor, peft_config = run.load(model_args, data, extras, args, counts)
    trainer = trainer_class(stream)(
        model=model,
        args=trainer_arguments(args, held_out),
        train_dataset=to_dataset(rows),
        processing_class=processor,
        peft_config=peft_config,
        sampler=row_sampler(rows, processor, stream, args),
    )
    trainer.watch(args, extras, held_out)
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, processor, args, model_args, data, extras, stream, stage=STAGE, counts=counts)


if __name__ == "__main__":
    run.run_stage(main)
