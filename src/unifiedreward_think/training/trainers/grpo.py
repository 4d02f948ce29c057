"""TRL's GRPOTrainer with what resuming, logging and LLaVA-OneVision need; and the map of a GRPO step.

An override runs before or around the one after it: DynamicSampling, SharedPrefix (each in its module), GRPOTrainer
(here), FaultTolerant, Watched, ReloadOnResume, then TRL and transformers. Who calls whom, and what is added to it; a
name without a remark is the libraries' alone:

    train                                       FaultTolerant: signals; what a fault means
      _load_from_checkpoint                     ReloadOnResume: weights
      get_train_dataloader                      here: an order by epoch; its collator is prefetch.Reader, in a thread
      training_step                             FaultTolerant: the loss is a number
        _prepare_inputs                         at the first micro-batch of a rollout:
          _generate_and_score_completions       SharedPrefix: takes what the Reader read; DynamicSampling: several times
            _generate
              _tokenize_prompts                 SharedPrefix: each prompt is encoded once
              _generate_single_turn             SharedPrefix: each prompt is prefilled once
            _get_per_token_logps_and_entropies  reference, and old where needed; SharedPrefix: packed sequences
            _calculate_rewards                  here: what is logged of completions; SharedPrefix: groups of one reward
        compute_loss                            SharedPrefix: micro-batches of whole groups; no pass without advantage
          _compute_loss
            _get_per_token_logps_and_entropies  policy
      on_step_end                               SaveWhenAsked, SealCheckpoints: both in survival.faults
      _maybe_log_save_evaluate
        log                                     Watched: what was recorded, speed, memory, health
          on_log                                SealCheckpoints: the gradient is a number
        evaluate                                Watched: held-out pairs
        _save_checkpoint
        on_save                                 SealCheckpoints: seals, deletes older ones

Between TRL's calls the data of a rollout travel in attributes of SharedPrefix: `_readings`, `_row_prompts` and
`_scored_rows` from its start to its rewards, `_prompts` and `_micro_batches` to its last loss, `_policy_inputs` and
`_live` while a loss is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from requests.adapters import HTTPAdapter

from unifiedreward_think.data.side_by_side import Unit
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.rewards import read_verdicts, verdict_rates
from unifiedreward_think.training.monitor.held_out import Watched
from unifiedreward_think.training.survival.faults import FaultTolerant
from unifiedreward_think.training.trainers.resume import ReloadOnResume, by_epoch
from unifiedreward_think.training.trainers.side_by_side import SideBySideSampler


class GRPOTrainer(FaultTolerant, Watched, ReloadOnResume, trl.GRPOTrainer):  # type: ignore[misc]
    """Restores weights and row order on resume, logs rewards by task, passes LLaVA-OneVision its `batch_num_images`.

    LLaVA-OneVision's processor emits `batch_num_images`, which TRL 1.16 neither accepts nor slices; the model needs it
    to tell a row's pictures from the next row's.

    A vLLM server that goes away is an error. TRL's client would ask again for up to a minute, and a server that was
    restarted meanwhile answers with the weights of its start: the run would train on completions of another model.

    Args:
        units: numbers of the rows that are rewarded together, and so must be in one generation batch; None where each
            stands alone.
    """

    def __init__(self, *args: Any, units: Sequence[Unit] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._units = units
        if self.use_vllm and self.vllm_mode == "server" and self.accelerator.is_main_process:
            for scheme in ("http://", "https://"):
                adapter = HTTPAdapter(max_retries=0, pool_maxsize=64)
                self.vllm_generation.vllm_client.session.mount(scheme, adapter)

    def get_train_dataloader(self) -> Any:
        """See trl; a resumed run finds the order of its epoch, in which rows of a unit are side by side."""
        loader, units = super().get_train_dataloader(), self._units
        if units is None:
            return by_epoch(loader, self.args.seed)
        return by_epoch(loader, self.args.seed, lambda sampler: SideBySideSampler(sampler, units))

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, *args: Any) -> Any:
        """See trl; logs what the completions say, and the means of the rewards over those of each task, of all ranks.

        Which reward functions were chosen makes no difference to the first.
        """
        rewards = super()._calculate_rewards(inputs, prompts, completions, *args)
        columns = {key: [row.get(key) for row in inputs] for key in ("task", "id", "order")}
        asked = {key: [row.get(key) for row in inputs] for key in ("solution", "style", "form")}
        verdicts = read_verdicts(completions, task=columns["task"], **asked)
        columns["winner"] = [verdict.winner for verdict in verdicts]
        columns["problems"] = ["; ".join(verdict.problems) for verdict in verdicts]
        for column, cells in columns.items():
            self._log_completion_extra(column, cells)
        everyone = (gather_object(part) for part in (verdicts, asked["style"], asked["form"]))
        for name, value in verdict_rates(*everyone).items():
            self.record(name, value)
        tasks = gather_object(columns["task"])
        values = torch.cat([self._totals(rewards)[:, None], rewards], 1)
        names = ["reward", *(f"rewards/{name}" for name in self.reward_func_names)]
        for task in dict.fromkeys(tasks):
            of_task = torch.tensor([name == task for name in tasks], device=rewards.device)
            for name, mean in zip(names, values[of_task].nanmean(0).tolist(), strict=True):
                self.record(f"{name}/{task}", mean)
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
        if not FAMILIES[self.model.config.model_type].counts_images or num_images is None:
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
