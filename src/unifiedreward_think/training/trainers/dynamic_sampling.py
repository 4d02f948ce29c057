"""GRPO that replaces groups without advantage: prompts are drawn anew until every group of a batch can teach something.

A group whose rewards are all equal has no gradient (at beta 0), so a batch of a model that solves most of its pairs
trains on few of them. Here such a group gives its place to a fresh prompt of the training set, for at most so many
extra rollouts. Idea: dynamic sampling of DAPO (arXiv 2503.14476), which fills the batch the same way.

Where rows are rewarded together (both candidates of a pair that are scored, `data.side_by_side`), two groups side by
side are dead together or kept together: they are replaced, by two, only when neither has advantage.

Which prompts are drawn depends on seed, step and attempt alone, so a resumed run draws the same, and so does a run on
another number of ranks. Logged per rollout: `dynamic_sampling/rollouts`, `/groups_replaced` and `/groups_left_dead`, of
all ranks. Rewards and lengths are logged over every completion that was sampled, replaced ones too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from unifiedreward_think.errors import InputError
from unifiedreward_think.records import digest
from unifiedreward_think.training.trainers.shared_prefix_grpo import SharedPrefixGRPOTrainer
from unifiedreward_think.training.trainers.side_by_side import shuffled

Batch = dict[str, Any]


class DynamicSamplingGRPOTrainer(SharedPrefixGRPOTrainer):
    """See the module.

    Args:
        extra_rollouts: most rollouts after the first one of a batch.

    Raises:
        InputError: advantages of a group depend on other groups.
    """

    def __init__(self, *args: Any, extra_rollouts: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._extra_rollouts = extra_rollouts
        self._width = 1 if self._units is None else 2  # groups that are dead or kept together
        if self.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize":
            raise InputError(
                "dynamic_sampling: advantages must be normalized in each group: set scale_rewards: group (or none) "
                "and multi_objective_aggregation: sum_then_normalize, or leave dynamic_sampling out"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        """See trl; groups without advantage are replaced."""
        batch = super()._generate_and_score_completions(inputs)
        prompts, replaced, rollouts = self._prompts, 0, 0
        dead, counts = self._dead(batch)
        while (most := self._most(len(dead))) and rollouts < self._extra_rollouts:
            rollouts += 1
            fresh = super()._generate_and_score_completions(self._draw(rollouts, counts, most))
            lively = [place for place in range(len(dead)) if fresh["advantages"][self._rows(place)].any()]
            batch = self._replace(batch, fresh, {dead[place]: place for place in lively})
            for place in lively:
                prompts[self._groups(dead[place])] = self._prompts[self._groups(place)]
            replaced += len(lively)
            dead, counts = self._dead(batch)
        self._prompts = prompts
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        groups = self._sum([replaced * self._width, len(dead) * self._width])
        for name, value in zip(("rollouts", "groups_replaced", "groups_left_dead"), (rollouts, *groups), strict=True):
            self.record(f"dynamic_sampling/{name}", value)
        return self._kept_together(batch)

    def _groups(self, place: int) -> slice:
        """Return which groups of this rank are at a place, where as many stand as are dead or kept together."""
        return slice(place * self._width, (place + 1) * self._width)

    def _rows(self, place: int) -> slice:
        groups = self._groups(place)
        return slice(groups.start * self.num_generations, groups.stop * self.num_generations)

    def _dead(self, batch: Batch) -> tuple[list[int], list[int]]:
        """Return the places of this rank without advantage, and how many such places each rank has."""
        places = len(batch["advantages"]) // (self.num_generations * self._width)
        dead = [place for place in range(places) if not batch["advantages"][self._rows(place)].any()]
        counts: list[int] = self.accelerator.gather(torch.tensor([len(dead)], device=self.accelerator.device)).tolist()
        return dead, counts

    def _sum(self, numbers: list[int]) -> list[float]:
        counts = torch.tensor([numbers], device=self.accelerator.device)
        total: list[float] = self.accelerator.gather(counts).sum(0).tolist()
        return total

    def _draw(self, rollout: int, needed: list[int], most: int) -> list[dict[str, Any]]:
        """Return the rows for `most` places; all ranks draw one order and take what each needs, one after another.

        Every rank rolls out as many groups as the one that needs most, since generation runs on all ranks at once. What
        a rank does not need comes from the order after that, so that no pair is rolled out on two ranks.
        """
        random = torch.Generator().manual_seed(
            digest("rollout", self.args.seed, self.state.global_step, rollout) % 2**63
        )
        order = shuffled(self._units or [(number,) for number in range(len(self.train_dataset))], random)
        places = [order[self._groups(place)] for place in range(len(order) // self._width)]
        rank = self.accelerator.process_index
        before, mine = sum(needed[:rank]), needed[rank]
        spare = sum(needed) + rank * most - before
        taken = [*range(before, before + mine), *range(spare, spare + most - mine)]
        chosen = [number for i in taken for number in places[i % len(places)]]
        return [row for row in map(self.train_dataset.__getitem__, chosen) for _ in range(self.num_generations)]

    def _replace(self, batch: Batch, fresh: Batch, places: dict[int, int]) -> Batch:
        """Return the batch with the rows of some groups taken from another: place in it -> place in `fresh`."""
        result = dict(batch)
        for key, old in batch.items():
            if key == "prompt_number" or not isinstance(old, torch.Tensor) or not old.ndim:
                continue  # rows keep the number of their place, whose prompt is replaced
            kept, new = self._equally_wide(key, old, fresh[key])
            for place, source in places.items():
                kept[self._rows(place)] = new[self._rows(source)]
            result[key] = kept
        return result

    def _equally_wide(self, key: str, *parts: torch.Tensor) -> list[torch.Tensor]:
        """Return copies of two padded tensors with as many columns as the wider one."""
        if parts[0].ndim == 1:
            return [part.clone() for part in parts]
        width = max(part.shape[1] for part in parts)
        filler = self.processing_class.tokenizer.pad_token_id if key.endswith("_ids") else 0
        missing = [(width - part.shape[1], 0) for part in parts]  # prompts are padded on the left
        sides = missing if key.startswith("prompt_") else [side[::-1] for side in missing]
        return [F.pad(part, side, value=filler) for part, side in zip(parts, sides, strict=True)]
