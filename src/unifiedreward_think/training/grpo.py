"""GRPO on the hard pairs, with a format and an accuracy reward, through TRL's GRPOTrainer.

    accelerate launch -m unifiedreward_think.training.grpo --config configs/qwen2_5_vl_7b/grpo.yaml
    python -m unifiedreward_think.training.grpo --config configs/toy/grpo.yaml --train_files hard.jsonl

Ties and unlabelled pairs have no gold answer and are left out, with their count. With `form: pointwise` both candidates
of a pair are scored, and their scores held against each other; there a tie teaches, too.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unifiedreward_think.data.formats.files import DataError, report_left_out
from unifiedreward_think.data.formats.loading import load_checked_records, settle, undecided
from unifiedreward_think.data.rows import grpo_rows, to_dataset
from unifiedreward_think.data.side_by_side import Unit, units_of
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Count, option
from unifiedreward_think.forms import POINTWISE
from unifiedreward_think.judging.ranks import met, together
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.rewards import length_reward, swap_agreement_reward
from unifiedreward_think.terminal import say
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, SharedPrefixArguments, TrainingExtras
from unifiedreward_think.training.monitor.held_out import HeldOut, load_held_out, trainer_arguments
from unifiedreward_think.training.output import finish
from unifiedreward_think.training.parsing import parse
from unifiedreward_think.training.reading import Reading, reading_of

STAGE = "grpo"


@dataclass
class RewardArguments:
    """Which rewards are summed; their weights are TRL's `reward_weights`."""

    reward_funcs: list[str] = option(
        "functions of unifiedreward_think.rewards, or dotted paths",
        default_factory=lambda: ["format_reward", "accuracy_reward"],
    )
    length_limit: Count | None = option(
        "length_reward: tokens from which it is -1 (default: max_completion_length)", default=None
    )
    length_margin: Count | None = option(
        "length_reward: tokens below the limit where it begins to fall (default: a quarter of the limit)", default=None
    )


def main() -> None:
    """Train from a config file and the command line."""
    ours, trl = (DataArguments, TrainingExtras, RewardArguments, SharedPrefixArguments), ("GRPOConfig", "ModelConfig")
    with together(met):
        data, extras, rewards, prefix, args, model_args = parse(*ours, about=__doc__, trl=trl)
        run.refuse(args, model_args, extras)
        reward_funcs = reward_functions(rewards, args.max_completion_length)
        reading = reading_of(model_args, data, args)
        rows, counts = load_rows(data, reading)
        held_out = load_held_out(data, extras, args, reading)
        if data.check_data:
            say(f"data checked: {counts}")
            return
        kept_together(rows, reward_funcs, args, prefix)
        checkpoint = run.start(args, model_args, data, extras, rewards, prefix, stage=STAGE)
    train(rows, counts, reward_funcs, (model_args, data, extras, rewards, prefix), args, checkpoint, held_out)


def load_reward(name: str) -> Callable[..., list[float | None]]:
    """Return a reward function by its name in `unifiedreward_think.rewards` or by dotted path."""
    module, _, function = name.rpartition(".")
    loaded: Any = getattr(importlib.import_module(module or "unifiedreward_think.rewards"), function, None)
    if loaded is None:
        raise ValueError(f"reward_funcs: {module or 'unifiedreward_think.rewards'} has no function {function!r}")
    reward: Callable[..., list[float | None]] = loaded
    return reward


def reward_functions(rewards: RewardArguments, max_completion_length: int) -> list[Callable[..., list[float | None]]]:
    """Return the reward functions of a config; `length_reward` with the limit and margin of that config.

    Raises:
        InputError: limit and margin do not fit together, or nothing would read them.
    """
    functions = [load_reward(name) for name in rewards.reward_funcs]
    if length_reward not in functions:
        if rewards.length_limit is not None or rewards.length_margin is not None:
            raise InputError(
                "length_limit, length_margin: have no effect without length_reward in reward_funcs; leave them out"
            )
        return functions
    limit = max_completion_length if rewards.length_limit is None else rewards.length_limit
    margin = max(1, limit // 4) if rewards.length_margin is None else rewards.length_margin
    if not 0 < margin <= limit:
        raise InputError(f"length_margin: {margin} must lie between 1 and length_limit ({limit})")
    bound = functools.update_wrapper(functools.partial(length_reward, limit=limit, margin=margin), length_reward)
    return [bound if reward is length_reward else reward for reward in functions]


def load_rows(data: DataArguments, reading: Reading | None = None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the GRPO rows of all data files, pairs that a `reading` refuses left out, and what was counted."""

    def teaches(record: PreferenceRecord) -> bool:
        return data.form_of(record).teaches(record)

    loaded = load_checked_records(
        data.train_files,
        sampling=data.frame_sampling,
        media_root=data.media_root,
        skip_bad=data.skip_bad,
        need_label=False,
        form=data.asked_form,
    )
    misfits = [data.form_of(record).misfit(record) for record in loaded.rows]
    loaded = settle(loaded.without(misfits), skip_bad=data.skip_bad)
    decided = loaded.only(teaches, limit=data.limit)
    if not decided.rows:
        wanted = f"{data.asked_form.needs}{' (or `preferred` of two candidates)' * (data.asked_form is POINTWISE)}"
        raise DataError(f"{', '.join(data.train_files)}: no record has {wanted}, which GRPO needs")
    prompts = data.all_templates()

    def rows_of(record: PreferenceRecord) -> list[dict[str, Any]]:
        form = data.form_of(record)
        return list(grpo_rows([record], data, data.frame_sampling, prompts[form.name], form=form))

    if reading is not None:
        decided = reading.readable(decided, rows_of)
    report_left_out(decided.bad)
    rows = [row for record in decided.rows for row in rows_of(record)]
    return rows, {
        "pairs": len(decided.rows),
        "rows": len(rows),
        **undecided(record for record in loaded.rows if not teaches(record)),
        "bad rows left out": len(decided.bad),
    }


def kept_together(
    rows: Sequence[Mapping[str, Any]], reward_funcs: Sequence[Any], args: Any, prefix: SharedPrefixArguments
) -> list[Unit] | None:
    """Return the numbers of the rows that must be in one generation batch; None where each row stands alone.

    These are both candidates of a pair whose scores are held against each other, and, for `swap_agreement_reward`, both
    orders of a pair.

    Raises:
        InputError: batches would cut them; the message names the keys.
    """
    units = units_of(rows, orders=swap_agreement_reward in reward_funcs)
    if len(units) == len(rows):
        return None
    local = args.per_device_train_batch_size * args.steps_per_generation // args.num_generations
    prompts = args.generation_batch_size // args.num_generations
    fix = "change per_device_train_batch_size, gradient_accumulation_steps (or steps_per_generation) or num_generations"
    if prompts % 2:
        raise InputError(
            f"generation_batch_size: {prompts} prompts in a generation batch, where rows that are rewarded together "
            f"come in twos (the candidates of a pair, or its orders): their number must be even; {fix}"
        )
    if prefix.dynamic_sampling and local % 2:
        raise InputError(
            f"dynamic_sampling: {local} prompts of a generation batch on each process, where rows that are rewarded "
            f"together are replaced together: their number must be even; {fix}, or leave dynamic_sampling out"
        )
    return units


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
    if args.reward_weights and len(args.reward_weights) != len(reward_funcs):
        raise ValueError(f"reward_weights has {len(args.reward_weights)} entries for {len(reward_funcs)} reward_funcs")
    model, processor, peft_config = run.load(model_args, data, extras, args, counts)
    trainer_args = trainer_arguments(args, held_out)
    if model_args.model_revision != "main":
        # The reference model is loaded by TRL, which would take the newest revision.
        trainer_args.model_init_kwargs = {"revision": model_args.model_revision}
    trainer = trainer_class(prefix)(
        model=model,
        reward_funcs=reward_funcs,
        args=trainer_args,
        train_dataset=to_dataset(rows),
        processing_class=processor,
        peft_config=peft_config,
        units=kept_together(rows, reward_funcs, args, prefix),
    )
    trainer.watch(args, extras, held_out)
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, processor, args, *arguments, stage=STAGE, counts=counts)


if __name__ == "__main__":
    run.run_stage(main)
