"""From records to training rows with TRL's columns, and to the messages a backend sends.

SFT rows: `prompt`, `completion`, `images`, `id`. GRPO rows: `prompt`, `images`, `solution`, `task`, `style`, `id` and
`order`.
Images are paths; videos are already frames, decoded once into the frame cache.

    python -m unifiedreward_think.data.rows --input hard.jsonl --output rows/     # parquet for stock `trl grpo`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unifiedreward_think.data.arguments import add_frames, add_prompts, frame_sampling
from unifiedreward_think.entry import run_main
from unifiedreward_think.media import FrameSampling, image_paths
from unifiedreward_think.order import ORDERS, Order
from unifiedreward_think.prompting import Part, build_parts, load_prompts, solution
from unifiedreward_think.records import PreferenceRecord, Trace, order_shown
from unifiedreward_think.verdict import Style
from unifiedreward_think.writing import whole

if TYPE_CHECKING:
    from datasets import Dataset

Orders = Literal["random", "both"]
Content = list[dict[str, str | None]]


def to_content(parts: Sequence[Part], sampling: FrameSampling) -> tuple[Content, list[Path]]:
    """Return the content of a user message, an image placeholder for each picture or frame, and the image files."""
    content: Content = []
    images: list[Path] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            files = image_paths(part.paths, part.kind, sampling)
            content += [{"type": "image", "text": None} for _ in files]
            images += files
    return content, images


def prompt_row(
    record: PreferenceRecord, order: Order, prompts: Mapping[str, str], sampling: FrameSampling
) -> dict[str, Any]:
    """Return the columns every kind of row shares: `id`, `prompt` (one user message) and `images`."""
    content, images = to_content(build_parts(record, order=order, prompts=prompts), sampling)
    return {"id": record.id, "prompt": [{"role": "user", "content": content}], "images": [str(p) for p in images]}


def sft_row(trace: Trace, prompts: Mapping[str, str], sampling: FrameSampling) -> dict[str, Any]:
    """Return one SFT row; the loss falls on the completion only."""
    row = prompt_row(trace.record, trace.order, prompts, sampling)
    return {**row, "completion": [{"role": "assistant", "content": [{"type": "text", "text": trace.completion}]}]}


def grpo_row(
    record: PreferenceRecord, order: Order, prompts: Mapping[str, str], sampling: FrameSampling, style: Style
) -> dict[str, Any]:
    """Return one GRPO row; `solution` is the gold answer in the order shown."""
    row = prompt_row(record, order, prompts, sampling)
    return {**row, "solution": solution(record, order), "task": record.task, "style": style, "order": order}


def shown_orders(record: PreferenceRecord, orders: Orders, seed: int) -> tuple[Order, ...]:
    """Return the orders a record is shown in: one from the stable digest, or both where it can be swapped."""
    return ORDERS if orders == "both" and record.swappable else (order_shown(record, seed),)


def to_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Return a Hugging Face dataset whose `images` are decoded when a row is read."""
    from datasets import Dataset, List
    from datasets import Image as ImageFeature

    return Dataset.from_list([dict(row) for row in rows]).cast_column("images", List(ImageFeature()))


def write_parquet(dataset: Dataset, file: Path) -> None:
    """Write a dataset with its pictures inside, to be read anywhere; the file appears whole or not at all."""
    from datasets.table import embed_table_storage

    embedded = dataset.with_format("arrow").map(embed_table_storage, batched=True, batch_size=100)
    with whole(file) as scratch:
        embedded.with_format(None).to_parquet(scratch)


def main() -> None:
    """Write GRPO rows as parquet for stock `trl grpo`."""
    from unifiedreward_think.data.formats.loading import load_checked_records

    parser = argparse.ArgumentParser(description="Write preference records as a parquet data set for stock `trl grpo`.")
    parser.add_argument("--input", nargs="+", required=True, help="record files, e.g. hard.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.parquet and the frame cache")
    parser.add_argument("--media-root", help="folder that relative media paths start from")
    parser.add_argument("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add_prompts(parser)
    add_frames(parser)
    parser.add_argument("--orders", choices=["random", "both"], default="random", help="order(s) each pair is shown in")
    parser.add_argument("--order-seed", type=int, default=0, help="decides the random order")
    args = parser.parse_args()
    sampling = frame_sampling(args, args.output / "frames")
    prompts = load_prompts(args.style, layout=args.layout, folder=args.prompt_dir)
    records = load_checked_records(args.input, sampling=sampling, media_root=args.media_root).rows
    dataset = to_dataset(
        grpo_row(record, order, prompts, sampling, args.style)
        for record in records
        if record.preferred in (1, 2)
        for order in shown_orders(record, args.orders, args.order_seed)
    )
    write_parquet(dataset, args.output / "train.parquet")
    print(f"{len(dataset)} rows -> {args.output / 'train.parquet'}")


if __name__ == "__main__":
    run_main(main)
