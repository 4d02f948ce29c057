"""GRPO whose prompts are tokenized, encoded, prefilled and forwarded once per group, with TRL's losses and gradients.

TRL gives each prompt num_generations rows and treats them all the way as unrelated: the image processor runs twice a
row, the vision tower once a row and pass. Here the rows of a group refer to one `Prompt`: completions are decoded on a
KV cache that shares it (`engine.rollouts`), and old, reference and policy log-probabilities come from packed sequences
(`engine.packing`). Advantages, losses, clipping, logging, vLLM and checkpoints are TRL's code. Random numbers are drawn
as TRL draws them, so a run samples the same completions up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from unifiedreward_think.engine import packing, rollouts
from unifiedreward_think.engine.feature_cache import FeatureFolder
from unifiedreward_think.engine.packing_plan import plan_packing
from unifiedreward_think.errors import InputError
from unifiedreward_think.training.trainers.grpo import GRPOTrainer
from unifiedreward_think.training.trainers.prefetch import READING, Reader

OFF = "set shared_prefix: false to train with TRL's own passes"


class SharedPrefixGRPOTrainer(GRPOTrainer):
    """See the module.

    Args:
        max_stream_tokens: most tokens of one forward; by default a forward holds a micro-batch, as TRL's does.
        embedding_cache: folder for the image features of a frozen vision tower.

    Raises:
        InputError: the model or an option is not covered; the message names the key that turns this off.
    """

    def __init__(
        self, *args: Any, max_stream_tokens: int | None = None, embedding_cache: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._max_stream_tokens = max_stream_tokens
        self._micro_batches: Iterator[dict[str, Any]] | None = None  # of the rollout, where they keep groups together
        self._prompts: list[packing.Prompt] = []  # of the rollout in training
        self._live: torch.Tensor | None = None  # rows that need a policy pass, where not all do
        self._policy_inputs: dict[str, Any] | None = None  # while the loss is computed
        network = self._network(self.model)
        if not self.use_vllm:  # as `generate` does it: the model's own options where the run has none
            self.generation_config.update(**network.generation_config.to_dict(), defaults_only=True)
        reason = packing.why_not(network) or self._why_not()
        if reason:
            raise InputError(f"shared_prefix: {reason}; {OFF}")
        packing.enable(network)
        if self.ref_model is not None:
            packing.enable(self._network(self.ref_model))
        weights = packing.vision_parameters(network)
        self._frozen = not any(weight.requires_grad for weight in weights)
        if self._frozen and self.ref_model is not None and not self._same(weights):
            raise InputError(f"shared_prefix: the reference model has another vision tower than the policy; {OFF}")
        self._reader = Reader(self.processing_class, chat_template=self.chat_template, **self.chat_template_kwargs)
        self._reader.attach(self)
        self._features = self._feature_folder(embedding_cache, network) if embedding_cache else None

    def _feature_folder(self, folder: str, network: Any) -> FeatureFolder:
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if not self._frozen or (plugin is not None and plugin.zero_stage == 3):
            raise InputError(
                "embedding_cache: needs freeze_vision: true, no projector beside the tower (LLaVA-OneVision's is "
                "trained), and no ZeRO-3; leave it out"
            )
        dtype = f"{self.accelerator.mixed_precision} {network.dtype}"
        return FeatureFolder(Path(folder), network, self.processing_class.image_processor, dtype)

    def _why_not(self) -> str | None:
        """Return the first option that is not covered."""
        args = self.args
        local = args.per_device_train_batch_size * args.steps_per_generation
        if not self.use_vllm and (reason := rollouts.why_not(self.generation_config)):
            return reason
        problems = {
            f"per_device_train_batch_size * steps_per_generation ({local}) must be a multiple of num_generations "
            f"({self.num_generations}), so that groups stay on one device": local % self.num_generations,
            "FSDP is not covered": self.is_fsdp_enabled,
            "ds3_gather_for_generation: false is not covered": (
                self.is_deepspeed_enabled and not args.ds3_gather_for_generation
            ),
            "tools, environments and rollout functions are not covered": (
                self.tools or self.environment_factories is not None or self.rollout_func is not None
            ),
        }
        return next((problem for problem, applies in problems.items() if applies), None)

    def _network(self, model: Any) -> Any:
        """Return the transformers model inside wrappers and adapters."""
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _same(self, weights: list[Any]) -> bool:
        """Whether the reference model sees images as the policy does; each rank compares what it holds."""
        others = packing.vision_parameters(self._network(self.ref_model))
        pairs = zip(weights, others, strict=True)
        same = all(getattr(a, "ds_tensor", a).equal(getattr(b, "ds_tensor", b)) for a, b in pairs)
        return self._most(int(not same)) == 0

    def _most(self, number: int) -> int:
        """Return the largest `number` of any process."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    # -- once per group: processor and vision tower ----------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """See trl; rows come in groups, and images are inside the prompts, where TRL does not process them again."""
        copies = self.num_generations
        if [row["prompt"] for row in inputs[::copies] for _ in range(copies)] != [row["prompt"] for row in inputs]:
            raise RuntimeError(f"rows do not come in groups of {copies}: TRL's sampler has changed; {OFF}")
        self._readings = [self._reader.take(row) for row in inputs[::copies]]
        if not all(reading.images for reading in self._readings):
            raise InputError(f"shared_prefix: every row needs images in its column `images`; {OFF}")
        bare = [{key: value for key, value in row.items() if key not in ("images", READING)} for row in inputs]
        self._row_prompts = torch.arange(len(inputs)) // copies
        of_row = [self._readings[i] for i in self._row_prompts]
        self._scored_rows = [{**row, "images": one.images} for row, one in zip(bare, of_row, strict=True)]
        output = super()._generate_and_score_completions(
            [{**row, "prompt": one.messages} for row, one in zip(bare, of_row, strict=True)]
        )
        if self.log_multimodal:
            self._logs["images"].extend(gather_object([row["images"] for row in self._scored_rows]))
        if self.multi_objective_aggregation == "sum_then_normalize":
            output["advantages"] = output["advantages"].masked_fill(self._flat, 0.0)
        return self._kept_together({**output, "prompt_number": self._row_prompts})

    def _calculate_rewards(self, inputs: Any, *args: Any) -> Any:
        """See trl; reward functions get every column, `images` too.

        Rows whose group has equal rewards are noted: the mean of equal numbers may differ from them by a rounding, and
        TRL divides that by as small a deviation, so that the group looks as if it had advantages.
        """
        rewards = super()._calculate_rewards(self._scored_rows, *args)
        sums = self._totals(rewards).view(-1, self.num_generations)
        flat = torch.isclose(sums.amax(1), sums.amin(1)).repeat_interleave(self.num_generations)
        first = self.accelerator.process_index * len(inputs)
        self._flat = flat[first : first + len(inputs)]
        return rewards

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        network = self._network(self.model)
        read = []
        for reading in self._readings:
            fields = {key: value.to(self.accelerator.device) for key, value in reading.fields.items()}
            prompt = packing.make_prompt(network, fields)
            with self.accelerator.autocast():
                if self._features is None:
                    prompt = packing.encode_prompt(network, prompt)
                else:
                    prompt = self._features.encode(network, prompt, reading.images)
            read.append(replace(prompt, pixels={}) if self._frozen else prompt)
        self._prompts = read
        return [prompt.ids.tolist() for prompt in read for _ in range(self.num_generations)], None, {}

    # -- once per group: prefill -------------------------------------------------------------------------------------

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *args: Any
    ) -> tuple[list[list[int]], Any]:
        if self.use_vllm:  # has a prefix cache of its own
            images = [row["images"] for row in self._scored_rows]
            return super()._generate_single_turn(  # type: ignore[no-any-return]
                prompt_ids, images, multimodal_fields, num_generations, *args
            )
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self.accelerator.autocast(),  # as TRL's `generate` has it
        ):
            completions = rollouts.rollout(
                self._network(model),
                self._prompts,
                num_generations,
                config=self.generation_config,
                ends=set(self.eos_token_ids),
            )
        return completions, None

    # -- once per group: log-probabilities ---------------------------------------------------------------------------

    def _kept_together(self, rollout: dict[str, Any]) -> dict[str, Any]:
        """Return a rollout, noting micro-batches of whole groups where these may replace TRL's of shuffled rows.

        They may where all micro-batches add up to one optimizer step, and no loss term is normalized in each.
        """
        args = self.args
        one_step = args.gradient_accumulation_steps % args.steps_per_generation == 0
        per_batch = self.loss_type == "bnpo" or self._entropy_matters()
        whole_groups = args.per_device_train_batch_size % self.num_generations == 0
        may = one_step and whole_groups and not per_batch
        self._micro_batches = cycle(split_tensor_dict(rollout, args.steps_per_generation)) if may else None
        return rollout

    def _entropy_matters(self) -> bool:
        return bool(self.top_entropy_quantile < 1.0 or self.args.entropy_coef or self.args.use_adaptive_entropy)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """See trl; a row without advantage needs no pass where nothing else in the loss looks at it."""
        inputs = next(self._micro_batches) if self._micro_batches else inputs
        self._row_prompts, self._policy_inputs = inputs["prompt_number"], inputs
        skip = self.beta == 0.0 and not self._entropy_matters()
        self._live = inputs["advantages"] != 0 if skip else None
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self._policy_inputs = self._live = None

    def _tokens_of_a_pass(self, mask: torch.Tensor) -> float:
        """Return how many tokens each token with a policy pass stands for in TRL's mean of the entropy over all."""
        counts = torch.stack([mask[self._live].sum(), mask.sum()]).float()
        passed, tokens = self.accelerator.reduce(counts, reduction="sum").tolist()
        self.record("policy_tokens_skipped", 1 - passed / max(tokens, 1))
        return tokens / passed if passed else float("nan")

    def _get_per_token_logps_and_entropies(  # type: ignore[override]
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """See trl; rows without completion tokens are left out."""
        completions = input_ids[:, -logits_to_keep:]
        lengths = attention_mask[:, -logits_to_keep:].sum(1)
        if self._live is not None:
            lengths = lengths * self._live
        prompts = self._prompts
        plan = plan_packing(
            self._row_prompts.tolist(),
            lengths.tolist(),
            [len(prompt.ids) for prompt in prompts],
            most_tokens=self._max_stream_tokens,
            most_rows=batch_size or len(input_ids),
        )
        idle = max(1, self._most(len(plan))) - len(plan)  # agreed on before any rank starts
        entropies = torch.zeros_like(completions, dtype=torch.float)
        old = (self._policy_inputs or {}).get("old_per_token_logps")
        logps = entropies if old is None else old  # of rows without a pass: a ratio of 1
        for packed in plan:
            groups = [(prompts[n], [completions[i, : lengths[i]] for i in rows]) for n, rows in packed.items()]
            output = self._read(model, groups)
            order = torch.tensor(
                [i for rows_of_prompt in packed.values() for i in rows_of_prompt], device=completions.device
            )
            held = torch.arange(logits_to_keep, device=order.device) < lengths[order, None]
            row, column = held.nonzero(as_tuple=True)
            places = order[row], column
            logps = logps.index_put(places, output.log_probs[0])
            if compute_entropy:
                entropies = entropies.index_put(places, output.entropy[0])
        for _pass in range(idle):
            logps = logps + self._idle(model)
        if compute_entropy and self._live is not None:
            entropies = entropies * self._tokens_of_a_pass(attention_mask[:, -logits_to_keep:])
        return logps, entropies if compute_entropy else None, None

    def _read(self, model: Any, groups: list[Any]) -> Any:
        inputs = packing.pack(groups, encoded=self._frozen)
        labels = torch.cat([completion for _, completions in groups for completion in completions])[None]
        with self.accelerator.autocast():
            return model(**inputs, shift_labels=labels, fused_lm_head=True)

    def _idle(self, model: Any) -> torch.Tensor:
        """Return a zero from a short pass, so that ranks run equally many and every weight gets its (zero) gradient."""
        prompt = self._prompts[0]
        if self._frozen:
            prompt = packing.Prompt(prompt.ids[-2:], prompt.positions[:, -2:], {})
        return 0.0 * self._read(model, [(prompt, [prompt.ids[-1:]])]).log_probs.sum()
