"""SFT on streams instead of padded rows: nothing is padded, and a prompt with several answers is read once.

A micro-batch becomes one stream (see `shared_prefix`), in which every answer attends to its own prompt and itself
alone. Loss, metrics and checkpoints are TRL's code, over the same tokens. Where prompts have several answers, rows come
in an order that keeps the answers of a prompt together; otherwise batches are those of TRL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch.utils.data import Sampler
from trl.data_utils import apply_chat_template, prepare_multimodal_messages

from unifiedreward_think.engine import streams as shared_prefix
from unifiedreward_think.errors import InputError
from unifiedreward_think.training.trainers.sft import SFTTrainer

OFF = "set shared_prefix: false to train on TRL's padded rows"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class StreamCollator:
    """Tokenizes rows as TRL's collator does, each prompt with its pictures once."""

    processor: Any

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return `groups` (processor's fields of a prompt, its answers) and the labels of the stream they make."""
        groups: dict[bytes, list[Row]] = {}
        for row in rows:
            groups.setdefault(_identity(row), []).append(row)
        read = [self._read(own) for own in groups.values()]
        labels = torch.cat([answer for _, answers in read for answer in answers])[None]
        return {"groups": read, "labels": labels, "shift_labels": labels}

    def _read(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        images = rows[0]["images"]
        prompt = prepare_multimodal_messages(rows[0]["prompt"], images=images)
        texts = [
            apply_chat_template(
                {"prompt": prompt, "completion": prepare_multimodal_messages(row["completion"])}, self.processor
            )
            for row in rows
        ]
        options = {"add_special_tokens": False, "return_tensors": "pt"}  # the template has written them
        fields = self.processor(images=[images] if images else None, text=[texts[0]["prompt"]], **options)
        answers = [self.processor.tokenizer(text["completion"], **options)["input_ids"][0] for text in texts]
        return dict(fields), answers


def _identity(row: Row) -> bytes:
    """Return what two rows of one prompt share: its text and its pictures, by content."""
    digest = sha256(repr(row["prompt"]).encode())
    for image in row["images"]:
        digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
    return digest.digest()


class SiblingSampler(Sampler[int]):  # type: ignore[misc]
    """Prompts in random order, each with all of its rows in a row; a resumed run finds the order of its epoch again."""

    def __init__(self, prompts: Sequence[int], seed: int) -> None:
        self._rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            self._rows.setdefault(prompt, []).append(row)
        self._count, self._seed, self._epoch = len(prompts), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers."""
        random = torch.Generator().manual_seed(self._seed + self._epoch)
        rows = list(self._rows.values())
        for place in torch.randperm(len(rows), generator=random).tolist():
            yield from rows[place]

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count


class SharedPrefixSFTTrainer(SFTTrainer):
    """See the module.

    Args:
        prompts: number of the prompt of each row; rows of equal number have equal prompts and pictures.

    Raises:
        InputError: the model or an option is not covered; the message names the key that turns this off.
    """

    def __init__(self, *args: Any, prompts: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = StreamCollator(self.processing_class)
        self._prompts = prompts
        network = self._network()
        reason = shared_prefix.why_not(network) or self._why_not()
        if reason:
            raise InputError(f"shared_prefix: {reason}; {OFF}")
        shared_prefix.enable(network)
        self._frozen = not any(weight.requires_grad for weight in shared_prefix.picture_parameters(network))

    def _why_not(self) -> str | None:
        """Return the first option that is not covered."""
        args = self.args
        problems = {
            "FSDP is not covered": self.is_fsdp_enabled,
            "the loss falls on the answers alone: completion_only_loss: false is not covered": (
                args.completion_only_loss is False
            ),
            "label_smoothing_factor is not covered": args.label_smoothing_factor,
            f"train_sampling_strategy: {args.train_sampling_strategy} is not covered, nor needed without padding": (
                args.train_sampling_strategy != "random"
            ),
        }
        return next((problem for problem, applies in problems.items() if applies), None)

    def _network(self) -> Any:
        """Return the transformers model inside wrappers and adapters."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if len(set(self._prompts)) == len(self._prompts):
            return super()._get_train_sampler(train_dataset)
        return SiblingSampler(self._prompts, self.args.data_seed or self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See trl; the model reads a stream."""
        network = self._network()
        prompts = [shared_prefix.read_prompt(network, fields) for fields, _ in inputs["groups"]]
        answers = [own for _, own in inputs["groups"]]
        tokens = sum(len(prompt.ids) * len(own) for prompt, own in zip(prompts, answers, strict=True))
        tokens += inputs["labels"].numel()
        stream = shared_prefix.stream_inputs(
            list(zip(self._encoded(network, prompts), answers, strict=True)), encoded=self._frozen
        )
        # TRL counts tokens by the mask; here, as there, a prompt counts for each of its rows.
        stream["attention_mask"] = torch.full_like(stream["attention_mask"], tokens)
        return super().compute_loss(model, {**stream, "shift_labels": inputs["shift_labels"]}, *args, **kwargs)

    def _encoded(self, network: Any, prompts: list[shared_prefix.Prompt]) -> list[shared_prefix.Prompt]:
        """Return the prompts with the features of all pictures at the first one, from one pass through a frozen tower.

        One pass, however many prompts there are: under ZeRO-3 all ranks must run equally many.
        """
        pixels = shared_prefix.picture_inputs(prompts, encoded=False)
        if not self._frozen or not pixels:
            return prompts
        with self.accelerator.autocast():
            first = shared_prefix.encode_pictures(network, replace(prompts[0], pixels=pixels))
        return [replace(first, pixels={}), *(replace(prompt, pixels={}) for prompt in prompts[1:])]
