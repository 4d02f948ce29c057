"""SFT on packed sequences instead of padded rows: nothing is padded, and a prompt with several answers is read once.

A micro-batch becomes one packed sequence (see `engine.packing`), in which an answer attends to its prompt and itself
alone. Loss, metrics and checkpoints are TRL's code, over the same tokens. Where prompts have several answers, rows come
in an order that keeps the answers of a prompt together; otherwise batches are those of TRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl.data_utils import apply_chat_template, prepare_multimodal_messages

from unifiedreward_think.engine import packing
from unifiedreward_think.errors import InputError
from unifiedreward_think.training.trainers.sft import SFTTrainer

OFF = "set shared_prefix: false to train on TRL's padded rows"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class PackingCollator:
    """Tokenizes rows as TRL's collator does, each prompt with its images once."""

    processor: Any

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return `groups` (processor's fields of a prompt, its answers) and the labels of the packed sequence.

        The attention mask is that of the padded rows, by which TRL counts tokens; the model never sees it.
        """
        groups: dict[bytes, list[Row]] = {}
        for row in rows:
            groups.setdefault(_identity(row), []).append(row)
        read = [self._read(rows_of_prompt) for rows_of_prompt in groups.values()]
        labels = torch.cat([answer for _, answers in read for answer in answers])[None]
        lengths = [fields["input_ids"].shape[1] + len(answer) for fields, answers in read for answer in answers]
        mask = pad_sequence([torch.ones(length, dtype=torch.long) for length in lengths], batch_first=True)
        return {"groups": read, "labels": labels, "shift_labels": labels, "attention_mask": mask}

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
    """Return what two rows of one prompt share: its text and its images, by content."""
    digest = sha256(repr(row["prompt"]).encode())
    for image in row["images"]:
        digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
    return digest.digest()


class SharedPrefixSFTTrainer(SFTTrainer):
    """See the module.

    Raises:
        InputError: the model or an option is not covered; the message names the key that turns this off.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = PackingCollator(self.processing_class)
        network = self._network()
        reason = packing.why_not(network) or self._why_not()
        if reason:
            raise InputError(f"shared_prefix: {reason}; {OFF}")
        packing.enable(network)
        self._frozen = not any(weight.requires_grad for weight in packing.vision_parameters(network))

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

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See trl; the model takes a packed sequence."""
        network = self._network()
        prompts = [packing.make_prompt(network, fields) for fields, _ in inputs["groups"]]
        answers = [completions for _, completions in inputs["groups"]]
        groups = list(zip(self._encoded(network, prompts), answers, strict=True))
        packed = packing.pack(groups, encoded=self._frozen)

        def forward(**options: Any) -> Any:
            return model(**{**options, **packed})

        rows = {key: inputs[key] for key in ("shift_labels", "attention_mask")}
        return super().compute_loss(forward, rows, *args, **kwargs)

    def _encoded(self, network: Any, prompts: list[packing.Prompt]) -> list[packing.Prompt]:
        """Return the prompts with the features of all images at the first one, from one pass through a frozen tower.

        One pass, however many prompts there are: under ZeRO-3 all ranks must run equally many.
        """
        pixels = packing.image_inputs(prompts, encoded=False)
        if not self._frozen or not pixels:
            return prompts
        with self.accelerator.autocast():
            first = packing.encode_prompt(network, replace(prompts[0], pixels=pixels))
        return [replace(first, pixels={}), *(replace(prompt, pixels={}) for prompt in prompts[1:])]
