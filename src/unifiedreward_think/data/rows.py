"""From records to training rows with TRL's columns, and to the messages a backend sends.

SFT rows: `prompt`, `completion`, `images`, `id`. GRPO rows: `prompt`, `images`, `solution`, `task`, `form`, `style`,
`id` and `order`.
Images are paths; videos are already frames, decoded once into the frame cache.

    python -m unifiedreward_think.data.rows --input hard.jsonl --output rows/     # parquet for stock `trl grpo`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.blocks import Style
from unifiedreward_think.data.arguments import ShownArguments, frame_sampling
from unifiedreward_think.data.side_by_side import in_twos, units_of
from unifiedreward_think.entry import run_main
from unifiedreward_think.flags import Parser, read
from unifiedreward_think.forms import PAIRWISE, Form
from unifiedreward_think.media import FrameSampling, image_paths, native_clip
from unifiedreward_think.order import Order, Orders
from unifiedreward_think.plain_text import as_text
from unifiedreward_think.prompting import to_content
from unifiedreward_think.records import PreferenceRecord, Trace, digest
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.writing import whole

if TYPE_CHECKING:
    from datasets import Dataset


def prompt_row(
    record: PreferenceRecord,
    order: Order,
    prompts: Mapping[str, str],
    sampling: FrameSampling,
    *,
    form: Form = PAIRWISE,
    native_video: bool = False,
) -> dict[str, Any]:
    """Return the columns every kind of row shares: `id`, `prompt` (one user message) and `images`.

    With native video, a video has one placeholder instead of one a frame, and is in the column `clips`.
    """
    parts = form.render(record, order=order, prompts=prompts)
    if native_video and TASKS[record.task].media_kind == "video":
        content, clips = to_content(parts, lambda part: [native_clip(part.paths, sampling)], kind="video")
        return {"id": record.id, "prompt": [{"role": "user", "content": content}], "images": [], "clips": clips}
    content, images = to_content(
        parts, lambda part: [str(file) for file in image_paths(part.paths, part.kind, sampling)]
    )
    return {"id": record.id, "prompt": [{"role": "user", "content": content}], "images": images}


def sft_row(
    trace: Trace, prompts: Mapping[str, str], sampling: FrameSampling, *, form: Form = PAIRWISE
) -> dict[str, Any]:
    """Return one SFT row; the loss falls on the completion only."""
    row = prompt_row(trace.record, trace.order, prompts, sampling, form=form)
    return {
        **row,
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": as_text(trace.completion)}]}],
    }


def grpo_row(
    record: PreferenceRecord,
    order: Order,
    prompts: Mapping[str, str],
    sampling: FrameSampling,
    style: Style,
    *,
    form: Form = PAIRWISE,
) -> dict[str, Any]:
    """Return one GRPO row; `solution` is what the rewards need of the labels in the order shown."""
    row = prompt_row(record, order, prompts, sampling, form=form)
    question = {"task": record.task, "form": form.name, "style": style, "order": order}
    return {**row, "solution": form.solution_of(record, order), **question}


def shown_orders(record: PreferenceRecord, orders: Orders, seed: int, form: Form = PAIRWISE) -> tuple[Order, ...]:
    """Return the orders to show: all of the form, or one from (seed, record id): limit and resume never change it.

    A form that shows one candidate has a prompt for each.
    """
    every = form.orders(record)
    if orders == "both" or form.candidates == 1:
        return every
    return (every[digest("order", seed, record.id) % len(every)],)


def grpo_rows(
    records: Iterable[PreferenceRecord],
    shown: ShownArguments,
    sampling: FrameSampling,
    prompts: Mapping[str, str],
    *,
    form: Form | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the GRPO rows of records, in the orders in which they are shown; `form` is by default what is asked for."""
    form = form or shown.asked_form
    for record in records:
        for order in shown_orders(record, shown.orders, shown.order_seed, form):
            yield grpo_row(record, order, prompts, sampling, shown.style, form=form)


def to_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Return a Hugging Face dataset whose `images` are decoded when a row is read."""
    from datasets import Dataset

    from unifiedreward_think.data.picture_column import with_pictures

    return with_pictures(Dataset.from_list([dict(row) for row in rows]))


def write_parquet(dataset: Dataset, file: Path) -> None:
    """Write a dataset with its pictures inside, to be read anywhere; the file appears whole or not at all."""
    from unifiedreward_think.data.picture_column import with_bytes

    with whole(file) as scratch:
        with_bytes(dataset).to_parquet(scratch)


def main() -> None:
    """Write GRPO rows as parquet for stock `trl grpo`."""
    from unifiedreward_think.data.formats.loading import load_checked_records

    parser = Parser("Write preference records as a parquet data set for stock `trl grpo`.")
    parser.add_argument("--input", nargs="+", required=True, help="record files, e.g. hard.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.parquet and the frame cache")
    parser.add_argument("--media-root", help="folder that relative media paths start from")
    parser.add(ShownArguments, without=["frame_cache"])
    args = parser.parse_args()
    sampling = frame_sampling(args, args.output / "frames")
    shown = read(args, ShownArguments)
    form = shown.asked_form
    records = load_checked_records(args.input, sampling=sampling, media_root=args.media_root, form=form).rows
    rows = list(grpo_rows(filter(form.teaches, records), shown, sampling, shown.templates()))
    dataset = to_dataset(rows[number] for number in in_twos(units_of(rows)))
    write_parquet(dataset, args.output / "train.parquet")
    print(f"{len(dataset)} rows -> {args.output / 'train.parquet'}")


if __name__ == "__main__":
    run_main(main)
