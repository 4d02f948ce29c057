"""Rows that are rewarded together come side by side, in one generation batch; the order is shuffled as TRL's is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler

from unifiedreward_think.data.side_by_side import Unit, in_twos


class SideBySideSampler(Sampler[int]):  # type: ignore[misc]
    """TRL's sampler of prompts, with units of rows in place of rows; an even number of prompts makes a batch.

    Args:
        sampler: TRL's.
        units: numbers of the rows that are rewarded together (`data.side_by_side`).
    """

    def __init__(self, sampler: RepeatSampler, units: Sequence[Unit]) -> None:
        self._sampler, self._units = sampler, units
        self.generator: torch.Generator | None = None

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers: each prompt of a batch for all of its completions, the batch for each of its steps."""
        order = shuffled(self._units, self.generator) if self._sampler.shuffle else list(in_twos(self._units))
        for place in self._places(order):
            yield order[place]

    def __len__(self) -> int:
        """Return how many row numbers come."""
        return len(self._sampler)

    def _places(self, order: Sequence[int]) -> Any:
        mine = self._sampler
        return RepeatSampler(order, mine.mini_repeat_count, mine.batch_size, mine.repeat_count, shuffle=False)


def shuffled(units: Sequence[Unit], generator: torch.Generator | None) -> list[int]:
    """Return the rows of units in a random order of the units, those of each side by side (`in_twos`)."""
    return list(in_twos(units[i] for i in torch.randperm(len(units), generator=generator).tolist()))
