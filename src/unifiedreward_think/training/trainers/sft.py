"""TRL's SFTTrainer with the repairs that resuming, accumulation and an order of rows of our own need."""

from __future__ import annotations

from typing import Any

import trl

from unifiedreward_think.training.monitor.held_out import Watched
from unifiedreward_think.training.survival.faults import FaultTolerant
from unifiedreward_think.training.trainers.resume import ReloadOnResume


class SFTTrainer(FaultTolerant, Watched, ReloadOnResume, trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with a resume that restores the weights, and a loss that is a mean over all tokens of a step.

    The Qwen-VL models declare that their own loss takes no token count, whereupon transformers averages over
    micro-batches and ranks, and a batch trains differently for each way to split it. The loss is TRL's, however.

    Args:
        sampler: of rows, in place of transformers'.
    """

    def __init__(self, *args: Any, sampler: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._sampler = sampler

    @property
    def _total_train_tokens(self) -> int:
        """TRL's count of tokens, which would begin afresh on resume, is the one that a checkpoint keeps."""
        return self.state.num_input_tokens_seen  # type: ignore[no-any-return]

    @_total_train_tokens.setter
    def _total_train_tokens(self, count: int) -> None:
        self.state.num_input_tokens_seen = count

    def get_train_dataloader(self) -> Any:
        """See transformers; rows come in the order of the sampler, if there is one."""
        if self._sampler is None:
            return super().get_train_dataloader()
        self.args.train_sampling_strategy = "random"  # another would look for a length in each row
        loader = super().get_train_dataloader()
        loader.set_sampler(self._sampler)
        return loader
