"""GRPO on the hard pairs, with a format and an accuracy reward, through TRL's GRPOTrainer.

    accelerate launch -m unifiedreward_think.training.grpo --config configs/qwen2_5_vl_7b/grpo.yaml
    python -m unifiedreward_think.training.grpo --config configs/toy/grpo.yaml --train_files hard.jsonl

Ties and unlabelled pairs have no gold answer and are left out, with their count.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unifiedreward_think.data.formats.loading import DataError, load_checked_records, report_left_out, undecided
from unifiedreward_think.data.rows import grpo_row, shown_orders, to_dataset
from unifiedreward_think.errors import InputError
from unifiedreward_think.rewards import length_reward
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, SharedPrefixArguments, TrainingExtras, option
from unifiedreward_think.training.monitor.held_out import HeldOut, load_held_out, trainer_arguments
from unifiedreward_think.training.output import finish

STAGE = "grpo"


@dataclass
class RewardArguments:
    """Which rewards are summed; their weights are TRL's `reward_weights`."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["format_reward", "accuracy_reward"],
        metadata={"help": "functions of unifiedreward_think.rewards, or dotted paths"},
    )
    length_limit: int | None = option(
        "length_reward: tokens from which it is -1 (default: max_completion_length)", default=None
    )
    length_margin: int | None = option(
        "length_reward: tokens below the limit where it begins to fall (default: a quarter of the limit)", default=None
    )


def main() -> None:
    """Train from a config file and the command line."""
    own = (DataArguments, TrainingExtras, RewardArguments, SharedPrefixArguments)
    run.own_help(__doc__, own, ("trl.GRPOConfig", "trl.ModelConfig"))
    from trl import GRPOConfig, ModelConfig

    data, extras, rewards, prefix, args, model_args = run.parse(*own, GRPOConfig, ModelConfig)
    run.refuse(args, model_args)
    reward_funcs = reward_functions(rewards, args.max_completion_length)
    rows, counts = load_rows(data)
    held_out = load_held_out(data, extras, args)
    if data.check_data:
        print(f"data checked: {counts}")
        return
    checkpoint = run.start(args, model_args, data, extras, rewards, prefix, stage=STAGE)
    train(rows, counts, reward_funcs, (model_args, data, extras, rewards, prefix), args, checkpoint, held_out)


def load_reward(name: str) -> Callable[..., list[float | None]]:
    """Return a reward function by its name in `unifiedreward_think.rewards` or by dotted path."""
    module, _, function = name.rpartition(".")
    found: Any = getattr(importlib.import_module(module or "unifiedreward_think.rewards"), function, None)
    if found is None:
        raise ValueError(f"reward_funcs: {module or 'unifiedreward_think.rewards'} has no function {function!r}")
    reward: Callable[..., list[float | None]] = found
    return reward


def reward_functions(rewards: RewardArguments, max_completion_length: int) -> list[Callable[..., list[float | None]]]:
    """Return the reward functions of a config; `length_reward` with the limit and margin of that config.

    Raises:
        InputError: limit and margin do not fit together, or nothing would read them.
    """
    found = [load_reward(name) for name in rewards.reward_funcs]
    if length_reward not in found:
        if rewards.length_limit is not None or rewards.length_margin is not None:
            raise InputError(
                "length_limit, length_margin: have no effect without length_reward in reward_funcs; leave them out"
            )
        return found
    limit = max_completion_length if rewards.length_limit is None else rewards.length_limit
    margin = max(1, limit // 4) if rewards.length_margin is None else rewards.length_margin
    if not 0 < margin <= limit:
        raise InputError(f"length_margin: {margin} must lie between 1 and length_limit ({limit})")
    bound = functools.update_wrapper(functools.partial(length_reward, limit=limit, margin=margin), length_reward)
    return [bound if reward is length_reward else reward for reward in found]


def truncation_marker(limit: int, end_tokens: set[int]) -> Callable[..., list[float]]:
    """Return a reward of weight 0 that marks completions cut at `limit` tokens wherever rewards are logged."""

    def truncated(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids) >= limit and ids[-1] not in end_tokens) for ids in completion_ids]

    return truncated


def load_rows(data: DataArguments) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the GRPO rows of all data files and what was counted."""
    loaded = load_checked_records(
        data.train_files,
        sampling=data.sampling,
        media_root=data.media_root,
        skip_bad=data.skip_bad,
        need_label=False,
    )
    report_left_out(loaded.bad)
    decided = [record for record in loaded.rows if record.preferred in (1, 2)][: data.limit]
    rows = [
        grpo_row(record, order, data.prompts, data.sampling, data.style)  # type: ignore[arg-type]
        for record in decided
        for order in shown_orders(record, data.orders, data.order_seed)  # type: ignore[arg-type]
    ]
    if not rows:
        raise DataError(f"{', '.join(data.train_files)}: no pair has a winner; GRPO needs `preferred` 1 or 2")
    return rows, {
        "pairs": len(decided),
        "rows": len(rows),
        **undecided(loaded.rows),
        "bad rows left out": len(loaded.bad),
    }


def trainer_class(prefix: SharedPrefixArguments) -> Callable[..., Any]:
    """Return the trainer that `shared_prefix` names."""
    from unifiedreward_think.training.trainers.dynamic_sampling import DynamicSamplingGRPOTrainer
    from unifiedreward_think.training.trainers.grpo import GRPOTrainer
    from unifiedreward_think.training.trainers.shared_prefix_grpo import SharedPrefixGRPOTrainer

    options = {key: value for key, value in vars(prefix).items() if key != "shared_prefix"}
    if not prefix.shared_prefix:
        unused = [key for key, value in options.items() if value != getattr(SharedPrefixArguments, key)]
        if unused:
            raise InputError(f"{', '.join(unused)}: has no effect with shared_prefix: false; leave it out")
        return GRPOTrainer
    rollouts = options.pop("dynamic_sampling")
    if rollouts:
        return functools.partial(DynamicSamplingGRPOTrainer, extra_rollouts=rollouts, **options)
    return functools.partial(SharedPrefixGRPOTrainer, **options)


def train(
    rows: list[dict[str, Any]],
    counts: dict[str, int],
    reward_funcs: list[Any],
    arguments: tuple[Any, DataArguments, TrainingExtras, RewardArguments, SharedPrefixArguments],
    args: Any,
    checkpoint: str | None,
    held_out: HeldOut | None = None,
) -> None:
    """Run GRPO on the rows and save the result."""
    model_args, data, extras, _, prefix = arguments
    weights = args.reward_weights or [1.0] * len(reward_funcs)
    if len(weights) != len(reward_funcs):
        raise ValueError(f"reward_weights has {len(weights)} entries for {len(reward_funcs)} reward_funcs")
    model, processor, peft_config = run.load(model_args, data, extras, counts)
    ends = {processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}
    trainer_args = trainer_arguments(args, held_out)
    trainer_args.reward_weights = [*weights, 0.0]
    if model_args.model_revision != "main":
        # The reference model is loaded by TRL, which would take the newest revision.
        trainer_args.model_init_kwargs = {"revision": model_args.model_revision}
    trainer = trainer_class(prefix)(
        model=model,
        reward_funcs=[*reward_funcs, truncation_marker(args.max_completion_length, ends)],
        args=trainer_args,
        train_dataset=to_dataset(rows),
        processing_class=processor,
        peft_config=peft_config,
    )
    trainer.watch(args, extras, held_out)
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, processor, args, *arguments, stage=STAGE, counts=counts)


if __name__ == "__main__":
    run.run_stage(main)
