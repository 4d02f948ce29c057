"""TRL's SFTTrainer with the repairs that resuming, accumulation and length-grouped batches of pictures need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import trl
from transformers.trainer_pt_utils import LengthGroupedSampler

from unifiedreward_think.models.loading import ReloadOnResume
from unifiedreward_think.training.monitor.held_out import Watched
from unifiedreward_think.training.survival.faults import FaultTolerant


class LengthSampler(LengthGroupedSampler):  # type: ignore[misc]
    """transformers' sampler of rows of similar length, with an order for each epoch that a resumed run finds again."""

    state: Any  # the trainer's
    seed: int

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers."""
        self.generator = torch.Generator().manual_seed(self.seed + int(self.state.epoch or 0))
        return super().__iter__()  # type: ignore[no-any-return]


class SFTTrainer(FaultTolerant, Watched, ReloadOnResume, trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with a resume that restores the weights, and a loss that is a mean over all tokens of a step.

    The Qwen-VL models declare that their own loss takes no token count, whereupon transformers averages over
    micro-batches and ranks, and a batch trains differently for each way to split it. The loss is TRL's, however.

    Args:
        lengths: tokens of each row, needed with `train_sampling_strategy: group_by_length`: rows with pictures have no
            length before they are collated.
    """

    def __init__(self, *args: Any, lengths: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._lengths = lengths

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        sampler = LengthSampler(batch, lengths=list(self._lengths or ()))
        sampler.state, sampler.seed = self.state, self.args.seed
        return sampler
