"""Pictures of the next batch are opened, and its prompts processed, in a thread while the model works on this one.

accelerate takes a batch from the data loader before the one before it is used, to see the end coming. The collator is
where that happens: it hands each prompt to the thread and the rows go on without their pictures. The work releases the
interpreter's lock (PIL, torch, tokenizers), so on a GPU it costs the step nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trl.data_utils import prepare_multimodal_messages

from unifiedreward_think.data.picture_column import Picture

READING = "reading"  # column of a row that the thread is at work on
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """A row's pictures, its messages with them inside, and what the processor makes of it."""

    images: list[Any]
    messages: list[Any]
    fields: Any


class Reader:
    """Reads prompts; as a collator, ahead of their use.

    Args:
        processor: copied, since a tokenizer is not made for two threads.
        template_kwargs: of `apply_chat_template`.
    """

    def __init__(self, processor: Any, **template_kwargs: Any) -> None:
        self._processor, self._template_kwargs = copy.deepcopy(processor), template_kwargs
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._seen: Sequence[Row] = ()
        self._out: list[dict[str, Any]] = []

    def attach(self, trainer: Any) -> None:
        """Let a trainer read ahead, pictures as they are in their files; with worker processes, read when needed."""
        from datasets import Dataset, Image, List

        if isinstance(trainer.train_dataset, Dataset) and "images" in trainer.train_dataset.column_names:
            trainer.train_dataset = trainer.train_dataset.cast_column("images", List(Image(decode=False)))
        if not trainer.args.dataloader_num_workers:
            trainer.data_collator = self

    def __call__(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the rows with a `reading` under way, one for all equal neighbours.

        TRL's sampler shows a batch again for each step of its rollout, which uses the first alone: it is read once.
        """
        if rows != self._seen:
            self._seen, self._out, begun = rows, [], {}
            for number, row in enumerate(rows):
                if not number or row != rows[number - 1]:
                    begun = {READING: self._pool.submit(self.read, row)}
                self._out.append({**row, **begun})
        return self._out

    def take(self, row: Row) -> Reading:
        """Return the reading of a row, waiting for it if it is under way; errors of the thread are raised here."""
        begun: Future[Reading] | None = row.get(READING)
        return self.read(row) if begun is None else begun.result()

    def read(self, row: Row) -> Reading:
        """Open the pictures of a row and process its prompt."""
        images = [Picture().decode_example(one) for one in row.get("images") or ()]
        if not images:
            return Reading([], row["prompt"], {})
        messages = prepare_multimodal_messages(row["prompt"], images=images)
        fields = self._processor.apply_chat_template(
            [messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **self._template_kwargs,
        )
        return Reading(images, messages, fields)
