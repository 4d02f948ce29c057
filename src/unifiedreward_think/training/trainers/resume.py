"""What a resumed run finds again that the libraries lose: the order of the rows in its epoch, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from unifiedreward_think.models.loading import load_model
from unifiedreward_think.models.soundness import must_be_finite


class EpochSampler(Sampler[int]):  # type: ignore[misc]
    """Rows in an order that seed and epoch alone decide.

    Samplers of TRL and transformers draw the orders of all epochs from one generator, which starts afresh on resume: a
    run resumed in its second epoch would walk the order of the first, seeing some rows twice and others never.

    Args:
        sampler: draws from its attribute `generator`.
        seed: of the first epoch.
        rows: the rows that each number of the sampler stands for; itself without.
    """

    def __init__(self, sampler: Any, seed: int, rows: Sequence[Sequence[int]] | None = None) -> None:
        self._sampler, self._seed, self._rows = sampler, seed, rows
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; transformers and accelerate call this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers, each as often as it is trained on."""
        self._sampler.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        for number in self._sampler:
            yield from (number,) if self._rows is None else self._rows[number]

    def __len__(self) -> int:
        """Return how many row numbers come."""
        return len(self._sampler) if self._rows is None else sum(map(len, self._rows))


def by_epoch(loader: Any, seed: int, change: Callable[[Any], Any] = lambda sampler: sampler) -> Any:
    """Let a loader of accelerate's have its rows in an order by epoch, that of its sampler after a change."""
    batches = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)  # of all ranks
    loader.set_sampler(EpochSampler(change(batches.sampler), seed))
    return loader


class ReloadOnResume:
    """Trainer mixin that restores weights through `load_model` when a run resumes.

    transformers saves Qwen2-VL, Qwen2.5-VL and LLaVA-OneVision under their released key names but resumes with
    `load_state_dict(strict=False)` on the in-memory names, restoring almost nothing with only a warning
    (huggingface/transformers#43701). DeepSpeed, FSDP and PEFT runs take other paths and are left alone.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trainer: Any = self
        target = trainer.accelerator.unwrap_model(trainer.model if model is None else model)
        if self._stock_resume_works():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            must_be_finite(target.named_parameters(), resume_from_checkpoint)
            return
        source = load_model(resume_from_checkpoint, dtype=str(target.dtype).removeprefix("torch."))
        target.load_state_dict(source.state_dict(), strict=True)

    def _stock_resume_works(self) -> bool:
        from peft import PeftModel

        trainer: Any = self
        adapted = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
        return bool(trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or adapted)
