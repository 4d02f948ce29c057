"""TRL's GRPOTrainer with the repairs that resuming and its vision path need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from requests.adapters import HTTPAdapter
from trl.trainer.utils import RepeatSampler

from unifiedreward_think.models.loading import ReloadOnResume
from unifiedreward_think.training.monitor.held_out import Watched
from unifiedreward_think.training.survival.faults import FaultTolerant


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler, with an order for each epoch that a resumed run finds again.

    TRL draws the order of each epoch from one generator, which starts afresh on resume: a run resumed in its second
    epoch would walk the order of the first, seeing some rows twice and others never. The first epoch's order is TRL's.
    """

    state: Any  # the trainer's

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers, each as often as it is generated and trained on."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + int(self.state.epoch or 0))
        return super().__iter__()  # type: ignore[no-any-return]


class GRPOTrainer(FaultTolerant, Watched, ReloadOnResume, trl.GRPOTrainer):  # type: ignore[misc]
    """Restores weights and row order on resume, logs rewards by task, passes LLaVA-OneVision its `batch_num_images`.

    LLaVA-OneVision's processor emits `batch_num_images`, which TRL 1.16 neither accepts nor slices; the model needs it
    to tell a row's pictures from the next row's.

    A vLLM server that goes away is an error. TRL's client would ask again for up to a minute, and a server that was
    restarted meanwhile answers with the weights of its start: the run would train on completions of another model.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.use_vllm and self.vllm_mode == "server" and self.accelerator.is_main_process:
            for scheme in ("http://", "https://"):
                adapter = HTTPAdapter(max_retries=0, pool_maxsize=64)
                self.vllm_generation.vllm_client.session.mount(scheme, adapter)

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        stock = super()._get_train_sampler(dataset)
        sampler = EpochSampler(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, stock.shuffle, stock.seed
        )
        sampler.state = self.state
        return sampler

    def _calculate_rewards(self, inputs: Any, *args: Any) -> Any:
        """See trl; logs the means of the reward and its parts over the completions of each task, of all ranks."""
        rewards = super()._calculate_rewards(inputs, *args)
        tasks = gather_object([row["task"] for row in inputs])
        sums = self._totals(rewards)[:, None]
        logged = self._metrics["train" if self.model.training else "eval"]
        names = ["reward", *(f"rewards/{name}" for name in self.reward_func_names)]
        for task in dict.fromkeys(tasks):
            mine = torch.tensor([name == task for name in tasks], device=rewards.device)
            for name, mean in zip(names, torch.cat([sums, rewards], 1)[mine].nanmean(0).tolist(), strict=True):
                logged[f"{name}/{task}"].append(mean)
        return rewards

    def _totals(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of each completion's rewards; one that a function has left out counts for nothing."""
        return (rewards * self.reward_weights.to(rewards.device)).nansum(1)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        *args: Any,
        batch_num_images: torch.Tensor | None = None,
        num_images: list[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """See trl; additionally feeds each micro-batch its share of `batch_num_images`."""
        call = super()._get_per_token_logps_and_entropies
        positional = (model, input_ids, attention_mask, logits_to_keep, batch_size, *args)
        if self.model.config.model_type != "llava_onevision" or num_images is None:
            return call(*positional, num_images=num_images, **kwargs)
        size = batch_size or input_ids.size(0)
        shares = iter([num_images[i : i + size] for i in range(0, input_ids.size(0), size)])

        def add_share(_: Any, positional: Any, keyword: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return positional, {**keyword, "batch_num_images": torch.tensor(next(shares), device=input_ids.device)}

        hook = model.register_forward_pre_hook(add_share, with_kwargs=True)
        try:
            return call(*positional, num_images=num_images, **kwargs)
        finally:
            hook.remove()
